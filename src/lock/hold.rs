//! Holding a lock while something is done.

use std::future::Future;
use std::pin::pin;

use super::path::NodePath;
use super::store::{Expected, Removal, Store, StoreError};
use crate::planted::{Mistake, planted};

/// Does some work under a contender of ours whose turn it is, and takes it out of the queue when the work is done, whatever
/// came of it: never before, or somebody else would start while this one still runs.
///
/// # Cancellation
/// Must not be dropped before it is ready: the work is to be looked after, and the contender to be taken out.
pub async fn hold<S: Store, T>(store: &S, node: &NodePath, work: impl Future<Output = T>) -> (T, Result<Removal, StoreError>) {
    let work = pin!(work);
    let leave = async || store.leave(&node.lock, &node.name, Expected::Anything).await;
    if planted(Mistake::ReleasesBeforeTheEnd) {
        return tokio::join!(work, leave());
    }
    (work.await, leave().await)
}
