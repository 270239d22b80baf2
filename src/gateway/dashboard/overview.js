// All automations across apps: what is on, what fires next, how the last runs went. Rows are made once and change in
// place, so that focus stays where it is while things happen.

import { automationPath, follow, get } from './api.js';
import { runDialog } from './dialogs.js';
import { h, icon, set, setOnce, sr, stateBadge, statusBadge } from './dom.js';
import { number, percent, plural, soon } from './format.js';
import { STRIP_RUNS, legend, strip } from './strip.js';
import { cronLine, nextFire, problemItem, time } from './words.js';

/** Rows, problems and other things that stand in the page before somebody asks for more. */
const ROWS = 150;
const PROBLEMS = 20;
const ASIDE = 6;
/** More automations than this changed at once: the whole list is read again rather than each of them. */
const ONE_BY_ONE = 8;
const REFRESH_MS = 900;

/** What the filters were when the page was left. */
const remembered = { text: '', app: '', state: '', sort: 'app' };

const STATES = [
  ['', 'Any state'],
  ['enabled', 'On'],
  ['disabled', 'Off'],
  ['invalid', 'Invalid'],
  ['running', 'Running now'],
  ['failing', 'Last run failed'],
];
const SORTS = [
  ['app', 'By app'],
  ['next', 'Next to fire'],
  ['last', 'Latest run'],
];

const ORDERS = {
  app: (a, b) => compare(a.handle, b.handle),
  next: (a, b) => (nextOf(a) ?? Infinity) - (nextOf(b) ?? Infinity) || compare(a.handle, b.handle),
  last: (a, b) => (b.lastRun?.queuedAt ?? 0) - (a.lastRun?.queuedAt ?? 0) || compare(a.handle, b.handle),
};
const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

export function nextOf(view) {
  const fires = view.triggers.map((trigger) => trigger.next).filter((at) => typeof at === 'number');
  return fires.length === 0 ? null : Math.min(...fires);
}

const FITS = {
  '': () => true,
  enabled: (view) => view.state === 'enabled',
  disabled: (view) => view.state === 'disabled',
  invalid: (view) => view.state === 'invalid',
  running: (view) => view.activeRuns > 0,
  failing: (view) => view.lastRun?.status === 'error',
};

export async function openOverview({ root, signal, title }) {
  title('Automations');
  const page = new Overview(signal);
  await page.load();
  if (signal.aborted) return {};
  set(root, page.element);
  const stream = follow('/v1/events', (event) => page.heard(event), () => page.reload());
  return {
    close: () => stream.close(),
    run: (focused) => {
      const handle = focused?.closest?.('[data-handle]')?.dataset.handle;
      if (handle) runDialog(handle);
    },
  };
}

class Overview {
  constructor(signal) {
    this.signal = signal;
    this.views = new Map();
    this.problems = [];
    this.rows = new Map();
    this.limit = ROWS;
    this.dirty = new Set();
    this.search = h('input', {
      type: 'search',
      id: 'search',
      'data-testid': 'search',
      placeholder: 'Search',
      'aria-label': 'Search automations',
      'aria-keyshortcuts': '/',
      autocomplete: 'off',
      spellcheck: 'false',
    });
    this.search.value = remembered.text;
    this.app = h('select', { 'aria-label': 'App', 'data-testid': 'filter-app' });
    this.state = h('select', { 'aria-label': 'State', 'data-testid': 'filter-state' }, STATES.map(option));
    this.sort = h('select', { 'aria-label': 'Order', 'data-testid': 'sort' }, SORTS.map(option));
    this.state.value = remembered.state;
    this.sort.value = remembered.sort;
    for (const control of [this.search, this.app, this.state, this.sort]) {
      control.addEventListener('input', () => {
        Object.assign(remembered, { text: this.search.value, app: this.app.value, state: this.state.value, sort: this.sort.value });
        this.limit = ROWS;
        this.paint();
      });
    }
    this.stats = h('p', { class: 'stats' });
    this.list = h('div', { class: 'groups' });
    this.more = h('button', { type: 'button', class: 'more', hidden: true, 'data-testid': 'overview-more' });
    this.more.addEventListener('click', () => {
      this.limit += ROWS;
      this.paint();
    });
    this.running = aside('Running now', 'running');
    this.next = aside('Next to fire', 'next');
    this.problemBox = aside('Problems', 'problems');
    this.problemLimit = PROBLEMS;
    this.element = h(
      'div',
      { class: 'page overview' },
      h('div', { class: 'head' }, h('h1', { tabindex: -1 }, 'Automations'), this.stats),
      h(
        'div',
        { class: 'columns' },
        h(
          'div',
          { class: 'main-column' },
          h('div', { class: 'filters', role: 'search' }, h('span', { class: 'search' }, icon('search'), this.search), this.app, this.state, this.sort),
          this.list,
          this.more,
          legend(),
        ),
        h('aside', { class: 'side', 'aria-label': 'Problems and what is next' }, this.problemBox.element, this.running.element, this.next.element),
      ),
    );
  }

