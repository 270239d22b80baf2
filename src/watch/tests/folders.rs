//! What stands where it should not: names, links, special files.

use super::*;

fn problems(batch: &DiskBatch) -> Vec<(String, String)> {
    let mut all: Vec<_> = batch
        .apps
        .iter()
        .flat_map(|app| {
            let manifests = app.automations.iter().filter_map(|a| match &a.manifest {
                FileContent::Unreadable(problem) => Some(problem),
                _ => None,
            });
            let handlers = app.automations.iter().filter_map(|a| match &a.handler {
                HandlerFile::Unreadable(problem) => Some(problem),
                _ => None,
            });
            app.problems.iter().chain(manifests).chain(handlers)
        })
        .map(|p| (p.code.clone(), p.path.clone().unwrap_or_default()))
        .collect();
    all.sort();
    all
}

fn automations(batch: &DiskBatch) -> Vec<String> {
    let handles = batch.apps.iter().flat_map(|app| app.automations.iter().map(|a| format!("{}/{}", app.name, a.id)));
    let mut all: Vec<String> = handles.collect();
    all.sort();
    all
}

#[test]
fn a_scan_reports_what_it_does_not_run() {
    let dir = tempfile::tempdir().expect("a folder");
    let root = dir.path();
    write_automation(root, "good.app-1", "one_A-1", &json(1));
    write_automation(root, ".hidden", "x", &json(1));
    write_automation(root, "_draft", "x", &json(1));
    write_automation(root, "node_modules", "x", &json(1));
    write_automation(root, "bad name", "x", &json(1));
    write_automation(root, "good.app-1", "bad.id", &json(1));
    write_automation(root, "good.app-1", "_skipped", &json(1));
    write_automation(root, "good.app-1", "node_modules", &json(1));
    fs::create_dir_all(root.join("good.app-1/automations/empty")).expect("a folder");
    fs::create_dir_all(root.join("no-automations")).expect("a folder");
    fs::write(root.join("good.app-1/automations/flat.json"), json(1)).expect("a file");
    fs::write(root.join("mcp.json"), "{}").expect("a file");
    fs::write(root.join("good.app-1/index.html"), "").expect("a file");
    fs::write(root.join("good.app-1/app.json"), "{}").expect("a file");
    let batch = scan(root);
    assert!(batch.full && batch.root_problems.is_empty());
    let expected = [
        ("flat_manifest", "good.app-1/automations/flat.json"),
        ("invalid_name", "bad name"),
        ("invalid_name", "good.app-1/automations/bad.id"),
    ];
    assert_eq!(problems(&batch), expected.map(|(code, path)| (code.to_owned(), path.to_owned())));
    assert_eq!(automations(&batch), ["good.app-1/empty", "good.app-1/one_A-1"]);
    let app = batch.apps.iter().find(|a| a.name == "good.app-1").expect("the app");
    assert!(app.has_index_html && app.complete && app.present);
    assert_eq!(text_of(&app.app_json), "{}");
    let flat = app.problems.iter().find(|p| p.code == "flat_manifest").expect("the problem");
    assert_eq!(flat.hint.as_deref(), Some("move it to automations/flat/automation.json"));
    let one = app.automations.iter().find(|a| a.id.as_str() == "one_A-1").expect("the automation");
    assert_eq!(one.dir, root.join("good.app-1/automations/one_A-1"));
    assert_eq!(text_of(&one.manifest), json(1));
    assert!(matches!(one.handler, HandlerFile::Present { len: 23, .. }));
    let bad = batch.apps.iter().find(|a| a.name == "bad name").expect("the misfit");
    assert!(bad.app.is_none() && bad.automations.is_empty());
    assert!(bad.problems[0].message.contains("^[A-Za-z0-9]"), "{}", bad.problems[0].message);
}

