/*
 * The dashboard: routes, theme, keys, and the state of the connection.
 *
 * Routes: `#/` all automations, `#/a/<app>/<id>` one of them, `#/r/<runId>` a run, `#/runs` all runs.
 *
 * Elements that tests hold on to, by data-testid:
 *   nav-overview nav-runs live-state theme-toggle help help-dialog search filter-app filter-state sort
 *   overview-row row-run overview-more problem run-now toggle-enabled trigger webhook-provision webhook-rotate
 *   cost cost-measured cost-estimated cost-window
 *   webhook-secret-dialog webhook-url webhook-secret confirm tab-handler tab-manifest
 *   run-dialog run-input run-start run-row runs-status runs-origin runs-more
 *   run-status run-summary run-error run-input-value run-output run-automation handler-edited
 *   cancel-run replay-run edit-run trace-node trace-more unfold-child node-error truncated log-line log-level
 *   toast session-ended logout
 */

import { openAutomation } from './automation.js';
import { announce, helpDialog, sessionEnded } from './dialogs.js';
import { h, icon, set } from './dom.js';
import { listenForKeys } from './keys.js';
import { openOverview } from './overview.js';
import { openRun } from './run.js';
import { openRuns } from './runs.js';
import { tick } from './words.js';

const ROUTES = [
  [/^#?\/?$/, openOverview, 'overview'],
  [/^#\/a\/([^/]+)\/([^/]+)$/, openAutomation, 'overview'],
  [/^#\/r\/([^/]+)$/, openRun, 'runs'],
  [/^#\/runs$/, openRuns, 'runs'],
];

const root = document.getElementById('main');
let page = null;
let leaving = null;
/** Where each place was left: how far down, and on which link. */
const places = new Map();
let here = null;

async function show(goesBack) {
  const hash = location.hash;
  const isFirst = here === null;
  if (!isFirst) places.set(here, { top: scrollY, href: document.activeElement?.getAttribute?.('href') ?? null });
  here = hash;
  leaving?.abort();
  page?.close?.();
  page = null;
  const controller = new AbortController();
  leaving = controller;
  const { signal } = controller;
  for (const open of document.querySelectorAll('dialog[open]:not([data-keep])')) open.close();

  const [route, found] = match(hash);
  for (const link of document.querySelectorAll('.topbar nav a')) {
    if (link.dataset.nav === route?.[2]) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  const title = (text) => {
    if (!signal.aborted) document.title = `${text} · dirigent`;
  };
  root.setAttribute('aria-busy', 'true');
  if (isFirst) set(root, h('p', { class: 'empty' }, 'Loading…'));
  let opened = {};
  if (route) {
    opened = await route[1]({ root, signal, title, params: found.slice(1).map(decode) }).catch((error) => {
      if (!signal.aborted) broken(error);
      return {};
    });
  } else {
    title('Not found');
    set(root, h('div', { class: 'page' }, h('h1', { tabindex: -1 }, 'There is no such page'), h('p', { class: 'empty' }, h('a', { href: '#/' }, 'All automations'))));
  }
  if (signal.aborted) {
    opened.close?.();
    return;
  }
  page = opened;
  root.removeAttribute('aria-busy');
  if (isFirst) return;
  const place = goesBack ? places.get(hash) : null;
  scrollTo(0, place?.top ?? 0);
  const heading = root.querySelector('h1');
  const left = place?.href ? [...root.querySelectorAll('a')].find((link) => link.getAttribute('href') === place.href) : null;
  (left ?? heading ?? root).focus({ preventScroll: true });
  announce(document.title);
}

function broken(error) {
  console.error(error);
  set(root, h('div', { class: 'page' }, h('h1', { tabindex: -1 }, 'This page could not be shown'), h('p', { class: 'empty' }, String(error.message ?? error))));
}

function match(hash) {
  for (const route of ROUTES) {
    const found = route[0].exec(hash);
    if (found) return [route, found];
  }
  return [null, null];
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

// An entry of the history that was here before has its mark; a new one gets it.
addEventListener('hashchange', () => {
  const goesBack = history.state?.seen === true;
  if (!goesBack) history.replaceState({ seen: true }, '');
  show(goesBack);
});
history.replaceState({ seen: true }, '');
history.scrollRestoration = 'manual';

document.getElementById('skip').addEventListener('click', (event) => {
  event.preventDefault();
  root.focus();
});

const themeButton = document.getElementById('theme');
const THEMES = ['auto', 'light', 'dark'];
function paintTheme() {
  const theme = document.documentElement.dataset.theme ?? 'auto';
  set(themeButton, icon(theme));
  const text = `Theme: ${theme === 'auto' ? 'as the system' : theme}`;
  themeButton.setAttribute('aria-label', text);
  themeButton.title = text;
}
themeButton.addEventListener('click', () => {
  const theme = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme ?? 'auto') + 1) % THEMES.length];
  if (theme === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem('dirigent.theme', theme);
  } catch {
    // It lasts as long as the page.
  }
  paintTheme();
});
paintTheme();

document.getElementById('help').addEventListener('click', helpDialog);
listenForKeys(() => page);

const live = document.getElementById('live');
const liveText = document.getElementById('live-text');
document.addEventListener('live-state', ({ detail }) => {
  live.dataset.state = detail;
  liveText.textContent = { live: 'Live', broken: 'Reconnecting' }[detail] ?? '';
});
document.addEventListener('session-ended', sessionEnded);

setInterval(tick, 1000);
show(false);
