// Runs as a table, newest first, with filters and older pages; and the page of all runs.

import { follow, get } from './api.js';
import { h, set, statusBadge } from './dom.js';
import { time, triggerWords } from './words.js';
import { duration, shortId } from './format.js';

const PAGE = 50;
const STATUSES = ['queued', 'running', 'ok', 'error', 'cancelled', 'skipped'];
const ORIGINS = ['cron', 'webhook', 'manual', 'invoke', 'failure', 'retry'];
/** Events come in bursts; the first page is read again at most this often. */
const REFRESH_MS = 700;

/** `query`: what every page asks for, such as `{automation: 'app/id'}`. `named`: rows say whose run it is. */
export class RunsTable {
  constructor({ query = {}, named = false, signal, title = 'Runs' }) {
    this.query = query;
    this.named = named;
    this.signal = signal;
    this.rows = new Map();
    this.order = [];
    this.next = null;
    this.status = pick('Status', 'runs-status', STATUSES, () => this.reload());
    this.origin = pick('Trigger', 'runs-origin', ORIGINS, () => this.reload());
    this.list = h('ul', { class: 'run-list' });
    this.more = h('button', { type: 'button', class: 'more', hidden: true, 'data-testid': 'runs-more' }, 'Show older runs');
    this.more.addEventListener('click', () => this.older());
    this.told = h('p', { class: 'none' }, 'Loading…');
    this.element = h(
      'section',
      { class: named ? 'panel runs named' : 'panel runs', 'aria-labelledby': 'runs-title' },
      h('div', { class: 'panel-head' }, h('h2', { id: 'runs-title' }, title), this.status, this.origin),
      this.told,
      this.list,
      this.more,
    );
  }

  path(cursor) {
    const query = new URLSearchParams({ ...this.query, limit: String(PAGE) });
    if (this.status.value) query.set('status', this.status.value);
    if (this.origin.value) query.set('origin', this.origin.value);
    if (cursor) query.set('cursor', cursor);
    return `/v1/runs?${query}`;
  }

  /** From the top, as after a change of filters. */
  async reload() {
    this.order = [];
    this.rows.clear();
    this.next = null;
    await this.refresh(true);
  }

  /** The first page again: new rows come on top, those that are there change in place. */
  async refresh(fresh = false) {
    const path = this.path();
    let page;
    try {
      page = await get(path, this.signal);
    } catch (error) {
      this.fail(error);
      return;
    }
    // The filters have changed meanwhile: another answer is on its way.
    if (path !== this.path()) return;
    const ids = page.runs.map((run) => run.runId);
    const known = new Set(ids);
    const rest = fresh || this.order.length <= PAGE ? [] : this.order.filter((id) => !known.has(id));
    this.order = [...ids, ...rest];
    if (rest.length === 0) this.next = page.next;
    this.take(page.runs);
  }

  async older() {
    this.more.disabled = true;
    try {
      const page = await get(this.path(this.next), this.signal);
      const first = page.runs.find((run) => !this.rows.has(run.runId))?.runId;
      this.order = [...new Set([...this.order, ...page.runs.map((run) => run.runId)])];
      this.next = page.next;
      this.take(page.runs);
      this.rows.get(first)?.link.focus();
    } catch (error) {
      this.fail(error);
    } finally {
      this.more.disabled = false;
    }
  }

  fail(error) {
    if (error.name === 'AbortError') return;
    this.told.hidden = false;
    this.told.textContent = `The runs cannot be read: ${error.message}`;
  }

  take(runs) {
    for (const run of runs) {
      const row = this.rows.get(run.runId) ?? this.newRow(run);
      row.update(run);
      this.rows.set(run.runId, row);
    }
    const elements = this.order.map((id) => this.rows.get(id).element);
    const now = [...this.list.children];
    if (elements.length !== now.length || elements.some((element, at) => element !== now[at])) {
      const focused = document.activeElement;
      set(this.list, elements);
      if (this.list.contains(focused)) focused.focus({ preventScroll: true });
    }
    const filtered = this.status.value || this.origin.value;
    this.told.hidden = elements.length > 0;
    this.told.textContent = filtered ? 'No run is like that' : 'No runs yet';
    this.more.hidden = !this.next;
  }

  newRow(run) {
    const link = h('a', { class: 'cover', href: `#/r/${run.runId}`, 'data-row': true });
    const cells = {
      status: h('span', { class: 'c-status' }),
      when: h('span', { class: 'c-when' }),
      trigger: h('span', { class: 'c-trigger' }),
      took: h('span', { class: 'c-took num' }),
      told: h('span', { class: 'c-told' }),
    };
    const element = h(
      'li',
      { class: 'run-row', 'data-testid': 'run-row', 'data-run': run.runId },
      cells.status,
      h('span', { class: 'c-name' }, link, cells.when),
      cells.trigger,
      cells.took,
      cells.told,
    );
    const handle = `${run.appId}/${run.automationId}`;
    link.append(this.named ? handle : h('span', { class: 'mono' }, shortId(run.runId)));
    let shown = '';
    const update = (now) => {
      const key = JSON.stringify([now.status, now.startedAt, now.endedAt, now.summary, now.error]);
      if (key === shown) return;
      shown = key;
      element.dataset.status = now.status;
      set(cells.status, statusBadge(now.status));
      set(cells.when, time(now.startedAt ?? now.queuedAt));
      set(cells.trigger, triggerWords(now));
      set(cells.took, now.startedAt && now.endedAt ? duration(now.endedAt - now.startedAt) : '');
      cells.told.className = now.status === 'error' ? 'c-told bad' : now.summary ? 'c-told' : 'c-told faint';
      set(cells.told, (now.error ?? now.summary ?? '').split('\n', 1)[0]);
    };
    return { element, link, update };
  }

  /** Something happened to a run of this list. */
  touch() {
    this.timer ??= setTimeout(() => {
      this.timer = undefined;
      if (!this.signal.aborted) this.refresh();
    }, REFRESH_MS);
  }
}

function pick(label, testid, values, changed) {
  const options = values.map((value) => h('option', { value }, value));
  const select = h('select', { 'aria-label': label, 'data-testid': testid }, h('option', { value: '' }, `any ${label.toLowerCase()}`), options);
  select.addEventListener('change', changed);
  return select;
}

/** The page of all runs. */
export async function openRuns({ root, signal, title }) {
  title('Runs');
  const table = new RunsTable({ named: true, signal, title: 'All apps, newest first' });
  await table.refresh();
  if (signal.aborted) return {};
  set(root, h('div', { class: 'page' }, h('h1', { tabindex: -1 }, 'Runs'), table.element));
  const touch = (event) => {
    if (['opened', 'started', 'ended'].includes(event.type)) table.touch();
  };
  const stream = follow('/v1/events', touch, () => table.touch());
  return { close: () => stream.close() };
}
