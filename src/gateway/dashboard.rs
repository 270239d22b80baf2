//! The dashboard: pages of plain HTML, CSS and JavaScript that stand in the binary and talk to the API of their own
//! origin. Here they are served, and here a one-time link lets a browser in (the API makes it: `api/logins.rs`); what they
//! show is in `dashboard/*.js`.
//!
//! The files have one address per version of all of them (`/assets/<version>/<name>`), so that a browser may keep them
//! for ever, never mixes two versions, and modules can name each other relatively.
//!
//! | request | answer |
//! |---|---|
//! | `GET /login?code=` | the session's cookie and a redirect to `/`; with a code that is no good, a page that says so, 401 |
//! | `GET /`, by session | the dashboard; without one, a page that says how to get in, 401 |

use std::sync::LazyLock;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest, Sha256};

use crate::gateway::access::Access;
use crate::gateway::problem::ProblemDocument;

/// What `/` answers, with [`VERSION_MARK`] in place of the version.
const INDEX: &str = include_str!("dashboard/index.html");
/// For those who are not let in, with two marks for what is told.
const DOOR: &str = include_str!("dashboard/door.html");
const VERSION_MARK: &str = "{{version}}";
const TITLE_MARK: &str = "{{title}}";
const TEXT_MARK: &str = "{{text}}";

const JS: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! assets {
    ($($name:literal: $kind:ident),* $(,)?) => {
        &[$(Asset { name: $name, kind: $kind, text: include_str!(concat!("dashboard/", $name)) }),*]
    };
}

struct Asset {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
}

static ASSETS: &[Asset] = assets![
    "api.js": JS,
    "app.js": JS,
    "automation.js": JS,
    "code.js": JS,
    "cost.js": JS,
    "cron.js": JS,
    "dialogs.js": JS,
    "dom.js": JS,
    "format.js": JS,
    "icon.svg": SVG,
    "json.js": JS,
    "keys.js": JS,
    "logs.js": JS,
    "overview.js": JS,
    "pages.css": CSS,
    "run.js": JS,
    "runs.js": JS,
    "strip.js": JS,
    "style.css": CSS,
    "text.js": JS,
    "theme.js": JS,
    "trace.js": JS,
    "words.js": JS,
];

/// The files' hash.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let mut hash = Sha256::new();
    for asset in ASSETS {
        hash.update(asset.name);
        hash.update([0]);
        hash.update(asset.text);
        hash.update([0]);
    }
    hex::encode(&hash.finalize()[..8])
});
static INDEX_HTML: LazyLock<String> = LazyLock::new(|| INDEX.replace(VERSION_MARK, &VERSION));

/// The pages themselves; [`guard_pages`](crate::gateway::access::guard_pages) is to stand before them.
pub fn pages<S: Clone + Send + Sync + 'static>(access: Access) -> Router<S> {
    Router::new()
        .route("/", get(index))
        .route("/login", get(login))
        .route("/assets/{version}/{name}", get(asset))
        .with_state(access)
}

async fn login(State(access): State<Access>, RawQuery(query): RawQuery) -> Result<Response, ProblemDocument> {
    // A code is hex: nothing in it is escaped.
    let code = query.as_deref().and_then(|query| query.strip_prefix("code=")).unwrap_or_default();
    let cookie = access.log_in(code).map_err(|error| ProblemDocument::internal(&error))?;
    Ok(match cookie {
        Some(cookie) => {
            let to = HeaderValue::from_static("/");
            (StatusCode::SEE_OTHER, [(header::LOCATION, to), (header::SET_COOKIE, cookie)]).into_response()
        }
        None => door(
            StatusCode::UNAUTHORIZED,
            "This link does not work any more",
            "A link opens the dashboard once, within two minutes of being made.",
        ),
    })
}

async fn index(State(access): State<Access>, headers: HeaderMap) -> Response {
    if access.has_session(&headers) {
        return html(StatusCode::OK, INDEX_HTML.clone());
    }
    door(
        StatusCode::UNAUTHORIZED,
        "You are not logged in",
        "Sessions end after twelve hours without use, and when the daemon restarts.",
    )
}

