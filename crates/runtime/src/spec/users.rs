//! Users and groups of a container, looked up in its own `/etc/passwd` and `/etc/group` without ever leaving its root.

use std::io::Read;
use std::path::Path;

use oci_spec::runtime::{User, UserBuilder};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::{Error, Result};

/// Largest file that is read; real ones hold a few kilobytes.
const FILE_MAX_BYTES: u64 = 1 << 20;
/// Largest id: what fits the signed numbers of old interfaces (CVE-2024-40635).
const ID_MAX: u32 = i32::MAX.cast_unsigned();
/// Groups of one user.
const GROUPS_MAX: usize = 1_024;

/// A user as a process has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups.
    pub additional_gids: Vec<u32>,
    /// Home directory; `/` when it is not known.
    pub home: String,
}

impl ContainerUser {
    /// As the OCI specification has it.
    pub fn to_oci(&self) -> User {
        let mut user = User::default();
        user.set_uid(self.uid).set_gid(self.gid).set_additional_gids(Some(self.additional_gids.clone()));
        user
    }
}

/// Finds `user[:group]`, names or numbers; empty means root.
///
/// Errors: `Invalid` in Docker's words when a name is not there or a number out of range.
pub fn find(rootfs: &Path, wanted: &str) -> Result<ContainerUser> {
    let passwd = read_in_root(rootfs, "etc/passwd");
    let group = read_in_root(rootfs, "etc/group");
    find_in(&passwd, &group, wanted)
}

/// [`find`] in the text of the two files. Pure.
fn find_in(passwd: &str, groups: &str, wanted: &str) -> Result<ContainerUser> {
    let (user, group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = |text: &str| text.parse::<u32>().ok();
    let entry = passwd.lines().map(fields).find(|entry| {
        entry.first() == Some(&user)
            || (number(user).is_some() && entry.get(2).and_then(|id| number(id)) == number(user))
    });
    let mut found = ContainerUser { home: "/".to_owned(), ..ContainerUser::default() };
    let mut name = None;
    match (&entry, number(user)) {
        (Some(entry), _) => {
            let id = |index: usize| entry.get(index).and_then(|id| number(id));
            (found.uid, found.gid) = id(2).zip(id(3)).ok_or_else(|| missing("user", user, "passwd"))?;
            name = entry.first().copied();
            found.home = entry.get(5).filter(|home| !home.is_empty()).map_or("/", |home| *home).to_owned();
        }
        (None, Some(uid)) => found.uid = uid,
        (None, None) if user.bytes().all(|byte| byte.is_ascii_digit()) => return Err(out_of_range()),
        (None, None) => return Err(missing("user", user, "passwd")),
    }
    match group {
        Some(group) => {
            let entry = groups.lines().map(fields).find(|entry| entry.first() == Some(&group));
            found.gid = match (entry, number(group)) {
                (Some(entry), _) => {
                    entry.get(2).and_then(|id| number(id)).ok_or_else(|| missing("group", group, "group"))?
                }
                (None, Some(gid)) => gid,
                (None, None) => return Err(missing("group", group, "group")),
            };
        }
        None => {
            if let Some(name) = name {
                found.additional_gids = groups_of(groups, name);
            }
        }
    }
    let ids = [found.uid, found.gid];
    if ids.iter().chain(&found.additional_gids).any(|id| *id > ID_MAX) {
        return Err(out_of_range());
    }
    Ok(found)
}

/// Looks up groups that a container is to have besides its own, names or numbers.
///
/// Errors: `Invalid` in Docker's words, which begin otherwise than those of [`find`].
pub fn find_groups(rootfs: &Path, wanted: &[String]) -> Result<Vec<u32>> {
    let groups = read_in_root(rootfs, "etc/group");
    wanted
        .iter()
        .map(|group| {
            let entry = groups.lines().map(fields).find(|entry| entry.first() == Some(&group.as_str()));
            let id = entry.and_then(|entry| entry.get(2)?.parse().ok()).or_else(|| group.parse().ok());
            let text = || format!("Unable to find group {group}: no matching entries in group file");
            id.filter(|id| *id <= ID_MAX).ok_or_else(|| Error::Invalid(text()))
        })
        .collect()
}

fn groups_of(groups: &str, name: &str) -> Vec<u32> {
    groups
        .lines()
        .map(fields)
        .filter(|entry| entry.get(3).is_some_and(|members| members.split(',').any(|member| member == name)))
        .filter_map(|entry| entry.get(2)?.parse().ok())
        .take(GROUPS_MAX)
        .collect()
}

fn fields(line: &str) -> Vec<&str> {
    line.trim_end_matches('\r').split(':').collect()
}

fn missing(what: &str, name: &str, file: &str) -> Error {
    Error::Invalid(format!("unable to find {what} {name}: no matching entries in {file} file"))
}

fn out_of_range() -> Error {
    Error::Invalid(format!("uids and gids must be in range 0-{ID_MAX}"))
}

/// Reads a file inside a root file system that may be hostile: links resolve within it, and only a regular file is read.
/// Empty when there is none.
pub(crate) fn read_in_root(rootfs: &Path, path: &str) -> String {
    let read = || -> std::io::Result<String> {
        let root = std::fs::File::open(rootfs)?;
        // Not blocking: it may be a pipe.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let file = std::fs::File::from(rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve)?);
        if !file.metadata()?.is_file() {
            return Ok(String::new());
        }
        let mut bytes = Vec::new();
        file.take(FILE_MAX_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

/// A user for callers that know the numbers.
pub fn numeric(uid: u32, gid: u32, additional_gids: Vec<u32>) -> Result<User> {
    UserBuilder::default()
        .uid(uid)
        .gid(gid)
        .additional_gids(additional_gids)
        .build()
        .map_err(|error| Error::Invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:Web:/var/www:/bin/false\nbad:x:nonsense\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nadm:x:4:web,other\nlog:x:5:web\n";

    #[test]
    fn names_and_numbers_are_found() {
        let web = find_in(PASSWD, GROUP, "web").unwrap();
        assert_eq!((web.uid, web.gid, web.additional_gids, web.home.as_str()), (33, 34, vec![4, 5], "/var/www"));
        let mixed = find_in(PASSWD, GROUP, "1000:adm").unwrap();
        assert_eq!((mixed.uid, mixed.gid, mixed.home.as_str()), (1_000, 4, "/"));
        assert_eq!(find_in("", "", "").unwrap().uid, 0);
        assert_eq!(find_in(PASSWD, GROUP, "33").unwrap().home, "/var/www");
    }

    #[test]
    fn unknown_names_and_huge_numbers_are_refused() {
        for bad in ["nobody", "bad", "web:nogroup", "2147483648", "4294967296", "0:4294967295", "-1"] {
            assert!(find_in(PASSWD, GROUP, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn links_never_lead_out_of_the_root() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(outside.path(), "secret").unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("../../../../../../etc/hostname", root.path().join("etc/group")).unwrap();
        assert_eq!(read_in_root(root.path(), "etc/passwd"), "");
        assert_eq!(read_in_root(root.path(), "etc/group"), "");
    }

    proptest! {
        #[test]
        fn any_files_and_names_are_survived(passwd in ".{0,80}", group in ".{0,80}", wanted in ".{0,20}") {
            let _ = find_in(&passwd, &group, &wanted);
        }
    }
}
