//! Signatures over the exact bytes of a body, by the rules that senders publish. `verify` says whether one holds,
//! `sign` makes one, for `dirigent webhook test`.
//!
//! | scheme | header | signed | key | value |
//! |---|---|---|---|---|
//! | `standard-webhooks` | `webhook-signature`, beside `webhook-id` and `webhook-timestamp` | `id.timestamp.body` | base64, with or without `whsec_` before it | `v1,<base64>`, several with spaces between |
//! | `github` | `x-hub-signature-256` | the body | the secret | `sha256=<hex>` |
//! | `stripe` | `stripe-signature` | `t.body` | the secret, whole | `t=<s>,v1=<hex>`, several `v1` |
//! | `hmac-sha256` | the first there is of a few usual ones | the body | the secret | hex or base64, with or without `sha256=` before it |
//!
//! All are HMAC-SHA256. A manifest's `header` names another header; for `standard-webhooks` one that ends in `-signature`
//! moves id and timestamp with it, as senders of the older `svix-` names need it. A timestamp may be five minutes from
//! now, either way. Signatures of other versions are ignored; of those that count, all are compared, in constant time.
//!
//! A mistake here lets in whoever does not hold the secret.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};

use crate::core::manifest::{Verify, VerifyScheme};

/// How far a timestamp may be from now, seconds.
const TOLERANCE_S: i64 = 300;
/// Signatures of one request that are compared; senders that change their secret send two.
const MAX_SIGNATURES: usize = 16;
/// What a sender's key begins with in `standard-webhooks`.
const KEY_PREFIX: &str = "whsec_";

/// Where senders put a signature by no scheme of their own, when the manifest does not say.
const PLAIN_HEADERS: [&str; 4] = ["x-signature-256", "x-signature", "x-webhook-signature", "x-hub-signature-256"];

/// Base64 with or without its padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

type Digest = [u8; 32];

/// What a request says of its signature, before the secret is known. What it is missing is cheap to find out.
#[derive(Debug)]
pub struct Signed {
    scheme: VerifyScheme,
    /// What stands before the body in what was signed.
    prefix: Vec<u8>,
    signatures: Vec<Digest>,
    /// The sender's id of this delivery, where the scheme signs one.
    pub delivery_id: Option<String>,
}

/// A key that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    #[error("it is empty")]
    Empty,
    #[error("it is no base64, with or without `whsec_` before it")]
    NotBase64,
}

impl Signed {
    /// Reads the headers. `None` when they carry no signature of the scheme, or one of another time than `now_s`.
    pub fn read(verify: &Verify, headers: &HeaderMap, now_s: i64) -> Option<Self> {
        let names = Names::of(verify);
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let plain = verify.scheme == VerifyScheme::HmacSha256 && verify.header.is_none();
        let others = PLAIN_HEADERS.iter().filter(|_| plain).find_map(|name| text(name));
        let signature = text(&names.signature).or(others)?;
        let (prefix, signatures, delivery_id) = match verify.scheme {
            VerifyScheme::StandardWebhooks => {
                let (id, timestamp) = (text(&names.id)?, text(&names.timestamp)?);
                is_current(timestamp, now_s).then_some(())?;
                let versions = signature.split(' ').filter_map(|word| word.strip_prefix("v1,"));
                let signatures = versions.filter_map(from_base64).take(MAX_SIGNATURES).collect();
                (format!("{id}.{timestamp}."), signatures, Some(id.to_owned()))
            }
            VerifyScheme::Stripe => {
                let pairs: Vec<(&str, &str)> =
                    signature.split(',').filter_map(|pair| pair.trim().split_once('=')).collect();
                let timestamp = pairs.iter().find(|(name, _)| *name == "t")?.1;
                is_current(timestamp, now_s).then_some(())?;
                let versions = pairs.iter().filter(|(name, _)| *name == "v1");
                let signatures = versions.filter_map(|(_, hex)| from_hex(hex)).take(MAX_SIGNATURES).collect();
                (format!("{timestamp}."), signatures, None)
            }
            VerifyScheme::Github => (String::new(), vec![from_hex(signature.trim().strip_prefix("sha256=")?)?], None),
            VerifyScheme::HmacSha256 => {
                let value = signature.trim();
                let value = value.strip_prefix("sha256=").unwrap_or(value);
                (String::new(), vec![from_hex(value).or_else(|| from_base64(value))?], None)
            }
        };
        Some(Self { scheme: verify.scheme, prefix: prefix.into_bytes(), signatures, delivery_id })
    }

