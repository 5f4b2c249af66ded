//! The registry's users are Nuée's own: a password is a token (`kubectl create token NAME`), and what it may do is what RBAC
//! says about `repositories` of the group `nuee.dev`. The repository `team/app` belongs to the namespace `team`; one without
//! a slash to none, so that only a cluster role reaches it. What was asked and answered goes to the audit log of the API.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::extract::{ConnectInfo, Request};
use registry::{Action, Credentials, Judgement, Person, Record, Source, Verdict};

/// The group and resource of rules about repositories.
const GROUP: &str = "nuee.dev";
const RESOURCE: &str = "repositories";

/// Judges by the API machinery's users and rules.
pub struct TokenAccess {
    api: Arc<apiserver::ApiServer>,
}

impl TokenAccess {
    /// A judge over the users of this machinery.
    pub fn new(api: Arc<apiserver::ApiServer>) -> Self {
        Self { api }
    }
}

#[async_trait::async_trait]
impl registry::Access for TokenAccess {
    async fn judge(&self, credentials: Option<&Credentials>, action: Action, repository: &str) -> Judgement {
        let Some(credentials) = credentials else { return Verdict::Unknown.into() };
        let Ok(user) = self.api.authenticate_token(&credentials.secret).await else { return Verdict::Unknown.into() };
        let allowed = attributes(action, repository).is_none_or(|wanted| self.api.authorize(&user, &wanted).allowed);
        let verdict = if allowed { Verdict::Allowed } else { Verdict::Denied };
        Judgement { verdict, person: Some(Person { name: user.name, uid: user.uid, groups: user.groups }) }
    }

    fn record(&self, record: Record) {
        let user = record.person.map_or_else(apiserver::UserInfo::anonymous, |person| apiserver::UserInfo {
            name: person.name,
            uid: person.uid,
            groups: person.groups,
            ..apiserver::UserInfo::default()
        });
        let context = apiserver::RequestContext {
            source: record.source,
            user_agent: record.user_agent,
            ..apiserver::RequestContext::of(user)
        };
        let asked = attributes(record.action, &record.repository);
        let verb = asked.as_ref().map_or("login", |asked| asked.verb.as_str());
        let named = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let path = apiserver::ResourcePath {
            group: GROUP.into(),
            version: "v1".into(),
            resource: RESOURCE.into(),
            subresource: None,
            namespace: asked.as_ref().and_then(|asked| named(&asked.namespace)),
            name: asked.as_ref().and_then(|asked| named(&asked.name)),
        };
        self.api.audit(&context, &path, verb, record.status);
    }
}

/// Serves the registry, over TLS when there is a certificate for it.
pub async fn serve(
    listener: tokio::net::TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    router: axum::Router,
) -> Result<()> {
    let router = router.layer(axum::middleware::map_request(name_source));
    match tls {
        Some(tls) => kubernetes::serve(listener, tls, router, kubernetes::ServeLimits::default()).await?,
        None => axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>())
            .await
            .context("cannot accept connections")?,
    }
    Ok(())
}

/// Says in the registry's words where a request came from.
async fn name_source(mut request: Request) -> Request {
    let plain = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
    if let Some(remote) = kubernetes::request_remote(&request).or(plain) {
        request.extensions_mut().insert(Source(remote.ip()));
    }
    request
}

/// What the rules are asked; `None` when it is enough to be somebody.
fn attributes(action: Action, repository: &str) -> Option<apiserver::Attributes> {
    let verb = match action {
        Action::LogIn => return None,
        Action::List => "list",
        Action::Pull => "get",
        Action::Push => "create",
        Action::Delete => "delete",
    };
    let (namespace, name) = repository.split_once('/').unwrap_or(("", repository));
    Some(apiserver::Attributes {
        verb: verb.into(),
        group: GROUP.into(),
        resource: RESOURCE.into(),
        namespace: namespace.into(),
        name: name.into(),
        ..apiserver::Attributes::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_of_a_repository_is_its_namespace() {
        let asked = attributes(Action::Push, "team/web/app").unwrap();
        assert_eq!((asked.verb.as_str(), asked.namespace.as_str(), asked.name.as_str()), ("create", "team", "web/app"));
        let bare = attributes(Action::Pull, "app").unwrap();
        assert_eq!((bare.verb.as_str(), bare.namespace.as_str(), bare.name.as_str()), ("get", "", "app"));
        assert_eq!(attributes(Action::LogIn, ""), None);
    }
}
