//! Transfers by the OCI distribution protocol.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::reference::Reference;
use crate::store::ImageStore;
use crate::types::{Credentials, Progress, PullOptions, Pulled, Pushed};

#[allow(clippy::unused_async)]
impl ImageStore {
    /// Fetches an image from its registry.
    pub async fn pull(self: &Arc<Self>, _: &Reference, _: &PullOptions, _: &Progress) -> Result<Pulled> {
        Err(Error::NotSupported("pulling is not ready yet".to_owned()))
    }

    /// Sends an image to its registry.
    pub async fn push(self: &Arc<Self>, _: &Reference, _: Option<&Credentials>, _: &Progress) -> Result<Pushed> {
        Err(Error::NotSupported("pushing is not ready yet".to_owned()))
    }

    /// Checks credentials at a registry.
    pub async fn login(&self, _: &str, _: &Credentials) -> Result<()> {
        Err(Error::NotSupported("logging in is not ready yet".to_owned()))
    }
}
