//! `ctx.agent` against a local server that speaks the chat completions protocol.

use std::sync::{Arc, Mutex};

use axum::routing::post;
use axum::{Json, Router};
use dirigent::fire::{ErrorCode, RunStatus};
use serde_json::{Value, json};

use crate::harness::{Root, run};

/// A model that answers with what it is told to, and remembers what it was asked.
pub async fn model(answers: Vec<Value>) -> (String, Arc<Mutex<Vec<Value>>>) {
    let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
    let answers = Arc::new(Mutex::new(answers.into_iter()));
    let seen = Arc::clone(&asked);
    let app = Router::new().route(
        "/v1/chat/completions",
        post(move |Json(body): Json<Value>| {
            let (seen, answers) = (Arc::clone(&seen), Arc::clone(&answers));
            async move {
                seen.lock().expect("no panic").push(body);
                let text = answers.lock().expect("no panic").next().expect("one answer for each request");
                Json(json!({
                    "id": "c", "object": "chat.completion", "created": 0, "model": "m-1",
                    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
                    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
                }))
            }
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let base = format!("http://{}/v1", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, app).await });
    (base, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_turn_is_answered_recorded_and_validated() {
    let root = Root::new();
    let (base, asked) = model(vec![json!("four"), json!("{\"n\": \"x\"}"), json!("{\"n\": 4}")]).await;
    root.write("dirigent.toml", &format!("[models.local]\nbase_url = \"{base}\"\n"));
    root.automation(
        "a/x",
        r#""requires": {"model": "local/m-1"}"#,
        r#"export default async ({ ctx }) => {
          const text = await ctx.agent({ prompt: 'two and two?' });
          const value = await ctx.agent({ prompt: 'as JSON', json: { type: 'object', properties: { n: { type: 'integer' } }, required: ['n'] } });
          return { output: { text, value } };
        };"#,
    );
    let daemon = root.daemon().await;
    let (_, end) = run(&daemon, "a/x", None).await;
    assert_eq!(end.output_json.as_deref(), Some(r#"{"text":"four","value":{"n":4}}"#), "{end:?}");
    let nodes =
        root.sql("a", "select kind, ok, json_extract(usage_json, '$.inputTokens') > 0 from run_nodes order by ordinal");
    assert_eq!(nodes, ["agent|1|1", "agent|1|1"]);
    let asked = asked.lock().expect("no panic").clone();
    assert_eq!(asked.len(), 3, "the wrong answer was repaired in one more turn");
    assert_eq!(asked[0]["model"], "m-1");
    assert!(asked[0]["messages"].to_string().contains("two and two?"));
    daemon.stop(std::time::Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_model_the_call_says_what_to_set() {
    let root = Root::new();
    root.automation("a/none", "", "export default ({ ctx }) => ctx.agent({ prompt: 'x' });");
    root.automation(
        "a/unset",
        r#""requires": {"model": "local/m"}"#,
        "export default ({ ctx }) => ctx.agent({ prompt: 'x' });",
    );
    let daemon = root.daemon().await;
    for (id, told) in [("a/none", "\"requires\": {\"model\""), ("a/unset", "[models.local]")] {
        let (_, end) = run(&daemon, id, None).await;
        assert_eq!((end.status, end.error_code), (RunStatus::Error, Some(ErrorCode::HandlerThrew)));
        let error = end.error.unwrap_or_default();
        assert!(error.contains(told), "{id}: {error}");
    }
    daemon.stop(std::time::Duration::ZERO).await;
}