  async load() {
    try {
      const { automations, problems } = await get('/v1/automations', this.signal);
      this.views = new Map(automations.map((view) => [view.handle, view]));
      this.problems = problems;
      this.dirty.clear();
    } catch (error) {
      if (error.name === 'AbortError') return;
      this.failure = this.views.size === 0 ? error.message : null;
      this.paint();
      return;
    }
    this.failure = null;
    this.paint();
  }

  reload() {
    this.whole = true;
    this.later();
  }

  /** Something changed: soon, but not at every event. */
  later() {
    this.timer ??= setTimeout(async () => {
      this.timer = undefined;
      if (this.signal.aborted) return;
      const dirty = [...this.dirty];
      if (this.whole || dirty.length > ONE_BY_ONE) {
        this.whole = false;
        await this.load();
        return;
      }
      this.dirty.clear();
      await Promise.all(dirty.map((handle) => this.readOne(handle)));
      this.paint();
    }, REFRESH_MS);
  }

  async readOne(handle) {
    try {
      const { automation } = await get(automationPath(handle), this.signal);
      this.views.set(handle, automation);
    } catch (error) {
      if (error.status === 404) this.views.delete(handle);
    }
  }

  /** An event changes the row at once; its counts and its next fire follow from the daemon. */
  heard(event) {
    if (event.type === 'registry') {
      this.reload();
      return;
    }
    const view = this.views.get(event.handle);
    if (!view) {
      this.reload();
      return;
    }
    const recent = (view.recent ??= []);
    let run = recent.find((known) => known.runId === event.runId);
    if (!run && ['opened', 'started', 'ended'].includes(event.type)) {
      run = { runId: event.runId, status: event.status ?? 'running', startedAt: null, endedAt: null };
      recent.unshift(run);
      recent.length = Math.min(recent.length, STRIP_RUNS);
    }
    if (!run) return;
    if (event.type === 'opened') run.status = event.status;
    if (event.type === 'started') Object.assign(run, { status: 'running', startedAt: event.at });
    if (event.type === 'ended') {
      Object.assign(run, { status: event.status, endedAt: event.at });
      view.lastRun = { ...view.lastRun, ...run, queuedAt: run.startedAt ?? event.at, summary: event.summary, error: event.error };
    }
    view.activeRuns = recent.filter((known) => known.status === 'running' || known.status === 'queued').length;
    this.dirty.add(event.handle);
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.paint();
    });
    this.later();
  }

  paint() {
    const views = [...this.views.values()];
    this.paintApps(views);
    this.paintStats(views);
    this.paintRows(views);
    this.paintAside(views);
  }

  paintApps(views) {
    const apps = [...new Set(views.map((view) => view.appId))].sort();
    const changed = setOnce(this.app, apps, () => [option(['', 'All apps']), ...apps.map((app) => option([app, app]))]);
    if (changed) this.app.value = apps.includes(remembered.app) ? remembered.app : '';
  }

  paintStats(views) {
    const count = (state) => views.filter(FITS[state]).length;
    const errors = this.problems.filter((problem) => problem.severity !== 'warning').length;
    const warnings = this.problems.length - errors;
    const problems = [errors > 0 ? plural(errors, 'error') : '', warnings > 0 ? plural(warnings, 'warning') : ''].filter(Boolean).join(', ');
    const key = [views.length, count('enabled'), count('running'), count('failing'), problems];
    setOnce(this.stats, key, () => [
      this.stat('', plural(views.length, 'automation'), ''),
      this.stat('enabled', `${number(count('enabled'))} on`, ''),
      this.stat('running', `${number(count('running'))} running`, count('running') > 0 ? 'is-run' : ''),
      this.stat('failing', `${number(count('failing'))} failed last`, count('failing') > 0 ? 'is-bad' : ''),
      h('a', { href: '#problems', class: errors > 0 ? 'is-bad' : '', onclick: toProblems }, problems || 'no problems'),
    ]);
  }

  /** A figure that shows what it counts. */
  stat(state, text, className) {
    const pick = () => {
      this.state.value = state;
      this.state.dispatchEvent(new Event('input'));
    };
    return h('button', { type: 'button', class: `stat ${className}`, onclick: pick }, text);
  }

  paintRows(views) {
    const words = remembered.text.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (view) => {
      if (!FITS[this.state.value](view) || (this.app.value && view.appId !== this.app.value)) return false;
      const text = `${view.handle} ${view.name ?? ''} ${view.description ?? ''}`.toLowerCase();
      return words.every((word) => text.includes(word));
    };
    const found = views.filter(fits).sort(ORDERS[this.sort.value]);
    const shown = found.slice(0, this.limit);
    const grouped = this.sort.value === 'app';
    for (const view of shown) {
      if (!this.rows.has(view.handle)) this.rows.set(view.handle, new Row(view.handle));
      this.rows.get(view.handle).update(view);
    }
    for (const handle of this.rows.keys()) if (!this.views.has(handle)) this.rows.delete(handle);
    // The order is laid anew only when it is another one.
    const key = `${grouped} ${shown.map((view) => view.handle).join(' ')} ${found.length} ${this.views.size} ${this.failure}`;
    setOnce(this.list, key, () => {
      if (shown.length === 0) return this.emptyState();
      const of = (list) => h('ul', { class: 'rows' }, list.map((view) => this.rows.get(view.handle).element));
      if (!grouped) return of(shown);
      const groups = Map.groupBy ? Map.groupBy(shown, (view) => view.appId) : groupBy(shown);
      return [...groups].map(([app, list]) => h('section', { class: 'group' }, h('h2', {}, app, sr(`, ${plural(list.length, 'automation')}`)), of(list)));
    });
    this.more.hidden = found.length <= this.limit;
    this.more.textContent = `Show more (${number(found.length - shown.length)} of ${number(found.length)} are not shown)`;
  }

  emptyState() {
    if (this.failure) return h('p', { class: 'empty' }, `The daemon could not be asked: ${this.failure}`);
    if (this.views.size > 0) return h('p', { class: 'empty' }, 'Nothing is like that.');
    return h(
      'div',
      { class: 'empty' },
      h('p', {}, 'There are no automations yet. Make one in a terminal:'),
      h('pre', { class: 'command' }, h('code', {}, 'dirigent new auto.hello/first')),
      h('p', {}, 'It shows up here by itself.'),
    );
  }

  paintAside(views) {
    this.problemBox.show(this.problems.slice(0, this.problemLimit), this.problems.length, problemItem, 'None', () => {
      this.problemLimit += 100;
      this.paintAside([...this.views.values()]);
    });
    const active = views.filter(FITS.running);
    this.running.show(active.slice(0, ASIDE), active.length, runningItem, 'Nothing runs');
    const due = views.filter((view) => nextOf(view) !== null).sort(ORDERS.next);
    this.next.show(due.slice(0, ASIDE), due.length, nextItem, 'Nothing is scheduled');
  }
}

