// A run's calls as a timeline: one row per node, its bar where and as long as it was. Calls of one tick are bracketed;
// an invoked run unfolds below its call, on the same time axis; each row opens to its request and response.

import { getExact, runPath } from './api.js';
import { h, icon, set, setOnce } from './dom.js';
import { duration, now, number, plural, second } from './format.js';
import { jsonBlock } from './json.js';

/** Rows that stand in the page before somebody asks for more, per run. */
const SHOWN = 300;
/** As deep as invokes may nest. */
const MAX_DEPTH = 8;
/** Children of a small run unfold by themselves. */
const UNFOLDED = 4;
const FOLLOW_MS = 1000;
/** At most so many parts of the time axis, each of a round length. */
const PARTS = 6;
const ROUND_MS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 10e3, 20e3, 30e3, 60e3, 120e3, 300e3, 600e3, 1200e3, 1800e3, 3600e3, 7200e3, 14400e3, 21600e3];

/** `onWant()`: a row was opened whose request is not known yet. */
export class Trace {
  constructor({ signal, onWant }) {
    this.signal = signal;
    this.onWant = onWant;
    this.axis = h('div', { class: 'axis', 'aria-hidden': 'true' });
    this.lanes = new Lanes(this, 0);
    this.none = h('p', { class: 'none' }, 'No calls');
    this.count = h('span', { class: 'count' });
    this.element = h(
      'section',
      { class: 'panel trace', 'aria-labelledby': 'trace-title' },
      h('div', { class: 'panel-head' }, h('h2', { id: 'trace-title' }, 'Calls ', this.count)),
      this.none,
      (this.body = h('div', { class: 'trace-body' }, this.axis, this.lanes.element)),
    );
  }

  /** The whole run, as the ledger has it. */
  load(run, nodes) {
    this.run = run;
    this.lanes.load(nodes);
    this.paintNow();
  }

  /** When the runs that unfold by themselves have been read. */
  async settled() {
    await Promise.all(this.lanes.unfolding);
    this.paintNow();
  }

  opened(event) {
    this.lanes.put({ ...event, startedAt: event.at, ok: null, endedAt: null, error: null, childRunId: null });
    this.paint();
  }

  closed(event) {
    const node = this.lanes.nodes.get(event.ordinal);
    if (node) this.lanes.put({ ...node, ok: event.ok, error: event.error, endedAt: event.at });
    this.paint();
  }

  /** A call whose child is not known yet: events do not name it. */
  wantsChild() {
    for (const node of this.lanes.nodes.values()) if (node.kind === 'invoke' && !node.childRunId && node.endedAt === null) return true;
    return false;
  }

  paint() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.paintNow();
    });
  }

  paintNow() {
    const size = this.lanes.nodes.size;
    this.none.hidden = size > 0;
    this.body.hidden = size === 0;
    this.count.textContent = size === 0 ? '' : number(size);
    const from = this.run.startedAt ?? this.run.queuedAt;
    let to = this.run.endedAt ?? now();
    for (const node of this.lanes.nodes.values()) to = Math.max(to, node.endedAt ?? 0);
    this.scale = { from, span: Math.max(1, to - from), to };
    setOnce(this.axis, [this.scale.span], () =>
      ticks(this.scale.span).map((at) => {
        const tick = h('span', {}, at === 0 ? '0' : duration(at));
        tick.style.left = `${(100 * at) / this.scale.span}%`;
        return tick;
      }),
    );
    this.body.style.setProperty('--part', `${(100 * partOf(this.scale.span)) / this.scale.span}%`);
    this.lanes.paint(this.scale);
  }
}

/** The rows of one run. */
class Lanes {
  constructor(trace, depth) {
    this.trace = trace;
    this.depth = depth;
    this.nodes = new Map();
    this.rows = new Map();
    this.limit = SHOWN;
    this.unfolding = [];
    this.list = h('ol', { class: 'lanes' });
    this.list.style.setProperty('--depth', depth);
    this.more = h('button', { type: 'button', class: 'more', hidden: true, 'data-testid': 'trace-more' });
    this.more.addEventListener('click', () => {
      this.limit += SHOWN;
      trace.paint();
    });
    this.element = h('div', {}, this.list, this.more);
  }

  load(nodes) {
    for (const node of nodes) this.put(node);
  }

  put(node) {
    // An event knows less than the ledger; what is known stays.
    this.nodes.set(node.ordinal, { ...this.nodes.get(node.ordinal), ...node });
  }

