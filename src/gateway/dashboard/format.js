// Times, durations and sizes in words. The daemon's clock rules: `now()` is its time as far as its answers tell.

let skewMs = 0;

/** What the daemon's `Date` header said. Below two seconds it only says how long the answer took. */
export function learnClock(header) {
  const at = Date.parse(header ?? '');
  if (Number.isNaN(at)) return;
  const off = at - Date.now();
  skewMs = Math.abs(off) > 2000 ? off : 0;
}

export const now = () => Date.now() + skewMs;

export function duration(ms) {
  if (ms === null || ms === undefined) return '';
  if (ms < 1) return '0 ms';
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const s = ms / 1000;
  if (s < 10) return `${s.toFixed(2).replace(/\.?0+$/, '')} s`;
  if (s < 60) return `${s.toFixed(1).replace('.0', '')} s`;
  const m = Math.floor(s / 60);
  const left = Math.floor(s % 60);
  if (m < 60) return left === 0 ? `${m} min` : `${m} min ${left} s`;
  const hours = Math.floor(m / 60);
  if (hours < 48) return m % 60 === 0 ? `${hours} h` : `${hours} h ${m % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** "in 3 min", "5 s ago". */
export function relative(at, from = now()) {
  const ms = at - from;
  const size = Math.abs(ms);
  if (size < 1000) return ms > 0 ? 'now' : 'just now';
  const [count, unit] =
    size < 60e3 ? [size / 1000, 's']
    : size < 3600e3 ? [size / 60e3, 'min']
    : size < 48 * 3600e3 ? [size / 3600e3, 'h']
    : [size / 86400e3, 'd'];
  const text = `${Math.floor(count)} ${unit}`;
  return ms > 0 ? `in ${text}` : `${text} ago`;
}

const LOCAL_ZONE = Intl.DateTimeFormat().resolvedOptions().timeZone;

const formats = new Map();
function format(options, zone) {
  const key = JSON.stringify(options) + (zone ?? '');
  if (!formats.has(key)) {
    formats.set(key, new Intl.DateTimeFormat('en-GB', { hourCycle: 'h23', timeZone: zone, ...options }));
  }
  return formats.get(key);
}

const MINUTE = { weekday: 'short', day: 'numeric', month: 'short', hour: '2-digit', minute: '2-digit' };
const SECOND = { ...MINUTE, weekday: undefined, second: '2-digit' };

/** "Mon, 24 Nov, 08:00". An impossible zone gives null. */
export function minute(at, zone) {
  try {
    return format(MINUTE, zone).format(at);
  } catch {
    return null;
  }
}

/** "24 Nov, 08:00:05" in local time; with the year when it is another one. */
export function second(at) {
  const year = new Date(at).getFullYear() === new Date(now()).getFullYear() ? undefined : 'numeric';
  return format({ ...SECOND, year }).format(at);
}

/** "08:00:05.123" in local time. */
export function timeOfDay(at) {
  return format({ hour: '2-digit', minute: '2-digit', second: '2-digit', fractionalSecondDigits: 3 }).format(at);
}

export const utc = (at) => new Date(at).toISOString().replace('T', ' ').replace('.000Z', ' UTC').replace('Z', ' UTC');

const DAY_MS = 86400e3;
const CLOCK = { hour: '2-digit', minute: '2-digit' };

/** "18:00 UTC, 19:00 here": as much of the date as it takes to know the day. */
export function soon(at) {
  const away = at - now();
  const day = (zone) => {
    const today = format({ day: 'numeric' }, zone).format(now()) === format({ day: 'numeric' }, zone).format(at);
    if (away < DAY_MS && today) return '';
    return `${format(away < 6 * DAY_MS ? { weekday: 'short' } : { day: 'numeric', month: 'short' }, zone).format(at)} `;
  };
  const there = `${day('UTC')}${format(CLOCK, 'UTC').format(at)} UTC`;
  if (zoneName() === 'UTC') return there;
  const [utcDay, hereDay] = [day('UTC'), day()];
  return `${there}, ${utcDay === hereDay ? '' : hereDay}${format(CLOCK).format(at)} local`;
}

/** An instant in both: for titles. */
export const both = (at) => `${minute(at)} ${zoneName()}  ·  ${utc(at)}`;

export const zoneName = () => (LOCAL_ZONE === 'UTC' || LOCAL_ZONE === 'Etc/UTC' ? 'UTC' : LOCAL_ZONE);

export function bytes(count) {
  if (count < 1024) return `${count} bytes`;
  if (count < 1024 * 1024) return `${(count / 1024).toFixed(1)} KiB`;
  return `${(count / 1024 / 1024).toFixed(1)} MiB`;
}

export function percent(rate) {
  if (rate === null || rate === undefined) return '–';
  // Only what never failed is 100 %.
  return `${rate === 1 ? 100 : Math.min(99.9, rate * 100).toFixed(rate >= 0.995 ? 1 : 0)} %`;
}

export const number = (count) => count.toLocaleString('en-GB');

export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

/** The end of an id tells two runs of the same second apart. */
export const shortId = (run) => run.slice(-8);
