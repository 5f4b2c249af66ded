//! The registry's users are Nuée's own: a password is a token (`kubectl create token NAME`), and what it may do is what RBAC
//! says about `repositories` of the group `nuee.dev`. The repository `team/app` belongs to the namespace `team`; one without
//! a slash to none, so that only a cluster role reaches it.

use std::sync::Arc;

use registry::{Action, Credentials, Verdict};

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
    async fn judge(&self, credentials: Option<&Credentials>, action: Action, repository: &str) -> Verdict {
        let Some(credentials) = credentials else { return Verdict::Unknown };
        let Ok(user) = self.api.authenticate_token(&credentials.secret).await else { return Verdict::Unknown };
        let Some(attributes) = attributes(action, repository) else { return Verdict::Allowed };
        if self.api.authorize(&user, &attributes).allowed { Verdict::Allowed } else { Verdict::Denied }
    }
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
