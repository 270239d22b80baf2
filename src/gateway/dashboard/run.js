// One run, live: where it stands, what it was given and gave, why it failed and at which line, its calls on a timeline,
// its log.

import { automationPath, follow, get, getExact, post, runPath } from './api.js';
import { placeOf, sha256, source } from './code.js';
import { announce, attempt, runDialog, toast } from './dialogs.js';
import { h, icon, set, setOnce, statusBadge } from './dom.js';
import { duration, now, second, shortId, utc } from './format.js';
import { isLost, jsonBlock } from './json.js';
import { LogView } from './logs.js';
import { Trace } from './trace.js';
import { time, triggerStory, triggerWords } from './words.js';

/** While a run is open, its row is read again at most this often. */
const READ_MS = 900;
const CLOCK_MS = 200;
const SETTLE_MS = 400;
/** Runs that are listed as led to. */
const LED_TO = 50;
/** With more calls than this, details are read only when somebody asks. */
const EAGER_NODES = 300;

export async function openRun({ root, signal, title, params }) {
  const [id] = params;
  title(`Run ${shortId(id)}`);
  const page = new RunPage(id, signal, title);
  const loaded = await page.load();
  // With what belongs to the first sight of it, so that nothing moves; but not for long.
  if (loaded) await Promise.race([page.settled(), new Promise((done) => setTimeout(done, SETTLE_MS))]);
  if (signal.aborted) return {};
  if (!loaded) {
    const told = page.failure.status === 404 ? 'There is no such run. Its automation may keep fewer.' : page.failure.message;
    set(root, h('div', { class: 'page' }, h('h1', { tabindex: -1 }, `Run ${shortId(id)}`), h('div', { class: 'empty' }, h('p', {}, told), h('p', {}, h('a', { href: '#/runs' }, 'All runs')))));
    return {};
  }
  set(root, page.element);
  page.follow();
  return { close: () => page.close(), run: () => runDialog(page.handle) };
}

const isOpen = (run) => run.status === 'queued' || run.status === 'running';

class RunPage {
  constructor(id, signal, title) {
    this.id = id;
    this.signal = signal;
    this.setTitle = title;
    this.crumbs = h('nav', { class: 'crumbs', 'aria-label': 'Where this is' });
    this.status = h('span', { 'data-testid': 'run-status' });
    this.took = h('span', { class: 'took-now num' });
    this.summary = h('p', { class: 'lead', 'data-testid': 'run-summary' });
    this.cancel = h('button', { type: 'button', class: 'quiet danger', 'data-testid': 'cancel-run' }, 'Cancel');
    this.replay = h('button', { type: 'button', class: 'quiet', 'data-testid': 'replay-run' }, 'Replay');
    this.edit = h('button', { type: 'button', class: 'quiet', 'data-testid': 'edit-run' }, 'Edit and run…');
    this.cancel.addEventListener('click', () => this.doCancel());
    this.replay.addEventListener('click', () => this.doReplay());
    this.edit.addEventListener('click', () => runDialog(this.handle, { input: this.inputText() }));
    this.error = h('section', { class: 'panel error-panel', 'aria-labelledby': 'error-title', hidden: true });
    this.trace = new Trace({ signal, onWant: () => this.readSoon() });
    this.logs = new LogView();
    this.input = h('div', { 'data-testid': 'run-input-value' });
    this.output = h('div', { 'data-testid': 'run-output' });
    this.facts = h('dl', { class: 'facts' });
    this.children = [];
    this.aftermath = [];
    this.ledTo = h('ul', { class: 'aside-list' });
    this.ledToBox = h('section', { 'aria-labelledby': 'led-title' }, h('h2', { id: 'led-title' }, 'Runs it led to'), this.ledTo);
    this.element = h(
      'div',
      { class: 'page run' },
      this.crumbs,
      h(
        'div',
        { class: 'head' },
        h('div', { class: 'head-title' }, h('h1', { tabindex: -1 }, 'Run ', h('span', { class: 'mono' }, shortId(id))), this.status, this.took),
        h('div', { class: 'head-actions' }, this.cancel, this.replay, this.edit),
      ),
      this.summary,
      h(
        'div',
        { class: 'columns' },
        h('div', { class: 'main-column' }, this.error, this.trace.element, this.logs.element),
        h(
          'aside',
          { class: 'side', 'aria-label': 'Input, output and facts' },
          h('section', { 'aria-labelledby': 'output-title' }, h('h2', { id: 'output-title' }, 'Output'), this.output),
          h('section', { 'aria-labelledby': 'input-title' }, h('h2', { id: 'input-title' }, 'Input'), this.input),
          h('section', { 'aria-labelledby': 'facts-title' }, h('h2', { id: 'facts-title' }, 'Facts'), this.facts),
          this.ledToBox,
        ),
      ),
    );
  }

