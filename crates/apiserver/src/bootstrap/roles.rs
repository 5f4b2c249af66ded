//! The default cluster roles and their bindings, as rows. `Source:` Kubernetes' RBAC bootstrap policy, and what Nuée's own
//! parts do.

use serde_json::{Value, json};

/// Reading verbs.
const READ: &[&str] = &["get", "list", "watch"];
/// Changing verbs.
const WRITE: &[&str] = &["create", "update", "patch", "delete", "deletecollection"];
const ALL: &[&str] = &["*"];

/// Verbs, groups, resources.
type Row = (&'static [&'static str], &'static [&'static str], &'static [&'static str]);

const WORKLOADS: &[&str] = &[
    "pods",
    "pods/log",
    "pods/status",
    "services",
    "services/status",
    "configmaps",
    "endpoints",
    "persistentvolumeclaims",
    "persistentvolumeclaims/status",
    "replicationcontrollers",
    "replicationcontrollers/scale",
    "replicationcontrollers/status",
    "serviceaccounts",
    "events",
    "limitranges",
    "resourcequotas",
    "resourcequotas/status",
    "bindings",
    "namespaces",
    "namespaces/status",
    "deployments",
    "deployments/scale",
    "deployments/status",
    "replicasets",
    "replicasets/scale",
    "replicasets/status",
    "statefulsets",
    "statefulsets/scale",
    "statefulsets/status",
    "daemonsets",
    "daemonsets/status",
    "controllerrevisions",
    "jobs",
    "jobs/status",
    "cronjobs",
    "cronjobs/status",
    "horizontalpodautoscalers",
    "horizontalpodautoscalers/status",
    "ingresses",
    "ingresses/status",
    "networkpolicies",
    "poddisruptionbudgets",
    "poddisruptionbudgets/status",
    "endpointslices",
];
const WORKLOAD_GROUPS: &[&str] =
    &["", "apps", "batch", "autoscaling", "networking.k8s.io", "policy", "discovery.k8s.io", "events.k8s.io"];
const EDITABLE: &[&str] = &[
    "pods",
    "pods/attach",
    "pods/exec",
    "pods/portforward",
    "pods/proxy",
    "pods/eviction",
    "services",
    "services/proxy",
    "configmaps",
    "secrets",
    "endpoints",
    "persistentvolumeclaims",
    "replicationcontrollers",
    "replicationcontrollers/scale",
    "serviceaccounts",
    "events",
    "deployments",
    "deployments/rollback",
    "deployments/scale",
    "replicasets",
    "replicasets/scale",
    "statefulsets",
    "statefulsets/scale",
    "daemonsets",
    "jobs",
    "cronjobs",
    "horizontalpodautoscalers",
    "ingresses",
    "networkpolicies",
    "poddisruptionbudgets",
    "endpointslices",
];
const NUEE: &[&str] = &[
    "containers",
    "containers/status",
    "networks",
    "networks/status",
    "volumes",
    "volumes/status",
    "snapshots",
    "snapshots/status",
];
/// What guards and connects workloads. Who is in a group and where an address leads is for the controllers to say.
const NETWORKING: &[&str] = &["securitygroups", "floatingips", "routers", "ports", "subnets"];
const NETWORKING_STATUS: &[&str] =
    &["securitygroups/status", "floatingips/status", "routers/status", "ports/status", "subnets/status"];
/// Virtual machines and what they are made from.
const MACHINES: &[&str] = &["virtualmachines", "diskimages", "keypairs", "backups"];
const MACHINES_STATUS: &[&str] =
    &["virtualmachines/log", "virtualmachines/status", "diskimages/status", "backups/status"];
