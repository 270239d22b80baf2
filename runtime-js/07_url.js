// URL and URLSearchParams. Parsing is native (the `url` crate follows the WHATWG standard); here is their shape.
(function (rt) {
  'use strict';
  const p = rt.p;
  const { urlParse, urlSet, formParse, formSerialize } = rt.ops;

  // Places in the native answer, and the names that `urlSet` takes.
  const HREF = 0, PROTOCOL = 1, USERNAME = 2, PASSWORD = 3, HOST = 4, HOSTNAME = 5, PORT = 6, PATHNAME = 7, SEARCH = 8,
    HASH = 9, ORIGIN = 10;

  const bridge = { __proto__: null };
  const wellFormed = (value) => p.StringToWellFormed(p.String(value));

  class URLSearchParams {
    /** name, value, name, value, … */
    #pairs = p.list();
    #url = null;
    constructor(init = '') {
      if (init === null || !p.isObject(init)) {
        let text = p.String(init);
        if (p.StringStartsWith(text, '?')) text = p.StringSlice(text, 1);
        this.#fill(text);
        return;
      }
      const iterator = init[p.SymbolIterator];
      if (iterator === undefined || iterator === null) {
        const keys = p.ReflectOwnKeys(init);
        for (let i = 0; i < keys.length; i++) {
          const own = p.GetOwnPropertyDescriptor(init, keys[i]);
          if (own?.enumerable) this.#add(wellFormed(keys[i]), wellFormed(init[keys[i]]));
        }
        return;
      }
      for (const pair of init) {
        if (!p.isObject(pair)) throw new p.TypeError('URLSearchParams: every item must be a [name, value] pair');
        const both = p.list();
        for (const part of pair) both[both.length] = part;
        if (both.length !== 2) throw new p.TypeError('URLSearchParams: every item must be a [name, value] pair');
        this.#add(wellFormed(both[0]), wellFormed(both[1]));
      }
    }
    #fill(text) {
      const parsed = formParse(wellFormed(text));
      const pairs = p.list();
      for (let i = 0; i < parsed.length; i++) pairs[i] = parsed[i];
      this.#pairs = pairs;
    }
    #add(name, value) {
      const pairs = this.#pairs;
      pairs[pairs.length] = name;
      pairs[pairs.length] = value;
    }
    #changed() { if (this.#url !== null) bridge.setSearch(this.#url, formSerialize(this.#pairs)); }
    get size() { return this.#pairs.length / 2; }
    append(name, value) {
      this.#add(wellFormed(name), wellFormed(value));
      this.#changed();
    }
    delete(name, value = undefined) {
      const key = wellFormed(name);
      const only = value === undefined ? undefined : wellFormed(value);
      const kept = p.list();
      for (let i = 0; i < this.#pairs.length; i += 2) {
        if (this.#pairs[i] === key && (only === undefined || this.#pairs[i + 1] === only)) continue;
        kept[kept.length] = this.#pairs[i];
        kept[kept.length] = this.#pairs[i + 1];
      }
      this.#pairs = kept;
      this.#changed();
    }
    get(name) {
      const key = wellFormed(name);
      for (let i = 0; i < this.#pairs.length; i += 2) if (this.#pairs[i] === key) return this.#pairs[i + 1];
      return null;
    }
    getAll(name) {
      const key = wellFormed(name);
      const found = [];
      for (let i = 0; i < this.#pairs.length; i += 2) {
        if (this.#pairs[i] !== key) continue;
        p.DefineProperty(found, found.length, {
          __proto__: null, value: this.#pairs[i + 1], writable: true, enumerable: true, configurable: true,
        });
      }
      return found;
    }
    has(name, value = undefined) {
      const key = wellFormed(name);
      const only = value === undefined ? undefined : wellFormed(value);
      for (let i = 0; i < this.#pairs.length; i += 2) {
        if (this.#pairs[i] === key && (only === undefined || this.#pairs[i + 1] === only)) return true;
      }
      return false;
    }
    set(name, value) {
      const key = wellFormed(name);
      const text = wellFormed(value);
      const kept = p.list();
      let placed = false;
      for (let i = 0; i < this.#pairs.length; i += 2) {
        if (this.#pairs[i] === key) {
          if (placed) continue;
          placed = true;
          kept[kept.length] = key;
          kept[kept.length] = text;
        } else {
          kept[kept.length] = this.#pairs[i];
          kept[kept.length] = this.#pairs[i + 1];
        }
      }
      if (!placed) {
        kept[kept.length] = key;
        kept[kept.length] = text;
      }
      this.#pairs = kept;
      this.#changed();
    }
    sort() {
      const order = [];
      for (let i = 0; i < this.#pairs.length; i += 2) {
        p.DefineProperty(order, order.length, {
          __proto__: null, value: i, writable: true, enumerable: true, configurable: true,
        });
      }
      const pairs = this.#pairs;
      // JavaScript compares strings by code units, which is what the standard asks for; the sort is stable.
      p.ArraySort(order, (a, b) => (pairs[a] < pairs[b] ? -1 : pairs[a] > pairs[b] ? 1 : a - b));
      const kept = p.list();
      for (let i = 0; i < order.length; i++) {
        kept[kept.length] = pairs[order[i]];
        kept[kept.length] = pairs[order[i] + 1];
      }
      this.#pairs = kept;
      this.#changed();
    }
    forEach(callback, thisArg = undefined) {
      if (typeof callback !== 'function') throw new p.TypeError('URLSearchParams.forEach: the callback must be a function');
      for (let i = 0; i < this.#pairs.length; i += 2) {
        p.ReflectApply(callback, thisArg, [this.#pairs[i + 1], this.#pairs[i], this]);
      }
    }
    keys() { return this.#iterate((pairs, i) => pairs[i]); }
    values() { return this.#iterate((pairs, i) => pairs[i + 1]); }
    entries() { return this.#iterate((pairs, i) => [pairs[i], pairs[i + 1]]); }
    #iterate(pick) {
      let at = 0;
      const next = () => {
        if (at >= this.#pairs.length) return { value: undefined, done: true };
        const value = pick(this.#pairs, at);
        at += 2;
        return { value, done: false };
      };
      return { __proto__: iteratorPrototype, next };
    }
    toString() { return formSerialize(this.#pairs); }
    static {
      bridge.link = (url, text) => {
        const params = new URLSearchParams();
        params.#fill(text);
        params.#url = url;
        return params;
      };
      bridge.refill = (params, text) => params.#fill(text);
    }
  }
  const iteratorPrototype = { __proto__: p.IteratorPrototype };
  p.tag(iteratorPrototype, 'URLSearchParams Iterator');
  p.define(URLSearchParams.prototype, p.SymbolIterator, URLSearchParams.prototype.entries);
  p.tag(URLSearchParams.prototype, 'URLSearchParams');

  const query = (parts) => (parts[SEARCH] === '' ? '' : p.StringSlice(parts[SEARCH], 1));

  class URL {
    #parts;
    #params = null;
    constructor(url, base = undefined) {
      const parts = urlParse(wellFormed(url), base === undefined ? undefined : wellFormed(base));
      if (parts === undefined) {
        const error = new p.TypeError(`Invalid URL: ${rt.inspect(p.text(url))}`);
        p.define(error, 'code', 'ERR_INVALID_URL');
        throw error;
      }
      this.#parts = parts;
    }
    static canParse(url, base = undefined) {
      return urlParse(wellFormed(url), base === undefined ? undefined : wellFormed(base)) !== undefined;
    }
    static parse(url, base = undefined) {
      return URL.#make(urlParse(wellFormed(url), base === undefined ? undefined : wellFormed(base)));
    }
    static #make(parts) {
      if (parts === undefined) return null;
      const url = new URL('a:');
      url.#parts = parts;
      return url;
    }
    #set(which, value) {
      const parts = urlSet(this.#parts[HREF], which, wellFormed(value));
      if (parts === undefined) return false;
      this.#parts = parts;
      if (this.#params !== null) bridge.refill(this.#params, query(parts));
      return true;
    }
    get href() { return this.#parts[HREF]; }
    set href(value) {
      if (!this.#set('href', value)) throw new p.TypeError(`Invalid URL: ${rt.inspect(p.text(value))}`);
    }
    get origin() { return this.#parts[ORIGIN]; }
    get protocol() { return this.#parts[PROTOCOL]; }
    set protocol(value) { this.#set('protocol', value); }
    get username() { return this.#parts[USERNAME]; }
    set username(value) { this.#set('username', value); }
    get password() { return this.#parts[PASSWORD]; }
    set password(value) { this.#set('password', value); }
    get host() { return this.#parts[HOST]; }
    set host(value) { this.#set('host', value); }
    get hostname() { return this.#parts[HOSTNAME]; }
    set hostname(value) { this.#set('hostname', value); }
    get port() { return this.#parts[PORT]; }
    set port(value) { this.#set('port', value); }
    get pathname() { return this.#parts[PATHNAME]; }
    set pathname(value) { this.#set('pathname', value); }
    get search() { return this.#parts[SEARCH]; }
    set search(value) { this.#set('search', value); }
    get hash() { return this.#parts[HASH]; }
    set hash(value) { this.#set('hash', value); }
    get searchParams() {
      if (this.#params === null) this.#params = bridge.link(this, query(this.#parts));
      return this.#params;
    }
    toString() { return this.#parts[HREF]; }
    toJSON() { return this.#parts[HREF]; }
    static {
      rt.hrefOf = (value) => (#parts in value ? value.#parts[HREF] : undefined);
      bridge.setSearch = (url, text) => {
        const parts = urlSet(url.#parts[HREF], 'search', text);
        if (parts !== undefined) url.#parts = parts;
      };
    }
  }
  p.tag(URL.prototype, 'URL');
  p.enumerable(URL.prototype, [
    'href', 'origin', 'protocol', 'username', 'password', 'host', 'hostname', 'port', 'pathname', 'search', 'hash',
    'searchParams', 'toString', 'toJSON',
  ]);

  rt.globals.URL = URL;
  rt.globals.URLSearchParams = URLSearchParams;
})
