//! What shared libraries that are opened at run time have in common.

/// The reason that the system's loader gave, which is the cause of libloading's error.
pub(crate) fn loader_reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}