const option = ([value, text]) => h('option', { value }, text);

function groupBy(views) {
  const groups = new Map();
  for (const view of views) groups.set(view.appId, [...(groups.get(view.appId) ?? []), view]);
  return groups;
}

function toProblems(event) {
  event.preventDefault();
  const heading = document.getElementById('problems');
  heading.scrollIntoView({ block: 'start' });
  heading.focus({ preventScroll: true });
}

const hrefOf = (view) => `#/a/${encodeURIComponent(view.appId)}/${encodeURIComponent(view.automationId)}`;

function aside(title, id) {
  const count = h('span', { class: 'count' });
  const list = h('ul', { class: `aside-list ${id}` });
  const none = h('p', { class: 'none' });
  const more = h('button', { type: 'button', class: 'more' });
  const element = h('section', { 'aria-labelledby': id }, h('h2', { id, tabindex: -1 }, title, ' ', count), none, list, more);
  let grow;
  more.addEventListener('click', () => grow?.());
  const show = (items, total, build, empty, onMore) => {
    grow = onMore;
    count.textContent = total > 0 ? number(total) : '';
    none.textContent = empty;
    none.hidden = total > 0;
    more.hidden = onMore === undefined || items.length === total;
    more.textContent = `Show more (${number(total - items.length)})`;
    setOnce(list, items, () => items.map(build));
  };
  return { element, show };
}

