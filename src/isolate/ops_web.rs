//! Native halves of the web's own classes: text encodings, base64, randomness, structured clone, URLs.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use deno_core::v8;
use encoding_rs::{CoderResult, Decoder, DecoderResult, Encoding};
use url::Url;
use url::quirks;
use v8::{ValueDeserializerHelper, ValueSerializerHelper};

use super::ops::{Args, Ret, state, string};

type Scope<'s, 'i, 'a> = &'a mut v8::PinScope<'s, 'i>;

/// True for what the language made as an error, also through a subclass; cannot be forged.
pub(super) fn is_error(_: Scope<'_, '_, '_>, args: Args<'_>, mut rv: Ret<'_>) {
    rv.set_bool(args.get(0).is_native_error());
}

/// Which built-in class an object is of, without asking the object.
pub(super) fn kind_of(scope: Scope<'_, '_, '_>, args: Args<'_>, mut rv: Ret<'_>) {
    let value = args.get(0);
    let kind = match value {
        v if v.is_proxy() => "proxy",
        v if v.is_promise() => "promise",
        v if v.is_date() => "date",
        v if v.is_reg_exp() => "regexp",
        v if v.is_map() => "map",
        v if v.is_set() => "set",
        v if v.is_typed_array() => "typedarray",
        _ => return,
    };
    if let Some(kind) = v8::String::new(scope, kind) {
        rv.set(kind.into());
    }
}

/// The bytes of a buffer or of a view of one; `None` for anything else.
fn bytes_of(scope: &v8::PinScope<'_, '_>, value: v8::Local<'_, v8::Value>) -> Option<Vec<u8>> {
    if let Ok(view) = value.try_cast::<v8::ArrayBufferView>() {
        let mut bytes = vec![0; view.byte_length()];
        let copied = view.copy_contents(&mut bytes);
        bytes.truncate(copied);
        return Some(bytes);
    }
    let buffer = value.try_cast::<v8::ArrayBuffer>().ok()?;
    let view = v8::Uint8Array::new(scope, buffer, 0, buffer.byte_length())?;
    let mut bytes = vec![0; view.byte_length()];
    view.copy_contents(&mut bytes);
    Some(bytes)
}

/// A new `Uint8Array`, made through the counting allocator. When there is no room an exception is pending.
fn new_bytes<'s>(scope: &mut v8::PinScope<'s, '_>, bytes: &[u8]) -> Option<v8::Local<'s, v8::Uint8Array>> {
    let limit = state(scope).map_or(u64::MAX, |state| state.limits.external_bytes);
    if bytes.len() as u64 > limit {
        throw_range(scope, "the bytes do not fit in memory");
        return None;
    }
    let buffer = v8::ArrayBuffer::new(scope, bytes.len());
    if buffer.byte_length() != bytes.len() {
        throw_range(scope, "the bytes do not fit in memory");
        return None;
    }
    write_bytes(&buffer, 0, bytes);
    v8::Uint8Array::new(scope, buffer, 0, bytes.len())
}

fn write_bytes(buffer: &v8::ArrayBuffer, offset: usize, bytes: &[u8]) {
    if let Some(data) = buffer.data()
        && offset.checked_add(bytes.len()).is_some_and(|end| end <= buffer.byte_length())
    {
        // SAFETY: the range lies within the buffer, which nothing else touches while native code runs.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), data.as_ptr().cast::<u8>().add(offset), bytes.len()) };
    }
}

fn throw_range(scope: &mut v8::PinScope<'_, '_>, message: &str) {
    if let Some(message) = v8::String::new(scope, message) {
        let error = v8::Exception::range_error(scope, message);
        scope.throw_exception(error);
    }
}

pub(super) fn utf8_encode(scope: Scope<'_, '_, '_>, args: Args<'_>, mut rv: Ret<'_>) {
    let Some(text) = string(scope, args.get(0)) else { return };
    if let Some(array) = new_bytes(scope, text.as_bytes()) {
        rv.set(array.into());
    }
}

