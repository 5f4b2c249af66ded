//! What virtual machines, disk images, flavors and keys may be. Pure.

use apiserver::Cause;
use serde_json::Value;

use super::fields::{check_immutable, check_label, items, text};
use super::nuee::check_size;
use super::{nuee_disks, nuee_network};

/// Processors of one machine: what one node of the largest machines has.
const CPUS_MAX: i64 = 255;
/// User data that a guest is given. Units: bytes. `Source:` Amazon EC2, 16 KiB; OpenStack Nova, 64 KiB.
const USER_DATA_BYTES_MAX: usize = 64 << 10;
/// Longest URL of an image. Units: bytes.
const URL_BYTES_MAX: usize = 2048;
/// Sizes of a machine.
const SIZES: [&str; 5] = ["memory", "disk", "memoryMinimum", "memoryMaximum", "memoryTarget"];

pub(super) fn validate_machine(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    if text(new, "/spec/image").is_empty() {
        causes.push(Cause::required("spec.image", ""));
    }
    let cpus = &new["spec"]["cpus"];
    if !cpus.is_null() && !cpus.as_i64().is_some_and(|count| (0..=CPUS_MAX).contains(&count)) {
        causes.push(Cause::invalid("spec.cpus", cpus, "must be between 0 and 255"));
    }
    for field in SIZES {
        check_size(new, &format!("/spec/{field}"), &format!("spec.{field}"), &mut causes);
    }
    let bytes = |field: &str| api::quantity::whole(text(new, &format!("/spec/{field}")));
    let memory = bytes("memory");
    if memory.is_some_and(|all| bytes("memoryMinimum").is_some_and(|least| least > all)) {
        let least = &new["spec"]["memoryMinimum"];
        causes.push(Cause::invalid("spec.memoryMinimum", least, "must not be more than spec.memory"));
    }
    if memory.is_some_and(|all| bytes("memoryMaximum").is_some_and(|most| most < all)) {
        let most = &new["spec"]["memoryMaximum"];
        causes.push(Cause::invalid("spec.memoryMaximum", most, "must not be less than spec.memory"));
    }
    nuee_disks::check_limits(new, "/spec/diskLimits", "spec.diskLimits", &mut causes);
    if text(new, "/spec/userData").len() > USER_DATA_BYTES_MAX {
        causes.push(Cause::invalid("spec.userData", &"".into(), "must be at most 64 KiB"));
    }
    let hostname = text(new, "/spec/hostname");
    if !hostname.is_empty() {
        check_label("spec.hostname", hostname, &mut causes);
    }
    nuee_network::check_places(new, &mut causes);
    nuee_disks::check_disks(new, &mut causes);
    if let Some(old) = old {
        check_change(new, old, &mut causes);
    }
    causes
}

fn check_change(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let field = |object: &Value, name: &str| object["spec"].get(name).cloned();
    let rebuild = |object: &Value| object["spec"]["rebuildRequest"].as_i64().unwrap_or(0);
    let is_rebuilt = rebuild(new) > rebuild(old);
    if !is_rebuilt && field(new, "image") != field(old, "image") {
        let why = "another image needs a new spec.rebuildRequest: what is on the disk is lost";
        causes.push(Cause::invalid("spec.image", &new["spec"]["image"], why));
    }
    if rebuild(new) < rebuild(old) {
        causes.push(Cause::invalid("spec.rebuildRequest", &new["spec"]["rebuildRequest"], "must not become less"));
    }
    let (rescue, before) = (text(new, "/spec/rescueImage"), text(old, "/spec/rescueImage"));
    if !rescue.is_empty() && !before.is_empty() && rescue != before {
        causes.push(Cause::invalid("spec.rescueImage", &rescue.into(), "another one first needs none"));
    }
    if is_rebuilt && !rescue.is_empty() {
        causes
            .push(Cause::forbidden("spec.rebuildRequest", "the machine is rescued: take spec.rescueImage away first"));
    }
    check_revert(new, old, is_rebuilt, causes);
    // The network of an interface that is listed may be another: it is another interface then.
    if items(&new["spec"], "interfaces").is_empty() && items(&old["spec"], "interfaces").is_empty() {
        check_immutable("spec.network", new["spec"].get("network"), old["spec"].get("network"), causes);
    }
}

