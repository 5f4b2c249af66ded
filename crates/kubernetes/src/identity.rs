//! Who asks: client certificate, bearer token, in-process identity, or nobody; and impersonation on top of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use apiserver::{ApiServer, Attributes, RequestContext, Status, UserInfo};
use http::HeaderMap;
use http::header::{AUTHORIZATION, USER_AGENT};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Identity of a call from inside the process. Private to the crate: nothing outside can make one.
#[derive(Clone)]
pub(crate) struct TrustedUser(pub(crate) Arc<UserInfo>);

/// What the TLS layer knows of a connection.
#[derive(Clone)]
pub(crate) struct Connection {
    /// The other end.
    pub(crate) remote: SocketAddr,
    /// Who its verified client certificate names.
    pub(crate) certificate_user: Option<Arc<UserInfo>>,
    /// That certificate.
    pub(crate) certificate: Option<Arc<[u8]>>,
}

/// The verified client certificate that a request came with (DER).
pub fn request_certificate<B>(request: &http::Request<B>) -> Option<Arc<[u8]>> {
    request.extensions().get::<Connection>()?.certificate.clone()
}

/// Longest `User-Agent` that is kept. Units: bytes.
const MAX_USER_AGENT_BYTES: usize = 256;
/// Longest bearer token that is looked at. Units: bytes.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Most groups that one request may impersonate.
const MAX_IMPERSONATED_GROUPS: usize = 64;

/// Attribute of a certificate's subject that holds the user's uid. `Source:` Kubernetes, "X.509 client certificates".
const UID_ATTRIBUTE: &str = "1.3.6.1.4.1.57683.2";

/// Who the verified client certificate of a request's connection names, for other routers behind [`crate::serve`].
pub fn request_certificate_user<B>(request: &http::Request<B>) -> Option<Arc<UserInfo>> {
    request.extensions().get::<Connection>()?.certificate_user.clone()
}

/// The other end of a request's connection, for other routers behind [`crate::serve`].
pub fn request_remote<B>(request: &http::Request<B>) -> Option<SocketAddr> {
    request.extensions().get::<Connection>().map(|connection| connection.remote)
}

/// The user that a verified client certificate names: CN is the name, each O a group. `None` without a CN.
pub fn certificate_user(der: &[u8]) -> Option<UserInfo> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    if name.is_empty() {
        return None;
    }
    let groups: Vec<&str> = subject.iter_organization().filter_map(|one| one.as_str().ok()).collect();
    let uid = subject.iter_attributes().find(|one| one.attr_type().to_id_string() == UID_ATTRIBUTE);
    let uid = uid.and_then(|one| one.as_str().ok()).unwrap_or_default().to_owned();
    Some(UserInfo { uid, ..UserInfo::new(name, &groups) })
}

/// Decides who asks; an invalid token is refused rather than taken for nobody.
pub async fn authenticate(api: &ApiServer, parts: &http::request::Parts) -> Result<RequestContext, Status> {
    let connection = parts.extensions.get::<Connection>();
    let user = if let Some(TrustedUser(user)) = parts.extensions.get::<TrustedUser>() {
        user.clone()
    } else if let Some(user) = connection.and_then(|connection| connection.certificate_user.clone()) {
        // A machine's certificate is worth nothing once the machine has been taken out of the pool.
        if !api.machine_is_known(&user) {
            return Err(Status::unauthorized());
        }
        user
    } else if let Some(token) = bearer(&parts.headers)? {
        Arc::new(api.authenticate_token(&token).await?)
    } else {
        Arc::new(UserInfo::anonymous())
    };
    let user = impersonate(api, user, &parts.headers)?;
    let agent = parts.headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let user_agent = agent.chars().take(MAX_USER_AGENT_BYTES).collect();
    Ok(RequestContext {
        user,
        user_agent,
        audit_id: uuid::Uuid::new_v4().to_string(),
        source: connection.map(|connection| connection.remote.ip()),
        notes: apiserver::AuditNotes::default(),
    })
}

