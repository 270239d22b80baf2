// One automation: whether it is on and what fires it, its problems, its runs, and its two files.

import { automationPath, follow, get, post } from './api.js';
import { source } from './code.js';
import { costFigures } from './cost.js';
import { announce, attempt, mintWebhook, runDialog, toast } from './dialogs.js';
import { h, icon, set, setOnce, stateBadge } from './dom.js';
import { duration, number, percent, plural } from './format.js';
import { RunsTable } from './runs.js';
import { strip } from './strip.js';
import { cronLine, nextFire, problemItem, prose, time, told } from './words.js';

const REFRESH_MS = 700;

export async function openAutomation({ root, signal, title, params }) {
  const [app, id] = params;
  const handle = `${app}/${id}`;
  title(handle);
  const page = new AutomationPage(handle, signal);
  const loaded = await page.load();
  if (signal.aborted) return {};
  if (!loaded) {
    set(root, notThere(handle, page.failure));
    return {};
  }
  set(root, page.element);
  page.runs.refresh();
  const readAgain = () => {
    page.runs.touch();
    page.later();
  };
  const heard = (event) => {
    if (event.type === 'registry') page.later();
    if (event.handle === handle && ['opened', 'started', 'ended'].includes(event.type)) readAgain();
  };
  const stream = follow('/v1/events', heard, readAgain);
  return { close: () => stream.close(), run: () => page.canRun() && runDialog(handle) };
}

function notThere(handle, failure) {
  return h(
    'div',
    { class: 'page' },
    h('h1', { tabindex: -1 }, handle),
    h('div', { class: 'empty' }, h('p', {}, prose(failure)), h('p', {}, h('a', { href: '#/' }, 'All automations'))),
  );
}

class AutomationPage {
  constructor(handle, signal) {
    this.handle = handle;
    this.signal = signal;
    const [app, id] = handle.split('/');
    this.name = h('h1', { tabindex: -1 }, id);
    this.state = h('span', { class: 'state-slot' });
    this.description = h('p', { class: 'lead' });
    this.start = h('button', { type: 'button', class: 'primary', 'data-testid': 'run-now', 'aria-keyshortcuts': 'r' }, icon('play'), 'Run now');
    this.start.addEventListener('click', () => runDialog(handle));
    this.toggle = h('button', { type: 'button', class: 'quiet', 'data-testid': 'toggle-enabled' });
    this.toggle.addEventListener('click', () => this.switchOver());
    this.strip = h('div', { class: 'strip-slot' });
    this.facts = h('dl', { class: 'facts' });
    this.cost = h('div', { class: 'cost-figures' });
    this.triggers = h('div', { class: 'trigger-list' });
    this.problemTitle = h('h2', { id: 'problems-title' }, 'Problems');
    this.problemList = h('ul', { class: 'problems' });
    this.problems = h('section', { class: 'panel', 'aria-labelledby': 'problems-title' }, h('div', { class: 'panel-head' }, this.problemTitle), this.problemList);
    this.runs = new RunsTable({ query: { automation: handle }, signal });
    this.files = new Files(handle);
    this.element = h(
      'div',
      { class: 'page automation' },
      h(
        'nav',
        { class: 'crumbs', 'aria-label': 'Where this is' },
        h('a', { href: '#/' }, 'Automations'),
        h('span', { 'aria-hidden': 'true' }, '/'),
        h('span', {}, app),
        h('span', { 'aria-hidden': 'true' }, '/'),
        h('span', {}, id),
      ),
      h('div', { class: 'head' }, h('div', { class: 'head-title' }, this.name, this.state), h('div', { class: 'head-actions' }, this.start, this.toggle)),
      this.description,
      h(
        'div',
        { class: 'columns' },
        h('div', { class: 'main-column' }, this.problems, this.runs.element, this.files.element),
        h(
          'aside',
          { class: 'side', 'aria-label': 'Triggers and facts' },
          h('section', { 'aria-labelledby': 'triggers-title' }, h('h2', { id: 'triggers-title' }, 'Triggers'), this.triggers),
          h('section', { 'aria-labelledby': 'facts-title' }, h('h2', { id: 'facts-title' }, 'History'), this.strip, this.facts),
          (this.costBox = h('section', { 'aria-labelledby': 'cost-title', 'data-testid': 'cost' }, h('h2', { id: 'cost-title' }, 'Models'), this.cost)),
          this.about = h('section', { 'aria-labelledby': 'about-title' }),
        ),
      ),
    );
  }

  canRun() {
    return !this.start.disabled;
  }

