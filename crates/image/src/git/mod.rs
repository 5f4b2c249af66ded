//! Files out of git repositories, for builds. What speaks to the server is ours, and goes where all else that a build fetches may go;
//! what reads the pack is the system's git, as a user of its own without a network. So neither names, redirects nor settings of a
//! repository lead anywhere else.
//!
//! | module | what it owns |
//! |---|---|
//! | [`address`] | which repository, reference and directory a text means |
//! | [`packets`] | the protocol's packets |
//! | [`server`] | conversations with a server |
//! | [`tool`] | git, as a user of its own without a network |

mod address;
pub(crate) mod packets;
mod server;
mod tool;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio_util::io::{ReaderStream, StreamReader};

pub use self::address::is_repository;
pub(crate) use self::address::{Address, without_credentials};
use self::tool::Git;
use crate::build::Scratch;
use crate::build::cancel::cancellable;
use crate::error::{Error, Result, into_io};
use crate::layer::{RATIO_GRACE_BYTES, UnpackOptions, tree};
use crate::store::ImageStore;
use crate::types::ByteStream;
use crate::web::Reach;

/// Time until all packs are here.
const FETCH_TIME_MAX: Duration = Duration::from_secs(3600);
/// Largest size of all packs together, those of submodules among them. Units: bytes.
const PACK_BYTES_MAX: u64 = 16 << 30;
/// Repositories within a repository, those within them counted.
const SUBMODULES_MAX: usize = 100;
/// Attributes that would make an archive differ from the files that are in the repository. Source: gitattributes(5)
const ATTRIBUTES: &str = "* -export-ignore -export-subst\n";

/// The files that an address of a repository means, as an archive, those of submodules among them.
///
/// Errors: `Invalid` for addresses and directories that make no sense; `NotFound` for what is not there; `NotSupported` without git, and
/// for SSH; `Unauthorized` and `Unavailable` as the server has it; `Hostile` in the stream when it is far larger than its packs.
pub(crate) async fn archive(store: &Arc<ImageStore>, reach: Reach, text: &str) -> Result<ByteStream> {
    let address = Address::parse(text)?;
    let scratch = Scratch::new(store)?;
    let mut repository = Repository {
        store: store.clone(),
        reach,
        directory: scratch.0.join("git"),
        bytes_left: PACK_BYTES_MAX,
        fetched: BTreeMap::new(),
    };
    let late = |_| Error::Unavailable(format!("{}: the repository did not come in time", address.url));
    let tree = tokio::time::timeout(FETCH_TIME_MAX, repository.prepare(&address)).await.map_err(late)??;
    let (packed, ratio) = (PACK_BYTES_MAX - repository.bytes_left, store.options.limits.ratio);
    let mut git = Git::start(&repository.directory, &["archive", "--format=tar", &tree]).await?;
    let output = git.output().ok_or_else(|| Error::Internal("git has no output".to_owned()))?;
    // The repository stays until its archive is read.
    let state = Some((ReaderStream::new(output), git, scratch, 0_u64));
    Ok(Box::pin(futures::stream::unfold(state, move |state| async move {
        let (mut pieces, git, scratch, mut unpacked) = state?;
        match pieces.next().await {
            Some(Ok(piece)) => {
                unpacked += piece.len() as u64;
                if is_bomb(unpacked, packed, ratio) {
                    let why = format!("a git repository of {packed} bytes unpacks to more than {unpacked} bytes");
                    return Some((Err(into_io(Error::Hostile(why))), None));
                }
                Some((Ok(piece), Some((pieces, git, scratch, unpacked))))
            }
            Some(Err(error)) => Some((Err(error), None)),
            None => git.end().await.err().map(|error| (Err(into_io(error)), None)),
        }
    })))
}

/// Whether files blow up as no honest repository's do: a tree may name the same files, or the same tree, as often as it likes. As for
/// compressed layers. Pure. Units: bytes.
fn is_bomb(unpacked: u64, packed: u64, ratio: u64) -> bool {
    unpacked > RATIO_GRACE_BYTES && unpacked > packed.saturating_mul(ratio)
}

