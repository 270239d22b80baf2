//! Every file of `fixtures/manifests`: what is accepted, what is refused, and in which words.
//!
//! `valid/<name>.json` must be accepted; `invalid/<name>.json` must be refused. Beside a file that has problems,
//! `<name>.problems.txt` holds them, one per line, as `line:col severity code field message | hint`. After a change of
//! wording, `UPDATE_FIXTURES=1 cargo test manifest` writes these texts anew; read the diff.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::core::json_schema::Schema;
use crate::fire::Problem;

/// Invalid files that JSON Schema has no words for: see the text of `schema.rs`.
const BEYOND_SCHEMA: &[&str] = &["cron-never-matches", "webhook-filter-remote-ref", "webhook-filter-unknown-draft"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/manifests").join(name)
}

/// Each manifest's name and bytes.
fn fixtures(name: &str) -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<_> = fs::read_dir(folder(name))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()))
        .collect();
    found.sort();
    found
}

fn app() -> AppId {
    AppId::new("todos").unwrap()
}

fn golden(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(|problem| {
            let Problem { code, severity, field, message, hint, line, column, .. } = problem;
            let hint = hint.as_ref().map(|hint| format!(" | {hint}")).unwrap_or_default();
            let field = if field.is_empty() { "-" } else { field };
            format!("{}:{} {severity} {code} {field} {message}{hint}\n", line.unwrap(), column.unwrap())
        })
        .collect()
}

