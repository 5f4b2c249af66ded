//! Where drivers are found: one for each name, at any time. Who comes, who goes and who follows whom are decided here, each in one piece.
//! Knows no life cycle.
//!
//! A container may be made while one of its name is still cleared. It is told to that one's driver, which is all there is under the name,
//! and gets a driver of its own as that one leaves.

use std::collections::HashMap;
use std::sync::Arc;

use api::container::Container;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::Handle;
use crate::context::Key;

/// Drivers by the names of their containers.
pub type Places = Mutex<HashMap<Key, Arc<Handle>>>;

/// A place that was taken, and whose driver is to begin.
pub struct Taken {
    /// The name.
    pub key: Key,
    /// What was there when it was taken; newer ones come by `objects`.
    pub object: Arc<Container>,
    /// The driver from outside.
    pub handle: Arc<Handle>,
    /// The driver's end of it.
    pub objects: watch::Receiver<Option<Arc<Container>>>,
}

/// Tells the driver of a container of its newest object. When there is none, the place is taken for one.
pub fn arrive(places: &Places, id: &str, object: Arc<Container>, running: bool) -> Option<Taken> {
    let key = Key::of(&*object);
    let mut places = places.lock();
    // Told under the lock: a driver that leaves looks once more at what it was told.
    if let Some(handle) = places.get(&key) {
        handle.set_object(Some(object));
        return None;
    }
    let (handle, objects) = Handle::new(id.to_owned(), object.clone(), running);
    places.insert(key.clone(), handle.clone());
    Some(Taken { key, object, handle, objects })
}

/// Tells the driver of a container that its object is gone.
pub fn vanish(places: &Places, key: &Key) {
    let places = places.lock();
    if let Some(handle) = places.get(key) {
        handle.set_object(None);
    }
}

/// Takes away the driver of `object`. What was told to it of another container of the name, which came meanwhile, has the place then,
/// and whoever waits for a start.
pub fn leave(places: &Places, handle: &Arc<Handle>, object: &Container) -> Option<Taken> {
    let key = Key::of(object);
    let mut places = places.lock();
    if !places.get(&key).is_some_and(|there| Arc::ptr_eq(there, handle)) {
        return None;
    }
    places.remove(&key);
    let object = handle.object().filter(|newest| newest.metadata.uid != object.metadata.uid)?;
    let (next, objects) = Handle::new(handle.id.clone(), object.clone(), false);
    next.inherit(handle);
    places.insert(key.clone(), next.clone());
    Some(Taken { key, object, handle: next, objects })
}

#[cfg(test)]
mod tests {
    use api::container::ContainerSpec;

    use super::*;

    fn container(uid: &str) -> Arc<Container> {
        let mut object = Container::new("c", ContainerSpec::default());
        object.metadata.namespace = Some("n".into());
        object.metadata.uid = Some(uid.into());
        Arc::new(object)
    }

    fn there(places: &Places, taken: &Taken) -> bool {
        places.lock().get(&taken.key).is_some_and(|handle| Arc::ptr_eq(handle, &taken.handle))
    }

    #[test]
    fn one_of_the_same_name_follows_once_and_is_told_what_comes() {
        let places = Places::default();
        let first = arrive(&places, "id", container("1"), true).unwrap();
        assert!(first.handle.is_running() && there(&places, &first));
        assert!(arrive(&places, "id", container("2"), false).is_none(), "the name has a driver");
        let mut second = leave(&places, &first.handle, &first.object).unwrap();
        assert!(there(&places, &second) && !second.handle.is_running());
        assert_eq!(second.object.metadata.uid.as_deref(), Some("2"));
        assert!(!second.objects.has_changed().unwrap());
        assert!(leave(&places, &first.handle, &first.object).is_none() && there(&places, &second), "left twice");
        vanish(&places, &second.key);
        assert!(second.objects.borrow_and_update().is_none());
        assert!(leave(&places, &second.handle, &second.object).is_none());
        assert!(places.lock().is_empty());
    }

    #[test]
    fn nobody_follows_one_whose_object_is_its_own_or_gone() {
        for newest in [Some(container("1")), None] {
            let places = Places::default();
            let first = arrive(&places, "id", container("1"), false).unwrap();
            first.handle.set_object(newest);
            assert!(leave(&places, &first.handle, &first.object).is_none());
            assert!(places.lock().is_empty());
        }
    }

    #[test]
    fn a_name_never_has_two_drivers_nor_one_that_is_told_nothing() {
        for _ in 0..2_000 {
            let places = Places::default();
            let first = arrive(&places, "id", container("1"), false).unwrap();
            let (after_it, alone) = std::thread::scope(|scope| {
                let ends = scope.spawn(|| leave(&places, &first.handle, &first.object));
                let alone = arrive(&places, "id", container("2"), false);
                vanish(&places, &first.key);
                (ends.join().unwrap(), alone)
            });
            let mut begun: Vec<Taken> = after_it.into_iter().chain(alone).collect();
            assert!(begun.len() <= 1, "two drivers");
            match begun.pop() {
                Some(second) => {
                    assert!(there(&places, &second));
                    assert!(second.objects.borrow().is_none(), "it was not told that its object is gone");
                }
                // It was gone before the first one had left.
                None => assert!(places.lock().is_empty()),
            }
        }
    }
}
