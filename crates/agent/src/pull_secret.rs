//! Credentials of registries out of `Secret` objects, in the form of a Docker client's configuration.

use image::{Credentials, Reference};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use serde_json::Value;

/// What the first of these secrets that knows the image's registry says about it; those that are not there are passed over.
pub async fn credentials<'a>(
    client: &Client,
    namespace: &str,
    names: impl Iterator<Item = &'a str>,
    image: &Reference,
) -> Option<Credentials> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    for name in names {
        let Ok(Some(secret)) = secrets.get_opt(name).await else { continue };
        let data = secret.data.unwrap_or_default();
        let text = data.get(".dockerconfigjson").or_else(|| data.get(".dockercfg"));
        let Some(config) = text.and_then(|t| serde_json::from_slice::<Value>(&t.0).ok()) else { continue };
        if let Some(found) = from_config(&config, &image.to_string()) {
            return Some(found);
        }
    }
    None
}

/// The entry of a Docker configuration whose server the image's name begins with.
fn from_config(config: &Value, image: &str) -> Option<Credentials> {
    let servers = config.get("auths").unwrap_or(config).as_object()?;
    let host = |text: &str| {
        text.trim_start_matches("https://")
            .trim_start_matches("http://")
            .split('/')
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let wanted = host(image);
    let (_, entry) = servers.iter().find(|(server, _)| host(server) == wanted)?;
    let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (identity_token, registry_token) = (text("identitytoken"), text("registrytoken"));
    let (mut username, mut password) = (text("username"), text("password"));
    if username.is_empty() && identity_token.is_empty() && registry_token.is_empty() {
        let decoded: k8s_openapi::ByteString = serde_json::from_value(entry.get("auth")?.clone()).ok()?;
        let pair = String::from_utf8(decoded.0).ok()?;
        let (user, secret) = pair.split_once(':')?;
        (username, password) = (user.to_owned(), secret.to_owned());
    }
    Some(Credentials { username, password, identity_token, registry_token })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn credentials_are_found_by_server() {
        let config = json!({"auths": {
            "https://registry.example/v1/": {"auth": "YTpi"},
            "other.example": {"username": "x", "password": "y"},
            "token.example": {"identitytoken": "t"},
        }});
        let found = from_config(&config, "registry.example/team/web:1").unwrap();
        assert_eq!((found.username.as_str(), found.password.as_str()), ("a", "b"));
        assert_eq!(from_config(&config, "token.example/web").unwrap().identity_token, "t");
        assert!(from_config(&config, "third.example/web").is_none());
    }
}
