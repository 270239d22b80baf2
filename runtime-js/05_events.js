// DOMException, Event, EventTarget, AbortSignal, AbortController: as much of the DOM standard as has a meaning
// without a tree.
(function (rt) {
  'use strict';
  const p = rt.p;
  const { timerAdd, keepAlive } = rt.ops;

  const codes = {
    __proto__: null,
    IndexSizeError: 1,
    InvalidCharacterError: 5,
    NotSupportedError: 9,
    InvalidStateError: 11,
    SyntaxError: 12,
    InvalidAccessError: 15,
    AbortError: 20,
    QuotaExceededError: 22,
    TimeoutError: 23,
    DataCloneError: 25,
  };

  class DOMException {
    #name;
    #message;
    constructor(message = '', options = 'Error') {
      this.#message = p.String(message);
      this.#name = p.String(p.isObject(options) ? options.name ?? 'Error' : options);
      if (p.isObject(options) && 'cause' in options) p.define(this, 'cause', options.cause);
      p.ErrorCaptureStackTrace(this, DOMException);
    }
    get name() { return this.#name; }
    get message() { return this.#message; }
    get code() { return codes[this.#name] ?? 0; }
    static is(value) { return #name in value; }
  }
  const isDOMException = DOMException.is;
  delete DOMException.is;
  p.SetPrototypeOf(DOMException.prototype, p.Error.prototype);
  p.enumerable(DOMException.prototype, ['name', 'message', 'code']);
  p.tag(DOMException.prototype, 'DOMException');
  rt.DOMException = DOMException;
  rt.isDOMException = (value) => p.isObject(value) && isDOMException(value);

  class Event {
    #type;
    #bubbles;
    #cancelable;
    #prevented = false;
    #stopped = false;
    #target = null;
    #trusted = false;
    #phase = 0;
    #at;
    constructor(type, init) {
      if (arguments.length < 1) throw new p.TypeError('Event: a type is needed');
      this.#type = p.String(type);
      this.#bubbles = p.Boolean(init?.bubbles);
      this.#cancelable = p.Boolean(init?.cancelable);
      this.#at = rt.ops.elapsed();
    }
    get type() { return this.#type; }
    get target() { return this.#target; }
    get currentTarget() { return this.#phase === 0 ? null : this.#target; }
    get eventPhase() { return this.#phase; }
    get bubbles() { return this.#bubbles; }
    get cancelable() { return this.#cancelable; }
    get defaultPrevented() { return this.#prevented; }
    get isTrusted() { return this.#trusted; }
    get timeStamp() { return this.#at; }
    preventDefault() { if (this.#cancelable) this.#prevented = true; }
    stopPropagation() {}
    stopImmediatePropagation() { this.#stopped = true; }
    static begin(event, target, trusted) {
      if (event.#phase !== 0) throw new DOMException('the event is being dispatched already', 'InvalidStateError');
      event.#target = target;
      event.#phase = 2;
      event.#stopped = false;
      event.#trusted = trusted;
    }
    static end(event) {
      event.#phase = 0;
      return !event.#prevented;
    }
    static stopped(event) { return event.#stopped; }
    static typeOf(event) { return event.#type; }
    static is(value) { return p.isObject(value) && #type in value; }
  }
  const { begin, end, stopped, typeOf, is: isEvent } = Event;
  delete Event.begin;
  delete Event.end;
  delete Event.stopped;
  delete Event.typeOf;
  delete Event.is;
  p.tag(Event.prototype, 'Event');

  const inner = { __proto__: null };
  class EventTarget {
    /** Entries `{type, callback, capture, once, live, attribute}`, oldest first. */
    #entries = p.list();
    addEventListener(type, callback, options) {
      if (callback === null || callback === undefined) return;
      if (!p.isObject(callback)) throw new p.TypeError('addEventListener: the listener must be a function or an object');
      const capture = p.Boolean(p.isObject(options) ? options.capture : options);
      const once = p.isObject(options) && p.Boolean(options.once);
      const signal = p.isObject(options) ? options.signal : undefined;
      if (signal !== undefined && !isSignal(signal)) throw new p.TypeError('addEventListener: signal is no AbortSignal');
      if (signal !== undefined && signalState(signal).aborted) return;
      const key = p.String(type);
      const entries = this.#entries;
      for (let i = 0; i < entries.length; i++) {
        const e = entries[i];
        if (e.live && !e.attribute && e.type === key && e.callback === callback && e.capture === capture) return;
      }
      const entry = { __proto__: null, type: key, callback, capture, once, live: true, attribute: false };
      entries[entries.length] = entry;
      if (signal !== undefined) onAbort(signal, () => this.#drop(entry));
      inner.changed(this);
    }
    removeEventListener(type, callback, options) {
      const capture = p.Boolean(p.isObject(options) ? options.capture : options);
      const key = p.String(type);
      const entries = this.#entries;
      for (let i = 0; i < entries.length; i++) {
        const e = entries[i];
        if (!e.attribute && e.type === key && e.callback === callback && e.capture === capture) {
          this.#drop(e);
          return;
        }
      }
    }
    dispatchEvent(event) {
      if (!isEvent(event)) throw new p.TypeError('dispatchEvent: an Event is needed');
      return EventTarget.#run(this, event, false);
    }
    #drop(entry) {
      entry.live = false;
      const kept = p.list();
      for (let i = 0; i < this.#entries.length; i++) {
        if (this.#entries[i] !== entry) kept[kept.length] = this.#entries[i];
      }
      this.#entries = kept;
      inner.changed(this);
    }
    static #run(target, event, trusted) {
      begin(event, target, trusted);
      // The list is replaced on removal, so a copy is not needed; additions during dispatch are past `count`.
      const entries = target.#entries;
      const count = entries.length;
      const type = typeOf(event);
      for (let i = 0; i < count; i++) {
        const e = entries[i];
        if (!e.live || e.type !== type) continue;
        if (e.once) target.#drop(e);
        try {
          if (typeof e.callback === 'function') p.ReflectApply(e.callback, target, [event]);
          else p.ReflectApply(e.callback.handleEvent, e.callback, [event]);
        } catch (error) {
          rt.report(`uncaught exception in a listener of ${type}`, error);
        }
        if (stopped(event)) break;
      }
      return end(event);
    }
    static {
      inner.fire = (target, type) => EventTarget.#run(target, new Event(type), true);
      inner.count = (target) => target.#entries.length;
      inner.setAttribute = (target, type, callback) => {
        const entries = target.#entries;
        for (let i = 0; i < entries.length; i++) {
          if (entries[i].attribute && entries[i].type === type) {
            target.#drop(entries[i]);
            break;
          }
        }
        if (typeof callback === 'function') {
          const at = target.#entries;
          at[at.length] =
            { __proto__: null, type, callback, capture: false, once: false, live: true, attribute: true };
        }
        inner.changed(target);
      };
    }
  }
  p.tag(EventTarget.prototype, 'EventTarget');

  /** The run's own signal: while it has listeners, an abort could still settle the handler. */
  let runSignal = null;
  inner.changed = (target) => {
    if (target === runSignal) keepAlive(inner.count(target) > 0 || signalState(target).hooks.length > 0);
  };

  const secret = { __proto__: null };
  class AbortSignal extends EventTarget {
    #state = { __proto__: null, aborted: false, reason: undefined, hooks: p.list() };
    #onabort = null;
    constructor(key) {
      if (key !== secret) throw new p.TypeError('AbortSignal cannot be constructed; use AbortController');
      super();
    }
    get aborted() { return this.#state.aborted; }
    get reason() { return this.#state.reason; }
    get onabort() { return this.#onabort; }
    set onabort(callback) {
      this.#onabort = typeof callback === 'function' ? callback : null;
      inner.setAttribute(this, 'abort', this.#onabort);
    }
    throwIfAborted() { if (this.#state.aborted) throw this.#state.reason; }
    static abort(reason) {
      const signal = new AbortSignal(secret);
      abort(signal, reason);
      return signal;
    }
    static timeout(milliseconds) {
      const ms = p.Number(milliseconds);
      if (!(ms >= 0)) throw new p.TypeError('AbortSignal.timeout: milliseconds must be a number that is not negative');
      const signal = new AbortSignal(secret);
      timerAdd(() => abort(signal, new DOMException('The operation timed out', 'TimeoutError')), ms < 1 ? 1 : ms, false);
      return signal;
    }
    static any(signals) {
      const sources = p.list();
      for (const signal of signals) {
        if (!isSignal(signal)) throw new p.TypeError('AbortSignal.any: every member must be an AbortSignal');
        sources[sources.length] = signal;
      }
      const result = new AbortSignal(secret);
      for (let i = 0; i < sources.length; i++) {
        const state = signalState(sources[i]);
        if (state.aborted) {
          abort(result, state.reason);
          return result;
        }
      }
      for (let i = 0; i < sources.length; i++) {
        const source = sources[i];
        onAbort(source, () => abort(result, signalState(source).reason));
      }
      return result;
    }
    static {
      inner.signalState = (signal) => signal.#state;
      inner.isSignal = (value) => p.isObject(value) && #state in value;
    }
  }
  const { signalState, isSignal } = inner;
  p.tag(AbortSignal.prototype, 'AbortSignal');
  p.enumerable(AbortSignal.prototype, ['aborted', 'reason', 'onabort', 'throwIfAborted']);

  const onAbort = (signal, hook) => {
    const hooks = signalState(signal).hooks;
    hooks[hooks.length] = hook;
    inner.changed(signal);
  };

  const abort = (signal, reason) => {
    const state = signalState(signal);
    if (state.aborted) return;
    state.aborted = true;
    state.reason = reason === undefined ? new DOMException('The operation was aborted', 'AbortError') : reason;
    for (let i = 0; i < state.hooks.length; i++) state.hooks[i]();
    inner.fire(signal, 'abort');
  };

  class AbortController {
    #signal = new AbortSignal(secret);
    get signal() { return this.#signal; }
    abort(reason) { abort(this.#signal, reason); }
  }
  p.tag(AbortController.prototype, 'AbortController');
  p.enumerable(AbortController.prototype, ['signal', 'abort']);

  /** Makes `ctx.abortSignal`; `rt.abortRun` is what the daemon's abort calls. */
  rt.makeRunSignal = () => {
    runSignal = new AbortSignal(secret);
    return runSignal;
  };
  rt.entry.abort = (reason) => {
    if (runSignal !== null) abort(runSignal, new DOMException(reason, 'AbortError'));
  };

  rt.globals.DOMException = DOMException;
  rt.globals.Event = Event;
  rt.globals.EventTarget = EventTarget;
  rt.globals.AbortSignal = AbortSignal;
  rt.globals.AbortController = AbortController;
})
