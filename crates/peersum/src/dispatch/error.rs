//! Why a dispatch table cannot be used.

/// The schema of a table file.
pub(super) const SCHEMA: u32 = 1;

/// Why a dispatch table cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// The text is not a table of this schema.
    #[error("the dispatch table is not valid: {0}")]
    Parse(#[from] serde_json::Error),
    /// The file is larger than any table can be.
    #[error("the dispatch table has {0} bytes, more than the 4 MiB that are read")]
    TooLarge(usize),
    /// The file has another schema.
    #[error("the dispatch table has schema {found}, this version of peersum reads schema {SCHEMA}")]
    Schema {
        /// The file's schema.
        found: u32,
    },
    /// A row breaks a rule.
    #[error("the dispatch table for {table} is not valid: {reason}")]
    Row {
        /// Which table: architecture, world size, topology.
        table: String,
        /// The rule that is broken.
        reason: String,
    },
}
