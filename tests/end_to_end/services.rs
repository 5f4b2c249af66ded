//! Services and DNS, by the real kubectl and the clients of a busybox pod.

use anyhow::Result;
use testkit::Nuee;

use crate::with_images;

const MANIFEST: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: one, labels: {app: echo}}
spec:
  hostname: one
  subdomain: headless
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox:test
    command: [sh, -c, "mkdir -p /www; hostname > /www/index.html; touch /ready; exec httpd -f -p 8080 -h /www"]
    ports: [{name: web, containerPort: 8080}]
    readinessProbe: {exec: {command: [cat, /ready]}, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: two, labels: {app: echo}}
spec:
  hostname: two
  subdomain: headless
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox:test
    command: [sh, -c, "mkdir -p /www; hostname > /www/index.html; touch /ready; exec httpd -f -p 8080 -h /www"]
    ports: [{name: web, containerPort: 8080}]
    readinessProbe: {exec: {command: [cat, /ready]}, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: asker}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: busybox:test, command: [sleep, "3600"]}]
---
apiVersion: v1
kind: Service
metadata: {name: cluster}
spec:
  type: NodePort
  selector: {app: echo}
  ports: [{name: http, port: 80, targetPort: web, nodePort: 30080}]
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec: {selector: {app: echo}, sessionAffinity: ClientIP, ports: [{port: 80, targetPort: web}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {app: echo}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: early}
spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: echo}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere}
spec: {type: ExternalName, externalName: cluster.default.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec: {selector: {app: echo}, internalTrafficPolicy: Local, ports: [{port: 80, targetPort: web}]}
---
apiVersion: v1
kind: Service
metadata: {name: names}
spec: {ports: [{name: talk, port: 53, protocol: UDP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: names-by-hand, labels: {kubernetes.io/service-name: names}}
addressType: IPv4
ports: [{name: talk, port: 53, protocol: UDP}]
endpoints: [{addresses: [10.88.0.1]}]
---
apiVersion: v1
kind: Service
metadata: {name: empty}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
"#;

fn inside(nuee: &Nuee, script: &str) -> Result<String> {
    Ok(nuee.kubectl(&["exec", "asker", "--", "sh", "-c", script])?.stdout)
}

fn field(nuee: &Nuee, object: &str, path: &str) -> Result<String> {
    Ok(nuee.kubectl(&["get", object, "-o", &format!("jsonpath={{{path}}}")])?.success()?.stdout)
}

#[test]
fn services_of_every_kind_lead_to_ready_pods_and_have_their_names() -> Result<()> {
    let nuee = with_images()?;
    nuee.apply(MANIFEST)?.success()?;
    nuee.kubectl(&["wait", "--for=condition=Ready", "pod/one", "pod/two", "pod/asker", "--timeout=60s"])?.success()?;
    let both = |script: &str| {
        nuee.eventually(&format!("{script} reaches both"), || {
            let said = inside(&nuee, &format!("for i in 1 2 3 4 5 6 7 8; do {script}; done"))?;
            Ok(said.contains("one") && said.contains("two"))
        })
    };
    both("wget -q -O - http://cluster/")?;
    assert!(["one\n", "two\n"].contains(&nuee.fetch("http://127.0.0.1:30080/")?.as_str()), "node port");
    // UDP, by a Service whose endpoints are written by hand: the name server itself.
    let server = field(&nuee, "service/names", ".spec.clusterIP")?;
    nuee.eventually("the name server answers at the service's address", || {
        Ok(inside(&nuee, &format!("nslookup -type=a two.headless.default.svc.cluster.local {server}"))?
            .contains("10.88."))
    })?;
    let first = inside(&nuee, "wget -q -O - http://sticky/")?;
    let again = inside(&nuee, "for i in 1 2 3 4 5 6 7 8; do wget -q -O - http://sticky/; done")?;
    assert_eq!(again, first.repeat(8));
    assert!(!inside(&nuee, "wget -q -O - http://local/")?.is_empty());
    assert!(!inside(&nuee, "wget -q -O - http://elsewhere/")?.is_empty());
    assert_eq!(inside(&nuee, "wget -q -O - http://empty/ 2>/dev/null || echo refused")?, "refused\n");
    assert_eq!(inside(&nuee, "wget -q -O - http://one.headless:8080/")?, "one\n");
    names(&nuee)?;
    readiness(&nuee)?;
    nuee.finish()
}

/// The record types of the Kubernetes DNS specification.
fn names(nuee: &Nuee) -> Result<()> {
    let ask = |kind: &str, name: &str| inside(nuee, &format!("nslookup -type={kind} {name} 2>&1"));
    let address = field(nuee, "service/cluster", ".spec.clusterIP")?;
    let (one, two) = (field(nuee, "pod/one", ".status.podIP")?, field(nuee, "pod/two", ".status.podIP")?);
    let reversed = |address: &str| {
        let parts: Vec<&str> = address.split('.').rev().collect();
        format!("{}.in-addr.arpa", parts.join("."))
    };
    let zone = "default.svc.cluster.local";
    let dashed = one.replace('.', "-");
    for (kind, name, wanted) in [
        ("a", format!("cluster.{zone}"), vec![address.clone()]),
        ("a", format!("headless.{zone}"), vec![one.clone(), two.clone()]),
        ("a", format!("two.headless.{zone}"), vec![two.clone()]),
        ("a", format!("{dashed}.default.pod.cluster.local"), vec![one.clone()]),
        ("srv", format!("_http._tcp.cluster.{zone}"), vec![format!("0 100 80 cluster.{zone}")]),
        ("srv", format!("_talk._udp.names.{zone}"), vec![format!("0 100 53 names.{zone}")]),
        (
            "srv",
            format!("_http._tcp.headless.{zone}"),
            vec![format!("8080 one.headless.{zone}"), format!("8080 two.headless.{zone}")],
        ),
        ("cname", format!("elsewhere.{zone}"), vec![format!("canonical name = cluster.{zone}")]),
        ("ptr", reversed(&address), vec![format!("cluster.{zone}")]),
        ("ptr", reversed(&one), vec![format!("one.headless.{zone}")]),
        ("txt", "dns-version.cluster.local".into(), vec!["1.1.0".into()]),
    ] {
        nuee.eventually(&format!("{kind} of {name} is {wanted:?}"), || {
            let answer = ask(kind, &name)?;
            Ok(wanted.iter().all(|part| answer.contains(part.as_str())))
        })?;
    }
    assert!(ask("a", &format!("nothing.{zone}"))?.contains("NXDOMAIN"));
    let search = inside(nuee, "cat /etc/resolv.conf")?;
    assert!(search.contains("search default.svc.cluster.local svc.cluster.local cluster.local"), "{search}");
    assert!(search.contains("ndots:5"), "{search}");
    Ok(())
}

/// Endpoints follow readiness: out of the Service, and of its names, and back.
fn readiness(nuee: &Nuee) -> Result<()> {
    let addresses = || -> Result<String> {
        let ready = "{.items[*].endpoints[?(@.conditions.ready==true)].targetRef.name}";
        let selector = "kubernetes.io/service-name=cluster";
        Ok(nuee
            .kubectl(&["get", "endpointslices", "-l", selector, "-o", &format!("jsonpath={ready}")])?
            .success()?
            .stdout)
    };
    nuee.kubectl(&["exec", "one", "--", "rm", "/ready"])?.success()?;
    nuee.eventually("one is out", || Ok(addresses()? == "two"))?;
    nuee.eventually("all requests go to two", || {
        Ok(inside(nuee, "for i in 1 2 3 4 5 6; do wget -q -O - http://cluster/; done")? == "two\n".repeat(6))
    })?;
    let one = field(nuee, "pod/one", ".status.podIP")?;
    let zone = "default.svc.cluster.local";
    let knows =
        |name: &str| -> Result<bool> { Ok(inside(nuee, &format!("nslookup -type=a {name}.{zone}"))?.contains(&one)) };
    nuee.eventually("the headless name leaves it out", || Ok(!knows("headless")?))?;
    assert!(knows("early")?, "published although it is not ready");
    nuee.kubectl(&["exec", "one", "--", "touch", "/ready"])?.success()?;
    nuee.eventually("one is back", || Ok(addresses()? == "one two"))
}

#[test]
fn external_addresses_are_for_administrators() -> Result<()> {
    let nuee = Nuee::start(env!("CARGO_BIN_EXE_nuee"))?;
    nuee.kubectl(&["create", "rolebinding", "tenant", "--clusterrole=admin", "--user=tenant"])?.success()?;
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: NAME}\nspec: {ports: [{port: 80}], externalIPs: [192.0.2.7]}\n";
    let create = |name: &str, user: &[&str]| {
        let mut arguments = vec!["create", "-f", "-"];
        arguments.extend(user);
        testkit::Output::fed(nuee.kubectl_command(&arguments), service.replace("NAME", name).as_bytes())
    };
    create("stolen", &["--as=tenant"])?.failure(1, "use of external IPs is denied")?;
    create("given", &[])?.success()?;
    nuee.kubectl(&["label", "service", "given", "a=b", "--as=tenant"])?.success()?;
    nuee.finish()
}

/// Two pods behind a Service without a selector; the slice says that one of them is on another machine.
const LOCAL: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: here}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: c, image: "busybox:test", command: [sh, -c, "mkdir /www; echo here > /www/index.html; exec httpd -f -v -p 8080 -h /www"]}
---
apiVersion: v1
kind: Pod
metadata: {name: there}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: c, image: "busybox:test", command: [sh, -c, "mkdir /www; echo there > /www/index.html; exec httpd -f -v -p 8080 -h /www"]}
---
apiVersion: v1
kind: Pod
metadata: {name: asker}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "busybox:test", command: [sleep, "3600"]}]
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec: {type: NodePort, externalTrafficPolicy: Local, ports: [{port: 80, targetPort: 8080, nodePort: 30081}]}
---
apiVersion: v1
kind: Service
metadata: {name: cluster}
spec: {type: NodePort, ports: [{port: 80, targetPort: 8080, nodePort: 30082}]}
"#;

