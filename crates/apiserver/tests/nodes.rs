//! What a machine's own credential reaches: its own objects, and what its pods refer to. Everything else is refused,
//! though the machine's role alone would allow it.

use apiserver::{
    DeleteOptions, GetOptions, ListOptions, PatchKind, Reason, RequestContext, ResourcePath, Status, UserInfo,
    WriteOptions,
};
use serde_json::{Value, json};

use crate::world::{World, path, world};

fn node(name: &str) -> RequestContext {
    RequestContext::of(UserInfo::new(&format!("system:node:{name}"), &["system:nodes"]))
}

/// Two machines with a pod each, and what the pods refer to.
async fn two_machines() -> World {
    let world = world().await;
    for name in ["n1", "n2"] {
        world.create("nodes", json!({"metadata": {"name": name}})).await.unwrap();
        let pod = json!({"metadata": {"name": format!("pod-{name}")}, "spec": {"nodeName": name,
            "serviceAccountName": format!("account-{name}"), "imagePullSecrets": [{"name": format!("pull-{name}")}],
            "containers": [{"name": "c", "image": "i", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": format!("env-{name}"), "key": "k"}}}]}],
            "volumes": [{"name": "s", "secret": {"secretName": format!("volume-{name}")}}, {"name": "c", "configMap": {"name": format!("config-{name}")}},
                {"name": "p", "projected": {"sources": [{"secret": {"name": format!("projected-{name}")}}]}}]}});
        world.create("serviceaccounts", json!({"metadata": {"name": format!("account-{name}")}})).await.unwrap();
        world.create("pods", pod).await.unwrap();
        for secret in ["pull", "env", "volume", "projected", "loose"] {
            world.create("secrets", json!({"metadata": {"name": format!("{secret}-{name}")}})).await.unwrap();
        }
        world.create("configmaps", json!({"metadata": {"name": format!("config-{name}")}})).await.unwrap();
    }
    world
}

async fn get(world: &World, who: &RequestContext, resource: &str, name: &str) -> Result<Value, Status> {
    let found = world.api.get(who, &path(resource).object(name), &GetOptions::default()).await?;
    Ok(found.to_value())
}

async fn patch(world: &World, who: &RequestContext, at: ResourcePath, body: Value) -> Result<Value, Status> {
    let body = bytes::Bytes::from(body.to_string());
    let written = world.api.patch(who, &at, PatchKind::Merge, body, &WriteOptions::default()).await?;
    Ok(written.object.to_value())
}

#[tokio::test]
async fn a_machine_reads_what_its_pods_refer_to_and_no_more() {
    let world = two_machines().await;
    let n1 = node("n1");
    for (resource, name) in [
        ("secrets", "pull-"),
        ("secrets", "env-"),
        ("secrets", "volume-"),
        ("secrets", "projected-"),
        ("configmaps", "config-"),
        ("pods", "pod-"),
        ("nodes", ""),
    ] {
        get(&world, &n1, resource, &format!("{name}n1")).await.unwrap_or_else(|status| panic!("{name}: {status}"));
        let refused = get(&world, &n1, resource, &format!("{name}n2")).await.unwrap_err();
        assert_eq!(refused.reason, Reason::Forbidden, "{name}");
        // Negative control: it is the machine that is refused, not the object that is out of reach.
        get(&world, &node("n2"), resource, &format!("{name}n2")).await.unwrap();
    }
    assert_eq!(get(&world, &n1, "secrets", "loose-n1").await.unwrap_err().reason, Reason::Forbidden);
    let list = async |resource: &str, fields: &str| {
        let options = ListOptions { field_selector: Some(fields.to_owned()), ..ListOptions::default() };
        world.api.list(&n1, &path(resource), &options).await.map(|list| list.items.len())
    };
    for (resource, fields) in [
        ("secrets", ""),
        ("configmaps", ""),
        ("pods", ""),
        ("pods", "spec.nodeName=n2"),
        ("pods", "spec.nodeName!=n1"),
        ("nodes", ""),
    ] {
        assert_eq!(list(resource, fields).await.unwrap_err().reason, Reason::Forbidden, "{resource} {fields}");
    }
    assert_eq!(list("pods", "spec.nodeName=n1").await.unwrap(), 1);
    assert_eq!(list("nodes", "metadata.name=n1").await.unwrap(), 1);
    assert_eq!(list("secrets", "metadata.name=env-n1").await.unwrap(), 1);
}

#[tokio::test]
async fn a_machine_writes_its_own_objects_and_nothing_that_widens_its_rights() {
    let world = two_machines().await;
    let n1 = node("n1");
    let forbidden = |result: Result<Value, Status>, text: &str| {
        let status = result.expect_err(text);
        assert_eq!(status.reason, Reason::Forbidden, "{text}: {status}");
        assert!(status.message.contains(text), "{text}: {status}");
    };
    let nodes = |name: &str| path("nodes").object(name);
    patch(&world, &n1, nodes("n1").sub("status"), json!({"status": {"phase": "x"}})).await.unwrap();
    patch(&world, &n1, nodes("n1"), json!({"metadata": {"labels": {"mine": "1", "kubernetes.io/hostname": "n1"}}}))
        .await
        .unwrap();
    forbidden(patch(&world, &n1, nodes("n2").sub("status"), json!({"status": {}})).await, "cannot patch");
    for (change, text) in [
        (
            json!({"metadata": {"labels": {"node-restriction.kubernetes.io/x": "1"}}}),
            "is not allowed to modify labels: node-restriction.kubernetes.io/x",
        ),
        (json!({"metadata": {"labels": {"kubernetes.io/role": "master"}}}), "is not allowed to modify labels"),
        (
            json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "x", "uid": "y"}]}}),
            "ownerReferences",
        ),
        (json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}), "taints"),
    ] {
        forbidden(patch(&world, &n1, nodes("n1"), change).await, text);
    }
    let gone = world.api.delete(&n1, &nodes("n1"), &DeleteOptions::default()).await;
    assert_eq!(gone.unwrap_err().reason, Reason::Forbidden);
    let pods = |name: &str| path("pods").object(name);
    patch(&world, &n1, pods("pod-n1").sub("status"), json!({"status": {"phase": "Running"}})).await.unwrap();
    forbidden(
        patch(&world, &n1, pods("pod-n2").sub("status"), json!({"status": {"phase": "Failed"}})).await,
        "can only update pod status for pods with spec.nodeName set to itself",
    );
    let plain =
        json!({"metadata": {"name": "new"}, "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}});
    let made = world.api.create(&n1, &path("pods"), plain, &WriteOptions::default()).await;
    assert!(made.unwrap_err().message.contains("can only create mirror pods"));
    let foreign = world.api.delete(&n1, &pods("pod-n2"), &DeleteOptions::default()).await.unwrap_err();
    assert!(foreign.message.contains("can only delete pods with spec.nodeName set to itself"), "{foreign}");
    world.api.delete(&n1, &pods("pod-n1"), &DeleteOptions::default()).await.unwrap();
}

#[tokio::test]
async fn a_machine_gets_tokens_of_its_own_pods_accounts_only() {
    let world = two_machines().await;
    let token = async |who: &RequestContext, account: &str| {
        let at = path("serviceaccounts").object(account).sub("token");
        world.api.create(who, &at, json!({"spec": {}}), &WriteOptions::default()).await.map(drop)
    };
    token(&node("n1"), "account-n1").await.unwrap();
    assert_eq!(token(&node("n1"), "account-n2").await.unwrap_err().reason, Reason::Forbidden);
    token(&node("n2"), "account-n2").await.unwrap();
}

#[tokio::test]
async fn a_machine_sees_the_floating_addresses_that_lead_to_it() {
    let world = two_machines().await;
    for name in ["n1", "n2"] {
        let object = json!({"metadata": {"name": format!("to-{name}")}, "status": {"nodeName": name}});
        world.create("floatingips", object).await.unwrap();
    }
    let n1 = node("n1");
    get(&world, &n1, "floatingips", "to-n1").await.unwrap();
    assert_eq!(get(&world, &n1, "floatingips", "to-n2").await.unwrap_err().reason, Reason::Forbidden);
    get(&world, &node("n2"), "floatingips", "to-n2").await.unwrap();
    let list = async |fields: &str| {
        let options = ListOptions { field_selector: Some(fields.to_owned()), ..ListOptions::default() };
        world.api.list(&n1, &path("floatingips"), &options).await.map(|list| list.items.len())
    };
    assert_eq!(list("status.nodeName=n1").await.unwrap(), 1);
    for fields in ["", "status.nodeName=n2", "status.nodeName!=n1"] {
        assert_eq!(list(fields).await.unwrap_err().reason, Reason::Forbidden, "{fields}");
    }
    // Where an address leads, and who is in a group, is not for machines to say.
    let at = path("floatingips").object("to-n1");
    let stolen = patch(&world, &n1, at, json!({"status": {"fixedAddress": "10.88.0.9"}})).await;
    assert_eq!(stolen.unwrap_err().reason, Reason::Forbidden);
}

#[tokio::test]
async fn a_machine_sees_the_ports_of_its_guests_and_writes_none() {
    let world = two_machines().await;
    for name in ["n1", "n2"] {
        let object = json!({"metadata": {"name": format!("on-{name}")}, "status": {"nodeName": name}});
        world.create("ports", object).await.unwrap();
    }
    let n1 = node("n1");
    get(&world, &n1, "ports", "on-n1").await.unwrap();
    assert_eq!(get(&world, &n1, "ports", "on-n2").await.unwrap_err().reason, Reason::Forbidden);
    // One that a workload of the machine is to be on, whichever interface it is.
    for name in ["second", "told", "labelled", "foreign"] {
        world.create("ports", json!({"metadata": {"name": name}})).await.unwrap();
    }
    let machine = |name: &str, node: &str, port: &str| {
        json!({"metadata": {"name": name}, "spec": {"nodeName": node, "interfaces": [{}, {"port": port}]},
            "status": {"addresses": [{}, {"port": if node == "n1" { "told" } else { "" }}]}})
    };
    world.create("virtualmachines", machine("here", "n1", "second")).await.unwrap();
    world.create("virtualmachines", machine("there", "n2", "foreign")).await.unwrap();
    let container = json!({"metadata": {"name": "c"}, "spec": {"name": "c", "nodeName": "n1", "labels": {"nuee.dev/port": "labelled"}}});
    world.create("containers", container).await.unwrap();
    for name in ["second", "told", "labelled"] {
        get(&world, &n1, "ports", name).await.unwrap();
    }
    assert_eq!(get(&world, &n1, "ports", "foreign").await.unwrap_err().reason, Reason::Forbidden);
    let list = async |fields: &str| {
        let options = ListOptions { field_selector: Some(fields.to_owned()), ..ListOptions::default() };
        world.api.list(&n1, &path("ports"), &options).await.map(|list| list.items.len())
    };
    assert_eq!(list("status.nodeName=n1").await.unwrap(), 1);
    assert_eq!(list("").await.unwrap_err().reason, Reason::Forbidden);
    // Whose a port is, and where, is not for machines to say.
    for at in [path("ports").object("on-n1"), path("ports").object("on-n1").sub("status")] {
        let stolen = patch(&world, &n1, at, json!({"status": {"attachedTo": {"uid": "u"}}})).await;
        assert_eq!(stolen.unwrap_err().reason, Reason::Forbidden);
    }
}

#[tokio::test]
async fn a_machine_writes_of_disks_only_those_that_it_holds() {
    let world = two_machines().await;
    let n1 = node("n1");
    for resource in ["volumes", "snapshots", "backups"] {
        for (name, holder) in [("own", json!("n1")), ("other", json!("n2")), ("free", Value::Null)] {
            let object = json!({"metadata": {"name": name}, "spec": {"nodeName": holder}});
            world.create(resource, object).await.unwrap();
        }
        let status = |name: &str| ResourcePath { subresource: Some("status".into()), ..path(resource).object(name) };
        let body = json!({"status": {"phase": "Ready"}});
        for name in ["own", "free"] {
            patch(&world, &n1, status(name), body.clone()).await.unwrap_or_else(|status| panic!("{name}: {status}"));
        }
        let refused = patch(&world, &n1, status("other"), body.clone()).await.unwrap_err();
        assert_eq!(refused.reason, Reason::Forbidden, "{resource}: {refused}");
        // What nobody holds it may take, for itself alone.
        let take = |node: &str| json!({"spec": {"nodeName": node}});
        let refused = patch(&world, &n1, path(resource).object("free"), take("n2")).await.unwrap_err();
        assert_eq!(refused.reason, Reason::Forbidden, "{resource}: {refused}");
        patch(&world, &n1, path(resource).object("free"), take("n1")).await.unwrap();
        let refused = world.api.delete(&n1, &path(resource).object("own"), &DeleteOptions::default()).await;
        assert!(refused.is_err(), "{resource} are not a machine's to delete");
    }
}

#[tokio::test]
async fn a_guest_is_given_away_by_its_host_alone_and_only_where_a_migration_takes_it() {
    let world = two_machines().await;
    let guest = json!({"metadata": {"name": "web"}, "spec": {"nodeName": "n1"}});
    let uid = world.create("virtualmachines", guest).await.unwrap()["metadata"]["uid"].clone();
    let to = async |who: &RequestContext, node: &str| {
        patch(&world, who, path("virtualmachines").object("web"), json!({"spec": {"nodeName": node}})).await
    };
    let (n1, n2) = (node("n1"), node("n2"));
    assert_eq!(to(&n1, "n2").await.unwrap_err().reason, Reason::Invalid, "nothing takes it there");
    let migration = json!({"metadata": {"name": "m", "finalizers": ["nuee.dev/migration"]}, "spec": {"virtualMachine": "web"},
        "status": {"phase": "Copying", "sourceNode": "n1", "targetNode": "n2", "machineUid": uid}});
    world.create("migrations", migration).await.unwrap();
    // The target, the administrator, and its host to where it does not go.
    assert_eq!(to(&n2, "n2").await.unwrap_err().reason, Reason::Forbidden);
    assert_eq!(to(&world.root, "n2").await.unwrap_err().reason, Reason::Invalid);
    assert_eq!(to(&n1, "n3").await.unwrap_err().reason, Reason::Invalid);
    // One that is being deleted takes nothing anywhere any more.
    world.api.delete(&world.root, &path("migrations").object("m"), &DeleteOptions::default()).await.unwrap();
    assert_eq!(to(&n1, "n2").await.unwrap_err().reason, Reason::Invalid, "it was called off");
    let again = json!({"metadata": {"name": "again"}, "spec": {"virtualMachine": "web"},
        "status": {"phase": "Handover", "sourceNode": "n1", "targetNode": "n2", "machineUid": uid}});
    world.create("migrations", again).await.unwrap();
    assert_eq!(to(&n1, "n2").await.unwrap()["spec"]["nodeName"], "n2");
    assert_eq!(to(&n1, "n1").await.unwrap_err().reason, Reason::Forbidden, "it is another's now");
}