/// `utf8EncodeInto(text, view)`: `[UTF-16 units read, bytes written]`; undefined when the view is no `Uint8Array`.
pub(super) fn utf8_encode_into(scope: Scope<'_, '_, '_>, args: Args<'_>, mut rv: Ret<'_>) {
    let (Some(text), Ok(view)) = (string(scope, args.get(0)), args.get(1).try_cast::<v8::Uint8Array>()) else {
        return;
    };
    let room = view.byte_length();
    let mut written = 0;
    let mut read = 0;
    for c in text.chars() {
        if written + c.len_utf8() > room {
            break;
        }
        written += c.len_utf8();
        read += c.len_utf16();
    }
    if let Some(buffer) = view.buffer(scope) {
        write_bytes(&buffer, view.byte_offset(), &text.as_bytes()[..written]);
    }
    let pair = [read, written].map(|n| v8::Number::new(scope, n as f64).into());
    rv.set(v8::Array::new_with_elements(scope, &pair).into());
}

/// The name of the encoding that a label stands for, in the standard's form.
pub(super) fn decoder_label(scope: Scope<'_, '_, '_>, args: Args<'_>, mut rv: Ret<'_>) {
    let label = string(scope, args.get(0)).unwrap_or_default();
    if let Some(encoding) = Encoding::for_label_no_replacement(label.as_bytes())
        && let Some(name) = v8::String::new(scope, &encoding.name().to_ascii_lowercase())
    {
        rv.set(name.into());
    }
}

/// Decoders between two chunks of a stream.
#[derive(Default)]
pub(super) struct Decoders {
    by_number: HashMap<u32, Decoder>,
    next: u32,
}