/// What lets somebody type there.
const CONSOLES: &[&str] = &["virtualmachines/console"];
/// Where workloads run is the operator's to say: who owns a machine sees that it moves, and does not move it.
const MIGRATIONS: &[&str] = &["migrations", "migrations/status"];
/// Services of Swarm mode; their tasks may ask for anything of a machine, so they are not everybody's to make.
const SWARM: &[&str] = &["swarmservices", "swarmservices/status"];
const STREAMS: &[&str] = &["pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "services/proxy", "secrets"];

/// What the image registry asks about: pulling, pushing, deleting.
const REPOSITORIES: &[&str] = &["repositories"];

const VIEW: &[Row] = &[
    (READ, WORKLOAD_GROUPS, WORKLOADS),
    (READ, &["nuee.dev"], NUEE),
    (READ, &["nuee.dev"], SWARM),
    (READ, &["nuee.dev"], REPOSITORIES),
    (READ, &["nuee.dev"], NETWORKING),
    (READ, &["nuee.dev"], NETWORKING_STATUS),
    (READ, &["nuee.dev"], MACHINES),
    (READ, &["nuee.dev"], MACHINES_STATUS),
    (READ, &["nuee.dev"], MIGRATIONS),
];
const EDIT: &[Row] = &[
    (READ, WORKLOAD_GROUPS, WORKLOADS),
    (READ, &[""], STREAMS),
    (WRITE, WORKLOAD_GROUPS, EDITABLE),
    (&["impersonate"], &[""], &["serviceaccounts"]),
    (&["create"], &[""], &["serviceaccounts/token"]),
    (READ, &["nuee.dev"], NUEE),
    (READ, &["nuee.dev"], REPOSITORIES),
    (WRITE, &["nuee.dev"], &["containers", "networks", "volumes", "snapshots", "repositories"]),
    (READ, &["nuee.dev"], NETWORKING),
    (READ, &["nuee.dev"], NETWORKING_STATUS),
    (WRITE, &["nuee.dev"], NETWORKING),
    (READ, &["nuee.dev"], MACHINES),
    (READ, &["nuee.dev"], MACHINES_STATUS),
    (WRITE, &["nuee.dev"], MACHINES),
    (READ, &["nuee.dev"], CONSOLES),
    (WRITE, &["nuee.dev"], CONSOLES),
    (READ, &["nuee.dev"], MIGRATIONS),
    (
        &["create", "delete", "get", "list", "patch", "update", "watch", "deletecollection"],
        &["coordination.k8s.io"],
        &["leases"],
    ),
];
const ADMIN: &[Row] = &[
    (
        &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        &["rbac.authorization.k8s.io"],
        &["roles", "rolebindings"],
    ),
    (&["create"], &["authorization.k8s.io"], &["localsubjectaccessreviews"]),
];
const NODE: &[Row] = &[
    (&["create"], &["authentication.k8s.io"], &["tokenreviews"]),
    (&["create"], &["authorization.k8s.io"], &["localsubjectaccessreviews", "subjectaccessreviews"]),
    (
        READ,
        &[""],
        &[
            "services",
            "pods",
            "nodes",
            "configmaps",
            "secrets",
            "persistentvolumeclaims",
            "persistentvolumes",
            "namespaces",
        ],
    ),
    (
        &["create", "get", "list", "watch", "update", "patch", "delete"],
        &[""],
        &["nodes", "nodes/status", "pods", "pods/status"],
    ),
    (&["create", "update", "patch"], &["", "events.k8s.io"], &["events"]),
    (&["create"], &[""], &["pods/eviction", "serviceaccounts/token"]),
    (READ, &["discovery.k8s.io"], &["endpointslices"]),
    (&["create", "delete", "get", "list", "watch", "patch", "update"], &["coordination.k8s.io"], &["leases"]),
    (&["get", "list", "watch", "update", "patch"], &["nuee.dev"], NUEE),
    (READ, &["nuee.dev"], &["flavors", "keypairs", "networkroutes", "migrations"]),
    // The bytes of an image, which machines give each other.
    (&["get"], &["nuee.dev"], &["diskimages/content"]),
    (READ, &["nuee.dev"], NETWORKING),
    (
        &["get", "list", "watch", "update", "patch"],
        &["nuee.dev"],
        &[
            "virtualmachines",
            "virtualmachines/status",
            "diskimages",
            "diskimages/status",
            "migrations/status",
            "floatingips/status",
            "backups",
            "backups/status",
        ],
    ),
    (&["create"], &["nuee.dev"], &["volumes"]),
    (READ, &["node.k8s.io"], &["runtimeclasses"]),
    (READ, &["storage.k8s.io"], &["csidrivers", "volumeattachments"]),
];
const SCHEDULER: &[Row] = &[
    (
        READ,
        &[""],
        &[
            "nodes",
            "namespaces",
            "pods",
            "persistentvolumeclaims",
            "persistentvolumes",
            "replicationcontrollers",
            "services",
        ],
    ),
    (&["delete"], &[""], &["pods"]),
    (&["create"], &[""], &["bindings", "pods/binding"]),
    (&["update", "patch"], &[""], &["pods/status"]),
    (READ, &["apps"], &["replicasets", "statefulsets"]),
    (READ, &["policy"], &["poddisruptionbudgets"]),
    (READ, &["storage.k8s.io"], ALL),
    (READ, &["scheduling.k8s.io"], &["priorityclasses"]),
    (&["create", "update", "patch"], &["", "events.k8s.io"], &["events"]),
    (&["create", "get", "list", "watch", "update", "patch"], &["coordination.k8s.io"], &["leases"]),
    (&["get", "list", "watch", "update", "patch"], &["nuee.dev"], NUEE),
];
const EVERYTHING: &[Row] = &[(ALL, ALL, ALL)];
const BASIC: &[Row] = &[
    (&["create"], &["authorization.k8s.io"], &["selfsubjectaccessreviews", "selfsubjectrulesreviews"]),
    (&["create"], &["authentication.k8s.io"], &["selfsubjectreviews"]),
];
const DELEGATOR: &[Row] = &[
    (&["create"], &["authentication.k8s.io"], &["tokenreviews"]),
    (&["create"], &["authorization.k8s.io"], &["subjectaccessreviews"]),
];

const DISCOVERY_PATHS: &[&str] = &[
    "/api",
    "/api/*",
    "/apis",
    "/apis/*",
    "/healthz",
    "/livez",
    "/openapi",
    "/openapi/*",
    "/readyz",
    "/version",
    "/version/",
];
const PUBLIC_PATHS: &[&str] = &["/healthz", "/livez", "/readyz", "/version", "/version/"];
/// Where a machine asks for its certificate.
const JOIN_PATH: &str = "/nuee/v1/join";
const ISSUER_PATHS: &[&str] = &["/.well-known/openid-configuration", "/openid/v1/jwks", "/openid/v1/jwks/"];

fn role(name: &str, rows: &[Row], paths: &[&str]) -> Value {
    let mut rules: Vec<Value> = rows
        .iter()
        .map(|(verbs, groups, resources)| json!({"verbs": verbs, "apiGroups": groups, "resources": resources}))
        .collect();
    if !paths.is_empty() {
        let verbs: &[&str] = if paths == ["*"] { ALL } else { &["get"] };
        rules.push(json!({"verbs": verbs, "nonResourceURLs": paths}));
    }
    json!({"metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"}}, "rules": rules})
}

