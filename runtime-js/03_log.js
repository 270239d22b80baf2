// `log` and `console`: both become lines of the run's log.
(function (rt) {
  'use strict';
  const p = rt.p;
  const opLog = rt.ops.log;

  const write = (level, message, fields) => {
    let json;
    if (fields !== undefined) {
      try {
        json = p.JSONStringify(fields);
      } catch {
        json = p.JSONStringify(rt.inspect(fields));
      }
    }
    opLog(level, rt.inspect(message), json);
  };

  rt.log = p.Freeze({
    __proto__: null,
    info: p.Freeze((message, fields) => write('info', message, fields)),
    warn: p.Freeze((message, fields) => write('warn', message, fields)),
    error: p.Freeze((message, fields) => write('error', message, fields)),
  });

  /** Something went wrong where no caller can be told: in a timer, a listener, a rejection that nobody handles. */
  rt.report = (what, error) => opLog('error', `${what}: ${rt.inspect(error)}`, undefined);

  const line = (level) => (...args) => opLog(level, rt.format(args), undefined);
  const console = { __proto__: {} };
  const methods = {
    __proto__: null,
    log: 'info',
    info: 'info',
    debug: 'info',
    trace: 'info',
    dir: 'info',
    table: 'info',
    warn: 'warn',
    error: 'error',
  };
  const names = p.ObjectKeys(methods);
  for (let i = 0; i < names.length; i++) {
    p.define(console, names[i], line(methods[names[i]]));
  }
  p.define(console, 'assert', (condition, ...args) => {
    if (condition) return;
    opLog('error', args.length === 0 ? 'Assertion failed' : `Assertion failed: ${rt.format(args)}`, undefined);
  });
  p.tag(console, 'console');
  rt.globals.console = console;
})
