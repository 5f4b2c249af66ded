//! Configuration drives: what the metadata service says, on a small read-only disk, so that a guest learns it without a network. Made
//! anew at each start; a guest that resumes or moves gets one of the same form.
//!
//! `Source:` OpenStack Nova, "Config drives" and "Metadata"; cloud-init, data sources "Config Drive" and "NoCloud"

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;

use api::virtual_machine::ConfigDrive;
use hypervisor::Disk;
use hypervisor::disk::iso;
use serde_json::json;

use super::metadata::{Entry, no_cloud_network, openstack_metadata, openstack_network};
use crate::context::Context;
use crate::error::{Error, Result};

/// The name by which the hypervisor knows the drive, and its serial number in the guest.
pub const NAME: &str = "config";

/// Label and files of a drive. Pure.
fn content(form: ConfigDrive, entry: &Entry) -> (&'static str, Vec<(&'static str, String)>) {
    match form {
        ConfigDrive::OpenStack => {
            let mut files = vec![
                ("openstack/latest/meta_data.json", openstack_metadata(entry)),
                ("openstack/latest/network_data.json", openstack_network(entry)),
            ];
            if !entry.user_data.is_empty() {
                files.push(("openstack/latest/user_data", entry.user_data.clone()));
            }
            ("config-2", files)
        }
        ConfigDrive::NoCloud => {
            let network = no_cloud_network(entry);
            (
                "cidata",
                vec![
                    ("meta-data", no_cloud(entry)),
                    ("user-data", entry.user_data.clone()),
                    ("network-config", network),
                ],
            )
        }
    }
}

/// The metadata of NoCloud: YAML, whose strings may be written as in JSON.
fn no_cloud(entry: &Entry) -> String {
    let mut text = format!("instance-id: {}\nlocal-hostname: {}\n", json!(entry.uid), json!(entry.hostname));
    if !entry.keys.is_empty() {
        text.push_str("public-keys:\n");
        for (_, key) in &entry.keys {
            // Writing to a string does not fail.
            let _ = writeln!(text, "  - {}", json!(key));
        }
    }
    text
}

/// Makes the drive of a guest that starts; one that `resumes` finds the one that it had.
pub fn make(context: &Context, uid: &str, form: ConfigDrive, entry: &Entry, resumes: bool) -> Result<Disk> {
    let directory = context.guests.directory(uid);
    let path = directory.join("config.iso");
    if !(resumes && path.exists()) {
        let (label, files) = content(form, entry);
        let files: Vec<(&str, &[u8])> = files.iter().map(|(path, text)| (*path, text.as_bytes())).collect();
        let disk = iso::make(label, &files)?;
        let part = directory.join("config.part");
        let written = || -> std::io::Result<()> {
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&part)?;
            file.write_all(&disk)?;
            file.sync_all()?;
            std::fs::rename(&part, &path)
        };
        written().map_err(Error::io("write", &path))?;
    }
    Ok(Disk { name: NAME.into(), layers: vec![path], raw: true, read_only: true, ..Disk::default() })
}

#[cfg(test)]
mod tests {
    use super::super::metadata::Link;
    use super::super::metadata::tests::link;
    use super::*;

    #[test]
    fn a_drive_says_what_cloud_init_looks_for() {
        let entry = Entry {
            uid: "u-1".into(),
            hostname: "host".into(),
            keys: vec![("mine".into(), "ssh-ed25519 AAAA \"me\"".into())],
            user_data: "#cloud-config\n".into(),
            links: vec![Link { mtu: 1450, ..link(1) }, link(2)],
            ..Entry::default()
        };
        let (label, files) = content(ConfigDrive::OpenStack, &entry);
        assert_eq!(label, "config-2");
        let read = |name: &str| files.iter().find(|(path, _)| path.ends_with(name)).map(|(_, text)| text.clone());
        let document: serde_json::Value = serde_json::from_str(&read("meta_data.json").unwrap()).unwrap();
        assert_eq!(document["public_keys"]["mine"], "ssh-ed25519 AAAA \"me\"");
        let document: serde_json::Value = serde_json::from_str(&read("network_data.json").unwrap()).unwrap();
        assert_eq!(document["networks"][0]["netmask"], "255.255.240.0");
        assert_eq!(document["links"][0]["mtu"], 1450);
        let second = &document["networks"][1];
        assert_eq!((&second["ip_address"], &second["routes"]), (&json!("10.2.2.3"), &json!([])));
        assert_eq!(document["networks"][0]["routes"][0]["gateway"], "10.1.0.1");
        assert_eq!(read("user_data").as_deref(), Some("#cloud-config\n"));
        let (label, files) = content(ConfigDrive::NoCloud, &entry);
        assert_eq!(label, "cidata");
        let wanted =
            "instance-id: \"u-1\"\nlocal-hostname: \"host\"\npublic-keys:\n  - \"ssh-ed25519 AAAA \\\"me\\\"\"\n";
        assert_eq!(files[0], ("meta-data", wanted.to_owned()));
        let network: serde_json::Value = serde_json::from_str(&files[2].1).unwrap();
        let second = &network["ethernets"]["interface1"];
        assert_eq!(
            (&second["match"]["macaddress"], &second["dhcp4-overrides"]["use-routes"]),
            (&json!("02:42:0a:02:02:03"), &json!(false))
        );
        let plain = Entry { user_data: String::new(), ..entry };
        assert_eq!(content(ConfigDrive::OpenStack, &plain).1.len(), 2);
        // NoCloud is taken for one only when both files are there.
        assert_eq!(content(ConfigDrive::NoCloud, &plain).1.len(), 3);
    }
}