/// A link on some other page led here. Nothing is lost: the same address works when this page is asked for it.
pub fn came_from_elsewhere() -> Response {
    door(
        StatusCode::FORBIDDEN,
        "Another site sent you here",
        "Pages of other sites cannot open the dashboard. Copy the address into the address bar instead.",
    )
}

fn door(status: StatusCode, title: &str, text: &str) -> Response {
    let page = DOOR.replace(VERSION_MARK, &VERSION).replace(TITLE_MARK, title).replace(TEXT_MARK, text);
    html(status, page)
}

fn html(status: StatusCode, page: String) -> Response {
    (status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response()
}

async fn asset(Path((version, name)): Path<(String, String)>) -> Response {
    let found = ASSETS.iter().find(|asset| version == *VERSION && asset.name == name);
    let Some(asset) = found else {
        return ProblemDocument::not_found("not_found", "there is no such file in this version").into_response();
    };
    let headers = [(header::CONTENT_TYPE, asset.kind), (header::CACHE_CONTROL, "public, max-age=31536000, immutable")];
    (headers, asset.text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scripts() -> impl Iterator<Item = &'static Asset> {
        ASSETS.iter().filter(|asset| asset.kind == JS)
    }

    fn pages() -> [(&'static str, &'static str); 2] {
        [("index.html", INDEX), ("door.html", DOOR)]
    }

    #[test]
    fn nothing_turns_text_into_markup_or_code() {
        let sinks = [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "setHTML",
            "document.write",
            "createContextualFragment",
            "DOMParser",
            "srcdoc",
            "eval(",
            "new Function",
            "setTimeout('",
            "setTimeout(\"",
            "javascript:",
        ];
        for asset in scripts() {
            for sink in sinks {
                assert!(!asset.text.contains(sink), "{} has {sink}", asset.name);
            }
        }
        for (name, page) in pages() {
            for inline in ["<style", " style=", " onclick=", " onload=", " onerror=", "<script>", "javascript:"] {
                assert!(!page.contains(inline), "{name} has {inline}");
            }
        }
    }

    #[test]
    fn nothing_comes_from_another_origin() {
        let texts = ASSETS.iter().map(|asset| (asset.name, asset.text)).chain(pages());
        for (name, text) in texts {
            let text = text.replace("http://www.w3.org/2000/svg", "");
            for foreign in ["http://", "https://", "src=\"//", "url(//", "@import"] {
                assert!(!text.contains(foreign), "{name} has {foreign}");
            }
        }
    }

    /// The text between each `before` and the next `after`.
    fn between<'t>(text: &'t str, before: &'static str, after: char) -> impl Iterator<Item = &'t str> {
        text.split(before).skip(1).filter_map(move |rest| rest.split(after).next())
    }

    #[test]
    fn what_the_files_name_is_served_and_nothing_else_is() {
        let mut named: Vec<&str> = Vec::new();
        for asset in scripts() {
            let imports = between(asset.text, "from './", '\'').chain(between(asset.text, "import('./", '\''));
            named.extend(imports);
        }
        for (_, page) in pages() {
            named.extend(between(page, "/assets/{{version}}/", '"'));
        }
        for asset in ASSETS {
            assert!(named.contains(&asset.name), "nobody asks for {}", asset.name);
        }
        for name in named {
            assert!(ASSETS.iter().any(|asset| asset.name == name), "{name} is not served");
        }
    }

    #[test]
    fn every_testid_of_the_list_is_there() {
        let app = ASSETS.iter().find(|asset| asset.name == "app.js").unwrap();
        let list = between(app.text, "data-testid:", '/').next().expect("the list at the top");
        let all: String = ASSETS.iter().filter(|a| a.name != "app.js").map(|a| a.text).chain([INDEX]).collect();
        let names: Vec<&str> = list.split([' ', '\n', '*', ',']).filter(|name| !name.is_empty()).collect();
        assert!(names.len() > 15, "{names:?}");
        for name in names {
            let quoted = [format!("'{name}'"), format!("\"{name}\"")];
            let in_app = app.text.matches(&quoted[0]).count() > 0;
            assert!(in_app || quoted.iter().any(|name| all.contains(name.as_str())), "{name} is on no element");
        }
    }
}