/// The token of an `Authorization: Bearer` header. Any other scheme is refused.
fn bearer(headers: &HeaderMap) -> Result<Option<String>, Status> {
    let Some(value) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let text = value.to_str().map_err(|_| Status::unauthorized())?;
    let (scheme, token) = text.split_once(' ').ok_or_else(Status::unauthorized)?;
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() || token.len() > MAX_TOKEN_BYTES {
        return Err(Status::unauthorized());
    }
    Ok(Some(token.to_owned()))
}

/// Applies `Impersonate-*` headers when the real user may do that (`kubectl --as`).
fn impersonate(api: &ApiServer, user: Arc<UserInfo>, headers: &HeaderMap) -> Result<Arc<UserInfo>, Status> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let groups: Vec<String> = headers
        .get_all("impersonate-group")
        .iter()
        .filter_map(|value| value.to_str().ok().map(str::to_owned))
        .take(MAX_IMPERSONATED_GROUPS)
        .collect();
    let uid = text("impersonate-uid");
    let extra = impersonated_extra(headers);
    let Some(name) = text("impersonate-user") else {
        if groups.is_empty() && uid.is_none() && extra.is_empty() {
            return Ok(user);
        }
        return Err(Status::bad_request("requested impersonation without impersonating a user"));
    };
    let allow = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        let attributes = Attributes {
            verb: "impersonate".into(),
            group: group.into(),
            version: "v1".into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..Attributes::default()
        };
        let decision = api.authorize(&user, &attributes);
        let scope = if namespace.is_empty() {
            "at the cluster scope".into()
        } else {
            format!("in the namespace \"{namespace}\"")
        };
        decision.allowed.then_some(()).ok_or_else(|| {
            let detail = format!(
                "User \"{}\" cannot impersonate resource \"{resource}\" in API group \"{group}\" {scope}",
                user.name
            );
            Status::forbidden(group, resource, name, &detail)
        })
    };
    let service_account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    match service_account {
        Some((namespace, account)) => allow("", "serviceaccounts", "", namespace, account)?,
        None => allow("", "users", "", "", &name)?,
    }
    for group in &groups {
        allow("", "groups", "", "", group)?;
    }
    if let Some(uid) = &uid {
        allow("authentication.k8s.io", "uids", "", "", uid)?;
    }
    for (key, values) in &extra {
        for value in values {
            allow("authentication.k8s.io", "userextras", key, "", value)?;
        }
    }
    let mut names: Vec<&str> = groups.iter().map(String::as_str).collect();
    let own_groups = service_account.map(|(namespace, _)| format!("system:serviceaccounts:{namespace}"));
    if let (Some(group), true) = (&own_groups, groups.is_empty()) {
        names.extend(["system:serviceaccounts", group.as_str()]);
    }
    let mut impersonated = UserInfo::new(&name, &names);
    if name == "system:anonymous" {
        impersonated = UserInfo { name, ..UserInfo::anonymous() };
    }
    impersonated.uid = uid.unwrap_or_default();
    impersonated.extra = extra;
    Ok(Arc::new(impersonated))
}

fn impersonated_extra(headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let (Some(key), Ok(value)) = (name.as_str().strip_prefix("impersonate-extra-"), value.to_str()) {
            extra.entry(crate::query::percent_decode(key, false)).or_default().push(value.to_owned());
        }
    }
    extra
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_bearer_tokens_are_looked_at() {
        let with = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, text.parse().unwrap());
            bearer(&headers)
        };
        assert_eq!(with("Bearer abc").unwrap().as_deref(), Some("abc"));
        assert_eq!(with("bearer  abc").unwrap().as_deref(), Some("abc"));
        for bad in ["Basic abc", "Bearer", "Bearer  "] {
            assert_eq!(with(bad).unwrap_err().code, 401, "{bad}");
        }
        assert_eq!(bearer(&HeaderMap::new()).unwrap(), None);
    }
}
