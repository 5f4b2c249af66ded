//! Sessions to a container that has not started yet: they exist at once and come alive with the start.

use futures::FutureExt;
use futures::stream::{self, StreamExt};
use node::{AttachOptions, Error, ExitStatus, Result, Session};
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot};

/// Input that is taken before the start. Units: bytes.
const EARLY_INPUT: usize = 64 << 10;
/// Changes of size that are taken before the start.
const EARLY_SIZES: usize = 8;

/// A session, and where to send the real one. Dropping the sender ends the session.
pub fn waiting(options: &AttachOptions) -> (Session, oneshot::Sender<Result<Session>>) {
    let (connector, connected) = oneshot::channel::<Result<Session>>();
    let (output_sender, output) = oneshot::channel();
    let (exit_sender, exit) = oneshot::channel();
    let (resize, mut sizes) = mpsc::channel(EARLY_SIZES);
    let (near, far) = if options.stdin { Some(tokio::io::duplex(EARLY_INPUT)).unzip() } else { (None, None) };
    tokio::spawn(async move {
        let session = match connected.await {
            Ok(Ok(session)) => session,
            Ok(Err(error)) => {
                let _ = exit_sender.send(async move { Err(error) }.boxed());
                return;
            }
            Err(_) => return,
        };
        let Session { stdin, output, resize, exit, .. } = session;
        let _ = output_sender.send(output);
        let _ = exit_sender.send(exit);
        let input = async {
            if let (Some(mut far), Some(mut stdin)) = (far, stdin) {
                let _ = tokio::io::copy(&mut far, &mut stdin).await;
                let _ = stdin.shutdown().await;
            }
        };
        let sizes = async {
            while let Some(size) = sizes.recv().await {
                if resize.send(size).await.is_err() {
                    break;
                }
            }
        };
        tokio::join!(input, sizes);
    });
    let output = output.map(|o| o.unwrap_or_else(|_| stream::empty().boxed())).flatten_stream().boxed();
    let exit = async move {
        match exit.await {
            Ok(exit) => exit.await,
            Err(_) => Err::<ExitStatus, _>(Error::Conflict("the container was not started".to_owned())),
        }
    };
    let stdin = near.map(|n| Box::pin(n) as _);
    (Session { stdin, output, resize, exit: exit.boxed(), pid: 0 }, connector)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use node::{Output, OutputStream};

    #[tokio::test]
    async fn a_waiting_session_carries_everything_once_it_is_connected() {
        let options = AttachOptions { stdin: true, wait_for_start: true, ..AttachOptions::default() };
        let (mut session, connector) = waiting(&options);
        let mut stdin = session.stdin.take().unwrap();
        stdin.write_all(b"early").await.unwrap();
        stdin.shutdown().await.unwrap();
        drop(stdin);
        let (inside, mut outside) = tokio::io::duplex(100);
        let output = Output { stream: OutputStream::Stdout, data: Bytes::from_static(b"hello") };
        let real = Session {
            stdin: Some(Box::pin(inside)),
            output: stream::iter([output.clone()]).boxed(),
            resize: mpsc::channel(1).0,
            exit: async { Ok(ExitStatus { code: 7, out_of_memory: false }) }.boxed(),
            pid: 1,
        };
        assert!(connector.send(Ok(real)).is_ok());
        assert_eq!(session.output.next().await, Some(output));
        assert_eq!(session.exit.await.unwrap().code, 7);
        let mut text = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut outside, &mut text).await.unwrap();
        assert_eq!(text, "early");
    }

    #[tokio::test]
    async fn a_start_that_fails_ends_the_waiting_session() {
        let (mut session, connector) = waiting(&AttachOptions::default());
        drop(connector);
        assert!(session.output.next().await.is_none());
        assert!(session.exit.await.is_err());
    }
}
