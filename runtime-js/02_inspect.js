// Values as text, for logs and for errors that are no `Error`. Shows what is there and runs as little of the
// handler's code as possible: getters are named, not called.
(function (rt) {
  'use strict';
  const p = rt.p;

  const MAX_DEPTH = 4;
  const MAX_ITEMS = 100;
  /** Characters of one formatted message; the log's own byte limit comes after. */
  const MAX_TEXT = 65_536;

  const isPlainName = (key) => {
    for (let i = 0; i < key.length; i++) {
      const c = p.StringCharCodeAt(key, i);
      const letter = (c >= 97 && c <= 122) || (c >= 65 && c <= 90) || c === 95 || c === 36;
      if (!letter && (i === 0 || c < 48 || c > 57)) return false;
    }
    return key.length > 0;
  };

  const className = (value) => {
    for (let at = p.GetPrototypeOf(value), steps = 0; at !== null && steps < 8; at = p.GetPrototypeOf(at), steps++) {
      const own = p.GetOwnPropertyDescriptor(at, 'constructor');
      if (own && typeof own.value === 'function') {
        const name = p.GetOwnPropertyDescriptor(own.value, 'name');
        return name && typeof name.value === 'string' ? name.value : '';
      }
    }
    return '';
  };

  const isError = rt.ops.isError;

  const errorText = (error) => {
    const stack = p.ReflectGet(error, 'stack');
    return typeof stack === 'string' && stack !== '' ? stack : p.ErrorToString(error);
  };

  // Native brand checks; `undefined` when the value is something else.
  const tryMap = (value) => { try { return p.MapSize(value); } catch { return undefined; } };
  const trySet = (value) => { try { return p.SetSize(value); } catch { return undefined; } };
  const tryDate = (value) => { try { return p.DateToISOString(value); } catch { return undefined; } };
  const kindOf = rt.ops.kindOf;

  const show = (value, depth, above) => {
    switch (typeof value) {
      case 'string':
        return p.JSONStringify(value);
      case 'bigint':
        return p.String(value) + 'n';
      case 'function': {
        const name = p.GetOwnPropertyDescriptor(value, 'name');
        return name && typeof name.value === 'string' && name.value !== '' ? `[Function: ${name.value}]` : '[Function]';
      }
      case 'object':
        return value === null ? 'null' : showObject(value, depth, above);
      default:
        return p.text(value);
    }
  };

  const showObject = (value, depth, above) => {
    const kind = kindOf(value);
    if (kind === 'proxy') return '[Proxy]';
    for (let at = above; at; at = at.next) if (at.value === value) return '[Circular]';
    if (isError(value)) return errorText(value);
    if (kind === 'promise') return '[Promise]';
    const href = rt.hrefOf(value);
    if (href !== undefined) return href;
    if (kind === 'date') return tryDate(value) ?? 'Invalid Date';
    if (kind === 'regexp') return p.RegExpToString(value);
    const name = className(value);
    const isArray = p.ArrayIsArray(value);
    if (depth >= MAX_DEPTH) return isArray ? '[Array]' : `[${name || 'Object'}]`;
    const chain = { __proto__: null, value, next: above };
    let parts = '';
    let count = 0;
    const add = (text) => {
      count += 1;
      if (count > MAX_ITEMS) return;
      parts += (count > 1 ? ', ' : '') + text;
    };
    const rest = () => (count > MAX_ITEMS ? `, … ${count - MAX_ITEMS} more` : '');
    if (kind === 'map' && tryMap(value) !== undefined) {
      p.MapForEach(value, (v, k) => add(`${show(k, depth + 1, chain)} => ${show(v, depth + 1, chain)}`));
      return `Map(${tryMap(value)}) {${parts}${rest()}}`;
    }
    if (kind === 'set' && trySet(value) !== undefined) {
      p.SetForEach(value, (v) => add(show(v, depth + 1, chain)));
      return `Set(${trySet(value)}) {${parts}${rest()}}`;
    }
    if (isArray || kind === 'typedarray') {
      const length = isArray ? value.length : p.TypedArrayLength(value);
      for (let i = 0; i < length && i < MAX_ITEMS; i++) {
        const own = p.GetOwnPropertyDescriptor(value, i);
        add(!own ? '<empty>' : own.get ? '[Getter]' : show(own.value, depth + 1, chain));
      }
      const more = length > MAX_ITEMS ? `, … ${length - MAX_ITEMS} more` : '';
      return isArray ? `[${parts}${more}]` : `${p.TypedArrayTag(value)}(${length}) [${parts}${more}]`;
    }
    const keys = p.ObjectKeys(value);
    for (let i = 0; i < keys.length; i++) {
      if (count >= MAX_ITEMS) {
        count = keys.length;
        break;
      }
      const key = keys[i];
      const own = p.GetOwnPropertyDescriptor(value, key);
      if (!own) continue;
      const label = isPlainName(key) ? key : p.JSONStringify(key);
      add(`${label}: ${own.get || own.set ? '[Getter]' : show(own.value, depth + 1, chain)}`);
    }
    const prefix = name === '' || name === 'Object' ? '' : `${name} `;
    return count === 0 ? `${prefix}{}` : `${prefix}{ ${parts}${rest()} }`;
  };

  const cut = (text) => (text.length > MAX_TEXT ? p.StringSlice(text, 0, MAX_TEXT) + '…' : text);

  /** One value as a log line shows it: strings as they are. Never throws. */
  rt.inspect = (value) => {
    try {
      return cut(typeof value === 'string' ? value : show(value, 0, null));
    } catch {
      return '[unprintable]';
    }
  };

  /** `console.log`'s arguments as one line, with its `%s %d %i %f %j %o %O %c %%`. */
  rt.format = (args) => {
    let text = '';
    let next = 0;
    if (typeof args[0] === 'string' && args.length > 1) {
      const template = args[0];
      next = 1;
      let from = 0;
      for (;;) {
        const at = p.StringIndexOf(template, '%', from);
        if (at < 0 || at + 1 >= template.length) break;
        text += p.StringSlice(template, from, at);
        const verb = template[at + 1];
        from = at + 2;
        if (verb === '%') {
          text += '%';
        } else if (next >= args.length || !p.StringIncludes('sdifjoOc', verb)) {
          text += '%' + verb;
        } else {
          const arg = args[next];
          next += 1;
          text += directive(verb, arg);
        }
      }
      text += p.StringSlice(template, from);
    }
    for (let i = next; i < args.length; i++) {
      text += (i > 0 ? ' ' : '') + rt.inspect(args[i]);
    }
    return cut(text);
  };

  const directive = (verb, arg) => {
    try {
      switch (verb) {
        case 's':
          return rt.inspect(arg);
        case 'd':
          return typeof arg === 'bigint' ? `${p.String(arg)}n` : p.text(p.isObject(arg) ? NaN : p.Number(arg));
        case 'i':
          return p.text(p.isObject(arg) ? NaN : p.MathTrunc(p.NumberParseFloat(p.text(arg))));
        case 'f':
          return p.text(p.NumberParseFloat(p.text(arg)));
        case 'j':
          return p.text(p.JSONStringify(arg));
        case 'c':
          return '';
        default:
          return show(arg, 0, null);
      }
    } catch {
      return '[unprintable]';
    }
  };
})
