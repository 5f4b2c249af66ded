//! The scheduler and the life of machines, with machines that exist only as objects.

use anyhow::Result;
use testkit::Nuee;

const MACHINES: [(&str, &str); 3] = [("a0", "a"), ("a1", "a"), ("b0", "b")];

/// Machines without an agent: objects with a status whose sign of life is given by hand.
fn add_machines(nuee: &Nuee) -> Result<()> {
    let node = |(name, zone): &(&str, &str)| {
        format!(
            "---\n{{apiVersion: v1, kind: Node, metadata: {{name: {name}, labels: {{zone: {zone}, fake: 'true'}}}}}}\n"
        )
    };
    nuee.apply(&format!("# three machines\n{}", MACHINES.iter().map(node).collect::<String>()))?.success()?;
    beat(nuee, "2020-01-01T00:00:00Z")
}

/// A sign of life of all machines.
fn beat(nuee: &Nuee, time: &str) -> Result<()> {
    for (name, _) in MACHINES {
        let size = r#"{"cpu":"2","memory":"4Gi","pods":"10"}"#;
        let ready =
            format!(r#"{{"type":"Ready","status":"True","lastHeartbeatTime":"{time}","lastTransitionTime":"{time}"}}"#);
        let status = format!(r#"{{"status":{{"allocatable":{size},"capacity":{size},"conditions":[{ready}]}}}}"#);
        nuee.kubectl(&["patch", "node", name, "--subresource=status", "--type=merge", "-p", &status])?.success()?;
    }
    Ok(())
}

fn pod(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: fake}}}}\nspec:\n  nodeSelector: {{fake: 'true'}}\n  containers: [{{name: c, image: none, resources: {{requests: {{cpu: 100m}}}}}}]\n{spec}\n"
    )
}

fn node_of(nuee: &Nuee, pod: &str) -> Result<String> {
    Ok(nuee.kubectl(&["get", "pod", pod, "--ignore-not-found", "-o", "jsonpath={.spec.nodeName}"])?.success()?.stdout)
}

#[test]
fn pods_are_placed_by_their_wishes_and_leave_machines_that_fall_silent() -> Result<()> {
    let nuee = Nuee::start(env!("CARGO_BIN_EXE_nuee"))?;
    add_machines(&nuee)?;
    let apart = "  affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{labelSelector: {matchLabels: {app: fake}}, topologyKey: zone}]}}";
    let brief = "  tolerations: [{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 0}]";
    let manifest = [
        pod("first", apart),
        pod("second", apart),
        pod("third", apart),
        pod("greedy", "").replace("cpu: 100m", "cpu: '64'"),
        pod("elsewhere", "").replace("fake: 'true'", "zone: nowhere"),
    ]
    .concat();
    nuee.apply(&manifest)?.success()?;
    nuee.eventually("two are placed, in different zones", || {
        let (first, second) = (node_of(&nuee, "first")?, node_of(&nuee, "second")?);
        Ok(!first.is_empty() && !second.is_empty() && first[..1] != second[..1])
    })?;
    let told = |pod: &str, text: &str| {
        let selector = format!("involvedObject.name={pod},reason=FailedScheduling");
        nuee.eventually(&format!("{pod} is told {text:?}"), || {
            let listed =
                nuee.kubectl(&["get", "events", "--field-selector", &selector, "-o", "jsonpath={.items[*].message}"])?;
            Ok(listed.success()?.stdout.contains(text))
        })
    };
    told("third", "0/4 nodes are available:")?;
    told("third", "3 node(s) didn't match pod anti-affinity rules")?;
    told("third", "1 node(s) didn't match Pod's node affinity/selector")?;
    told("greedy", "3 Insufficient cpu")?;
    told("elsewhere", "4 node(s) didn't match Pod's node affinity/selector")?;
    // Who is more important asks the less important to leave.
    nuee.kubectl(&["create", "priorityclass", "vital", "--value=1000"])?.success()?;
    nuee.apply(&pod("vital", "  priorityClassName: vital").replace("cpu: 100m", "cpu: 1950m"))?.success()?;
    nuee.eventually("somebody is preempted for it", || {
        let events = ["get", "events", "--field-selector", "reason=Preempted", "-o", "name"];
        let nominated = "jsonpath={.status.nominatedNodeName}";
        Ok(!nuee.kubectl(&events)?.success()?.stdout.is_empty()
            && !nuee.kubectl(&["get", "pod", "vital", "-o", nominated])?.success()?.stdout.is_empty())
    })?;
    nuee.kubectl(&["delete", "pod", "vital"])?.success()?;
    beat(&nuee, "2020-01-01T00:00:01Z")?;
    // What frees a place wakes who waits for one.
    nuee.kubectl(&["delete", "pod", "second", "--force", "--grace-period=0"])?.success()?;
    nuee.eventually("the third has the place", || Ok(!node_of(&nuee, "third")?.is_empty()))?;
    // Closed machines are marked as such.
    nuee.kubectl(&["cordon", "b0"])?.success()?;
    let taints = |node: &str| nuee.kubectl(&["get", "node", node, "-o", "jsonpath={.spec.taints[*].key}"]);
    nuee.eventually("b0 is tainted", || {
        Ok(taints("b0")?.success()?.stdout.contains("node.kubernetes.io/unschedulable"))
    })?;
    nuee.kubectl(&["uncordon", "b0"])?.success()?;
    beat(&nuee, "2020-01-01T00:00:02Z")?;
    nuee.apply(&pod("brief", brief).replace("app: fake", "app: brief"))?.success()?;
    nuee.eventually("brief is placed", || Ok(!node_of(&nuee, "brief")?.is_empty()))?;
    let home = node_of(&nuee, "brief")?;
    // Nobody renews the leases: after the grace time the machines do not count as ready, and impatient pods go.
    nuee.eventually("the machine is not ready", || {
        let ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
        Ok(nuee.kubectl(&["get", "node", &home, "-o", ready])?.success()?.stdout == "Unknown")
    })?;
    nuee.eventually("it is tainted", || {
        Ok(taints(&home)?.success()?.stdout.contains("node.kubernetes.io/unreachable"))
    })?;
    nuee.eventually("brief is on its way out", || {
        let deleted = "jsonpath={.metadata.deletionTimestamp}";
        let output = nuee.kubectl(&["get", "pod", "brief", "--ignore-not-found", "-o", deleted])?.success()?;
        let known = nuee.kubectl(&["get", "pod", "brief", "--ignore-not-found", "-o", "name"])?.success()?;
        Ok(!output.stdout.is_empty() || known.stdout.is_empty())
    })?;
    assert!(!node_of(&nuee, "first")?.is_empty(), "a patient pod stays for its five minutes");
    let own = nuee.kubectl(&["get", "nodes", "-l", "!fake", "--no-headers"])?.success()?.stdout;
    assert!(own.contains(" Ready "), "{own}");
    // A machine that is taken away takes its pods with it.
    nuee.kubectl(&["delete", "node", "a0", "a1", "b0"])?.success()?;
    nuee.eventually("no pod is left on machines that are gone", || {
        let left = nuee.kubectl(&["get", "pods", "-o", "jsonpath={.items[?(@.spec.nodeName)].metadata.name}"])?;
        Ok(left.success()?.stdout.is_empty())
    })?;
    let holder = "jsonpath={.spec.holderIdentity}";
    assert!(
        !nuee
            .kubectl(&["get", "lease", "nuee-controllers", "-n", "kube-system", "-o", holder])?
            .success()?
            .stdout
            .is_empty()
    );
    nuee.finish()
}