    /// Whether one of the signatures was made with this key over this body.
    ///
    /// # Errors
    /// [`BadKey`].
    pub fn holds(&self, key: &[u8], body: &[u8]) -> Result<bool, BadKey> {
        let expected = digest(self.scheme, key, &self.prefix, body)?;
        let found = self.signatures.iter().fold(Choice::from(0), |found, given| found | given.ct_eq(&expected));
        Ok(found.into())
    }
}

/// The headers that a sender with this key would put on a body. `delivery_id` matters where the scheme signs one.
///
/// # Errors
/// [`BadKey`].
pub fn sign(
    verify: &Verify,
    key: &[u8],
    delivery_id: &str,
    now_s: i64,
    body: &[u8],
) -> Result<Vec<(String, String)>, BadKey> {
    let names = Names::of(verify);
    let of = |prefix: String| digest(verify.scheme, key, prefix.as_bytes(), body);
    Ok(match verify.scheme {
        VerifyScheme::StandardWebhooks => {
            let digest = of(format!("{delivery_id}.{now_s}."))?;
            vec![
                (names.signature, format!("v1,{}", BASE64.encode(digest))),
                (names.id, delivery_id.to_owned()),
                (names.timestamp, now_s.to_string()),
            ]
        }
        VerifyScheme::Stripe => {
            vec![(names.signature, format!("t={now_s},v1={}", hex::encode(of(format!("{now_s}."))?)))]
        }
        VerifyScheme::Github | VerifyScheme::HmacSha256 => {
            vec![(names.signature, format!("sha256={}", hex::encode(of(String::new())?)))]
        }
    })
}

/// The headers that a scheme reads.
struct Names {
    signature: String,
    id: String,
    timestamp: String,
}

impl Names {
    fn of(verify: &Verify) -> Self {
        let usual = match verify.scheme {
            VerifyScheme::StandardWebhooks => "webhook-signature",
            VerifyScheme::Github => "x-hub-signature-256",
            VerifyScheme::Stripe => "stripe-signature",
            VerifyScheme::HmacSha256 => PLAIN_HEADERS[0],
        };
        let signature = verify.header.as_deref().unwrap_or(usual).to_ascii_lowercase();
        let family = signature.strip_suffix("-signature").unwrap_or("webhook").to_owned();
        Self { id: format!("{family}-id"), timestamp: format!("{family}-timestamp"), signature }
    }
}

