//! Manifest bytes in, manifest and problems out.

use super::json_tree::Node;
use super::position::{Path, line_column, syntax_problem};
use super::report::{Report, as_whole_number, kind_of, seen};
use super::subschema::read_output_schema;
use super::triggers::read_triggers;
use super::{
    CatchUp, Concurrency, ConcurrencyMode, CostEstimate, FailureHandler, Generated, HistoryKeep, MAX_MANIFEST_BYTES,
    Manifest, Requires, Retry, fields, limits,
};
use crate::fire::{AppId, Handle, Problem};

/// What became of a manifest's bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// Present when no problem is an error.
    pub manifest: Option<Manifest>,
    /// What the file says about `enabled`, also when the rest of it is refused; true when that cannot be known.
    pub enabled_hint: bool,
    /// In the order of the text, each with line and column.
    pub problems: Vec<Problem>,
    /// Line and column of what `onFailure` says, for whoever knows which automations there are.
    pub on_failure_at: Option<(u32, u32)>,
}

/// Reads the manifest of an automation that lives in `app`.
pub fn parse(bytes: &[u8], app: &AppId) -> Parsed {
    let refused = |problem| Parsed { manifest: None, enabled_hint: true, problems: vec![problem], on_failure_at: None };
    let text = match readable_text(bytes) {
        Ok(text) => text,
        Err(problem) => return refused(*problem),
    };
    let root = match Node::read(text) {
        Ok(root) => root,
        Err(error) => return refused(syntax_problem(text, &error)),
    };
    let mut report = Report::default();
    let manifest = read_manifest(&mut report, &root, app).filter(|_| !report.has_errors());
    Parsed {
        manifest,
        enabled_hint: root.get("enabled").is_none_or(Node::is_true),
        problems: report.into_problems(text),
        on_failure_at: root.get("onFailure").map(|node| line_column(text, node.span.start)),
    }
}

/// The bytes as text, if a JSON reader may see them at all.
fn readable_text(bytes: &[u8]) -> Result<&str, Box<Problem>> {
    let refuse = |code, message: String, hint: &str, (line, column)| {
        Box::new(Problem::error(code, "", message).with_hint(hint).at(line, column))
    };
    if bytes.len() > MAX_MANIFEST_BYTES {
        let message = format!("the manifest may have {MAX_MANIFEST_BYTES} bytes, but has {}", bytes.len());
        return Err(refuse("too_large", message, "keep data out of the manifest", (1, 1)));
    }
    if bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]) {
        let message = "the manifest must be UTF-8, but is UTF-16".to_owned();
        return Err(refuse("not_utf8", message, "save the file as UTF-8 without a byte order mark", (1, 1)));
    }
    let text = str::from_utf8(bytes).map_err(|error| {
        let good = str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
        let byte = bytes.get(error.valid_up_to()).copied().unwrap_or_default();
        let message = format!("the manifest must be UTF-8, but holds the byte 0x{byte:02x}");
        refuse("not_utf8", message, "save the file as UTF-8", line_column(good, good.len()))
    })?;
    if text.starts_with('\u{feff}') {
        let message = "the manifest is not valid JSON: it starts with a byte order mark".to_owned();
        return Err(refuse("invalid_json", message, "save the file as UTF-8 without a byte order mark", (1, 1)));
    }
    Ok(text)
}

