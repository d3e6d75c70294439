//! Hardware queues, through which the driver sends streams to a GPU.

/// The variable that says how many hardware queues a context has. The driver reads it when it makes
/// the first context.
pub(crate) const CONNECTIONS_VARIABLE: &str = "CUDA_DEVICE_MAX_CONNECTIONS";

/// Asks the driver for a hardware queue for each stream, which ranks that share a GPU need. Call it
/// before the first thread and the first context.
pub(crate) fn give_each_stream_a_queue() {
    if std::env::var_os(CONNECTIONS_VARIABLE).is_none() {
        // SAFETY: this program has one thread so far.
        unsafe { std::env::set_var(CONNECTIONS_VARIABLE, "32") };
    }
}
