//! Work within a time. What is late cannot always be ended, since threads that wait for a file system cannot: it is told that it was given
//! up, and what it still made is cleared when it has ended. Until then nothing else is begun. Knows no containers.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The work that was given up last and may go on.
#[derive(Default)]
pub struct Late(Option<JoinHandle<()>>);

impl Late {
    /// Does some work, which is told when it was given up; `None` when it is not done in time. What is late is cleared.
    pub async fn within<T, W, C>(
        &mut self,
        limit: Duration,
        work: impl FnOnce(CancellationToken) -> W,
        clear: impl FnOnce() -> C + Send + 'static,
    ) -> Option<T>
    where
        T: Send + 'static,
        W: Future<Output = T> + Send + 'static,
        C: Future<Output = ()> + Send + 'static,
    {
        let deadline = tokio::time::Instant::now() + limit;
        if let Some(before) = &mut self.0 {
            let _ = tokio::time::timeout_at(deadline, before).await.ok()?;
            self.0 = None;
        }
        let given_up = CancellationToken::new();
        let mut work = tokio::spawn(work(given_up.clone()));
        match tokio::time::timeout_at(deadline, &mut work).await {
            // It does not end otherwise but by a defect, or with the daemon.
            Ok(ended) => ended.ok(),
            Err(_) => {
                given_up.cancel();
                self.0 = Some(tokio::spawn(async move {
                    let _ = work.await;
                    clear().await;
                }));
                None
            }
        }
    }

    /// Waits until what is late has ended and was cleared, however long that takes, and clears it once more, and more of it.
    pub async fn ended<C: Future<Output = ()>>(self, clear: impl FnOnce() -> C) {
        if let Some(before) = self.0 {
            let _ = before.await;
            clear().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tokio::sync::oneshot;

    use super::*;

    const SHORT: Duration = Duration::from_millis(10);
    /// Longer than anything here takes.
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn what_is_late_is_cleared_when_it_ends_and_before_anything_else_begins() {
        let (mut late, told) = (Late::default(), Arc::new(Mutex::new(Vec::new())));
        let note = |what: &'static str| {
            let told = told.clone();
            move || async move { told.lock().push(what) }
        };
        let (open, opened) = oneshot::channel::<()>();
        let stuck = note("late work ended");
        let work = |given_up: CancellationToken| async move {
            let _ = opened.await;
            assert!(given_up.is_cancelled());
            stuck().await;
        };
        assert!(late.within(SHORT, work, note("cleared")).await.is_none());
        let second = note("begun too early");
        assert!(late.within(SHORT, |_| second(), note("cleared twice")).await.is_none());
        assert!(told.lock().is_empty());
        open.send(()).unwrap();
        let third = note("third");
        assert!(late.within(LONG, |_| third(), note("cleared twice")).await.is_some());
        assert_eq!(*told.lock(), ["late work ended", "cleared", "third"]);
    }

    #[tokio::test]
    async fn who_leaves_waits_for_what_is_late() {
        let (mut late, told) = (Late::default(), Mutex::new(Vec::new()));
        let (open, opened) = oneshot::channel::<()>();
        assert!(late.within(SHORT, |_| opened, || async {}).await.is_none());
        let mut ended = Box::pin(late.ended(|| async { told.lock().push("cleared") }));
        assert!(tokio::time::timeout(SHORT, &mut ended).await.is_err());
        assert!(told.lock().is_empty());
        open.send(()).unwrap();
        tokio::time::timeout(LONG, ended).await.unwrap();
        Late::default().ended(|| async { told.lock().push("what was not late") }).await;
        assert_eq!(*told.lock(), ["cleared"]);
    }
}
