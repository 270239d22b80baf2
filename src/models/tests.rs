use super::*;
use std::sync::Mutex;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;

const KEY: &str = "sk-very-secret";

/// A provider that answers with what it was given, in turn, and remembers what it was asked.
#[derive(Clone, Default)]
struct Provider(Arc<Mutex<Script>>);

/// Status, headers, body.
type Scripted = (u16, Vec<(&'static str, String)>, String);

#[derive(Default)]
struct Script {
    answers: Vec<Scripted>,
    requests: Vec<(Option<String>, Value)>,
}

impl Provider {
    fn with(answers: &[(u16, Value)]) -> Self {
        let provider = Self::default();
        for (status, body) in answers.iter().rev() {
            provider.0.lock().unwrap().answers.push((*status, Vec::new(), body.to_string()));
        }
        provider
    }

    fn raw(status: u16, headers: &[(&'static str, &str)], body: &str) -> Self {
        let provider = Self::default();
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        provider.0.lock().unwrap().answers.push((status, headers, body.to_owned()));
        provider
    }

    /// Answers with `first` before anything else.
    fn after(self, status: u16, headers: &[(&'static str, &str)]) -> Self {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        self.0.lock().unwrap().answers.push((status, headers, r#"{"error":{"message":"later"}}"#.to_owned()));
        self
    }

    /// The base URL at which it listens, until the test's runtime ends.
    async fn serve(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/v1/chat/completions", post(answer)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        format!("http://{address}/v1/")
    }

    fn requests(&self) -> Vec<Value> {
        self.0.lock().unwrap().requests.iter().map(|(_, body)| body.clone()).collect()
    }
}

async fn answer(State(provider): State<Provider>, headers: HeaderMap, body: String) -> Response {
    let mut script = provider.0.lock().unwrap();
    let authorization = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    script.requests.push((authorization, serde_json::from_str(&body).unwrap()));
    let (status, headers, body) = match script.answers.len() {
        0 => (500, Vec::new(), "the script is over".to_owned()),
        1 => script.answers[0].clone(),
        _ => script.answers.pop().unwrap(),
    };
    let mut response = (StatusCode::from_u16(status).unwrap(), body).into_response();
    for (name, value) in headers {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

fn completion(text: &str) -> Value {
    json!({
        "id": "c1", "object": "chat.completion", "created": 1, "model": "tiny-2",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    })
}

/// Models with provider `local` at the URL, and the waits that they make, none of which takes time.
fn models(base_url: &str) -> (Models, Arc<Mutex<Vec<Duration>>>) {
    let config = format!("[local]\nbase_url = {base_url:?}\napi_key_env = \"LOCAL_KEY\"");
    let config: ModelsConfig = toml::from_str(&config).unwrap();
    assert_eq!(config.problems(), [""; 0]);
    let mut models = Models::new(config, Arc::new(|name| (name == "LOCAL_KEY").then(|| format!(" {KEY}\n"))));
    let waits: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let noted = Arc::clone(&waits);
    models.sleep = Arc::new(move |wait| {
        noted.lock().unwrap().push(wait);
        Box::pin(std::future::ready(()))
    });
    (models, waits)
}

fn asked(prompt: &str, json: Option<Value>) -> AgentArgs {
    AgentArgs { prompt: prompt.to_owned(), json }
}

async fn turn(provider: &Provider, json: Option<Value>) -> Result<AgentReply, CallError> {
    let (models, _) = models(&provider.serve().await);
    models.turn(Some("local/tiny"), asked("Say hello.", json)).await
}

fn schema() -> Value {
    let properties = json!({"n": {"type": "integer"}});
    json!({"type": "object", "required": ["n"], "properties": properties, "additionalProperties": false})
}

#[tokio::test]
async fn a_plain_turn_gives_text_and_usage() {
    let provider = Provider::with(&[(200, completion("Hello \"you\"."))]);
    let reply = turn(&provider, None).await.unwrap();
    assert_eq!(reply.value_json, r#""Hello \"you\".""#);
    assert_eq!(reply.usage_json, r#"{"model":"local/tiny","inputTokens":7,"outputTokens":3}"#);
    let script = provider.0.lock().unwrap();
    let (authorization, request) = &script.requests[0];
    assert_eq!(authorization.as_deref(), Some("Bearer sk-very-secret"));
    assert_eq!(request["model"], "tiny");
    assert_eq!(request["messages"], json!([{"role": "user", "content": "Say hello."}]));
    assert!(request.get("response_format").is_none());
}

#[tokio::test]
async fn a_model_id_is_sent_as_it_stands() {
    for id in ["qwen3-max", "meta/llama-3:free", "ns::model-low"] {
        let provider = Provider::with(&[(200, completion("x"))]);
        let (models, _) = models(&provider.serve().await);
        models.turn(Some(&format!("local/{id}")), asked("x", None)).await.unwrap();
        let requests = provider.requests();
        assert_eq!(requests[0]["model"], *id);
        assert!(requests[0].get("reasoning_effort").is_none());
    }
}

#[tokio::test]
async fn compatible_endpoints_may_leave_things_out() {
    for (body, value, usage) in [
        (json!({"choices": [{"message": {"content": "hi"}}]}), "\"hi\"", "null,\"outputTokens\":null"),
        (
            json!({"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"text": "b"}]}}],
                   "usage": {"prompt_tokens": 1}}),
            "\"ab\"",
            "1,\"outputTokens\":null",
        ),
        (json!({"choices": [{"message": {"content": "hi"}}], "usage": null, "error": null}), "\"hi\"", "null"),
    ] {
        let reply = turn(&Provider::with(&[(200, body)]), None).await.unwrap();
        assert_eq!(reply.value_json, value);
        assert!(reply.usage_json.contains(usage), "{}", reply.usage_json);
    }
}

#[tokio::test]
async fn a_schema_is_asked_for_and_enforced() {
    let provider = Provider::with(&[(200, completion("```json\n{\"n\": 5}\n```"))]);
    let reply = turn(&provider, Some(schema())).await.unwrap();
    assert_eq!(reply.value_json, r#"{"n":5}"#);
    let request = provider.requests().remove(0);
    assert_eq!(
        request["response_format"],
        json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema(), "strict": true}})
    );
    assert_eq!(request["messages"][0]["role"], "system");
    assert!(request["messages"][0]["content"].as_str().unwrap().contains("\"integer\""));
}

#[tokio::test]
async fn a_bad_answer_is_repaired_once_and_then_rejected() {
    let provider = Provider::with(&[(200, completion("five")), (200, completion(r#"{"n": 5}"#))]);
    let reply = turn(&provider, Some(schema())).await.unwrap();
    assert_eq!(reply.value_json, r#"{"n":5}"#);
    assert_eq!(reply.usage_json, r#"{"model":"local/tiny","inputTokens":14,"outputTokens":6}"#);
    let repair = &provider.requests()[1]["messages"];
    assert_eq!(repair[2], json!({"role": "assistant", "content": "five"}));
    assert!(repair[3]["content"].as_str().unwrap().starts_with("That answer is not valid: it is no JSON"), "{repair}");

    let provider = Provider::with(&[(200, completion("five")), (200, completion(r#"{"n": "sk-very-secret"}"#))]);
    let error = turn(&provider, Some(schema())).await.unwrap_err();
    assert_eq!(error.code, AGENT_BAD_JSON);
    assert!(error.message.contains("/n: \"[key]\" is not of type \"integer\""), "{}", error.message);
    assert_eq!(provider.requests().len(), 2);
}

#[tokio::test]
async fn an_endpoint_without_structured_output_is_asked_in_words_alone() {
    let refusal = json!({"error": {"message": "response_format is not supported"}});
    let provider = Provider::with(&[(400, refusal), (200, completion("5")), (200, completion(r#"{"n": 5}"#))]);
    assert_eq!(turn(&provider, Some(schema())).await.unwrap().value_json, r#"{"n":5}"#);
    let formats: Vec<bool> =
        provider.requests().iter().map(|request| request.get("response_format").is_some()).collect();
    assert_eq!(formats, [true, false, false]);
}

#[tokio::test]
async fn overload_is_waited_out_at_most_twice() {
    let date = |second: u32| format!("Wed, 21 Oct 2026 07:28:{second:02} GMT");
    let ms = Duration::from_millis;
    for (first, headers, waits) in [
        (429, vec![], vec![ms(500)]),
        (429, vec![("retry-after", "3".to_owned())], vec![ms(3000)]),
        (429, vec![("retry-after", "0.25".to_owned())], vec![ms(250)]),
        (503, vec![("retry-after-ms", "40".to_owned())], vec![ms(40)]),
        (429, vec![("date", date(10)), ("retry-after", date(22))], vec![ms(12_000)]),
        (429, vec![("retry-after", "soon".to_owned())], vec![ms(500)]),
        (502, vec![], vec![ms(500)]),
        (529, vec![], vec![ms(500)]),
    ] {
        let headers: Vec<(&'static str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let provider = Provider::with(&[(200, completion("at last"))]).after(first, &headers);
        let (models, waited) = models(&provider.serve().await);
        let reply = models.turn(Some("local/tiny"), asked("x", None)).await.unwrap();
        assert_eq!(reply.value_json, "\"at last\"");
        assert_eq!(*waited.lock().unwrap(), waits, "{first} {headers:?}");
    }

    let provider = Provider::raw(500, &[], "boom");
    let (models, waited) = models(&provider.serve().await);
    let error = models.turn(Some("local/tiny"), asked("x", None)).await.unwrap_err();
    assert_eq!(error.code, MODEL_FAILED);
    assert!(error.message.contains("\"local\" gave no answer (HTTP 500): boom"), "{}", error.message);
    assert_eq!(*waited.lock().unwrap(), [ms(500), ms(1000)]);
    assert_eq!(provider.requests().len(), 3);
}

#[tokio::test]
async fn a_wait_that_is_too_long_is_reported_instead() {
    let provider = Provider::raw(429, &[("retry-after", "3600")], r#"{"error":{"message":"quota"}}"#);
    let (models, waited) = models(&provider.serve().await);
    let error = models.turn(Some("local/tiny"), asked("x", None)).await.unwrap_err();
    assert!(error.message.contains("(HTTP 429): quota; it asks to wait 3600 s"), "{}", error.message);
    assert!(waited.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_is_no_answer_is_named_and_no_key_shown() {
    let no_text = json!({"choices": [{"message": {"content": ""}, "finish_reason": "length"}]});
    let refusal = json!({"choices": [{"message": {"content": null, "refusal": "I must not."}}]});
    for (status, body, part) in [
        (200, "<html>".to_owned(), "no chat completion"),
        (200, "{}".to_owned(), "holds no choices"),
        (200, r#"{"choices": 7}"#.to_owned(), "no chat completion"),
        (200, r#"{"error": {"message": "upstream is gone"}}"#.to_owned(), "upstream is gone"),
        (200, no_text.to_string(), "no text (finish_reason \"length\")"),
        (200, refusal.to_string(), "it refused: I must not."),
        (
            401,
            format!(r#"{{"error": {{"message": "bad key {KEY}"}}}}"#),
            "(HTTP 401): bad key [key]; check the key set",
        ),
        (404, r#"{"error": "no such model"}"#.to_owned(), "(HTTP 404): no such model; check `requires.model`"),
        (403, format!("<p>{KEY}</p>{}", "x".repeat(100_000)), "(HTTP 403): <p>[key]</p>xxx"),
        (418, String::new(), "(HTTP 418): it gave no reason"),
        (307, String::new(), "(HTTP 307)"),
    ] {
        let provider = Provider::raw(status, &[("location", "http://127.0.0.1:9/")], &body);
        let error = turn(&provider, None).await.unwrap_err();
        assert_eq!(error.code, MODEL_FAILED, "{}", error.message);
        assert!(error.message.contains(part), "{status}: {}", error.message);
        assert!(!error.message.contains(KEY) && error.message.len() < 1000, "{}", error.message);
        assert_eq!(provider.requests().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let endless = futures::stream::repeat_with(|| Ok::<_, std::convert::Infallible>(vec![b' '; 1 << 16]));
    let router = Router::new()
        .route("/v1/chat/completions", post(move || async move { axum::body::Body::from_stream(endless) }));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let (models, _) = models(&format!("http://{address}/v1"));
    let error = models.turn(Some("local/tiny"), asked("x", None)).await.unwrap_err();
    assert!(error.message.contains("larger than 16777216 bytes"), "{}", error.message);
}

#[tokio::test]
async fn a_provider_that_is_down_is_reported() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (models, _) = models(&format!("http://{address}/v1"));
    let error = models.turn(Some("local/tiny"), asked("x", None)).await.unwrap_err();
    assert_eq!(error.code, MODEL_FAILED);
    assert!(error.message.to_lowercase().contains("refused"), "{}", error.message);
}

#[tokio::test]
async fn what_is_missing_is_said_with_the_place_to_set_it() {
    let config = "[keyed]\nbase_url = \"http://127.0.0.1:9/v1\"\napi_key_env = \"KEYED_KEY\"\n\
                  [odd]\nbase_url = \"http://127.0.0.1:9/v1\"\napi_key_env = \"ODD_KEY\"\n\
                  [openai]\nbase_url = \"http://127.0.0.1:9/v1\"\n[broken]\nbase_url = \"ftp://x\"";
    let config: ModelsConfig = toml::from_str(config).unwrap();
    let models = Models::new(config, Arc::new(|name| (name == "ODD_KEY").then(|| "a\nb".to_owned())));
    for (model, prompt, json, code, parts) in [
        (None, "x", None, MODEL_NOT_SET, vec!["automation.json", "requires", "provider/model-id"]),
        (Some("gpt"), "x", None, MODEL_NOT_SET, vec!["`requires.model`", "provider/model-id", "\"gpt\""]),
        (Some("/gpt"), "x", None, MODEL_NOT_SET, vec!["provider/model-id"]),
        (Some("x/y"), "x", None, MODEL_NOT_CONFIGURED, vec!["[models.x]", "base_url", "api_key_env", "dirigent.toml"]),
        (Some("keyed/y"), "x", None, MODEL_NOT_CONFIGURED, vec!["KEYED_KEY", "[models.keyed]"]),
        (Some("anthropic/y"), "x", None, MODEL_NOT_CONFIGURED, vec!["ANTHROPIC_API_KEY", "[models.anthropic]"]),
        (Some("odd/y"), "x", None, MODEL_NOT_CONFIGURED, vec!["ODD_KEY"]),
        (Some("broken/y"), "x", None, MODEL_NOT_CONFIGURED, vec!["[models.broken]", "http://"]),
        (Some("keyed/y"), " ", None, AGENT_BAD_ARGS, vec!["`prompt`"]),
        (Some("keyed/y"), "x", Some(json!({"type": "nope"})), AGENT_BAD_ARGS, vec!["`json` is no valid JSON Schema"]),
        // Its usual key is not for another host, and is not asked for.
        (Some("openai/y"), "x", None, MODEL_FAILED, vec!["\"openai\" gave no answer"]),
    ] {
        let error = models.turn(model, asked(prompt, json)).await.unwrap_err();
        assert_eq!(error.code, code, "{model:?}: {}", error.message);
        for part in parts {
            assert!(error.message.contains(part), "{model:?}: {}", error.message);
        }
    }
}

#[test]
fn settings_are_checked() {
    for (config, part) in [
        ("[openai]", None),
        ("[openai]\napi_key_env = \"MY_KEY\"", None),
        ("[x]\nbase_url = \"https://host/v1\"", None),
        ("[x]\napi_key_env = \"K\"", Some("models.x.base_url is missing")),
        ("[x]\nbase_url = \"host/v1\"", Some("models.x.base_url")),
        ("[x]\nbase_url = \"file:///x\"", Some("http://")),
        ("[x]\nbase_url = \"https://u:p@host\"", Some("no user, password")),
        ("[x]\nbase_url = \"https://host?key=1\"", Some("query")),
        ("[\"a/b\"]\nbase_url = \"https://host\"", Some("no `/`")),
    ] {
        let problems = toml::from_str::<ModelsConfig>(config).unwrap().problems();
        match part {
            None => assert!(problems.is_empty(), "{config}: {problems:?}"),
            Some(part) => assert!(problems.iter().any(|problem| problem.contains(part)), "{config}: {problems:?}"),
        }
    }
    assert!(toml::from_str::<ModelsConfig>("[x]\nbase_uri = \"y\"").is_err());
}
