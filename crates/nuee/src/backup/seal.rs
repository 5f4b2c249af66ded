//! Encrypts parts of a backup under a passphrase, in chunks, so that a part of any size passes through little memory.
//!
//! The key comes from the passphrase by PBKDF2 with a salt of this backup alone. Each chunk is sealed with ChaCha20-Poly1305; its
//! nonce is the number of the part and of the chunk, and the last chunk is marked, so that none can be moved, repeated or left out.

use std::io::{Read, Write};
use std::num::NonZeroU32;

use anyhow::{Context, Result, bail, ensure};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

/// Rounds of PBKDF2-HMAC-SHA256. `Source:` OWASP password storage cheat sheet.
const ROUNDS: u32 = 600_000;
/// Most rounds that a file may ask of us.
const MAX_ROUNDS: u32 = 10_000_000;
/// Plain bytes of one chunk.
const CHUNK_BYTES: usize = 64 * 1024;
/// Shortest passphrase that is taken. Units: bytes.
const MIN_PASSPHRASE_BYTES: usize = 12;
const SALT_BYTES: usize = 16;

/// How the key comes from the passphrase.
#[derive(Debug, Serialize, Deserialize)]
pub struct KeyDerivation {
    /// The function; `PBKDF2-HMAC-SHA256`.
    function: String,
    rounds: u32,
    /// Hexadecimal.
    salt: String,
    /// The cipher; `ChaCha20-Poly1305`.
    cipher: String,
}

/// The key of one backup.
pub struct Key(LessSafeKey);

impl KeyDerivation {
    /// With a new salt.
    pub fn new() -> Result<Self> {
        let mut salt = [0; SALT_BYTES];
        SystemRandom::new().fill(&mut salt).ok().context("the system gives no random bytes")?;
        Ok(Self {
            function: "PBKDF2-HMAC-SHA256".into(),
            rounds: ROUNDS,
            salt: hex::encode(salt),
            cipher: "ChaCha20-Poly1305".into(),
        })
    }

    /// The key.
    pub fn key(&self, passphrase: &str) -> Result<Key> {
        if passphrase.len() < MIN_PASSPHRASE_BYTES {
            bail!("the passphrase must have at least {MIN_PASSPHRASE_BYTES} characters");
        }
        let known = self.function == "PBKDF2-HMAC-SHA256" && self.cipher == "ChaCha20-Poly1305";
        ensure!(known && self.rounds <= MAX_ROUNDS, "the backup is encrypted in a way that this program does not know");
        let rounds = NonZeroU32::new(self.rounds).context("the backup names no rounds")?;
        let salt = hex::decode(&self.salt).context("the backup's salt cannot be read")?;
        let mut key = [0; 32];
        ring::pbkdf2::derive(ring::pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, passphrase.as_bytes(), &mut key);
        let key = UnboundKey::new(&CHACHA20_POLY1305, &key).ok().context("the key cannot be used")?;
        Ok(Key(LessSafeKey::new(key)))
    }
}

impl Key {
    /// Encrypts all of `input`, which is part number `part`.
    pub fn seal(&self, part: u32, input: &mut impl Read, out: &mut impl Write) -> Result<()> {
        let mut next = read_chunk(input, CHUNK_BYTES)?;
        for chunk in 0_u64.. {
            let mut bytes = next;
            next = read_chunk(input, CHUNK_BYTES)?;
            let last = next.is_empty();
            let sealed = self.0.seal_in_place_append_tag(nonce(part, chunk), mark(last), &mut bytes);
            sealed.ok().context("a chunk cannot be encrypted")?;
            out.write_all(&bytes)?;
            if last {
                break;
            }
        }
        Ok(())
    }

    /// Decrypts all of `input`.
    ///
    /// `Errors:` the passphrase is another one, or the bytes are not those that were written.
    pub fn open(&self, part: u32, input: &mut impl Read, out: &mut impl Write) -> Result<()> {
        let whole = CHUNK_BYTES + CHACHA20_POLY1305.tag_len();
        let mut next = read_chunk(input, whole)?;
        for chunk in 0_u64.. {
            let mut bytes = next;
            next = read_chunk(input, whole)?;
            let last = next.is_empty();
            let plain = self.0.open_in_place(nonce(part, chunk), mark(last), &mut bytes);
            out.write_all(plain.ok().context("the passphrase is wrong")?)?;
            if last {
                break;
            }
        }
        Ok(())
    }
}

fn nonce(part: u32, chunk: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&part.to_le_bytes());
    bytes[4..].copy_from_slice(&chunk.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn mark(last: bool) -> Aad<[u8; 1]> {
    Aad::from([u8::from(last)])
}

fn read_chunk(input: &mut impl Read, length: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length + CHACHA20_POLY1305.tag_len());
    input.take(length as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn derivation() -> KeyDerivation {
        KeyDerivation { rounds: 10, ..KeyDerivation::new().unwrap() }
    }

    #[test]
    fn parts_of_every_size_come_back_and_nothing_else_opens_them() {
        let derivation = derivation();
        let key = derivation.key("a long passphrase").unwrap();
        for length in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES] {
            let plain: Vec<u8> = (0..length).map(|index| u8::try_from(index % 251).unwrap()).collect();
            let (mut sealed, mut opened) = (Vec::new(), Vec::new());
            key.seal(1, &mut plain.as_slice(), &mut sealed).unwrap();
            key.open(1, &mut sealed.as_slice(), &mut opened).unwrap();
            assert_eq!(opened, plain);
            let other = derivation.key("another passphrase").unwrap();
            assert!(other.open(1, &mut sealed.as_slice(), &mut Vec::new()).is_err());
            assert!(key.open(2, &mut sealed.as_slice(), &mut Vec::new()).is_err(), "as another part");
            if length > CHUNK_BYTES {
                let cut = &sealed[..CHUNK_BYTES + 16];
                assert!(key.open(1, &mut &*cut, &mut Vec::new()).is_err(), "without its last chunk");
            }
        }
        assert!(derivation.key("short").is_err());
    }
}