/// Puts the files that an address means into a directory, which is made. When the future is dropped, nothing of it is left there.
///
/// Errors: as for [`archive`]; `Hostile` for files that no checkout makes.
pub(crate) async fn checkout(store: &Arc<ImageStore>, reach: Reach, text: &str, target: &Path) -> Result<()> {
    let archive = archive(store, reach, text).await?;
    let (limits, target) = (store.options.limits, target.to_owned());
    let (archive, _waiting) = cancellable(StreamReader::new(archive));
    crate::archive::in_background(archive, move |archive| {
        std::fs::create_dir(&target).map_err(Error::io(format!("cannot make {}", target.display())))?;
        let options = UnpackOptions { limits, whiteouts: false, owner: Some((0, 0)) };
        let root = tree::open_root(&target)?;
        crate::layer::unpack(archive, root.as_fd(), &options).map(drop).inspect_err(|_| {
            // Whoever waited may have removed the build's directory at the same time.
            let _ = tree::remove_path(&target);
        })
    })
    .await
}

/// A repository of ours that strangers' objects go to.
struct Repository {
    store: Arc<ImageStore>,
    reach: Reach,
    directory: PathBuf,
    /// What further packs may have. Units: bytes.
    bytes_left: u64,
    /// Commits of submodules that are here already, by the URL and the name that they were fetched by.
    fetched: BTreeMap<(String, String), String>,
}

/// Another repository's commit within a tree.
struct Link {
    path: String,
    commit: String,
}

impl Repository {
    async fn git(&self, arguments: &[&str]) -> Result<String> {
        let written = Git::run(&self.directory, arguments, b"").await?;
        let text =
            String::from_utf8(written).map_err(|_| Error::Invalid("a name in the git repository is no text".into()))?;
        Ok(text.trim_end_matches('\n').to_owned())
    }

    /// Makes the repository, fetches what the address means, and names the tree to be archived.
    async fn prepare(&mut self, address: &Address) -> Result<String> {
        let doing = || format!("cannot make {}", self.directory.display());
        std::fs::create_dir_all(self.directory.join("info")).map_err(Error::io(doing()))?;
        std::fs::write(self.directory.join("info/attributes"), ATTRIBUTES).map_err(Error::io(doing()))?;
        for path in ["", "info", "info/attributes"] {
            let owner = Some(tool::USER);
            std::os::unix::fs::chown(self.directory.join(path), owner, owner).map_err(Error::io(doing()))?;
        }
        self.git(&["init", "--quiet", "--bare", "--template="]).await?;
        let commit = self.fetch(address).await?;
        let links = self.links(&commit).await?;
        let tree = if links.is_empty() { commit } else { self.with_submodules(address, commit, links).await? };
        let tree = format!("{tree}:{}", address.directory);
        let kind = self.git(&["cat-file", "-t", &tree]).await.unwrap_or_default();
        if kind != "tree" {
            return Err(Error::NotFound(format!("{} is no directory of the git repository", address.directory)));
        }
        Ok(tree)
    }

    /// Fetches what an address means, and names the commit.
    async fn fetch(&mut self, address: &Address) -> Result<String> {
        let mut git = Git::start(&self.directory, &["index-pack", "--stdin", "--threads=1"]).await?;
        let mut input = git.input().ok_or_else(|| Error::Internal("git has no input".to_owned()))?;
        let fetched = server::fetch(&self.store.options, &self.reach, address, &mut input, self.bytes_left).await;
        drop(input);
        let ended = git.end().await;
        let fetched = match (fetched, ended) {
            // It refuses the pack, and the rest of that finds nobody.
            (Err(Error::Io { .. }), Err(error)) => return Err(error),
            (Err(error), _) | (Ok(_), Err(error)) => return Err(error),
            (Ok(fetched), Ok(())) => fetched,
        };
        self.bytes_left = self.bytes_left.saturating_sub(fetched.pack_bytes);
        let object = fetched.object;
        self.git(&["rev-parse", "--verify", "--end-of-options", &format!("{object}^{{commit}}")]).await
    }

    /// Fetches a submodule's commit, which may be in several places.
    async fn fetch_once(&mut self, address: &Address) -> Result<String> {
        let key = (address.url.clone(), address.reference.clone());
        if let Some(found) = self.fetched.get(&key) {
            return Ok(found.clone());
        }
        let found = self.fetch(address).await?;
        self.fetched.insert(key, found.clone());
        Ok(found)
    }

