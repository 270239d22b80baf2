//! The sender's id of a delivery, and one delivery at a time: posts with the same id take turns from looking it up in
//! the ledger until its row is written, so that the second finds the first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::HeaderMap;
use sha2::Digest;
use tokio::sync::OwnedMutexGuard;

/// Headers that carry an id, in the order in which they are asked.
const HEADERS: [&str; 3] = ["webhook-id", "x-github-delivery", "idempotency-key"];
/// A longer id is known by its hash.
const MAX_ID_BYTES: usize = 256;

/// The id that a request carries, at most 256 bytes long. `signed` is the one that its signature covers.
pub fn delivery_id(headers: &HeaderMap, signed: Option<&str>) -> Option<String> {
    let given = HEADERS.iter().filter_map(|name| headers.get(*name)).map(|value| value.as_bytes().trim_ascii());
    let id = signed.map(|id| id.trim().as_bytes()).into_iter().chain(given).find(|id| !id.is_empty())?;
    match std::str::from_utf8(id) {
        Ok(text) if text.len() <= MAX_ID_BYTES => Some(text.to_owned()),
        _ => Some(format!("sha256:{}", hex::encode(sha2::Sha256::digest(id)))),
    }
}

type Key = (String, String);
type Locks = Arc<Mutex<HashMap<Key, Arc<tokio::sync::Mutex<()>>>>>;

/// The turns that are under way; as many as there are posts being admitted.
#[derive(Debug, Clone, Default)]
pub struct Turns {
    locks: Locks,
}

impl Turns {
    /// Waits until no other post of this delivery is being admitted.
    pub async fn wait(&self, slug: &str, id: &str) -> Turn {
        let key = (slug.to_owned(), id.to_owned());
        let lock = Arc::clone(held(&self.locks).entry(key.clone()).or_default());
        let mut turn = Turn { locks: Arc::clone(&self.locks), key, lock: Arc::clone(&lock), guard: None };
        turn.guard = Some(lock.lock_owned().await);
        turn
    }
}

fn held(locks: &Locks) -> MutexGuard<'_, HashMap<Key, Arc<tokio::sync::Mutex<()>>>> {
    locks.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One turn, or the wait for one; dropping it lets the next one go.
#[derive(Debug)]
pub struct Turn {
    locks: Locks,
    key: Key,
    lock: Arc<tokio::sync::Mutex<()>>,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.guard = None;
        let mut locks = held(&self.locks);
        // Ours and the map's: nobody else holds it, and a clone is made under the map's lock alone.
        if Arc::strong_count(&self.lock) == 2 {
            locks.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn the_id_is_the_signed_one_else_the_first_header_that_has_one() {
        let long = "x".repeat(257);
        let hashed = format!("sha256:{}", hex::encode(sha2::Sha256::digest(&long)));
        let binary = format!("sha256:{}", hex::encode(sha2::Sha256::digest([0xff, 0xfe])));
        for (pairs, signed, expected) in [
            (vec![], None, None),
            (vec![("webhook-id", b"a".as_slice())], None, Some("a")),
            (vec![("x-github-delivery", b"b"), ("idempotency-key", b"c")], None, Some("b")),
            (vec![("idempotency-key", b" c ")], None, Some("c")),
            (vec![("webhook-id", b""), ("idempotency-key", b"c")], None, Some("c")),
            (vec![("webhook-id", b"a")], Some("signed"), Some("signed")),
            (vec![("webhook-id", b"a")], Some(""), Some("a")),
            (vec![("idempotency-key", long.as_bytes())], None, Some(hashed.as_str())),
            (vec![("idempotency-key", &long.as_bytes()[1..])], None, Some(&long[1..])),
            (vec![("idempotency-key", &[0xff, 0xfe])], None, Some(binary.as_str())),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in &pairs {
                headers.insert(*name, HeaderValue::from_bytes(value).unwrap());
            }
            assert_eq!(delivery_id(&headers, signed).as_deref(), expected, "{pairs:?} {signed:?}");
        }
    }

    #[tokio::test]
    async fn posts_of_one_delivery_take_turns_and_leave_nothing_behind() {
        let turns = Turns::default();
        let first = turns.wait("s", "1").await;
        let mut second = Box::pin(turns.wait("s", "1"));
        let mut given_up = Box::pin(turns.wait("s", "1"));
        assert!(futures::poll!(&mut second).is_pending() && futures::poll!(&mut given_up).is_pending());
        let other = turns.wait("s", "2").await;
        drop(given_up);
        drop(first);
        let second = second.await;
        assert_eq!(held(&turns.locks).len(), 2);
        drop((second, other));
        assert!(held(&turns.locks).is_empty());
    }
}