  paint(scale) {
    const nodes = [...this.nodes.values()].sort((a, b) => a.ordinal - b.ordinal);
    const shown = nodes.slice(0, this.limit);
    const fresh = [];
    shown.forEach((node, at) => {
      let row = this.rows.get(node.ordinal);
      if (!row) {
        row = new NodeRow(this, node);
        this.rows.set(node.ordinal, row);
        fresh.push(row);
      }
      row.update(node, scale, batchPlace(nodes, at));
    });
    if (fresh.length > 0) {
      const known = shown.map((node) => this.rows.get(node.ordinal).element);
      // Rows come at the end, mostly.
      if (this.list.childElementCount + fresh.length === shown.length && known[shown.length - 1] === fresh.at(-1).element) {
        this.list.append(...fresh.map((row) => row.element));
      } else {
        set(this.list, known);
      }
    }
    const invokes = nodes.filter((node) => node.childRunId);
    if (this.depth === 0 && invokes.length <= UNFOLDED) for (const node of invokes) this.rows.get(node.ordinal)?.unfoldFirst();
    this.more.hidden = nodes.length <= this.limit;
    this.more.textContent = `Show more (${plural(nodes.length - shown.length, 'call')})`;
  }
}

/** Where a node stands in its batch: `first`, `middle`, `last`, or null when it is alone. */
function batchPlace(nodes, at) {
  const { batchId } = nodes[at];
  if (batchId === null || batchId === undefined) return null;
  const before = nodes[at - 1]?.batchId === batchId;
  const after = nodes[at + 1]?.batchId === batchId;
  if (!before && !after) return null;
  return before ? (after ? 'middle' : 'last') : 'first';
}

class NodeRow {
  constructor(lanes, node) {
    this.lanes = lanes;
    this.ordinal = node.ordinal;
    const id = `node-${lanes.depth}-${node.ordinal}-${Math.random().toString(36).slice(2, 8)}`;
    this.name = h('span', { class: 'node-name' });
    this.note = h('span', { class: 'node-note faint' });
    this.told = h('span', { class: 'sr' });
    this.bar = h('span', { class: 'bar' });
    this.took = h('span', { class: 'took num' });
    this.head = h(
      'button',
      { type: 'button', class: 'node-head', 'aria-expanded': 'false', 'aria-controls': id, 'data-row': true },
      h('span', { class: 'node-label' }, icon(node.kind), this.name, this.note, this.told),
      h('span', { class: 'lane' }, this.bar, this.took),
    );
    this.head.addEventListener('click', () => this.openOrClose());
    this.fold = h('button', { type: 'button', class: 'fold', hidden: true, 'aria-expanded': 'false', 'data-testid': 'unfold-child' }, icon('chevron'));
    this.fold.addEventListener('click', () => (this.child ? this.foldUp() : this.unfold()));
    this.detail = h('div', { class: 'node-detail', id, hidden: true });
    this.below = h('div', { class: 'node-child' });
    this.element = h('li', { class: 'node', 'data-testid': 'trace-node', 'data-ordinal': node.ordinal, 'data-kind': node.kind }, h('div', { class: 'node-row' }, this.fold, this.head), this.detail, this.below);
  }

  update(node, scale, place) {
    this.node = node;
    const open = node.endedAt === null || node.endedAt === undefined;
    const failed = node.ok === false;
    const status = open ? 'running' : failed ? 'error' : 'ok';
    const end = open ? scale.to : node.endedAt;
    const took = duration(Math.max(0, end - node.startedAt));
    if (this.element.dataset.status !== status) this.element.dataset.status = status;
    this.element.dataset.batch = place ?? '';
    const key = `${node.name} ${status} ${took} ${node.args !== undefined} ${place}`;
    if (this.key !== key) {
      this.key = key;
      set(this.name, node.name);
      set(this.note, noteOf(node));
      this.took.textContent = failed ? `✕ ${took}` : took;
      this.told.textContent = `, ${status}, ${took}${place ? ', at the same time as others' : ''}`;
      this.head.title = `${node.name} · ${status} · ${took}${place ? ' · at the same time as its neighbours' : ''}`;
    }
    const left = clamp(((node.startedAt - scale.from) / scale.span) * 100);
    const right = clamp(((end - scale.from) / scale.span) * 100);
    this.bar.style.left = `${left}%`;
    this.bar.style.width = `${Math.max(0, right - left)}%`;
    // The duration stands where there is room: after a bar that ends early, before one that ends late.
    const late = right > 72;
    this.took.classList.toggle('before', late && left > 28);
    this.took.classList.toggle('inside', late && left <= 28);
    this.took.style.left = late && left <= 28 ? `${right}%` : `${late ? left : right}%`;
    this.fold.hidden = !node.childRunId || this.lanes.depth >= MAX_DEPTH;
    this.fold.setAttribute('aria-label', `Calls of ${node.name}`);
    if (!this.detail.hidden) this.paintDetail();
    this.child?.paint(scale);
  }

