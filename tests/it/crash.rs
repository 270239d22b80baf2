//! `kill -9` of the daemon, and what the next one makes of it.

use std::process::Stdio;

use crate::harness::{Root, within};

const PARKED: &str = "export default () => new Promise((done) => setTimeout(done, 1e8));";

/// Follows a run over HTTP until its end, as any client would.
fn follow(root: &Root, run: &str) -> String {
    let output = root.cli(&["--json", "logs", run, "-f"]);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn run_id(output: &std::process::Output) -> String {
    let value: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    value["runId"].as_str().unwrap_or_else(|| panic!("{value}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_daemon_left_is_closed_and_what_waited_is_run() {
    let root = Root::new();
    root.automation(
        "a/parked",
        r#""concurrency": {"mode": "queued"}"#,
        "export default ({ input }) => input === 'go' ? { summary: 'went' } : new Promise((done) => setTimeout(done, 1e8));",
    );
    root.automation("a/retried", r#""retry": {"max": 1, "backoffMs": 1}"#, PARKED);
    root.automation("a/tick", r#""triggers": [{"kind": "cron", "expr": "* * * * *"}]"#, "export default () => {};");
    let mut served = root.serve();
    let parked = run_id(&root.cli(&["--json", "run", "a/parked", "--no-wait"]));
    let waiting = run_id(&root.cli(&["--json", "run", "a/parked", "--no-wait", "--input", "\"go\""]));
    let retried = run_id(&root.cli(&["--json", "run", "a/retried", "--no-wait"]));
    served.kill();
    let open = "select count(*) from runs where status in ('running', 'queued')";
    assert_eq!(root.sql("a", open), ["3"], "as the kill left it");

    let mut served = root.serve();
    follow(&root, &waiting);
    for run in [&parked, &retried] {
        follow(&root, run);
        let row = format!("select status, error_code from runs where run_id = '{run}'");
        assert_eq!(root.sql("a", &row), ["error|interrupted"]);
    }
    assert_eq!(root.sql("a", &format!("select status, summary from runs where run_id = '{waiting}'")), ["ok|went"]);
    let retry = format!("select attempt, trigger_origin from runs where retry_of = '{retried}'");
    assert_eq!(root.sql("a", &retry), ["2|retry"]);
    let twice = "select count(*) from (select 1 from runs where trigger_origin = 'cron'
                 group by automation_id, scheduled_for having count(*) > 1)";
    assert_eq!(root.sql("a", twice), ["0"]);
    assert_eq!(served.terminate(), Some(0), "a stop is no failure");
    assert_eq!(root.sql("a", "select count(*) from runs where status = 'running'"), ["0"]);
    assert_eq!(
        root.sql("a", &format!("select status, error_code from runs where retry_of = '{retried}'")),
        ["cancelled|interrupted"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_is_refused_and_a_killed_ones_lock_is_no_obstacle() {
    let root = Root::new();
    let mut served = root.serve();
    let refused = || {
        let second = root.cli(&["serve", "--admin", "127.0.0.1:0", "--hooks", "127.0.0.1:0"]);
        assert_eq!(second.status.code(), Some(75));
        String::from_utf8_lossy(&second.stderr).into_owned()
    };
    let told = refused();
    assert!(told.contains(&served.child.id().to_string()) && told.contains("stop that one first"), "{told}");
    served.kill();
    // As a command does that runs an automation by itself.
    let lock = dirigent::daemon::home::lock(root.path()).expect("the lock of a killed daemon is free");
    dirigent::daemon::home::retract(root.path());
    let told = refused();
    assert!(told.contains("try again in a moment"), "{told}");
    drop(lock);
    let mut third = root.serve();
    assert_eq!(third.terminate(), Some(0));
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn hosts_go_with_their_daemon() {
    let root = Root::new();
    root.automation("a/parked", "", PARKED);
    let mut served = root.serve();
    root.command(&["run", "a/parked", "--no-wait"]).stdout(Stdio::null()).status().expect("it runs");
    let daemon = served.child.id();
    let hosts: Vec<u32> = std::fs::read_to_string(format!("/proc/{daemon}/task/{daemon}/children"))
        .into_iter()
        .chain(
            std::fs::read_dir(format!("/proc/{daemon}/task"))
                .into_iter()
                .flatten()
                .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok()),
        )
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
        .collect();
    assert!(!hosts.is_empty(), "there is a host");
    served.kill();
    within(tokio::task::spawn_blocking(move || {
        for pid in hosts {
            // A pidfd-less wait: the kernel kills them with their parent, and the reaper collects them.
            while is_alive(pid) {
                std::thread::yield_now();
            }
        }
    }))
    .await
    .expect("they are gone");
}

#[cfg(target_os = "linux")]
fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), Some('Z' | 'X')))
}
