// A run's log lines: by level, with the newest in sight while they come in, as long as nobody has scrolled away.

import { h, set } from './dom.js';
import { duration, number, timeOfDay } from './format.js';
import { brief } from './json.js';

/** Lines that stand in the page at once; the newest ones. */
const SHOWN = 500;
const LEVELS = ['all', 'info', 'warn', 'error'];

export class LogView {
  constructor() {
    this.lines = [];
    this.seen = new Set();
    this.level = 'all';
    this.shown = SHOWN;
    this.startedAt = null;
    this.more = h('button', { type: 'button', class: 'more', hidden: true, onclick: () => this.earlier() });
    this.list = h('ol', { class: 'log' });
    // Its role would read every line aloud; the page tells the run's end instead.
    this.box = h('div', { class: 'log-box', tabindex: 0, role: 'log', 'aria-live': 'off', 'aria-label': 'Log' });
    this.box.append(this.more, this.list);
    this.empty = h('p', { class: 'none' }, 'No log lines');
    this.count = h('span', { class: 'count' });
    const select = h(
      'select',
      { 'aria-label': 'Level', 'data-testid': 'log-level' },
      LEVELS.map((level) => h('option', { value: level }, level === 'all' ? 'all levels' : level)),
    );
    select.addEventListener('change', () => {
      this.level = select.value;
      this.paint();
    });
    this.element = h(
      'section',
      { class: 'panel', 'aria-labelledby': 'logs-title' },
      h('div', { class: 'panel-head' }, h('h2', { id: 'logs-title' }, 'Log ', this.count), select),
      this.empty,
      this.box,
    );
  }

  /** All lines, as the ledger has them. */
  load(lines, startedAt) {
    this.startedAt = startedAt;
    this.lines = [];
    this.seen.clear();
    for (const line of lines) this.keep(line);
    this.paint();
  }

  /** One more; a line that is there already changes nothing. */
  add(line) {
    if (!this.keep(line)) return;
    this.pending ??= requestAnimationFrame(() => {
      this.pending = null;
      this.paint();
    });
  }

  keep(line) {
    if (this.seen.has(line.seq)) return false;
    this.seen.add(line.seq);
    const last = this.lines.at(-1);
    this.lines.push(line);
    if (last !== undefined && last.seq > line.seq) this.lines.sort((a, b) => a.seq - b.seq);
    return true;
  }

  earlier() {
    const before = this.box.scrollHeight - this.box.scrollTop;
    this.shown += SHOWN;
    this.paint();
    this.box.scrollTop = this.box.scrollHeight - before;
  }

  paint() {
    const atEnd = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 40;
    const lines = this.level === 'all' ? this.lines : this.lines.filter((line) => line.level === this.level);
    const hidden = Math.max(0, lines.length - this.shown);
    this.count.textContent = lines.length === 0 ? '' : number(lines.length);
    this.empty.hidden = lines.length > 0;
    this.empty.textContent = this.lines.length === 0 ? 'No log lines' : `No lines of level ${this.level}`;
    this.box.hidden = lines.length === 0;
    this.more.hidden = hidden === 0;
    this.more.textContent = `Show earlier lines (${number(hidden)} more)`;
    const kept = new Map([...this.list.children].map((row) => [row.dataset.seq, row]));
    set(this.list, lines.slice(hidden).map((line) => kept.get(String(line.seq)) ?? this.row(line)));
    if (atEnd) this.box.scrollTop = this.box.scrollHeight;
  }

  row(line) {
    const since = this.startedAt === null || this.startedAt === undefined ? '' : `+${duration(Math.max(0, line.at - this.startedAt))}`;
    return h(
      'li',
      { class: `l-${line.level}`, 'data-testid': 'log-line', 'data-seq': line.seq },
      h('time', { datetime: new Date(line.at).toISOString(), title: timeOfDay(line.at) }, since || timeOfDay(line.at)),
      h('span', { class: 'level' }, line.level),
      h(
        'span',
        { class: 'said' },
        // A message that turns its writing around turns nothing else.
        h('bdi', {}, line.message),
        line.fields === null || line.fields === undefined ? null : h('span', { class: 'fields' }, brief(line.fields, 2000)),
      ),
    );
  }
}
