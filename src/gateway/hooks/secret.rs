//! The secrets that let a post in: the minted one, of which the manifest keeps the hash, and those that a signature is
//! checked with, which are kept where the manifest's `secretRef` points.
//!
//! `env:NAME` is the daemon's environment. `file:path` is read at each use, so a change takes effect at once: a relative
//! path is below the app's folder and may not lead out of it; an absolute one is where the operator keeps secrets
//! (`/run/secrets/…`), and links are followed there. Several secrets, one per line, are all valid, so that a sender can
//! change over. Nothing here is ever logged, and no message shows a value.

use std::io::Read;
use std::path::Path;

use http::{HeaderMap, header};
use secrecy::{ExposeSecret, SecretSlice};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::core::manifest::SecretRef;
use crate::watch;

/// The header that existing senders use beside `Authorization: Bearer`.
pub const SECRET_HEADER: &str = "x-openclaw-webhook-secret";
/// Secrets are short; a path that leads to something else is not read whole.
const MAX_BYTES: usize = 16 * 1024;
/// Secrets that are valid at once.
const MAX_SECRETS: usize = 8;

/// Whether a request carries the secret of this hash. Takes as long for a hash that there is not: what is compared is
/// the hash of what was sent, whole.
pub fn is_presented(headers: &HeaderMap, sha256: Option<&[u8; 32]>) -> bool {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
    let own = headers.get(SECRET_HEADER).map(|value| value.as_bytes().trim_ascii());
    let expected = sha256.copied().unwrap_or_default();
    let found = [bearer, own].into_iter().fold(Choice::from(0), |found, given| {
        let digest: [u8; 32] = Sha256::digest(given.unwrap_or_default()).into();
        found | (digest.ct_eq(&expected) & Choice::from(u8::from(given.is_some_and(|given| !given.is_empty()))))
    });
    bool::from(found) && sha256.is_some()
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, secret) = value.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| secret.trim_ascii())
}

/// Why there is no secret to check with. For the operator, not for the caller.
#[derive(Debug, thiserror::Error)]
pub enum NoSecret {
    #[error("the environment variable {0} is not set")]
    Unset(String),
    #[error("{path}: {told}")]
    File { path: String, told: String },
    #[error("{0} holds no secret")]
    Empty(String),
}

/// The secrets behind a reference, at least one, none of them empty. It may block on the disk.
///
/// # Errors
/// [`NoSecret`].
pub fn read(secret_ref: &SecretRef, app_dir: Option<&Path>) -> Result<Vec<SecretSlice<u8>>, NoSecret> {
    let (name, bytes): (String, SecretSlice<u8>) = match secret_ref {
        SecretRef::Env(name) => {
            let value = std::env::var_os(name).ok_or_else(|| NoSecret::Unset(name.clone()))?;
            (format!("env:{name}"), value.into_encoded_bytes().into())
        }
        SecretRef::File(path) => {
            let bytes = read_file(Path::new(path), app_dir);
            let bytes = bytes.map_err(|told| NoSecret::File { path: path.clone(), told })?;
            (format!("file:{path}"), bytes.into())
        }
    };
    let lines = bytes.expose_secret().split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let secrets: Vec<SecretSlice<u8>> =
        lines.filter(|line| !line.trim_ascii().is_empty()).take(MAX_SECRETS).map(|line| line.to_vec().into()).collect();
    if secrets.is_empty() { Err(NoSecret::Empty(name)) } else { Ok(secrets) }
}

