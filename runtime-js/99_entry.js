// What native code asks after the handler has run, in a realm that the handler may have changed; then the globals are set.
(function (rt) {
  'use strict';
  const p = rt.p;

  const textOr = (read, otherwise) => {
    try {
      const value = read();
      return typeof value === 'string' ? value : otherwise;
    } catch {
      return otherwise;
    }
  };

  /** `[message, stack, code]` of anything that can be thrown; the last two may be undefined. */
  rt.entry.describe = (error) => {
    if (typeof error === 'string') return [error, undefined, undefined];
    if (!p.isObject(error)) return [rt.inspect(error), undefined, undefined];
    const message = textOr(() => error.message, undefined);
    const isError = rt.ops.isError(error) || rt.isDOMException(error);
    const name = isError ? textOr(() => error.name, 'Error') : 'Error';
    let text = message ?? rt.inspect(error);
    if (name !== 'Error' && name !== '' && message !== undefined) text = message === '' ? name : `${name}: ${message}`;
    else if (text === '') text = name;
    return [text, textOr(() => error.stack, undefined), textOr(() => error.code, undefined)];
  };

  /** `[summary, output JSON, what is wrong with output]` of what an automation's handler returned. */
  rt.entry.outcome = (value) => {
    if (!p.isObject(value)) return [undefined, undefined, undefined];
    const summary = textOr(() => value.summary, undefined);
    let output;
    try {
      output = value.output;
      if (output === undefined) return [summary, undefined, undefined];
      const json = p.JSONStringify(output);
      if (json === undefined) return [summary, undefined, `output is a ${typeof output}, which JSON has no form for`];
      return [summary, json, undefined];
    } catch (error) {
      return [summary, undefined, `output is not JSON: ${rt.entry.describe(error)[0]}`];
    }
  };

  /** `[undefined, JSON, what is wrong]` of what a query or an action returned. */
  rt.entry.returned = (value) => {
    if (value === undefined) return [undefined, undefined, undefined];
    try {
      const json = p.JSONStringify(value);
      if (json === undefined) return [undefined, undefined, `a ${typeof value} was returned, which JSON has no form for`];
      return [undefined, json, undefined];
    } catch (error) {
      return [undefined, undefined, `the returned value is not JSON: ${rt.entry.describe(error)[0]}`];
    }
  };

  rt.entry.rejected = (error) => rt.report('unhandled promise rejection', error);

  /** The text of `error.stack`: the handler's own frames, and those of the language; never this runtime's. */
  rt.entry.stack = (error, sites) => {
    let text;
    try {
      text = p.ErrorToString(error);
    } catch {
      text = '<error>';
    }
    for (let i = 0; i < sites.length; i++) {
      const site = sites[i];
      // Own members of a prototype that is out of a handler's reach: it never gets a call site.
      const proto = p.GetPrototypeOf(site);
      const script = p.ReflectApply(proto.getFileName, site, []);
      if (typeof script === 'string' && p.StringStartsWith(script, 'dirigent:')) continue;
      text += `\n    at ${p.ReflectApply(proto.toString, site, [])}`;
    }
    return text;
  };

  const names = p.ObjectKeys(rt.globals);
  for (let i = 0; i < names.length; i++) p.define(globalThis, names[i], rt.globals[names[i]]);

  // A function that has run is in the snapshot with its bytecode; one that has not is compiled in every run that calls
  // it. There is no run yet, so none of this reaches anybody.
  const [{ ctx, log }] = rt.entry.automation('{"trigger":{}}', '{}');
  const [{ db }] = rt.entry.query('app', 'name', '{}');
  const ignored = () => {};
  const promises = [
    ctx.tool('x', {}), ctx.agent({ prompt: '' }), ctx.invoke('x', {}), ctx.state.get('x'), ctx.state.set('x', 1),
    ctx.state.delete('x'), ctx.runs.last(), ctx.runs.list({}), db.prepare('x').get(1), db.exec('x'),
  ];
  for (const promise of promises) promise.catch(ignored);
  log.info('x', {});
  console.log('x', 1);
  clearTimeout(setTimeout(ignored, 1));
  rt.entry.outcome({ summary: '', output: {} });
  rt.entry.returned({});
  rt.entry.describe(new p.Error('x'));
})
