// Before the first paint, so that a chosen theme never flashes: a plain script, not a module.
try {
  const theme = localStorage.getItem('dirigent.theme');
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
} catch {
  // A browser without storage follows the system.
}

// A scrollbar that takes room, as opposed to one that lies on the page while it is used.
if (innerWidth > document.documentElement.clientWidth) document.documentElement.dataset.scrollbar = 'beside';
