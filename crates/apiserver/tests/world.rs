//! A server with the kinds that the tests need.

use std::sync::Arc;

use apiserver::{
    Allocator, ApiServer, Cause, Kind, ListOptions, Options, RequestContext, ResourcePath, ScalePaths, StaticToken,
    Status, UserInfo, WriteOptions, Written,
};
use serde_json::{Value, json};

pub struct World {
    pub api: Arc<ApiServer>,
    pub store: store::SharedStore,
    pub root: RequestContext,
}

pub fn kinds() -> Vec<Kind> {
    let rbac = "rbac.authorization.k8s.io";
    let cluster =
        |group: &str, kind: &str, plural: &str| Kind { namespaced: false, ..Kind::new(group, "v1", kind, plural) };
    let config_schema = json!({"type": "object", "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"},
        "metadata": {"type": "object"}, "immutable": {"type": "boolean"}, "data": {"type": "object", "additionalProperties": {"type": "string"}}}});
    vec![
        Kind { status_subresource: true, ..cluster("", "Namespace", "namespaces") },
        Kind { status_subresource: true, ..cluster("", "Node", "nodes") },
        Kind { schema: config_schema.into(), ..Kind::new("", "v1", "ConfigMap", "configmaps") },
        Kind::new("", "v1", "ServiceAccount", "serviceaccounts"),
        Kind::new("", "v1", "Secret", "secrets"),
        Kind::new("", "v1", "Event", "events"),
        Kind::new("", "v1", "ResourceQuota", "resourcequotas"),
        Kind::new("", "v1", "LimitRange", "limitranges"),
        Kind {
            status_subresource: true,
            selectable_fields: vec![
                ("spec.nodeName".into(), "/spec/nodeName".into()),
                ("status.phase".into(), "/status/phase".into()),
            ],
            prepare_create: |pod| pod["status"] = json!({"phase": "Pending"}),
            ..Kind::new("", "v1", "Pod", "pods")
        },
        Kind {
            status_subresource: true,
            allocator: Some(Allocator::ServiceAddresses),
            ..Kind::new("", "v1", "Service", "services")
        },
        Kind {
            status_subresource: true,
            scale: Some(ScalePaths {
                spec_replicas: "/spec/replicas".into(),
                status_replicas: "/status/replicas".into(),
                selector: Some("/spec/selector".into()),
            }),
            validate: |new, _| {
                if new["spec"]["replicas"].as_i64().unwrap_or(0) < 0 {
                    vec![Cause::invalid(
                        "spec.replicas",
                        &new["spec"]["replicas"],
                        "must be greater than or equal to 0",
                    )]
                } else {
                    Vec::new()
                }
            },
            ..Kind::new("apps", "v1", "Deployment", "deployments")
        },
        Kind {
            unique_field: Some("/spec/name".into()),
            status_subresource: true,
            ..Kind::new("nuee.dev", "v1", "Container", "containers")
        },
        Kind {
            selectable_fields: vec![("status.nodeName".into(), "/status/nodeName".into())],
            ..Kind::new("nuee.dev", "v1", "FloatingIP", "floatingips")
        },
        Kind {
            selectable_fields: vec![("status.nodeName".into(), "/status/nodeName".into())],
            ..Kind::new("nuee.dev", "v1", "Port", "ports")
        },
        Kind::new("nuee.dev", "v1", "VirtualMachine", "virtualmachines"),
        Kind::new("nuee.dev", "v1", "Migration", "migrations"),
        Kind { status_subresource: true, ..Kind::new("nuee.dev", "v1", "Volume", "volumes") },
        Kind { status_subresource: true, ..Kind::new("nuee.dev", "v1", "Snapshot", "snapshots") },
        Kind { status_subresource: true, ..Kind::new("nuee.dev", "v1", "Backup", "backups") },
        cluster(rbac, "ClusterRole", "clusterroles"),
        cluster(rbac, "ClusterRoleBinding", "clusterrolebindings"),
        Kind::new(rbac, "v1", "Role", "roles"),
        Kind::new(rbac, "v1", "RoleBinding", "rolebindings"),
        cluster("admissionregistration.k8s.io", "ValidatingAdmissionPolicy", "validatingadmissionpolicies"),
        cluster(
            "admissionregistration.k8s.io",
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybindings",
        ),
        cluster("scheduling.k8s.io", "PriorityClass", "priorityclasses"),
        Kind {
            status_subresource: true,
            ..cluster("apiextensions.k8s.io", "CustomResourceDefinition", "customresourcedefinitions")
        },
        Kind {
            stored: false,
            ..cluster("authorization.k8s.io", "SelfSubjectAccessReview", "selfsubjectaccessreviews")
        },
        Kind { stored: false, ..cluster("authentication.k8s.io", "TokenReview", "tokenreviews") },
    ]
}

pub async fn world() -> World {
    let store: store::SharedStore = store::MemoryStore::new();
    let options =
        Options { tokens: vec![StaticToken::new("secret", UserInfo::new("robot", &["bots"]))], ..Options::default() };
    let api = ApiServer::open(store.clone(), kinds(), options).await.unwrap();
    World { api, store, root: RequestContext::internal("admin") }
}

pub fn user(name: &str) -> RequestContext {
    RequestContext::of(UserInfo::new(name, &[]))
}

pub fn path(resource: &str) -> ResourcePath {
    let (group, version, namespace) = match resource {
        "deployments" => ("apps", "v1", Some("default")),
        "containers" | "virtualmachines" | "migrations" | "floatingips" | "ports" | "volumes" | "snapshots"
        | "backups" => ("nuee.dev", "v1", Some("default")),
        "namespaces" | "nodes" => ("", "v1", None),
        "clusterroles" | "clusterrolebindings" => ("rbac.authorization.k8s.io", "v1", None),
        "roles" | "rolebindings" => ("rbac.authorization.k8s.io", "v1", Some("default")),
        "validatingadmissionpolicies" | "validatingadmissionpolicybindings" => {
            ("admissionregistration.k8s.io", "v1", None)
        }
        "customresourcedefinitions" => ("apiextensions.k8s.io", "v1", None),
        "selfsubjectaccessreviews" => ("authorization.k8s.io", "v1", None),
        "tokenreviews" => ("authentication.k8s.io", "v1", None),
        "widgets" => ("example.com", "v1", Some("default")),
        _ => ("", "v1", Some("default")),
    };
    ResourcePath::collection(group, version, resource, namespace)
}

impl World {
    pub async fn create(&self, resource: &str, object: Value) -> Result<Value, Status> {
        let written = self.api.create(&self.root, &path(resource), object, &WriteOptions::default()).await?;
        Ok(written.object.to_value())
    }

    pub async fn get(&self, resource: &str, name: &str) -> Result<Value, Status> {
        let object = self.api.get(&self.root, &path(resource).object(name), &Default::default()).await?;
        Ok(object.to_value())
    }

    pub async fn update(&self, resource: &str, object: Value) -> Result<Value, Status> {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let written =
            self.api.update(&self.root, &path(resource).object(&name), object, &WriteOptions::default()).await?;
        Ok(written.object.to_value())
    }

    pub async fn names(&self, resource: &str, options: ListOptions) -> Vec<String> {
        let list = self.api.list(&self.root, &path(resource), &options).await.unwrap();
        list.items.iter().map(|item| item.name().to_owned()).collect()
    }

    pub async fn create_raw(&self, resource: &str, text: &str, options: WriteOptions) -> Result<Written, Status> {
        self.api.create(&self.root, &path(resource), bytes::Bytes::from(text.to_owned()), &options).await
    }
}

pub fn config(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

pub fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}
