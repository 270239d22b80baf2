// Source text with line numbers: a file, or the lines around a place in it. Comments, strings and words of the language
// are tinted; that is a guess of the eye's kind, and changes no character.

import { h } from './dom.js';
import { number } from './format.js';
import { blanks } from './text.js';

/** Lines that are shown at once. */
const SHOWN = 800;
/** Lines before and after a place. */
const AROUND = 4;

/** `mark`: `{line, column}`, 1-based. With `around`, only the lines near it. */
export function source(text, { kind = 'js', mark = null, around = false, label = 'source' } = {}) {
  const lines = (kind === 'js' ? tinted(text) : text.split('\n').map((line) => [line])).map(shown);
  if (lines.length > 1 && lines.at(-1).length === 0) lines.pop();
  const first = around ? Math.max(0, mark.line - 1 - AROUND) : 0;
  const last = around ? Math.min(lines.length, mark.line + AROUND) : lines.length;
  const box = h('div', { class: 'code', role: 'region', tabindex: 0, 'aria-label': label });
  const body = h('div', { class: 'code-lines' });
  body.style.setProperty('--digits', String(last).length);
  box.append(body);
  let next = first;
  const more = h('button', { type: 'button', class: 'more' });
  const grow = () => {
    const upto = Math.min(last, next + SHOWN);
    for (; next < upto; next += 1) body.append(lineOf(lines[next], next + 1, mark));
    more.textContent = `Show more (${number(last - next)} lines)`;
    if (next === last) more.remove();
  };
  more.addEventListener('click', grow);
  grow();
  if (next < last) box.append(more);
  return box;
}

const shown = (parts) => parts.filter((part) => part !== '');

function lineOf(parts, number, mark) {
  const marked = mark?.line === number;
  const line = h('div', { class: marked ? 'line marked' : 'line', 'data-n': number }, parts.length === 0 ? '\n' : parts);
  if (marked && mark.column > 0) {
    const pad = blanks(line.textContent.slice(0, mark.column - 1));
    line.append(h('div', { class: 'caret', 'aria-hidden': 'true' }, `${pad}^`));
  }
  return line;
}

const TOKEN = new RegExp(
  [
    '(\\/\\/[^\\n]*|\\/\\*[^]*?(?:\\*\\/|$))',
    '("(?:[^"\\\\\\n]|\\\\.)*"|\'(?:[^\'\\\\\\n]|\\\\.)*\'|`(?:[^`\\\\]|\\\\[^])*`)',
    '\\b(async|await|break|case|catch|class|const|continue|default|delete|do|else|export|finally|for|from|function|if|import|in|instanceof|let|new|of|return|static|switch|throw|try|typeof|var|void|while|yield|true|false|null|undefined)\\b',
    '\\b(\\d[\\d_.]*n?)\\b',
  ].join('|'),
  'g',
);
const KINDS = ['note', 'str', 'word', 'num'];

/** Per line, its parts. */
function tinted(text) {
  const lines = [[]];
  const put = (piece, kind) => {
    piece.split('\n').forEach((part, at) => {
      if (at > 0) lines.push([]);
      if (part !== '') lines.at(-1).push(kind === null ? part : h('span', { class: `t-${kind}` }, part));
    });
  };
  // A megabyte of source is read for its lines, not for its colours.
  if (text.length > 200_000) {
    put(text, null);
    return lines;
  }
  let from = 0;
  for (const match of text.matchAll(TOKEN)) {
    put(text.slice(from, match.index), null);
    put(match[0], KINDS[match.slice(1).findIndex((group) => group !== undefined)]);
    from = match.index + match[0].length;
  }
  put(text.slice(from), null);
  return lines;
}

/** The first place in an error's text that lies in this automation's handler. */
export function placeOf(error, handle) {
  for (const match of (error ?? '').matchAll(/([\w.-]+\/[\w-]+)\/handler\.js:(\d+):(\d+)/g)) {
    if (match[1] === handle) return { line: Number(match[2]), column: Number(match[3]) };
  }
  return null;
}

/** The hash that a ledger notes for a handler; null where the browser cannot make one. */
export async function sha256(text) {
  if (!globalThis.crypto?.subtle) return null;
  const hash = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(text));
  return [...new Uint8Array(hash)].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}
