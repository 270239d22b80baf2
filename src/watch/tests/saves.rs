//! Every way to save that is worth a name, with every source of hints.

use std::io::Write;

use super::*;

struct Case {
    name: &'static str,
    act: fn(&Path, &Path),
    /// What is known in the end: handle and number of the manifest, or none when it is gone.
    expect: &'static [(&'static str, Option<u32>)],
    /// No intermediate state may be published.
    in_one_step: bool,
}

const X: &str = "a/automations/x/automation.json";

const CASES: &[Case] = &[
    Case {
        name: "rewritten in place",
        act: |root, _| fs::write(root.join(X), json(1)).expect("a write"),
        expect: &[("a/x", Some(1))],
        in_one_step: true,
    },
    Case {
        name: "truncated and written slowly",
        act: |root, _| {
            let mut file = fs::File::create(root.join(X)).expect("a file");
            for chunk in json(1).as_bytes().chunks(30) {
                file.write_all(chunk).expect("a chunk");
                // Not a wait: this is what the writer is like.
                std::thread::sleep(Duration::from_millis(5));
            }
        },
        expect: &[("a/x", Some(1))],
        in_one_step: true,
    },
    Case {
        name: "temporary file and rename",
        act: |root, _| save(&root.join(X), &json(1)),
        expect: &[("a/x", Some(1))],
        in_one_step: true,
    },
    Case {
        name: "write_atomic",
        act: |root, _| write_atomic(&root.join(X), json(1).as_bytes()).expect("a write"),
        expect: &[("a/x", Some(1))],
        in_one_step: true,
    },
    Case {
        name: "renamed away and created",
        act: |root, _| {
            fs::rename(root.join(X), root.join("a/automations/x/automation.json~")).expect("a rename");
            fs::write(root.join(X), json(1)).expect("a write");
        },
        expect: &[("a/x", Some(1))],
        in_one_step: true,
    },
    Case {
        name: "deleted and created, as git checkout does",
        act: |root, _| {
            fs::remove_file(root.join(X)).expect("a removal");
            fs::write(root.join(X), json(1)).expect("a write");
        },
        expect: &[("a/x", Some(1))],
        in_one_step: true,
    },
    Case {
        name: "two atomic saves in a row",
        act: |root, _| {
            save(&root.join(X), &json(1));
            save(&root.join(X), &json(2));
        },
        expect: &[("a/x", Some(2))],
        in_one_step: false,
    },
    Case {
        name: "rsync: hidden file, times set, rename",
        act: |root, _| {
            let temporary = root.join("a/automations/x/.automation.json.Zq3x");
            let mut file = fs::File::create(&temporary).expect("a file");
            file.write_all(json(1).as_bytes()).expect("a write");
            file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).expect("a time");
            drop(file);
            fs::rename(&temporary, root.join(X)).expect("a rename");
        },
        expect: &[("a/x", Some(1))],
        in_one_step: true,
    },
    Case {
        name: "a hard link put in place",
        act: |root, _| {
            let other = root.join("a/automations/x/other");
            fs::write(&other, json(1)).expect("a write");
            fs::remove_file(root.join(X)).expect("a removal");
            fs::hard_link(&other, root.join(X)).expect("a link");
        },
        expect: &[("a/x", Some(1))],
        in_one_step: true,
    },
    Case {
        name: "a new folder",
        act: |root, _| write_automation(root, "a", "new", &json(1)),
        expect: &[("a/x", Some(0)), ("a/new", Some(1))],
        in_one_step: true,
    },
    Case {
        name: "a new app, folder by folder",
        act: |root, _| write_automation(root, "b", "new", &json(1)),
        expect: &[("a/x", Some(0)), ("b/new", Some(1))],
        in_one_step: true,
    },
    Case {
        name: "an app moved in from outside",
        act: |root, outside| {
            write_automation(outside, "b", "y", &json(1));
            write_automation(outside, "b", "z", &json(2));
            fs::rename(outside.join("b"), root.join("b")).expect("a rename");
        },
        expect: &[("b/y", Some(1)), ("b/z", Some(2))],
        in_one_step: true,
    },
    Case {
        name: "an automation moved in from outside",
        act: |root, outside| {
            write_automation(outside, "b", "y", &json(1));
            fs::rename(outside.join("b/automations/y"), root.join("a/automations/y")).expect("a rename");
        },
        expect: &[("a/y", Some(1))],
        in_one_step: true,
    },
    Case {
        name: "a folder renamed",
        act: |root, _| fs::rename(root.join("a/automations/x"), root.join("a/automations/y")).expect("a rename"),
        expect: &[("a/x", None), ("a/y", Some(0))],
        in_one_step: false,
    },
    Case {
        name: "a folder deleted",
        act: |root, _| fs::remove_dir_all(root.join("a/automations/x")).expect("a removal"),
        expect: &[("a/x", None), ("a/sentinel", Some(0))],
        in_one_step: false,
    },
    Case {
        name: "a folder deleted and made again at once",
        act: |root, _| {
            fs::remove_dir_all(root.join("a/automations/x")).expect("a removal");
            write_automation(root, "a", "x", &json(1));
        },
        expect: &[("a/x", Some(1))],
        in_one_step: true,
    },
    Case {
        name: "an app deleted and made again at once",
        act: |root, _| {
            fs::remove_dir_all(root.join("a")).expect("a removal");
            write_automation(root, "a", "x", &json(1));
            write_automation(root, "a", "sentinel", &json(0));
        },
        expect: &[("a/x", Some(1)), ("a/sentinel", Some(0))],
        in_one_step: false,
    },
    Case {
        name: "an app renamed",
        act: |root, _| fs::rename(root.join("a"), root.join("b")).expect("a rename"),
        expect: &[("a/x", None), ("a/sentinel", None), ("b/x", Some(0)), ("b/sentinel", Some(0))],
        in_one_step: false,
    },
    Case {
        name: "all automations replaced by another folder",
        act: |root, _| {
            write_automation(root, "a/.next", "x", &json(1));
            fs::rename(root.join("a/automations"), root.join("a/.former")).expect("a rename");
            fs::rename(root.join("a/.next/automations"), root.join("a/automations")).expect("a rename");
        },
        expect: &[("a/x", Some(1)), ("a/sentinel", None)],
        in_one_step: false,
    },
    Case {
        name: "the root deleted and made again at once",
        act: |root, _| {
            fs::remove_dir_all(root).expect("a removal");
            write_automation(root, "a", "x", &json(1));
        },
        expect: &[("a/x", Some(1)), ("a/sentinel", None)],
        in_one_step: false,
    },
];

