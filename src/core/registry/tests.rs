use super::*;

fn handle(text: &str) -> Handle {
    text.parse().expect("a handle")
}

fn manifest_json(extra: &str) -> String {
    format!(r#"{{"name":"n","prompt":"p","generated":{{"by":"t","at":"now"}}{extra}}}"#)
}

fn file(text: &str) -> FileContent {
    use sha2::Digest;
    FileContent::Bytes { bytes: Arc::from(text.as_bytes()), sha256: sha2::Sha256::digest(text.as_bytes()).into() }
}

fn folder(app: &str, automations: &[(&str, Option<&str>)], complete: bool) -> AppFolder {
    AppFolder {
        name: app.to_owned(),
        app: AppId::new(app).ok(),
        dir: PathBuf::from(app),
        present: true,
        has_index_html: false,
        app_json: FileContent::Absent,
        automations: automations
            .iter()
            .map(|(id, text)| AutomationFolder {
                id: AutomationId::new(id).expect("an id"),
                dir: PathBuf::from(id),
                present: text.is_some(),
                manifest: text.map_or(FileContent::Absent, file),
                handler: HandlerFile::Present { len: 1, mtime_ns: 1, inode: 1 },
            })
            .collect(),
        complete,
        problems: Vec::new(),
    }
}

fn full(apps: Vec<AppFolder>) -> DiskBatch {
    DiskBatch { full: true, apps, root_problems: Vec::new() }
}

#[test]
fn a_folder_is_added_changed_and_removed() {
    let mut registry = Registry::default();
    let one = manifest_json("");
    let changes = registry.apply(full(vec![folder("a", &[("x", Some(&one))], true)]));
    assert_eq!(changes, [Change::AppAdded(AppId::new("a").unwrap()), Change::Added(handle("a/x"))]);
    assert_eq!(registry.apply(full(vec![folder("a", &[("x", Some(&one))], true)])), [], "the same bytes");
    let two = manifest_json(r#","enabled":false"#);
    assert_eq!(registry.apply(full(vec![folder("a", &[("x", Some(&two))], true)])), [Change::Changed(handle("a/x"))]);
    assert!(!registry.get(&handle("a/x")).unwrap().enabled());
    assert_eq!(registry.apply(full(vec![folder("a", &[], true)])), [Change::Removed(handle("a/x"))]);
    assert_eq!(registry.apply(full(vec![])), [Change::AppRemoved(AppId::new("a").unwrap())]);
}

#[test]
fn an_invalid_manifest_keeps_the_last_good_one_and_a_cold_start_has_none() {
    let mut registry = Registry::default();
    let good = manifest_json(r#","triggers":[{"kind":"cron","expr":"* * * * *"}]"#);
    registry.apply(full(vec![folder("a", &[("x", Some(&good)), ("cold", Some("{"))], true)]));
    registry.apply(full(vec![folder("a", &[("x", Some("{ nope")), ("cold", Some("{"))], true)]));
    let x = registry.get(&handle("a/x")).unwrap();
    assert!(!x.valid && x.manifest.is_some());
    assert_eq!(registry.problems_of(x)[0].code, "invalid_json");
    assert!(registry.problems_of(x)[0].line.is_some());
    assert!(registry.get(&handle("a/cold")).unwrap().manifest.is_none());
}

#[test]
fn a_webhook_id_claimed_twice_is_served_by_neither_until_one_lets_go() {
    let mut registry = Registry::default();
    let hook =
        manifest_json(&format!(r#","triggers":[{{"kind":"webhook","id":"slug","secretHash":"{}"}}]"#, "0".repeat(64)));
    registry.apply(full(vec![folder("a", &[("x", Some(&hook)), ("y", Some(&hook))], true)]));
    assert!(registry.by_webhook("slug").is_none());
    for id in ["a/x", "a/y"] {
        let problems = registry.problems_of(registry.get(&handle(id)).unwrap());
        assert_eq!(problems.last().unwrap().code, "duplicate_webhook", "{id}");
    }
    registry.apply(full(vec![folder("a", &[("x", Some(&hook))], true)]));
    assert_eq!(registry.by_webhook("slug").unwrap().handle, handle("a/x"));
    registry.apply(full(vec![folder("a", &[("x", Some("{"))], true)]));
    assert!(registry.by_webhook("slug").is_none(), "an invalid manifest closes its webhook");
}

#[test]
fn its_revision_changes_with_whatever_can_be_shown() {
    let mut registry = Registry::default();
    let good = manifest_json("");
    let one = || folder("a", &[("x", Some(&good))], true);
    let touched = || AppFolder {
        automations: vec![AutomationFolder {
            handler: HandlerFile::Present { len: 2, mtime_ns: 2, inode: 1 },
            ..one().automations.remove(0)
        }],
        ..one()
    };
    let misnamed = || AppFolder { name: "~".to_owned(), app: None, ..folder("", &[], true) };
    let gone = AppFolder { present: false, ..misnamed() };
    let part = |app: AppFolder| DiskBatch { full: false, apps: vec![app], root_problems: Vec::new() };
    let problem = Problem::error("unreadable", "", "told");
    for (what, batch, changes) in [
        ("an app", full(vec![one()]), true),
        ("the same again", full(vec![one()]), false),
        ("a manifest", part(folder("a", &[("x", Some("{"))], true)), true),
        ("the same again", part(folder("a", &[("x", Some("{"))], true)), false),
        ("back", part(one()), true),
        ("a handler", part(touched()), true),
        ("a page", part(AppFolder { has_index_html: true, ..touched() }), true),
        ("a problem", part(AppFolder { has_index_html: true, problems: vec![problem.clone()], ..touched() }), true),
        ("a folder whose name is none", part(misnamed()), true),
        ("the same again", part(misnamed()), false),
        ("it goes", part(gone), true),
        ("a problem of the root", DiskBatch { root_problems: vec![problem], ..full(Vec::new()) }, true),
        ("none", full(Vec::new()), true),
        ("the same again", full(Vec::new()), false),
    ] {
        let before = registry.revision();
        registry.apply(batch);
        assert_eq!(registry.revision() != before, changes, "{what}");
    }
}

#[test]
fn a_failure_handler_that_fires_nothing_is_warned_about_until_it_is_there() {
    let mut registry = Registry::default();
    let plain = manifest_json("");
    let naming = |target: &str| manifest_json(&format!(r#","onFailure":"{target}""#));
    let told = |registry: &Registry| registry.problems_of(registry.get(&handle("a/x")).unwrap());
    for (target, hint) in [
        ("x", "name another"),
        ("a/x", "name another"),
        ("rescu", "did you mean \"rescue\"?"),
        ("b/on-faliure", "did you mean \"b/on-failure\"?"),
        ("zzzzzzzz", "handled by nobody"),
    ] {
        let named = naming(target);
        let apps = vec![
            folder("a", &[("x", Some(&named)), ("rescue", Some(&plain))], true),
            folder("b", &[("on-failure", Some(&plain))], true),
        ];
        registry.apply(full(apps));
        let automation = registry.get(&handle("a/x")).unwrap();
        assert!(automation.valid && automation.enabled(), "{target}: it runs all the same");
        let problems = told(&registry);
        let [problem] = problems.as_slice() else { panic!("{target}: {problems:?}") };
        assert_eq!((problem.code.as_str(), problem.is_error()), ("invalid_on_failure", false), "{target}");
        assert!(problem.hint.as_deref().is_some_and(|told| told.contains(hint)), "{problem:?}");
        let column = named.find("onFailure").unwrap() + "onFailure':".len() + 1;
        assert_eq!((problem.line, problem.column), (Some(1), u32::try_from(column).ok()), "{target}");
    }
    let named = naming("late/rescue");
    registry.apply(full(vec![folder("a", &[("x", Some(&named))], true)]));
    assert_eq!(told(&registry).len(), 1);
    let late = |there: bool| DiskBatch {
        full: false,
        apps: vec![folder("late", &[("rescue", there.then_some("{"))], false)],
        root_problems: Vec::new(),
    };
    registry.apply(late(true));
    assert_eq!(told(&registry), [], "it is there now; what is wrong with it is its own problem");
    registry.apply(late(false));
    assert_eq!(told(&registry).len(), 1);
}
