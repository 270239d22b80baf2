// Values that runs took and gave, as indented text. Long ones are cut until somebody asks for the rest; one that the
// ledger itself cut is shown as such.

import { h, set } from './dom.js';
import { copyButton } from './dialogs.js';
import { bytes, number } from './format.js';

/** Characters that are shown at once. */
const SHOWN = 12_000;
/** The ledger keeps values up to this many bytes whole; only a longer one is cut. */
const FULL_VALUE_BYTES = 256 * 1024;

/** A block for one value; `empty` stands where there is none. */
export function jsonBlock(value, { empty = 'nothing', label = 'value' } = {}) {
  if (value === null || value === undefined) return h('p', { class: 'none' }, empty);
  if (isCut(value)) {
    return h(
      'div',
      { class: 'json', 'data-testid': 'truncated' },
      h(
        'p',
        { class: 'cut' },
        `Truncated: ${bytes(value.bytes)} in full, ${isLost(value) ? 'too long to be kept' : 'left out here'}. This is its beginning.`,
        h('br'),
        h('span', { class: 'mono faint' }, `SHA-256 ${value.sha256}`),
      ),
      h('pre', { role: 'group', tabindex: 0, 'aria-label': `${label}, its beginning` }, value.head),
    );
  }
  const text = typeof value === 'string' ? value : JSON.stringify(value, null, 2);
  const pre = h('pre', { role: 'group', tabindex: 0, 'aria-label': label });
  const paint = (shown) => set(pre, typeof value === 'string' ? shown : coloured(shown));
  const box = h('div', { class: 'json' }, copyButton(() => text), pre);
  if (text.length <= SHOWN) {
    paint(text);
    return box;
  }
  paint(text.slice(0, SHOWN));
  const more = h('button', { type: 'button', class: 'more' }, `Show all ${number(text.length)} characters`);
  more.addEventListener('click', () => {
    // Plain: colours for a quarter of a million characters cost more than they tell.
    set(pre, text);
    more.remove();
    pre.focus();
  });
  box.append(more);
  return box;
}

/** The mark in place of a value that was too long to be kept, or to be sent with ten thousand others. */
function isCut(value) {
  return (
    typeof value === 'object' && value !== null && Object.keys(value).length === 4 && value._truncated === true &&
    typeof value.bytes === 'number' && typeof value.sha256 === 'string' && typeof value.head === 'string'
  );
}

/** The ledger's own mark: the value is nowhere. What only looks like it is short. */
export const isLost = (value) => isCut(value) && value.bytes > FULL_VALUE_BYTES;

const TOKEN = /("(?:[^"\\]|\\.)*")(\s*:)?|\b(true|false|null)\b|(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)/g;

function coloured(text) {
  const parts = [];
  let from = 0;
  for (const match of text.matchAll(TOKEN)) {
    if (match.index > from) parts.push(text.slice(from, match.index));
    const kind = match[2] !== undefined ? 'key' : match[1] !== undefined ? 'str' : match[3] ? 'word' : 'num';
    parts.push(h('span', { class: `t-${kind}` }, match[1] ?? match[0]));
    if (match[2] !== undefined) parts.push(match[2]);
    from = match.index + match[0].length;
  }
  parts.push(text.slice(from));
  return parts;
}

/** A value in a line, for lists. */
export function brief(value, most = 120) {
  const text = typeof value === 'string' ? value : JSON.stringify(value) ?? '';
  return text.length > most ? `${text.slice(0, most)}…` : text;
}
