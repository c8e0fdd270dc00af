//! Secret: the keys that seal what clients keep for the server, see `turnwire_protocol::seal`.
//!
//! A sealed text is base64url of a version byte, four bytes that name the key, a random nonce of
//! 24 bytes and the ciphertext of XChaCha20-Poly1305. The nonce is long enough to be drawn at
//! random for every text that will ever be sealed. Version, content and owner are authenticated
//! with it, so that a text opens for the owner it was made for, and as what it was made.
//!
//! Servers that share a file of keys open each other's texts.

mod file;

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{Key, KeyInit, XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};
use turnwire_protocol::seal::{Content, Sealer};

use crate::auth::Tenant;

pub use file::{SecretFileError, default_path};

const VERSION: u8 = 1;
const KEY_BYTES: usize = 32;
const KEY_ID_BYTES: usize = 4;
const NONCE_BYTES: usize = 24;

/// The keys of a server. The first one seals, all of them open.
pub struct Secret {
    first: SecretKey,
    older: Vec<SecretKey>,
}

struct SecretKey {
    /// Tells keys apart and nothing of the key.
    id: [u8; KEY_ID_BYTES],
    cipher: XChaCha20Poly1305,
}

/// Seals for one tenant.
#[derive(Clone, Debug)]
pub(crate) struct TenantSealer {
    secret: Arc<Secret>,
    owner: Tenant,
}

impl Secret {
    /// One key that goes with the process.
    pub fn in_memory() -> Self {
        Self {
            first: SecretKey::new(&random()),
            older: Vec::new(),
        }
    }

    fn seal(&self, owner: Tenant, content: Content, plain: &str) -> String {
        let nonce: [u8; NONCE_BYTES] = random();
        let payload = Payload {
            msg: plain.as_bytes(),
            aad: &associated(owner, content),
        };
        let sealed = self.first.cipher.encrypt(&XNonce::from(nonce), payload);
        let sealed = sealed.expect("the cipher's limit of 256 GiB is beyond any message's");
        let parts = [&[VERSION][..], &self.first.id, &nonce, &sealed];
        BASE64_URL_SAFE_NO_PAD.encode(parts.concat())
    }

    fn open(&self, owner: Tenant, content: Content, sealed: &str) -> Option<String> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let rest = bytes.strip_prefix(&[VERSION])?;
        let (id, rest) = rest.split_first_chunk::<KEY_ID_BYTES>()?;
        let (nonce, ciphertext) = rest.split_first_chunk::<NONCE_BYTES>()?;
        let nonce = XNonce::from(*nonce);
        let aad = associated(owner, content);
        let mut keys = std::iter::once(&self.first).chain(&self.older);
        // Two keys may have the same name.
        let plain = keys.find_map(|key| {
            let payload = Payload {
                msg: ciphertext,
                aad: &aad,
            };
            let named = key.id == *id;
            named.then(|| key.cipher.decrypt(&nonce, payload).ok())?
        });
        String::from_utf8(plain?).ok()
    }
}

impl SecretKey {
    fn new(key: &[u8; KEY_BYTES]) -> Self {
        let mut digest = Sha256::new();
        digest.update(b"turnwire sealing key id");
        digest.update(key);
        let digest = digest.finalize();
        let mut id = [0; KEY_ID_BYTES];
        id.copy_from_slice(&digest[..KEY_ID_BYTES]);
        Self {
            id,
            cipher: XChaCha20Poly1305::new(&Key::from(*key)),
        }
    }
}

impl TenantSealer {
    pub(crate) fn new(secret: Arc<Secret>, owner: Tenant) -> Self {
        Self { secret, owner }
    }
}

impl Sealer for TenantSealer {
    fn seal(&self, content: Content, plain: &str) -> String {
        self.secret.seal(self.owner, content, plain)
    }

    fn open(&self, content: Content, sealed: &str) -> Option<String> {
        self.secret.open(self.owner, content, sealed)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} keys)", 1 + self.older.len())
    }
}

/// What is authenticated beside the text.
fn associated(owner: Tenant, content: Content) -> Vec<u8> {
    let content = match content {
        Content::Compaction => 1,
        Content::Reasoning => 2,
    };
    [&[VERSION, content][..], owner.as_bytes()].concat()
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system has random numbers");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Tenant = Tenant::ANYONE;

    #[test]
    fn a_text_opens_for_its_owner_as_what_it_was_sealed() {
        let secret = Secret::in_memory();
        let sealed = secret.seal(ONE, Content::Compaction, "été");
        let open = |owner, content| secret.open(owner, content, &sealed);
        assert_eq!(open(ONE, Content::Compaction).as_deref(), Some("été"));
        assert_eq!(open(ONE, Content::Reasoning), None);
        assert_eq!(open(Tenant::of_key(b"other"), Content::Compaction), None);
        let other = Secret::in_memory();
        assert_eq!(other.open(ONE, Content::Compaction, &sealed), None);
        assert_ne!(secret.seal(ONE, Content::Compaction, "été"), sealed);
    }

    #[test]
    fn a_changed_text_does_not_open() {
        let secret = Secret::in_memory();
        let sealed = secret.seal(ONE, Content::Reasoning, "x");
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(&sealed).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            for text in [&changed[..], &bytes[..at]] {
                let text = BASE64_URL_SAFE_NO_PAD.encode(text);
                assert_eq!(secret.open(ONE, Content::Reasoning, &text), None, "{at}");
            }
        }
        assert_eq!(secret.open(ONE, Content::Reasoning, "not base64!"), None);
    }

    #[test]
    fn nothing_shows_a_key() {
        let shown = format!("{:?}", TenantSealer::new(Secret::in_memory().into(), ONE));
        assert!(shown.contains("Secret(1 keys)"), "{shown}");
    }
}
