// What the rest of the runtime uses of the language, taken before any handler runs. Handlers may patch every
// intrinsic they can reach; nothing in these files may look one up again afterwards.
//
// Rules for all files here, since they run in the handler's own realm:
// - no method call on a value (`list.push(x)`), only captured functions: `StringSlice(text, 1)`;
// - no spread, no array destructuring, no `for…of` over our own arrays: all three go through `Symbol.iterator`;
// - no assignment to a property that is not known to be the object's own (a setter on `Object.prototype` would see
//   it): literals, private fields, `DefineProperty`, or objects from `bare()`;
// - no `await` and no `.then` on promises of ours: native code settles them;
// - nothing is built as an object to be serialised: native code gets a name and JSON text as separate arguments.
(function (rt) {
  'use strict';

  const { bind, call } = Function.prototype;
  /** `uncurry(Array.prototype.slice)` is a function of `(array, ...args)`. */
  const uncurry = bind.bind(call);
  const getter = (proto, name) => uncurry(Object.getOwnPropertyDescriptor(proto, name).get);
  const TypedArray = Object.getPrototypeOf(Uint8Array);

  const p = {
    __proto__: null,
    ArrayIsArray: Array.isArray,
    ArraySort: uncurry(Array.prototype.sort),
    Boolean,
    DateToISOString: uncurry(Date.prototype.toISOString),
    DefineProperty: Object.defineProperty,
    Error,
    ErrorCaptureStackTrace: Error.captureStackTrace,
    ErrorToString: uncurry(Error.prototype.toString),
    Freeze: Object.freeze,
    GetOwnPropertyDescriptor: Object.getOwnPropertyDescriptor,
    GetPrototypeOf: Object.getPrototypeOf,
    HasOwn: Object.hasOwn,
    IteratorPrototype: Object.getPrototypeOf(Object.getPrototypeOf([][Symbol.iterator]())),
    JSONParse: JSON.parse,
    JSONStringify: JSON.stringify,
    MapForEach: uncurry(Map.prototype.forEach),
    MapSize: getter(Map.prototype, 'size'),
    MathFloor: Math.floor,
    MathTrunc: Math.trunc,
    Number,
    NumberIsFinite: Number.isFinite,
    NumberParseFloat: Number.parseFloat,
    ObjectKeys: Object.keys,
    Promise,
    PromiseThen: uncurry(Promise.prototype.then),
    PromiseReject: Promise.reject.bind(Promise),
    Proxy,
    RangeError,
    ReflectApply: Reflect.apply,
    ReflectGet: Reflect.get,
    ReflectOwnKeys: Reflect.ownKeys,
    RegExpToString: uncurry(RegExp.prototype.toString),
    SetForEach: uncurry(Set.prototype.forEach),
    SetPrototypeOf: Object.setPrototypeOf,
    SetSize: getter(Set.prototype, 'size'),
    String,
    StringCharCodeAt: uncurry(String.prototype.charCodeAt),
    StringFromCharCode: String.fromCharCode,
    StringIncludes: uncurry(String.prototype.includes),
    StringIndexOf: uncurry(String.prototype.indexOf),
    StringSlice: uncurry(String.prototype.slice),
    StringStartsWith: uncurry(String.prototype.startsWith),
    StringToLowerCase: uncurry(String.prototype.toLowerCase),
    StringToWellFormed: uncurry(String.prototype.toWellFormed),
    SymbolAsyncIterator: Symbol.asyncIterator,
    SymbolIterator: Symbol.iterator,
    SymbolToString: uncurry(Symbol.prototype.toString),
    SymbolToStringTag: Symbol.toStringTag,
    SyntaxError,
    TypeError,
    TypedArrayLength: getter(TypedArray.prototype, 'length'),
    TypedArrayTag: getter(TypedArray.prototype, Symbol.toStringTag),
    Uint8Array,
  };

  /** An object whose missing members are simply missing, and that assignment cannot leak from. */
  const bare = (object) => p.SetPrototypeOf(object, null);

  /** Our own lists: `list[list.length] = x` reaches no setter, because there is no prototype. */
  p.list = () => bare([]);

  p.define = (object, name, value) =>
    p.DefineProperty(object, name, { __proto__: null, value, writable: true, enumerable: false, configurable: true });

  p.isObject = (value) => (typeof value === 'object' && value !== null) || typeof value === 'function';

  /** Text of any value; never throws. */
  p.text = (value) => {
    try {
      return typeof value === 'symbol' ? p.SymbolToString(value) : p.String(value);
    } catch {
      return '[unprintable]';
    }
  };

  /** Makes `names` of `object` enumerable, as the web's own classes have them. */
  p.enumerable = (object, names) => {
    for (let i = 0; i < names.length; i++) {
      p.DefineProperty(object, names[i], { __proto__: null, enumerable: true });
    }
  };

  /** A class's name as `Object.prototype.toString` shows it. */
  p.tag = (proto, name) =>
    p.DefineProperty(proto, p.SymbolToStringTag, {
      __proto__: null,
      value: name,
      writable: false,
      enumerable: false,
      configurable: true,
    });

  rt.p = p;
  /** What becomes a global; installed at the end, non-enumerable like the language's own. */
  rt.globals = { __proto__: null };
  /** What native code calls. */
  rt.entry = { __proto__: null };
})
