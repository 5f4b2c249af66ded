//! Bootstrap tokens: `Secret` objects by which a machine that has no certificate yet may ask for one. `Source:` Kubernetes'
//! documentation, "Authenticating with Bootstrap Tokens".

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Where they are.
pub const NAMESPACE: &str = "kube-system";
/// Their type.
pub const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
/// What their names begin with; the identifier follows.
pub const NAME_PREFIX: &str = "bootstrap-token-";
/// The group of those that are good for one thing: to let a machine join.
pub const JOIN_GROUP: &str = "system:bootstrappers:nuee:join";

/// The object of a token that lets a machine join: six and sixteen lower-case letters and digits, and the instant of its end
/// (RFC 3339), if it has one.
#[must_use]
pub fn join_token(identifier: &str, secret: &str, expiration: Option<String>, description: &str) -> Secret {
    let members = [
        ("token-id", Some(identifier.to_owned())),
        ("token-secret", Some(secret.to_owned())),
        ("expiration", expiration),
        ("usage-bootstrap-authentication", Some("true".to_owned())),
        ("auth-extra-groups", Some(JOIN_GROUP.to_owned())),
        ("description", Some(description.to_owned())),
    ];
    let data: BTreeMap<String, ByteString> = members
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), ByteString(value?.into_bytes()))))
        .collect();
    Secret {
        metadata: ObjectMeta { name: Some(format!("{NAME_PREFIX}{identifier}")), ..ObjectMeta::default() },
        type_: Some(SECRET_TYPE.to_owned()),
        data: Some(data),
        ..Secret::default()
    }
}
