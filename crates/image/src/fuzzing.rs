//! Targets for fuzzing: what reads bytes that strangers send. A target panics when a claim does not hold.

use std::os::fd::AsFd;
use std::path::Path;

use crate::build::flags::Dialect;
use crate::build::{expand, ignore, lines, parse};
use crate::git::Address;
use crate::git::packets::Packets;
use crate::layer::{Limits, UnpackOptions, tree, unpack};
use crate::reference::Reference;

/// Most bytes and entries that a target unpacks.
const LIMITS: Limits = Limits { total_bytes: 1 << 20, entries: 1_000, ratio: 200 };

/// Dockerfiles and ignore files.
pub fn dockerfile(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(cut) = lines::cut(text) {
        for dialect in [Dialect::Classic, Dialect::BuildKit] {
            if let Ok(parsed) = parse::parse(&cut, dialect) {
                assert!(parsed.len() <= text.lines().count());
            }
        }
    }
    let _ = expand::expand(text, '\\', &|name| (name.len() < 3).then(|| name.to_owned()));
    if let Ok(ignore) = ignore::Ignore::parse(text) {
        ignore.ignores("a/b");
    }
}

/// Names of images: what is read is written as it was meant.
pub fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(reference) = Reference::parse(text) {
        for written in [reference.to_string(), reference.familiar()] {
            let again = Reference::parse(&written).expect("own text");
            assert_eq!(again, reference, "{text:?} {written:?}");
        }
    }
}

/// Layer archives: unpacked below `scratch`, and nothing beside it is touched.
pub fn archive(data: &[u8], scratch: &Path) {
    let (root, canary) = (scratch.join("root"), scratch.join("canary"));
    let _ = tree::remove_path(&root);
    std::fs::create_dir(&root).expect("a directory");
    std::fs::write(&canary, "alive").expect("a canary");
    let opened = tree::open_root(&root).expect("the root");
    let options = UnpackOptions { limits: LIMITS, whiteouts: true, owner: None };
    if let Ok(unpacked) = unpack(data, opened.as_fd(), &options) {
        assert!(unpacked.entries <= LIMITS.entries && unpacked.size_bytes <= LIMITS.total_bytes);
    }
    assert_eq!(std::fs::read(&canary).expect("the canary"), b"alive");
    let beside = std::fs::read_dir(scratch).expect("the scratch").count();
    assert_eq!(beside, 2, "something was made beside the root");
}

/// Addresses of git repositories, and what servers of such say: what is read breaks no bound, and leads nowhere else.
pub fn git(data: &[u8]) {
    const PACK_BYTES_MAX: u64 = 1 << 10;
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(address) = Address::parse(text)
    {
        let scheme = address.url.split("://").next().expect("a scheme");
        assert!(["http", "https", "git"].contains(&scheme), "{text:?}");
        assert!(!address.reference.starts_with('-') && !address.directory.split('/').any(|part| part == ".."));
        if let Ok(inner) = address.beside(text, "c0ffee") {
            assert_eq!(inner.reference, "c0ffee");
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let _ = Packets::new(data).capabilities().await;
        if let Ok(object) = Packets::new(data).reference("main").await {
            assert_eq!(object.len(), 40);
        }
        let mut pack = Vec::new();
        let _ = Packets::new(data).pack(&mut pack, PACK_BYTES_MAX).await;
        assert!(pack.len() as u64 <= PACK_BYTES_MAX);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::fuzzing::smoke;

    #[test]
    fn dockerfiles_of_any_content_are_read_or_refused() {
        let corpus: [&[u8]; 4] = [
            b"# syntax=x\n# escape=`\nFROM a AS b\nARG X=${Y:-z}\nRUN --mount=type=cache,target=/x <<EOF\nhello\nEOF\n",
            b"FROM scratch\nCOPY --from=b --chown=1:2 [\"a b\", \"/c\"]\nHEALTHCHECK --interval=5m CMD x\nENV A=b C=\"d e\"\n",
            b"FROM x@sha256:abc\nUSER a\nEXPOSE 80/tcp 90-91\nONBUILD RUN y\nSHELL [\"/bin/sh\"]\nLABEL a=\"b\\\nc\"\n",
            b"**/*.rs\n!a/b\n# c\n[a-z]\n\\",
        ];
        smoke(&corpus, 10_000, dockerfile);
    }

    #[test]
    fn git_servers_and_addresses_of_any_content_are_read_or_refused() {
        let corpus: [&[u8]; 4] = [
            b"https://me:x@h:8/a/b.git#refs/heads/main:some/dir",
            b"001e# service=git-upload-pack\n0000000eversion 2\n0012fetch=shallow\n0000",
            b"003d0123456789abcdef0123456789abcdef01234567 refs/heads/main\n0000",
            b"0011shallow-info\n0001000dpackfile\n0008\x01abc0008\x02hmm0007\x03de0000",
        ];
        smoke(&corpus, 5_000, git);
    }

    #[test]
    fn references_of_any_content_are_read_or_refused() {
        let corpus: [&[u8]; 4] = [
            b"docker.io/library/busybox:1.36",
            b"localhost:5000/a/b_c.d-e@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            b"[::1]:5000/a:latest",
            b"busybox",
        ];
        smoke(&corpus, 20_000, reference);
    }

    #[test]
    fn archives_of_any_content_stay_below_their_root() {
        let scratch = tempfile::tempdir().unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |path: &str, kind: tar::EntryType, link: &str, data: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(data.len() as u64);
            header.set_mode(0o755);
            if !link.is_empty() {
                header.set_link_name(link).unwrap();
            }
            header.set_path(path).unwrap();
            header.set_cksum();
            builder.append(&header, data).unwrap();
        };
        add("d/", tar::EntryType::Directory, "", b"");
        add("d/link", tar::EntryType::Symlink, "../..", b"");
        add("d/f", tar::EntryType::Regular, "", b"content");
        add("d/hard", tar::EntryType::Link, "d/f", b"");
        add("d/.wh.gone", tar::EntryType::Regular, "", b"");
        let whole = builder.into_inner().unwrap();
        archive(&whole, scratch.path());
        // Headers carry a checksum, which nearly every change breaks: mend it, so that the changes reach what lies behind.
        smoke(&[&whole], 1_500, |data| {
            let mut data = data.to_vec();
            mend_checksums(&mut data);
            archive(&data, scratch.path());
        });
    }

    fn mend_checksums(data: &mut [u8]) {
        for block in data.chunks_exact_mut(512) {
            if block[257..262] == *b"ustar" {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            }
        }
    }
}
