//! Gives the rest of a guest to a target that runs it already, as by post-copy. See [`super::post_copy`].

use std::sync::Arc;
use std::time::Duration;

use api::VirtualMachine;
use api::migration::MigrationPhase;
use api::virtual_machine::MachineDesired;
use hypervisor::{Guest, Progress, Sent};
use kube::ResourceExt;
use serde_json::json;
use tokio::io::WriteHalf;
use tokio::sync::watch;

use super::handover::look;
use super::source::{Drive, status_of};
use super::wire::{self, Answer, Answers, Decided, expect};
use crate::context::Key;
use crate::error::{Error, Result, chain};

/// How long the target may take to close the disks of a guest that is decided for it, before it runs there in part. One that is gone is heard
/// of sooner, and what is only slow must not cost the guest its memory.
const AWAITS_TIMEOUT: Duration = Duration::from_secs(300);

/// How it ended when the store had decided for the target.
pub(super) enum Over {
    /// The guest is there.
    Moved,
    /// By post-copy: a part of its memory was missing there, and cannot come any more.
    Lost(Error),
}

/// What the rest of a guest is given with.
pub(super) struct Rest<'a> {
    pub(super) guest: &'a Arc<dyn Guest>,
    pub(super) progress: &'a watch::Sender<Progress>,
    pub(super) seen: watch::Receiver<Progress>,
    pub(super) saying: &'a mut WriteHalf<Box<dyn node::Duplex>>,
    pub(super) answers: &'a mut Answers,
}

/// Why a target that was to wait for the decision will not run the guest.
fn ended(answer: Result<Answer>) -> Error {
    // Nothing is to be said before the decision.
    match answer.and_then(|answer| expect(answer, &Answer::Awaits)) {
        Err(error) => error,
        Ok(()) => Error::Invalid("the other machine does not wait for the decision".into()),
    }
}

impl Drive {
    /// Decides for the target, which has the guest's disks and a part of its memory, and gives it the rest.
    ///
    /// Errors: as of [`Self::decide`]; or the target has ended before the store had decided.
    pub(super) async fn give(&self, key: &Key, rest: Rest<'_>) -> Result<Over> {
        // Whatever the store says meanwhile, nobody ends the guest here.
        let uid = self.context.guests.uid(key).unwrap_or_default();
        let _giving = self.context.giving.begin(&uid);
        let machine = look(&self.context, key).await.ok().flatten();
        let status = status_of(*rest.progress.borrow());
        // A target that has ended could not run it. Whether a write that is given up is made nobody knows, as after any error: who had it
        // made asks the store, and takes the guest back or not.
        let decided = tokio::select! {
            biased;
            decided = self.decide(key, machine, Sent::Part, status) => decided?,
            answer = rest.answers.next() => return Err(ended(answer)),
        };
        let given = match decided {
            Some(moved) => self.give_rest(&moved, rest).await,
            // Only who knows of the decision may say so.
            None => Err(Error::Timeout("the answer of the store, which decided")),
        };
        Ok(given.map_or_else(Over::Lost, |()| Over::Moved))
    }

    /// From the first word on the guest is the target's alone.
    async fn give_rest(&self, moved: &VirtualMachine, rest: Rest<'_>) -> Result<()> {
        let Rest { guest, progress, seen, saying, answers } = rest;
        wire::write(saying, &Decided { paused: moved.spec.desired == MachineDesired::Paused }).await?;
        let awaits = tokio::time::timeout(AWAITS_TIMEOUT, answers.next()).await;
        expect(
            awaits.map_err(|_| Error::Timeout("the other machine's word that it awaits the rest"))??,
            &Answer::Awaits,
        )?;
        let since = progress.borrow().stands_still_since;
        let heard = async {
            expect(answers.next().await?, &Answer::Runs)?;
            let stood_still = since.map_or(Duration::ZERO, |since| since.elapsed());
            expect(answers.next().await?, &Answer::Received).map(|()| stood_still)
        };
        let sent = async { guest.send_rest(progress).await.map_err(Error::from) };
        let told = async {
            for from in [MigrationPhase::Copying, MigrationPhase::Handover] {
                if let Err(error) = self.advance(from, json!({"phase": MigrationPhase::PostCopy})).await {
                    tracing::debug!(migration = self.object.name_any(), error = %chain(&error), "cannot tell of post-copy");
                }
            }
            self.tell(seen).await;
        };
        let stood_still = tokio::select! {
            done = async { tokio::try_join!(sent, heard) } => done?.1,
            () = told => return Err(Error::Timeout("the rest of a guest")),
        };
        let status = status_of(*progress.borrow());
        let downtime_ms = i64::try_from(stood_still.as_millis()).unwrap_or(i64::MAX);
        tracing::info!(vm = moved.name_any(), stood_still = ?stood_still, "a guest has moved by post-copy");
        self.report(json!({"memory": status.memory, "disk": status.disk, "downtimeMs": downtime_ms})).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_speaks_before_the_decision_says_why_it_has_ended() {
        let refused = chain(&ended(Ok(Answer::Refused("no memory".into()))));
        assert!(refused.contains("no memory"), "{refused}");
        let gone = chain(&ended(Err(Error::Invalid("the other machine is gone".into()))));
        assert!(gone.contains("is gone"), "{gone}");
        assert!(matches!(ended(Ok(Answer::Awaits)), Error::Invalid(_)));
    }
}