fn digest(scheme: VerifyScheme, key: &[u8], prefix: &[u8], body: &[u8]) -> Result<Digest, BadKey> {
    let decoded;
    let key = match scheme {
        VerifyScheme::StandardWebhooks => {
            let text = std::str::from_utf8(key).map_err(|_| BadKey::NotBase64)?.trim();
            decoded = BASE64.decode(text.strip_prefix(KEY_PREFIX).unwrap_or(text)).map_err(|_| BadKey::NotBase64)?;
            decoded.as_slice()
        }
        _ => key,
    };
    if key.is_empty() {
        // Anybody can sign with an empty key.
        return Err(BadKey::Empty);
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(|_| BadKey::Empty)?;
    mac.update(prefix);
    mac.update(body);
    Ok(mac.finalize().into_bytes().into())
}

/// Seconds since the epoch, in plain digits, five minutes from now at most.
fn is_current(timestamp: &str, now_s: i64) -> bool {
    let digits = !timestamp.is_empty() && timestamp.bytes().all(|byte| byte.is_ascii_digit());
    let at = timestamp.parse::<i64>().ok().filter(|_| digits);
    at.is_some_and(|at| now_s.abs_diff(at) <= TOLERANCE_S.unsigned_abs())
}

fn from_hex(text: &str) -> Option<Digest> {
    let mut digest = Digest::default();
    hex::decode_to_slice(text, &mut digest).ok()?;
    Some(digest)
}

fn from_base64(text: &str) -> Option<Digest> {
    BASE64.decode(text).ok()?.try_into().ok()
}

/// Headers made by [`sign`], for a request.
///
/// # Errors
/// A name or value that HTTP cannot carry.
pub fn to_headers(signed: Vec<(String, String)>) -> Result<HeaderMap, http::Error> {
    signed.into_iter().map(|(name, value)| Ok((HeaderName::try_from(name)?, HeaderValue::try_from(value)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::manifest::SecretRef;

    const SCHEMES: [VerifyScheme; 4] =
        [VerifyScheme::StandardWebhooks, VerifyScheme::Github, VerifyScheme::Stripe, VerifyScheme::HmacSha256];
    const AT: i64 = 1_614_265_330;
    const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn verify(scheme: VerifyScheme, header: Option<&str>) -> Verify {
        Verify { scheme, secret_ref: SecretRef::Env("X".to_owned()), header: header.map(str::to_owned) }
    }

    fn holds(verify: &Verify, headers: &HeaderMap, now_s: i64, key: &str, body: &[u8]) -> bool {
        Signed::read(verify, headers, now_s).is_some_and(|signed| signed.holds(key.as_bytes(), body) == Ok(true))
    }

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        to_headers(pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()).unwrap()
    }

    #[test]
    fn the_published_examples_hold_and_their_changes_do_not() {
        #[derive(serde::Deserialize)]
        struct Vector {
            scheme: String,
            secret: String,
            body: String,
            headers: std::collections::BTreeMap<String, String>,
            at: Option<i64>,
        }
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vectors/webhook-signatures.json");
        let vectors: Vec<Vector> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert!(vectors.len() >= 3);
        for Vector { scheme, secret, body, headers, at } in vectors {
            let verify = verify(VerifyScheme::parse(&scheme).unwrap(), None);
            let headers = to_headers(headers.into_iter().collect()).unwrap();
            let now = at.unwrap_or(AT);
            assert!(holds(&verify, &headers, now, &secret, body.as_bytes()), "{scheme}");
            assert!(!holds(&verify, &headers, now, &secret, format!("{body} ").as_bytes()), "{scheme}: body");
            let other = format!("{}{}", &secret[..secret.len() - 4], "AAAA");
            assert!(!holds(&verify, &headers, now, &other, body.as_bytes()), "{scheme}: key");
            assert!(!holds(&verify, &HeaderMap::new(), now, &secret, body.as_bytes()), "{scheme}: nothing");
            for (offset, good) in [(300, true), (-300, true), (301, false), (-301, false)] {
                let held = holds(&verify, &headers, now + offset, &secret, body.as_bytes());
                assert_eq!(held, good || at.is_none(), "{scheme}: {offset} s");
            }
        }
    }

    #[test]
    fn what_is_signed_here_holds_under_each_scheme_and_no_other() {
        for scheme in SCHEMES {
            for header in [None, Some("X-Own-Signature")] {
                let own = verify(scheme, header);
                let headers = to_headers(sign(&own, KEY.as_bytes(), "msg_1", AT, b"{}").unwrap()).unwrap();
                assert!(holds(&own, &headers, AT, KEY, b"{}"), "{scheme:?} {header:?}");
                let id = Signed::read(&own, &headers, AT).unwrap().delivery_id;
                assert_eq!(id.is_some(), scheme == VerifyScheme::StandardWebhooks);
                for other in SCHEMES.into_iter().filter(|other| *other != scheme) {
                    // These two are the same rule under two names.
                    let twins = [VerifyScheme::Github, VerifyScheme::HmacSha256];
                    let read = header.is_some() || other == VerifyScheme::HmacSha256;
                    let alike = twins.contains(&scheme) && twins.contains(&other) && read;
                    assert_eq!(holds(&verify(other, header), &headers, AT, KEY, b"{}"), alike, "{scheme:?} {other:?}");
                }
                assert!(!holds(&verify(scheme, Some("x-nope")), &headers, AT, KEY, b"{}"));
            }
        }
    }

    #[test]
    fn one_of_several_signatures_is_enough_and_malformed_ones_are_none() {
        let good =
            BASE64.encode(digest(VerifyScheme::StandardWebhooks, KEY.as_bytes(), b"i.1614265330.", b"b").unwrap());
        let wrong = BASE64.encode([7; 32]);
        for (value, held) in [
            (format!("v1,{good}"), true),
            (format!("v1,{}", good.trim_end_matches('=')), true),
            (format!("v1,{wrong} v1,{good}"), true),
            (format!("v1a,{good} v1,{good}"), true),
            (format!("v1,!! v1, v1,{good}"), true),
            (format!("v1,{wrong}"), false),
            (format!("v1a,{good}"), false),
            (format!("v2,{good}"), false),
            (good.clone(), false),
            (format!("v1={good}"), false),
            (String::new(), false),
            ("v1,".to_owned(), false),
        ] {
            let headers =
                map(&[("webhook-id", "i"), ("webhook-timestamp", "1614265330"), ("webhook-signature", &value)]);
            assert_eq!(holds(&verify(VerifyScheme::StandardWebhooks, None), &headers, AT, KEY, b"b"), held, "{value}");
        }

        let good = hex::encode(digest(VerifyScheme::Stripe, b"k", b"1614265330.", b"b").unwrap());
        let wrong = "00".repeat(32);
        for (value, held) in [
            (format!("t=1614265330,v1={good}"), true),
            (format!("t=1614265330, v1={good}"), true),
            (format!("v1={good},t=1614265330"), true),
            (format!("t=1614265330,v1={wrong},v1={good},v0={wrong}"), true),
            (format!("t=1614265330,v1={}", good.to_uppercase()), true),
            (format!("t=1614265330,v0={good}"), false),
            (format!("t=1614265331,v1={good}"), false),
            (format!("t=,v1={good}"), false),
            (format!("t=-1,v1={good}"), false),
            (format!("t=99999999999999999999,v1={good}"), false),
            (format!("v1={good}"), false),
            ("t=1614265330".to_owned(), false),
            (format!("t=1614265330,v1={}", &good[2..]), false),
        ] {
            let headers = map(&[("stripe-signature", &value)]);
            assert_eq!(holds(&verify(VerifyScheme::Stripe, None), &headers, AT, "k", b"b"), held, "{value}");
        }

        let raw = digest(VerifyScheme::HmacSha256, b"k", b"", b"b").unwrap();
        for (value, github, hmac) in [
            (format!("sha256={}", hex::encode(raw)), true, true),
            (hex::encode(raw), false, true),
            (BASE64.encode(raw), false, true),
            (format!("sha1={}", hex::encode(raw)), false, false),
            (format!("sha256={}", hex::encode(&raw[..31])), false, false),
            ("sha256=".to_owned(), false, false),
        ] {
            let headers = map(&[("x", &value)]);
            for (scheme, held) in [(VerifyScheme::Github, github), (VerifyScheme::HmacSha256, hmac)] {
                assert_eq!(holds(&verify(scheme, Some("X")), &headers, AT, "k", b"b"), held, "{scheme:?} {value}");
            }
        }
    }

    #[test]
    fn an_empty_or_malformed_key_lets_nobody_in() {
        for (scheme, key, bad) in [
            (VerifyScheme::Github, "", BadKey::Empty),
            (VerifyScheme::Stripe, "", BadKey::Empty),
            (VerifyScheme::HmacSha256, "", BadKey::Empty),
            (VerifyScheme::StandardWebhooks, "", BadKey::Empty),
            (VerifyScheme::StandardWebhooks, "whsec_", BadKey::Empty),
            (VerifyScheme::StandardWebhooks, "not base64!", BadKey::NotBase64),
        ] {
            assert_eq!(
                sign(&verify(scheme, None), key.as_bytes(), "i", AT, b"b").unwrap_err(),
                bad,
                "{scheme:?} {key}"
            );
        }
    }

    #[test]
    fn the_older_names_move_together() {
        let verify = verify(VerifyScheme::StandardWebhooks, Some("Svix-Signature"));
        let signed = sign(&verify, KEY.as_bytes(), "msg_1", AT, b"{}").unwrap();
        let names: Vec<&str> = signed.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["svix-signature", "svix-id", "svix-timestamp"]);
    }
}