  async load() {
    let detail;
    try {
      detail = await getExact(runPath(this.id), this.signal);
    } catch (error) {
      this.failure = error;
      if (this.run && error.name !== 'AbortError') toast(error.message, 'bad');
      return false;
    }
    this.run = detail.run;
    this.handle = `${detail.run.appId}/${detail.run.automationId}`;
    this.children = detail.children ?? [];
    this.trace.load(this.run, detail.nodes);
    this.logs.load(detail.logs, this.run.startedAt);
    this.paint();
    return true;
  }

  async settled() {
    await Promise.all([this.placeShown, this.trace.settled()]);
  }

  follow() {
    this.clock = setInterval(() => this.tickOn(), CLOCK_MS);
    if (!isOpen(this.run)) {
      this.readAftermath();
      return;
    }
    this.stream = follow(`${runPath(this.id)}/events`, (event) => this.heard(event));
  }

  close() {
    clearInterval(this.clock);
    clearTimeout(this.later);
    clearTimeout(this.reading);
    this.stream?.close();
  }

  heard(event) {
    const { run } = this;
    switch (event.type) {
      case 'started':
        if (run.status === 'queued') Object.assign(run, { status: 'running', startedAt: event.at });
        this.logs.startedAt ??= event.at;
        break;
      case 'log':
        this.logs.add(event);
        return;
      case 'nodeOpened':
        if (!this.trace.lanes.nodes.has(event.ordinal)) this.trace.opened(event);
        if (event.kind === 'invoke' && this.trace.lanes.nodes.size < EAGER_NODES) this.readSoon();
        return;
      case 'nodeClosed':
        this.trace.closed(event);
        if (this.trace.lanes.nodes.size < EAGER_NODES) this.readSoon();
        return;
      case 'ended':
        Object.assign(run, { status: event.status, endedAt: event.at, summary: event.summary, error: event.error, errorCode: event.errorCode });
        this.stream?.close();
        announce(`The run has ended: ${event.status}`);
        this.readSoon();
        this.later = setTimeout(() => this.readAftermath(), 1500);
        break;
      default:
        return;
    }
    this.paint();
  }

  /** The ledger has requests, responses and the ids of invoked runs. */
  readSoon() {
    this.reading ??= setTimeout(async () => {
      this.reading = undefined;
      if (this.signal.aborted) return;
      await this.load();
      if (isOpen(this.run) && this.trace.wantsChild()) this.readSoon();
    }, this.run && isOpen(this.run) ? READ_MS : 50);
  }

  tickOn() {
    if (!isOpen(this.run)) return;
    this.paintTook();
    if (this.trace.lanes.nodes.size > 0) this.trace.paint();
  }

  paintTook() {
    const { run } = this;
    const text = run.startedAt ? duration((run.endedAt ?? now()) - run.startedAt) : run.status === 'queued' ? 'waiting' : '';
    if (this.took.textContent !== text) this.took.textContent = text;
  }

  paint() {
    const { run } = this;
    const [app, id] = this.handle.split('/');
    this.setTitle(`${run.status} · ${this.handle}`);
    setOnce(this.crumbs, this.handle, () => [
      h('a', { href: '#/' }, 'Automations'),
      h('span', { 'aria-hidden': 'true' }, '/'),
      h('a', { href: `#/a/${encodeURIComponent(app)}/${encodeURIComponent(id)}`, 'data-testid': 'run-automation' }, this.handle),
      h('span', { 'aria-hidden': 'true' }, '/'),
      h('span', {}, 'run'),
    ]);
    setOnce(this.status, run.status, () => statusBadge(run.status));
    this.status.dataset.status = run.status;
    this.paintTook();
    const open = isOpen(run);
    this.cancel.hidden = !open;
    this.replay.hidden = open;
    this.replay.disabled = isLost(run.input);
    this.edit.disabled = isLost(run.input);
    const told = run.summary ?? (run.errorCode || run.error ? errorWords(run.errorCode) : open ? 'It runs; what it gives shows here.' : 'No summary');
    setOnce(this.summary, told, () => told);
    this.summary.classList.toggle('faint', !run.summary);
    setOnce(this.input, [run.input], () => jsonBlock(run.input, { label: 'input', empty: 'none' }));
    setOnce(this.output, [run.output, open], () => jsonBlock(run.output, { label: 'output', empty: open ? 'not yet' : 'none' }));
    setOnce(this.facts, [run], () => factRows(run));
    const led = [...this.children, ...this.aftermath].slice(0, LED_TO);
    setOnce(this.ledTo, led, () => led.map(ledToItem));
    this.ledToBox.hidden = led.length === 0;
    this.paintError();
  }

  paintError() {
    const { run } = this;
    this.error.hidden = !run.error && !run.errorCode;
    const changed = setOnce(this.error, [run.error, run.errorCode], () => {
      this.place = h('div', {});
      return [
        h('div', { class: 'panel-head' }, h('h2', { id: 'error-title' }, icon('error'), 'Error ', run.errorCode ? h('code', {}, run.errorCode) : null)),
        h('pre', { class: 'error-text', 'data-testid': 'run-error', role: 'group', tabindex: 0, 'aria-label': 'Error' }, run.error ?? ''),
        this.place,
      ];
    });
    if (changed && run.error) this.placeShown = this.showPlace(run, this.place);
  }

