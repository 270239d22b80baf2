//! What handlers take from a request. Whatever does not fit is refused with a problem document that says the rule and
//! what was observed.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderName, StatusCode};
use serde::Deserialize;
use serde_json::error::Category;
use serde_json::value::RawValue;

use super::{Api, Reply, unknown_app, unknown_run};
use crate::core::near_name::nearest;
use crate::core::shortened::shortened;
use crate::fire::{AppId, AutomationId, Handle, RunId};
use crate::gateway::problem::ProblemDocument;

/// A key is an id, not a text.
const MAX_KEY_CHARS: usize = 255;

async fn path_of<T: serde::de::DeserializeOwned + Send>(parts: &mut Parts, api: &Api) -> Reply<T> {
    let path: Result<Path<T>, PathRejection> = Path::from_request_parts(parts, api).await;
    match path {
        Ok(Path(path)) => Ok(path),
        Err(PathRejection::FailedToDeserializePathParams(_)) => {
            Err(ProblemDocument::bad_request("bad_path", "the path is not UTF-8"))
        }
        Err(error) => Err(ProblemDocument::internal(&error)),
    }
}

/// `{app}/{id}`: a handle that may exist.
pub struct Target(pub Handle);

impl FromRequestParts<Api> for Target {
    type Rejection = ProblemDocument;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Reply<Self> {
        let (app, id): (String, String) = path_of(parts, api).await?;
        match (AppId::new(&app), AutomationId::new(&id)) {
            (Ok(app), Ok(id)) => Ok(Self(Handle::new(app, id))),
            _ => Err(api.unknown_automation(&format!("{app}/{id}")).await),
        }
    }
}

/// `{run}`: a run that may exist.
pub struct Run(pub RunId);

impl FromRequestParts<Api> for Run {
    type Rejection = ProblemDocument;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Reply<Self> {
        let run: String = path_of(parts, api).await?;
        RunId::new(&run).map(Self).map_err(|_| unknown_run())
    }
}

/// `{app}`: an app that exists.
pub struct App(pub AppId);

impl FromRequestParts<Api> for App {
    type Rejection = ProblemDocument;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Reply<Self> {
        let app: String = path_of(parts, api).await?;
        let app = AppId::new(&app).map_err(|_| unknown_app())?;
        api.services().folders.code(&app).map(|_| Self(app)).ok_or_else(unknown_app)
    }
}

/// `{name}`: any text.
pub struct Name(pub String);

impl FromRequestParts<Api> for Name {
    type Rejection = ProblemDocument;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Reply<Self> {
        path_of(parts, api).await.map(Self)
    }
}

/// The parameters of a query, read by their names.
pub trait FromQuery: Sized {
    /// Those that there are; others are refused, with the nearest of these.
    const NAMES: &'static [&'static str];

    /// # Errors
    /// The rule that is broken, and the observed value.
    fn from_query(query: &QueryPairs) -> Result<Self, String>;
}

/// What stands behind the `?`, in order.
pub struct QueryPairs(BTreeMap<String, Vec<String>>);

impl QueryPairs {
    fn parse(text: &str) -> Self {
        let mut pairs: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in url::form_urlencoded::parse(text.as_bytes()) {
            pairs.entry(name.into_owned()).or_default().push(value.into_owned());
        }
        Self(pairs)
    }

    /// The same parameters from elsewhere.
    pub fn of(pairs: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in pairs {
            all.entry(name.to_owned()).or_default().push(value);
        }
        Self(all)
    }

    /// Every value of a parameter that may be repeated, or hold several with commas between.
    pub fn list(&self, name: &str) -> impl Iterator<Item = &str> {
        let values = self.0.get(name).into_iter().flatten();
        values.flat_map(|value| value.split(','))
    }

