//! Programs that speak like a host, up to a point.

use dirigent::isolate::wire::{self, FromHost};

use super::*;

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
