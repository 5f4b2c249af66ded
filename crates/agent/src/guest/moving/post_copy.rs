//! A guest that runs on the target while a part of its memory is still at the source, as it does by post-copy. The store has decided before
//! that. What is missing flows through both agents; when either of them or the cable fails nobody can bring it any more, and the guest starts
//! anew from its disks, on the target. Why it is so is in `docs/decisions/0017-post-copy.md`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use api::migration::{Act, Seen, at_word};
use hypervisor::Guest;
use tokio::io::AsyncReadExt;
use tokio::sync::watch;

use super::wire::{self, Answer, Decided};
use crate::context::Context;
use crate::error::{Error, Result, chain};
use crate::guest::shared::write_durably;

/// What is told of a guest whose memory was lost.
pub const LOST: &str =
    "a part of its memory was still on the machine that it came from, and never came; it starts anew from its disks";

/// Guests, by the uids of their machines, that somebody is busy with, and how many are: an attempt that was called off may not have ended
/// when the next one begins.
#[derive(Debug, Default)]
pub struct Ongoing(watch::Sender<HashMap<String, usize>>);

/// One who is busy with one of them, until this is dropped.
#[derive(Debug)]
pub struct Held<'a> {
    all: &'a Ongoing,
    uid: String,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.all.0.send_modify(|all| match all.get_mut(&self.uid) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                all.remove(&self.uid);
            }
        });
    }
}

impl Ongoing {
    /// Notes one.
    pub fn begin(&self, uid: &str) -> Held<'_> {
        self.0.send_modify(|all| *all.entry(uid.to_owned()).or_default() += 1);
        Held { all: self, uid: uid.to_owned() }
    }

    /// Whether somebody is busy with it.
    pub fn has(&self, uid: &str) -> bool {
        self.0.borrow().contains_key(uid)
    }

    /// Waits until nobody is.
    pub async fn until_over(&self, uid: &str) {
        // The other end is this one.
        let _ = self.0.subscribe().wait_for(|all| !all.contains_key(uid)).await;
    }
}

/// Where it is noted that not all of a guest may be here: from before the first of it comes until the last is there.
fn note(context: &Context, uid: &str) -> PathBuf {
    context.guests.directory(uid).join("partial")
}

/// Notes that not all of a guest is here.
pub(super) fn begin(context: &Context, uid: &str) -> Result<()> {
    write_durably(&note(context, uid), &())
}

/// Whether not all of a guest is here. Where that cannot be told it counts as so.
pub fn is_partial(context: &Context, uid: &str) -> bool {
    note(context, uid).try_exists().unwrap_or(true)
}

/// Notes that all of it is here, or that it starts anew.
pub fn end(context: &Context, uid: &str) -> Result<()> {
    let path = note(context, uid);
    let removed = || -> std::io::Result<()> {
        std::fs::remove_file(&path)?;
        std::fs::File::open(context.guests.directory(uid))?.sync_all()
    };
    removed().map_err(Error::io("remove", &path))
}

/// How much of a guest was there when it was decided where it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// All of it.
    Whole,
    /// A part, and the rest came after it; it runs.
    Late,
}

/// Waits until everything is here, which may be when the guest runs already. `announced`: what is to be done when it does.
///
/// Errors: it will never all be here. It may have run, and may be this machine's.
pub(super) async fn arrive(
    context: &Context,
    uid: &str,
    guest: &Arc<dyn Guest>,
    control: &mut Box<dyn node::Duplex>,
    announced: impl Future<Output = ()>,
) -> Result<Arrival> {
    let stopped = || Error::Invalid("this machine's agent ends".into());
    let Decided { paused } = tokio::select! {
        received = guest.received() => {
            received?;
            end(context, uid)?;
            return Ok(Arrival::Whole);
        }
        decided = wire::read::<Decided>(control) => decided.map_err(|_| given_up())?,
        () = context.stop.cancelled() => return Err(stopped()),
    };
    // The source has stopped it, and all that it wrote to its disks is here.
    guest.close_disks().await?;
    wire::write(control, &Answer::Awaits).await?;
    let run = async {
        guest.can_run().await?;
        if !paused && at_word(Seen::Receiving, true) == Act::Run {
            guest.resume().await?;
        }
        Ok::<_, Error>(())
    };
    until_gone(run, control).await?;
    wire::write(control, &Answer::Runs).await?;
    tracing::info!(uid, "a guest runs here, and the rest of its memory is to come");
    let rest = async {
        let ((), received) = tokio::join!(announced, guest.received());
        received.map_err(Error::from)
    };
    tokio::select! {
        rest = until_gone(rest, control) => rest?,
        () = context.stop.cancelled() => return Err(stopped()),
    }
    end(context, uid)?;
    if let Err(error) = wire::write(control, &Answer::Received).await {
        tracing::warn!(uid, error = %chain(&error), "the source does not hear that all of a guest is here");
    }
    Ok(Arrival::Late)
}

/// Does what needs the source, which says nothing meanwhile, unless it is gone before that.
async fn until_gone(work: impl Future<Output = Result<()>>, control: &mut Box<dyn node::Duplex>) -> Result<()> {
    let mut byte = [0];
    tokio::select! {
        biased;
        done = work => done,
        _ = control.read(&mut byte) => Err(given_up()),
    }
}

fn given_up() -> Error {
    Error::Invalid("the source gave it up".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_for_a_guest_waits_until_nobody_is_busy_with_it() {
        let all = Ongoing::default();
        all.until_over("a").await;
        let held = all.begin("a");
        assert!(all.has("a") && !all.has("b"));
        let ((), ()) = tokio::join!(all.until_over("a"), async { drop(held) });
        assert!(!all.has("a"));
    }

    #[test]
    fn an_attempt_that_ends_late_leaves_the_next_one_its_guest() {
        let all = Ongoing::default();
        let (old, new) = (all.begin("a"), all.begin("a"));
        drop(old);
        assert!(all.has("a"));
        drop(new);
        assert!(!all.has("a"));
    }
}
