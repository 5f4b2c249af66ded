//! What volumes, snapshots and backups may be. Pure.

use std::collections::HashSet;

use apiserver::Cause;
use serde_json::Value;

use super::fields::{check_immutable, text};
use super::nuee::{check_size, validate_name};

/// Volumes of one machine: what is left of a PC's bus.
const DISKS_MAX: usize = 15;
/// The largest disk. Units: bytes. The same bound as of disk images: far above what one machine holds.
const SIZE_MAX: i64 = 16 << 40;
/// Most operations per second that can be asked for; fewer than the hypervisor's own bound.
const IOPS_MAX: i64 = 1_000_000_000;

/// A volume that does not say is called as its object.
pub(super) fn name_volume(object: &mut Value) {
    let name = text(object, "/metadata/name").to_owned();
    if !name.is_empty() && text(object, "/spec/name").is_empty() && object["spec"].is_object() {
        object["spec"]["name"] = name.into();
    }
}

/// The volumes of a machine.
pub(super) fn check_disks(new: &Value, causes: &mut Vec<Cause>) {
    let Some(disks) = new["spec"]["disks"].as_array() else { return };
    if disks.len() > DISKS_MAX {
        causes.push(Cause::invalid("spec.disks", &disks.len().into(), "must be at most 15"));
    }
    let mut seen = HashSet::new();
    for (index, disk) in disks.iter().enumerate() {
        let name = text(disk, "/volume");
        if name.is_empty() {
            causes.push(Cause::required(&format!("spec.disks[{index}].volume"), ""));
        } else if !seen.insert(name) {
            causes.push(Cause::duplicate(&format!("spec.disks[{index}].volume"), &name.into()));
        }
    }
}

/// A directory has no size; a disk has one, or what it is made from has.
pub(super) fn validate_volume(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = validate_name(new, old);
    let spec = &new["spec"];
    let is_block = |object: &Value| text(object, "/spec/mode") == "Block";
    if let Some(old) = old {
        if is_block(new) != is_block(old) {
            causes.push(Cause::invalid("spec.mode", &spec["mode"], "field is immutable"));
        }
        check_immutable("spec.source", spec.get("source"), old["spec"].get("source"), &mut causes);
        // A disk is where it is, until it went along with its machine.
        let went = old["status"]["movedTo"].is_string() && spec["nodeName"] == old["status"]["movedTo"];
        if is_block(old) && old["spec"]["nodeName"].is_string() && !went {
            check_immutable("spec.nodeName", spec.get("nodeName"), old["spec"].get("nodeName"), &mut causes);
        }
    }
    if !is_block(new) {
        for field in ["size", "source", "limits"] {
            if !spec[field].is_null() {
                causes.push(Cause::forbidden(&format!("spec.{field}"), "only a volume with mode Block has it"));
            }
        }
        return causes;
    }
    if spec["options"].as_object().is_some_and(|options| !options.is_empty()) {
        causes.push(Cause::forbidden("spec.options", "only a volume with mode Filesystem has them"));
    }
    check_size(new, "/spec/size", "spec.size", &mut causes);
    check_limits(new, "/spec/limits", "spec.limits", &mut causes);
    check_source(spec, &mut causes);
    let bytes = |spec: &Value| spec["size"].as_str().and_then(api::quantity::whole);
    if bytes(spec).is_some_and(|size| size > SIZE_MAX) {
        causes.push(Cause::invalid("spec.size", &spec["size"], "must be at most 16Ti"));
    }
    if let Some(old) = old {
        let real = old["status"]["sizeBytes"].as_i64();
        let least = bytes(&old["spec"]).max(real.filter(|_| !spec["size"].is_null()));
        if least.is_some_and(|least| bytes(spec).unwrap_or(0) < least) {
            causes.push(Cause::invalid("spec.size", &spec["size"], "a disk never shrinks"));
        }
    }
    causes
}

/// Bounds of a disk's use.
pub(super) fn check_limits(object: &Value, pointer: &str, path: &str, causes: &mut Vec<Cause>) {
    check_size(object, &format!("{pointer}/bytesPerSecond"), &format!("{path}.bytesPerSecond"), causes);
    let iops = object.pointer(&format!("{pointer}/iops")).unwrap_or(&Value::Null);
    if !iops.is_null() && !iops.as_i64().is_some_and(|count| (1..=IOPS_MAX).contains(&count)) {
        causes.push(Cause::invalid(&format!("{path}.iops"), iops, "must be between 1 and 1000000000"));
    }
}