  openOrClose() {
    this.detail.hidden = !this.detail.hidden;
    this.head.setAttribute('aria-expanded', String(!this.detail.hidden));
    if (this.detail.hidden) return;
    this.paintDetail();
    if (this.node.args === undefined) this.lanes.trace.onWant();
  }

  paintDetail() {
    const { node } = this;
    setOnce(this.detail, [node.args === undefined, node.endedAt, node.ok, node.childRunId], () => {
      const waits = node.endedAt === null ? 'still open' : 'nothing';
      const known = node.args !== undefined;
      return [
        node.error ? h('p', { class: 'bad pre', 'data-testid': 'node-error' }, node.error) : null,
        h(
          'div',
          { class: 'two' },
          h('div', {}, h('h3', {}, 'Request'), known ? jsonBlock(node.args, { label: 'request' }) : h('p', { class: 'none' }, 'Loading…')),
          h('div', {}, h('h3', {}, 'Response'), known ? jsonBlock(node.result, { label: 'response', empty: waits }) : h('p', { class: 'none' }, waits)),
        ),
        h(
          'p',
          { class: 'faint' },
          `${node.kind} · started ${second(node.startedAt)}`,
          node.usage ? ` · ${usageWords(node.usage)}` : '',
          node.childRunId ? [' · ', h('a', { href: `#/r/${node.childRunId}` }, 'open the invoked run')] : '',
        ),
      ];
    });
  }

  unfoldFirst() {
    if (!this.wasUnfolded) this.lanes.unfolding.push(this.unfold());
  }

  unfold() {
    this.wasUnfolded = true;
    const { trace, depth } = this.lanes;
    this.child = new Lanes(trace, depth + 1);
    this.fold.setAttribute('aria-expanded', 'true');
    this.element.classList.add('unfolded');
    set(this.below, this.child.element);
    return this.readChild(this.child);
  }

  async readChild(child) {
    const { trace } = this.lanes;
    try {
      const { run, nodes } = await getExact(runPath(this.node.childRunId), trace.signal);
      if (this.child !== child) return;
      child.load(nodes);
      if (nodes.length === 0 && run.endedAt !== null) {
        this.tellBelow('No calls · ', h('a', { href: `#/r/${run.runId}` }, 'open the run'));
      }
      trace.paint();
      if (run.endedAt === null) setTimeout(() => this.child === child && !trace.signal.aborted && this.readChild(child), FOLLOW_MS);
    } catch (error) {
      if (error.name !== 'AbortError') this.tellBelow(`Its calls cannot be read: ${error.message}`);
    }
  }

  /** In place of the calls of the invoked run; the lines of the time axis go through. */
  tellBelow(...words) {
    const row = h('p', { class: 'no-calls' }, h('span', { class: 'node-label none' }, h('span', {}, words)), h('span', { class: 'lane', 'aria-hidden': 'true' }));
    row.style.setProperty('--depth', this.lanes.depth + 1);
    set(this.below, row);
  }

  foldUp() {
    this.child = null;
    this.fold.setAttribute('aria-expanded', 'false');
    this.element.classList.remove('unfolded');
    set(this.below);
  }
}

/** From one tick to the next, ms: a day holds at most four. */
const partOf = (span) => ROUND_MS.find((part) => span / part <= PARTS) ?? Math.ceil(span / PARTS / 86400e3) * 86400e3;

function ticks(span) {
  const part = partOf(span);
  return Array.from({ length: Math.floor(span / part) + 1 }, (_, at) => at * part);
}

const clamp = (value) => Math.min(100, Math.max(0, value));

/** What a call is about, in a few words from its request. */
function noteOf({ kind, name, args }) {
  if (typeof args !== 'object' || args === null) return '';
  if (name.startsWith('centraid_')) return [args.app, args.query ?? args.action].filter((word) => typeof word === 'string').join(' · ');
  if (kind === 'agent' && typeof args.prompt === 'string') return args.prompt.slice(0, 80);
  return '';
}

function usageWords(usage) {
  if (typeof usage !== 'object' || usage === null) return '';
  const told = [['inputTokens', 'in'], ['cachedInputTokens', 'of them cached'], ['outputTokens', 'out'], ['reasoningTokens', 'of them reasoning']];
  const counts = told.filter(([name]) => typeof usage[name] === 'number').map(([name, what]) => `${number(usage[name])} ${what}`);
  return [usage.model, counts.length > 0 && `tokens: ${counts.join(', ')}`].filter(Boolean).join(' · ');
}