/// Compares with the text beside the fixture, or writes it.
fn check_golden(folder: &Path, name: &str, problems: &[Problem], failures: &mut Vec<String>) {
    let path = folder.join(format!("{name}.problems.txt"));
    let actual = golden(problems);
    if std::env::var_os("UPDATE_FIXTURES").is_some() {
        if problems.is_empty() {
            let _ = fs::remove_file(path);
        } else {
            fs::write(path, actual).unwrap();
        }
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default().replace("\r\n", "\n");
    if actual != expected {
        failures.push(format!("{}:\nexpected:\n{expected}actual:\n{actual}", path.display()));
    }
}

#[track_caller]
fn no_failures(failures: &[String]) {
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn valid_manifests_are_accepted() {
    let mut failures = Vec::new();
    let fixtures = fixtures("valid");
    assert!(fixtures.len() >= 30);
    for (name, bytes) in fixtures {
        let parsed = parse(&bytes, &app());
        if parsed.manifest.is_none() {
            failures.push(format!("{name} is refused"));
        }
        check_golden(&folder("valid"), &name, &parsed.problems, &mut failures);
    }
    no_failures(&failures);
}

#[test]
fn invalid_manifests_are_refused_with_all_their_problems() {
    let mut failures = Vec::new();
    let fixtures = fixtures("invalid");
    assert!(fixtures.len() >= 50);
    for (name, bytes) in fixtures {
        let parsed = parse(&bytes, &app());
        if parsed.manifest.is_some() || !parsed.problems.iter().any(Problem::is_error) {
            failures.push(format!("{name} is accepted"));
        }
        check_golden(&folder("invalid"), &name, &parsed.problems, &mut failures);
    }
    no_failures(&failures);
}

#[test]
fn the_schema_agrees() {
    let schema = Schema::compile(&json_schema()).unwrap();
    let mut failures = Vec::new();
    for (name, bytes) in fixtures("valid") {
        let Ok(value) = serde_json::from_slice::<Value>(&bytes) else {
            // A lone surrogate, which only JavaScript reads.
            assert_eq!(name, "lone-surrogate");
            continue;
        };
        failures.extend(schema.check(&value, &name, 10).err().map(|mismatch| mismatch.message));
    }
    for (name, bytes) in fixtures("invalid") {
        let Ok(value) = serde_json::from_slice(&bytes) else {
            continue;
        };
        if schema.is_valid(&value) != BEYOND_SCHEMA.contains(&name.as_str()) {
            failures.push(format!("{name}: the schema and the list disagree"));
        }
    }
    no_failures(&failures);
}

/// The worst that fits into the size limit still gets a short answer, soon.
#[test]
fn floods_are_answered_briefly() {
    let deep = |inside: &str, key: &str| format!("{}{inside}{}", format!("{{\"{key}\":").repeat(100), "}".repeat(100));
    let repeats = |length: usize| format!("{{{}\"x\":1}}", "\"x\":1,".repeat(length));
    for text in [
        format!("{{\"a\":\"{}\"}}", "\\ud800".repeat(40_000)),
        repeats(35_000),
        deep(&repeats(15_000), &"k".repeat(1_000)),
        format!("{{\"apps\":[{}1]}}", "1,".repeat(120_000)),
        format!("{{{}\"\":1}}", (0..20_000).map(|n| format!("\"{n}\":1,")).collect::<String>()),
        format!("{{\"triggers\":[{}1]}}", "{\"kind\":\"cron\"},".repeat(14_000)),
    ] {
        assert!(text.len() <= MAX_MANIFEST_BYTES, "{}", text.len());
        let problems = parse(text.as_bytes(), &app()).problems;
        let size: usize = problems.iter().map(|problem| problem.message.len() + problem.field.len()).sum();
        assert!(problems.len() <= 201 && size < 5_000_000, "{} problems of {size} bytes", problems.len());
        assert!(matches!(set_enabled(&text, false), Ok(_) | Err(RewriteError::TooLarge(_))));
    }
}

/// Cut anywhere, with any byte replaced: problems come out, or a manifest, and never a panic.
#[test]
fn damaged_manifests_are_refused_quietly() {
    for (name, bytes) in fixtures("valid") {
        for at in (0..bytes.trim_ascii_end().len()).step_by(7) {
            let cut = parse(&bytes[..at], &app());
            assert!(cut.manifest.is_none() && cut.problems.len() == 1, "{name} cut at {at}");
            for byte in [b'"', b'{', b'\\', 0xFF, b'0'] {
                let mut damaged = bytes.clone();
                damaged[at] = byte;
                let parsed = parse(&damaged, &app());
                assert_eq!(parsed.manifest.is_none(), parsed.problems.iter().any(Problem::is_error), "{name} at {at}");
            }
        }
    }
}

fn parse_fields(fields: &str) -> Parsed {
    let text = format!(r#"{{"name":"n","prompt":"p","generated":{{"by":"b","at":"a"}}{fields}}}"#);
    parse(text.as_bytes(), &app())
}

#[track_caller]
fn valid(fields: &str) -> Manifest {
    let parsed = parse_fields(fields);
    parsed.manifest.unwrap_or_else(|| panic!("{fields}: {:?}", parsed.problems))
}

#[test]
fn defaults_are_filled_in() {
    let expected = Manifest {
        name: "n".into(),
        version: "0.1.0".into(),
        description: None,
        prompt: "p".into(),
        enabled: true,
        triggers: vec![],
        requires: Requires::default(),
        apps: vec![],
        cost_estimate: None,
        output_schema: None,
        on_failure: None,
        keep: HistoryKeep::Count(100),
        generated: Generated { by: "b".into(), at: "a".into() },
        concurrency: Concurrency { mode: ConcurrencyMode::Single, max: 1 },
        timeout_ms: 300_000,
        catch_up: CatchUp::Once,
        retry: Retry { max: 0, backoff_ms: 1000 },
    };
    assert_eq!(valid(""), expected);
    assert!(parse_fields("").problems.is_empty());
}

#[test]
fn values_are_read() {
    for (fields, expected) in [
        ("{\"count\": 5.0}", HistoryKeep::Count(5)),
        ("{\"count\": -1, \"days\": 3}", HistoryKeep::Days(3)),
        ("{\"count\": 2, \"days\": 3}", HistoryKeep::Count(2)),
        ("{\"days\": 1e300}", HistoryKeep::Days(u64::MAX)),
        ("\"all\"", HistoryKeep::All),
        ("\"errors\"", HistoryKeep::Errors),
    ] {
        assert_eq!(valid(&format!(",\"history\":{{\"keep\":{fields}}}")).keep, expected, "{fields}");
    }
    for (fields, mode, max) in [
        ("{\"mode\":\"queued\"}", ConcurrencyMode::Queued, 100),
        ("{\"mode\":\"parallel\"}", ConcurrencyMode::Parallel, 10),
        ("{\"mode\":\"parallel\",\"max\":3}", ConcurrencyMode::Parallel, 3),
        ("{\"mode\":\"restart\",\"max\":3}", ConcurrencyMode::Restart, 1),
        ("{\"max\":3}", ConcurrencyMode::Single, 1),
    ] {
        assert_eq!(valid(&format!(",\"concurrency\":{fields}")).concurrency, Concurrency { mode, max }, "{fields}");
    }
    let handler =
        |text: &str| valid(&format!(",\"onFailure\":\"{text}\"")).on_failure_handle(&app()).unwrap().to_string();
    assert_eq!((handler("rescue"), handler("ops/rescue")), ("todos/rescue".into(), "ops/rescue".into()));
    assert_eq!(valid(",\"retry\":{\"max\":2,\"backoffMs\":0}").retry, Retry { max: 2, backoff_ms: 0 });
    assert_eq!(valid(",\"apps\":[\"todos\",\"no such\"]").apps, [app()]);
}

#[test]
fn only_an_absent_or_literal_true_is_enabled() {
    for (fields, expected) in [
        ("", true),
        (",\"enabled\":true", true),
        (",\"enabled\":false", false),
        (",\"enabled\":\"true\"", false),
        (",\"enabled\":1", false),
        (",\"enabled\":null", false),
        (",\"enabled\":true,\"enabled\":false", false),
    ] {
        assert_eq!(valid(fields).enabled, expected, "{fields}");
        let refused = parse_fields(&format!("{fields},\"catchUp\":1"));
        assert_eq!((refused.manifest, refused.enabled_hint), (None, expected), "{fields}");
    }
    assert!(parse(b"{\"enabled\": false", &app()).enabled_hint, "text that is no JSON says nothing");
}

#[test]
fn triggers_are_read() {
    let hash = "0f".repeat(32);
    let triggers = valid(&format!(
        r#","triggers":[{{"kind":"cron","expr":" 0 9 * * 1 ","tz":"Europe/Berlin"}},
            {{"kind":"webhook","id":"a","secretHash":"sha256:{hash}","pending":true,
              "verify":{{"scheme":"github","secretRef":"env:X","header":"x-sig"}},"filter":false}}]"#
    ))
    .triggers;
    let Trigger::Cron(cron) = &triggers[0] else { panic!("{triggers:?}") };
    assert_eq!((cron.expr.as_str(), cron.tz.as_deref()), (" 0 9 * * 1 ", Some("Europe/Berlin")));
    let verify =
        Verify { scheme: VerifyScheme::Github, secret_ref: SecretRef::Env("X".into()), header: Some("x-sig".into()) };
    let webhook = Webhook {
        id: "a".into(),
        secret_sha256: Some([0x0f; 32]),
        verify: Some(verify),
        filter: Some(Value::Bool(false)),
    };
    assert_eq!(triggers[1], Trigger::Webhook(webhook));

    let old = valid(r#","trigger":{"kind":"webhook","pending":true}"#);
    assert_eq!(old.triggers, [Trigger::WebhookPending { verify: None, filter: None }]);
    let both = valid(r#","trigger":"nonsense","triggers":[]"#);
    assert_eq!(both.triggers, []);
    let signed =
        valid(r#","triggers":[{"kind":"webhook","id":"a","verify":{"scheme":"stripe","secretRef":"file:s"}}]"#);
    assert_eq!(signed.webhook().unwrap().secret_sha256, None);
}

#[test]
fn secrets_are_not_repeated_in_messages() {
    for fields in [
        r#","triggers":[{"kind":"webhook","id":"a","secretHash":"hunter2"}]"#,
        r#","triggers":[{"kind":"webhook","pending":true,"verify":{"scheme":"github","secretRef":"hunter2"}}]"#,
        r#","triggers":[{"kind":"webhook","pending":true,"verify":{"scheme":"github","secret":"hunter2"}}]"#,
        r#","triggers":[{"kind":"webhook","pending":true,"verify":"hunter2"}]"#,
    ] {
        let parsed = parse_fields(fields);
        assert!(parsed.manifest.is_none() && !format!("{:?}", parsed.problems).contains("hunter2"), "{fields}");
    }
}

#[test]
fn the_size_limit_is_exact() {
    let padded = |length: usize| {
        let text = r#"{"name":"n","prompt":"p","generated":{"by":"b","at":"a"}}"#;
        format!("{text}{}", " ".repeat(length - text.len())).into_bytes()
    };
    assert!(parse(&padded(MAX_MANIFEST_BYTES), &app()).manifest.is_some());
    let parsed = parse(&padded(MAX_MANIFEST_BYTES + 1), &app());
    assert_eq!(
        golden(&parsed.problems),
        "1:1 error too_large - the manifest may have 262144 bytes, but has 262145 | keep data out of the manifest\n"
    );
}

#[test]
fn rewritten_manifests_are_accepted() {
    for (name, bytes) in fixtures("valid") {
        let text = std::str::from_utf8(&bytes).unwrap();
        let before = parse(&bytes, &app()).manifest.unwrap();
        let after = parse(set_enabled(text, !before.enabled).unwrap().as_bytes(), &app()).manifest.unwrap();
        assert_eq!(after, Manifest { enabled: !before.enabled, ..before.clone() }, "{name}");
        if before.triggers.iter().any(|trigger| matches!(trigger, Trigger::WebhookPending { .. })) {
            let hash = "1e".repeat(32);
            let provisioned = provision_webhook(text, "slug", &hash).unwrap();
            let webhook = parse(provisioned.as_bytes(), &app()).manifest.unwrap().webhook().cloned().unwrap();
            assert_eq!((webhook.id.as_str(), webhook.secret_sha256), ("slug", Some([0x1e; 32])), "{name}");
        }
    }
}
