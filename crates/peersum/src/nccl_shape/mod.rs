//! A communicator with the signatures of `cudarc::nccl`, for engines that call that one today.
//!
//! A move is a change of one `use`:
//!
//! ```
//! # mod before {
//! # /* cudarc's feature `nccl` is not on here:
//! use cudarc::nccl::{Comm, Id, ReduceOp};
//! # */
//! # }
//! use peersum::nccl_shape::{Comm, Id, ReduceOp};
//! ```
//!
//! What follows works with both:
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use peersum::cudarc::driver::CudaSlice;
//! # use peersum::nccl_shape::{Comm, Id, ReduceOp};
//! # fn send_to_the_other_ranks(bytes: &[core::ffi::c_char; 128]) {}
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (rank, world_size) = (0, 2);
//! let id = Id::new().map_err(|error| format!("{error:?}"))?;
//! send_to_the_other_ranks(id.internal()); // who make it an id again with `Id::uninit`
//! let stream = peersum::open_context(rank as u32)?.new_stream()?;
//! let comm = Comm::from_rank(stream.clone(), rank, world_size, id);
//! let comm = Arc::new(comm.map_err(|error| format!("{error:?}"))?);
//! let mut hidden: CudaSlice<f32> = stream.alloc_zeros(8192)?;
//! comm.all_reduce_in_place(&mut hidden, &ReduceOp::Sum)
//!     .map_err(|error| format!("{error:?}"))?;
//! # Ok(())
//! # }
//! ```
//!
//! # What is the same
//!
//! [`Id`] (128 bytes that the engine passes on as it likes), [`Comm::from_rank`],
//! [`Comm::all_reduce`], [`Comm::all_reduce_in_place`], [`Comm::all_gather`],
//! [`Comm::reduce_scatter`], [`Comm::broadcast`], [`Comm::broadcast_in_place`], [`Comm::rank`],
//! [`Comm::world_size`], [`Comm::stream`], [`Comm::context`], [`Comm::ordinal`], [`ReduceOp`],
//! [`NcclType`], [`NcclStatus`] and [`NcclError`]. Calls take `&self`, so that a `Comm` works in an
//! `Rc`, an `Arc`, a static.
//!
//! The number of elements of a call comes from the buffer from which `cudarc::nccl` takes it:
//! `sendbuff` of an all-reduce and an all-gather, `recvbuff` of a reduce-scatter and a broadcast.
//! The other buffer may be longer than that requires. If it is shorter, the call is an error, which
//! cudarc and NCCL do not check.
//!
//! # What differs
//!
//! - Results are peersum's, to the bit ([`mod@crate::reference`]), and so are failures: every wait
//!   has a deadline. After a failure outputs hold NaN, or bytes of `0xFF` where nothing is summed,
//!   and every later call returns the reason. An engine should call [`Comm::synchronize`] once a
//!   step, where it reads its logits: `Ok` from a call means launched, as it does with NCCL.
//! - Only [`ReduceOp::Sum`]; another operation is [`NcclError::Operation`].
//! - Only f16, bf16 and f32 are summed. An all-gather and a broadcast also take u8, i8, u32, i32,
//!   u64 and i64; `f64` and `char`, which cudarc takes, do not work here. [`NcclType`] stands for
//!   the three summed types, so a function with the bound `T: NcclType` may make every call. A
//!   function that is to move integers too, and sums nothing, takes [`Scalar`](crate::Scalar) for
//!   its bound.
//! - A root that is no rank is [`NcclError::Root`], and a root without a `sendbuff` is
//!   [`NcclError::NoSendbuff`]. Nothing panics.
//! - The ranks are on one machine and of one user. They meet over a Unix socket in the directory of
//!   [`Rendezvous::from_env`](crate::Rendezvous::from_env) (`PEERSUM_RENDEZVOUS_DIR`); the id holds
//!   the name of their group.
//! - Each rank calls [`Comm::from_rank`] from a process or a thread of its own.
//!   `Comm::from_devices` and `group_start`, with which NCCL makes several ranks in one thread, do
//!   not exist here; neither do `send`, `recv` and `reduce`: an engine that uses them keeps an NCCL
//!   communicator for them.
//! - [`Comm::from_rank`] uses the default settings of
//!   [`Communicator::builder`](crate::Communicator::builder). For others, build a
//!   [`Communicator`](crate::Communicator) and turn it into a `Comm` with `Comm::from`.
//! - CUDA's default streams (candle's `Device::new_cuda` has the per-thread one) cannot carry a
//!   communicator. For them `from_rank` makes a stream of its own, and orders each call with
//!   events: first everything that the default stream holds, then the call, then the default stream
//!   goes on. That costs some microseconds a call; `context.new_stream()`, or candle's
//!   `Device::new_cuda_with_stream`, saves them. Ranks that share a GPU within one process need
//!   streams of their own: on the legacy default stream they would wait for each other until the
//!   timeout.

mod comm;
mod id;
mod operation;
pub mod result;

pub use crate::element::Element as NcclType;
pub use comm::Comm;
pub use id::Id;
pub use operation::ReduceOp;
pub use result::{NcclError, NcclStatus};
