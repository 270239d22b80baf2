// Timers and `queueMicrotask`. Native code keeps the heap of deadlines and calls the closures made here.
(function (rt) {
  'use strict';
  const p = rt.p;
  const { timerAdd, timerClear, microtask } = rt.ops;

  const guarded = (what, callback, args) => () => {
    try {
      p.ReflectApply(callback, undefined, args);
    } catch (error) {
      rt.report(`uncaught exception in ${what}`, error);
    }
  };

  const add = (what, callback, delay, repeat, args) => {
    if (typeof callback !== 'function') throw new p.TypeError(`${what}: the callback must be a function`);
    let ms = p.Number(delay);
    // As browsers and Node have it: at least 1 ms, and what does not fit 31 bits fires at once.
    if (!(ms >= 1) || ms > 2_147_483_647) ms = 1;
    return timerAdd(guarded(what, callback, args), ms, repeat);
  };
  const clear = (id) => {
    const number = p.isObject(id) || typeof id === 'symbol' || typeof id === 'bigint' ? NaN : p.Number(id);
    if (number > 0) timerClear(number);
  };

  rt.globals.setTimeout = { setTimeout(callback, delay = 0, ...args) {
    return add('setTimeout', callback, delay, false, args);
  } }.setTimeout;
  rt.globals.setInterval = { setInterval(callback, delay = 0, ...args) {
    return add('setInterval', callback, delay, true, args);
  } }.setInterval;
  rt.globals.clearTimeout = { clearTimeout(id) { clear(id); } }.clearTimeout;
  rt.globals.clearInterval = { clearInterval(id) { clear(id); } }.clearInterval;
  rt.globals.queueMicrotask = { queueMicrotask(callback) {
    if (typeof callback !== 'function') throw new p.TypeError('queueMicrotask: the callback must be a function');
    microtask(guarded('queueMicrotask', callback, []));
  } }.queueMicrotask;
})