fn slice(service: &str, here: &str, node: &str, there: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {service}-by-hand, labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\nports: [{{port: 8080}}]\nendpoints:\n- {{addresses: [{here}], nodeName: {node}, conditions: {{ready: READY}}}}\n- {{addresses: [{there}], nodeName: elsewhere, conditions: {{ready: true}}}}\n"
    )
}

#[test]
fn local_external_policy_keeps_to_this_machine_and_shows_who_asks() -> Result<()> {
    let nuee = with_images()?;
    nuee.apply(LOCAL)?.success()?;
    nuee.kubectl(&["wait", "--for=condition=Ready", "pod/here", "pod/there", "pod/asker", "--timeout=60s"])?
        .success()?;
    let address = |pod: &str| field(&nuee, &format!("pod/{pod}"), ".status.podIP");
    let node = field(&nuee, "pod/here", ".spec.nodeName")?;
    let slices = |ready: &str| -> Result<String> {
        let (here, there) = (address("here")?, address("there")?);
        let both = [slice("local", &here, &node, &there), slice("cluster", &here, &node, &there)].concat();
        Ok(both.replace("READY", ready))
    };
    nuee.apply(&slices("true")?)?.success()?;
    // A client outside of the machine, on a cable of its own.
    let world = testkit::Space::new()?;
    let cable = format!(
        "ip link add world type veth peer name eth0 netns {} && ip addr add 192.0.2.1/24 dev world && ip link set world up",
        world.pid()
    );
    nuee.run("sh", &["-c", &cable])?.success()?;
    let outside = |script: &str| {
        let mut command = world.command("sh");
        command.args(["-c", script]);
        testkit::Output::of(command)
    };
    outside("ip addr add 192.0.2.2/24 dev eth0 && ip link set eth0 up")?.success()?;
    let ask = |port: u16| -> Result<String> {
        let one = format!("curl --silent --max-time 5 http://192.0.2.1:{port}/");
        Ok(outside(&format!("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do {one}; done"))?.stdout)
    };
    nuee.eventually("without the policy both are asked", || {
        let said = ask(30082)?;
        Ok(said.contains("here\n") && said.contains("there\n"))
    })?;
    nuee.eventually("with it the one of this machine is", || Ok(ask(30081)? == "here\n".repeat(12)))?;
    // From inside the cluster the policy means nothing.
    nuee.eventually("inside both are asked", || {
        let said = inside(&nuee, "for i in 1 2 3 4 5 6 7 8; do wget -q -O - http://local/; done")?;
        Ok(said.contains("here") && said.contains("there"))
    })?;
    let log = nuee.kubectl(&["logs", "here"])?.success()?.stdout;
    assert!(log.contains("192.0.2.2"), "the pod does not see who asks: {log}");
    // None left here: nobody answers, though there is one elsewhere.
    nuee.apply(&slices("false")?)?.success()?;
    nuee.eventually("nobody answers outside", || Ok(ask(30081)?.is_empty()))?;
    nuee.eventually("the other Service goes on", || Ok(ask(30082)? == "there\n".repeat(12)))?;
    nuee.run("ip", &["link", "delete", "world"])?.success()?;
    nuee.finish()
}