    /// One parameter, read by `read`, whose error names the rule.
    ///
    /// # Errors
    /// When it is given twice, or `read` refuses it.
    pub fn one<T>(&self, name: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, String> {
        match self.0.get(name).map(Vec::as_slice) {
            None => Ok(None),
            Some([value]) => read(value).map(Some).map_err(|rule| self.broken(name, value, &rule)),
            Some(_) => Err(format!("{name} is given more than once")),
        }
    }

    /// A duration of `most` seconds at the most.
    ///
    /// # Errors
    /// As [`Self::one`].
    pub fn seconds(&self, name: &str, most: f64) -> Result<Option<Duration>, String> {
        self.one(name, |text| {
            let seconds = text.parse().ok().filter(|seconds| (0.0..=most).contains(seconds));
            seconds.map(Duration::from_secs_f64).ok_or_else(|| format!("a number of seconds from 0 to {most}"))
        })
    }

    pub fn broken(&self, name: &str, value: &str, rule: &str) -> String {
        format!("{name} is {:?}; it must be {rule}", shortened(value, 100))
    }
}

/// Query parameters, all of them known.
pub struct Params<T>(pub T);

impl<T: FromQuery> FromRequestParts<Api> for Params<T> {
    type Rejection = ProblemDocument;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Reply<Self> {
        let query = QueryPairs::parse(parts.uri.query().unwrap_or_default());
        read_params(&query).map(Self).map_err(|told| ProblemDocument::bad_request("bad_query", told))
    }
}

fn read_params<T: FromQuery>(query: &QueryPairs) -> Result<T, String> {
    if let Some(unknown) = query.0.keys().find(|name| !T::NAMES.contains(&name.as_str())) {
        let near = match nearest(unknown, T::NAMES) {
            Some(near) => format!("did you mean {near}?"),
            None if T::NAMES.is_empty() => "there are none here".to_owned(),
            None => format!("there are {}", T::NAMES.join(", ")),
        };
        return Err(format!("there is no parameter {:?}; {near}", shortened(unknown, 100)));
    }
    T::from_query(query)
}

/// No parameters.
pub struct NoParams;

impl FromQuery for NoParams {
    const NAMES: &'static [&'static str] = &[];

    fn from_query(_: &QueryPairs) -> Result<Self, String> {
        Ok(Self)
    }
}

/// `Idempotency-Key`: the same key for the same automation is the same fire. A quoted one, as the draft of the header
/// has it, is the same as without quotes.
pub struct IdempotencyKey(pub Option<String>);

impl FromRequestParts<Api> for IdempotencyKey {
    type Rejection = ProblemDocument;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Reply<Self> {
        let key = one_header(parts, &HeaderName::from_static("idempotency-key"))?;
        key.map(|text| idempotency_key(&text)).transpose().map(Self)
    }
}

fn idempotency_key(text: &str) -> Reply<String> {
    let key = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    let fits = (1..=MAX_KEY_CHARS).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    if fits && !key.contains(['"', '\\']) {
        return Ok(key.to_owned());
    }
    let rule = format!("Idempotency-Key must be 1 to {MAX_KEY_CHARS} visible ASCII characters, without quotes in them");
    Err(ProblemDocument::bad_request("bad_idempotency_key", rule))
}

/// `Last-Event-ID`, as it was sent.
pub struct LastEventId(pub Option<String>);

impl FromRequestParts<Api> for LastEventId {
    type Rejection = ProblemDocument;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Reply<Self> {
        one_header(parts, &HeaderName::from_static("last-event-id")).map(Self)
    }
}

impl LastEventId {
    pub fn refused() -> ProblemDocument {
        let detail = "Last-Event-ID is not the id of an event of this stream; leave it out to begin anew";
        ProblemDocument::bad_request("bad_last_event_id", detail)
    }
}

fn one_header(parts: &Parts, name: &HeaderName) -> Reply<Option<String>> {
    let mut values = parts.headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => match value.to_str() {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(_) => Err(ProblemDocument::bad_request("bad_header", format!("{name} is not ASCII"))),
        },
        _ => Err(ProblemDocument::bad_request("bad_header", format!("{name} is given more than once"))),
    }
}

/// Every POST says that it is JSON, so that no form on a web page can make one; access has looked at that.
async fn body_of(request: Request, api: &Api) -> Reply<Bytes> {
    Bytes::from_request(request, api).await.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => too_large(api.limits().value_bytes),
        _ => ProblemDocument::bad_request("bad_body", "the body could not be read"),
    })
}

pub fn too_large(most: u64) -> ProblemDocument {
    let detail = format!("an input may have {most} bytes (`limits.value_bytes`)");
    ProblemDocument::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
}

/// The body `{}`, or nothing.
pub struct NoBody;

impl FromRequest<Api> for NoBody {
    type Rejection = ProblemDocument;

    async fn from_request(request: Request, api: &Api) -> Reply<Self> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Empty {}
        let body = body_of(request, api).await?;
        if !body.is_empty() {
            parsed::<Empty>(&body, "the body is {}: an object without members")?;
        }
        Ok(Self)
    }
}

/// The body `{ "input"?: any }`, or nothing: the input's JSON text, as it was given.
pub struct Input(pub Option<String>);

impl FromRequest<Api> for Input {
    type Rejection = ProblemDocument;

