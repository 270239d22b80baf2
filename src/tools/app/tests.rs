use super::handler_call::{MAX_RESULT_BYTES, action_result};
use super::*;
use crate::tools::tests::Folder;

const APP_JSON: &str = r#"{
    "manifestVersion": 1, "id": "todos", "name": "Todos", "version": "0.2.0", "description": "Small things.",
    "queries": [
        {"name": "list", "description": "All of them.", "reads": ["todos"],
         "input": {"type": "object", "properties": {"limit": {"type": "integer"}}},
         "output": {"type": "array", "items": {"type": "object", "required": ["id"]}}},
        {"name": "gone"}, {"name": "broken", "input": {"type": "nonsense"}}
    ],
    "actions": [
        {"name": "add", "confirmation": "none", "writes": ["todos", "log"], "timeoutMs": 1500,
         "input": {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "minLength": 1}}},
         "output": {"type": "object", "required": ["id"]}}
    ]
}"#;

fn tools() -> (AppTools, Arc<Folder>) {
    let folder = Arc::new(Folder::with(&[
        ("todos/app.json", APP_JSON),
        ("todos/queries/list.js", "export default () => [];"),
        ("todos/queries/broken.js", ""),
        ("todos/queries/undeclared.js", ""),
        ("todos/actions/add.js", "export default () => ({});"),
        ("journal/index.html", ""),
        ("bad/app.json", "{"),
    ]));
    (AppTools::new(folder.clone()), folder)
}

async fn planned(tools: &AppTools, kind: HandlerKind, args: Value) -> HandlerCall {
    tools.plan(kind, &args, None).await.unwrap_or_else(|error| panic!("{args}: {error:?}"))
}

