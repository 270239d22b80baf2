//! What a run may cost, and what code that wants more comes to.

use super::*;

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
    assert_well(&pool).await;
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
