//! The hardware queues of a GPU, which its streams share.

/// The variable that sets the number of hardware queues of a context. The driver reads it when it
/// creates the first context.
pub(crate) const CONNECTIONS_VARIABLE: &str = "CUDA_DEVICE_MAX_CONNECTIONS";

/// Asks the driver for enough hardware queues for ranks that share a GPU. Call it before the first
/// thread and the first context exist.
pub(crate) fn give_each_stream_a_queue() {
    if std::env::var_os(CONNECTIONS_VARIABLE).is_none() {
        // SAFETY: this program has one thread so far.
        unsafe { std::env::set_var(CONNECTIONS_VARIABLE, "32") };
    }
}
