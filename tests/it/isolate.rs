//! Handlers in their hosts, through the pool: what an isolate has and has not, what hostile code comes to, and what
//! the daemon is told.

mod depth;
mod statements;
mod unsent;

use std::path::PathBuf;
use std::sync::Arc;

use dirigent::fire::{CallError, CtxCall, CtxCallBody, CtxReply, ErrorCode, LogLevel, LogLine};
use dirigent::isolate::wire::{self, FromHost};
use dirigent::isolate::{Job, JobEnd, JobEvent, JobKind, Limits, Outcome, Pool, PoolConfig, RunningJob};

const MIB: u64 = 1 << 20;

fn pool_with(warm: usize, max_hosts: usize, limits: Limits) -> Pool {
    Pool::start(PoolConfig { program: PathBuf::from(env!("CARGO_BIN_EXE_dirigent")), warm, max_hosts, limits })
}

fn pool() -> Pool {
    pool_with(1, 2, Limits::default())
}

fn job(source: &str) -> Job {
    Job {
        script_name: "app/auto/handler.js".into(),
        source: Arc::from(source),
        source_sha256: String::new(),
        kind: JobKind::Automation {
            run_json: r#"{"id":"r1","automationId":"auto","appId":"app","attempt":1,"trigger":{"origin":"manual"}}"#
                .into(),
        },
        input_json: None,
        cpu_ms: None,
    }
}

/// What a run did, and how it ended.
struct Seen {
    logs: Vec<LogLine>,
    /// Each batch of calls, with its tick.
    batches: Vec<(Option<u32>, Vec<CtxCall>)>,
    /// The same of calls that were never sent.
    abandoned: Vec<(Option<u32>, Vec<CtxCall>)>,
    end: JobEnd,
}

impl Seen {
    fn messages(&self) -> Vec<&str> {
        self.logs.iter().map(|line| line.message.as_str()).collect()
    }

    fn failure(&self) -> (ErrorCode, &str) {
        match &self.end.outcome {
            Outcome::Failed { code, message, .. } => (*code, message),
            other => panic!("not a failure: {other:?}, logs {:?}", self.messages()),
        }
    }

    fn output(&self) -> serde_json::Value {
        match &self.end.outcome {
            Outcome::Settled { output_json: Some(json), .. } => serde_json::from_str(json).expect("output is JSON"),
            other => panic!("no output: {other:?}, logs {:?}", self.messages()),
        }
    }
}

/// Follows a job to its end; `answer` says what a call comes to, `None` leaves it open.
async fn follow(mut running: RunningJob, mut answer: impl FnMut(&CtxCall) -> Option<CtxReply>) -> Seen {
    let (mut logs, mut batches, mut abandoned) = (Vec::new(), Vec::new(), Vec::new());
    let mut end = None;
    while let Some(event) = running.events.recv().await {
        assert!(end.is_none(), "an event after the end: {event:?}");
        match event {
            JobEvent::Batch { logs: more, calls, tick } => {
                assert!(abandoned.is_empty(), "a batch after abandoned calls: {more:?} {calls:?}");
                logs.extend(more);
                let replies: Vec<_> = calls.iter().filter_map(|call| Some((call.id, answer(call)?))).collect();
                if !calls.is_empty() {
                    batches.push((tick, calls));
                }
                running.control.reply(replies);
            }
            JobEvent::Abandoned { calls, tick } => abandoned.push((tick, calls)),
            JobEvent::Ended(ended) => end = Some(ended),
        }
    }
    Seen { logs, batches, abandoned, end: end.expect("a job ends") }
}

