//! The lock half: whose turn it is, and how to come to it. It knows no processes and no particular store.

mod acquire;
mod contender;
mod hold;
mod path;
mod queue;
mod store;

pub use acquire::{AcquireError, Happening, Limit, Patience, Reports, acquire};
pub use contender::{Claim, Contender, FencingToken, Identifier, Kind, Lifetime, Mode, NodeName, Place, Sequence};
pub use hold::hold;
pub use path::{AbsolutePath, LockPath, NodePath, PathError};
pub use queue::{Queue, Standing};
pub use store::{Doubt, Entry, Expected, Loss, Reading, Removal, Store, StoreError};
