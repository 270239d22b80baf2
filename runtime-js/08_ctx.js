// `ctx`: what a handler can do to the world. Each member checks its arguments, turns them into JSON text, and hands
// name and text to native code, which gives back the promise. Arguments that cannot cross reject, they never throw.
(function (rt) {
  'use strict';
  const p = rt.p;
  const call = rt.ops.call;

  const refuse = (message, code = 'INVALID_INPUT') => {
    const error = new p.TypeError(message);
    p.DefineProperty(error, 'code', {
      __proto__: null, value: code, writable: true, enumerable: true, configurable: true,
    });
    return p.PromiseReject(error);
  };

  /** JSON text of `value`, or undefined where JSON has none for it (a function, a symbol). */
  const text = (value) => p.JSONStringify(value);

  /** Members that a promise's assimilation, a template string or a serialiser asks for; they are simply absent. */
  const quiet = { __proto__: null, then: true, toJSON: true, asymmetricMatch: true, nodeType: true, $$typeof: true };

  /** A frozen object that answers an unknown member with the list of the real ones. */
  rt.closed = (name, members) => {
    const target = p.Freeze(members);
    const keys = p.ObjectKeys(target);
    let known = '';
    for (let i = 0; i < keys.length; i++) known += (i > 0 ? ', ' : '') + keys[i];
    return new p.Proxy(target, p.Freeze({
      __proto__: null,
      get(target, key) {
        if (p.HasOwn(target, key)) return target[key];
        if (typeof key === 'symbol' || quiet[key] || p.HasOwn(objectMembers, key)) return objectMembers[key];
        throw new p.TypeError(`${name}.${key} does not exist; ${name} has: ${known}`);
      },
      set(_target, key) {
        throw new p.TypeError(`${name}.${p.text(key)} cannot be set: ${name} is read-only`);
      },
    }));
  };

  /** What every object answers to, so that printing or comparing `ctx` is no error. */
  const objectMembers = { __proto__: null };
  const inherited = p.ReflectOwnKeys(Object.prototype);
  for (let i = 0; i < inherited.length; i++) {
    if (inherited[i] !== '__proto__' && typeof inherited[i] === 'string') {
      objectMembers[inherited[i]] = Object.prototype[inherited[i]];
    }
  }
  p.Freeze(objectMembers);

  const deepFreeze = (value) => {
    if (typeof value === 'object' && value !== null) {
      const keys = p.ObjectKeys(value);
      for (let i = 0; i < keys.length; i++) deepFreeze(value[keys[i]]);
      p.Freeze(value);
    }
    return value;
  };
  rt.deepFreeze = deepFreeze;

  const tool = (name, args) => {
    if (typeof name !== 'string' || name === '') return refuse('ctx.tool(name, args): name must be a non-empty string');
    let json = '{}';
    if (args !== undefined && args !== null) {
      if (typeof args !== 'object' || p.ArrayIsArray(args)) {
        return refuse('ctx.tool(name, args): args must be an object');
      }
      try {
        json = text(args);
      } catch (error) {
        return p.PromiseReject(error);
      }
      if (json === undefined || json[0] !== '{') return refuse('ctx.tool(name, args): args must be a JSON object');
    }
    return call('tool', name, json);
  };

  const agent = (request) => {
    const shape = 'ctx.agent({ prompt, json? })';
    const badAgent = 'agent_bad_args';
    if (!p.isObject(request)) return refuse(`${shape}: an object is needed`, badAgent);
    let json;
    try {
      if (typeof request.prompt !== 'string') return refuse(`${shape}: prompt must be a string`, badAgent);
      json = text(request);
    } catch (error) {
      return p.PromiseReject(error);
    }
    if (json === undefined || json[0] !== '{') return refuse(`${shape}: a JSON object is needed`, badAgent);
    return call('agent', json);
  };

  const invoke = (handle, options) => {
    const shape = 'ctx.invoke(handle, { input }?)';
    if (typeof handle !== 'string' || handle === '') return refuse(`${shape}: handle must be a non-empty string`);
    if (options === undefined || options === null) return call('invoke', handle, undefined);
    if (typeof options !== 'object') return refuse(`${shape}: the second argument must be an object`);
    try {
      return call('invoke', handle, text(options.input));
    } catch (error) {
      return p.PromiseReject(error);
    }
  };

  const keyed = (name, key) =>
    typeof key === 'string' ? undefined : refuse(`${name}: the key must be a string`);
  const state = rt.closed('ctx.state', {
    __proto__: null,
    get: (key) => keyed('ctx.state.get(key)', key) ?? call('stateGet', key),
    set: (key, value) => {
      const wrong = keyed('ctx.state.set(key, value)', key);
      if (wrong) return wrong;
      let json;
      try {
        json = value === undefined ? 'null' : text(value);
      } catch (error) {
        return p.PromiseReject(error);
      }
      if (json === undefined) return refuse('ctx.state.set(key, value): a function or symbol cannot be stored');
      return call('stateSet', key, json);
    },
    delete: (key) => keyed('ctx.state.delete(key)', key) ?? call('stateDelete', key),
    del: (key) => keyed('ctx.state.del(key)', key) ?? call('stateDelete', key),
  });

  const filtered = (kind, most) => (filter) => {
    if (filter === undefined || filter === null) return call(kind, most && text(most));
    if (typeof filter !== 'object' || p.ArrayIsArray(filter)) return refuse('ctx.runs: the filter must be an object');
    try {
      return call(kind, text({ __proto__: null, ...filter, ...most }));
    } catch (error) {
      return p.PromiseReject(error);
    }
  };
  const runs = rt.closed('ctx.runs', {
    __proto__: null,
    // Rows that nobody will see are not read.
    last: filtered('runsLast', { __proto__: null, limit: 1 }),
    list: filtered('runsList'),
  });

  const parsed = (json) => (json === undefined ? undefined : p.JSONParse(json));

  /** Called before the handler's module is evaluated; the array is the default export's arguments. */
  rt.entry.automation = (runJson, inputJson) => {
    const input = parsed(inputJson);
    const ctx = rt.closed('ctx', {
      __proto__: null,
      tool,
      agent,
      state,
      runs,
      invoke,
      run: deepFreeze(p.JSONParse(runJson)),
      input,
      abortSignal: rt.makeRunSignal(),
      log: rt.log,
    });
    return [{ ctx, log: rt.log, input }];
  };
  rt.parsed = parsed;
})
