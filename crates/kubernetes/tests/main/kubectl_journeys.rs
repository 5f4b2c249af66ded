//! Further journeys of the unmodified kubectl: what people and charts do beyond create and get.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};

use crate::server::Server;

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {app: x}}\nspec:\n  nodeName: n1\n  containers: [{name: a, image: busybox}]\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kustomizations_are_applied_and_pruned() {
    let server = Server::start().await;
    let dir = server.directory("kustom");
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
    write(
        "kustomization.yaml",
        "namePrefix: my-\nlabels: [{pairs: {part: kustom}}]\nresources: [account.yaml]\nconfigMapGenerator: [{name: settings, literals: [a=b]}]\ngeneratorOptions: {disableNameSuffixHash: true}\n",
    );
    write("account.yaml", "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: robot}\n");
    let at = dir.display();
    let applied = server.kubectl(&format!("apply -k {at}")).await;
    assert_eq!(applied.trim(), "serviceaccount/my-robot created\nconfigmap/my-settings created");
    server.kubectl(&format!("diff -k {at}")).await;
    assert_eq!(
        server.kubectl("get configmap my-settings -o jsonpath={.data.a}/{.metadata.labels.part}").await,
        "b/kustom"
    );
    let pruned =
        server.file("keep.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: keep, labels: {part: kustom}}\n");
    let prune = "--prune -l part=kustom --prune-allowlist=core/v1/ConfigMap";
    let told = server.kubectl(&format!("apply -f {} {prune}", pruned.display())).await;
    assert!(told.contains("configmap/keep created") && told.contains("configmap/my-settings pruned"), "{told}");
    assert_eq!(server.kubectl("get serviceaccount my-robot -o name").await.trim(), "serviceaccount/my-robot");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_annotations_patches_columns_and_pages() {
    let server = Server::start().await;
    server.kubectl_with("apply -f -", POD).await;
    server.kubectl("label pod p tier=front").await;
    assert!(server.run("label pod p tier=back", "").await.stderr.contains("already has a value (front)"));
    server.kubectl("label pod p tier=back --overwrite").await;
    server.kubectl("label pod p app-").await;
    server.kubectl("annotate pod p note=hello").await;
    for (kind, patch) in [
        ("merge", r#"{"metadata":{"labels":{"merge":"1"}}}"#),
        ("strategic", r#"{"metadata":{"labels":{"strategic":"1"}}}"#),
        ("json", r#"[{"op":"add","path":"/metadata/labels/json","value":"1"}]"#),
    ] {
        server.kubectl(&format!("patch pod p --type={kind} -p {patch}")).await;
    }
    let columns = "-o custom-columns=N:.metadata.name,T:.metadata.labels.tier,M:.metadata.labels.merge,S:.metadata.labels.strategic,J:.metadata.labels.json,A:.metadata.annotations.note";
    let shown = server.kubectl(&format!("get pods {columns} --no-headers")).await;
    assert_eq!(shown.split_whitespace().collect::<Vec<_>>(), ["p", "back", "1", "1", "1", "hello"]);
    for number in 0..7 {
        server.kubectl(&format!("create configmap c{number} --from-literal=n={number}")).await;
    }
    let names = server.kubectl("get configmaps --chunk-size=2 -o name").await;
    assert_eq!(names.lines().filter(|name| name.starts_with("configmap/c")).count(), 7);
    let sorted = server.kubectl("get configmaps --sort-by=.metadata.name -L none --show-labels").await;
    assert!(sorted.starts_with("NAME"), "{sorted}");
    let raw = server.kubectl("get --raw /api/v1/namespaces/default/configmaps?limit=1").await;
    assert!(raw.contains("\"continue\""), "{raw}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_prints_changes_as_they_come() {
    let server = Server::start().await;
    server.kubectl("create configmap first").await;
    let mut child = tokio::process::Command::new("kubectl")
        .args(["get", "configmaps", "-w", "--output-watch-events", "--no-headers"])
        .env("KUBECONFIG", server.kubeconfig())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line = tokio::time::timeout(std::time::Duration::from_secs(60), lines.next_line()).await.unwrap();
        line.unwrap().unwrap().split_whitespace().take(3).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(next().await, ["ADDED", "first", "0"]);
    server.kubectl("create configmap second --from-literal=a=b").await;
    assert_eq!(next().await, ["ADDED", "second", "1"]);
    server.kubectl("patch configmap second --type=merge -p {\"data\":{\"c\":\"d\"}}").await;
    assert_eq!(next().await, ["MODIFIED", "second", "2"]);
    server.kubectl("delete configmap second").await;
    assert_eq!(next().await, ["DELETED", "second", "2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_are_cordoned_and_drained_and_pods_debugged() {
    let server = Server::start().await;
    server.kubectl_with("apply -f -", "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n").await;
    server.kubectl_with("apply -f -", POD).await;
    server.kubectl("debug p --image=busybox --target=a -c dbg -- true").await;
    let ephemeral =
        "get pod p -o jsonpath={.spec.ephemeralContainers[0].name}/{.spec.ephemeralContainers[0].targetContainerName}";
    assert_eq!(server.kubectl(ephemeral).await, "dbg/a");
    server.kubectl("cordon n1").await;
    assert!(server.kubectl("get node n1").await.contains("SchedulingDisabled"));
    server.kubectl("taint node n1 a=b:NoSchedule").await;
    let drained = server.kubectl("drain n1 --force --grace-period=0").await;
    assert!(drained.contains("node/n1 drained"), "{drained}");
    assert!(server.run("get pod p", "").await.stderr.contains("pods \"p\" not found"));
    server.kubectl("uncordon n1").await;
    assert!(!server.kubectl("get node n1").await.contains("SchedulingDisabled"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definitions_are_explained_and_waited_for() {
    let server = Server::start().await;
    let definition = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: boats.example.com}\nspec:\n  group: example.com\n  scope: Namespaced\n  names: {plural: boats, singular: boat, kind: Boat, shortNames: [bt], categories: [all]}\n  versions:\n  - name: v1\n    served: true\n    storage: true\n    additionalPrinterColumns: [{name: Sails, type: integer, jsonPath: .spec.sails}]\n    schema:\n      openAPIV3Schema:\n        type: object\n        properties:\n          spec:\n            type: object\n            description: What the boat should be.\n            properties:\n              sails: {type: integer, description: How many sails., default: 1}\n              crew: {type: array, items: {type: object, properties: {name: {type: string}}}}\n          status: {type: object, properties: {afloat: {type: boolean}}}\n";
    server.kubectl_with("apply -f -", definition).await;
    server.kubectl("wait --for=condition=Established crd/boats.example.com --timeout=20s").await;
    assert!(server.kubectl("explain boats.spec.sails").await.contains("How many sails."));
    let recursive = server.kubectl("explain boat --recursive").await;
    for part in ["crew\t<[]Object>", "name\t<string>", "sails\t<integer>", "afloat\t<boolean>"] {
        assert!(recursive.contains(part), "{part}: {recursive}");
    }
    server.kubectl_with("create -f -", "apiVersion: example.com/v1\nkind: Boat\nmetadata: {name: b}\nspec: {}\n").await;
    let shown = server.kubectl("get bt").await;
    assert_eq!(shown.split_whitespace().collect::<Vec<_>>(), ["NAME", "SAILS", "b", "1"]);
    assert!(server.kubectl("get all").await.contains("boat.example.com/b"));
    server.kubectl("patch boat b --type=merge -p {\"status\":{\"afloat\":true}}").await;
    server.kubectl("wait --for=jsonpath={.status.afloat}=true boat/b --timeout=20s").await;
    let strict = server
        .run("create -f -", "apiVersion: example.com/v1\nkind: Boat\nmetadata: {name: c}\nspec: {sail: 1}\n")
        .await;
    assert!(strict.stderr.contains("unknown field \"spec.sail\""), "{}", strict.stderr);
    server.kubectl("delete boat b --cascade=foreground --wait=false").await;
    server
        .kubectl_with(
            "apply --server-side -f -",
            "apiVersion: example.com/v1\nkind: Boat\nmetadata: {name: d}\nspec: {sails: 2}\n",
        )
        .await;
    server.kubectl("delete boat d --cascade=orphan --wait=false").await;
    assert_eq!(server.kubectl("get boat d -o jsonpath={.metadata.finalizers}").await, "[\"orphan\"]");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_am_i_what_may_i_and_what_is_there() {
    let server = Server::start().await;
    let whoami = server.kubectl("auth whoami -o jsonpath={.status.userInfo.username}").await;
    assert_eq!(whoami, "admin");
    assert!(server.kubectl("auth can-i --list").await.contains("*.*"));
    assert_eq!(server.run("auth can-i list secrets --as=nobody", "").await.stdout.trim(), "no");
    let roles = "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: r, namespace: default}\nrules: [{apiGroups: [''], resources: [pods], verbs: [get]}]\n";
    assert!(server.kubectl_with("auth reconcile -f -", roles).await.contains("reconciled"));
    server.kubectl("create serviceaccount robot").await;
    assert_eq!(server.kubectl("create token robot --duration=10m --audience=mine").await.split('.').count(), 3);
    let resources = server.kubectl("api-resources --verbs=list,create -o wide --no-headers").await;
    for name in ["configmaps", "deployments", "customresourcedefinitions", "validatingwebhookconfigurations"] {
        assert!(resources.lines().any(|line| line.starts_with(name)), "{name}");
    }
    assert!(server.kubectl("api-versions").await.contains("admissionregistration.k8s.io/v1"));
    assert!(server.kubectl("version -o json").await.contains("\"serverVersion\""));
    assert!(server.kubectl("cluster-info").await.contains("control plane"));
    server.kubectl("get events").await;
    let replaced =
        server.kubectl_with("replace --force -f -", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: r}\n").await;
    assert!(replaced.contains("configmap/r replaced"), "{replaced}");
}
