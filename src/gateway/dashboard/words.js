// Instants and triggers as people read them.

import { cronWords } from './cron.js';
import { h, icon } from './dom.js';
import { both, minute, plural, relative, second, utc, zoneName } from './format.js';

/** "3 min ago", kept true by `tick`; the exact instant is its title. */
export function time(at) {
  if (at === null || at === undefined) return null;
  return h('time', { datetime: new Date(at).toISOString(), title: `${second(at)} ${zoneName()}  ·  ${utc(at)}`, 'data-at': at }, relative(at));
}

/** Every second: what is told relatively. */
export function tick() {
  for (const element of document.querySelectorAll('time[data-at]')) {
    const text = relative(Number(element.dataset.at));
    if (element.textContent !== text) element.textContent = text;
  }
}

/** A cron trigger: words where there are some, the expression always. */
export function cronLine({ expr, tz }) {
  const words = cronWords(expr);
  const zone = tz ?? 'UTC';
  return words === null
    ? [h('code', {}, expr), ` ${zone}`]
    : [h('span', { title: `${expr} (${zone})` }, words[0].toUpperCase() + words.slice(1)), /^every (minute|\d+ minutes)$/.test(words) ? null : h('span', { class: 'faint' }, ` ${zone}`)];
}

/** The next fire in UTC, here, and in the trigger's own zone. */
export function nextFire(at, tz) {
  const parts = [`${minute(at, 'UTC')} UTC`];
  if (zoneName() !== 'UTC') parts.push(`${minute(at)} ${zoneName()}`);
  if (tz && tz !== zoneName() && tz !== 'UTC') parts.push(`${minute(at, tz)} ${tz}`);
  return parts;
}

/** Why a run came to be, in a few words. */
export function triggerWords(run) {
  const { trigger = {}, triggerOrigin: origin } = run;
  const words = trigger.replayOf ? 'replay' : { manual: 'by hand', failure: 'after a failure', invoke: 'invoked' }[origin] ?? origin;
  const missed = trigger.missed ? `, ${trigger.missed} more missed` : '';
  const reason = trigger.reason ? `, ${trigger.reason}` : '';
  const attempt = run.attempt > 1 ? `, attempt ${run.attempt}` : '';
  return `${words}${attempt}${missed}${reason}`;
}

/** The same at length. */
export function triggerStory(run) {
  const { trigger = {}, triggerOrigin: origin } = run;
  const scheduled = run.scheduledFor ?? trigger.scheduledFor;
  switch (origin) {
    case 'cron':
      return [
        h('code', {}, trigger.expr ?? 'cron'),
        trigger.tz ? ` ${trigger.tz}` : '',
        scheduled ? [', due ', h('span', { title: both(scheduled) }, second(scheduled))] : '',
        trigger.missed ? `; stands for ${plural(trigger.missed, 'earlier missed fire')}` : '',
        trigger.reason ? `; not run: ${trigger.reason}` : '',
      ];
    case 'webhook':
      return ['webhook', trigger.deliveryId ? [', delivery ', h('code', {}, trigger.deliveryId)] : '', trigger.reason ? `; not run: ${trigger.reason}` : ''];
    case 'manual':
      return [trigger.replayOf ? 'replayed by hand' : 'by hand'];
    case 'invoke':
      return ['invoked by another run'];
    case 'failure':
      return ['fired by a failure'];
    case 'retry':
      return [`retry, attempt ${run.attempt}`];
    default:
      return [origin];
  }
}

/** A place in a file: path:line:column. */
export const placeWords = (problem) => [problem.path, problem.line, problem.line && problem.column].filter(Boolean).join(':');

/** A path that breaks at its slashes. */
const breakable = (path) => path.split('/').flatMap((part, at) => (at === 0 ? [part] : ['/', h('wbr', {}), part]));

/** A sentence of the daemon's, with what it quotes in backticks as code. */
export const prose = (text) => text.split(/`([^`\n]+)`/).map((part, at) => (at % 2 === 0 ? part : h('code', {}, part)));

/** What the daemon said and what helps, which both begin small, as sentences. */
export const told = (message, hint) => [message, hint].filter(Boolean).map((text) => text[0].toUpperCase() + text.slice(1)).join('. ');

/** One problem, for lists. */
export function problemItem(problem) {
  const handle = /^([^/]+)\/automations\/([^/]+)\//.exec(problem.path ?? '');
  const place = breakable(placeWords(problem));
  return h(
    'li',
    { class: `problem p-${problem.severity}`, 'data-testid': 'problem', 'data-code': problem.code },
    h(
      'p',
      { class: 'where mono' },
      handle ? h('a', { href: `#/a/${encodeURIComponent(handle[1])}/${encodeURIComponent(handle[2])}` }, place) : place,
      problem.field ? h('span', { class: 'faint' }, `  ${problem.field}`) : null,
    ),
    h('p', {}, h('b', {}, icon('invalid'), problem.severity === 'warning' ? 'Warning: ' : 'Error: '), prose(problem.message), ' ', h('code', { class: 'faint' }, problem.code)),
    problem.hint ? h('p', { class: 'hint' }, h('b', {}, 'Hint: '), prose(problem.hint)) : null,
  );
}
