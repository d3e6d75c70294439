//! A low-latency all-reduce for the GPUs of one machine, with kernels compiled ahead of time; and
//! all-gather, reduce-scatter and broadcast.
//!
//! It is for programs that split a model over 2 to 8 GPUs of one machine and sum activations after
//! each layer, a few kilobytes to a few megabytes at a time. A call is one kernel launch: GPUs
//! write to and read from each other's memory directly. The CUDA kernels come as cubins, compiled
//! when the program was packaged, so that neither a CUDA toolkit nor a compile at start-up is
//! needed. If a cubin is missing, NVRTC compiles it once.
//!
//! # Example
//!
//! Each rank is a process, started by torchrun, mpirun, srun, or a shell loop that sets `RANK` and
//! `WORLD_SIZE`:
//!
//! ```no_run
//! use half::bf16;
//! use peersum::{Communicator, Rendezvous};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let rendezvous = Rendezvous::from_env()?;
//! // The GPU of this rank, or an error that says what is missing.
//! let stream = peersum::open_context(rendezvous.local_rank())?.new_stream()?;
//! let mut communicator = Communicator::builder().rendezvous(rendezvous).build(&stream)?;
//!
//! let mut hidden = stream.clone_htod(&vec![bf16::ONE; 8192])?;
//! communicator.all_reduce_in_place(&mut hidden)?;
//! // `Ok` above means launched. This is the only proof that the sums are valid.
//! communicator.synchronize()?;
//! # Ok(())
//! # }
//! ```
//!
//! Ranks can also be threads of one process ([`Rendezvous::threads`]). Calls can be captured into a
//! CUDA graph ([`Communicator::capture`]). Buffers of [`Communicator::symmetric_alloc`] are read by
//! the peers without a staged copy. [`Communicator::into_shared`] gives a handle for several
//! threads. `examples/` has programs with ranks as processes, with ranks as threads, with a graph,
//! with RMSNorm and with the other calls.
//!
//! # Numbers
//!
//! Every element is `round(((x[0] + x[1]) + x[2]) + ... + x[W-1])` in rank order: float32
//! accumulation and one rounding to nearest even. All ranks get the same bits, whatever the
//! algorithm, the alignment, in place or not, eager or in a graph, and these are the bits of
//! [`mod@reference`], a plain Rust function. Signed zeros, infinities and subnormals come out as
//! that expression says; every NaN is the canonical one (`0x7FFF` for f16 and bf16, `0x7FFF_FFFF`
//! for f32). So which kernel a call takes never changes a result. A group of one copies its input.
//!
//! [`Communicator::all_reduce_add_rms_norm`] and its three neighbours also add a residual and
//! normalise each row ([`RmsNorm`]), with the bits of [`reference::add_residual`] and
//! [`reference::rms_norm`]. A row's bits do not depend on the other rows. Two more also write FP8
//! of the rows ([`Fp8Static`], [`Fp8PerToken`]).
//!
//! # All-gather, reduce-scatter, broadcast
//!
//! ```no_run
//! use half::bf16;
//! use peersum::cudarc::driver::CudaSlice;
//! use peersum::{Communicator, Cuda, Error};
//!
//! /// Behind a layer whose rows are divided among the ranks: each rank gets its rows of the sum.
//! fn own_rows(
//!     communicator: &mut Communicator<Cuda>,
//!     partial: &CudaSlice<bf16>,
//!     rows: &mut CudaSlice<bf16>,
//! ) -> Result<(), Error> {
//!     communicator.reduce_scatter(partial, rows)
//! }
//!
//! /// At the end of a step: rank 0 samples from the logits of all ranks, and all get its tokens.
//! fn next_tokens(
//!     communicator: &mut Communicator<Cuda>,
//!     part: &CudaSlice<bf16>,
//!     logits: &mut CudaSlice<bf16>,
//!     tokens: &mut CudaSlice<u32>,
//! ) -> Result<(), Error> {
//!     communicator.all_gather(part, logits)?;
//!     // ... rank 0 enqueues its sampler, which reads `logits` and writes `tokens` ...
//!     communicator.broadcast(tokens, 0)
//! }
//! ```
//!
//! [`Communicator::reduce_scatter`] has the bits of an all-reduce. [`Communicator::all_gather`] and
//! [`Communicator::broadcast`] take every [`Scalar`] type, and every bit arrives as it was sent,
//! NaN included. The first two also work in place. These calls use a symmetric buffer as any other
//! memory. They never go to NCCL: if a call is larger than the ranks' slots, it goes in pieces, and
//! in a group across hosts it is [`Error::NoKernels`].
//!
//! # Failures
//!
//! Every wait of peersum has a deadline; only calls that go to NCCL (the feature `nccl`) wait
//! without one. If a rank waits for a peer longer than [`CommunicatorBuilder::timeout`], it gives
//! up, and so do all others; an [`AbortHandle`] ends the waits of its rank at once. Outputs that
//! were not reduced are filled with NaN (a residual may also be untouched or updated), and those of
//! an all-gather or a broadcast with bytes of `0xFF`. The CUDA context survives, and
//! [`Communicator::synchronize`] returns the reason:
//!
//! - [`Failure::PeerTimeout`] names who waited for whom, in which algorithm, call and block, and
//!   whose process has ended or is stopped;
//! - [`Failure::Disagreement`], on every rank, if ranks call with different operations, sizes,
//!   types, roots or algorithms: it has both sides' values;
//! - [`Failure::Aborted`] on the rank that was aborted; [`Failure::PeerFailed`] names the rank that
//!   failed first to those who were told, and whom they waited for themselves.
//!
//! A communicator that failed returns the same reason from each later call and moves no data. It
//! cannot be repaired: drop it and build a new one. The ranks' headers cannot show one mistake: if
//! a rank skips a call and the calls around it have the same operation, size, type, root and
//! algorithm, data of two different calls is mixed.
//!
//! Set-up compares versions, kernel sources, dispatch tables and sizes; if ranks differ, every rank
//! gets an error with both values.
//!
//! # Memory
//!
//! A rank of a group of two or more holds `22016 + 2 x push half + 2 x max_bytes` bytes of device
//! memory, and its symmetric buffers. The push half counts as
//! [`CommunicatorBuilder::push_half_bytes`] rounds it, and
//! [`max_bytes`](CommunicatorBuilder::max_bytes) rounded up to 128.
//! [`Communicator::memory_bytes`] has the number. By default that is 2 x 32 MiB + 2 x 64 MiB. Ranks
//! that share a device add 16 bytes for each thread of the largest grid. Everything is allocated by
//! [`CommunicatorBuilder::build`] and [`Communicator::symmetric_alloc`], nothing by a call. Calls
//! that do not fit this memory are split, not refused.
//!
//! # Environment
//!
//! [`environment`] lists the variables that this crate reads. One more is CUDA's own:
//! `CUDA_DEVICE_MAX_CONNECTIONS` is the number of hardware queues that a context has for its
//! streams, 1 to 32, by default 8. Set it before the context is created: to 32 if ranks share a
//! GPU, and to the number of streams in use on a GPU or more if the process has several
//! communicators there.
//!
//! If a context has more streams than hardware queues, several streams go through one queue, and a
//! kernel can be held up by another stream's. A call that waits for its peer then keeps another
//! communicator's call from starting, and if the ranks enqueue the calls in different orders, both
//! wait until their timeout. The streams of the program's own kernels and copies count too. CUDA
//! treats the number as a hint.
//!
//! # Features
//!
//! `nccl`: NCCL, opened at run time, for all-reduces above the custom range or across hosts (the
//! module `nccl`). None is on by default. The [`cudarc`] with which this crate was built is
//! re-exported. `libcuda` and `libnvrtc` are opened at run time: the crate builds and links without
//! CUDA, and an error says what is missing.
//!
//! Without a GPU the same kernels run on the CPU, in `peersum-emulator`.
//!
//! # Building when an nvcc is on PATH
//!
//! This crate needs no nvcc, but cudarc's build script runs the first one on `PATH` to choose the
//! CUDA version of its bindings (without any it takes the newest that it knows). An nvcc that it
//! does not know ends in `Unsupported cuda toolkit version`, a wrapper that prints a line of its
//! own first ends in a panic of that build script, and one older than 11.8 ends in
//! `cannot find function cuLaunchKernelEx`. Name the version instead, in your program's
//! `.cargo/config.toml` or in the environment:
//!
//! ```toml
//! [env]
//! CUDARC_CUDA_VERSION = "13040" # any version of cudarc from 11080 on
//! ```
//!
//! A dependency on cudarc with the feature `cuda-13040` does the same; use one of the two. The
//! version concerns the bindings alone: no CUDA of it is needed, neither to build nor to run.

