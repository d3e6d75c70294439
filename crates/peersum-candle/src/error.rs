//! The errors that candle's own have no name for.

use peersum::nccl_shape::NcclError;

/// The operations' name in candle's errors.
pub(crate) const NAME: &str = "peersum-all-reduce";

/// What candle's own errors have no name for. It travels as the cause of
/// [`candle_core::Error::Cuda`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AllReduceError {
    /// The tensor is on the CPU.
    #[error(
        "{NAME}: the tensor is on the CPU, and only GPUs reduce; move it with `to_device`, and \
         leave the operation out if there is one rank"
    )]
    OnCpu,
    /// The tensor belongs to another stream than the communicator.
    #[error(
        "{NAME}: the tensor is on another stream than the communicator, so that nothing would \
         order the two; build the communicator on `device.as_cuda_device()?.cuda_stream()` of the \
         very device that the tensors are made on, or on a clone of it"
    )]
    OtherStream,
    /// The communicator's own error.
    #[error("{NAME}")]
    Communicator(#[from] NcclError),
}

impl From<AllReduceError> for candle_core::Error {
    fn from(error: AllReduceError) -> Self {
        candle_core::Error::Cuda(Box::new(error))
    }
}