#[test]
fn a_root_that_is_missing_or_a_file_is_a_clear_error() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("file");
    fs::write(&file, "").expect("a file");
    for root in [dir.path().join("none"), file] {
        let batch = scan(&root);
        assert!(batch.full && batch.apps.is_empty());
        assert_eq!(batch.root_problems[0].code, "root_missing");
        assert!(batch.root_problems[0].message.contains(&*root.to_string_lossy()));
        let rt = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (tx, _rx) = tokio::sync::mpsc::channel(1);
        let error = Watcher::start(WatchConfig::new(&root), tx, rt.handle().clone()).expect_err("no root");
        assert!(error.to_string().contains(&*root.to_string_lossy()), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn links_are_followed_inside_the_app_alone_and_special_files_are_not_opened() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().expect("a folder");
    let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
    write_automation(&outside, "real", "x", &json(1));
    write_automation(&root, "app", "x", &json(1));
    let automations_dir = root.join("app/automations");
    let folder = |id: &str| {
        fs::create_dir_all(automations_dir.join(id)).expect("a folder");
        automations_dir.join(id)
    };
    symlink(outside.join("real"), root.join("linked")).expect("a link");
    symlink("app", root.join("twin")).expect("a link");
    symlink("nowhere", root.join("dangling")).expect("a link");
    symlink("cycle", root.join("cycle")).expect("a link");
    symlink("x", automations_dir.join("inside")).expect("a link");
    symlink("../..", automations_dir.join("up")).expect("a link");
    symlink(outside.join("real/automations/x"), automations_dir.join("out")).expect("a link");
    symlink("cyclic", automations_dir.join("cyclic")).expect("a link");
    symlink("../../../../outside/real/automations/x/automation.json", folder("file_out").join("automation.json"))
        .expect("a link");
    symlink("../x/automation.json", folder("file_in").join("automation.json")).expect("a link");
    symlink("/etc/hostname", folder("code_out").join("handler.js")).expect("a link");
    fs::write(folder("code_out").join("automation.json"), json(1)).expect("a file");
    mkfifo(&folder("fifo").join("automation.json"));
    mkfifo(&folder("fifo").join("handler.js"));
    fs::create_dir_all(folder("dir").join("automation.json")).expect("a folder");
    fs::write(folder("big").join("automation.json"), vec![b' '; 256 * 1024 + 1]).expect("a file");
    fs::create_dir_all(root.join(OsStr::from_bytes(b"caf\xe9"))).expect("a folder");
    let batch = scan(&root);
    let twin: Vec<_> = problems(&batch).into_iter().filter(|(_, path)| path.starts_with("twin/")).collect();
    assert_eq!(twin.len(), 9, "the same folder by another name has the same problems: {twin:?}");
    let found: Vec<_> = problems(&batch).into_iter().filter(|(_, path)| !path.starts_with("twin/")).collect();
    let expected = [
        ("broken_link", "app/automations/cyclic"),
        ("broken_link", "cycle"),
        ("broken_link", "dangling"),
        ("invalid_name", "caf\u{fffd}"),
        ("not_regular", "app/automations/dir/automation.json"),
        ("not_regular", "app/automations/fifo/automation.json"),
        ("not_regular", "app/automations/fifo/handler.js"),
        ("outside_link", "app/automations/code_out/handler.js"),
        ("outside_link", "app/automations/file_out/automation.json"),
        ("outside_link", "app/automations/out"),
        ("outside_link", "app/automations/up"),
        ("too_large", "app/automations/big/automation.json"),
    ];
    assert_eq!(found, expected.map(|(code, path)| (code.to_owned(), path.to_owned())));
    let text = |handle: &str| {
        let (app, id) = handle.split_once('/').expect("a handle");
        let app = batch.apps.iter().find(|a| a.name == app).expect("the app");
        text_of(&app.automations.iter().find(|a| a.id.as_str() == id).expect("the automation").manifest)
    };
    for handle in ["app/x", "app/inside", "app/file_in", "linked/x", "twin/x"] {
        assert_eq!(text(handle), json(1), "{handle}");
    }
}

#[cfg(unix)]
#[test]
fn what_links_lead_to_is_followed() {
    use std::os::unix::fs::symlink;
    for mode in [Mode::Kernel, Mode::Poll] {
        let mut harness = Harness::new(mode);
        write_automation(&harness.outside, "one", "y", &json(1));
        write_automation(&harness.outside, "two", "y", &json(2));
        symlink(harness.outside.join("one"), harness.path("linked")).expect("a link");
        harness.until_manifest("linked/y", &json(1));
        save(&harness.outside.join("one/automations/y/automation.json"), &json(3));
        harness.until_manifest("linked/y", &json(3));
        // Replaced in one step, as `ln -sfn` does it.
        symlink(harness.outside.join("two"), harness.path(".new")).expect("a link");
        fs::rename(harness.path(".new"), harness.path("linked")).expect("a rename");
        harness.until_manifest("linked/y", &json(2));
        save(&harness.outside.join("two/automations/y/automation.json"), &json(4));
        harness.until_manifest("linked/y", &json(4));
        // A manifest that is a link to a file elsewhere in its app.
        fs::create_dir_all(harness.path("a/shared")).expect("a folder");
        fs::write(harness.path("a/shared/m.json"), json(5)).expect("a file");
        fs::create_dir_all(harness.path("a/automations/z")).expect("a folder");
        symlink("../../shared/m.json", harness.path("a/automations/z/automation.json")).expect("a link");
        harness.until_manifest("a/z", &json(5));
        save(&harness.path("a/shared/m.json"), &json(6));
        harness.until_manifest("a/z", &json(6));
        // Two names for one app: an edit shows in both.
        symlink("a", harness.path("twin")).expect("a link");
        harness.until_manifest("twin/x", &json(0));
        save(&harness.path("a/automations/x/automation.json"), &json(7));
        harness.until("both", |h| h.manifest("a/x") == Some(&json(7)) && h.manifest("twin/x") == Some(&json(7)));
        fs::remove_file(harness.path("twin")).expect("a removal");
        harness.until("the twin gone", |h| !h.apps.contains_key("twin"));
        save(&harness.path("a/automations/x/automation.json"), &json(8));
        harness.until_manifest("a/x", &json(8));
    }
}

#[test]
fn names_that_break_the_grammar_come_and_go() {
    for mode in MODES {
        let mut harness = Harness::new(*mode);
        fs::create_dir(harness.path("bad name")).expect("a folder");
        harness.until("the misfit", |h| h.apps.contains_key("misfit bad name"));
        fs::rename(harness.path("bad name"), harness.path("good")).expect("a rename");
        harness.until("the app", |h| h.apps.contains_key("good") && !h.apps.contains_key("misfit bad name"));
        fs::write(harness.path("a/automations/flat.json"), json(1)).expect("a file");
        harness.until("the flat manifest", |h| h.apps["a"].problems == ["flat_manifest"]);
        fs::remove_file(harness.path("a/automations/flat.json")).expect("a removal");
        harness.until("no problem", |h| h.apps["a"].problems.is_empty());
    }
}

#[cfg(unix)]
#[test]
fn an_app_name_that_turns_into_a_dangling_link_changes_its_form() {
    use std::os::unix::fs::symlink;
    let mut harness = Harness::new(Mode::Kernel);
    fs::rename(harness.path("a"), harness.outside.join("a")).expect("a rename");
    symlink("nowhere", harness.path("a")).expect("a link");
    harness.until("the broken link", |h| h.apps.contains_key("misfit a") && !h.apps.contains_key("a"));
    fs::remove_file(harness.path("a")).expect("a removal");
    fs::rename(harness.outside.join("a"), harness.path("a")).expect("a rename");
    harness.until("the app", |h| h.manifest("a/x").is_some() && !h.apps.contains_key("misfit a"));
}

#[cfg(unix)]
#[test]
fn a_fifo_in_place_of_a_manifest_blocks_nothing() {
    for mode in MODES {
        let mut harness = Harness::new(*mode);
        let path = harness.path("a/automations/x/automation.json");
        fs::remove_file(&path).expect("a removal");
        mkfifo(&path);
        harness.until_manifest("a/x", "[not_regular]");
        harness.pass_sentinel(1);
        fs::remove_file(&path).expect("a removal");
        harness.until_manifest("a/x", "-");
        fs::remove_dir_all(harness.path("a/automations/x")).expect("a removal");
        harness.until_gone("a/x");
    }
}
