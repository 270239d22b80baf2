//! `webhook provision`, `rotate`, `test`: the credentials of a webhook, shown once, and a post to try them with.
//!
//! Minting writes the manifest and nothing else, so it needs no daemon; one that watches sees the new file like any
//! other edit. `test` is a client of the hook listener and has no other way in than any sender.

use std::io::Read;
use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, header};
use secrecy::{ExposeSecret, SecretSlice};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::cli::client::{http_client, told};
use crate::cli::failure::{Failure, Outcome, exit};
use crate::cli::output::{document, line, note, shown_lines};
use crate::cli::place::Place;
use crate::cli::toggle::refused;
use crate::clock::Clock;
use crate::core::manifest::{self, SecretRef, Verify, Webhook};
use crate::edit::{self, Minted};
use crate::fire::Handle;
use crate::gateway::hooks::{self, secret, signature};

/// What `test` posts when nothing else is said.
const SAMPLE_BODY: &str = r#"{"test": true}"#;
/// Seconds that `test` waits for the run's end.
const DEFAULT_WAIT_S: f64 = 10.0;
/// What a body may have here; the listener's own limit is usually far below.
const MOST_BODY_BYTES: u64 = 16 * 1024 * 1024;
/// Above what the listener waits.
const SLACK: Duration = Duration::from_secs(30);

/// Webhook credentials, and a post to try them
#[derive(Debug, clap::Args)]
pub struct WebhookArgs {
    #[command(subcommand)]
    command: WebhookCommand,
}

#[derive(Debug, clap::Subcommand)]
enum WebhookCommand {
    /// Mints address and secret of a pending webhook; the secret is shown this once
    #[command(after_help = "\
Example:
  dirigent webhook provision auto.mail/inbound

The manifest must declare {\"kind\": \"webhook\", \"pending\": true}. It gets the address and the
secret's hash; the secret itself is kept nowhere.")]
    Provision(MintArgs),
    /// Mints a new secret for the same address; the old one is refused from then on
    Rotate(MintArgs),
    /// Posts a sample body to the running daemon, as a sender would
    #[command(after_help = "\
Examples:
  DIRIGENT_WEBHOOK_SECRET=… dirigent webhook test auto.mail/inbound
  dirigent webhook test inbound --body @sample.json --secret - < secret.txt
  dirigent webhook test inbound --body '{\"action\": \"opened\"}'

Where the manifest has `verify`, the body is signed with the secret that it refers to. Exit code 0
when the post was accepted and its run did not fail, 1 otherwise, 3 without a daemon.")]
    Test(TestArgs),
}

#[derive(Debug, clap::Args)]
struct MintArgs {
    /// APP/ID, or the id alone when only one app has it
    handle: String,
}

#[derive(Debug, clap::Args)]
struct TestArgs {
    /// APP/ID, or the id alone when only one app has it
    handle: String,
    /// What to post: text, @file, or - for stdin [default: {"test": true}]
    #[arg(long, value_name = "JSON|@FILE|-", allow_hyphen_values = true)]
    body: Option<String>,
    /// The webhook's secret, or - for stdin; other users can see arguments, so the variable is better
    #[arg(
        long,
        value_name = "SECRET",
        env = "DIRIGENT_WEBHOOK_SECRET",
        hide_env_values = true,
        allow_hyphen_values = true
    )]
    secret: Option<String>,
    /// Seconds to wait for the run's end, 0 to 60
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_WAIT_S)]
    wait: f64,
}

pub async fn webhook(place: &Place, args: WebhookArgs) -> Outcome {
    match args.command {
        WebhookCommand::Provision(args) => mint(place, &args, edit::provision_webhook),
        WebhookCommand::Rotate(args) => mint(place, &args, edit::rotate_webhook),
        WebhookCommand::Test(args) => test(place, args).await,
    }
}