#[test]
fn every_way_to_save_is_noticed_and_the_next_one_too() {
    for mode in MODES {
        for case in CASES {
            check(*mode, case);
        }
    }
}

fn check(mode: Mode, case: &Case) {
    // The portable layer loses its root on Linux when that is deleted; elsewhere the system follows paths.
    if mode == Mode::Portable && case.name.starts_with("the root") {
        return;
    }
    println!("{mode:?}: {}", case.name);
    let mut harness = Harness::new(mode);
    (case.act)(&harness.root, &harness.outside);
    let expected: Vec<(&str, Option<String>)> = case.expect.iter().map(|(h, n)| (*h, n.map(json))).collect();
    harness.until(case.name, |h| expected.iter().all(|(handle, text)| h.manifest(handle) == text.as_deref()));
    if case.in_one_step {
        let finals: Vec<&str> = expected.iter().filter_map(|(_, text)| text.as_deref()).collect();
        let torn: Vec<_> = harness.log.iter().filter(|(_, text)| !finals.contains(&text.as_str())).collect();
        assert!(torn.is_empty(), "{mode:?}, {}: published on the way: {torn:?}", case.name);
    }
    for (handle, text) in expected {
        if text.is_some() {
            let (app, id) = handle.split_once('/').expect("a handle");
            save(&harness.root.join(app).join("automations").join(id).join("automation.json"), &json(99));
            harness.until_manifest(handle, &json(99));
        }
    }
}