  /** What followed a failure stands in no row of its own: its retry, and the run of its failure handler. */
  async readAftermath() {
    if (this.run.status !== 'error') return;
    try {
      const { manifest } = await get(automationPath(this.handle), this.signal);
      const handler = failureHandler(manifest, this.run.appId);
      const since = String(this.run.endedAt ?? this.run.queuedAt);
      const asked = [[this.handle, 'retry'], [handler, 'failure']].filter(([automation]) => automation !== null);
      const pages = asked.map(([automation, origin]) => get(`/v1/runs?${new URLSearchParams({ automation, origin, since, limit: '100' })}`, this.signal));
      const runs = (await Promise.all(pages)).flatMap((page) => page.runs);
      this.aftermath = runs.filter((run) => run.retryOf === this.id || run.trigger?.failedRun === this.id);
      this.paint();
    } catch {
      // They are found in the list of runs all the same.
    }
  }

  /** The line that the error names, from the handler as it stands now. */
  async showPlace(run, box) {
    const mark = placeOf(run.error, this.handle);
    if (!mark) return;
    try {
      const { handler } = await get(automationPath(this.handle), this.signal);
      if (typeof handler !== 'string' || handler.split('\n').length < mark.line) return;
      const hash = await sha256(handler);
      const edited = hash !== null && run.handlerHash !== null && hash !== run.handlerHash;
      set(
        box,
        h(
          'p',
          { class: 'where' },
          h('span', { class: 'mono' }, `handler.js:${mark.line}:${mark.column}`),
          edited ? h('span', { class: 'warn-text', 'data-testid': 'handler-edited' }, ' The handler was changed since this run: the line may be another one.') : null,
        ),
        source(handler, { mark, around: true, label: 'Where the error was thrown' }),
      );
    } catch {
      // The automation may be gone; the error's text stands by itself.
    }
  }

  inputText() {
    const { input } = this.run;
    return input === null || input === undefined ? '' : JSON.stringify(input, null, 2);
  }

  async doCancel() {
    const asked = await attempt(this.cancel, () => post(`${runPath(this.id)}/cancel`));
    if (asked) announce('Cancelling');
  }

  async doReplay() {
    const run = await attempt(this.replay, () => post(`${runPath(this.id)}/replay`));
    if (run) location.hash = `#/r/${run.runId}`;
  }
}

const ERRORS = {
  handler_threw: 'The handler threw.',
  handler_load: 'The handler could not be loaded.',
  no_default_export: 'The handler has no default export.',
  bad_output: 'What the handler returned could not be taken.',
  output_schema: 'The output does not fit the schema that the manifest promises.',
  timeout: 'It took longer than it may.',
  cpu_limit: 'It used more processor time than it may.',
  memory_limit: 'It used more memory than it may.',
  never_settled: 'Its promise could never settle.',
  limit_exceeded: 'It went past a limit.',
  crashed: 'The process that ran it died.',
  interrupted: 'The daemon stopped while it ran.',
};

const errorWords = (code) => ERRORS[code] ?? 'It failed.';

function failureHandler(text, app) {
  try {
    const handle = JSON.parse(text).onFailure;
    return typeof handle !== 'string' ? null : handle.includes('/') ? handle : `${app}/${handle}`;
  } catch {
    return null;
  }
}

function factRows(run) {
  const { trigger = {} } = run;
  const link = (id) => h('a', { class: 'mono', href: `#/r/${id}` }, shortId(id));
  const rows = [
    ['Trigger', h('span', {}, triggerStory(run))],
    ['Queued', moment(run.queuedAt)],
    ['Started', run.startedAt ? moment(run.startedAt) : null],
    ['Waited', run.startedAt && run.startedAt - run.queuedAt > 50 ? duration(run.startedAt - run.queuedAt) : null],
    ['Took', run.startedAt && run.endedAt ? duration(run.endedAt - run.startedAt) : null],
    ['Attempt', run.attempt > 1 ? String(run.attempt) : null],
    ['Parent', run.parentRunId && link(run.parentRunId)],
    ['Retry of', run.retryOf && link(run.retryOf)],
    ['Replay of', trigger.replayOf && link(trigger.replayOf)],
    ['Handles', trigger.failedRun && link(trigger.failedRun)],
    ['Handler', run.handlerHash && h('code', { title: run.handlerHash }, run.handlerHash.slice(0, 12))],
    ['Run', h('code', { class: 'break' }, run.runId)],
  ];
  return rows.filter(([, value]) => value).map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', {}, value)));
}

const moment = (at) => h('span', { title: utc(at) }, second(at), ' ', h('span', { class: 'faint' }, time(at)));

function ledToItem(run) {
  return h(
    'li',
    {},
    h('a', { href: `#/r/${run.runId}` }, `${run.appId}/${run.automationId}`),
    h('span', { class: 'faint' }, statusBadge(run.status), ' ', triggerWords(run)),
  );
}