#[tokio::test]
async fn a_declared_handler_is_planned() {
    let (tools, folder) = tools();
    let query =
        planned(&tools, HandlerKind::Query, json!({"app": "todos", "query": "list", "input": {"limit": 3}})).await;
    assert_eq!((query.app.as_str(), query.name.as_str(), query.kind), ("todos", "list", HandlerKind::Query));
    assert_eq!(query.script_name, "todos/queries/list.js");
    assert_eq!(&*query.source, "export default () => [];");
    assert_eq!(query.source_sha256, hex::encode(Sha256::digest("export default () => [];")));
    assert_eq!((query.input_json.as_str(), query.timeout_ms), (r#"{"limit":3}"#, 10_000));
    assert_eq!(query.data_path, folder.0.path().join("todos/data.sqlite"));

    let own = AppId::new("todos").unwrap();
    let args = json!({"action": "add", "input": {"text": "x"}});
    let action = tools.plan(HandlerKind::Action, &args, Some(&own)).await.unwrap();
    assert_eq!((action.script_name.as_str(), action.timeout_ms), ("todos/actions/add.js", 1500));
    assert_eq!(action.writes, ["todos", "log"]);

    let bare = planned(&tools, HandlerKind::Query, json!({"app": "todos", "query": "list"})).await;
    assert_eq!(bare.input_json, "{}");
}

#[tokio::test]
async fn what_cannot_be_called_is_refused_with_its_code() {
    use HandlerKind::{Action, Query};
    let (tools, _folder) = tools();
    for (kind, args, code, part) in [
        (Query, json!([]), INVALID_INPUT, "arguments of centraid_read must be an object"),
        (Query, json!({}), INVALID_INPUT, "`app` is missing; centraid_read takes { app, query, input }"),
        (Query, json!({"app": 7}), INVALID_INPUT, "`app` must be a text"),
        (Query, json!({"app": "todos"}), INVALID_INPUT, "`query` is missing"),
        (Query, json!({"app": "todos", "query": ["list"]}), INVALID_INPUT, "`query` must be a text"),
        (
            Query,
            json!({"app": "todo", "query": "list"}),
            UNKNOWN_APP,
            "there is no app \"todo\"; did you mean \"todos\"?",
        ),
        (Query, json!({"app": "../todos", "query": "list"}), UNKNOWN_APP, "there is no app"),
        (Query, json!({"app": "todos", "query": "lst"}), UNKNOWN_QUERY, "did you mean \"list\"?"),
        (Query, json!({"app": "todos", "query": "../actions/add"}), UNKNOWN_QUERY, "has no query"),
        (Query, json!({"app": "todos", "query": "undeclared"}), UNKNOWN_QUERY, "app.json does not list it"),
        (Action, json!({"app": "todos", "action": "remove"}), UNKNOWN_ACTION, "has no action \"remove\""),
        (Query, json!({"app": "todos", "query": "add"}), WRONG_KIND, "is an action of app todos; use centraid_write"),
        (Query, json!({"app": "todos", "action": "add"}), WRONG_KIND, "use centraid_write"),
        (Action, json!({"app": "todos", "action": "list"}), WRONG_KIND, "is a query of app todos; use centraid_read"),
        (Query, json!({"app": "todos", "query": "gone"}), HANDLER_ERROR, "queries/gone.js does not exist"),
        (Query, json!({"app": "todos", "query": "broken"}), INVALID_MANIFEST, "`input` schema of query \"broken\""),
        (Query, json!({"app": "bad", "query": "x"}), INVALID_MANIFEST, "app bad: app.json is no valid JSON"),
        (Query, json!({"app": "journal", "query": "x"}), UNKNOWN_QUERY, "app journal has no query"),
    ] {
        let error = tools.plan(kind, &args, None).await.err().unwrap_or_else(|| panic!("{args} was planned"));
        assert_eq!(error.code, code, "{args}: {}", error.message);
        assert!(error.message.contains(part), "{args}: {}", error.message);
    }
}

#[tokio::test]
async fn input_is_validated_and_the_failing_value_located() {
    let (tools, _folder) = tools();
    for (input, path) in [
        (json!({}), Some("/text")),
        (json!({"text": ""}), Some("/text")),
        (json!({"text": 7}), Some("/text")),
        (json!("text"), None),
    ] {
        let args = json!({"app": "todos", "action": "add", "input": input});
        let error = tools.plan(HandlerKind::Action, &args, None).await.err().expect("refused");
        assert_eq!((error.code.as_str(), error.path.as_deref()), (INVALID_INPUT, path), "{input}: {}", error.message);
        assert!(error.message.contains("action \"add\" of app todos refuses its input"), "{}", error.message);
    }
}

#[tokio::test]
async fn results_are_judged() {
    let (tools, _folder) = tools();
    let query = planned(&tools, HandlerKind::Query, json!({"app": "todos", "query": "list"})).await;
    let add = json!({"app": "todos", "action": "add", "input": {"text": "x"}});
    let action = planned(&tools, HandlerKind::Action, add).await;
    let both: &[String] = &["todos".to_owned(), "log".to_owned()];
    for (call, returned, expected, changed) in [
        (&query, Some(r#"[{"id": 1}]"#), Ok(r#"[{"id": 1}]"#), &[][..]),
        (&query, Some("[{}]"), Err("\"id\" is a required property"), &[]),
        (&query, None, Err("null is not of type \"array\""), &[]),
        (&query, Some("{"), Err("no valid JSON"), &[]),
        (&action, Some(r#"{"body":{"id":1},"status":201}"#), Ok(r#"{"status":201,"body":{"id":1}}"#), both),
        (&action, Some(r#"{"body":{"id":1}}"#), Ok(r#"{"body":{"id":1}}"#), both),
        (&action, Some(r#"{"status":400,"body":{"error":"no"}}"#), Ok(r#"{"status":400,"body":{"error":"no"}}"#), &[]),
        (&action, Some(r#"{"body":{}}"#), Err("\"id\" is a required property"), &[]),
        (&action, Some(r#"{"ok":true}"#), Err("must return { status?, body }, not an object with ok"), &[]),
        (&action, Some(r#""done""#), Err("must return { status?, body }"), &[]),
        (&action, Some(r#"{"status":"200","body":{"id":1}}"#), Err("HTTP status"), &[]),
        (&action, Some(r#"{"status":7,"body":{"id":1}}"#), Err("HTTP status"), &[]),
        (&action, None, Err("null is not of type \"object\""), &[]),
    ] {
        match (call.finish(returned.map(ToOwned::to_owned)), expected) {
            (Ok(found), Ok(wanted)) => {
                assert_eq!(found, wanted, "{returned:?}");
                assert_eq!(call.changed_tables(&found), changed, "{returned:?}");
            }
            (Err(error), Err(part)) => {
                assert_eq!(error.code, HANDLER_ERROR, "{returned:?}");
                assert!(error.message.contains(part), "{returned:?}: {}", error.message);
            }
            (found, wanted) => panic!("{returned:?}: {found:?}, not {wanted:?}"),
        }
    }
    assert_eq!(action_result(Value::Null), Ok(json!({"body": null})));
    assert!(query.finish(Some(format!("\"{}\"", "x".repeat(MAX_RESULT_BYTES)))).is_err());
}

#[tokio::test]
async fn apps_are_described() {
    let (tools, _folder) = tools();
    let all = tools.describe(&json!({}), None).await.unwrap();
    let ids: Vec<&str> = all["apps"].as_array().unwrap().iter().map(|app| app["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["bad", "journal", "todos"]);
    assert_eq!(all["apps"][0]["error"]["code"], INVALID_MANIFEST);
    assert_eq!(all["apps"][1], json!({"id": "journal", "queries": [], "actions": []}));
    assert_eq!(all["apps"][2]["queries"][0], json!({"name": "list", "description": "All of them."}));

    let todos = [AppId::new("todos").unwrap()];
    let visible = tools.describe(&Value::Null, Some(&todos)).await.unwrap();
    assert_eq!(visible["apps"].as_array().unwrap().len(), 1);

    let app = tools.describe(&json!({"app": "todos"}), Some(&todos)).await.unwrap();
    assert_eq!(app["app"], json!({"id": "todos", "name": "Todos", "version": "0.2.0", "description": "Small things."}));
    assert_eq!(app["queries"][0]["reads"], json!(["todos"]));
    assert_eq!(app["actions"][0]["confirmation"], "none");

    let entry = tools.describe(&json!({"app": "todos", "action": "add"}), None).await.unwrap();
    assert_eq!(entry["action"]["input"]["required"], json!(["text"]));

    for (args, code) in [
        (json!({"app": "journal"}), UNKNOWN_APP),
        (json!({"app": "todos", "query": "nope"}), UNKNOWN_QUERY),
        (json!({"app": "todos", "query": "add"}), WRONG_KIND),
        (json!({"app": "todos", "query": "list", "action": "add"}), INVALID_INPUT),
        (json!({"query": "list"}), INVALID_INPUT),
        (json!("todos"), INVALID_INPUT),
    ] {
        let error = tools.describe(&args, Some(&todos)).await.unwrap_err();
        assert_eq!(error.code, code, "{args}: {}", error.message);
    }
}

#[tokio::test]
async fn an_edit_counts_at_once_and_the_cache_stays_bounded() {
    let (tools, folder) = tools();
    let args = json!({"app": "todos", "query": "list"});
    let first = planned(&tools, HandlerKind::Query, args.clone()).await;
    let again = planned(&tools, HandlerKind::Query, args.clone()).await;
    assert!(Arc::ptr_eq(&first.declared, &again.declared));
    folder.write("todos/app.json", &APP_JSON.replace("\"list\"", "\"lists\""));
    folder.write("todos/queries/lists.js", "export default () => 1;");
    assert_eq!(tools.plan(HandlerKind::Query, &args, None).await.err().unwrap().code, UNKNOWN_QUERY);
    planned(&tools, HandlerKind::Query, json!({"app": "todos", "query": "lists"})).await;

    let mut cache = Cache::default();
    for index in 0..CACHED_APPS + 10 {
        cache.put(AppId::new(&format!("app{index}")).unwrap(), [0; 32], Ok(Arc::default()));
        assert!(cache.get(&AppId::new("app0").unwrap(), [0; 32]).is_some());
    }
    assert_eq!(cache.apps.len(), CACHED_APPS);
    assert!(cache.get(&AppId::new("app1").unwrap(), [0; 32]).is_none());
}
