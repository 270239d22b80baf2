// The last runs as a row of marks, newest on the right. A mark's height is how long the run took; its shape says how it
// ended, so that colour is not needed: ok is a bar, an error an exclamation mark, a cancelled run hollow, a skipped one a
// dot, a running one hatched.

import { h, svg } from './dom.js';
import { duration, plural, relative } from './format.js';

export const STRIP_RUNS = 20;
const STEP = 7;
const WIDTH = 5;
const HEIGHT = 24;

/** `recent`: newest first. With `links`, each mark leads to its run. */
export function strip(recent, { links = false, large = false } = {}) {
  const runs = recent.slice(0, STRIP_RUNS).reverse();
  const marks = runs.map((run, at) => {
    const x = (STRIP_RUNS - runs.length + at) * STEP;
    const group = svg('g', { class: `mark s-${run.status}` }, svg('title', {}, told(run)), ...shape(run, x));
    if (!links) return group;
    const target = svg('rect', { x: x - 1, y: 0, width: STEP, height: HEIGHT, class: 'target' });
    return svg('a', { href: `#/r/${run.runId}`, 'aria-label': told(run) }, target, group);
  });
  const ground = svg('line', { class: 'ground', x1: 0, x2: STRIP_RUNS * STEP - 2, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 });
  const props = {
    class: large ? 'strip large' : 'strip',
    viewBox: `0 0 ${STRIP_RUNS * STEP - 2} ${HEIGHT}`,
    role: links ? 'group' : 'img',
    'aria-label': summary(runs),
  };
  return svg('svg', props, ground, ...marks);
}

function shape(run, x) {
  const size = height(run);
  const y = HEIGHT - 1 - size;
  const bar = (props) => svg('rect', { x, y, width: WIDTH, height: size, rx: 1, ...props });
  switch (run.status) {
    case 'ok':
      return [bar()];
    case 'error':
      return [
        svg('rect', { x, y: 1, width: WIDTH, height: 14, rx: 1 }),
        svg('rect', { x, y: HEIGHT - 6, width: WIDTH, height: 5, rx: 1 }),
      ];
    case 'skipped':
      return [svg('circle', { cx: x + WIDTH / 2, cy: HEIGHT - 4, r: 1.8 })];
    case 'running':
      return [bar(), svg('path', { class: 'hatch', d: hatch(x, y, size) })];
    default:
      return [svg('rect', { x: x + 0.7, y: y + 0.7, width: WIDTH - 1.4, height: size - 1.4, rx: 1, class: 'hollow' })];
  }
}

function hatch(x, y, size) {
  const lines = [];
  for (let at = y + 4; at < y + size; at += 4) lines.push(`M${x} ${at} L${x + WIDTH} ${Math.max(y, at - 3)}`);
  return lines.join(' ');
}

/** 10 ms is short, half a minute is long. */
function height(run) {
  if (run.status === 'running' || run.status === 'queued') return 14;
  if (run.startedAt === null || run.startedAt === undefined || !run.endedAt) return 6;
  const power = Math.log10(Math.max(10, run.endedAt - run.startedAt)) - 1;
  return Math.round(6 + Math.min(1, power / 3.5) * 15);
}

function told(run) {
  const took = run.startedAt && run.endedAt ? `, took ${duration(run.endedAt - run.startedAt)}` : '';
  const at = run.startedAt ?? run.endedAt;
  return `${run.status}${at ? ` ${relative(at)}` : ''}${took}`;
}

function summary(runs) {
  if (runs.length === 0) return 'no runs yet';
  const counts = new Map();
  for (const run of runs) counts.set(run.status, (counts.get(run.status) ?? 0) + 1);
  const parts = [...counts].map(([status, count]) => `${count} ${status}`);
  return `last ${plural(runs.length, 'run')}: ${parts.join(', ')}`;
}

/** What the marks mean. */
export function legend() {
  return h(
    'ul',
    { class: 'legend', 'aria-label': 'What the marks mean' },
    ['ok', 'error', 'cancelled', 'skipped', 'running'].map((status) =>
      h(
        'li',
        {},
        svg(
          'svg',
          { class: 'strip-mark', viewBox: `0 0 ${WIDTH} ${HEIGHT}`, 'aria-hidden': 'true' },
          svg('g', { class: `mark s-${status}` }, ...shape({ status, startedAt: 1, endedAt: 900 }, 0)),
        ),
        status,
      ),
    ),
  );
}