/// Every field is read, whatever is wrong with the others, so that all problems come at once.
fn read_manifest(report: &mut Report, root: &Node, app: &AppId) -> Option<Manifest> {
    if !root.is_object() {
        report.error("invalid_field", &Path::Root, root, format!("must be a JSON object, not {}", kind_of(root)));
        return None;
    }
    report.check_names(root, &Path::Root, fields::MANIFEST);
    report.check_repeats(root, &Path::Root);
    let name = report.required_text(root, &Path::Root, "name");
    let version = match root.get("version") {
        None => Some(limits::DEFAULT_VERSION.to_owned()),
        Some(_) => report.required_text(root, &Path::Root, "version"),
    };
    let description = read_description(report, root);
    let prompt = report.required_text(root, &Path::Root, "prompt");
    let enabled = read_enabled(report, root);
    let triggers = read_triggers(report, root);
    let requires = read_requires(report, root);
    let apps = read_apps(report, root);
    let cost_estimate = read_cost_estimate(report, root);
    let output_schema = read_output_schema(report, root);
    let on_failure = read_on_failure(report, root, app);
    let keep = read_history(report, root);
    let generated = read_generated(report, root);
    let concurrency = read_concurrency(report, root);
    let timeout_ms = report
        .whole_number(root, &Path::Root, "timeoutMs", &limits::TIMEOUT_MS, " (milliseconds)")
        .unwrap_or(limits::DEFAULT_TIMEOUT_MS);
    let catch_up = report.word(root, &Path::Root, "catchUp", CatchUp::WORDS, CatchUp::parse).unwrap_or(CatchUp::Once);
    let retry = read_retry(report, root);
    Some(Manifest {
        name: name?,
        version: version?,
        description,
        prompt: prompt?,
        enabled,
        triggers,
        requires,
        apps,
        cost_estimate,
        output_schema,
        on_failure,
        keep,
        generated: generated?,
        concurrency,
        timeout_ms,
        catch_up,
        retry,
    })
}

fn read_description(report: &mut Report, root: &Node) -> Option<String> {
    let node = root.get("description")?;
    let text = node.as_str();
    if text.is_none() {
        let rule = format!("must be a string, not {}", kind_of(node));
        report.error("invalid_field", &Path::Root.key("description"), node, rule);
    }
    text.map(str::to_owned)
}

fn read_enabled(report: &mut Report, root: &Node) -> bool {
    let Some(node) = root.get("enabled") else { return true };
    if !matches!(node.scalar(), Some(serde_json::Value::Bool(_))) {
        let rule = format!("should be true or false; {} counts as false", seen(node));
        report
            .warning("invalid_field", &Path::Root.key("enabled"), node, rule)
            .hint("only an absent \"enabled\" or a literal true is enabled");
    }
    node.is_true()
}

fn read_requires(report: &mut Report, root: &Node) -> Requires {
    let path = Path::Root.key("requires");
    let Some(node) = root.get("requires") else {
        return Requires::default();
    };
    if node.items().is_some() {
        // Other hosts take an array for an object without fields.
        report.warning("invalid_field", &path, node, "should be an object; an array counts as empty");
    } else if !node.is_object() {
        report.error("invalid_field", &path, node, format!("must be an object, not {}", seen(node)));
        return Requires::default();
    }
    report.check_names(node, &path, fields::REQUIRES);
    let mut texts = |key| -> Vec<String> {
        report.texts(node, &path, key).into_iter().map(|(_, _, text)| text.to_owned()).collect()
    };
    let (mcps, tools) = (texts("mcps"), texts("tools"));
    Requires { mcps, tools, model: read_model(report, node, &path) }
}

fn read_model(report: &mut Report, requires: &Node, path: &Path<'_>) -> Option<String> {
    let node = requires.get("model")?;
    let path = path.key("model");
    let Some(model) = node.as_str().filter(|text| !text.is_empty()) else {
        let rule = format!("must be a non-empty string, not {}", seen(node));
        report.error("invalid_field", &path, node, rule).hint("write \"provider/model-id\"");
        return None;
    };
    if model.split('/').next() == Some("centraid-mock") {
        let rule = format!("must not be {}: that provider answers from the runtime itself, without end", seen(node));
        report.error("mock_model_disallowed", &path, node, rule).hint("name a real model as \"provider/model-id\"");
        return None;
    }
    if !model.split_once('/').is_some_and(|(provider, id)| !provider.is_empty() && !id.is_empty()) {
        let rule = format!("should be \"provider/model-id\", not {}; model calls will fail", seen(node));
        report.warning("invalid_field", &path, node, rule);
    }
    Some(model.to_owned())
}

fn read_apps(report: &mut Report, root: &Node) -> Vec<AppId> {
    let path = Path::Root.key("apps");
    let mut apps = Vec::new();
    for (index, node, text) in report.texts(root, &Path::Root, "apps") {
        match AppId::new(text) {
            Ok(app) => apps.push(app),
            Err(error) => {
                // Other hosts keep any text here, so it is no reason to refuse the manifest.
                let rule = format!("can name no app folder, which must match {}; it is left out", error.rule);
                report.warning("invalid_field", &path.index(index), node, rule);
            }
        }
    }
    apps
}

