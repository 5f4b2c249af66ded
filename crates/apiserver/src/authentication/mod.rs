//! Bearer tokens: static ones by their hash, bootstrap tokens, and service account tokens that this server signed itself.

mod bootstrap;
mod token;

pub use token::{TokenKey, TokenRequest};

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use store::{Compare, KeyRange, Operation, RangeRequest, SharedStore, Transaction};

use crate::cache::Caches;
use crate::keys;
use crate::server::{Error, Options};
use crate::status::Status;
use crate::user::UserInfo;

const KEY_PLACE: &str = "/secrets/service-account-key";

/// SHA-256.
pub fn sha256(data: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, data);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

/// A token that was found valid.
pub struct Authenticated {
    /// Whom it stands for.
    pub user: UserInfo,
    /// For which audiences.
    pub audiences: Vec<String>,
}

/// Knows the tokens.
pub struct Authenticator {
    tokens: HashMap<[u8; 32], UserInfo>,
    issuer: String,
    key: TokenKey,
}

impl Authenticator {
    /// Reads the signing key, or makes it; of several servers on one store the first one's key wins.
    pub async fn open(store: &SharedStore, options: &Options) -> Result<Authenticator, Error> {
        let pkcs8 = match &options.token_key {
            Some(pkcs8) => pkcs8.clone(),
            None => stored_key(store).await?,
        };
        let key = TokenKey::new(&pkcs8).map_err(|detail| Error::Option { option: "token_key", detail })?;
        let tokens = options.tokens.iter().map(|token| (token.sha256, token.user.clone())).collect();
        Ok(Authenticator { tokens, issuer: options.token_issuer.clone(), key })
    }

    /// The public key as a JWK set.
    pub fn jwks(&self) -> Value {
        json!({"keys": [self.key.jwk()]})
    }

    /// Whom a token stands for. The table is keyed by hashes, so that looking up tells nothing about other tokens.
    pub fn authenticate(&self, token: &str, caches: &Caches, now: Timestamp) -> Result<Authenticated, Status> {
        if let Some(user) = self.tokens.get(&sha256(token.as_bytes())) {
            return Ok(Authenticated { user: user.clone(), audiences: vec![self.issuer.clone()] });
        }
        if let Some(user) = bootstrap::user(token, caches, now) {
            return Ok(Authenticated { user, audiences: vec![self.issuer.clone()] });
        }
        let claims = self.key.verify(token).ok_or_else(Status::unauthorized)?;
        self.service_account(&claims, caches, now).ok_or_else(Status::unauthorized)
    }

    fn service_account(&self, claims: &Value, caches: &Caches, now: Timestamp) -> Option<Authenticated> {
        let seconds = now.as_second();
        if claims["iss"] != self.issuer.as_str()
            || claims["exp"].as_i64()? <= seconds
            || claims["nbf"].as_i64()? > seconds
        {
            return None;
        }
        let bound = &claims["kubernetes.io"];
        let namespace = bound["namespace"].as_str()?;
        let (name, uid) = (bound["serviceaccount"]["name"].as_str()?, bound["serviceaccount"]["uid"].as_str()?);
        // A token lives no longer than what it is bound to.
        is_present(caches, "serviceaccounts", &keys::relative(namespace, name), uid).then_some(())?;
        let mut extra = BTreeMap::from([(
            "authentication.kubernetes.io/credential-id".to_owned(),
            vec![format!("JTI={}", claims["jti"].as_str()?)],
        )]);
        for (member, plural) in [("pod", "pods"), ("secret", "secrets"), ("node", "nodes")] {
            let Some(reference) = bound.get(member) else { continue };
            let (name, uid) = (reference["name"].as_str()?, reference["uid"].as_str()?);
            let place = if member == "node" { name.to_owned() } else { keys::relative(namespace, name) };
            is_present(caches, plural, &place, uid).then_some(())?;
            if member != "secret" {
                extra.insert(format!("authentication.kubernetes.io/{member}-name"), vec![name.to_owned()]);
                extra.insert(format!("authentication.kubernetes.io/{member}-uid"), vec![uid.to_owned()]);
            }
        }
        let audiences = crate::json::strings(claims, "/aud");
        if !audiences.contains(&self.issuer) {
            return None;
        }
        let groups = [
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
            crate::user::GROUP_AUTHENTICATED.to_owned(),
        ];
        let user = UserInfo {
            name: format!("system:serviceaccount:{namespace}:{name}"),
            uid: uid.to_owned(),
            groups: groups.into(),
            extra,
        };
        Some(Authenticated { user, audiences })
    }

    /// Signs a token.
    pub fn issue(&self, request: &TokenRequest<'_>, now: Timestamp) -> Result<String, Status> {
        self.key.sign(&request.claims(&self.issuer, now)).map_err(Status::internal)
    }
}

/// Whether the object is there, is the same one, and is not being deleted for longer than its grace period.
fn is_present(caches: &Caches, plural: &str, relative: &str, uid: &str) -> bool {
    caches
        .get(&keys::resource("", plural))
        .get(relative)
        .is_some_and(|object| crate::json::text(&object.to_value(), "/metadata/uid") == uid)
}

async fn stored_key(store: &SharedStore) -> Result<Vec<u8>, Error> {
    let place = Bytes::from(KEY_PLACE);
    let fresh = TokenKey::generate().map_err(|detail| Error::Option { option: "token_key", detail })?;
    let transaction = Transaction {
        compare: vec![Compare::ModRevision(place.clone(), 0)],
        then: vec![Operation::Put(place.clone(), Bytes::from(fresh), 0)],
        otherwise: Vec::new(),
    };
    store.transact(transaction).await?;
    let found =
        store.range(RangeRequest { range: KeyRange::Key(place), revision: None, limit: 1, keys_only: false }).await?;
    match found.items.into_iter().next() {
        Some(item) => Ok(item.value.to_vec()),
        None => Err(Error::Store(store::Error::Unavailable("the token key cannot be read back".into()))),
    }
}
