//! How the rest of the agent talks to a container's driver: the newest object goes in, clients that wait for the start
//! are kept until there is something to attach to.

use std::sync::Arc;

use api::container::Container;
use node::{AttachOptions, Session};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::attach;
use crate::context::Context;

/// Clients that may wait for one start.
const WAITING_LIMIT: usize = 64;

/// A driver from outside.
pub struct Handle {
    /// Runtime id.
    pub id: String,
    object: watch::Sender<Option<Arc<Container>>>,
    attachable: Mutex<Attachable>,
    reason: Mutex<String>,
}

#[derive(Default)]
struct Attachable {
    now: bool,
    waiting: Vec<(AttachOptions, oneshot::Sender<node::Result<Session>>)>,
}

impl Handle {
    /// A handle, and the driver's end of it.
    pub fn new(
        id: String,
        object: Arc<Container>,
        running: bool,
    ) -> (Arc<Self>, watch::Receiver<Option<Arc<Container>>>) {
        let (sender, receiver) = watch::channel(Some(object));
        let attachable = Mutex::new(Attachable { now: running, waiting: Vec::new() });
        (Arc::new(Self { id, object: sender, attachable, reason: Mutex::default() }), receiver)
    }

    /// Gives the driver the newest object; `None` when it is gone.
    pub fn set_object(&self, object: Option<Arc<Container>>) {
        self.object.send_replace(object);
    }

    /// Has the driver look once more whether all is as its object says.
    pub fn look_again(&self) {
        self.object.send_modify(|_| {});
    }

    /// The newest object.
    pub fn object(&self) -> Option<Arc<Container>> {
        self.object.borrow().clone()
    }

    /// Leaves word why the machine is about to end the container.
    pub fn give_reason(&self, text: String) {
        *self.reason.lock() = text;
    }

    /// Takes the word that was left; empty when there is none.
    pub fn take_reason(&self) -> String {
        std::mem::take(&mut *self.reason.lock())
    }

    /// Whether there is a process to talk to.
    pub fn is_running(&self) -> bool {
        self.attachable.lock().now
    }

    /// Attaches now, or leaves a session that comes alive with the start.
    pub async fn attach(&self, context: &Context, options: AttachOptions) -> node::Result<Session> {
        {
            let mut attachable = self.attachable.lock();
            if !attachable.now {
                if !options.wait_for_start {
                    return Err(node::Error::Conflict(
                        "You cannot attach to a stopped container, start it first".to_owned(),
                    ));
                }
                attachable.waiting.retain(|(_, sender)| !sender.is_closed());
                if attachable.waiting.len() >= WAITING_LIMIT {
                    return Err(node::Error::Unavailable(
                        "too many clients wait for this container's start".to_owned(),
                    ));
                }
                let (session, connector) = attach::waiting(&options);
                attachable.waiting.push((options, connector));
                return Ok(session);
            }
        }
        Ok(context.runtime.attach(&self.id, options).await?)
    }

    /// Takes over who waits for the start of another one of this name: they asked by the name, maybe for this one.
    pub fn inherit(&self, before: &Handle) {
        let waiting = std::mem::take(&mut before.attachable.lock().waiting);
        self.attachable.lock().waiting.extend(waiting);
    }

    /// Connects everybody who waits: between creation and start, so that nothing is missed.
    pub async fn connect_waiting(&self, context: &Context, id: &str) {
        let waiting = {
            let mut attachable = self.attachable.lock();
            attachable.now = true;
            std::mem::take(&mut attachable.waiting)
        };
        for (options, connector) in waiting {
            let session = context.runtime.attach(id, options).await.map_err(Into::into);
            let _ = connector.send(session);
        }
    }

    /// There is nothing to attach to any more. After a failed start those who wait are let go.
    pub fn disconnect(&self, let_go: bool) {
        let mut attachable = self.attachable.lock();
        attachable.now = false;
        if let_go {
            attachable.waiting.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use api::container::ContainerSpec;

    use super::*;

    #[test]
    fn who_waits_for_a_start_is_handed_on() {
        let object = Arc::new(Container::new("c", ContainerSpec::default()));
        let [first, second] = [(); 2].map(|()| Handle::new("id".into(), object.clone(), false).0);
        let (connector, mut connected) = oneshot::channel();
        first.attachable.lock().waiting.push((AttachOptions::default(), connector));
        second.inherit(&first);
        drop(first);
        assert!(matches!(connected.try_recv(), Err(oneshot::error::TryRecvError::Empty)), "let go");
        assert_eq!(second.attachable.lock().waiting.len(), 1);
    }
}