fn read_file(path: &Path, app_dir: Option<&Path>) -> Result<Vec<u8>, String> {
    if !path.is_absolute() {
        let app_dir = app_dir.ok_or("its app is gone")?;
        return watch::read_app_file(app_dir, path, MAX_BYTES).map_err(|problem| problem.message);
    }
    let mut options = std::fs::File::options();
    options.read(true);
    // A FIFO must not hold up whoever opens it.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path).map_err(|error| error.to_string())?;
    let meta = file.metadata().map_err(|error| error.to_string())?;
    if !meta.is_file() {
        return Err("it is no regular file".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() > MAX_BYTES {
        return Err(format!("it has more than {MAX_BYTES} bytes"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn a_secret_is_known_by_its_hash_from_either_header() {
        let hash: [u8; 32] = Sha256::digest("s3cret").into();
        for (pairs, held) in [
            (vec![("authorization", "Bearer s3cret")], true),
            (vec![("authorization", "bearer s3cret ")], true),
            (vec![("x-openclaw-webhook-secret", "s3cret")], true),
            (vec![("authorization", "Basic x"), ("x-openclaw-webhook-secret", "s3cret")], true),
            (vec![("authorization", "Bearer wrong"), ("x-openclaw-webhook-secret", "s3cret")], true),
            (vec![("authorization", "s3cret")], false),
            (vec![("authorization", "Bearer S3cret")], false),
            (vec![("authorization", "Bearer ")], false),
            (vec![("x-openclaw-webhook-secret", "")], false),
            (vec![("x-openclaw-webhook-secret", "s3cre")], false),
            (vec![], false),
        ] {
            let headers: HeaderMap =
                pairs.iter().map(|(name, value)| ((*name).parse().unwrap(), HeaderValue::from_static(value))).collect();
            assert_eq!(is_presented(&headers, Some(&hash)), held, "{pairs:?}");
            assert!(!is_presented(&headers, None), "{pairs:?}");
        }
        // Not even the secret that nobody would mint.
        let empty: [u8; 32] = Sha256::digest("").into();
        assert!(!is_presented(&HeaderMap::new(), Some(&empty)));
        let nothing = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static("Bearer "))]);
        assert!(!is_presented(&nothing, Some(&empty)));
    }

    #[test]
    fn secrets_are_read_where_the_reference_points() {
        let dir = tempfile::tempdir().unwrap();
        let app = dir.path().join("app");
        std::fs::create_dir_all(app.join("secrets")).unwrap();
        let outside = dir.path().join("outside");
        std::fs::write(&outside, "far\n").unwrap();
        for (name, bytes) in
            [("one", "a b\n"), ("two", "new\r\n\nold\n"), ("none", "\n \n"), ("big", &"x".repeat(16385))]
        {
            std::fs::write(app.join("secrets").join(name), bytes).unwrap();
        }
        let outside = outside.to_str().unwrap().to_owned();
        let folder = dir.path().to_str().unwrap().to_owned();
        for (reference, expected) in [
            (SecretRef::File("secrets/one".into()), Ok(vec!["a b"])),
            (SecretRef::File("secrets/two".into()), Ok(vec!["new", "old"])),
            (SecretRef::File("secrets/none".into()), Err("holds no secret")),
            (SecretRef::File("secrets/big".into()), Err("bytes")),
            (SecretRef::File("secrets/absent".into()), Err("no such file")),
            (SecretRef::File("../outside".into()), Err("down from the app folder")),
            (SecretRef::File(outside), Ok(vec!["far"])),
            (SecretRef::File(folder), Err("no regular file")),
            (SecretRef::Env("DIRIGENT_TEST_UNSET".into()), Err("is not set")),
        ] {
            match (read(&reference, Some(&app)), expected) {
                (Ok(found), Ok(expected)) => {
                    let found: Vec<&[u8]> = found.iter().map(ExposeSecret::expose_secret).collect();
                    assert_eq!(found, expected.iter().map(|text| text.as_bytes()).collect::<Vec<_>>());
                }
                (Err(error), Err(told)) => assert!(error.to_string().contains(told), "{reference:?}: {error}"),
                (found, _) => panic!("{reference:?}: {:?}", found.is_ok()),
            }
        }
        // The test runner always has one.
        assert!(read(&SecretRef::Env("PATH".into()), None).is_ok());
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("../../outside", app.join("secrets/link")).unwrap();
            assert!(read(&SecretRef::File("secrets/link".into()), Some(&app)).is_err(), "a link that leads out");
        }
    }
}
