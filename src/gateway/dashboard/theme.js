// Before the first paint, so that a chosen theme never flashes: a plain script, not a module.
try {
  const theme = localStorage.getItem('dirigent.theme');
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
} catch {
  // A browser without storage follows the system.
}
