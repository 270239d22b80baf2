//! Turns against local servers that answer as each provider documents it. What they were asked is compared whole.

mod refusals;

use std::sync::Mutex;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::{Router, serve};
use serde_json::json;

use super::*;

const KEY: &str = "sk-very-secret-0123456789";

/// What a server answers: status, headers, body.
type Scripted = (u16, Vec<(&'static str, String)>, String);

/// A server that answers with what it was given, in turn, the last for ever, and remembers what it was asked.
#[derive(Clone, Default)]
struct Provider(Arc<Mutex<Script>>);

#[derive(Default)]
struct Script {
    answers: Vec<Scripted>,
    asked: Vec<Asked>,
}

#[derive(Clone)]
struct Asked {
    /// Method, path and query.
    line: String,
    headers: http::HeaderMap,
    body: Value,
}

impl Asked {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Provider {
    fn with(answers: &[(u16, Value)]) -> Self {
        let answers = answers.iter().map(|(status, body)| (*status, Vec::new(), body.to_string())).collect();
        Self(Arc::new(Mutex::new(Script { answers, asked: Vec::new() })))
    }

    fn raw(status: u16, headers: &[(&'static str, &str)], body: &str) -> Self {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let script = Script { answers: vec![(status, headers, body.to_owned())], asked: Vec::new() };
        Self(Arc::new(Mutex::new(script)))
    }

    /// Answers so before anything else.
    fn after(self, status: u16, headers: &[(&'static str, String)]) -> Self {
        let first = (status, headers.to_vec(), r#"{"error":{"message":"later"}}"#.to_owned());
        self.0.lock().unwrap().answers.insert(0, first);
        self
    }

    /// The address at which it listens, until the test's runtime ends.
    async fn serve(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { serve(listener, router).await.unwrap() });
        format!("http://{address}")
    }

    fn asked(&self) -> Vec<Asked> {
        self.0.lock().unwrap().asked.clone()
    }
}

async fn answer(State(provider): State<Provider>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let mut script = provider.0.lock().unwrap();
    script.asked.push(Asked {
        line: format!("{} {}", parts.method, parts.uri),
        headers: parts.headers,
        body: serde_json::from_slice(&body).unwrap(),
    });
    let (status, headers, body) =
        if script.answers.len() > 1 { script.answers.remove(0) } else { script.answers[0].clone() };
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    response.body(Body::from(body)).unwrap()
}

/// Models with these settings, and the waits that they make, none of which takes time.
fn models(config: &str) -> (Models, Arc<Mutex<Vec<Duration>>>) {
    let config: ModelsConfig = toml::from_str(config).unwrap();
    assert_eq!(config.problems(), [""; 0]);
    let mut models = Models::new(config, Arc::new(|name| (name == "A_KEY").then(|| format!(" {KEY}\n"))));
    let waits: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let noted = Arc::clone(&waits);
    models.sleep = Arc::new(move |wait| {
        noted.lock().unwrap().push(wait);
        Box::pin(std::future::ready(()))
    });
    (models, waits)
}

/// Later than anything here takes.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

fn at(provider: &str, url: &str) -> String {
    format!("[{provider}]\nbase_url = {url:?}\napi_key_env = \"A_KEY\"\n")
}

fn asked(prompt: &str, json: Option<Value>) -> AgentArgs {
    AgentArgs { prompt: prompt.to_owned(), json }
}

async fn turn_with(server: &Provider, provider: &str, json: Option<Value>) -> Turn {
    let (models, _) = models(&at(provider, &server.serve().await));
    models.turn(far(), Some(&format!("{provider}/m-1")), asked("Say hello.", json)).await
}

async fn turn(server: &Provider, json: Option<Value>) -> Turn {
    turn_with(server, "local", json).await
}

fn schema() -> Value {
    json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"]})
}

fn closed_schema() -> Value {
    let mut schema = schema();
    schema["additionalProperties"] = false.into();
    schema
}

/// A whole answer, as the provider's reference shows it.
fn answered(provider: &str, text: &str) -> Value {
    match provider {
        "anthropic" => json!({
            "id": "msg_013Zva2CMHLNnjNjJKqJ2EF", "type": "message", "role": "assistant", "model": "claude-sonnet-4-6",
            "content": [{"type": "text", "text": text}], "stop_reason": "end_turn", "stop_sequence": null,
            "usage": {"input_tokens": 5, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 2,
                      "output_tokens": 3, "service_tier": "standard"},
        }),
        "gemini" => json!({
            "candidates": [{"content": {"parts": [{"text": text}], "role": "model"}, "finishReason": "STOP", "index": 0}],
            "usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 1, "thoughtsTokenCount": 2,
                              "totalTokenCount": 10, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 7}]},
            "modelVersion": "gemini-2.5-flash", "responseId": "mAitaLmkHPPlz7IPvtfUqQ4",
        }),
        "ollama" => json!({
            "model": "qwen3", "created_at": "2026-01-12T14:02:11.5Z", "message": {"role": "assistant", "content": text},
            "done_reason": "stop", "done": true, "total_duration": 174_560_334, "load_duration": 101_397_084,
            "prompt_eval_count": 7, "prompt_eval_duration": 13_074_791, "eval_count": 3, "eval_duration": 52_479_709,
        }),
        _ => json!({
            "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT", "object": "chat.completion", "created": 1_741_569_952,
            "model": "gpt-5.4",
            "choices": [{"index": 0, "logprobs": null, "finish_reason": "stop",
                         "message": {"role": "assistant", "content": text, "refusal": null, "annotations": []}}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10,
                      "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
                      "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0}},
            "service_tier": "default",
        }),
    }
}

/// The provider, its path, the header that carries the key and what stands in it.
const PROTOCOLS: &[(&str, &str, &str, &str)] = &[
    ("anthropic", "/v1/messages", "x-api-key", ""),
    ("gemini", "/v1beta/models/m-1:generateContent", "x-goog-api-key", ""),
    ("local", "/chat/completions", "authorization", "Bearer "),
    ("ollama", "/api/chat", "authorization", "Bearer "),
    ("openai", "/chat/completions", "authorization", "Bearer "),
];

/// A body without the members that hold nothing.
fn without_nulls(mut body: Value) -> Value {
    body.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    body
}

#[tokio::test]
async fn each_protocol_asks_and_answers_in_text() {
    for (provider, path, key_header, before_key) in PROTOCOLS {
        let server = Provider::with(&[(200, answered(provider, "Hello \"you\"."))]);
        let reply = turn_with(&server, provider, None).await;
        assert_eq!(reply.outcome.unwrap(), r#""Hello \"you\".""#, "{provider}");
        let parts = match *provider {
            "anthropic" => r#","cachedInputTokens":2"#,
            "gemini" => r#","reasoningTokens":2"#,
            _ => "",
        };
        let usage =
            format!(r#"{{"model":"{provider}/m-1","provider":"{provider}","inputTokens":7,"outputTokens":3{parts}}}"#);
        assert_eq!(reply.usage_json.unwrap(), usage);
        let request = server.asked().remove(0);
        assert_eq!(request.line, format!("POST {path}"), "the key stands in no address");
        assert_eq!(request.header(key_header), format!("{before_key}{KEY}"), "{provider}");
        let carriers = request.headers.values().filter(|value| value.to_str().unwrap().contains(KEY)).count();
        assert_eq!(carriers, 1, "{provider}: {:?}", request.headers);
        assert_eq!(request.header("content-type"), "application/json");
        let body = match *provider {
            "anthropic" => {
                assert_eq!(request.header("anthropic-version"), "2023-06-01");
                json!({"model": "m-1", "max_tokens": 8192,
                       "messages": [{"role": "user", "content": [{"type": "text", "text": "Say hello."}]}]})
            }
            "gemini" => json!({"contents": [{"role": "user", "parts": [{"text": "Say hello.", "thought": false}]}]}),
            "ollama" => json!({"model": "m-1", "stream": false, "truncate": false, "shift": false,
                               "messages": [{"role": "user", "content": "Say hello."}]}),
            _ => json!({"model": "m-1", "messages": [{"role": "user", "content": "Say hello."}]}),
        };
        assert_eq!(without_nulls(request.body), body, "{provider}");
    }
}

#[tokio::test]
async fn each_protocol_asks_for_structured_output_and_is_repaired_once() {
    for (provider, ..) in PROTOCOLS {
        let server = Provider::with(&[(200, answered(provider, "five")), (200, answered(provider, r#"{"n": 5}"#))]);
        let reply = turn_with(&server, provider, Some(schema())).await;
        assert_eq!(reply.outcome.unwrap(), r#"{"n":5}"#, "{provider}");
        let usage: Value = serde_json::from_str(&reply.usage_json.unwrap()).unwrap();
        assert_eq!((&usage["inputTokens"], &usage["outputTokens"]), (&json!(14), &json!(6)), "{provider}: {usage}");
        let mut asked = server.asked().into_iter();
        let (first, repair) = (asked.next().unwrap().body, asked.next().unwrap().body);
        let (format, sent) = match *provider {
            "anthropic" => ("/output_config/format", {
                let mut schema = closed_schema();
                schema["properties"]["n"] = json!({"type": "integer"});
                json!({"type": "json_schema", "schema": schema})
            }),
            "gemini" => ("/generationConfig", {
                json!({"responseMimeType": "application/json", "responseJsonSchema": schema()})
            }),
            "ollama" => ("/format", schema()),
            _ => ("/response_format", {
                let named = json!({"name": "answer", "schema": closed_schema(), "strict": true});
                json!({"type": "json_schema", "json_schema": named})
            }),
        };
        let instruction = match *provider {
            "anthropic" => first["system"][0]["text"].as_str(),
            "gemini" => first["systemInstruction"]["parts"][0]["text"].as_str(),
            _ => first["messages"][0]["content"].as_str(),
        };
        assert!(instruction.unwrap().contains(r#""integer""#), "{provider}: {first}");
        for body in [&first, &repair] {
            assert_eq!(body.pointer(format), Some(&sent), "{provider}");
        }
        let said = match *provider {
            "gemini" => &repair["contents"],
            _ => &repair["messages"],
        };
        let said = said.to_string();
        let (wrong, told) = (said.find("five").unwrap(), said.find("That answer is not valid: it is no JSON").unwrap());
        assert!(said.find("Say hello.").unwrap() < wrong && wrong < told, "{provider}: {said}");
    }
}

#[tokio::test]
async fn an_answer_that_stays_wrong_is_rejected_with_the_reason_and_its_cost() {
    let server = Provider::with(&[
        (200, answered("local", "five")),
        (200, answered("local", &json!({"n": format!("{}{KEY}", "x".repeat(70))}).to_string())),
    ]);
    let reply = turn(&server, Some(schema())).await;
    let error = reply.outcome.unwrap_err();
    assert_eq!(error.code, AGENT_BAD_JSON);
    assert!(error.message.contains("/n: \"xxx") && error.message.contains("is not of type"), "{}", error.message);
    assert!(!error.message.contains("sk-very"), "not even the beginning of the key: {}", error.message);
    assert!(reply.usage_json.unwrap().contains(r#""inputTokens":14,"outputTokens":6"#));
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test]
async fn an_endpoint_without_structured_output_is_asked_in_words_alone() {
    for (provider, ..) in PROTOCOLS {
        let refusal = json!({"error": {"message": "schemas are not supported"}});
        let server = Provider::with(&[
            (400, refusal),
            (200, answered(provider, "5")),
            (200, answered(provider, "```json\n{\"n\": 5}\n```")),
        ]);
        assert_eq!(turn_with(&server, provider, Some(schema())).await.outcome.unwrap(), r#"{"n":5}"#);
        let is_asked_for = |body: &Value| {
            ["output_config", "generationConfig", "format", "response_format"].iter().any(|name| !body[*name].is_null())
        };
        let formats: Vec<bool> = server.asked().iter().map(|asked| is_asked_for(&asked.body)).collect();
        assert_eq!(formats, [true, false, false], "{provider}");
    }
}

#[tokio::test]
async fn schemas_that_cannot_be_enforced_are_a_hint_or_words() {
    let free = json!({"type": "object", "additionalProperties": {"type": "integer"}});
    for provider in ["anthropic", "openai"] {
        let server = Provider::with(&[(200, answered(provider, r#"{"n": 5}"#))]);
        assert_eq!(turn_with(&server, provider, Some(free.clone())).await.outcome.unwrap(), r#"{"n":5}"#);
        let body = server.asked().remove(0).body;
        let format = &body["response_format"]["json_schema"];
        match provider {
            "openai" => assert_eq!(*format, json!({"name": "answer", "schema": free, "strict": false})),
            _ => assert!(body.get("output_config").is_none(), "{body}"),
        }
    }
}

#[tokio::test]
async fn the_length_of_an_answer_can_be_set() {
    for (provider, pointer) in [
        ("anthropic", "/max_tokens"),
        ("gemini", "/generationConfig/maxOutputTokens"),
        ("ollama", "/options/num_predict"),
        ("local", "/max_tokens"),
        ("openai", "/max_completion_tokens"),
    ] {
        let server = Provider::with(&[(200, answered(provider, "x"))]);
        let config = format!("{}max_tokens = 77\n", at(provider, &server.serve().await));
        let turn = models(&config).0.turn(far(), Some(&format!("{provider}/o3-mini")), asked("x", None)).await;
        turn.outcome.unwrap();
        assert_eq!(server.asked()[0].body.pointer(pointer), Some(&json!(77)), "{provider}");
    }
}

#[tokio::test]
async fn a_model_id_is_sent_as_it_stands() {
    for id in ["qwen3-max", "meta/llama-3:free", "ns::model-low"] {
        let server = Provider::with(&[(200, answered("local", "x"))]);
        let (models, _) = models(&at("local", &format!("{}/v1/", server.serve().await)));
        models.turn(far(), Some(&format!("local/{id}")), asked("x", None)).await.outcome.unwrap();
        let request = server.asked().remove(0);
        assert_eq!(request.line, "POST /v1/chat/completions");
        assert_eq!(request.body["model"], *id);
        assert!(request.body.get("reasoning_effort").is_none());
    }
}

#[tokio::test]
async fn compatible_endpoints_may_leave_things_out() {
    for (body, value, usage) in [
        (json!({"choices": [{"message": {"content": "hi"}}]}), "\"hi\"", r#"null,"outputTokens":null}"#),
        (
            json!({"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"text": "b"}]}}],
                   "usage": {"prompt_tokens": 1}}),
            "\"ab\"",
            r#"1,"outputTokens":null}"#,
        ),
        (json!({"choices": [{"message": {"content": "hi"}}], "usage": null, "error": null}), "\"hi\"", "null"),
        (json!({"choices": [{"message": {"content": "hi"}, "finish_reason": "eos_token"}]}), "\"hi\"", "null"),
        (
            json!({"choices": [{"message": {"content": "hi", "reasoning_content": "hm", "tool_calls": []}}]}),
            "\"hi\"",
            "null",
        ),
    ] {
        let reply = turn(&Provider::with(&[(200, body)]), None).await;
        assert_eq!(reply.outcome.unwrap(), value);
        let found = reply.usage_json.unwrap();
        assert!(found.contains(usage), "{found}");
    }
}

#[tokio::test]
async fn overload_is_waited_out_a_few_times() {
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
        for (provider, ..) in PROTOCOLS {
            let server = Provider::with(&[(200, answered(provider, "at last"))]).after(first, &headers);
            let (models, waited) = models(&at(provider, &server.serve().await));
            let reply = models.turn(far(), Some(&format!("{provider}/m-1")), asked("x", None)).await;
            assert_eq!(reply.outcome.unwrap(), "\"at last\"");
            assert_eq!(*waited.lock().unwrap(), waits, "{provider} {first} {headers:?}");
            let asked = server.asked();
            assert_eq!(
                (asked[0].body.clone(), asked[0].headers.len()),
                (asked[1].body.clone(), asked[1].headers.len())
            );
        }
    }

    let server = Provider::raw(500, &[], "boom");
    let (models, waited) = models(&at("local", &server.serve().await));
    let reply = models.turn(far(), Some("local/m"), asked("x", None)).await;
    let error = reply.outcome.unwrap_err();
    assert_eq!(error.code, MODEL_FAILED);
    assert!(error.message.ends_with("\"local\" gave no answer (HTTP 500): boom; it was asked 4 times"), "{error:?}");
    assert_eq!(*waited.lock().unwrap(), [ms(500), ms(1000), ms(2000)]);
    assert_eq!((server.asked().len(), reply.usage_json), (4, None));
}

#[tokio::test]
async fn a_wait_that_is_too_long_is_reported_instead() {
    let server = Provider::raw(429, &[("retry-after", "3600")], r#"{"error":{"message":"quota"}}"#);
    let (models, waited) = models(&at("local", &server.serve().await));
    let error = models.turn(far(), Some("local/m"), asked("x", None)).await.outcome.unwrap_err();
    assert!(error.message.contains("(HTTP 429): quota; it asks to wait 3600 s"), "{}", error.message);
    assert!(waited.lock().unwrap().is_empty());
}

#[tokio::test]
async fn no_wait_goes_beyond_the_time_of_the_run() {
    let short = || Instant::now() + Duration::from_secs(20);
    for (headers, waits, told) in [
        (vec![("retry-after", "30")], 0, "later; it asks to wait 30 s, which is too long for this run"),
        (vec![("retry-after", "5")], 3, "later; it was asked 4 times"),
        (vec![], 3, "later; it was asked 4 times"),
    ] {
        let server = Provider::raw(429, &headers, r#"{"error":{"message":"later"}}"#);
        let (models, waited) = models(&at("local", &server.serve().await));
        let error = models.turn(short(), Some("local/m"), asked("x", None)).await.outcome.unwrap_err();
        assert!(error.message.ends_with(told), "{}", error.message);
        assert_eq!((waited.lock().unwrap().len(), server.asked().len()), (waits, waits + 1), "{headers:?}");
    }
    let server = Provider::raw(503, &[], "");
    let (models, waited) = models(&at("local", &server.serve().await));
    let error = models.turn(Instant::now(), Some("local/m"), asked("x", None)).await.outcome.unwrap_err();
    assert!(error.message.ends_with("the run has no time for another try"), "{}", error.message);
    assert!(waited.lock().unwrap().is_empty());
}
