//! Ending work on a thread of its own when nobody waits for it any more.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

use crate::error::{Error, into_io};

/// A reader that fails from the drop of its guard on.
pub(crate) struct Cancellable<R> {
    reader: R,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// Makes a reader that fails, also while it waits, once the guard is dropped. The guard belongs to the future that waits for the work: a
/// blocking task cannot be ended from outside, but by what it reads.
pub(crate) fn cancellable<R>(reader: R) -> (Cancellable<R>, DropGuard) {
    let token = CancellationToken::new();
    (Cancellable { reader, cancelled: Box::pin(token.clone().cancelled_owned()) }, token.drop_guard())
}

impl<R: AsyncRead + Unpin> AsyncRead for Cancellable<R> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.cancelled.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(into_io(Error::Internal("nobody waits for this any more".to_owned()))));
        }
        Pin::new(&mut this.reader).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::io::SyncIoBridge;

    use super::*;

    #[tokio::test]
    async fn blocking_work_ends_with_an_error_when_nobody_waits_for_it() {
        async fn ends(reader: impl AsyncRead + Unpin + Send + 'static) {
            let (reader, guard) = cancellable(reader);
            let mut reader = SyncIoBridge::new(reader);
            let work = tokio::task::spawn_blocking(move || io::copy(&mut reader, &mut io::sink()));
            drop(guard);
            assert!(work.await.unwrap().is_err());
        }
        ends(tokio::io::repeat(7)).await;
        let (_silent, reader) = tokio::io::duplex(8);
        ends(reader).await;
    }
}
