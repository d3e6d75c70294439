//! A low-latency all-reduce for the GPUs of one machine, with kernels compiled ahead of time.

pub mod buffer;
mod communicator;
pub mod cuda;
pub mod device;
pub mod dispatch;
mod element;
mod error;
pub mod loader;
pub mod reference;
pub mod rendezvous;

pub use buffer::{Input, Output};
pub use communicator::{
    AbortHandle, Capture, Communicator, CommunicatorBuilder, Graph, Held, SharedCommunicator,
    SymmetricBuffer,
};
pub use cuda::Cuda;
pub use cudarc;
pub use element::Element;
pub use error::{CallKind, CallSignature, Error, Failure};
pub use rendezvous::Rendezvous;