fn check_source(spec: &Value, causes: &mut Vec<Cause>) {
    let source = &spec["source"];
    if source.is_null() {
        if spec["size"].is_null() {
            causes.push(Cause::required("spec.size", "a disk has a size or a source"));
        }
        return;
    }
    let named = ["/snapshot", "/volume", "/upload"].iter().filter(|place| !text(source, place).is_empty()).count();
    if named != 1 {
        causes.push(Cause::invalid("spec.source", source, "name one of snapshot, volume and upload"));
    }
    if !text(source, "/disk").is_empty() && text(source, "/snapshot").is_empty() {
        causes.push(Cause::forbidden("spec.source.disk", "only a snapshot has several disks"));
    }
}

/// A snapshot is taken once, of one thing.
pub(super) fn validate_snapshot(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let (volume, machine) = (text(new, "/spec/volume"), text(new, "/spec/virtualMachine"));
    if volume.is_empty() == machine.is_empty() {
        causes.push(Cause::required("spec", "name either a volume or a virtualMachine"));
    }
    unchanged(new, old, &["volume", "virtualMachine"], &mut causes);
    causes
}

/// A backup is taken once, of one machine.
pub(super) fn validate_backup(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    if text(new, "/spec/virtualMachine").is_empty() {
        causes.push(Cause::required("spec.virtualMachine", ""));
    }
    unchanged(new, old, &["virtualMachine", "since"], &mut causes);
    causes
}

fn unchanged(new: &Value, old: Option<&Value>, fields: &[&str], causes: &mut Vec<Cause>) {
    let Some(old) = old else { return };
    for field in fields {
        check_immutable(&format!("spec.{field}"), new["spec"].get(*field), old["spec"].get(*field), causes);
    }
    if old["spec"]["nodeName"].is_string() {
        check_immutable("spec.nodeName", new["spec"].get("nodeName"), old["spec"].get("nodeName"), causes);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn volume(spec: Value, old: Option<Value>) -> Vec<String> {
        let object = |spec: Value| {
            let mut object = json!({"metadata": {"name": "v"}, "spec": spec});
            name_volume(&mut object);
            object
        };
        let old = old.map(object);
        validate_volume(&object(spec), old.as_ref()).into_iter().map(|cause| cause.field).collect()
    }

    #[test]
    fn a_disk_has_a_size_that_never_shrinks_and_a_directory_has_none() {
        let disk = |size: &str| json!({"mode": "Block", "size": size});
        assert!(volume(disk("1Gi"), None).is_empty());
        assert!(volume(json!({"driver": "local"}), None).is_empty());
        assert_eq!(volume(json!({"mode": "Block"}), None), ["spec.size"]);
        assert_eq!(volume(json!({"size": "1Gi"}), None), ["spec.size"]);
        assert_eq!(volume(disk("17Ti"), None), ["spec.size"]);
        assert_eq!(volume(disk("-1"), None), ["spec.size"]);
        assert!(volume(disk("2Gi"), Some(disk("1Gi"))).is_empty());
        assert_eq!(volume(disk("1Gi"), Some(disk("2Gi"))), ["spec.size"]);
        assert_eq!(volume(json!({"mode": "Block"}), Some(disk("2Gi"))), ["spec.size", "spec.size"]);
        assert_eq!(volume(json!({}), Some(disk("1Gi"))), ["spec.mode"]);
    }

    #[test]
    fn a_disk_comes_from_one_source_for_good() {
        let from = |source: Value| json!({"mode": "Block", "source": source});
        assert!(volume(from(json!({"snapshot": "s", "disk": "root"})), None).is_empty());
        assert_eq!(volume(from(json!({})), None), ["spec.source"]);
        assert_eq!(volume(from(json!({"snapshot": "s", "volume": "v"})), None), ["spec.source"]);
        assert_eq!(volume(from(json!({"volume": "v", "disk": "root"})), None), ["spec.source.disk"]);
        assert_eq!(volume(from(json!({"volume": "w"})), Some(from(json!({"volume": "v"})))), ["spec.source"]);
    }

    #[test]
    fn a_machine_names_each_volume_once() {
        let mut causes = Vec::new();
        check_disks(&json!({"spec": {"disks": [{"volume": "a"}, {"volume": "a"}, {}]}}), &mut causes);
        let fields: Vec<&str> = causes.iter().map(|cause| cause.field.as_str()).collect();
        assert_eq!(fields, ["spec.disks[1].volume", "spec.disks[2].volume"]);
    }
}