function runningItem(view) {
  const run = (view.recent ?? []).find((known) => known.status === 'running') ?? view.lastRun;
  return h(
    'li',
    {},
    h('a', { href: run ? `#/r/${run.runId}` : hrefOf(view) }, view.name ?? view.automationId),
    h('span', { class: 'faint' }, run?.startedAt ? ['started ', time(run.startedAt)] : 'waiting'),
  );
}

function nextItem(view) {
  const at = nextOf(view);
  return h(
    'li',
    {},
    h('a', { href: hrefOf(view) }, view.name ?? view.automationId),
    h('span', { class: 'faint' }, time(at), ` · ${soon(at)}`),
  );
}

/** One automation in the list. */
class Row {
  constructor(handle) {
    this.handle = handle;
    const [app, id] = handle.split('/').map(encodeURIComponent);
    this.link = h('a', { class: 'cover', href: `#/a/${app}/${id}`, 'data-row': true });
    this.state = h('span', { class: 'c-state' });
    this.triggers = h('div', { class: 'c-triggers' });
    this.strip = h('div', { class: 'c-strip' });
    this.rate = h('div', { class: 'c-rate' });
    this.last = h('div', { class: 'c-last' });
    this.start = h('button', { type: 'button', class: 'quiet run-row-button', 'data-testid': 'row-run' }, icon('play'), h('span', {}, 'Run'));
    this.start.addEventListener('click', () => runDialog(handle));
    this.element = h(
      'li',
      { class: 'row', 'data-testid': 'overview-row', 'data-handle': handle },
      this.state,
      h('div', { class: 'c-name' }, this.link, h('span', { class: 'mono faint sub' }, handle)),
      this.triggers,
      this.strip,
      this.rate,
      this.last,
      this.start,
    );
  }

  update(view) {
    const { element } = this;
    element.dataset.state = view.state;
    element.classList.toggle('is-off', view.state === 'disabled');
    setOnce(this.state, view.state, () => stateBadge(view.state));
    setOnce(this.link, view.name ?? view.automationId, () => view.name ?? view.automationId);
    this.start.setAttribute('aria-label', `Run ${view.name ?? view.handle} now`);
    setOnce(this.triggers, [view.triggers, view.valid], () => triggerLines(view));
    setOnce(this.strip, view.recent ?? [], () => strip(view.recent ?? []));
    const rate = view.successRate;
    const { ok, error } = view.counts;
    setOnce(this.rate, [rate, ok, error], () =>
      ok + error === 0
        ? h('span', { class: 'faint' }, '–', sr(' no success rate yet'))
        : h('span', { title: `${plural(ok, 'run')} ok, ${number(error)} failed` }, percent(rate ?? ok / (ok + error)), sr(' success')),
    );
    setOnce(this.last, [view.lastRun, view.activeRuns, activeRun(view)], () => lastResult(view));
  }
}

function triggerLines({ triggers, valid }) {
  if (triggers.length === 0) return h('span', { class: 'faint' }, valid ? 'By hand or invoked' : ['–', sr(' no triggers are known')]);
  const first = triggers.slice(0, 2).map((trigger) =>
    h(
      'div',
      { class: 'trigger' },
      h('div', {}, trigger.kind === 'cron' ? cronLine(trigger) : hookWords(trigger)),
      trigger.next ? h('div', { class: 'faint', title: nextFire(trigger.next, trigger.tz).join('\n') }, time(trigger.next), ` · ${soon(trigger.next)}`) : null,
    ),
  );
  return triggers.length > 2 ? [first, h('div', { class: 'faint' }, `and ${triggers.length - 2} more`)] : first;
}

export const hookWords = (trigger) => (trigger.pending ? 'Webhook, no credentials yet' : trigger.open ? 'Webhook, open' : 'Webhook, closed');

const activeRun = (view) => (view.recent ?? []).find((run) => run.status === 'running' || run.status === 'queued');

function lastResult(view) {
  const { lastRun: last, activeRuns } = view;
  if (activeRuns > 0) {
    const run = activeRun(view);
    const status = run?.status ?? 'running';
    return [h('div', {}, statusBadge(status), activeRuns > 1 ? ` ${activeRuns} runs` : ''), h('div', { class: 'faint one-line' }, run?.startedAt ? ['started ', time(run.startedAt)] : 'waiting for its turn')];
  }
  if (!last) return h('span', { class: 'faint' }, 'Never ran');
  const told = (last.error ?? last.summary ?? '').split('\n', 1)[0];
  return [
    h('div', {}, statusBadge(last.status), ' ', h('span', { class: 'faint' }, time(last.endedAt ?? last.queuedAt))),
    h('div', { class: 'faint one-line', title: told }, told),
  ];
}

