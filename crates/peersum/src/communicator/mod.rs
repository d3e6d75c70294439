//! The communicator: one rank of a group, on one stream of one device.

mod abort;
mod agreement;
mod alone;
mod bare_launch;
mod builder;
mod call;
mod check;
mod collective_launch;
mod collectives;
mod connected;
mod fp8;
mod graph;
mod held;
mod latest_calls;
mod layout;
mod lent;
mod modules;
#[cfg(feature = "nccl")]
mod nccl_path;
mod norm_launch;
mod occupancy;
mod path;
mod prepared;
mod probe;
mod processes;
mod recording;
mod rms_norm;
mod row_shape;
mod setup;
mod shared;
mod sharing;
mod state;
mod step;
mod stream_claim;
mod symmetric;
mod symmetric_alloc;
mod teardown;

pub use abort::AbortHandle;
pub use builder::CommunicatorBuilder;
pub use fp8::{Fp8Output, Fp8PerToken, Fp8Static, HeldFp8Output};
pub use graph::{Capture, Graph};
pub use held::Held;
#[doc(hidden)]
pub use layout::{ArenaLayout, StartEpochs, control_bytes, initial_control};
pub use path::CallPath;
pub use rms_norm::RmsNorm;
pub use shared::SharedCommunicator;
pub use sharing::{SharedMemory, share};
pub use state::Communicator;
#[doc(hidden)]
pub use step::SetupStep;
pub use symmetric::SymmetricBuffer;