  async load() {
    try {
      this.detail = await get(automationPath(this.handle), this.signal);
    } catch (error) {
      this.failure = error.status === 404 ? told(`there is no automation ${this.handle}`, error.hint) : error.message;
      if (error.name !== 'AbortError' && this.view) toast(error.message, 'bad');
      return false;
    }
    this.view = this.detail.automation;
    this.paint();
    return true;
  }

  later() {
    this.timer ??= setTimeout(async () => {
      this.timer = undefined;
      if (!this.signal.aborted) await this.load();
    }, REFRESH_MS);
  }

  async switchOver() {
    const on = !this.view.enabled;
    const answer = await attempt(this.toggle, () => post(`${automationPath(this.handle)}/${on ? 'enable' : 'disable'}`));
    if (!answer) return;
    announce(on ? 'Enabled' : 'Disabled');
    // The daemon sees the file change a moment later, and says so by an event.
    this.view = { ...this.view, enabled: on, state: this.view.state === 'invalid' ? 'invalid' : on ? 'enabled' : 'disabled' };
    this.paint();
    this.later();
  }

  paint() {
    const { view } = this;
    setOnce(this.name, view.name ?? view.automationId, () => view.name ?? view.automationId);
    setOnce(this.state, view.state, () => stateBadge(view.state));
    setOnce(this.description, view.description ?? '', () => view.description ?? '');
    this.description.hidden = !view.description;
    this.toggle.textContent = view.enabled ? 'Disable' : 'Enable';
    this.toggle.dataset.enabled = String(view.enabled);
    this.strip.hidden = view.recent.length === 0;
    setOnce(this.strip, view.recent, () => strip(view.recent, { links: true, large: true }));
    setOnce(this.facts, [view.counts, view.successRate, view.activeRuns, view.lastRun], () => factRows(view));
    setOnce(this.triggers, [view.triggers, view.enabled, view.valid], () => this.triggerCards());
    this.problems.hidden = view.problems.length === 0;
    setOnce(this.problemList, view.problems, () => view.problems.map(problemItem));
    this.problemTitle.textContent = view.problems.length === 0 ? 'Problems' : `Problems (${view.problems.length})`;
    this.files.show(this.detail.manifest, this.detail.handler, view.problems);
    setOnce(this.cost, [view.costEstimate, view.usage, view.recent.length], () => costFigures(view));
    this.costBox.hidden = !view.costEstimate && !view.usage;
    setOnce(this.about, [this.detail.manifest], () => aboutRows(this.detail.manifest, view));
    this.about.hidden = this.about.childElementCount === 0;
  }

  triggerCards() {
    const { triggers, valid } = this.view;
    if (triggers.length === 0) return h('p', { class: 'none' }, valid ? 'None: it runs by hand, or when another one invokes it.' : 'None are known until the manifest is valid.');
    return h('ul', { class: 'cards' }, triggers.map((trigger) => (trigger.kind === 'cron' ? this.cronCard(trigger) : this.hookCard(trigger))));
  }

  cronCard(trigger) {
    const next = trigger.next
      ? [h('p', { class: 'next' }, 'Next ', time(trigger.next)), h('ul', { class: 'zones' }, nextFire(trigger.next, trigger.tz).map((line) => h('li', {}, line)))]
      : h('p', { class: 'faint' }, this.view.enabled ? 'It will not fire as things stand.' : 'Off: it does not fire.');
    return h('li', { 'data-testid': 'trigger' }, h('p', { class: 'trigger-name' }, icon('clock'), h('span', {}, cronLine(trigger))), h('p', { class: 'mono faint' }, trigger.expr, trigger.tz ? ` · ${trigger.tz}` : ''), next);
  }

  hookCard(trigger) {
    const state = trigger.pending ? 'pending' : trigger.open ? 'open' : 'closed';
    const told = {
      pending: 'It has no credentials yet: nobody can post to it.',
      open: 'Posts with its secret are taken.',
      closed: this.view.enabled ? 'Posts are refused; the problems say why.' : 'Off: posts are answered, and nothing runs.',
    }[state];
    const what = trigger.pending ? 'provision' : 'rotate';
    const button = h('button', { type: 'button', class: 'quiet', 'data-testid': trigger.pending ? 'webhook-provision' : 'webhook-rotate' }, trigger.pending ? 'Mint credentials…' : 'New secret…');
    button.addEventListener('click', async () => {
      const done = await attempt(button, () => mintWebhook(this.handle, what));
      if (done) this.later();
    });
    return h(
      'li',
      { 'data-testid': 'trigger', 'data-webhook': state },
      h('p', { class: 'trigger-name' }, icon('hook'), h('span', {}, 'Webhook'), h('span', { class: `tag tag-${state}` }, state)),
      trigger.id ? h('p', { class: 'mono break' }, trigger.url ?? `POST /_centraid-hook/${trigger.id}`) : null,
      h('p', { class: 'faint' }, told),
      h('div', { class: 'actions' }, button),
    );
  }
}

