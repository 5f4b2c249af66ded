//! Tests that need root: unpacking, mounting, building. Each works in a directory of its own and leaves nothing behind.

#[path = "cases/build.rs"]
mod build;
#[path = "cases/helpers.rs"]
mod helpers;
#[path = "cases/hostile.rs"]
mod hostile;
#[path = "cases/push.rs"]
mod push;
#[path = "cases/remote.rs"]
mod remote;
#[path = "cases/store.rs"]
mod store;