fn read_cost_estimate(report: &mut Report, root: &Node) -> Option<CostEstimate> {
    let node = root.get("costEstimate")?;
    let path = Path::Root.key("costEstimate");
    if node.scalar().is_some() {
        report.error("invalid_field", &path, node, format!("must be an object, not {}", seen(node)));
        return None;
    }
    report.check_names(node, &path, fields::COST_ESTIMATE);
    let model = report.required_text(node, &path, "model");
    let tokens_path = path.key("tokensPerFire");
    let rule = "must be a number of at least 0";
    let tokens_per_fire = match node.get("tokensPerFire") {
        None => {
            report.error("invalid_field", &tokens_path, node, format!("{rule}, but is absent"));
            None
        }
        Some(tokens) => {
            let number = tokens.scalar().and_then(serde_json::Value::as_f64).filter(|n| n.is_finite() && *n >= 0.0);
            if number.is_none() {
                report.error("invalid_field", &tokens_path, tokens, format!("{rule}, not {}", seen(tokens)));
            }
            number
        }
    };
    Some(CostEstimate { model: model?, tokens_per_fire: tokens_per_fire? })
}

fn read_on_failure(report: &mut Report, root: &Node, app: &AppId) -> Option<FailureHandler> {
    const CODE: &str = "invalid_on_failure";
    let node = root.get("onFailure")?;
    let path = Path::Root.key("onFailure");
    let hint = "write \"<app>/<automation>\", or \"<automation>\" for one in the same app";
    let Some(text) = node.as_str().filter(|text| !text.is_empty()) else {
        let rule = format!("must name an automation, not be {}", seen(node));
        report.error(CODE, &path, node, rule).hint(hint);
        return None;
    };
    match Handle::parse(text, Some(app)) {
        Ok(handle) if text.contains('/') => Some(FailureHandler::Handle(handle)),
        Ok(handle) => Some(FailureHandler::Sibling(handle.automation)),
        Err(error) => {
            let rule = format!("{} names no automation: the {} must match {}", seen(node), error.what, error.rule);
            report.error(CODE, &path, node, rule).hint(hint);
            None
        }
    }
}

fn read_history(report: &mut Report, root: &Node) -> HistoryKeep {
    const CODE: &str = "invalid_history";
    const RULE: &str =
        "must be { \"count\": N }, { \"days\": N }, \"all\" or \"errors\", N a whole number of at least 0";
    const DEFAULT: HistoryKeep = HistoryKeep::Count(limits::DEFAULT_HISTORY_COUNT);
    let path = Path::Root.key("history");
    let Some(history) = root.get("history") else {
        return DEFAULT;
    };
    if !history.is_object() {
        let found = report.error(CODE, &path, history, format!("must be an object, not {}", seen(history)));
        if matches!(history.as_str(), Some("all" | "errors")) {
            found.hint(format!("write {{ \"keep\": {} }}", seen(history)));
        }
        return DEFAULT;
    }
    report.check_names(history, &path, fields::HISTORY);
    let Some(keep) = history.get("keep") else {
        return DEFAULT;
    };
    let path = path.key("keep");
    match keep.as_str() {
        Some("all") => return HistoryKeep::All,
        Some("errors") => return HistoryKeep::Errors,
        _ => {}
    }
    if !keep.is_object() {
        report.error(CODE, &path, keep, format!("{RULE}, not {}", seen(keep)));
        return DEFAULT;
    }
    report.check_names(keep, &path, fields::KEEP);
    // A count beyond 64 bits keeps everything just as well.
    let number = |key| {
        let number = keep.get(key).and_then(as_whole_number)?;
        (number >= 0).then(|| u64::try_from(number).unwrap_or(u64::MAX))
    };
    let unused = |report: &mut Report, key: &str, used: &str| {
        if let Some(node) = keep.get(key) {
            report.warning(CODE, &path.key(key), node, format!("has no effect: \"{used}\" counts"));
        }
    };
    if let Some(count) = number("count") {
        unused(report, "days", "count");
        HistoryKeep::Count(count)
    } else if let Some(days) = number("days") {
        unused(report, "count", "days");
        HistoryKeep::Days(days)
    } else {
        match keep.get("count").map(|node| ("count", node)).or_else(|| keep.get("days").map(|node| ("days", node))) {
            Some((key, node)) => {
                let rule = format!("must be a whole number of at least 0, not {}", seen(node));
                report.error(CODE, &path.key(key), node, rule);
            }
            None => {
                report.error(CODE, &path, keep, RULE);
            }
        }
        DEFAULT
    }
}