fn mint(
    place: &Place,
    args: &MintArgs,
    edit: impl FnOnce(&std::path::Path, &Handle) -> Result<Minted, edit::EditError>,
) -> Outcome {
    let handle = place.automation(&args.handle)?;
    let minted = edit(&place.app_dir(&handle.app), &handle).map_err(|error| refused(&error))?;
    let url = hooks::url(listener(place), &minted.slug);
    if place.json {
        document(&json!({ "handle": handle, "slug": minted.slug, "url": url, "secret": minted.secret }))?;
    } else {
        line(format_args!("url     {url}"))?;
        line(format_args!("secret  {}", minted.secret))?;
        line(format_args!(
            "
The secret is kept nowhere and not shown again. To post:
  curl -d '{SAMPLE_BODY}' -H 'Authorization: Bearer {}' {url}",
            minted.secret
        ))?;
    }
    // What was minted is of no use to senders whose signature is checked instead.
    if let Ok(Some(Verify { scheme, secret_ref, .. })) = webhook_of(place, &handle).map(|webhook| webhook.verify) {
        // Whoever wrote the manifest has chosen it: one look whether it is a secret at all.
        let secret_ref = match secret_ref {
            SecretRef::Env(name) => format!("env:{name}"),
            SecretRef::File(path) => format!("file:{path}"),
        };
        note(format_args!(
            "posts to it are checked by their {} signature (`verify`), with the secret at {secret_ref}; the secret above \
             lets nobody in",
            scheme.as_str()
        ));
    }
    if place.daemon.as_ref().is_some_and(|daemon| daemon.hooks.is_none()) {
        note("the daemon that runs serves no webhooks (--role desktop)");
    }
    Ok(exit::FINE)
}

/// Where the running daemon takes posts, or where the next one will by default.
fn listener(place: &Place) -> SocketAddr {
    place.daemon.as_ref().and_then(|daemon| daemon.hooks).unwrap_or(hooks::DEFAULT_ADDRESS)
}

fn webhook_of(place: &Place, handle: &Handle) -> Result<Webhook, Failure> {
    let bytes = edit::read_manifest(&place.app_dir(&handle.app), handle).map_err(|error| refused(&error))?;
    let Some(manifest) = manifest::parse(&bytes, &handle.app).manifest else {
        return Err(Failure::failed("invalid_manifest", format!("{handle}: its manifest is not valid"))
            .hint(format!("see `dirigent validate {handle}`")));
    };
    manifest.webhook().cloned().ok_or_else(|| {
        Failure::failed("no_provisioned_webhook", format!("{handle}: it has no provisioned webhook"))
            .hint(format!("mint one: `dirigent webhook provision {handle}`"))
    })
}

