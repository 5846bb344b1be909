//! Session tickets that replicas and successors can read.
//!
//! A ticket is a session, sealed, which the client keeps and shows when it connects again. The keys come from one secret and the
//! hour (HKDF, RFC 5869), so whoever has the secret has the same keys at the same time, and none has to be passed around. A key seals for
//! an hour and opens for three: the one before, for tickets that were made late in it, and the one after, for those from a
//! machine whose clock is ahead.
//!
//! A ticket carries the client's identity past the verifier, so clients that show certificates get none
//! ([`Server::load`](super::server::Server::load)).
//!
//! The form of a ticket: 16 bytes that name the key, a random nonce of 12, then AES-256-GCM.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::server::ProducesTickets;

/// How long a key seals, in seconds.
const HOUR: u64 = 3600;
const NAME: usize = 16;

/// The fewest bytes of a secret.
pub const SHORTEST_SECRET: usize = 32;

/// The keys of one hour.
struct Key {
    name: [u8; NAME],
    key: LessSafeKey,
}

/// Those of the hour `.0`, and of the hours beside it: the one now first.
struct Keys(u64, [Key; 3]);

/// Seals and opens session tickets.
pub struct Tickets {
    root: Prk,
    random: SystemRandom,
    keys: Mutex<Option<Arc<Keys>>>,
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets")
    }
}

/// The length of what HKDF gives.
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl Tickets {
    /// With keys that come from `secret`.
    pub fn new(secret: &[u8]) -> Self {
        let salt = Salt::new(HKDF_SHA256, b"");
        Self {
            root: salt.extract(secret),
            random: SystemRandom::new(),
            keys: Mutex::default(),
        }
    }

    /// The key of an hour since 1970; `None` if there can't be one, which does not happen.
    fn key(&self, hour: u64) -> Option<Key> {
        let hour = hour.to_be_bytes();
        let (for_key, for_name): ([&[u8]; 2], [&[u8]; 2]) = ([b"ticket key", &hour], [b"ticket name", &hour]);
        let key = UnboundKey::from(self.root.expand(&for_key, &AES_256_GCM).ok()?);
        let mut name = [0; NAME];
        self.root.expand(&for_name, Length(NAME)).ok()?.fill(&mut name).ok()?;
        Some(Key {
            name,
            key: LessSafeKey::new(key),
        })
    }

    /// The keys at `now`, in seconds since 1970.
    fn keys(&self, now: u64) -> Option<Arc<Keys>> {
        let hour = now / HOUR;
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.as_ref().is_none_or(|keys| keys.0 != hour) {
            let [current, previous, next] = [hour, hour.saturating_sub(1), hour + 1].map(|hour| self.key(hour));
            *keys = Some(Arc::new(Keys(hour, [current?, previous?, next?])));
        }
        keys.clone()
    }

    fn seal(&self, plain: &[u8], now: u64) -> Option<Vec<u8>> {
        let keys = self.keys(now)?;
        let Keys(_, [current, ..]) = &*keys;
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).ok()?;
        let mut sealed = plain.to_vec();
        let aad = Aad::from(current.name);
        current
            .key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed)
            .ok()?;
        Some([&current.name, &nonce[..], &sealed].concat())
    }

    fn open(&self, ticket: &[u8], now: u64) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<NAME>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let keys = self.keys(now)?;
        let key = keys.1.iter().find(|key| key.name == *name)?;
        let mut bytes = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = key.key.open_in_place(nonce, Aad::from(*name), &mut bytes).ok()?.len();
        bytes.truncate(plain);
        Some(bytes)
    }
}

fn now() -> u64 {
    chassis::clock::since_1970().as_secs()
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    /// A ticket from the last second of an hour can be opened through the next.
    fn lifetime(&self) -> u32 {
        3600
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain, now())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.open(ticket, now())
    }
}

/// A secret that nobody else has.
///
/// # Errors
/// When the kernel gives no random numbers.
pub fn random_secret() -> Result<[u8; SHORTEST_SECRET], &'static str> {
    let mut secret = [0; SHORTEST_SECRET];
    match SystemRandom::new().fill(&mut secret) {
        Ok(()) => Ok(secret),
        Err(_) => Err("the kernel gives no random numbers"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = &[7; 32];
    /// The middle of some hour.
    const NOW: u64 = 500_000 * HOUR + HOUR / 2;

    #[test]
    fn whoever_has_the_secret_opens_a_ticket_in_its_hour_and_the_hours_beside_it() {
        let ticket = Tickets::new(SECRET).seal(b"session", NOW).unwrap();
        let other = Tickets::new(SECRET);
        for (when, opens) in [
            (NOW, true),
            (NOW + HOUR, true),
            (NOW - HOUR, true),
            (NOW + 2 * HOUR, false),
            (NOW - 2 * HOUR, false),
            (NOW, true),
        ] {
            assert_eq!(other.open(&ticket, when).is_some(), opens, "{when}");
        }
        assert_eq!(other.open(&ticket, NOW).unwrap(), b"session");
    }

    #[test]
    fn nobody_else_does_and_no_changed_ticket_is_opened() {
        let tickets = Tickets::new(SECRET);
        let ticket = tickets.seal(b"session", NOW).unwrap();
        assert!(Tickets::new(&[8; 32]).open(&ticket, NOW).is_none());
        for place in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[place] ^= 1;
            assert!(tickets.open(&changed, NOW).is_none(), "byte {place}");
            assert!(tickets.open(&ticket[..place], NOW).is_none(), "cut at {place}");
        }
        assert_ne!(tickets.seal(b"session", NOW).unwrap(), ticket, "each has its own nonce");
    }
}
