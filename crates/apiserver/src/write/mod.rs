//! The way of a write: body, defaults, admission, field managers, one transaction.

mod body;
mod commit;
mod create;
mod delete;
mod finalize;
mod graceful;
mod metadata;
mod patch;
mod update;

pub(crate) use body::{Decoded, tree};
pub(crate) use commit::{Commit, Expect, Outcome};
pub(crate) use metadata::{generate_name, time};
pub(crate) use update::Change;

/// What a write does, as admission sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Create,
    Update,
    Delete,
    Connect,
}

impl Verb {
    /// The word of admission rules.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Verb::Create => "CREATE",
            Verb::Update => "UPDATE",
            Verb::Delete => "DELETE",
            Verb::Connect => "CONNECT",
        }
    }
}
