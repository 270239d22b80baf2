// Keys: `/` searches, Enter and the arrow down lead from there to the first row, `j` and `k` walk along the rows, `r`
// runs, `g` goes to the overview, `?` shows all of them. The letters are off while somebody types, in a dialog, and with
// Ctrl, Alt or ⌘.

import { helpDialog, isDialogOpen } from './dialogs.js';

/** `page()`: the page that is shown; it may have `run(row)` for `r`. */
export function listenForKeys(page) {
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing || isDialogOpen()) return;
    const typing = event.target.closest?.('input, textarea, select, [contenteditable]');
    if (typing) {
      if (event.key === 'Escape') leave(typing);
      if (typing.type === 'search' && (event.key === 'Enter' || event.key === 'ArrowDown') && focusRow(rows()[0])) event.preventDefault();
      return;
    }
    const does = {
      '/': search,
      j: () => walk(1),
      k: () => walk(-1),
      r: () => page()?.run?.(document.activeElement),
      g: () => {
        location.hash = '#/';
      },
      '?': helpDialog,
    }[event.key];
    if (!does) return;
    event.preventDefault();
    does();
  });
}

function search() {
  const field = document.querySelector('input[type="search"]');
  field?.focus();
  field?.select();
}

function leave(field) {
  if (field.type === 'search' && field.value !== '') {
    field.value = '';
    field.dispatchEvent(new Event('input', { bubbles: true }));
  }
  field.blur();
}

/** Rows are what has `data-row`: links and buttons, in the order of the page. */
const rows = () => [...document.querySelectorAll('[data-row]')].filter((row) => row.getClientRects().length > 0);

function walk(step) {
  const all = rows();
  const holder = document.activeElement?.closest?.('[data-row], li, article');
  const at = all.findIndex((row) => row === document.activeElement || holder?.contains(row));
  const next = at < 0 ? (step > 0 ? 0 : all.length - 1) : Math.min(all.length - 1, Math.max(0, at + step));
  focusRow(all[next]);
}

/** False when there is none. */
function focusRow(row) {
  row?.focus();
  row?.scrollIntoView({ block: 'nearest' });
  return row !== undefined;
}
