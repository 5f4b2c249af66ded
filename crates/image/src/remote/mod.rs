//! Transfers by the OCI distribution protocol. What a registry sends is hostile until its digest is checked, and every
//! answer, wait and retry is bounded.
//! Source: OCI distribution specification 1.1; the distribution project's token authentication.

mod challenge;
pub(crate) mod connect;
mod look;
mod pace;
mod pull;
mod push;
mod session;

use std::sync::Arc;

use http::Method;

use crate::error::Result;
use crate::reference::Reference;
use crate::store::ImageStore;
use crate::types::{Credentials, Found, Progress, PullOptions, Pulled, Pushed, RemoteImage};
use session::{Session, Wanted};

impl ImageStore {
    /// Fetches an image from its registry, unpacks it, and gives it its name. Layers that are here are not fetched again,
    /// and each is fetched once however many pulls want it.
    ///
    /// Errors: `NotFound`, `Unauthorized`, `Unavailable` (after retries), `Corrupt`, `Hostile`. Nothing is visible then.
    pub async fn pull(
        self: &Arc<Self>,
        reference: &Reference,
        options: &PullOptions,
        progress: &Progress,
    ) -> Result<Pulled> {
        pull::pull(self, reference, options, progress).await
    }

    /// Sends an image to its registry. Layers that were made here are packed with gzip on the way; what they became is
    /// remembered.
    ///
    /// Errors: as [`ImageStore::pull`].
    pub async fn push(
        self: &Arc<Self>,
        reference: &Reference,
        credentials: Option<&Credentials>,
        progress: &Progress,
    ) -> Result<Pushed> {
        push::push(self, reference, credentials, progress).await
    }

    /// What a name stands for at its registry: digest, size, platforms. Nothing is stored.
    ///
    /// Errors: as [`ImageStore::pull`].
    pub async fn describe_remote(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<RemoteImage> {
        look::describe(self, reference, credentials).await
    }

    /// Repositories whose name holds the term, of the registries that this machine serves or is configured with.
    ///
    /// Errors: `Unavailable` when there is nothing to show because a registry could not be asked.
    pub async fn search(&self, term: &str, credentials: Option<&Credentials>) -> Result<Vec<Found>> {
        look::search(self, term, credentials).await
    }

    /// Checks credentials at a registry.
    ///
    /// Errors: `Unauthorized` when they are wrong.
    pub async fn login(&self, registry: &str, credentials: &Credentials) -> Result<()> {
        let session = Session::with_scope(&self.options, registry, Some(credentials), String::new()).await?;
        session.request(Method::GET, "/v2/", &Wanted::default()).await.map(drop)
    }
}
