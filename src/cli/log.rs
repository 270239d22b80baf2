//! The log of this process, on stderr: for people, or, where `--json` promises JSON, one object per line as
//! `{"log": {"level", "message", …}}`.

use std::fmt;

use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// `DIRIGENT_LOG`, else `RUST_LOG`, sets what is told; a filter that cannot be read is passed over, because a log
/// setting must not keep a daemon from starting.
pub fn start(default: &str, as_json: bool) {
    let setting =
        ["DIRIGENT_LOG", "RUST_LOG"].iter().find_map(|name| std::env::var(name).ok().filter(|s| !s.is_empty()));
    let mut filter = setting.and_then(|text| EnvFilter::try_new(text).ok()).unwrap_or_else(|| EnvFilter::new(default));
    // It writes out what servers say, in which there may be secrets; `tools::mcp` tells what is worth it, without them.
    if let Ok(silent) = "rmcp=off".parse() {
        filter = filter.add_directive(silent);
    }
    let colour = anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colour && !as_json)
        .with_target(false)
        .with_writer(std::io::stderr);
    // A second subscriber in one process is a test's; the first one stays.
    let _ = if as_json { log.event_format(JsonLines).try_init() } else { log.try_init() };
}

struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields(Map::new());
        fields.0.insert("level".to_owned(), json!(event.metadata().level().as_str().to_ascii_lowercase()));
        event.record(&mut fields);
        writeln!(writer, "{}", json!({ "log": fields.0 }))
    }
}

/// The fields of one event, by name; the text is `message`.
struct Fields(Map<String, Value>);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_owned(), json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().to_owned(), json!(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), json!(format!("{value:?}")));
    }
}
