// Builds elements. Whatever is shown becomes a text node or an attribute; nothing is ever read as markup. Text that is
// put into elements here shows the characters in it that have no look of their own.

import { signed } from './text.js';

const SVG = 'http://www.w3.org/2000/svg';

/**
 * An element. `props`: attributes, but for `on…` (listeners), booleans (present or not) and null (absent).
 * Children: elements, text, numbers, lists of these; null and false are left out.
 */
export function h(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

export function svg(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : String(value));
  }
  element.append(...nodes(children));
  return element;
}

function nodes(children) {
  const given = children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
  return given.flatMap((child) => (typeof child === 'string' ? signed(child) : [child]));
}

/** Puts these in place of what an element holds. */
export function set(element, ...children) {
  element.replaceChildren(...nodes(children));
  return element;
}

/** As `set`, but only when `key` differs from last time: what has not changed keeps its focus and selection. */
export function setOnce(element, key, build) {
  const text = typeof key === 'string' ? key : JSON.stringify(key);
  if (shown.get(element) === text) return false;
  shown.set(element, text);
  set(element, build());
  return true;
}
const shown = new WeakMap();

export const sr = (text) => h('span', { class: 'sr' }, text);

/** Icons on a 16-unit grid: a status or a state can be told by its shape alone. */
const PATHS = {
  ok: 'M3.200 8.600 6.600 12 12.800 4.800',
  error: 'M4 4 12 12 M12 4 4 12',
  cancelled: 'M4.200 4.200 H11.800 V11.800 H4.200 Z',
  skipped: 'M3.500 4.500 7.500 8 3.500 11.500 M8.500 4.500 12.500 8 8.500 11.500',
  queued: 'M8 2.800 a5.200 5.200 0 1 0 .01 0 M8 5.200 V8.200 L10 9.600',
  running: 'M8 2.800 a5.200 5.200 0 0 1 5.200 5.200',
  enabled: 'M8 3 a5 5 0 1 0 .01 0',
  disabled: 'M8 3 a5 5 0 1 0 .01 0',
  invalid: 'M8 2.500 14 13 H2 Z M8 6.600 V9.400 M8 11.200 V11.400',
  play: 'M5 3.200 12.800 8 5 12.800 Z',
  chevron: 'M6 3.500 10.500 8 6 12.500',
  copy: 'M5.500 5.500 V3 H13 V10.500 H10.500 M3 5.500 H10.500 V13 H3 Z',
  search: 'M7 2.800 a4.200 4.200 0 1 0 .01 0 M10.200 10.200 13.500 13.500',
  tool: 'M3 8 H13 M9.500 4.500 13 8 9.500 11.500',
  agent: 'M8 2 L9.600 6.400 14 8 9.600 9.600 8 14 6.400 9.600 2 8 6.400 6.400 Z',
  invoke: 'M4 3 V9 A2 2 0 0 0 6 11 H12.500 M9.800 8.200 12.600 11 9.800 13.800',
  light: 'M8 5 a3 3 0 1 0 .01 0 M8 1.200 V2.400 M8 13.600 V14.800 M1.200 8 H2.400 M13.600 8 H14.800 M3.200 3.200 4 4 M12 12 12.800 12.800 M12.800 3.200 12 4 M4 12 3.200 12.800',
  dark: 'M12.800 9.600 A5.400 5.400 0 1 1 6.400 3.200 A4.400 4.400 0 0 0 12.800 9.600 Z',
  auto: 'M8 2.600 a5.400 5.400 0 1 0 .01 0 M8 2.600 V13.400 M8 5 L11.600 5 M8 8 H13.200 M8 11 H11.600',
  clock: 'M8 2.800 a5.200 5.200 0 1 0 .01 0 M8 5.200 V8.200 L10 9.600',
  hook: 'M6.500 9.500 9.500 6.500 M7 4.500 8.500 3 a3 3 0 0 1 4.500 4.500 L11.500 9 M9 11.500 7.500 13 A3 3 0 0 1 3 8.500 L4.500 7',
  hand: 'M5 3.200 12.800 8 5 12.800 Z',
};

export function icon(name) {
  const path = svg('path', { d: PATHS[name] ?? PATHS.queued });
  return svg('svg', { class: `icon i-${name}`, viewBox: '0 0 16 16', width: 16, height: 16, 'aria-hidden': 'true' }, path);
}

/** A status as shape, colour and word. */
export function statusBadge(status) {
  return h('span', { class: `status s-${status}` }, icon(status), h('span', {}, status));
}

const STATES = { enabled: 'On', disabled: 'Off', invalid: 'Invalid' };

export function stateBadge(state) {
  return h('span', { class: `state st-${state}` }, icon(state), h('span', {}, STATES[state] ?? state));
}
