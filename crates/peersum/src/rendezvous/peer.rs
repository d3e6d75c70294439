//! Who the ranks are.

use crate::process_id::ProcessId;
use serde::{Deserialize, Serialize};

/// A member of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Peer {
    /// Its rank.
    pub rank: u32,
    /// The process it lives in. Ranks that are threads of one process share it.
    pub process: ProcessId,
}