/// `decode(encoding, bytes?, fatal, ignoreBOM, more, number)`: the text when the stream ends, `[text, number]` when
/// more is to come, null when the bytes are not valid, undefined when they are no bytes.
pub(super) fn decode(scope: Scope<'_, '_, '_>, args: Args<'_>, mut rv: Ret<'_>) {
    let Some(state) = state(scope) else { return };
    let Some(encoding) = string(scope, args.get(0)).and_then(|name| Encoding::for_label(name.as_bytes())) else {
        return;
    };
    let input = args.get(1);
    let bytes = if input.is_undefined() { Some(vec![]) } else { bytes_of(scope, input) };
    let Some(bytes) = bytes else { return };
    let (fatal, keep_bom, more) = (args.get(2).is_true(), args.get(3).is_true(), args.get(4).is_true());
    let number = args.get(5).uint32_value(scope).unwrap_or(0);
    let kept = state.decoders.borrow_mut().by_number.remove(&number);
    let mut decoder = kept.unwrap_or_else(|| {
        if keep_bom { encoding.new_decoder_without_bom_handling() } else { encoding.new_decoder_with_bom_removal() }
    });
    let room = if fatal {
        decoder.max_utf8_buffer_length_without_replacement(bytes.len())
    } else {
        decoder.max_utf8_buffer_length(bytes.len())
    };
    let mut text = String::with_capacity(room.unwrap_or(0));
    let valid = if fatal {
        matches!(decoder.decode_to_string_without_replacement(&bytes, &mut text, !more).0, DecoderResult::InputEmpty)
    } else {
        matches!(decoder.decode_to_string(&bytes, &mut text, !more).0, CoderResult::InputEmpty)
    };
    if !valid {
        rv.set_null();
        return;
    }
    let Some(text) = v8::String::new(scope, &text) else {
        return throw_range(scope, "the text is too long");
    };
    if !more {
        rv.set(text.into());
        return;
    }
    let mut decoders = state.decoders.borrow_mut();
    let number = if number == 0 {
        decoders.next += 1;
        decoders.next
    } else {
        number
    };
    decoders.by_number.insert(number, decoder);
    let number = v8::Integer::new_from_unsigned(scope, number).into();
    rv.set(v8::Array::new_with_elements(scope, &[text.into(), number]).into());
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The standard's forgiving base64: blanks are skipped, padding is optional, each character of the result is a byte.
fn forgiving_decode(text: &str) -> Option<Vec<u8>> {
    let mut data: Vec<u8> = text.bytes().filter(|b| !matches!(b, b' ' | b'\t' | b'\n' | b'\r' | 0x0c)).collect();
    if data.len().is_multiple_of(4) {
        let padding = data.iter().rev().take(2).take_while(|&&b| b == b'=').count();
        data.truncate(data.len() - padding);
    }
    if data.len() % 4 == 1 {
        return None;
    }
    let mut out = Vec::with_capacity(data.len() / 4 * 3 + 2);
    for group in data.chunks(4) {
        let mut bits = 0u32;
        for &byte in group {
            bits = bits << 6 | u32::try_from(BASE64.iter().position(|&b| b == byte)?).ok()?;
        }
        bits <<= 6 * (4 - group.len());
        out.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(out)
}

fn base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut padded = [0; 3];
        padded[..group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes([0, padded[0], padded[1], padded[2]]);
        for place in 0..4 {
            let digit = BASE64[(bits >> (18 - 6 * place)) as usize & 63];
            out.push(if place <= group.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

/// `atob`; undefined when the text is no base64.
pub(super) fn base64_decode(scope: Scope<'_, '_, '_>, args: Args<'_>, mut rv: Ret<'_>) {
    let bytes = string(scope, args.get(0)).and_then(|text| forgiving_decode(&text));
    let text = bytes.and_then(|bytes| v8::String::new_from_one_byte(scope, &bytes, v8::NewStringType::Normal));
    if let Some(text) = text {
        rv.set(text.into());
    }
}

/// `btoa`; undefined when a character is no byte.
pub(super) fn base64_encode(scope: Scope<'_, '_, '_>, args: Args<'_>, mut rv: Ret<'_>) {
    let Some(text) = string(scope, args.get(0)) else { return };
    let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
    if let Some(text) = bytes.and_then(|bytes| v8::String::new(scope, &base64(&bytes))) {
        rv.set(text.into());
    }
}

/// The most that `crypto.getRandomValues` fills at once, by its standard.
const MAX_RANDOM: usize = 65_536;

/// True when filled, false when too long, undefined when it is no integer array.
pub(super) fn fill_random(scope: Scope<'_, '_, '_>, args: Args<'_>, mut rv: Ret<'_>) {
    let value = args.get(0);
    if value.is_float32_array() || value.is_float64_array() || !value.is_typed_array() {
        return;
    }
    let Ok(view) = value.try_cast::<v8::ArrayBufferView>() else {
        return;
    };
    let mut bytes = vec![0; view.byte_length()];
    if bytes.len() > MAX_RANDOM {
        rv.set_bool(false);
        return;
    }
    if getrandom::fill(&mut bytes).is_err() {
        return throw_range(scope, "the system gives no randomness");
    }
    if let Some(buffer) = view.buffer(scope) {
        write_bytes(&buffer, view.byte_offset(), &bytes);
    }
    rv.set_bool(true);
}

/// A random (version 4) UUID.
pub(super) fn uuid(scope: Scope<'_, '_, '_>, _: Args<'_>, mut rv: Ret<'_>) {
    let mut bytes = [0; 16];
    if getrandom::fill(&mut bytes).is_err() {
        return throw_range(scope, "the system gives no randomness");
    }
    let id = uuid::Builder::from_random_bytes(bytes).into_uuid().hyphenated().to_string();
    if let Some(id) = v8::String::new(scope, &id) {
        rv.set(id.into());
    }
}

/// Keeps the message of what cannot be cloned.
struct CloneDelegate(Rc<RefCell<Option<String>>>);

impl v8::ValueSerializerImpl for CloneDelegate {
    fn throw_data_clone_error<'s>(&self, scope: &mut v8::PinScope<'s, '_>, message: v8::Local<'s, v8::String>) {
        *self.0.borrow_mut() = Some(message.to_rust_string_lossy(scope));
        // Something must be thrown to stop the serializer; the caller replaces it.
        let error = v8::Exception::error(scope, message);
        scope.throw_exception(error);
    }
}

impl v8::ValueDeserializerImpl for CloneDelegate {}

/// `clone(value, transfer, failed)`: the clone; or `failed.message` is set.
pub(super) fn clone<'s>(scope: &mut v8::PinScope<'s, '_>, args: Args<'s>, mut rv: Ret<'s>) {
    let Ok(failed) = args.get(2).try_cast::<v8::Object>() else {
        return;
    };
    let message = Rc::new(RefCell::new(None));
    {
        v8::tc_scope!(let scope, scope);
        match try_clone(scope, args.get(0), args.get(1), &message) {
            Some(value) => rv.set(value),
            None if message.borrow().is_none() && scope.has_caught() => {
                // A getter of the value threw: its error goes on as it is.
                scope.rethrow();
                return;
            }
            None => {}
        }
    }
    let message = message.borrow_mut().take();
    if let Some(message) = message
        && let (Some(key), Some(text)) = (v8::String::new(scope, "message"), v8::String::new(scope, &message))
    {
        failed.create_data_property(scope, key.into(), text.into());
    }
}

fn try_clone<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    value: v8::Local<'s, v8::Value>,
    transfer: v8::Local<'s, v8::Value>,
    message: &Rc<RefCell<Option<String>>>,
) -> Option<v8::Local<'s, v8::Value>> {
    let context = scope.get_current_context();
    let mut moved: Vec<v8::Local<v8::ArrayBuffer>> = Vec::new();
    if let Ok(list) = transfer.try_cast::<v8::Array>() {
        for index in 0..list.length() {
            let buffer = list.get_index(scope, index)?.try_cast::<v8::ArrayBuffer>().ok();
            match buffer.filter(|b| b.is_detachable() && !b.was_detached() && !moved.contains(b)) {
                Some(buffer) => moved.push(buffer),
                None => {
                    *message.borrow_mut() = Some("only array buffers can be transferred, each once".into());
                    return None;
                }
            }
        }
    }
    let serializer = v8::ValueSerializer::new(scope, Box::new(CloneDelegate(message.clone())));
    serializer.write_header();
    for (id, buffer) in (0u32..).zip(&moved) {
        serializer.transfer_array_buffer(id, *buffer);
    }
    serializer.write_value(context, value)?;
    let bytes = serializer.release();
    let deserializer = v8::ValueDeserializer::new(scope, Box::new(CloneDelegate(message.clone())), &bytes);
    for (id, buffer) in (0u32..).zip(&moved) {
        let store = buffer.get_backing_store();
        buffer.detach(None)?;
        let fresh = v8::ArrayBuffer::with_backing_store(scope, &store);
        deserializer.transfer_array_buffer(id, fresh);
    }
    deserializer.read_header(context)?;
    deserializer.read_value(context)
}

/// The components in the order that `runtime-js` reads them in.
fn url_parts<'s>(scope: &mut v8::PinScope<'s, '_>, url: &Url) -> Option<v8::Local<'s, v8::Array>> {
    let origin = quirks::origin(url);
    let parts = [
        quirks::href(url),
        quirks::protocol(url),
        quirks::username(url),
        quirks::password(url),
        quirks::host(url),
        quirks::hostname(url),
        quirks::port(url),
        quirks::pathname(url),
        quirks::search(url),
        quirks::hash(url),
        &origin,
    ];
    string_list(scope, parts.into_iter().map(Cow::Borrowed))
}

fn string_list<'s, 't>(
    scope: &mut v8::PinScope<'s, '_>,
    texts: impl Iterator<Item = Cow<'t, str>>,
) -> Option<v8::Local<'s, v8::Array>> {
    let items = texts.map(|text| v8::String::new(scope, &text).map(Into::into)).collect::<Option<Vec<_>>>()?;
    Some(v8::Array::new_with_elements(scope, &items))
}

