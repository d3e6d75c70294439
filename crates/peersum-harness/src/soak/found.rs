//! What a part of a soak has found.

#[derive(Default)]
pub(super) struct Found {
    pub(super) calls: u64,
    /// A line for each mismatch.
    pub(super) wrong: Vec<String>,
}
