//! Journeys of the unmodified kubectl.

use crate::server::Server;

const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: web, image: "nginx:1", ports: [{containerPort: 80}]}]
"#;

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  nodeName: n1
  containers: [{name: a, image: busybox}, {name: b, image: busybox}]
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_diff_patch_scale_and_delete_a_deployment() {
    let server = Server::start().await;
    let file = server.file("web.yaml", DEPLOYMENT);
    let file = file.to_str().unwrap();
    assert_eq!(server.kubectl(&format!("apply -f {file}")).await.trim(), "deployment.apps/web created");
    assert_eq!(server.kubectl(&format!("apply -f {file}")).await.trim(), "deployment.apps/web unchanged");
    server.kubectl(&format!("diff -f {file}")).await;
    let wide = server.kubectl("get deployments -o wide").await;
    assert_eq!(
        wide.lines().next().unwrap().split_whitespace().collect::<Vec<_>>(),
        ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE", "CONTAINERS", "IMAGES", "SELECTOR"]
    );
    assert!(wide.contains("0/2") && wide.contains("nginx:1") && wide.contains("app=web"), "{wide}");
    let patch = r#"{"spec":{"template":{"spec":{"containers":[{"name":"web","image":"nginx:2"}]}}}}"#;
    server.kubectl(&format!("patch deployment web -p {patch}")).await;
    server.kubectl("scale deployment web --replicas=0").await;
    server.kubectl("label deployment web tier=front").await;
    let shown = server.kubectl("get deployment web -o jsonpath={.spec.replicas}/{.spec.template.spec.containers[*].image}/{.metadata.labels.tier}").await;
    assert_eq!(shown, "0/nginx:2/front");
    assert!(server.kubectl("describe deployment web").await.contains("RollingUpdateStrategy:"));
    assert_eq!(server.run(&format!("diff -f {file}"), "").await.code, 1);
    server.kubectl("delete deployment web").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_side_apply_names_the_manager_that_is_in_the_way() {
    let server = Server::start().await;
    let file = server.file("web.yaml", DEPLOYMENT);
    let other = server.file("other.yaml", &DEPLOYMENT.replace("replicas: 2", "replicas: 4"));
    server.kubectl(&format!("apply --server-side -f {}", file.display())).await;
    let refused = server.run(&format!("apply --server-side --field-manager=other -f {}", other.display()), "").await;
    assert!(
        refused.stderr.contains("conflict with \"kubectl\"") && refused.stderr.contains(".spec.replicas"),
        "{}",
        refused.stderr
    );
    server
        .kubectl(&format!("apply --server-side --force-conflicts --field-manager=other -f {}", other.display()))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn typed_clients_create_with_protobuf() {
    let server = Server::start().await;
    server.kubectl("create configmap settings --from-literal=a=b").await;
    server.kubectl("create secret generic keys --from-literal=a=b").await;
    server.kubectl("create deployment web --image=nginx:1 --replicas=0 --port=80").await;
    server.kubectl("expose deployment web --port=80 --type=NodePort").await;
    let shown = server.kubectl("get configmap/settings secret/keys deployment/web service/web -o jsonpath={.items[*].data.a}{.items[1].type}{.items[2].spec.replicas}{.items[3].spec.ports[0].targetPort}").await;
    assert_eq!(shown, "b Yg==Opaque080");
    server.kubectl("create serviceaccount robot").await;
    server.kubectl("create role reader --verb=get --resource=pods").await;
    server.kubectl("create rolebinding reads --role=reader --serviceaccount=default:robot").await;
    let robot = "--as=system:serviceaccount:default:robot";
    assert_eq!(server.kubectl(&format!("auth can-i get pods {robot}")).await.trim(), "yes");
    assert_eq!(server.run(&format!("auth can-i delete pods {robot}"), "").await.stdout.trim(), "no");
    assert_eq!(server.kubectl("create token robot").await.split('.').count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_members_of_a_list_are_checked_before_any_is_made() {
    let server = Server::start().await;
    let list = |field: &str| {
        format!(
            "apiVersion: v1\nkind: List\nitems:\n- {{apiVersion: v1, kind: ConfigMap, metadata: {{name: one}}, {field}: {{a: b}}}}\n\
             - {{apiVersion: apps/v1, kind: Deployment, metadata: {{name: two}}, spec: {{selector: {{matchLabels: {{app: x}}}}, \
             template: {{metadata: {{labels: {{app: x}}}}, spec: {{containers: [{{name: c, image: i, ports: [{{containerPort: 80}}]}}]}}}}}}}}\n"
        )
    };
    let refused = server.run("create -f -", &list("dat")).await;
    assert!(refused.code != 0 && refused.stderr.contains("unknown field \"dat\""), "{}", refused.stderr);
    assert_eq!(server.kubectl("get configmaps,deployments -o name").await, "");
    let made = server.kubectl_with("create -f -", &list("data")).await;
    assert_eq!(made, "configmap/one created\ndeployment.apps/two created\n");
    let same = server.kubectl_with("apply -f -", &list("data")).await;
    assert!(same.contains("deployment.apps/two configured"), "{same}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_and_processes_of_a_pod() {
    let server = Server::start().await;
    server.kubectl_with("apply -f -", POD).await;
    assert_eq!(server.kubectl("logs p -c a --tail=2").await, "line 2\nline 3\n");
    assert_eq!(server.kubectl("logs p --limit-bytes=6").await, "line 1");
    assert!(server.kubectl("logs p --timestamps").await.starts_with("1970-01-01T00:00:01.000000000Z line 1\n"));
    assert_eq!(server.kubectl("exec p -c a -- echo hi").await, "echo hi\n");
    assert_eq!(server.kubectl_with("exec -i p -c b -- cat", "text").await, "cat\ntext");
    assert_eq!(server.run("exec p -c a -- exit 3", "").await.code, 3);
    let missing = server.run("exec p -c a -- missing", "").await;
    assert_eq!((missing.code, missing.stderr.contains("missing: not found")), (127, true));
    assert!(server.run("logs p -c none", "").await.stderr.contains("container none is not valid for pod p"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_read_as_kubernetes_words_them() {
    let server = Server::start().await;
    let bad = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"},"spec":{"containers":[{"name":"A_"}]}}"#;
    let refused = server.run("create --validate=false -f -", bad).await;
    assert!(refused.stderr.contains("spec.containers[0].image: Required value"), "{}", refused.stderr);
    let unknown = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"},"spec":{"containers":[{"name":"a","image":"b","foo":1}]}}"#;
    let refused = server.run("create -f -", unknown).await;
    assert!(refused.stderr.contains("unknown field \"spec.containers[0].foo\""), "{}", refused.stderr);
    assert!(server.run("get pod none", "").await.stderr.contains("pods \"none\" not found"));
    assert!(
        server.run("get nothings", "").await.stderr.contains("the server doesn't have a resource type \"nothings\"")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_and_wait_read_schema_and_status() {
    let server = Server::start().await;
    assert!(server.kubectl("explain pod.spec.containers.image").await.contains("Container image name"));
    assert!(server.kubectl("explain containers.nuee.dev.spec").await.contains("autoRemove"));
    server.kubectl_with("apply -f -", POD).await;
    let status = r#"{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}"#;
    server.kubectl(&format!("patch pod p --subresource=status --type=merge -p {status}")).await;
    server.kubectl("wait --for=condition=Ready pod/p --timeout=5s").await;
    assert!(server.kubectl("api-resources").await.contains("clusterrolebindings"));
}