/// All that a bootstrap token is good for.
fn joiner() -> Value {
    let mut role = role("system:nuee-joiner", &[], &[]);
    role["rules"] = json!([{"verbs": ["post"], "nonResourceURLs": [JOIN_PATH]}]);
    role
}

/// A role that others may add to by the label `rbac.authorization.k8s.io/aggregate-to-<name>`.
fn aggregated(name: &str, rows: &[Row]) -> Value {
    let mut role = role(name, rows, &[]);
    let label = format!("rbac.authorization.k8s.io/aggregate-to-{name}");
    role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
    role
}

/// The default roles.
pub fn roles() -> Vec<Value> {
    let edit: Vec<Row> = EDIT.to_vec();
    let admin: Vec<Row> = EDIT.iter().chain(ADMIN).copied().collect();
    vec![
        role("cluster-admin", EVERYTHING, &["*"]),
        aggregated("admin", &admin),
        aggregated("edit", &edit),
        aggregated("view", VIEW),
        role("system:basic-user", BASIC, &[]),
        role("system:discovery", &[], DISCOVERY_PATHS),
        role("system:public-info-viewer", &[], PUBLIC_PATHS),
        role("system:service-account-issuer-discovery", &[], ISSUER_PATHS),
        role("system:monitoring", &[], &["/metrics", "/healthz", "/livez", "/readyz"]),
        role("system:auth-delegator", DELEGATOR, &[]),
        role("system:node", NODE, &[]),
        joiner(),
        role("system:kube-scheduler", SCHEDULER, &[]),
        role("system:nuee-controllers", EVERYTHING, &["*"]),
    ]
}

fn binding(name: &str, role: &str, subjects: &[(&str, &str)]) -> Value {
    let subjects: Vec<Value> = subjects
        .iter()
        .map(|(kind, name)| json!({"kind": kind, "name": name, "apiGroup": "rbac.authorization.k8s.io"}))
        .collect();
    json!({"metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}, "subjects": subjects})
}

/// The default bindings.
pub fn bindings() -> Vec<Value> {
    const AUTHENTICATED: (&str, &str) = ("Group", "system:authenticated");
    const UNAUTHENTICATED: (&str, &str) = ("Group", "system:unauthenticated");
    vec![
        binding("cluster-admin", "cluster-admin", &[("Group", "system:masters")]),
        binding("system:basic-user", "system:basic-user", &[AUTHENTICATED]),
        binding("system:discovery", "system:discovery", &[AUTHENTICATED]),
        binding("system:public-info-viewer", "system:public-info-viewer", &[AUTHENTICATED, UNAUTHENTICATED]),
        binding(
            "system:service-account-issuer-discovery",
            "system:service-account-issuer-discovery",
            &[("Group", "system:serviceaccounts")],
        ),
        binding("system:monitoring", "system:monitoring", &[("Group", "system:monitoring")]),
        binding("system:node", "system:node", &[("Group", "system:nodes")]),
        binding("system:nuee-joiner", "system:nuee-joiner", &[("Group", "system:bootstrappers:nuee:join")]),
        binding("system:kube-scheduler", "system:kube-scheduler", &[("User", "system:kube-scheduler")]),
        binding("system:nuee-controllers", "system:nuee-controllers", &[("User", "system:nuee-controllers")]),
    ]
}
