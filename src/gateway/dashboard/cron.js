// A cron expression in words. What is not understood for certain gives null, and the expression stands for itself.

const DAYS = ['Sundays', 'Mondays', 'Tuesdays', 'Wednesdays', 'Thursdays', 'Fridays', 'Saturdays'];
const MONTHS = [
  'January', 'February', 'March', 'April', 'May', 'June', 'July', 'August', 'September', 'October', 'November', 'December',
];
const DAY_NAMES = ['sun', 'mon', 'tue', 'wed', 'thu', 'fri', 'sat'];
const MONTH_NAMES = MONTHS.map((name) => name.slice(0, 3).toLowerCase());

/** "Mondays at 08:00", or null. */
export function cronWords(expr) {
  const fields = expr.trim().split(/[ \t]+/);
  if (fields.length !== 5) return null;
  const minute = parse(fields[0]);
  const hour = parse(fields[1]);
  const date = parse(fields[2]);
  const month = parse(fields[3], MONTH_NAMES, 1);
  const weekday = parse(fields[4], DAY_NAMES, 0);
  if (![minute, hour, date, month, weekday].every(Boolean)) return null;
  const time = timeWords(minute, hour);
  const day = dayWords(date, weekday);
  const months = monthWords(month);
  if (time === null || day === null || months === null) return null;
  const fixed = time.startsWith('at ');
  if (day === '' && fixed) return join(months === '' ? 'every day' : 'daily', months, time);
  return fixed ? join(day, months, time) : join(time, day === '' ? '' : `on ${day}`, months);
}

const join = (...parts) => parts.filter((part) => part !== '').join(' ');

/** One field: `{every: n}`, `{range: [a, b]}` or `{list: [..]}`. */
function parse(text, names, first) {
  if (text === '*' || text === '?') return { every: 1 };
  const step = /^\*\/(\d+)$/.exec(text);
  if (step) return { every: Number(step[1]) };
  const value = (word) => {
    if (/^\d+$/.test(word)) return Number(word);
    const at = names?.indexOf(word.toLowerCase()) ?? -1;
    return at < 0 ? null : at + first;
  };
  const range = /^([^-,/]+)-([^-,/]+)$/.exec(text);
  if (range) {
    const [from, to] = [value(range[1]), value(range[2])];
    return from === null || to === null ? null : { range: [from, to] };
  }
  const list = text.split(',').map(value);
  return list.includes(null) ? null : { list: [...new Set(list)].sort((a, b) => a - b) };
}

const two = (n) => String(n).padStart(2, '0');

function timeWords(minute, hour) {
  const everyMinutes = minute.every === 1 ? 'every minute' : minute.every ? `every ${minute.every} minutes` : null;
  if (everyMinutes !== null && minute.every > 1 && 60 % minute.every !== 0) return null;
  if (hour.every) {
    if (everyMinutes !== null) return hour.every === 1 ? everyMinutes : null;
    if (!minute.list || (hour.every > 1 && 24 % hour.every !== 0)) return null;
    const past = and(minute.list.map((m) => `:${two(m)}`));
    return `${hour.every === 1 ? 'every hour' : `every ${hour.every} hours`} at ${past}`;
  }
  const hours = hour.list ?? span(hour.range);
  if (everyMinutes !== null) {
    const [from, to] = hour.range ?? (hour.list.length === 1 ? [hour.list[0], hour.list[0]] : [null, null]);
    return from === null ? null : `${everyMinutes} from ${two(from)}:00 to ${two(to)}:59`;
  }
  if (!minute.list) return null;
  if (hour.range && minute.list.length === 1) {
    const [m] = minute.list;
    return `every hour from ${two(hour.range[0])}:${two(m)} to ${two(hour.range[1])}:${two(m)}`;
  }
  if (hours.length * minute.list.length > 4) return null;
  return `at ${and(hours.flatMap((hr) => minute.list.map((m) => `${two(hr)}:${two(m)}`)))}`;
}

const span = ([from, to]) => Array.from({ length: Math.max(0, to - from + 1) }, (_, at) => from + at);

function dayWords(date, weekday) {
  if ((date.every ?? 1) > 1 || (weekday.every ?? 1) > 1) return null;
  if (date.every && weekday.every) return '';
  const days = weekday.every ? '' : weekdayWords(weekday.list ?? span(weekday.range));
  const dates = date.every ? '' : dateWords(date);
  // Both restricted: either will do.
  return days !== '' && dates !== '' ? `${dates} or ${days}` : days + dates;
}

function weekdayWords(list) {
  const days = [...new Set(list.map((day) => day % 7))].sort((a, b) => ((a + 6) % 7) - ((b + 6) % 7));
  const key = days.join();
  if (key === '1,2,3,4,5') return 'weekdays';
  if (key === '6,0') return 'weekends';
  if (days.length === 7) return 'any day';
  return and(days.map((day) => DAYS[day]));
}

function dateWords(date) {
  if (date.range) return `the ${ordinal(date.range[0])} to the ${ordinal(date.range[1])}`;
  return `the ${and(date.list.map(ordinal))}`;
}

function ordinal(n) {
  const end = n % 100 > 10 && n % 100 < 14 ? 'th' : { 1: 'st', 2: 'nd', 3: 'rd' }[n % 10] ?? 'th';
  return `${n}${end}`;
}

function monthWords(month) {
  if (month.every) return month.every === 1 ? '' : null;
  if (month.range) return `from ${MONTHS[month.range[0] - 1]} to ${MONTHS[month.range[1] - 1]}`;
  return `in ${and(month.list.map((m) => MONTHS[m - 1]))}`;
}

export function and(words) {
  if (words.length < 2) return words.join('');
  return `${words.slice(0, -1).join(', ')} and ${words.at(-1)}`;
}