/// `urlParse(text, base?)`: the components, or undefined.
pub(super) fn url_parse(scope: Scope<'_, '_, '_>, args: Args<'_>, mut rv: Ret<'_>) {
    let Some(text) = string(scope, args.get(0)) else { return };
    let url = match string(scope, args.get(1)) {
        None => Url::parse(&text),
        Some(base) => Url::parse(&base).and_then(|base| base.join(&text)),
    };
    if let Some(parts) = url.ok().and_then(|url| url_parts(scope, &url)) {
        rv.set(parts.into());
    }
}

/// `urlSet(href, component, value)`: the new components; undefined when the value is refused.
pub(super) fn url_set(scope: Scope<'_, '_, '_>, args: Args<'_>, mut rv: Ret<'_>) {
    let [href, which, value] = [0, 1, 2].map(|i| string(scope, args.get(i)).unwrap_or_default());
    let Ok(mut url) = Url::parse(&href) else { return };
    let done = match which.as_str() {
        "href" => quirks::set_href(&mut url, &value).map_err(|_| ()),
        "protocol" => quirks::set_protocol(&mut url, &value),
        "username" => quirks::set_username(&mut url, &value),
        "password" => quirks::set_password(&mut url, &value),
        "host" => quirks::set_host(&mut url, &value),
        "hostname" => quirks::set_hostname(&mut url, &value),
        "port" => quirks::set_port(&mut url, &value),
        "pathname" => {
            quirks::set_pathname(&mut url, &value);
            Ok(())
        }
        "search" => {
            quirks::set_search(&mut url, &value);
            Ok(())
        }
        "hash" => {
            quirks::set_hash(&mut url, &value);
            Ok(())
        }
        _ => Err(()),
    };
    if done.is_ok()
        && let Some(parts) = url_parts(scope, &url)
    {
        rv.set(parts.into());
    }
}