#![deny(missing_docs)]

mod call_signature;
mod communicator;
pub mod cuda;
pub mod device;
pub mod dispatch;
mod element;
pub mod environment;
mod error;
mod failure;
pub mod loader;
mod lock_file;
#[cfg(feature = "nccl")]
pub mod nccl;
pub mod nccl_shape;
/// Which NCCL this machine has, for this crate and its tools.
#[doc(hidden)]
pub mod nccl_version;
mod norm_error;
mod operation;
mod privilege;
mod process_id;
pub mod reference;
pub mod rendezvous;
/// One way to open shared libraries, for this crate and its tools.
#[doc(hidden)]
pub mod shared_library;

pub use call_signature::{CallKind, CallSignature, NormOutput, NormSignature, SymmetricPart};
pub use communicator::{
    AbortHandle, CallPath, Capture, Communicator, CommunicatorBuilder, Fp8Output, Fp8PerToken,
    Fp8Static, Graph, Held, HeldFp8Output, RmsNorm, SharedCommunicator, SymmetricBuffer,
};
#[doc(hidden)]
pub use communicator::{ArenaLayout, SetupStep, StartEpochs, control_bytes, initial_control};
/// What `peersum-doctor` tries: the code by which a communicator shares memory.
#[doc(hidden)]
pub use communicator::{SharedMemory, share};
pub use cuda::{Cuda, open_context};
pub use cudarc;
pub use device::{BufferError, DeviceBuffer, Input, Output};
pub use element::{Element, Scalar};
pub use error::Error;
pub use failure::{AbsentPeer, Failure, ProcessState};
pub use norm_error::NormError;
pub use operation::Operation;
pub use rendezvous::Rendezvous;
