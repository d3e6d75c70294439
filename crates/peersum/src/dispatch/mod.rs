//! Which algorithm, grid and block a call of so many bytes takes.
//!
//! The choice depends on nothing but the bytes, the [`Placement`], and a table that all ranks agree
//! on at set-up: never on alignment or capture. Whether a call is in place counts for symmetric
//! buffers alone: where the peers' memory is read directly, a call in place is a two-shot, which
//! writes into every rank's buffer, and any other is a one-shot. So either every rank uses a
//! symmetric buffer in place or none does; for ordinary input each rank may choose. The choice
//! never changes a result's bits.

mod error;
mod file;
mod limits;
mod norm;
mod origin;
mod plan;
mod table;

pub use error::TableError;
pub use file::DispatchTables;
pub(crate) use limits::CLUSTER_SIZES;
pub use limits::LaunchLimits;
pub use norm::{FusedShape, NormRow, NormRows};
pub use origin::{Measurement, Origin};
pub use plan::{Placement, Plan, Route, Topology};
pub use table::{DispatchTable, Row};