    /// The commits of other repositories in a commit's tree.
    async fn links(&self, commit: &str) -> Result<Vec<Link>> {
        let list = Git::run(&self.directory, &["ls-tree", "-r", "-z", commit], b"").await?;
        let mut links = Vec::new();
        for entry in list.split(|byte| *byte == 0) {
            let Some(rest) = entry.strip_prefix(b"160000 commit ") else { continue };
            let text = std::str::from_utf8(rest).ok().and_then(|text| text.split_once('\t'));
            let (commit, path) = text.ok_or_else(|| Error::Invalid("the path of a submodule is no text".to_owned()))?;
            links.push(Link { path: path.to_owned(), commit: commit.to_owned() });
        }
        Ok(links)
    }

    /// Where the repositories are that a commit has within it, by path.
    async fn modules(&self, commit: &str) -> Result<BTreeMap<String, String>> {
        let blob = format!("--blob={commit}:.gitmodules");
        let pattern = r"^submodule\..*\.(path|url)$";
        // Without such a file there is no address for anything.
        let arguments = ["config", "--no-includes", "-z", &blob, "--get-regexp", pattern];
        let list = match Git::run(&self.directory, &arguments, b"").await {
            Err(Error::Invalid(_)) => Vec::new(),
            read => read?,
        };
        Ok(by_path(&String::from_utf8_lossy(&list)))
    }

    /// Puts the trees of submodules where their links are, and names the whole.
    async fn with_submodules(&mut self, address: &Address, commit: String, links: Vec<Link>) -> Result<String> {
        self.git(&["read-tree", &commit]).await?;
        let mut waiting = VecDeque::from([(address.clone(), commit, String::new(), links)]);
        let mut count = 0;
        while let Some((outer, commit, prefix, links)) = waiting.pop_front() {
            let modules = self.modules(&commit).await?;
            for link in links {
                count += 1;
                if count > SUBMODULES_MAX {
                    return Err(Error::Invalid(format!("more than {SUBMODULES_MAX} submodules")));
                }
                let missing =
                    || Error::Invalid(format!("No url found for submodule path '{}' in .gitmodules", link.path));
                let inner = outer.beside(modules.get(&link.path).ok_or_else(missing)?, &link.commit)?;
                let found = self.fetch_once(&inner).await?;
                let path = format!("{prefix}{}", link.path);
                let gone = format!("0 {:040}\t{path}\0", 0);
                Git::run(&self.directory, &["update-index", "-z", "--index-info"], gone.as_bytes()).await?;
                self.git(&["read-tree", "-i", &format!("--prefix={path}/"), &found]).await?;
                let links = self.links(&found).await?;
                if !links.is_empty() {
                    waiting.push_back((inner, found, format!("{path}/"), links));
                }
            }
        }
        self.git(&["write-tree"]).await
    }
}

/// Addresses by path, out of `submodule.NAME.path` and `submodule.NAME.url` settings, each `KEY\nVALUE\0`. Pure.
fn by_path(list: &str) -> BTreeMap<String, String> {
    let (mut paths, mut urls) = (BTreeMap::new(), BTreeMap::new());
    for (key, value) in list.split('\0').filter_map(|entry| entry.split_once('\n')) {
        if let Some(name) = key.strip_suffix(".path") {
            paths.insert(name, value);
        } else if let Some(name) = key.strip_suffix(".url") {
            urls.insert(name, value);
        }
    }
    let places = paths.into_iter().filter_map(|(name, path)| Some((path.to_owned(), (*urls.get(name)?).to_owned())));
    places.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_that_blow_up_are_told_from_those_that_pack_well() {
        assert!(!is_bomb(RATIO_GRACE_BYTES, 100, 200), "small ones may");
        assert!(!is_bomb(19 << 30, 100 << 20, 200) && is_bomb(20 << 30, 100 << 20, 200));
        assert!(!is_bomb(u64::MAX, u64::MAX, 200) && is_bomb(RATIO_GRACE_BYTES + 1, 0, 200));
    }

    #[test]
    fn submodules_are_known_by_their_paths() {
        let list = "submodule.a.b.path\nlib/x\0submodule.a.b.url\n../x\0submodule.c.url\nhttps://h/c\0";
        assert_eq!(by_path(list), BTreeMap::from([("lib/x".to_owned(), "../x".to_owned())]));
    }
}
