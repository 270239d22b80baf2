//! What a realm has and has not: globals, web classes, the console; and that nobody can reach into it, or out of it.

use super::*;

/// Every name that a realm of the language has, and every one that this runtime adds. What is not here is not there.
const GLOBALS: &str = "AbortController AbortSignal AggregateError Array ArrayBuffer AsyncDisposableStack BigInt \
    BigInt64Array BigUint64Array Boolean DOMException DataView Date DisposableStack Error EvalError Event EventTarget \
    FinalizationRegistry Float16Array Float32Array Float64Array Function Infinity Int16Array Int32Array Int8Array Intl \
    Iterator JSON Map Math NaN Number Object Promise Proxy RangeError ReferenceError Reflect RegExp Set String \
    SuppressedError Symbol SyntaxError TextDecoder TextEncoder TypeError URIError URL URLSearchParams Uint16Array \
    Uint32Array Uint8Array Uint8ClampedArray WeakMap WeakRef WeakSet atob btoa clearInterval clearTimeout console \
    crypto decodeURI decodeURIComponent encodeURI encodeURIComponent escape eval globalThis isFinite isNaN parseFloat \
    parseInt queueMicrotask setInterval setTimeout structuredClone undefined unescape";

#[tokio::test]
async fn the_realm_has_what_is_promised_and_nothing_else() {
    let seen = run("
        const chain = [];
        for (let at = globalThis; at; at = Object.getPrototypeOf(at)) {
            if (at !== Object.prototype) chain.push(...Reflect.ownKeys(at).map(String));
        }
        export default () => ({ output: chain.sort() });
    ")
    .await;
    let found: Vec<String> = serde_json::from_value(seen.output()).expect("names");
    // `Temporal` comes and goes with the build of V8; it does no harm.
    let found: Vec<&str> =
        found.iter().map(String::as_str).filter(|&name| name != "Temporal" && name != "constructor").collect();
    let expected: Vec<&str> = GLOBALS.split_whitespace().collect();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn what_must_not_work_does_not() {
    let seen = run(r#"
        const tried = {};
        const attempt = async (name, fn) => {
            try { tried[name] = ['worked', String(await fn())]; } catch (e) { tried[name] = [e.name, String(e.message)]; }
        };
        const GeneratorFunction = (function* () {}).constructor;
        const AsyncFunction = (async () => {}).constructor;
        const AsyncGeneratorFunction = (async function* () {}).constructor;
        export default async ({ ctx }) => {
            await attempt('eval', () => eval('1'));
            await attempt('indirect eval', () => (0, eval)('1'));
            await attempt('Function', () => new Function('return 1')());
            await attempt('constructor', () => (() => {}).constructor('return 1')());
            await attempt('GeneratorFunction', () => new GeneratorFunction('yield 1')().next());
            await attempt('AsyncFunction', () => AsyncFunction('return 1')());
            await attempt('AsyncGeneratorFunction', () => AsyncGeneratorFunction('yield 1')().next());
            await attempt('timer string', () => setTimeout('1'));
            for (const name of ['fs', 'data:text/javascript,export default 1', 'file:///etc/passwd', 'ext:core/ops',
                'https://example.com/x.js', './handler.js']) await attempt('import ' + name, () => import(name));
            await attempt('WebAssembly', () => WebAssembly);
            await attempt('SharedArrayBuffer', () => SharedArrayBuffer);
            await attempt('Atomics', () => Atomics);
            await attempt('Deno', () => Deno);
            await attempt('__bootstrap', () => __bootstrap);
            await attempt('process', () => process);
            await attempt('fetch', () => fetch);
            await attempt('performance', () => performance);
            await attempt('caller', () => ctx.tool.caller);
            await attempt('arguments', () => ctx.tool.arguments);
            await attempt('tool prototype', () => ctx.tool.prototype);
            await attempt('new tool', () => new ctx.tool('x'));
            await attempt('set ctx', () => { ctx.tool = 1; });
            await attempt('set log', () => { 'use strict'; ctx.log.info = 1; });
            await attempt('set state', () => { ctx.state.get = 1; });
            await attempt('set run', () => { ctx.run.trigger.origin = 'x'; });
            await attempt('structuredClone function', () => structuredClone(() => {}));
            return { output: { tried, meta: Object.keys(import.meta), url: import.meta.url ?? null } };
        };
    "#)
    .await;
    let output = seen.output();
    for (name, result) in output["tried"].as_object().expect("tried") {
        let kind = result[0].as_str().expect("a name");
        let expected = match name.as_str() {
            "eval"
            | "indirect eval"
            | "Function"
            | "constructor"
            | "GeneratorFunction"
            | "AsyncFunction"
            | "AsyncGeneratorFunction" => "EvalError",
            "tool prototype" => "worked",
            "structuredClone function" => "DataCloneError",
            "WebAssembly" | "SharedArrayBuffer" | "Atomics" | "Deno" | "__bootstrap" | "process" | "fetch"
            | "performance" => "ReferenceError",
            _ => "TypeError",
        };
        assert_eq!(kind, expected, "{name}: {result}");
    }
    assert_eq!(output["tried"]["tool prototype"][1], "undefined");
    assert_eq!(output["meta"], serde_json::json!([]));
    assert_eq!(output["url"], serde_json::Value::Null);
}

#[tokio::test]
async fn the_web_classes_work() {
    let seen = run(r#"
        const out = {};
        const check = (name, got, want) => {
            const [a, b] = [JSON.stringify(got), JSON.stringify(want)];
            if (a !== b) out[name] = [got ?? null, want];
        };
        const thrown = (fn) => { try { fn(); return null; } catch (e) { return e.name; } };
        export default async ({ ctx }) => {
            const u = new URL('../b?x=1&y=2#f', 'https://user:pw@example.com:8080/a/c');
            check('href', u.href, 'https://user:pw@example.com:8080/b?x=1&y=2#f');
            check('parts', [u.origin, u.protocol, u.username, u.password, u.host, u.hostname, u.port, u.pathname, u.search, u.hash],
                ['https://example.com:8080', 'https:', 'user', 'pw', 'example.com:8080', 'example.com', '8080', '/b', '?x=1&y=2', '#f']);
            u.searchParams.append('z', 'a b'); u.searchParams.delete('x'); u.port = ''; u.hash = '';
            check('edited', `${u}`, 'https://user:pw@example.com/b?y=2&z=a+b');
            u.search = '?q=1'; check('linked', [...u.searchParams], [['q', '1']]);
            check('json', JSON.stringify({ u }), '{"u":"https://user:pw@example.com/b?q=1"}');
            check('bad url', thrown(() => new URL('nope')), 'TypeError');
            check('canParse', [URL.canParse('x:'), URL.canParse('x'), URL.parse('x')], [true, false, null]);
            const s = new URLSearchParams([['b', '2'], ['a', '1'], ['b', '3']]);
            s.sort(); check('sorted', [s.toString(), s.size, s.get('c'), s.getAll('b'), s.has('a', '2')], ['a=1&b=2&b=3', 3, null, ['2', '3'], false]);
            s.set('b', 'é&'); check('set', `${s}`, 'a=1&b=%C3%A9%26');
            check('record', `${new URLSearchParams({ a: 1, b: 'x y' })}`, 'a=1&b=x+y');
            check('keys', [...s.keys(), ...s.values()], ['a', 'b', '1', 'é&']);
            check('utf8', [...new TextEncoder().encode('é€')], [0xc3, 0xa9, 0xe2, 0x82, 0xac]);
            check('into', new TextEncoder().encodeInto('aé€', new Uint8Array(4)), { read: 2, written: 3 });
            check('decode', new TextDecoder().decode(new Uint8Array([0xef, 0xbb, 0xbf, 0xc3, 0xa9])), 'é');
            check('latin1', new TextDecoder('latin1').encoding, 'windows-1252');
            check('fatal', thrown(() => new TextDecoder('utf-8', { fatal: true }).decode(new Uint8Array([0xff]))), 'TypeError');
            check('label', thrown(() => new TextDecoder('nope')), 'RangeError');
            const d = new TextDecoder();
            check('stream', d.decode(new Uint8Array([0xe2, 0x82]), { stream: true }) + d.decode(new Uint8Array([0xac]), { stream: true }) + d.decode(), '€');
            check('base64', [btoa('hé'), atob('aOk='), thrown(() => atob('a')), thrown(() => btoa('€'))], ['aOk=', 'hé', 'InvalidCharacterError', 'InvalidCharacterError']);
            const c = structuredClone({ a: new Map([[1, new Date(0)]]), b: [1n.toString()], e: new RangeError('x') });
            check('clone', [c.a.get(1).toISOString(), c.b, c.e.name], ['1970-01-01T00:00:00.000Z', ['1'], 'RangeError']);
            const buffer = new Uint8Array([1, 2]).buffer; const moved = structuredClone(buffer, { transfer: [buffer] });
            check('transfer', [buffer.byteLength, [...new Uint8Array(moved)]], [0, [1, 2]]);
            const loop = {}; loop.self = loop; check('cycle', structuredClone(loop).self.self !== loop, true);
            const id = crypto.randomUUID(); check('uuid', /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/.test(id), true);
            const bytes = crypto.getRandomValues(new Uint32Array(8)); check('random', bytes.some((n) => n !== 0), true);
            check('quota', [thrown(() => crypto.getRandomValues(new Uint8Array(65537))), thrown(() => crypto.getRandomValues(new Float32Array(1)))], ['QuotaExceededError', 'TypeMismatchError']);
            const order = [];
            const done = new Promise((resolve) => {
                setTimeout((a) => { order.push('t' + a); }, 2, 1); setTimeout(() => order.push('t0'), 0);
                const cancelled = setTimeout(() => order.push('never'), 1); clearTimeout(cancelled);
                queueMicrotask(() => order.push('m')); Promise.resolve().then(() => order.push('p'));
                let n = 0; const i = setInterval(() => { n += 1; if (n === 3) { clearInterval(i); order.push('i'); setTimeout(resolve, 5); } }, 3);
            });
            order.push('sync'); await done;
            check('order', order.slice(0, 4).concat(order.slice(4).sort()), ['sync', 'm', 'p', 't0', 'i', 't1']);
            const a = new AbortController(); const got = [];
            a.signal.addEventListener('abort', (e) => got.push(e.type, e.isTrusted), { once: true }); a.signal.onabort = () => got.push('on');
            const any = AbortSignal.any([a.signal, new AbortController().signal]); any.addEventListener('abort', { handleEvent() { got.push('any'); } });
            a.abort('why'); a.abort('again');
            check('abort', [got, a.signal.aborted, a.signal.reason, any.reason, AbortSignal.abort().reason.name], [['any', 'abort', true, 'on'], true, 'why', 'why', 'AbortError']);
            const timed = AbortSignal.timeout(1); await new Promise((r) => timed.addEventListener('abort', r));
            check('timeout', timed.reason.name, 'TimeoutError');
            check('throwIfAborted', [thrown(() => timed.throwIfAborted()), thrown(() => new AbortSignal())], ['TimeoutError', 'TypeError']);
            const t = new EventTarget(); let seen = 0; const l = () => { seen += 1; };
            t.addEventListener('x', l); t.addEventListener('x', l); t.dispatchEvent(new Event('x')); t.removeEventListener('x', l); t.dispatchEvent(new Event('x'));
            check('event target', seen, 1);
            const e = new DOMException('m', 'DataCloneError');
            check('domexception', [e instanceof Error, e.code, `${e}`, Object.prototype.toString.call(e)], [true, 25, 'DataCloneError: m', '[object DOMException]']);
            check('intl', new Intl.NumberFormat('de-DE').format(1234.5), '1.234,5');
            check('zone', [new Intl.DateTimeFormat().resolvedOptions().timeZone, new Date(0).getHours()], ['UTC', 0]);
            check('toString', [`${ctx}`, typeof ctx.state.toString()], ['[object Object]', 'string']);
            return { output: out };
        };
    "#)
    .await;
    assert_eq!(seen.output(), serde_json::json!({}), "differences: [got, wanted]");
}

#[tokio::test]
async fn console_and_log_go_to_the_log() {
    let seen = run(r#"
        export default ({ log, ctx }) => {
            console.log('a', 1, { b: [1, 'x'], c: new Map([['k', null]]), u: new URL('x:/'), d: undefined, f() {} }, null, 5n, Symbol('s'));
            console.debug('%s is %d%%', 'x', 5, 'rest'); console.warn('w'); console.error(new Error('boom').message);
            console.assert(true, 'no'); console.assert(false, 'yes');
            log.warn({ plain: true }); ctx.log.error('e', 5); log.info('cyclic', (() => { const o = {}; o.o = o; return o; })());
            console.log(new Proxy({}, { get() { throw 1; } }), { get trap() { throw 1; } });
            log.info({ toString() { throw 1; } });
        };
    "#)
    .await;
    let lines: Vec<String> = seen
        .logs
        .iter()
        .map(|l| {
            format!("{} {}{}", l.level, l.message, l.fields_json.as_deref().map_or(String::new(), |f| format!(" {f}")))
        })
        .collect();
    assert_eq!(
        lines,
        [
            "info a 1 { b: [1, \"x\"], c: Map(1) {\"k\" => null}, u: x:/, d: undefined, f: [Function: f] } null 5n Symbol(s)",
            "info x is 5% rest",
            "warn w",
            "error boom",
            "error Assertion failed: yes",
            "warn { plain: true }",
            "error e 5",
            "info cyclic \"{ o: [Circular] }\"",
            "info [Proxy] { trap: [Getter] }",
            "info { toString: [Function: toString] }",
        ]
    );
    assert_eq!(seen.end.outcome, Outcome::Settled { summary: None, output_json: None });
}

#[tokio::test]
async fn patched_intrinsics_neither_see_nor_forge() {
    let seen = run(r#"
        let spied = '';
        const note = (what) => { spied += what + ' '; };
        const spy = (what) => () => note(what);
        const apply = Reflect.apply;
        export default async ({ ctx, log }) => {
            const original = Promise.prototype.then;
            Promise.prototype.then = function (a, b) { note('then'); return apply(original, this, [a, b]); };
            Object.defineProperty(Promise.prototype, 'constructor', { get() { note('constructor'); return function Forged(e) { e(() => {}, () => {}); }; } });
            Object.defineProperty(Promise, Symbol.species, { get() { note('species'); throw new Error('species'); } });
            JSON.stringify = spy('stringify'); JSON.parse = spy('parse');
            Array.prototype.push = spy('push'); Array.prototype.map = spy('map'); Array.prototype.join = spy('join');
            Function.prototype.call = spy('call'); Function.prototype.apply = spy('apply'); Function.prototype.bind = spy('bind');
            Reflect.apply = spy('reflect'); Reflect.get = spy('get'); String.prototype.slice = spy('slice'); Map.prototype.get = spy('mapget');
            Object.keys = spy('keys'); Object.freeze = spy('freeze'); Error.captureStackTrace = spy('capture');
            for (const name of ['op', 'sql', 'params', 'tx', 'name', 'args', 'value', 'get', 'set', 'id', 'code', 'path', 'message', 'stack', 'summary', 'output', '0', '1', '2', 'next', 'type', 'callback']) {
                Object.defineProperty(Object.prototype, name, { __proto__: null, configurable: true, set(v) { note('setter:' + name); }, get() { return undefined; } });
            }
            Array.prototype[Symbol.iterator] = function* () { note('iterator'); };
            globalThis.setTimeout = spy('setTimeout'); Error.prepareStackTrace = (e, sites) => { note('sites'); return sites; };
            const p = ctx.tool('t', { __proto__: null, x: 'secret' });
            ctx.state.set('k', 1); ctx.runs.last(); log.info('m', { a: 1 }); console.log('c', [1]);
            const e = ctx.tool('fail');
            await new Promise((resolve) => { queueMicrotask(resolve); });
            const stack = new Error('x').stack;
            return { summary: 's', output: { spied, stack: typeof stack } };
        };
    "#)
    .await;
    // `await` on our own promises is not done here, since it asks for `constructor` by the language's own rules; nothing
    // of the runtime may have touched what was patched.
    let Outcome::Settled { summary, output_json } = &seen.end.outcome else { panic!("{:?}", seen.end.outcome) };
    assert_eq!(summary.as_deref(), Some("s"));
    let output: serde_json::Value = serde_json::from_str(output_json.as_deref().expect("output")).expect("JSON");
    let spied: Vec<&str> = output["spied"].as_str().expect("a text").split_whitespace().collect();
    assert!(
        spied.iter().all(|&what| matches!(what, "constructor" | "then" | "species")),
        "the runtime was seen: {spied:?}"
    );
    assert_eq!(output["stack"], "string");
    let names: Vec<String> =
        seen.abandoned.iter().flat_map(|(_, calls)| calls).map(|call| format!("{:?}", call.body)).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert_eq!(names[0], r#"Tool { name: "t", args_json: "{\"x\":\"secret\"}" }"#);
    assert_eq!(seen.messages()[..2], ["m", "c [1]"]);
}

#[tokio::test]
async fn nothing_of_one_run_is_left_for_the_next() {
    let pool = pool_with(1, 1, Limits::default());
    let source = "export default () => {
        const before = [globalThis.left, Object.prototype.left, Array.prototype.left, JSON.left].map((v) => v ?? null);
        globalThis.left = Object.prototype.left = Array.prototype.left = JSON.left = 1; Promise.prototype.then = null;
        return { output: before } }";
    for _ in 0..4 {
        let seen = run_in(&pool, job(source)).await;
        assert_eq!(seen.output(), serde_json::json!([null, null, null, null]));
    }
    assert_eq!(pool.stats().spawned_total, 1, "all in one host");
    pool.shutdown().await;
}

#[tokio::test]
async fn chance_differs_between_runs_and_hosts() {
    let mut seen = std::collections::HashSet::new();
    for _ in 0..2 {
        let pool = pool_with(1, 1, Limits::default());
        for _ in 0..3 {
            let source = "export default () => ({ output: [Math.random(), crypto.randomUUID()] })";
            let output = run_in(&pool, job(source)).await.output();
            for value in output.as_array().expect("a list") {
                assert!(seen.insert(value.to_string()), "{value} twice");
            }
        }
        pool.shutdown().await;
    }
}