/// Disks go back to one state, of which somebody knows.
fn check_revert(new: &Value, old: &Value, is_rebuilt: bool, causes: &mut Vec<Cause>) {
    let request = |object: &Value| object["spec"]["revertRequest"].as_i64().unwrap_or(0);
    // One that cannot be done may be called off: the machine does not start before it is done.
    let observed = old["status"]["observedRevert"].as_i64().unwrap_or(0);
    if request(new) < request(old).min(observed) {
        let why = "must not become less than what was done";
        causes.push(Cause::invalid("spec.revertRequest", &new["spec"]["revertRequest"], why));
    }
    if request(new) <= request(old) {
        return;
    }
    if text(new, "/spec/revertSnapshot").is_empty() {
        causes.push(Cause::required("spec.revertSnapshot", ""));
    }
    if is_rebuilt || !text(new, "/spec/rescueImage").is_empty() {
        let why = "a machine is rebuilt, rescued or taken back to a snapshot, one at a time";
        causes.push(Cause::forbidden("spec.revertRequest", why));
    }
}

pub(super) fn validate_flavor(new: &Value, _: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    check_size(new, "/spec/memory", "spec.memory", &mut causes);
    check_size(new, "/spec/disk", "spec.disk", &mut causes);
    nuee_disks::check_limits(new, "/spec/diskLimits", "spec.diskLimits", &mut causes);
    causes
}

/// An image is made once.
pub(super) fn validate_disk_image(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let named = ["/spec/source/upload", "/spec/source/virtualMachine", "/spec/source/url"];
    if named.iter().filter(|place| !text(new, place).is_empty()).count() != 1 {
        causes.push(Cause::required("spec.source", "name one of upload, virtualMachine and url"));
    }
    let url = text(new, "/spec/source/url");
    if !url.is_empty() && !is_url(url) {
        causes.push(Cause::invalid(
            "spec.source.url",
            &url.into(),
            "must be an http:// or https:// URL without a password",
        ));
    }
    for (field, digits) in [("sha256", 64), ("sha512", 128)] {
        let sum = text(new, &format!("/spec/source/{field}"));
        if !sum.is_empty() && (sum.len() != digits || !sum.bytes().all(|digit| digit.is_ascii_hexdigit())) {
            let why = format!("must be {digits} hexadecimal digits");
            causes.push(Cause::invalid(&format!("spec.source.{field}"), &sum.into(), &why));
        }
    }
    if old.is_none() && !url.is_empty() && !text(new, "/spec/nodeName").is_empty() {
        let why = "is the pool's to say for an image from a URL: what a machine reaches is not for others to choose";
        causes.push(Cause::forbidden("spec.nodeName", why));
    }
    if let Some(old) = old {
        check_immutable("spec.source", new["spec"].get("source"), old["spec"].get("source"), &mut causes);
    }
    causes
}

/// Objects are read by many: a URL must carry no password.
fn is_url(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let authority = rest.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
    let plain = url.len() <= URL_BYTES_MAX && url.bytes().all(|byte| byte.is_ascii_graphic());
    plain && authority.is_some_and(|authority| !authority.is_empty() && !authority.contains('@'))
}

