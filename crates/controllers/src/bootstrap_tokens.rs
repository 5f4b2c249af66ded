//! Bootstrap tokens: those that have expired are deleted, as Kubernetes' token cleaner does. Nobody is let in by an expired
//! one anyway; what goes is the litter of secrets.

use std::sync::Arc;
use std::time::Duration;

use api::bootstrap_token::{NAMESPACE, SECRET_TYPE};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Preconditions};
use kube::runtime::Controller;
use kube::runtime::controller::Action;
use kube::{Api, Client, ResourceExt};

use crate::{Error, Result, drive, gone, watching};

/// Longest time until a token is looked at again: a clock that was set is noticed by then.
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(3600);

/// Runs the controller.
pub async fn run(client: Client) {
    let tokens = watching().fields(&format!("type={SECRET_TYPE}"));
    let controller = Controller::new(Api::<Secret>::namespaced(client.clone(), NAMESPACE), tokens);
    drive(controller, "bootstrap tokens", reconcile, Arc::new(client)).await;
}

async fn reconcile(token: Arc<Secret>, client: Arc<Client>) -> Result<Action> {
    match rest(&token, Timestamp::now()) {
        None => Ok(Action::await_change()),
        Some(Duration::ZERO) => {
            // A token that was given another end meanwhile stays.
            let preconditions = Preconditions { uid: token.uid(), resource_version: token.resource_version() };
            let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            let name = token.metadata.name.as_deref().ok_or(Error::Incomplete("name"))?;
            let tokens = Api::<Secret>::namespaced((*client).clone(), NAMESPACE);
            gone(tokens.delete(name, &parameters).await.map(drop))?;
            Ok(Action::await_change())
        }
        Some(rest) => Ok(Action::requeue(rest.min(LOOK_AGAIN_MAX))),
    }
}

/// How long the token is good for yet; `None` when it has no end, or one that cannot be read (nobody gets in by that, and
/// whoever wrote it may want to see it).
fn rest(token: &Secret, now: Timestamp) -> Option<Duration> {
    if token.type_.as_deref() != Some(SECRET_TYPE) || token.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let end = token.data.as_ref()?.get("expiration")?;
    let end: Timestamp = std::str::from_utf8(&end.0).ok()?.parse().ok()?;
    Some(Duration::try_from(end.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::bootstrap_token::join_token;

    #[test]
    fn a_token_goes_at_its_end_and_one_without_an_end_stays() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let token = |end: Option<&str>| join_token("abcdef", "0123456789abcdef", end.map(str::to_owned), "");
        assert_eq!(rest(&token(Some("2026-01-01T00:00:05Z")), now), Some(Duration::from_secs(5)));
        assert_eq!(rest(&token(Some("2026-01-01T00:00:00Z")), now), Some(Duration::ZERO));
        assert_eq!(rest(&token(Some("2025-01-01T00:00:00Z")), now), Some(Duration::ZERO));
        assert_eq!(rest(&token(None), now), None);
        assert_eq!(rest(&token(Some("soon")), now), None);
        let other = Secret { type_: Some("Opaque".into()), ..token(Some("2025-01-01T00:00:00Z")) };
        assert_eq!(rest(&other, now), None);
    }
}
