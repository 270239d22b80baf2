//! One-time login codes and the browser sessions that they open. Both live in memory: a restart of the daemon ends every
//! session, and a link that nobody used is worth nothing after it.
//!
//! A **code** is what a link carries: it works once, for two minutes. A **session** is what the browser's cookie carries
//! afterwards; it ends when it has not been used for twelve hours. Of either, only the hash is kept. A secret is looked
//! for by comparing its hash with every one that there is, in constant time, so that how long an answer takes tells
//! nothing about what is stored. Neither list can grow past its limit: the oldest makes room.

use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::fire::EpochMs;

/// How long a link may wait to be opened.
pub const CODE_LIFE_MS: EpochMs = 2 * 60 * 1000;
/// How long a session lasts after its last use.
pub const SESSION_IDLE_MS: EpochMs = 12 * 60 * 60 * 1000;
/// Links that wait at the same time; a person opens one or two.
const MAX_CODES: usize = 8;
/// Browsers that are logged in at the same time.
const MAX_SESSIONS: usize = 64;
/// A code, like a session's secret, is this many random bytes, written in hex.
const SECRET_BYTES: usize = 32;

type Digested = [u8; 32];

/// A secret by its hash, and the instant after which it is worth nothing.
#[derive(Debug)]
struct Held {
    hash: Digested,
    until: EpochMs,
}

#[derive(Debug, Default)]
pub struct Sessions {
    held: Mutex<Lists>,
}

#[derive(Debug, Default)]
struct Lists {
    codes: Vec<Held>,
    sessions: Vec<Held>,
}

impl Sessions {
    /// A new code, and until when it can be used.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn new_code(&self, now: EpochMs) -> Result<(String, EpochMs), getrandom::Error> {
        let code = secret()?;
        let until = now.saturating_add(CODE_LIFE_MS);
        add(&mut self.lists().codes, &code, until, now, MAX_CODES);
        Ok((code, until))
    }

    /// Uses a code up and opens a session: its secret, or `None` when the code is wrong, used or too old.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn open(&self, code: &str, now: EpochMs) -> Result<Option<String>, getrandom::Error> {
        let mut lists = self.lists();
        let Some(at) = find(&lists.codes, code) else { return Ok(None) };
        let used = lists.codes.swap_remove(at);
        if used.until <= now {
            return Ok(None);
        }
        let session = secret()?;
        add(&mut lists.sessions, &session, now.saturating_add(SESSION_IDLE_MS), now, MAX_SESSIONS);
        Ok(Some(session))
    }

    /// Whether a secret is that of a session; if so, the session lasts on from now.
    pub fn renew(&self, session: &str, now: EpochMs) -> bool {
        let mut lists = self.lists();
        let Some(at) = find(&lists.sessions, session) else { return false };
        if lists.sessions[at].until <= now {
            lists.sessions.swap_remove(at);
            return false;
        }
        lists.sessions[at].until = now.saturating_add(SESSION_IDLE_MS);
        true
    }

    /// Ends a session.
    pub fn close(&self, session: &str) {
        let mut lists = self.lists();
        if let Some(at) = find(&lists.sessions, session) {
            lists.sessions.swap_remove(at);
        }
    }

    fn lists(&self) -> std::sync::MutexGuard<'_, Lists> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All are looked at, and each is compared whole.
fn find(held: &[Held], secret: &str) -> Option<usize> {
    let hash = digest(secret);
    let mut found = None;
    for (at, one) in held.iter().enumerate() {
        if bool::from(one.hash.ct_eq(&hash)) {
            found = Some(at);
        }
    }
    found
}

fn add(held: &mut Vec<Held>, secret: &str, until: EpochMs, now: EpochMs, most: usize) {
    held.retain(|one| one.until > now);
    if held.len() >= most
        && let Some(oldest) = (0..held.len()).min_by_key(|&at| held[at].until)
    {
        held.swap_remove(oldest);
    }
    held.push(Held { hash: digest(secret), until });
}

fn digest(secret: &str) -> Digested {
    Sha256::digest(secret.as_bytes()).into()
}

fn secret() -> Result<String, getrandom::Error> {
    let mut bytes = [0; SECRET_BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(hex::encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: EpochMs = 1_000_000;

    #[test]
    fn a_code_opens_one_session_within_its_time() {
        let sessions = Sessions::default();
        let (code, until) = sessions.new_code(T0).unwrap();
        assert_eq!((code.len(), until), (64, T0 + CODE_LIFE_MS));
        assert_eq!(sessions.open("", T0).unwrap(), None);
        assert_eq!(sessions.open(&code[1..], T0).unwrap(), None);
        let session = sessions.open(&code, until - 1).unwrap().unwrap();
        assert_ne!(session, code);
        assert_eq!(sessions.open(&code, until - 1).unwrap(), None, "only once");
        assert!(!sessions.renew(&code, T0), "a code is no session");

        let (late, until) = sessions.new_code(T0).unwrap();
        assert_eq!(sessions.open(&late, until).unwrap(), None);
        assert_eq!(sessions.open(&late, T0).unwrap(), None, "a try uses it up");
    }

    #[test]
    fn a_session_lasts_while_it_is_used() {
        let sessions = Sessions::default();
        let (code, _) = sessions.new_code(T0).unwrap();
        let session = sessions.open(&code, T0).unwrap().unwrap();
        let mut now = T0;
        for _ in 0..3 {
            now += SESSION_IDLE_MS - 1;
            assert!(sessions.renew(&session, now));
        }
        assert!(!sessions.renew(&session, now + SESSION_IDLE_MS));
        assert!(!sessions.renew(&session, now), "it does not come back when the clock does");
        assert!(!sessions.renew("", now));
    }

    #[test]
    fn a_closed_session_is_closed_and_no_other() {
        let sessions = Sessions::default();
        let open = || sessions.open(&sessions.new_code(T0).unwrap().0, T0).unwrap().unwrap();
        let (one, other) = (open(), open());
        sessions.close(&one);
        assert_eq!((sessions.renew(&one, T0), sessions.renew(&other, T0)), (false, true));
    }

    #[test]
    fn the_oldest_makes_room() {
        let sessions = Sessions::default();
        let codes: Vec<String> = (0..=MAX_CODES).map(|n| sessions.new_code(T0 + n as i64).unwrap().0).collect();
        assert_eq!(sessions.open(&codes[0], T0).unwrap(), None);
        let first = sessions.open(&codes[1], T0).unwrap().unwrap();
        let mut rest = Vec::new();
        for n in 1..MAX_SESSIONS as i64 {
            let (code, _) = sessions.new_code(T0 + n).unwrap();
            rest.push(sessions.open(&code, T0 + n).unwrap().unwrap());
        }
        assert!(sessions.renew(&first, T0 + 100), "used last, so it stays");
        let (code, _) = sessions.new_code(T0).unwrap();
        sessions.open(&code, T0).unwrap().unwrap();
        assert!(sessions.renew(&first, T0 + 100));
        assert!(!sessions.renew(&rest[0], T0 + 100));
        assert!(sessions.renew(&rest[1], T0 + 100));
    }
}