/// A tool that gives back its arguments; state that is empty; an invoke of nothing.
fn echo(call: &CtxCall) -> Option<CtxReply> {
    Some(match &call.body {
        CtxCallBody::Tool { name, .. } if name == "fail" => {
            Err(CallError { code: "tool_failed".into(), message: "no luck".into(), path: Some("args.x".into()) })
        }
        CtxCallBody::Tool { name, .. } if name == "hang" => return None,
        CtxCallBody::Tool { args_json, .. } => Ok(Some(args_json.clone())),
        CtxCallBody::Agent { .. } => Ok(Some("\"an answer\"".into())),
        CtxCallBody::Invoke { handle, input_json } => Ok(Some(format!(
            r#"{{"output":{{"handle":"{handle}","input":{}}},"childRunId":"c1"}}"#,
            input_json.as_deref().unwrap_or("null")
        ))),
        CtxCallBody::RunsList { .. } => Ok(Some(r#"[{"runId":"b"},{"runId":"a"}]"#.into())),
        _ => Ok(None),
    })
}

async fn run_in(pool: &Pool, job: Job) -> Seen {
    follow(pool.run(job).await.expect("a host"), echo).await
}

async fn run(source: &str) -> Seen {
    let pool = pool();
    let seen = run_in(&pool, job(source)).await;
    pool.shutdown().await;
    seen
}

#[tokio::test]
async fn a_trivial_handler_settles() {
    let seen = run("export default async ({ log, input }) => { log.info('hi', { a: 1 }); return { summary: 'done', output: { input: input ?? null } } }").await;
    assert_eq!(
        seen.end.outcome,
        Outcome::Settled { summary: Some("done".into()), output_json: Some(r#"{"input":null}"#.into()) }
    );
    assert_eq!(seen.messages(), ["hi"]);
    assert_eq!(seen.logs[0].level, LogLevel::Info);
    assert_eq!(seen.logs[0].fields_json.as_deref(), Some(r#"{"a":1}"#));
}

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
async fn ctx_calls_cross_as_they_are_documented() {
    let mut with_input = job(r#"
        const failed = async (p) => { try { await p; return 'fine'; } catch (e) { return [e.name, e.message, e.code ?? null, e.path ?? null]; } };
        export default async ({ ctx, input, log }) => ({ output: {
            same: ctx.input === input, run: ctx.run, log: ctx.log === log,
            tool: await ctx.tool('t', JSON.parse('{"__proto__": {"x": 1}, "a": [1, null]}')),
            own: Object.hasOwn(await ctx.tool('t', JSON.parse('{"__proto__": 1}')), '__proto__'),
            none: await ctx.tool('t'), empty: await ctx.tool('t', null),
            agent: await ctx.agent({ prompt: 'p' }),
            invoke: await ctx.invoke('app/other', { input: [1] }), bare: await ctx.invoke('other'),
            get: [await ctx.state.get('k')].map((v) => v === undefined), set: (await ctx.state.set('k', undefined)) ?? null,
            del: [await ctx.state.del('k'), await ctx.state.delete('k')].length,
            last: await ctx.runs.last({ status: 'ok' }), list: (await ctx.runs.list()).length,
            fail: await failed(ctx.tool('fail')),
            bigint: await failed(ctx.tool('t', { a: 1n })), cyclic: (await failed(ctx.tool('t', (() => { const o = {}; o.o = o; return o; })())))[0],
            array: await failed(ctx.tool('t', [1])), name: await failed(ctx.tool(5)), key: await failed(ctx.state.get(1)),
            fn: await failed(ctx.state.set('k', () => {})), agentless: await failed(ctx.agent('x')), getter: await failed(ctx.tool('t', { get a() { throw new RangeError('mine'); } })),
            unknown: await failed((async () => ctx.fetch('x'))()), unknownState: await failed((async () => ctx.state.put)()),
            then: [ctx.then ?? null, ctx[Symbol.iterator] ?? null, JSON.stringify(ctx.state)], has: 'tool' in ctx,
        } });
    "#);
    with_input.input_json = Some(r#"{"__proto__":1,"n":[1.5,"é"]}"#.into());
    let pool = pool();
    let seen = run_in(&pool, with_input).await;
    let output = seen.output();
    let expected = serde_json::json!({
        "same": true, "log": true,
        "run": {"id": "r1", "automationId": "auto", "appId": "app", "attempt": 1, "trigger": {"origin": "manual"}},
        "tool": {"__proto__": {"x": 1}, "a": [1, null]}, "own": true, "none": {}, "empty": {},
        "agent": "an answer",
        "invoke": {"output": {"handle": "app/other", "input": [1]}, "childRunId": "c1"},
        "bare": {"output": {"handle": "other", "input": null}, "childRunId": "c1"},
        "get": [true], "set": null, "del": 2, "last": {"runId": "b"}, "list": 2,
        "fail": ["Error", "no luck", "tool_failed", "args.x"],
        "bigint": ["TypeError", "Do not know how to serialize a BigInt", null, null], "cyclic": "TypeError",
        "array": ["TypeError", "ctx.tool(name, args): args must be an object", null, null],
        "name": ["TypeError", "ctx.tool(name, args): name must be a non-empty string", null, null],
        "key": ["TypeError", "ctx.state.get(key): the key must be a string", null, null],
        "fn": ["TypeError", "ctx.state.set(key, value): a function or symbol cannot be stored", null, null],
        "agentless": ["TypeError", "ctx.agent({ prompt, json? }): an object is needed", null, null],
        "getter": ["RangeError", "mine", null, null],
        "unknown": ["TypeError", "ctx.fetch does not exist; ctx has: tool, agent, state, runs, invoke, run, input, abortSignal, log", null, null],
        "unknownState": ["TypeError", "ctx.state.put does not exist; ctx.state has: get, set, delete, del", null, null],
        "then": [null, null, "{}"], "has": true,
    });
    for (key, value) in expected.as_object().expect("an object") {
        assert_eq!(&output[key], value, "{key}");
    }
    let bodies: Vec<&CtxCallBody> = seen.batches.iter().flat_map(|(_, calls)| calls).map(|call| &call.body).collect();
    assert!(bodies.contains(&&CtxCallBody::StateSet { key: "k".into(), value_json: "null".into() }));
    assert!(bodies.contains(&&CtxCallBody::RunsList { filter_json: Some(r#"{"status":"ok","limit":1}"#.into()) }));
    assert!(bodies.contains(&&CtxCallBody::Agent { args_json: r#"{"prompt":"p"}"#.into() }));
    assert_eq!(
        dirigent::isolate::CTX_MEMBERS.join(", "),
        "tool, agent, state, runs, invoke, run, input, abortSignal, log"
    );
    pool.shutdown().await;
}

#[tokio::test]
async fn calls_of_one_tick_come_together() {
    let seen = run(r#"
        export default async ({ ctx, log }) => {
            await Promise.all([ctx.tool('a'), Promise.resolve().then(() => ctx.tool('b')), ctx.tool('c')]);
            log.info('between');
            await ctx.tool('d');
            await Promise.all(Array.from({ length: 600 }, (_, i) => ctx.tool('many', { i })));
        };
    "#)
    .await;
    let names = |calls: &[CtxCall]| -> Vec<String> {
        calls
            .iter()
            .map(|call| match &call.body {
                CtxCallBody::Tool { name, .. } => name.clone(),
                other => format!("{other:?}"),
            })
            .collect()
    };
    assert_eq!(names(&seen.batches[0].1), ["a", "c", "b"]);
    assert_eq!(names(&seen.batches[1].1), ["d"]);
    assert!(seen.batches[0].0.is_some() && seen.batches[1].0.is_none());
    let many: Vec<_> = seen.batches.iter().filter(|(_, calls)| names(calls)[0] == "many").collect();
    assert_eq!(many[0].1.len(), 256, "as many as may be in flight");
    assert!(many.iter().all(|(tick, _)| tick.is_some() && *tick == many[0].0 && *tick != seen.batches[0].0));
    let order: Vec<u32> = many.iter().flat_map(|(_, calls)| calls.iter().map(|call| call.id)).collect();
    assert_eq!(order.len(), 600);
    assert!(order.is_sorted());
    assert!(matches!(seen.end.outcome, Outcome::Settled { .. }));
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
async fn queries_and_actions_get_a_database() {
    let pool = pool();
    let source = r#"
        const failed = async (p) => { try { await p; return 'fine'; } catch (e) { return [e.message, e.code ?? null]; } };
        export default async ({ db, log, app, input, query, body }, second) => {
            const get = await db.prepare('select ?').get(1, 'x');
            const named = await db.prepare('select :a').all({ a: 1 });
            await db.prepare('insert').run(); await db.exec('vacuum');
            let leaked;
            const result = await db.transaction(async (tx) => { leaked = tx; await tx.prepare('in tx').run(5); return 'committed'; });
            const rolled = await failed(db.transaction(async (tx) => { await tx.exec('bad'); throw new RangeError('undo'); }));
            const nested = await failed(db.transaction((tx) => tx.transaction(async () => {})));
            const late = await failed(leaked.exec('late'));
            return { get, named, result, rolled, nested, late, app, same: second === input, query: query === input, body: body === input, input };
        };
    "#;
    for (kind, is_query) in [
        (JobKind::Query { app: "shop".into(), name: "q".into() }, true),
        (JobKind::Action { app: "shop".into(), name: "a".into() }, false),
    ] {
        let mut sent = Vec::new();
        let running =
            pool.run(Job { kind, input_json: Some("{\"i\":1}".into()), ..job(source) }).await.expect("a host");
        let seen = follow(running, |call| {
            let CtxCallBody::Db { args_json } = &call.body else { panic!("{call:?}") };
            let args: serde_json::Value = serde_json::from_str(args_json).expect("JSON");
            sent.push(args_json.clone());
            Some(match args["op"].as_str().expect("op") {
                "get" => Ok(Some("{\"n\":1}".into())),
                "all" => Ok(Some("[]".into())),
                _ => Ok(None),
            })
        })
        .await;
        let Outcome::Returned { value_json: Some(json) } = &seen.end.outcome else { panic!("{:?}", seen.end.outcome) };
        let value: serde_json::Value = serde_json::from_str(json).expect("JSON");
        assert_eq!(
            value,
            serde_json::json!({
                "get": {"n": 1}, "named": [], "result": "committed", "rolled": ["undo", null],
                "nested": ["tx.transaction: a transaction inside a transaction is not possible", null],
                "late": ["tx: the transaction is over", null],
                "app": "shop", "same": true, "query": is_query, "body": !is_query, "input": {"i": 1},
            })
        );
        assert_eq!(
            sent,
            [
                r#"{"op":"get","sql":"select ?","params":[1,"x"]}"#,
                r#"{"op":"all","sql":"select :a","params":{"a":1}}"#,
                r#"{"op":"run","sql":"insert"}"#,
                r#"{"op":"exec","sql":"vacuum"}"#,
                r#"{"op":"begin","tx":1}"#,
                r#"{"op":"run","sql":"in tx","params":[5],"tx":1}"#,
                r#"{"op":"commit","tx":1}"#,
                r#"{"op":"begin","tx":2}"#,
                r#"{"op":"exec","sql":"bad","tx":2}"#,
                r#"{"op":"rollback","tx":2}"#,
                r#"{"op":"begin","tx":3}"#,
                r#"{"op":"rollback","tx":3}"#,
            ]
        );
    }
    let big = Job {
        kind: JobKind::Query { app: "a".into(), name: "q".into() },
        ..job("export default () => 'x'.repeat(17 << 20)")
    };
    assert_eq!(run_in(&pool, big).await.failure().0, ErrorCode::BadOutput);
    pool.shutdown().await;
}

#[tokio::test]
async fn failures_have_their_code_and_place() {
    use ErrorCode::{BadOutput, HandlerLoad, HandlerThrew, NeverSettled, NoDefaultExport};
    let cases: &[(&str, ErrorCode, &str)] = &[
        (
            "export default () => {\n  throw new Error('boom');\n}",
            HandlerThrew,
            "boom\n    at default (app/auto/handler.js:2:9)",
        ),
        (
            "export default async () => { await null; null.x }",
            HandlerThrew,
            "TypeError: Cannot read properties of null (reading 'x')\n    at default (app/auto/handler.js:1:47)",
        ),
        ("export default () => { throw null }", HandlerThrew, "null"),
        ("export default () => { throw undefined }", HandlerThrew, "undefined"),
        ("export default () => { throw 'text' }", HandlerThrew, "text"),
        ("export default () => { throw Symbol('s') }", HandlerThrew, "Symbol(s)"),
        (
            "export default () => { throw { toString() { throw 1 }, get message() { throw 2 } } }",
            HandlerThrew,
            "{ toString: [Function: toString], message: [Getter] }",
        ),
        (
            "export default () => { throw new Proxy({}, { get() { throw 1 }, getPrototypeOf() { throw 2 } }) }",
            HandlerThrew,
            "[Proxy]",
        ),
        (
            "export default () => { const e = new Error('x'); Object.defineProperty(e, 'stack', { get() { throw 1 } }); throw e }",
            HandlerThrew,
            "x",
        ),
        (
            "export default () => Promise.reject(new DOMException('m', 'AbortError'))",
            HandlerThrew,
            "AbortError: m\n    at default (app/auto/handler.js:1:37)",
        ),
        (
            "export default ({ ctx }) => ctx.tool('fail')",
            HandlerThrew,
            "no luck\n    at default (app/auto/handler.js:1:33)",
        ),
        ("export default { then(resolve) {} }", NoDefaultExport, "the default export is not a function"),
        ("export default 5", NoDefaultExport, "the default export is not a function"),
        (
            "export const a = 1",
            NoDefaultExport,
            "the module has no default export; write `export default async ({ ctx, log, input }) => {…}`",
        ),
        (
            "",
            NoDefaultExport,
            "the module has no default export; write `export default async ({ ctx, log, input }) => {…}`",
        ),
        (
            "export default async () => {\n  await 5 5;\n}",
            HandlerLoad,
            "SyntaxError: Unexpected number\n    at app/auto/handler.js:2:11",
        ),
        ("throw new Error('top')", HandlerLoad, "top\n    at app/auto/handler.js:1:7"),
        ("await null; throw new RangeError('late')", HandlerLoad, "RangeError: late\n    at app/auto/handler.js:1:19"),
        (
            "await new Promise(() => {}); export default () => {}",
            NeverSettled,
            "the handler's promise can never settle: no call and no timer is left that could",
        ),
        (
            "export default () => new Promise(() => {})",
            NeverSettled,
            "the handler's promise can never settle: no call and no timer is left that could",
        ),
        (
            "export default () => ({ then() {} })",
            NeverSettled,
            "the handler's promise can never settle: no call and no timer is left that could",
        ),
        (
            "\nimport fs from 'node:fs'; export default () => {}",
            HandlerLoad,
            "import of \"node:fs\" is not possible: a handler is one module and imports nothing\n    at app/auto/handler.js:2:16",
        ),
        (
            "export * from './other.js'",
            HandlerLoad,
            "import of \"./other.js\" is not possible: a handler is one module and imports nothing\n    at app/auto/handler.js:1:15",
        ),
        (
            "export default () => ({ output: 1n })",
            BadOutput,
            "output is not JSON: TypeError: Do not know how to serialize a BigInt",
        ),
        ("export default () => ({ output: () => {} })", BadOutput, "output is a function, which JSON has no form for"),
        ("export default () => ({ get output() { throw new Error('g') } })", BadOutput, "output is not JSON: g"),
        (
            "export default () => ({ output: 'x'.repeat(1 << 20) })",
            BadOutput,
            "output is 1048578 bytes of JSON; the limit is 1048576",
        ),
    ];
    let pool = pool();
    for (source, code, message) in cases {
        let seen = run_in(&pool, job(source)).await;
        let (got_code, got) = seen.failure();
        assert_eq!(got_code, *code, "{source}: {got}");
        let is_prefix = got.strip_prefix(message).is_some_and(|rest| rest.is_empty() || rest.starts_with("\n    at "));
        assert!(is_prefix, "{source}\n got: {got:?}\nwant: {message:?}");
        assert!(!got.contains("dirigent:") && !got.contains("ext:") && !got.contains("file:"), "{got}");
    }
    let coded = run_in(&pool, job("export default ({ ctx }) => ctx.tool('fail')")).await;
    assert!(matches!(coded.end.outcome, Outcome::Failed { error_code: Some(ref code), .. } if code == "tool_failed"));
    pool.shutdown().await;
}

#[tokio::test]
async fn what_is_returned_is_taken_as_far_as_it_goes() {
    let long = format!("({{ summary: '{}é' + 'x'.repeat(10) }})", "y".repeat(4095));
    let cases: &[(&str, Option<&str>, Option<&str>)] = &[
        ("undefined", None, None),
        ("null", None, None),
        ("5", None, None),
        ("[1]", None, None),
        ("'text'", None, None),
        ("({ summary: 5, output: undefined })", None, None),
        ("({ summary: 's', output: null })", Some("s"), Some("null")),
        ("({ output: JSON.parse('{\"__proto__\": 1}') })", None, Some("{\"__proto__\":1}")),
        ("Object.create({ summary: 'inherited' })", Some("inherited"), None),
        ("({ then(resolve) { resolve({ summary: 'thenable' }) } })", Some("thenable"), None),
        ("({ get summary() { throw 1 }, output: 1 })", None, Some("1")),
    ];
    let pool = pool();
    for (value, summary, output) in cases {
        for source in [format!("export default () => {value}"), format!("export default async () => {value}")] {
            let seen = run_in(&pool, job(&source)).await;
            let expected = Outcome::Settled { summary: summary.map(Into::into), output_json: output.map(Into::into) };
            assert_eq!(seen.end.outcome, expected, "{source}");
        }
    }
    let seen = run_in(&pool, job(&format!("export default () => {long}"))).await;
    assert_eq!(seen.end.outcome, Outcome::Settled { summary: Some("y".repeat(4095)), output_json: None });
    pool.shutdown().await;
}

#[tokio::test]
async fn nothing_runs_after_the_end() {
    let seen = run(r#"
        export default async ({ ctx, log }) => {
            await null;
            (async () => { for (;;) await null; })();
            Promise.resolve().then(() => Promise.resolve()).then(() => Promise.resolve()).then(() => { for (;;); });
            setTimeout(() => log.info('never'), 0); setInterval(() => ctx.tool('never'), 1);
            return { summary: 'early' };
        };
    "#)
    .await;
    assert_eq!(seen.end.outcome, Outcome::Settled { summary: Some("early".into()), output_json: None });
    assert!(seen.logs.is_empty() && seen.batches.is_empty());
    assert!(seen.end.cpu_ms < 5000);
}

#[tokio::test]
async fn stray_errors_are_logged_and_do_not_fail_the_run() {
    let seen = run(r#"
        export default async ({ ctx }) => {
            Promise.reject(new Error('stray')); const late = Promise.reject(new Error('handled')); late.catch(() => {});
            setTimeout(() => { throw new Error('in timer'); }, 1); queueMicrotask(() => { throw 'in microtask'; });
            ctx.abortSignal.addEventListener('x', () => { throw new Error('in listener'); }); ctx.abortSignal.dispatchEvent(new Event('x'));
            await new Promise((r) => setTimeout(r, 5));
        };
    "#)
    .await;
    let firsts: Vec<&str> = seen.messages().iter().map(|m| m.lines().next().unwrap_or_default()).collect();
    assert_eq!(
        firsts,
        [
            "uncaught exception in a listener of x: Error: in listener",
            "uncaught exception in queueMicrotask: in microtask",
            "unhandled promise rejection: Error: stray",
            "uncaught exception in setTimeout: Error: in timer",
        ]
    );
    assert!(seen.logs.iter().all(|line| line.level == LogLevel::Error));
    assert!(matches!(seen.end.outcome, Outcome::Settled { .. }));
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

#[tokio::test]
async fn compiled_code_is_reused_and_still_the_same() {
    let pool = pool_with(1, 1, Limits::default());
    let padding: String = (0..200).map(|n| format!("function f{n}(x) {{ return x + {n}; }}\n")).collect();
    let source = format!("{padding}export default ({{ input }}) => ({{ output: f7(input) }})");
    for n in 0..4 {
        let cached = Job { source_sha256: "abc".into(), input_json: Some(n.to_string()), ..job(&source) };
        assert_eq!(run_in(&pool, cached).await.output(), serde_json::json!(n + 7));
    }
    pool.shutdown().await;
}

#[tokio::test]
async fn check_compiles_and_runs_nothing() {
    let pool = pool();
    let cases = [
        ("throw 1; export default () => {}", None),
        ("for (;;); export default 5", None),
        ("export const a = 1", Some(ErrorCode::NoDefaultExport)),
        ("export default {", Some(ErrorCode::HandlerLoad)),
        ("import 'x'; export default () => {}", Some(ErrorCode::HandlerLoad)),
    ];
    for (source, expected) in cases {
        let seen = run_in(&pool, Job { kind: JobKind::Check, ..job(source) }).await;
        match (expected, &seen.end.outcome) {
            (None, Outcome::Returned { value_json: None }) => {}
            (Some(code), Outcome::Failed { code: got, .. }) if code == *got => {}
            (_, other) => panic!("{source}: {other:?}"),
        }
    }
    pool.shutdown().await;
}

#[tokio::test]
async fn logs_are_bounded_by_lines_and_bytes() {
    let pool = pool();
    let lines =
        run_in(&pool, job("export default ({ log }) => { for (let i = 0; i < 20000; i++) log.info(`${i}`) }")).await;
    assert_eq!(lines.logs.len(), 10_001);
    assert!(lines.logs[10_000].message.starts_with("log truncated"));
    let bytes =
        run_in(&pool, job("export default ({ log }) => { for (let i = 0; i < 50; i++) log.info('x'.repeat(60000)); }"))
            .await;
    assert!(bytes.logs.iter().map(|line| line.message.len()).sum::<usize>() <= (1 << 20) + 200);
    assert!(bytes.logs.last().expect("one").message.starts_with("log truncated"));
    pool.shutdown().await;
}

/// Less of everything, so that each case is over soon; the proportions are those of the defaults.
fn small_limits() -> Limits {
    Limits { heap_bytes: 48 * MIB, external_bytes: 64 * MIB, cpu_ms: 5_000, ..Limits::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_code_costs_its_own_run_and_no_more() {
    use ErrorCode::{CpuLimit, HandlerThrew, MemoryLimit};
    let wrap = |body: &str| format!("export default async ({{ ctx, log }}) => {{ {body} }}");
    let cases: &[(&str, &[ErrorCode])] = &[
        ("for (;;) {}", &[CpuLimit]),
        ("while (true) await null", &[CpuLimit]),
        ("try { for (;;) {} } finally { for (;;) {} }", &[CpuLimit]),
        ("const spin = () => queueMicrotask(spin); spin(); await new Promise(() => {})", &[CpuLimit]),
        ("/^(a+)+$/.test('a'.repeat(40) + 'b')", &[CpuLimit]),
        ("return { get output() { for (;;); } }", &[CpuLimit]),
        ("throw { get message() { for (;;); } }", &[CpuLimit]),
        ("return { toJSON() {}, output: { toJSON() { for (;;); } } }", &[CpuLimit]),
        ("[...Array(1e6).keys()].sort(() => { for (;;); })", &[CpuLimit]),
        ("Array(1e9).fill(0)", &[MemoryLimit, CpuLimit]),
        ("new Array(1e8).fill(0)", &[MemoryLimit, CpuLimit]),
        ("const m = new Map(); for (let i = 0; ; i++) m.set(i, {})", &[MemoryLimit]),
        ("const s = new Set(); for (let i = 0; ; i++) s.add('k' + i)", &[MemoryLimit]),
        (
            "let s = 'x'; for (;;) { s += s; s.charCodeAt(s.length - 1); globalThis.all = [globalThis.all, s.split('')] }",
            &[MemoryLimit, HandlerThrew],
        ),
        ("const a = []; for (;;) a.push({ a: [1, 2, 3] })", &[MemoryLimit]),
        ("const a = []; for (;;) { a.push('x'.repeat(1e6) + a.length); a.at(-1).indexOf('y') }", &[MemoryLimit]),
        ("const a = []; for (;;) a.push(new ArrayBuffer(1e6))", &[MemoryLimit]),
        ("new Uint8Array(2e9)", &[MemoryLimit, HandlerThrew]),
        (
            "const a = []; for (;;) { const b = new ArrayBuffer(1e5, { maxByteLength: 1e8 }); b.resize(1e8); new Uint8Array(b).fill(1); a.push(b) }",
            &[MemoryLimit, HandlerThrew],
        ),
        ("const a = []; for (;;) { a.push(Promise.reject(new Error(a.length))) }", &[MemoryLimit]),
        ("for (;;) { ctx.tool('x', { big: 'y'.repeat(1e6) }) }", &[MemoryLimit]),
        ("for (;;) { new Promise((r) => setTimeout(r, 1e6)) }", &[MemoryLimit, CpuLimit]),
        (
            "const d = []; for (;;) { const t = new TextDecoder(); t.decode(new Uint8Array(3), { stream: true }); d.push(t) }",
            &[MemoryLimit, CpuLimit],
        ),
        ("const f = () => f() + 1; f()", &[HandlerThrew]),
        ("let o = {}; for (let i = 0; i < 1e6; i++) o = { o }; return { output: o }", &[ErrorCode::BadOutput]),
        ("JSON.parse('['.repeat(1e7))", &[HandlerThrew, MemoryLimit]),
        ("'x'.repeat(2 ** 30)", &[HandlerThrew]),
        ("const a = []; for (;;) a.push(structuredClone(new Uint8Array(1e6)))", &[MemoryLimit]),
        ("new TextEncoder().encode('x'.repeat(5e8))", &[MemoryLimit, HandlerThrew]),
        ("const h = {}; for (let i = 0; ; i++) h['k' + i] = i", &[MemoryLimit, CpuLimit]),
        ("log.info('before'); 'a'.repeat(2 ** 28).split('')", &[MemoryLimit, HandlerThrew]),
    ];
    let pool = pool_with(2, 3, small_limits());
    for (body, allowed) in cases {
        let started = std::time::Instant::now();
        // What only CPU time can end need not use much of it.
        let cpu_ms = (*allowed == [CpuLimit]).then_some(200);
        let seen = run_in(&pool, Job { cpu_ms, ..job(&wrap(body)) }).await;
        let (code, message) = seen.failure();
        println!(
            "{code:14} {:5} ms cpu {:5} ms peak {:4} MiB  {body}",
            started.elapsed().as_millis(),
            seen.end.cpu_ms,
            seen.end.peak_bytes.unwrap_or(0) / MIB
        );
        assert!(allowed.contains(&code), "{body}: {code} {message}");
        if let Some(peak) = seen.end.peak_bytes {
            assert!(peak < 600 * MIB, "{body}: {} MiB", peak / MIB);
        }
    }
    // The pool is as good as new.
    let seen = run_in(&pool, job("export default () => ({ summary: 'fine' })")).await;
    assert!(matches!(seen.end.outcome, Outcome::Settled { .. }));
    pool.shutdown().await;
}

#[tokio::test]
async fn a_big_literal_does_not_outlive_its_limit() {
    let pool = pool_with(1, 1, small_limits());
    let source = format!("export default () => [{}]", "[1,2,{a:1}],".repeat(80_000));
    let seen = run_in(&pool, job(&source)).await;
    assert!(matches!(
        seen.end.outcome,
        Outcome::Settled { .. } | Outcome::Failed { code: ErrorCode::MemoryLimit | ErrorCode::HandlerLoad, .. }
    ));
    pool.shutdown().await;
}

/// Aborts as soon as the handler has logged `ready`.
async fn abort_when_ready(pool: &Pool, source: &str) -> (Seen, std::time::Duration) {
    let mut running = pool.run(job(source)).await.expect("a host");
    let control = running.control.clone();
    match running.events.recv().await {
        Some(JobEvent::Batch { .. }) => {}
        other => panic!("{other:?}"),
    }
    let started = std::time::Instant::now();
    control.abort("cancelled by a person");
    let seen = follow(running, echo).await;
    (seen, started.elapsed())
}

#[tokio::test]
async fn an_abort_is_told_first_and_then_enforced() {
    let pool = pool();
    let polite = "export default async ({ ctx, log }) => { log.info('ready');
        await new Promise((resolve) => ctx.abortSignal.addEventListener('abort', resolve));
        log.info(`${ctx.abortSignal.aborted} ${ctx.abortSignal.reason.name} ${ctx.abortSignal.reason.message}`); await ctx.state.set('cleaned', true); }";
    let (seen, _) = abort_when_ready(&pool, polite).await;
    assert_eq!(seen.end.outcome, Outcome::Aborted);
    assert_eq!(seen.messages(), ["true AbortError cancelled by a person"]);
    assert_eq!(seen.batches.len(), 1, "cleaning up may call");

    for stubborn in [
        "export default async ({ log }) => { log.info('ready'); await new Promise((r) => setTimeout(r, 60000)) }",
        "export default async ({ log, ctx }) => { log.info('ready'); await ctx.tool('hang') }",
        "export default async ({ log }) => { log.info('ready'); await new Promise((r) => setTimeout(r, 1)); for (;;) {} }",
        "export default async ({ log }) => { log.info('ready'); await new Promise((r) => setTimeout(r, 1)); for (;;) await null }",
        "export default async ({ log }) => { log.info('ready'); setInterval(() => {}, 1); await new Promise(() => {}) }",
    ] {
        let (seen, took) = abort_when_ready(&pool, stubborn).await;
        assert_eq!(seen.end.outcome, Outcome::Aborted, "{stubborn}");
        println!("aborted in {took:?}: {stubborn}");
    }
    let seen = run_in(&pool, job("export default () => ({ summary: 'fine' })")).await;
    assert!(matches!(seen.end.outcome, Outcome::Settled { .. }));
    pool.shutdown().await;
}

#[tokio::test]
async fn a_job_that_nobody_follows_any_more_is_killed() {
    let pool = pool_with(1, 1, Limits::default());
    let running = pool
        .run(job("export default async () => { await new Promise((r) => setTimeout(r, 60000)) }"))
        .await
        .expect("a host");
    drop(running);
    let seen = run_in(&pool, job("export default () => ({ summary: 'fine' })")).await;
    assert!(matches!(seen.end.outcome, Outcome::Settled { .. }));
    assert_eq!(pool.stats().spawned_total, 2);
    pool.shutdown().await;
}

/// The processes that this test started, by their command line; each test has its own parent thread but one parent
/// process, so the pools of one test alone are told apart by asking for the newest.
#[cfg(target_os = "linux")]
fn host_pids() -> Vec<i32> {
    let me = std::process::id().to_string();
    let entries = std::fs::read_dir("/proc").expect("proc");
    let mut pids: Vec<i32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            status.contains(&format!("PPid:\t{me}\n")) && line.contains("__host")
        })
        .collect();
    pids.sort_unstable();
    pids
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_host_that_is_killed_from_outside_is_replaced() {
    let pool = pool_with(1, 2, Limits::default());
    let mut running = pool
        .run(job(
            "export default async ({ log }) => { log.info('ready'); await new Promise((r) => setTimeout(r, 60000)) }",
        ))
        .await
        .expect("a host");
    assert!(matches!(running.events.recv().await, Some(JobEvent::Batch { .. })));
    // The busy host is the one of this pool that was started first; other tests have their own.
    let pid = running.control.host_pid().expect("it lives");
    assert!(host_pids().contains(&i32::try_from(pid).expect("a pid")));
    // SAFETY: the pid is of a child that this test started and that has not been waited for.
    unsafe { libc::kill(i32::try_from(pid).expect("a pid"), libc::SIGKILL) };
    let seen = follow(running, echo).await;
    let (code, message) = seen.failure();
    assert_eq!(code, ErrorCode::Crashed);
    assert!(message.contains("signal: 9"), "{message}");
    let seen = run_in(&pool, job("export default () => ({ summary: 'fine' })")).await;
    assert!(matches!(seen.end.outcome, Outcome::Settled { .. }));
    assert_eq!(pool.stats().died_total, 1);
    pool.shutdown().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_host_is_shut_in() {
    let pool = pool();
    let mut running = pool
        .run(job(
            "export default async ({ log }) => { log.info('ready'); await new Promise((r) => setTimeout(r, 60000)) }",
        ))
        .await
        .expect("a host");
    assert!(matches!(running.events.recv().await, Some(JobEvent::Batch { .. })));
    let pid = running.control.host_pid().expect("it lives");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    assert!(status.contains("Seccomp:\t2"), "{status}");
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
    let cores = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a line");
    assert!(cores.split_whitespace().nth(4) == Some("0"), "{cores}");
    running.control.kill();
    assert_eq!(follow(running, echo).await.end.outcome, Outcome::Aborted);
    pool.shutdown().await;
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[tokio::test]
async fn a_program_that_is_no_host_is_told() {
    for (program, words) in [
        ("/no/such/program", "does not start"),
        ("/bin/false", "makes no snapshot"),
        ("/bin/true", "makes no snapshot"),
    ] {
        let config = PoolConfig { program: PathBuf::from(program), warm: 1, max_hosts: 1, limits: Limits::default() };
        let pool = Pool::start(config);
        let error = pool.run(job("export default () => {}")).await.expect_err("no host");
        assert!(error.to_string().contains(words), "{error}");
        pool.shutdown().await;
        assert!(pool.run(job("")).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_jobs_at_once_share_few_hosts() {
    let pool = pool_with(1, 4, Limits::default());
    let mut all = Vec::new();
    for n in 0..50 {
        let pool = pool.clone();
        all.push(tokio::spawn(async move {
            let source = "export default async ({ ctx, input }) => { const r = await ctx.tool('t', { input }); return { output: r.input } }";
            let seen = run_in(&pool, Job { input_json: Some(n.to_string()), ..job(source) }).await;
            (n, seen.output())
        }));
    }
    for task in all {
        let (n, output) = task.await.expect("no panic");
        assert_eq!(output, serde_json::json!(n));
    }
    assert!(pool.stats().spawned_total <= 4);
    assert_eq!(pool.stats().died_total, 0);
    pool.shutdown().await;
}

#[tokio::test]
async fn values_of_every_size_cross_or_are_refused() {
    let seen = run(r#"
        const failed = async (p) => { try { await p; return 'fine'; } catch (e) { return e.code; } };
        export default async ({ ctx }) => {
            const text = 'é'.repeat(5 << 20);
            const back = await ctx.tool('t', { text });
            return { output: { same: back.text === text, large: await failed(ctx.tool('t', { t: 'x'.repeat(17 << 20) })),
                many: (await Promise.all(Array.from({ length: 8 }, () => ctx.tool('t', { t: 'x'.repeat(3 << 20) })))).length } };
        };
    "#)
    .await;
    assert_eq!(seen.output(), serde_json::json!({"same": true, "large": "too_large", "many": 8}));
}

/// A program that speaks like a host, up to a point: it becomes ready, waits for a job, and says `answer`; `last` is
/// what its shell does then.
#[cfg(unix)]
fn fake_host(folder: &std::path::Path, answer: &[u8], last: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let frame = |value: &FromHost| {
        let mut bytes = Vec::new();
        wire::encode(value, &mut bytes).expect("small");
        bytes
    };
    let mut init = Vec::new();
    wire::encode(&wire::ToHost::Init { limits: Limits::default() }, &mut init).expect("small");
    let greeting = 4 + 1 + init.len();
    std::fs::write(folder.join("ready"), frame(&FromHost::Ready)).expect("written");
    std::fs::write(folder.join("answer"), answer).expect("written");
    let folder_text = folder.display();
    let script = format!(
        "#!/bin/sh\nif [ \"$2\" = --snapshot ]; then printf x; exit 0; fi\n\
         /bin/dd bs=1 count={greeting} of=/dev/null 2>/dev/null\n/bin/cat {folder_text}/ready\n\
         /bin/dd bs=1 count=4 of=/dev/null 2>/dev/null\n/bin/cat {folder_text}/answer\n{last}\n"
    );
    let path = folder.join("host.sh");
    std::fs::write(&path, script).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
    path
}

#[cfg(unix)]
#[tokio::test]
async fn a_host_that_breaks_the_protocol_is_killed() {
    let encoded = |values: &[FromHost]| {
        let mut bytes = Vec::new();
        values.iter().for_each(|value| wire::encode(value, &mut bytes).expect("small"));
        bytes
    };
    let calls = |ids: std::ops::Range<u32>| FromHost::Batch {
        logs: vec![],
        calls: ids.map(|id| CtxCall { id, at: 0, body: CtxCallBody::StateGet { key: "k".into() } }).collect(),
        tick: None,
    };
    let abandoned = |ids: std::ops::Range<u32>| match calls(ids) {
        FromHost::Batch { calls, tick, .. } => FromHost::Abandoned { calls, tick },
        other => other,
    };
    let settled = |output: String| {
        let outcome = Outcome::Settled { summary: None, output_json: Some(output) };
        FromHost::Ended(JobEnd { outcome, cpu_ms: 0, peak_bytes: None })
    };
    let deep = format!("{}{}", "[".repeat(101), "]".repeat(101));
    let mut left_over = encoded(&[FromHost::Ready]);
    left_over[0] += 1;
    left_over.push(0);
    let wait = "/bin/sleep 60";
    let cases: &[(&str, Vec<u8>, &str, ErrorCode, &str)] = &[
        ("a length over the limit", u32::MAX.to_le_bytes().to_vec(), wait, ErrorCode::Crashed, "over the limit"),
        ("bytes of no meaning", vec![2, 0, 0, 0, 0xff, 0xff], wait, ErrorCode::Crashed, "malformed"),
        ("bytes left over", left_over, wait, ErrorCode::Crashed, "left over"),
        ("the same call twice", encoded(&[calls(0..1), calls(0..1)]), wait, ErrorCode::Crashed, "twice"),
        ("too many calls", encoded(&[calls(0..257)]), wait, ErrorCode::Crashed, "in flight"),
        ("a call after an abandoned one", encoded(&[abandoned(0..1), calls(1..2)]), wait, ErrorCode::Crashed, "batch"),
        ("an abandoned call again", encoded(&[calls(0..1), abandoned(0..1)]), wait, ErrorCode::Crashed, "twice"),
        ("a deep result", encoded(&[settled(deep)]), wait, ErrorCode::Crashed, "nests too deep"),
        ("ready in a run", encoded(&[FromHost::Ready]), wait, ErrorCode::Crashed, "ready within a run"),
        ("half a frame, then the end", vec![9, 0, 0, 0, 1], "exit 3", ErrorCode::Crashed, "exit status: 3"),
        ("last words", vec![], "echo one >&2; echo two >&2; exit 4", ErrorCode::Crashed, "one; two"),
        (
            "out of memory",
            vec![],
            "echo '# Fatal JavaScript out of memory: x' >&2; kill -TRAP $$",
            ErrorCode::MemoryLimit,
            "",
        ),
        ("an exit code that says why", vec![], "exit 81", ErrorCode::CpuLimit, ""),
    ];
    for (what, answer, last, code, words) in cases {
        let folder = tempfile::tempdir().expect("a folder");
        let program = fake_host(folder.path(), answer, last);
        let pool = Pool::start(PoolConfig { program, warm: 1, max_hosts: 1, limits: Limits::default() });
        // Its calls stay open, so that the fake needs no answers.
        let seen = follow(pool.run(job("")).await.expect("ready"), |_| None).await;
        let (got, message) = seen.failure();
        assert_eq!(got, *code, "{what}: {message}");
        assert!(message.contains(words), "{what}: {message}");
        pool.shutdown().await;
    }
}

/// A host may be so fast that its first words are there before its task in the daemon has heard of the new run. Here the
/// order is forced: the fake has answered, and the system has told so, before that task runs again.
#[cfg(unix)]
#[test]
fn what_a_host_says_at_once_is_not_lost() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().event_interval(1).build().expect("a runtime");
    runtime.block_on(async {
        let call = CtxCall { id: 0, at: 0, body: CtxCallBody::StateGet { key: "k".into() } };
        let outcome = Outcome::Settled { summary: None, output_json: None };
        let mut answer = Vec::new();
        for frame in [
            FromHost::Batch { logs: vec![], calls: vec![call], tick: None },
            FromHost::Ended(JobEnd { outcome, cpu_ms: 0, peak_bytes: None }),
        ] {
            wire::encode(&frame, &mut answer).expect("small");
        }
        let folder = tempfile::tempdir().expect("a folder");
        let answered = folder.path().join("answered");
        let last = format!(": > {}; exec /bin/sleep 60", answered.display());
        let program = fake_host(folder.path(), &answer, &last);
        let pool = Pool::start(PoolConfig { program, warm: 1, max_hosts: 1, limits: Limits::default() });
        while pool.stats().warm == 0 {
            tokio::task::yield_now().await;
        }
        // Takes the turn before the runtime looks for input; the host's task comes after that.
        tokio::spawn(async {});
        let running = pool.run(job("")).await.expect("ready");
        // This thread is the whole runtime: nothing else goes on in the daemon.
        let started = std::time::Instant::now();
        while !answered.exists() {
            assert!(started.elapsed() < std::time::Duration::from_secs(30), "the fake does not answer");
            std::thread::yield_now();
        }
        let seen = follow(running, |_| None).await;
        assert!(matches!(seen.end.outcome, Outcome::Settled { .. }));
        assert_eq!(seen.batches.len(), 1);
        pool.shutdown().await;
    });
}
