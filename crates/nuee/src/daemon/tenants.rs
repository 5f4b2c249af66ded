//! The Docker endpoint for tenants: TLS with client certificates. Whose endpoint it is, the certificate says (its organization
//! names the namespace), never the request. Each namespace has a dialect of its own, whose identity may only touch that
//! namespace.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use image::ImageStore;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, RoleBinding, RoleRef, Subject};
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use tokio::sync::Mutex;

use crate::revoked::Revoked;

/// What the organization of a tenant's certificate begins with; the namespace follows.
pub const GROUP_PREFIX: &str = "nuee:docker:";
/// The role that tenants' endpoints have in their namespaces.
const ROLE: &str = "nuee:docker-endpoint";
/// Most namespaces whose endpoints are open at once: each holds three watches.
const MAX_ENDPOINTS: usize = 1_000;

/// Makes the dialect of a namespace, over its view of the images.
pub type Make = Box<dyn Fn(&str, Arc<ImageStore>) -> Router + Send + Sync>;

/// The endpoints that are open.
pub struct Tenants {
    client: kube::Client,
    images: Arc<ImageStore>,
    revoked: Revoked,
    make: Make,
    /// By namespace: its uid, and its endpoint.
    routers: Mutex<HashMap<String, (String, Router)>>,
}

impl Tenants {
    /// None is open yet; `client` may do everything.
    pub fn new(client: kube::Client, images: Arc<ImageStore>, revoked: Revoked, make: Make) -> Self {
        Self { client, images, revoked, make, routers: Mutex::default() }
    }

    /// All endpoints behind one, which asks each connection who it is.
    pub fn router(self) -> Router {
        Router::new().fallback(answer).with_state(Arc::new(self))
    }

    async fn endpoint(&self, namespace: &str) -> Result<Option<Router>> {
        // Looked up each time: the endpoint of a namespace ends with it.
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let found = namespaces.get_opt(namespace).await.context("cannot look up the namespace")?;
        let alive = found.filter(|found| found.metadata.deletion_timestamp.is_none());
        let uid = alive.and_then(|found| found.metadata.uid);
        let mut routers = self.routers.lock().await;
        let Some(uid) = uid else {
            routers.remove(namespace);
            self.forget_names(namespace, None)?;
            return Ok(None);
        };
        if let Some((_, router)) = routers.get(namespace).filter(|(known, _)| *known == uid) {
            return Ok(Some(router.clone()));
        }
        if routers.len() >= MAX_ENDPOINTS {
            routers.clear();
        }
        self.grant(namespace).await?;
        // A namespace that was made anew has none of the names of the one before.
        let view = view(namespace, &uid);
        self.forget_names(namespace, Some(&view))?;
        let router = (self.make)(namespace, self.images.view(&view));
        routers.insert(namespace.to_owned(), (uid, router.clone()));
        Ok(Some(router))
    }

    fn forget_names(&self, namespace: &str, but: Option<&str>) -> Result<()> {
        self.images.forget_views(&view(namespace, ""), but).context("cannot forget the names of images")
    }

    /// Lets the endpoint's identity work in its namespace. What is there already stays as the administrator left it.
    async fn grant(&self, namespace: &str) -> Result<()> {
        let roles: Api<ClusterRole> = Api::all(self.client.clone());
        let verbs = ["get", "list", "watch", "create", "update", "patch", "delete"].map(str::to_owned).to_vec();
        let rule = PolicyRule {
            api_groups: Some(vec![api::names::GROUP.to_owned()]),
            resources: Some(["containers", "networks", "volumes"].map(str::to_owned).to_vec()),
            verbs,
            ..PolicyRule::default()
        };
        let metadata = |name: &str| ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let role = ClusterRole { metadata: metadata(ROLE), rules: Some(vec![rule]), ..ClusterRole::default() };
        ensure(&roles, ROLE, &role).await?;
        let bindings: Api<RoleBinding> = Api::namespaced(self.client.clone(), namespace);
        let binding = RoleBinding {
            metadata: metadata(ROLE),
            role_ref: RoleRef {
                api_group: Some("rbac.authorization.k8s.io".to_owned()),
                kind: "ClusterRole".to_owned(),
                name: ROLE.to_owned(),
            },
            subjects: Some(vec![Subject {
                api_group: Some("rbac.authorization.k8s.io".to_owned()),
                kind: "Group".to_owned(),
                name: format!("{GROUP_PREFIX}{namespace}"),
                namespace: None,
            }]),
        };
        ensure(&bindings, ROLE, &binding).await
    }
}

/// The view of a namespace on the machine's images. No name of a namespace has a slash in it.
fn view(namespace: &str, uid: &str) -> String {
    format!("{namespace}/{uid}")
}

/// Makes an object unless it is there.
async fn ensure<K>(objects: &Api<K>, name: &str, object: &K) -> Result<()>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize,
{
    match objects.create(&PostParams::default(), object).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot make {name}")),
    }
}

async fn answer(State(tenants): State<Arc<Tenants>>, request: Request) -> Response {
    let Some(user) = kubernetes::certificate_user(&request) else {
        return refuse(401, "a client certificate of this Nuée is needed");
    };
    let passes = kubernetes::certificate(&request).map(|certificate| tenants.revoked.contains(&certificate));
    match passes {
        Some(Ok(false)) => {}
        Some(Ok(true)) => return refuse(401, "this certificate was revoked"),
        None => return refuse(401, "a client certificate of this Nuée is needed"),
        Some(Err(error)) => {
            tracing::error!(error = format!("{error:#}"), "no tenant is served");
            return refuse(503, "the list of revoked certificates cannot be read");
        }
    }
    let Some(namespace) = user.groups.iter().find_map(|group| group.strip_prefix(GROUP_PREFIX)) else {
        return refuse(403, "this certificate is for no Docker endpoint");
    };
    match tenants.endpoint(namespace).await {
        Ok(Some(router)) => match tower::ServiceExt::oneshot(router, request).await {
            Ok(response) => response,
            Err(never) => match never {},
        },
        Ok(None) => refuse(403, "this certificate's namespace is not there"),
        Err(error) => {
            tracing::warn!(namespace, error = format!("{error:#}"), "cannot open a tenant's Docker endpoint");
            refuse(503, "the endpoint cannot be opened now")
        }
    }
}

/// An error as Docker's clients read it.
fn refuse(status: u16, message: &str) -> Response {
    let body = serde_json::json!({ "message": message }).to_string();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = axum::http::StatusCode::from_u16(status).unwrap_or_default();
    let json = axum::http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(axum::http::header::CONTENT_TYPE, json);
    response
}
