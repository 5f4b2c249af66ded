//! JSON web tokens, signed with ES256 and nothing else: a token that names another algorithm is no token.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use serde_json::{Value, json};

/// Longest token that is looked at. Units: bytes.
const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// The key pair that signs tokens.
pub struct TokenKey {
    pair: EcdsaKeyPair,
    id: String,
}

impl TokenKey {
    /// A new key as PKCS#8.
    pub fn generate() -> Result<Vec<u8>, String> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        document.map(|document| document.as_ref().to_vec()).map_err(|_| "no key could be generated".to_owned())
    }

    /// Reads PKCS#8 of a P-256 key.
    pub fn new(pkcs8: &[u8]) -> Result<TokenKey, String> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &SystemRandom::new())
            .map_err(|error| error.to_string())?;
        let id = URL_SAFE_NO_PAD.encode(super::sha256(pair.public_key().as_ref()));
        Ok(TokenKey { pair, id })
    }

    /// The public half as a JWK.
    pub fn jwk(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        let (x, y) = point.get(1..).map_or((&[][..], &[][..]), |point| point.split_at(point.len() / 2));
        json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.id, "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)})
    }

    /// Signs claims.
    pub fn sign(&self, claims: &Value) -> Result<String, String> {
        let header = json!({"alg": "ES256", "kid": self.id, "typ": "JWT"});
        let message =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = self
            .pair
            .sign(&SystemRandom::new(), message.as_bytes())
            .map_err(|_| "the token could not be signed".to_owned())?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
    }

    /// The claims of a token whose signature is ours.
    pub fn verify(&self, token: &str) -> Option<Value> {
        if token.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        if header["alg"] != "ES256" {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key().as_ref())
            .verify(message.as_bytes(), &signature)
            .ok()?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
    }
}

/// What a token shall say.
pub struct TokenRequest<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub uid: &'a str,
    /// (`pod`/`secret`/`node`, name, uid) of what the token is bound to.
    pub bound: Vec<(&'a str, String, String)>,
    pub audiences: Vec<String>,
    pub seconds: i64,
}

impl TokenRequest<'_> {
    pub(super) fn claims(&self, issuer: &str, now: Timestamp) -> Value {
        let mut kubernetes =
            json!({"namespace": self.namespace, "serviceaccount": {"name": self.name, "uid": self.uid}});
        for (member, name, uid) in &self.bound {
            kubernetes[*member] = json!({"name": name, "uid": uid});
        }
        let audiences = if self.audiences.is_empty() { vec![issuer.to_owned()] } else { self.audiences.clone() };
        let start = now.as_second();
        json!({"iss": issuer, "sub": format!("system:serviceaccount:{}:{}", self.namespace, self.name), "aud": audiences,
            "iat": start, "nbf": start, "exp": start.saturating_add(self.seconds), "jti": uuid::Uuid::new_v4().to_string(), "kubernetes.io": kubernetes})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_signature_and_algorithm_pass() {
        let key = TokenKey::new(&TokenKey::generate().unwrap()).unwrap();
        let token = key.sign(&json!({"sub": "a"})).unwrap();
        assert_eq!(key.verify(&token).unwrap()["sub"], "a");
        let other = TokenKey::new(&TokenKey::generate().unwrap()).unwrap();
        assert!(other.verify(&token).is_none());
        let parts: Vec<&str> = token.split('.').collect();
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        assert!(key.verify(&format!("{none}.{}.", parts[1])).is_none());
        assert!(key.verify(&format!("{none}.{}.{}", parts[1], parts[2])).is_none());
        let forged = URL_SAFE_NO_PAD.encode(r#"{"sub":"b"}"#);
        assert!(key.verify(&format!("{}.{forged}.{}", parts[0], parts[2])).is_none());
        for text in ["", ".", "..", "a.b.c", &"x".repeat(10_000)] {
            assert!(key.verify(text).is_none());
        }
    }
}