    async fn from_request(request: Request, api: &Api) -> Reply<Self> {
        input_of(&body_of(request, api).await?).map(Self)
    }
}

pub fn input_of(body: &[u8]) -> Reply<Option<String>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        #[serde(default, deserialize_with = "given")]
        input: Option<Box<RawValue>>,
    }
    if body.is_empty() {
        return Ok(None);
    }
    let body: Body = parsed(body, "the body is an object, of which `input` is the only member")?;
    Ok(body.input.map(|raw| raw.get().to_owned()))
}

/// A `null` that was given is a value, unlike a field that was not.
fn given<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Deserialize::deserialize(d).map(Some)
}

/// A JSON object, as its text.
pub struct Arguments(pub Bytes);

impl FromRequest<Api> for Arguments {
    type Rejection = ProblemDocument;

    async fn from_request(request: Request, api: &Api) -> Reply<Self> {
        body_of(request, api).await.map(Self)
    }
}

fn parsed<'b, T: Deserialize<'b>>(body: &'b [u8], rule: &str) -> Reply<T> {
    // A list would be read as the members in their order.
    if body.trim_ascii_start().starts_with(b"[") {
        return Err(ProblemDocument::bad_request("bad_body", rule));
    }
    serde_json::from_slice(body).map_err(|error| {
        let told = match error.classify() {
            Category::Data => rule.to_owned(),
            Category::Syntax | Category::Eof | Category::Io => not_json(&error),
        };
        ProblemDocument::bad_request("bad_body", told)
    })
}

/// Where a text ceases to be JSON, in plain words.
pub fn not_json(error: &serde_json::Error) -> String {
    format!("the body is no JSON: see line {}, column {}", error.line(), error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_an_input_or_nothing() {
        assert_eq!(input_of(b"").unwrap(), None);
        assert_eq!(input_of(b"{}").unwrap(), None);
        assert_eq!(input_of(br#"{"input": {"a": 1}}"#).unwrap().as_deref(), Some(r#"{"a": 1}"#));
        assert_eq!(input_of(br#"{"input": null}"#).unwrap().as_deref(), Some("null"));
        for bad in
            [" ", "[", r#"{"inputs": 1}"#, "3", "{\"input\": 1} 2", "[]", "null", "\"\"", "{\"input\":1,\"input\":2}"]
        {
            let refused = input_of(bad.as_bytes()).unwrap_err();
            assert_eq!(refused.status_and_code(), (400, "bad_body"), "{bad}");
        }
    }

    #[test]
    fn a_key_is_a_short_word() {
        let long = "x".repeat(256);
        for (text, key) in [
            ("abc", Some("abc")),
            ("\"8e03978e-40d5-43dd-bc93-6894a57f9324\"", Some("8e03978e-40d5-43dd-bc93-6894a57f9324")),
            (&long[1..], Some(&long[1..])),
            ("", None),
            ("\"\"", None),
            ("a b", None),
            ("a\"b", None),
            ("\"a\\\"b\"", None),
            (&long, None),
        ] {
            assert_eq!(idempotency_key(text).ok().as_deref(), key, "{text:?}");
        }
    }

    #[test]
    fn query_parameters_are_read_by_name() {
        struct Two(Option<u32>, Vec<String>);
        impl FromQuery for Two {
            const NAMES: &'static [&'static str] = &["limit", "status"];
            fn from_query(query: &QueryPairs) -> Result<Self, String> {
                let limit = query.one("limit", |text| text.parse().map_err(|_| "a number".to_owned()))?;
                Ok(Self(limit, query.list("status").map(str::to_owned).collect()))
            }
        }
        let read =
            |text: &str| read_params::<Two>(&QueryPairs::parse(text)).map(|Two(limit, all)| (limit, all.join("|")));
        for (text, expected) in [
            ("", Ok((None, ""))),
            ("limit=3&status=a,b&status=%63", Ok((Some(3), "a|b|c"))),
            ("status=", Ok((None, ""))),
            ("status=a,,b", Ok((None, "a||b"))),
            ("limit=", Err("limit is \"\"; it must be a number")),
            ("limit=1&limit=2", Err("limit is given more than once")),
            ("limits=1", Err("there is no parameter \"limits\"; did you mean limit?")),
            ("zzzzzzz", Err("there is no parameter \"zzzzzzz\"; there are limit, status")),
        ] {
            let expected = expected.map(|(limit, all)| (limit, all.to_owned())).map_err(str::to_owned);
            assert_eq!(read(text), expected, "{text}");
        }
    }
}
