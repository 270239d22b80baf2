//! Errors over HTTP: RFC 9457 problem documents with a stable `code`, and nothing internal in them: no path of the
//! host, and no words of the libraries that this program is made of.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

/// One error, for the caller.
#[derive(Debug)]
pub struct ProblemDocument {
    status: StatusCode,
    code: String,
    detail: String,
    members: Map<String, Value>,
}

impl ProblemDocument {
    pub fn new(status: StatusCode, code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { status, code: code.into(), detail: detail.into(), members: Map::new() }
    }

    /// Adds a member, such as the id of the run that is in the way.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.members.insert(name.to_owned(), value.into());
        self
    }

    /// Adds a `hint`, when there is a remedy.
    #[must_use]
    pub fn with_hint(self, hint: Option<String>) -> Self {
        match hint {
            Some(hint) => self.with("hint", hint),
            None => self,
        }
    }

    /// Without what only HTTP has a use for: `code`, `detail` and further members.
    pub fn into_members(self) -> Map<String, Value> {
        let Self { code, detail, members, .. } = self;
        let mut all = Map::from_iter([("code".to_owned(), code.into()), ("detail".to_owned(), detail.into())]);
        all.extend(members);
        all
    }

    #[cfg(test)]
    pub fn status_and_code(&self) -> (u16, &str) {
        (self.status.as_u16(), &self.code)
    }

    pub fn bad_request(code: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    pub fn not_found(code: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    pub fn unavailable(code: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail)
    }

    pub fn stopping() -> Self {
        Self::unavailable("stopping", "the daemon is stopping")
    }

    /// Something went wrong here; the log has the details, the caller does not.
    pub fn internal(told: &dyn std::fmt::Display) -> Self {
        tracing::error!("request failed: {told}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the daemon could not answer; its log says why")
    }
}

impl IntoResponse for ProblemDocument {
    fn into_response(self) -> Response {
        let status = self.status;
        let mut body = json!({
            "type": "about:blank",
            "title": status.canonical_reason().unwrap_or("Error"),
            "status": status.as_u16(),
        });
        if let Value::Object(body) = &mut body {
            body.extend(self.into_members());
        }
        let mut response = (status, body.to_string()).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("10"));
        }
        response
    }
}