#[test]
fn what_changes_nothing_is_not_published() {
    type Act = fn(&Path);
    let idle: &[(&str, Act)] = &[
        ("a touch", |root| {
            let file = fs::File::options().write(true).open(root.join(X)).expect("a file");
            file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).expect("a time");
        }),
        ("the same content in place", |root| fs::write(root.join(X), json(0)).expect("a write")),
        ("the same content by rename", |root| save(&root.join(X), &json(0))),
        ("a ledger at work", |root| {
            let mut wal = fs::File::create(root.join("a/runtime.sqlite-wal")).expect("a file");
            for n in 0..5_000u32 {
                wal.write_all(&n.to_le_bytes()).expect("a write");
            }
            for n in 0..200u32 {
                fs::write(root.join("a/runtime.sqlite-journal"), n.to_le_bytes()).expect("a write");
                fs::remove_file(root.join("a/runtime.sqlite-journal")).expect("a removal");
            }
        }),
        ("files nobody reads", |root| {
            fs::write(root.join("mcp.json"), "{}").expect("a write");
            fs::write(root.join("a/automations/README.md"), "text").expect("a write");
            fs::write(root.join("a/automations/x/notes.txt"), "text").expect("a write");
            fs::create_dir_all(root.join("a/automations/.git/objects")).expect("folders");
            fs::create_dir_all(root.join("_drafts/automations/x")).expect("folders");
        }),
    ];
    for mode in MODES {
        for (name, act) in idle {
            let mut harness = Harness::new(*mode);
            act(&harness.root);
            harness.pass_sentinel(1);
            harness.pass_sentinel(2);
            let others: Vec<_> = harness.log.iter().filter(|(handle, _)| handle != "a/sentinel").collect();
            assert!(others.is_empty(), "{mode:?}, {name}: {others:?}");
        }
    }
}

#[test]
fn a_checkout_comes_as_few_batches_and_none_is_missed() {
    let many = |root: &Path, n| {
        for i in 0..300 {
            let path = root.join(format!("app{}/automations/m{i}/automation.json", i % 3));
            // As git does it.
            fs::remove_file(&path).ok();
            fs::write(&path, json(n)).expect("a write");
        }
    };
    for mode in MODES {
        let mut harness = Harness::with(*mode, source_of(*mode), 4, |root| {
            (0..300).for_each(|i| write_automation(root, &format!("app{}", i % 3), &format!("m{i}"), &json(0)));
        });
        for round in 1..=2 {
            many(&harness.root, round);
            harness.until("all of them", |h| {
                (0..300).all(|i| h.manifest(&format!("app{}/m{i}", i % 3)) == Some(json(round).as_str()))
            });
        }
        assert!(harness.log.iter().all(|(_, text)| text != "gone" && text != "-"), "{mode:?}: seen half-way");
    }
}

#[test]
fn handlers_and_app_files_are_published_when_they_change() {
    for mode in MODES {
        let mut harness = Harness::new(*mode);
        save(&harness.path("a/automations/x/handler.js"), "export default () => 'changed'");
        harness.until("the handler", |h| h.log.contains(&("a/x".to_owned(), json(0))));
        fs::write(harness.path("a/app.json"), r#"{"name":"A"}"#).expect("a write");
        fs::write(harness.path("a/index.html"), "<html>").expect("a write");
        harness.until("app.json and index.html", |h| {
            h.apps["a"].app_json.as_deref() == Some(r#"{"name":"A"}"#) && h.apps["a"].has_index_html
        });
        fs::remove_file(harness.path("a/app.json")).expect("a removal");
        fs::remove_file(harness.path("a/index.html")).expect("a removal");
        harness.until("their removal", |h| h.apps["a"].app_json.is_none() && !h.apps["a"].has_index_html);
    }
}

#[test]
fn a_manifest_that_stays_broken_is_published_as_it_is() {
    for mode in MODES {
        let mut harness = Harness::new(*mode);
        fs::write(harness.path(X), "{ \"name\": ").expect("a write");
        harness.until_manifest("a/x", "{ \"name\": ");
        // A writer that never closes the file is not waited for either.
        let mut file = fs::File::create(harness.path(X)).expect("a file");
        file.write_all(json(1).as_bytes()).expect("a write");
        harness.until_manifest("a/x", &json(1));
        drop(file);
    }
}