async fn test(place: &Place, args: TestArgs) -> Outcome {
    let body = match args.body.as_deref() {
        None => SAMPLE_BODY.as_bytes().to_vec(),
        Some("-") if args.secret.as_deref() == Some("-") => {
            return Err(Failure::usage("body and secret cannot both come from stdin"));
        }
        Some("-") => read(std::io::stdin(), "stdin", MOST_BODY_BYTES)?,
        Some(text) => match text.strip_prefix('@') {
            Some(path) => {
                let file = std::fs::File::open(path);
                read(file.map_err(|error| Failure::io(path, &error).exit_with(exit::USAGE))?, path, MOST_BODY_BYTES)?
            }
            None => text.as_bytes().to_vec(),
        },
    };
    if !(0.0..=crate::config::Hooks::MAX_WAIT_S).contains(&args.wait) {
        return Err(Failure::usage(format!("--wait is {}; it is from 0 to 60 seconds", args.wait)));
    }
    let handle = place.automation(&args.handle)?;
    let webhook = webhook_of(place, &handle)?;
    let daemon = place.daemon.as_ref().ok_or_else(|| Failure::no_daemon("webhook test"))?;
    let Some(listener) = daemon.hooks else {
        return Err(Failure::failed("no_hooks", "the daemon that runs serves no webhooks (--role desktop)")
            .hint("serve with --role gateway"));
    };
    let mut headers = credentials(place, &handle, &webhook, args.secret, &body)?;
    let kind = if serde_json::from_slice::<&serde_json::value::RawValue>(&body).is_ok() {
        "application/json"
    } else {
        "text/plain; charset=utf-8"
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    let url = hooks::url(listener, &webhook.id);
    let (status, answer) = post(&url, headers, body, args.wait).await?;
    tell(place, &handle, status, &answer)
}

fn read(from: impl Read, name: &str, most: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    from.take(most + 1).read_to_end(&mut bytes).map_err(|error| Failure::io(name, &error).exit_with(exit::USAGE))?;
    if bytes.len() as u64 > most {
        return Err(Failure::usage(format!("{name} has more than {most} bytes")));
    }
    Ok(bytes)
}

/// The headers that let the post in.
fn credentials(
    place: &Place,
    handle: &Handle,
    webhook: &Webhook,
    given: Option<String>,
    body: &[u8],
) -> Result<HeaderMap, Failure> {
    let given: Option<SecretSlice<u8>> = match given.as_deref() {
        Some("-") => Some(read(std::io::stdin(), "stdin", 64 * 1024)?.trim_ascii().to_vec().into()),
        Some(text) => Some(text.as_bytes().to_vec().into()),
        None => None,
    };
    let Some(verify) = &webhook.verify else {
        let Some(secret) = given else {
            return Err(Failure::usage("the webhook's secret is needed, and only its hash is kept here").hint(
                format!(
                    "set DIRIGENT_WEBHOOK_SECRET; `dirigent webhook rotate {handle}` mints a new one when it is lost"
                ),
            ));
        };
        let bearer = [b"Bearer ", secret.expose_secret()].concat();
        let mut value =
            HeaderValue::from_bytes(&bearer).map_err(|_| Failure::usage("that is no secret of a webhook"))?;
        value.set_sensitive(true);
        return Ok(HeaderMap::from_iter([(header::AUTHORIZATION, value)]));
    };
    let secret = match given {
        Some(secret) => secret,
        None => secret::read(&verify.secret_ref, Some(&place.app_dir(&handle.app)))
            .map_err(|error| {
                let hint = match verify.secret_ref {
                    SecretRef::Env(_) => "the daemon has it in its own environment; give it here too, or with --secret",
                    SecretRef::File(_) => "let yourself read it, or give it with --secret",
                };
                Failure::failed("no_secret", format!("the signing secret cannot be read: {error}")).hint(hint)
            })?
            .swap_remove(0),
    };
    let now_s = Clock::Real.now_ms().div_euclid(1000);
    let id = format!("test_{}", Uuid::now_v7().simple());
    let signed = signature::sign(verify, secret.expose_secret(), &id, now_s, body);
    let signed =
        signed.map_err(|bad| Failure::failed("bad_secret", format!("the signing secret is unusable: {bad}")))?;
    signature::to_headers(signed).map_err(|error| Failure::failed("bad_secret", error.to_string()))
}

async fn post(url: &str, headers: HeaderMap, body: Vec<u8>, wait: f64) -> Result<(u16, Value), Failure> {
    let silent = |error: &reqwest::Error| {
        Failure::failed("daemon_silent", format!("the daemon does not answer at {url}: {}", told(error)))
            .exit_with(exit::NO_DAEMON)
            .hint("it may be stopping; otherwise restart it")
    };
    let request = http_client()?
        .post(format!("{url}?wait={wait}"))
        .headers(headers)
        .timeout(Duration::from_secs_f64(wait) + SLACK)
        .body(body);
    let response = request.send().await.map_err(|error| silent(&error))?;
    let status = response.status().as_u16();
    let bytes = response.bytes().await.map_err(|error| silent(&error))?;
    Ok((status, serde_json::from_slice(&bytes).unwrap_or_default()))
}

fn tell(place: &Place, handle: &Handle, status: u16, answer: &Value) -> Outcome {
    let text = |name: &str| answer.get(name).and_then(Value::as_str);
    let accepted = answer.get("ok") == Some(&Value::Bool(true));
    if place.json && answer.get("ok").is_some() {
        document(&json!({ "handle": handle, "httpStatus": status, "answer": answer }))?;
        return Ok(if accepted { exit::FINE } else { exit::FAILED });
    }
    let run = text("runId").unwrap_or_default();
    if accepted {
        let summary = text("summary").map(|summary| format!(": {}", shown_lines(summary))).unwrap_or_default();
        line(format_args!("{status} {} · run {run}{summary}", text("status").unwrap_or("ok")))?;
        return Ok(exit::FINE);
    }
    let (code, hint) = match (status, text("skipped")) {
        (_, Some("filter")) => ("skipped", Some("the body does not pass the webhook's filter".to_owned())),
        (_, Some(_)) => ("skipped", Some(format!("switch it on: `dirigent enable {handle}`"))),
        (401, _) => ("unauthorized", Some(format!("a lost secret is replaced by `dirigent webhook rotate {handle}`"))),
        (404, _) => (
            "unknown_webhook",
            Some(format!("the daemon has not opened it; see `dirigent list` and `dirigent validate {handle}`")),
        ),
        (409, _) => {
            ("busy", Some(format!("follow it with `dirigent logs {run} -f`, or stop it with `dirigent cancel {run}`")))
        }
        (500, _) => ("run_failed", Some(format!("see `dirigent trace {run}`"))),
        _ => ("refused", None),
    };
    let message = text("skipped").or_else(|| text("error")).unwrap_or("no reason was given");
    let mut failure = Failure::failed(code, format!("{status}: {message}")).with("httpStatus", status);
    if !run.is_empty() {
        failure = failure.with("runId", run);
    }
    Err(match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    })
}