function factRows(view) {
  const { counts, successRate, lastRun } = view;
  const ended = counts.ok + counts.error;
  return pairs([
    ['Success', ended === 0 ? '–' : `${percent(successRate ?? counts.ok / ended)} of ${plural(ended, 'run')}`],
    ['Failed', number(counts.error)],
    ['Kept', plural(counts.total, 'run')],
    ['Active', number(view.activeRuns)],
    ['Last took', lastRun?.startedAt && lastRun.endedAt ? duration(lastRun.endedAt - lastRun.startedAt) : '–'],
  ]);
}

const pairs = (rows) => rows.map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', {}, value)));

/** What the manifest says beyond its triggers. */
function aboutRows(text, view) {
  let manifest;
  try {
    manifest = JSON.parse(text);
  } catch {
    return [];
  }
  if (typeof manifest !== 'object' || manifest === null) return [];
  const { concurrency, timeoutMs, catchUp, retry, onFailure, requires, generated, version } = manifest;
  const text_ = (value) => (typeof value === 'string' && value !== '' ? value : null);
  const rows = [
    ['At once', text_(concurrency?.mode) && `${concurrency.mode}${concurrency.max ? `, ${concurrency.max} at most` : ''}`],
    ['Time limit', typeof timeoutMs === 'number' ? duration(timeoutMs) : null],
    ['Missed fires', text_(catchUp)],
    ['Retries', retry?.max > 0 ? `${retry.max}, after ${duration(retry.backoffMs ?? 0)}` : null],
    ['On failure', text_(onFailure) && h('a', { href: `#/a/${failureHandle(onFailure, view.appId)}` }, onFailure)],
    ['Model', text_(requires?.model)],
    ['Version', text_(version)],
    ['Made by', text_(generated?.by)],
  ].filter(([, value]) => value);
  const prompt = text_(manifest.prompt);
  return [
    h('h2', { id: 'about-title' }, 'Manifest'),
    prompt ? h('blockquote', {}, prompt) : null,
    h('dl', { class: 'facts' }, pairs(rows)),
  ];
}

const failureHandle = (text, app) => (text.includes('/') ? text : `${app}/${text}`).split('/').map(encodeURIComponent).join('/');

/** The handler and the manifest, one at a time. */
class Files {
  constructor(handle) {
    this.handle = handle;
    this.texts = { handler: null, manifest: null };
    this.shown = 'handler';
    this.tabs = ['handler', 'manifest'].map((name) =>
      h(
        'button',
        { type: 'button', role: 'tab', id: `tab-${name}`, 'aria-controls': 'file', 'data-testid': name === 'handler' ? 'tab-handler' : 'tab-manifest', onclick: () => this.select(name), onkeydown: (event) => this.arrow(event) },
        name === 'handler' ? 'handler.js' : 'automation.json',
      ),
    );
    this.body = h('div', { id: 'file', role: 'tabpanel' });
    this.element = h('section', { class: 'panel', 'aria-label': 'Files' }, h('div', { class: 'panel-head tabs', role: 'tablist', 'aria-label': 'Files' }, this.tabs), this.body);
  }

  show(manifest, handler, problems) {
    this.texts = { manifest, handler };
    this.problems = problems;
    this.paint();
  }

  select(name) {
    this.shown = name;
    this.paint();
  }

  arrow(event) {
    if (event.key !== 'ArrowLeft' && event.key !== 'ArrowRight') return;
    this.select(this.shown === 'handler' ? 'manifest' : 'handler');
    this.tabs.find((tab) => tab.getAttribute('aria-selected') === 'true').focus();
  }

  paint() {
    const names = ['handler', 'manifest'];
    this.tabs.forEach((tab, at) => {
      const on = names[at] === this.shown;
      tab.setAttribute('aria-selected', String(on));
      tab.tabIndex = on ? 0 : -1;
    });
    this.body.setAttribute('aria-labelledby', `tab-${this.shown}`);
    const text = this.texts[this.shown];
    const file = this.shown === 'handler' ? 'handler.js' : 'automation.json';
    const problem = this.problems?.find((one) => one.line && one.path?.endsWith(`/${file}`));
    const mark = problem ? { line: problem.line, column: problem.column ?? 0 } : null;
    setOnce(this.body, [this.shown, text, mark], () =>
      text === null || text === undefined
        ? h('p', { class: 'none' }, `${file} is missing or cannot be read`)
        : source(text, { kind: this.shown === 'handler' ? 'js' : 'json', mark, label: file }),
    );
  }
}
