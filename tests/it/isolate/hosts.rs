//! Host processes: shared, killed, replaced, shut in.

use super::*;

/// A handler that has said that it runs, and waits for a minute.
async fn start_waiting(pool: &Pool) -> RunningJob {
    let source =
        "export default async ({ log }) => { log.info('ready'); await new Promise((r) => setTimeout(r, 60000)) }";
    start(pool, source).await
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
async fn a_job_that_nobody_follows_any_more_is_killed() {
    let pool = pool_with(1, 1, Limits::default());
    let running = pool
        .run(job("export default async () => { await new Promise((r) => setTimeout(r, 60000)) }"))
        .await
        .expect("a host");
    drop(running);
    assert_well(&pool).await;
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
    let running = start_waiting(&pool).await;
    // The busy host is the one of this pool that was started first; other tests have their own.
    let pid = running.control.host_pid().expect("it lives");
    assert!(host_pids().contains(&i32::try_from(pid).expect("a pid")));
    // SAFETY: the pid is of a child that this test started and that has not been waited for.
    unsafe { libc::kill(i32::try_from(pid).expect("a pid"), libc::SIGKILL) };
    let seen = follow(running, echo).await;
    let (code, message) = seen.failure();
    assert_eq!(code, ErrorCode::Crashed);
    assert!(message.contains("signal: 9"), "{message}");
    assert_well(&pool).await;
    assert_eq!(pool.stats().died_total, 1);
    pool.shutdown().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_host_is_shut_in() {
    let pool = pool();
    let running = start_waiting(&pool).await;
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
