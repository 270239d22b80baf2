//! Turns that end without an answer: what is told, what is not, and where nothing is sent.

use super::*;

#[tokio::test]
async fn each_refusal_says_what_to_do_and_shows_no_key() {
    let cut = |provider: &str, at: &str, word: &str| {
        let mut body = answered(provider, "Once upon");
        *body.pointer_mut(at).unwrap() = word.into();
        body.to_string()
    };
    let chat = |text: Value, refusal: Value, reason: &str| {
        json!({"choices": [{"message": {"content": text, "refusal": refusal}, "finish_reason": reason}]}).to_string()
    };
    let error = |message: &str| json!({"error": {"message": message}}).to_string();
    let typed =
        |kind: &str, message: &str| json!({"type": "error", "error": {"type": kind, "message": message}}).to_string();
    let google =
        |status: u16, message: &str| json!({"error": {"code": status, "message": message, "status": "X"}}).to_string();
    let to_set = "`max_tokens` of `[models.";
    for (provider, status, body, part, remedy) in [
        // No protocol at all.
        ("local", 200, "<html>".to_owned(), "not of this protocol: expected value", ""),
        ("local", 200, String::new(), "not of this protocol", ""),
        ("local", 200, "{}".to_owned(), "it holds no message", ""),
        ("local", 200, r#"{"choices": 7}"#.to_owned(), "it holds no message", ""),
        ("local", 200, r#"{"choices": []}"#.to_owned(), "it holds no message", ""),
        ("openai", 200, r#"{"choices": [{}]}"#.to_owned(), "", ""),
        ("gemini", 200, r#"{"candidates": []}"#.to_owned(), "", ""),
        ("anthropic", 200, answered("anthropic", "").to_string(), "holds no text", ""),
        ("ollama", 200, answered("ollama", "").to_string(), "holds no text", ""),
        ("local", 200, format!("{}1{}", "[".repeat(5000), "]".repeat(5000)), "not of this protocol", ""),
        ("anthropic", 200, "{\"content\": \"x\"}".to_owned(), "not of this protocol", ""),
        ("gemini", 200, "{}".to_owned(), "not of this protocol", ""),
        ("ollama", 200, "[]".to_owned(), "not of this protocol", ""),
        // Errors in the clothes of a success.
        ("local", 200, error("upstream is gone"), "upstream is gone", ""),
        ("ollama", 200, r#"{"error": "the runner died"}"#.to_owned(), "the runner died", ""),
        // Empty, cut off, refused.
        ("local", 200, chat(json!(""), Value::Null, "stop"), "holds no text", ""),
        ("local", 200, chat(json!(""), Value::Null, "length"), "was cut off", to_set),
        ("openai", 200, cut("openai", "/choices/0/finish_reason", "length"), "cut off after 3 tokens", to_set),
        ("anthropic", 200, cut("anthropic", "/stop_reason", "max_tokens"), "cut off after 3 tokens", to_set),
        ("gemini", 200, cut("gemini", "/candidates/0/finishReason", "MAX_TOKENS"), "cut off after 3 tokens", to_set),
        ("ollama", 200, cut("ollama", "/done_reason", "length"), "cut off after 3 tokens", to_set),
        ("local", 200, chat(Value::Null, json!("I must not."), "stop"), "it refused: I must not.", "another prompt"),
        ("local", 200, chat(Value::Null, Value::Null, "content_filter"), "content filter", "another prompt"),
        ("anthropic", 200, cut("anthropic", "/stop_reason", "refusal"), "refused", "another prompt"),
        ("gemini", 200, cut("gemini", "/candidates/0/finishReason", "SAFETY"), "content filter", "another prompt"),
        ("gemini", 200, r#"{"promptFeedback": {"blockReason": "SAFETY"}}"#.to_owned(), "SAFETY", "another prompt"),
        ("gemini", 200, cut("gemini", "/candidates/0/finishReason", "RECITATION"), "RECITATION", ""),
        // The key.
        ("local", 401, error(&format!("bad key {KEY}")), "(HTTP 401): bad key [key]", "variable A_KEY"),
        ("anthropic", 401, typed("authentication_error", "invalid x-api-key"), "invalid x-api-key", "variable A_KEY"),
        ("gemini", 400, google(400, "API key not valid."), "API key not valid.", "variable A_KEY"),
        ("gemini", 403, google(403, "denied"), "(HTTP 403): denied", "variable A_KEY"),
        // Half of a key is a secret too.
        ("local", 403, format!("{}{KEY}", "x".repeat(290)), "(HTTP 403): xxx", "variable A_KEY"),
        ("local", 403, format!("<p>{KEY}</p>{}", "x".repeat(100_000)), "(HTTP 403): <p>[key]</p>xxx", "A_KEY"),
        // The prompt.
        (
            "openai",
            400,
            json!({"error": {"message": "too many", "code": "context_length_exceeded"}}).to_string(),
            "(HTTP 400): too many",
            "the prompt is too long for this model",
        ),
        ("anthropic", 400, typed("x", "prompt is too long: 210000 tokens > 200000"), "210000", "larger context window"),
        ("anthropic", 413, typed("request_too_large", "Request exceeds the maximum size"), "exceeds", "too long"),
        (
            "gemini",
            400,
            google(400, "The input token count (9) exceeds the maximum number of tokens"),
            "(9)",
            "too long",
        ),
        ("ollama", 400, error("the input length exceeds the context length"), "exceeds", "OLLAMA_CONTEXT_LENGTH"),
        // The address and the model.
        ("local", 404, r#"{"error": "no such model"}"#.to_owned(), "(HTTP 404): no such model", "`requires.model`"),
        ("ollama", 404, r#"{"error": "model 'm-1' not found"}"#.to_owned(), "not found", "`ollama pull m-1`"),
        ("local", 307, String::new(), "(HTTP 307)", "`base_url` of `[models.local]`"),
        ("local", 418, String::new(), "(HTTP 418): it gave no reason", ""),
        ("local", 402, error("no credit"), "(HTTP 402): no credit", ""),
    ] {
        let server = Provider::raw(status, &[("location", "http://127.0.0.1:9/")], &body);
        let reply = turn_with(&server, provider, None).await;
        let error = reply.outcome.unwrap_err();
        assert_eq!(error.code, MODEL_FAILED, "{}", error.message);
        let told = &error.message;
        assert!(told.contains(part) && told.contains(remedy), "{provider} {status} {body:.60}: {told}");
        assert!(!told.contains("sk-") && told.len() < 1000, "{told}");
        assert_eq!(server.asked().len(), 1, "{provider} {status}: {told}");
        // What was cut off or refused has cost its tokens.
        let is_empty = part == "holds no text" && provider != "local";
        let is_paid = status == 200 && (body.contains("\"Once upon\"") || is_empty);
        assert_eq!(reply.usage_json.is_some(), is_paid, "{provider} {body:.60}: {:?}", reply.usage_json);
    }
}

#[tokio::test]
async fn a_refusal_that_is_not_about_the_format_is_final() {
    for (provider, body) in [
        ("gemini", json!({"error": {"code": 400, "message": "API key not valid."}})),
        ("openai", json!({"error": {"message": "too many", "code": "context_length_exceeded"}})),
    ] {
        let server = Provider::with(&[(400, body)]);
        turn_with(&server, provider, Some(schema())).await.outcome.unwrap_err();
        assert_eq!(server.asked().len(), 1, "{provider}");
    }
}

#[tokio::test]
async fn a_redirect_takes_neither_key_nor_prompt_elsewhere() {
    let stranger = Provider::with(&[(200, answered("local", "got you"))]);
    let to = stranger.serve().await;
    for status in [301, 302, 303, 307, 308] {
        let server = Provider::raw(status, &[("location", &to)], "");
        let error = turn(&server, None).await.outcome.unwrap_err();
        assert!(error.message.contains("it points elsewhere, and nothing is sent there"), "{}", error.message);
    }
    assert!(stranger.asked().is_empty());
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    for status in [200, 400] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(move || async move {
            let endless = futures::stream::repeat_with(|| Ok::<_, std::convert::Infallible>(vec![b' '; 1 << 16]));
            Response::builder().status(status).body(Body::from_stream(endless)).unwrap()
        });
        tokio::spawn(async move { serve(listener, router).await.unwrap() });
        for (provider, ..) in PROTOCOLS {
            let (models, _) = models(&at(provider, &format!("http://{address}")));
            let reply = models.turn(far(), Some(&format!("{provider}/m-1")), asked("x", None)).await;
            let error = reply.outcome.unwrap_err().message;
            let told = if status == 200 { "larger than 16777216 bytes" } else { "(HTTP 400): it gave no reason" };
            assert!(error.contains(told), "{provider}: {error}");
        }
    }
}

#[tokio::test]
async fn a_provider_that_is_down_or_hangs_up_is_reported() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let hangs_up = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        drop((stream, listener));
    });
    let (models, _) = models(&at("local", &url));
    let ask = || models.turn(far(), Some("local/tiny"), asked("x", None));
    let broken = ask().await.outcome.unwrap_err();
    assert!(broken.message.contains("the connection broke"), "{}", broken.message);
    hangs_up.await.unwrap();
    let down = ask().await.outcome.unwrap_err();
    assert_eq!(down.code, MODEL_FAILED);
    for part in ["cannot be reached", "refused", url.as_str(), "`base_url` of `[models.local]`"] {
        assert!(down.message.to_lowercase().contains(&part.to_lowercase()), "{}", down.message);
    }
}

#[tokio::test]
async fn a_turn_that_is_dropped_leaves_nothing_running() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (models, _) = models(&at("local", &format!("http://{}", listener.local_addr().unwrap())));
    let turn = tokio::spawn(async move { models.turn(far(), Some("local/slow"), asked("x", None)).await });
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut read = [0; 4096];
    let first = tokio::io::AsyncReadExt::read(&mut stream, &mut read).await.unwrap();
    assert!(first > 0, "the request has come");
    turn.abort();
    // The end of the connection, after whatever else of the request was on its way.
    while tokio::io::AsyncReadExt::read(&mut stream, &mut read).await.is_ok_and(|n| n > 0) {}
    assert!(turn.await.unwrap_err().is_cancelled());
}

#[tokio::test]
async fn what_is_missing_is_said_with_the_place_to_set_it() {
    let config = "[keyed]\nbase_url = \"http://127.0.0.1:9/v1\"\napi_key_env = \"KEYED_KEY\"\n\
                  [odd]\nbase_url = \"http://127.0.0.1:9/v1\"\napi_key_env = \"ODD_KEY\"\n\
                  [openai]\nbase_url = \"http://127.0.0.1:9/v1\"\n[broken]\nbase_url = \"ftp://x\"";
    let config: ModelsConfig = toml::from_str(config).unwrap();
    let models = Models::new(
        config,
        Arc::new(|name| match name {
            "ODD_KEY" => Some("a\nb".to_owned()),
            "OLLAMA_HOST" => Some("127.0.0.1:9".to_owned()),
            _ => None,
        }),
    );
    for (model, prompt, json, code, parts) in [
        (None, "x", None, MODEL_NOT_SET, vec!["automation.json", "requires", "provider/model-id"]),
        (Some("gpt"), "x", None, MODEL_NOT_SET, vec!["`requires.model`", "provider/model-id", "\"gpt\""]),
        (Some("/gpt"), "x", None, MODEL_NOT_SET, vec!["provider/model-id"]),
        (Some("x/y"), "x", None, MODEL_NOT_CONFIGURED, vec!["[models.x]", "base_url", "api_key_env", "dirigent.toml"]),
        (Some("kyed/y"), "x", None, MODEL_NOT_CONFIGURED, vec!["did you mean \"keyed\"?"]),
        (Some("keyed/y"), "x", None, MODEL_NOT_CONFIGURED, vec!["KEYED_KEY", "[models.keyed]"]),
        (Some("anthropic/y"), "x", None, MODEL_NOT_CONFIGURED, vec!["ANTHROPIC_API_KEY", "[models.anthropic]"]),
        (Some("odd/y"), "x", None, MODEL_NOT_CONFIGURED, vec!["ODD_KEY"]),
        (Some("broken/y"), "x", None, MODEL_NOT_CONFIGURED, vec!["[models.broken]", "http://"]),
        (Some("keyed/y"), " ", None, AGENT_BAD_ARGS, vec!["`prompt`"]),
        (Some("keyed/y"), "x", Some(json!({"type": "nope"})), AGENT_BAD_ARGS, vec!["`json` is no valid JSON Schema"]),
        // Its usual key is not for another host, and is not asked for.
        (Some("openai/y"), "x", None, MODEL_FAILED, vec!["\"openai\" gave no answer"]),
        (Some("ollama/y"), "x", None, MODEL_FAILED, vec!["cannot be reached", "http://127.0.0.1:9"]),
    ] {
        let reply = models.turn(far(), model, asked(prompt, json)).await;
        let error = reply.outcome.unwrap_err();
        assert_eq!(error.code, code, "{model:?}: {}", error.message);
        for part in parts {
            assert!(error.message.contains(part), "{model:?}: {}", error.message);
        }
        assert_eq!(reply.usage_json, None);
    }
}

/// Answers one request with these bytes, and hangs up.
async fn says(bytes: Vec<u8>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        // Its body is short, and the last thing in it is a brace.
        while !request.ends_with(b"}") {
            tokio::io::AsyncReadExt::read_buf(&mut stream, &mut request).await.unwrap();
        }
        tokio::io::AsyncWriteExt::write_all(&mut stream, &bytes).await.unwrap();
    });
    url
}

#[tokio::test]
async fn an_answer_that_is_broken_on_its_way_is_reported() {
    let whole = answered("local", "whole").to_string();
    let head = |more: &str| format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{more}\r\n");
    let with = |head: String, body: &[u8]| [head.as_bytes(), body].concat();
    let latin = answered("local", "caf_").to_string().replace('_', "\u{e9}");
    let latin: Vec<u8> = latin.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
    for (what, bytes, told) in [
        ("less than it announced", with(head("content-length: 9999\r\n"), whole.as_bytes()), "the connection broke"),
        ("half a chunk", with(head("transfer-encoding: chunked\r\n"), b"ff\r\n{\"cho"), "the connection broke"),
        ("no HTTP", b"SSH-2.0-OpenSSH_9\r\n".to_vec(), "the connection broke"),
        ("half a head", b"HTTP/1.1 200 OK\r\ncontent-ty".to_vec(), "the connection broke"),
        ("not UTF-8", with(head("connection: close\r\n"), &latin), "is not UTF-8"),
        ("packed", with(head("content-encoding: gzip\r\nconnection: close\r\n"), b"\x1f\x8b\x08"), "is not UTF-8"),
        (
            "a page",
            with(
                "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n".to_owned(),
                b"<p>Sign in</p>",
            ),
            "not of this protocol",
        ),
    ] {
        let (models, waited) = models(&at("local", &says(bytes).await));
        let reply = models.turn(far(), Some("local/m"), asked("x", None)).await;
        let error = reply.outcome.unwrap_err();
        assert!(error.code == MODEL_FAILED && error.message.contains(told), "{what}: {}", error.message);
        assert!(waited.lock().unwrap().is_empty() && reply.usage_json.is_none(), "{what}");
    }
    // What it calls itself does not matter.
    let named = format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n{whole}");
    let (models, _) = models(&at("local", &says(named.into_bytes()).await));
    assert_eq!(models.turn(far(), Some("local/m"), asked("x", None)).await.outcome.unwrap(), "\"whole\"");
}