/// `formParse(text)`: name, value, name, value, …
pub(super) fn form_parse(scope: Scope<'_, '_, '_>, args: Args<'_>, mut rv: Ret<'_>) {
    let text = string(scope, args.get(0)).unwrap_or_default();
    let pairs = url::form_urlencoded::parse(text.as_bytes()).flat_map(|(name, value)| [name, value]);
    if let Some(list) = string_list(scope, pairs) {
        rv.set(list.into());
    }
}

/// The other way round.
pub(super) fn form_serialize(scope: Scope<'_, '_, '_>, args: Args<'_>, mut rv: Ret<'_>) {
    let Ok(list) = args.get(0).try_cast::<v8::Array>() else {
        return;
    };
    let mut out = url::form_urlencoded::Serializer::new(String::new());
    for index in (0..list.length()).step_by(2) {
        let (name, value) = (list.get_index(scope, index), list.get_index(scope, index + 1));
        let (Some(name), Some(value)) = (name, value) else {
            return;
        };
        if let (Some(name), Some(value)) = (string(scope, name), string(scope, value)) {
            out.append_pair(&name, &value);
        }
    }
    if let Some(text) = v8::String::new(scope, &out.finish()) {
        rv.set(text.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_as_forgiving_as_the_standard_says() {
        let cases: &[(&str, Option<&[u8]>)] = &[
            ("", Some(b"")),
            ("aGk=", Some(b"hi")),
            ("aGk", Some(b"hi")),
            (" a G\nk= ", Some(b"hi")),
            ("aGkh", Some(b"hi!")),
            ("aGkhIQ==", Some(b"hi!!")),
            ("a", None),
            ("aGk=a", None),
            ("a===", None),
            ("=", None),
            ("aG-_", None),
            ("/+8=", Some(&[0xff, 0xef])),
        ];
        for (text, bytes) in cases {
            assert_eq!(forgiving_decode(text).as_deref(), *bytes, "{text:?}");
        }
        for len in 0..8 {
            let bytes: Vec<u8> = (0..len).map(|i| 248 + i).collect();
            assert_eq!(forgiving_decode(&base64(&bytes)), Some(bytes));
        }
    }
}
