//! What a group may be called and what one message may hold.

/// The most ranks in a group: as many as the kernels serve.
pub const MAX_WORLD_SIZE: u32 = peersum_kernels::abi::PEERSUM_MAX_WORLD_SIZE;
/// The longest message of an exchange, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 16 << 10;
/// The longest label of an exchange, in bytes.
pub const MAX_LABEL_BYTES: usize = 256;

/// The longest name of a group, in bytes.
pub(super) const MAX_GROUP_BYTES: usize = 64;
/// The longest name of a launcher's run, in bytes.
pub(super) const MAX_RUN_BYTES: usize = 256;
/// The longest reason for a failure that one rank tells another, in bytes.
pub(super) const MAX_REASON_BYTES: usize = 4096;
/// The label of the step that forms the group.
pub(super) const JOIN: &str = "join";

pub(super) fn is_group_name(name: &str) -> bool {
    (1..=MAX_GROUP_BYTES).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// The longest beginning of `text` that has at most `bytes` bytes.
pub(super) fn truncated(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