fn read_generated(report: &mut Report, root: &Node) -> Option<Generated> {
    let path = Path::Root.key("generated");
    let rule = "must be an object with \"by\" and \"at\"";
    match root.get("generated") {
        Some(node) if node.is_object() => {
            report.check_names(node, &path, fields::GENERATED);
            let (by, at) = (report.required_text(node, &path, "by"), report.required_text(node, &path, "at"));
            Some(Generated { by: by?, at: at? })
        }
        Some(node) => {
            report.error("missing_field", &path, node, format!("{rule}, not {}", seen(node)));
            None
        }
        None => {
            report
                .error("missing_field", &path, root, format!("{rule}, but is absent"))
                .hint("add \"generated\": { \"by\": \"<who wrote it>\", \"at\": \"<when>\" }");
            None
        }
    }
}

fn read_concurrency(report: &mut Report, root: &Node) -> Concurrency {
    let path = Path::Root.key("concurrency");
    let default_max = |mode| match mode {
        ConcurrencyMode::Queued => limits::DEFAULT_QUEUED_MAX,
        ConcurrencyMode::Parallel => limits::DEFAULT_PARALLEL_MAX,
        ConcurrencyMode::Single | ConcurrencyMode::Restart => 1,
    };
    let mut mode = ConcurrencyMode::Single;
    let mut max = None;
    match root.get("concurrency") {
        Some(node) if node.is_object() => {
            report.check_names(node, &path, fields::CONCURRENCY);
            let known = report.word(node, &path, "mode", ConcurrencyMode::WORDS, ConcurrencyMode::parse);
            max = report.whole_number(node, &path, "max", &limits::CONCURRENCY_MAX, "");
            // A mode that could not be read says nothing about what `max` would mean.
            let mode_is_known = known.is_some() || node.get("mode").is_none();
            mode = known.unwrap_or(mode);
            if let Some(max_node) = node.get("max")
                && mode_is_known
                && matches!(mode, ConcurrencyMode::Single | ConcurrencyMode::Restart)
            {
                let rule = format!("has no effect with mode \"{}\"", mode.as_str());
                report
                    .warning("invalid_field", &path.key("max"), max_node, rule)
                    .hint("\"queued\" and \"parallel\" have a \"max\"");
                max = None;
            }
        }
        Some(node) => {
            let found = report.error("invalid_field", &path, node, format!("must be an object, not {}", seen(node)));
            if node.as_str().and_then(ConcurrencyMode::parse).is_some() {
                found.hint(format!("write {{ \"mode\": {} }}", seen(node)));
            }
        }
        None => {}
    }
    Concurrency { mode, max: max.and_then(|max| u32::try_from(max).ok()).unwrap_or(default_max(mode)) }
}

fn read_retry(report: &mut Report, root: &Node) -> Retry {
    let path = Path::Root.key("retry");
    let (mut max, mut backoff_ms) = (None, None);
    match root.get("retry") {
        Some(node) if node.is_object() => {
            report.check_names(node, &path, fields::RETRY);
            max = report.whole_number(node, &path, "max", &limits::RETRY_MAX, "");
            backoff_ms = report.whole_number(node, &path, "backoffMs", &limits::BACKOFF_MS, " (milliseconds)");
        }
        Some(node) => {
            let found = report.error("invalid_field", &path, node, format!("must be an object, not {}", seen(node)));
            if as_whole_number(node).is_some() {
                found.hint(format!("write {{ \"max\": {} }}", seen(node)));
            }
        }
        None => {}
    }
    Retry {
        max: max.and_then(|max| u32::try_from(max).ok()).unwrap_or(0),
        backoff_ms: backoff_ms.unwrap_or(limits::DEFAULT_BACKOFF_MS),
    }
}
