//! The lock half: whose turn it is, and how to come to it. It knows no processes and no particular store.

mod acquire;
mod contender;
mod hold;
mod owner;
mod path;
mod queue;
mod store;

pub use acquire::{AcquireError, Happening, Limit, Patience, Reports, acquire};
pub use contender::{Claim, Contender, FencingToken, Identifier, Kind, Lifetime, Mode, NodeName, Place, Sequence};
pub use hold::hold;
pub use owner::{Mark, Owner, Ownership, Testimony, Verdict, id_of, verdict};
pub use path::{AbsolutePath, LockPath, NodePath, PathError, SIDE_TREE};
pub use queue::{Queue, Standing};
pub use store::{Doubt, Entry, Expected, Loss, Reading, Removal, Store, StoreError};