#[test]
fn describe_node_shows_guests_containers_and_pods_together() -> Result<()> {
    let nuee = Nuee::start(env!("CARGO_BIN_EXE_nuee"))?;
    nuee.build_images()?;
    let machine = nuee.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"])?.success()?.stdout;
    let reserved = ["run", "-d", "--name", "box", "--memory-reservation", "100m", "--memory", "200m"];
    nuee.docker(&[&reserved[..], &["busybox:test", "sleep", "600"]].concat())?.success()?;
    nuee.docker(&["create", "--name", "unused", "busybox:test", "true"])?.success()?;
    nuee.apply(
        "---\n{apiVersion: nuee.dev/v1, kind: Flavor, metadata: {name: tiny}, spec: {cpus: 1, memory: 64Mi}}\n\
         ---\n{apiVersion: nuee.dev/v1, kind: VirtualMachine, metadata: {name: guest}, spec: {image: none, flavor: tiny}}\n\
         ---\napiVersion: v1\nkind: Pod\nmetadata: {name: pod}\nspec: {containers: [{name: c, image: 'busybox:test', \
         imagePullPolicy: Never, command: [sleep, '600'], resources: {requests: {cpu: 100m, memory: 10Mi}}}]}\n",
    )?
    .success()?;
    let mut shown = String::new();
    nuee.eventually("all three are shown", || {
        shown = nuee.kubectl(&["describe", "node", &machine])?.success()?.stdout;
        Ok(["virtualmachine/guest", "container/box", " pod "].iter().all(|name| shown.contains(name)))
    })?;
    assert!(!shown.contains("container/unused"), "it neither runs nor reserves anything: {shown}");
    let row = |name: &str| {
        let line = shown.lines().find(|line| line.contains(name)).unwrap_or_default();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(row("virtualmachine/guest")[2], "1");
    assert_eq!(row("virtualmachine/guest")[6], "64Mi");
    assert_eq!(row("container/box")[6], "100Mi");
    assert_eq!(row("container/box")[8], "200Mi");
    let total = shown.split("Allocated resources:").nth(1).unwrap_or_default();
    assert!(total.contains("1100m") && total.contains("174Mi"), "{total}");
    // Who asks for pods in other words gets pods.
    let selector = format!("spec.nodeName={machine}");
    let pods = nuee.kubectl(&["get", "pods", "-A", "--field-selector", &selector, "-o", "name"])?.success()?.stdout;
    assert_eq!(pods.trim(), "pod/pod");
    Ok(())
}
