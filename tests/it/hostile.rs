//! Handlers that try to take the daemon down: each ends with its code, and nothing else notices.

use dirigent::clock::{Clock, TestClock};
use dirigent::fire::{ErrorCode, RunStatus};

use crate::harness::{Root, ended, run, start, until};

/// 2026-03-02T00:00:30Z.
const START: i64 = 1_772_409_630_000;

#[tokio::test(flavor = "multi_thread")]
async fn hostile_handlers_end_by_their_limits_while_others_fire_on_time() {
    let root = Root::new();
    // Smaller than the defaults, so that the test is short; the mechanism is the same.
    root.write("dirigent.toml", "[limits]\ncpu_ms = 1500\nheap_bytes = 67108864\nexternal_bytes = 67108864\n");
    let table = [
        ("spin", "for (;;) {}", ErrorCode::CpuLimit),
        ("microtasks", "for (;;) await null;", ErrorCode::CpuLimit),
        ("fill", "Array(1e9).fill(0);", ErrorCode::MemoryLimit),
        ("map", "const m = new Map(); for (let i = 0; ; i++) m.set(i, { i });", ErrorCode::MemoryLimit),
        ("text", "let s = 'x'; const all = []; for (;;) { s += s; all.push([...s]); }", ErrorCode::MemoryLimit),
        ("buffers", "const all = []; for (;;) all.push(new Uint8Array(1 << 20).fill(1));", ErrorCode::MemoryLimit),
        ("never", "await new Promise(() => {});", ErrorCode::NeverSettled),
        ("deep", "const f = () => f(); f();", ErrorCode::HandlerThrew),
    ];
    for (id, body, _) in table {
        root.automation(&format!("a/{id}"), "", &format!("export default async () => {{ {body} }};"));
    }
    root.automation("b/tick", r#""triggers": [{"kind": "cron", "expr": "* * * * *"}]"#, "export default () => {};");
    let clock = TestClock::at(START);
    let daemon = root.daemon_at(Clock::Test(clock.clone())).await;

    let mut started = Vec::new();
    for (id, _, code) in table {
        started.push((id, code, start(&daemon, &format!("a/{id}"), None).await.1));
    }
    // In the middle of all that, a minute comes round.
    let mut told = daemon.services().bus.runs();
    clock.set(START + 30_000);
    until(&daemon, "the cron fire is over", |state| {
        !state.open_runs().any(|open| open.handle.app.as_str() == "b") && state.schedule.armed() == 1
    })
    .await;
    let fired = format!("ok|{}", START + 30_000);
    root.sql_becomes(&mut told, "b", "select status, scheduled_for from runs", &[&fired]).await;
    for (id, code, end) in started {
        let end = ended(end).await;
        assert_eq!((end.status, end.error_code), (RunStatus::Error, Some(code)), "{id}: {:?}", end.error);
    }
    let (_, end) = run(&daemon, "b/tick", None).await;
    assert_eq!(end.status, RunStatus::Ok, "the daemon goes on");
    daemon.stop(std::time::Duration::ZERO).await;
}
