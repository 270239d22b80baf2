// TextEncoder, TextDecoder, atob, btoa, crypto, structuredClone.
(function (rt) {
  'use strict';
  const p = rt.p;
  const { utf8Encode, utf8EncodeInto, decoderLabel, decode, fillRandom, uuid, clone, base64Decode, base64Encode } = rt.ops;
  const DOMException = rt.DOMException;

  class TextEncoder {
    get encoding() { return 'utf-8'; }
    encode(input = '') { return utf8Encode(p.String(input)); }
    encodeInto(source, destination) {
      const packed = utf8EncodeInto(p.String(source), destination);
      if (packed === undefined) throw new p.TypeError('TextEncoder.encodeInto: the destination must be a Uint8Array');
      return { read: packed[0], written: packed[1] };
    }
  }
  p.tag(TextEncoder.prototype, 'TextEncoder');
  p.enumerable(TextEncoder.prototype, ['encoding', 'encode', 'encodeInto']);

  class TextDecoder {
    #encoding;
    #fatal;
    #ignoreBOM;
    /** Number of the native decoder that holds the state between chunks; 0 is none. */
    #stream = 0;
    constructor(label = 'utf-8', options = undefined) {
      const encoding = decoderLabel(p.String(label));
      if (encoding === undefined) throw new p.RangeError(`TextDecoder: the encoding label ${rt.inspect(label)} is invalid`);
      this.#encoding = encoding;
      this.#fatal = p.Boolean(options?.fatal);
      this.#ignoreBOM = p.Boolean(options?.ignoreBOM);
    }
    get encoding() { return this.#encoding; }
    get fatal() { return this.#fatal; }
    get ignoreBOM() { return this.#ignoreBOM; }
    decode(input = undefined, options = undefined) {
      const more = p.Boolean(options?.stream);
      const result = decode(this.#encoding, input, this.#fatal, this.#ignoreBOM, more, this.#stream);
      if (typeof result === 'string') {
        this.#stream = 0;
        return result;
      }
      if (result === undefined) throw new p.TypeError('TextDecoder.decode: the input must be a buffer or a view of one');
      if (result === null) {
        this.#stream = 0;
        throw new p.TypeError('TextDecoder.decode: the encoded data was not valid');
      }
      this.#stream = result[1];
      return result[0];
    }
  }
  p.tag(TextDecoder.prototype, 'TextDecoder');
  p.enumerable(TextDecoder.prototype, ['encoding', 'fatal', 'ignoreBOM', 'decode']);

  rt.globals.TextEncoder = TextEncoder;
  rt.globals.TextDecoder = TextDecoder;

  rt.globals.atob = { atob(data) {
    if (arguments.length < 1) throw new p.TypeError('atob: one argument is needed');
    const result = base64Decode(p.String(data));
    if (result === undefined) throw new DOMException('atob: the string is not base64', 'InvalidCharacterError');
    return result;
  } }.atob;
  rt.globals.btoa = { btoa(data) {
    if (arguments.length < 1) throw new p.TypeError('btoa: one argument is needed');
    const result = base64Encode(p.String(data));
    if (result === undefined) throw new DOMException('btoa: a character is over U+00FF', 'InvalidCharacterError');
    return result;
  } }.btoa;

  const crypto = { __proto__: {} };
  p.define(crypto, 'randomUUID', { randomUUID() { return uuid(); } }.randomUUID);
  p.define(crypto, 'getRandomValues', { getRandomValues(array) {
    const filled = fillRandom(array);
    if (filled === undefined) {
      throw new DOMException('getRandomValues: an integer typed array is needed', 'TypeMismatchError');
    }
    if (!filled) throw new DOMException('getRandomValues: at most 65536 bytes at once', 'QuotaExceededError');
    return array;
  } }.getRandomValues);
  p.tag(crypto, 'Crypto');
  rt.globals.crypto = crypto;

  rt.globals.structuredClone = { structuredClone(value, options) {
    if (arguments.length < 1) throw new p.TypeError('structuredClone: one argument is needed');
    const transfer = p.list();
    const given = options?.transfer;
    if (given !== undefined) for (const item of given) transfer[transfer.length] = item;
    const failed = { __proto__: null, message: undefined };
    const result = clone(value, transfer, failed);
    if (failed.message !== undefined) throw new DOMException(failed.message, 'DataCloneError');
    return result;
  } }.structuredClone;
})