/// One line, so that nobody adds options or further keys behind it.
pub(super) fn validate_key_pair(new: &Value, _: Option<&Value>) -> Vec<Cause> {
    let key = text(new, "/spec/publicKey").trim();
    let kinds = ["ssh-", "ecdsa-", "sk-"];
    if key.lines().count() == 1 && kinds.iter().any(|kind| key.starts_with(kind)) {
        return Vec::new();
    }
    vec![Cause::invalid("spec.publicKey", &key.into(), "must be one line, as in authorized_keys, without options")]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn machine(spec: Value, old: Value) -> Vec<String> {
        let object = |spec: Value| json!({"metadata": {"name": "m"}, "spec": spec});
        validate_machine(&object(spec), Some(&object(old))).into_iter().map(|cause| cause.field).collect()
    }

    #[test]
    fn another_image_needs_a_rebuild_and_a_rescued_machine_is_not_rebuilt() {
        assert_eq!(machine(json!({"image": "b"}), json!({"image": "a"})), ["spec.image"]);
        assert!(machine(json!({"image": "b", "rebuildRequest": 1}), json!({"image": "a"})).is_empty());
        let again = json!({"image": "a", "rebuildRequest": 2});
        assert!(machine(again.clone(), json!({"image": "a", "rebuildRequest": 1})).is_empty());
        assert_eq!(machine(json!({"image": "a", "rebuildRequest": 1}), again), ["spec.rebuildRequest"]);
        let rescued = json!({"image": "a", "rescueImage": "r"});
        assert!(machine(rescued.clone(), json!({"image": "a"})).is_empty());
        assert!(machine(json!({"image": "a"}), rescued.clone()).is_empty());
        assert_eq!(machine(json!({"image": "a", "rescueImage": "s"}), rescued.clone()), ["spec.rescueImage"]);
        let both = json!({"image": "a", "rescueImage": "r", "rebuildRequest": 1});
        assert_eq!(machine(both, rescued), ["spec.rebuildRequest"]);
        let much = json!({"image": "a", "memory": "2Gi", "memoryMaximum": "1Gi"});
        assert_eq!(machine(much, json!({"image": "a"})), ["spec.memoryMaximum"]);
    }

    #[test]
    fn a_machine_goes_back_to_a_snapshot_that_is_named_and_does_nothing_else_with_its_disks() {
        let back = |more: Value| {
            let mut spec = json!({"image": "a", "revertSnapshot": "s", "revertRequest": 2});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            spec
        };
        let before = json!({"image": "a", "revertSnapshot": "s", "revertRequest": 1});
        assert!(machine(back(json!({})), before.clone()).is_empty());
        // Called off while it was not done; not afterwards.
        let lower = |observed: Value, request: i64| {
            let object = |spec: Value| json!({"metadata": {"name": "m"}, "spec": spec, "status": observed.clone()});
            let (new, old) = (object(back(json!({"revertRequest": request}))), object(back(json!({}))));
            let causes = validate_machine(&new, Some(&old));
            causes.into_iter().map(|cause| cause.field).collect::<Vec<_>>()
        };
        assert!(machine(before.clone(), back(json!({}))).is_empty());
        assert!(lower(json!({"observedRevert": 1}), 1).is_empty());
        assert!(lower(json!({"observedRevert": 2}), 2).is_empty());
        assert_eq!(lower(json!({"observedRevert": 2}), 1), ["spec.revertRequest"]);
        assert_eq!(lower(json!({"observedRevert": 1}), 0), ["spec.revertRequest"]);
        // A status that is ahead of what was asked for last refuses no more than that.
        assert!(lower(json!({"observedRevert": 9}), 2).is_empty());
        assert_eq!(lower(json!({"observedRevert": 9}), 1), ["spec.revertRequest"]);
        assert_eq!(machine(back(json!({"revertSnapshot": ""})), before.clone()), ["spec.revertSnapshot"]);
        assert_eq!(machine(back(json!({"rebuildRequest": 1})), before.clone()), ["spec.revertRequest"]);
        let rescued = json!({"image": "a", "rescueImage": "r", "revertRequest": 1});
        assert_eq!(machine(back(json!({"rescueImage": "r"})), rescued), ["spec.revertRequest"]);
    }

    #[test]
    fn an_image_comes_from_one_place_that_is_named_without_a_password() {
        let causes = |source: Value| -> Vec<String> {
            let found = validate_disk_image(&json!({"spec": {"source": source}}), None);
            found.into_iter().map(|cause| cause.field).collect()
        };
        assert!(causes(json!({"url": "https://images.example/a.qcow2?x=y#z"})).is_empty());
        assert_eq!(causes(json!({"url": "https://x/", "upload": "u"})), ["spec.source"]);
        assert_eq!(causes(json!({})), ["spec.source"]);
        for url in ["file:///etc/shadow", "https://me:secret@host/x", "https:///x", "http://a b/", "ftp://x/"] {
            assert_eq!(causes(json!({"url": url})), ["spec.source.url"], "{url}");
        }
        let sums = json!({"url": "http://x/", "sha256": "0a", "sha512": "zz"});
        assert_eq!(causes(sums), ["spec.source.sha256", "spec.source.sha512"]);
    }
}
