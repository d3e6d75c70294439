//! A low-latency all-reduce for the GPUs of one machine, with kernels compiled ahead of time.
//!
//! For programs that split a model over 2 to 8 GPUs of one machine and sum activations after each layer, a few kilobytes to a few megabytes at a
//! time. A call is one kernel launch: GPUs write to and read from each other's memory directly. The CUDA kernels come as cubins, compiled when the
//! program was packaged, so that neither a CUDA toolkit nor a compile at start-up is needed; where a cubin is missing NVRTC compiles it once.
//!
//! # Example
//!
//! One process a rank, started by torchrun, mpirun, srun, or a loop of the shell that sets `RANK` and `WORLD_SIZE`:
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
//! Threads of one process are ranks as well ([`Rendezvous::threads`]). Calls can be captured into a CUDA graph ([`Communicator::capture`]). Buffers
//! of [`Communicator::symmetric_alloc`] are read by the peers without a staged copy. [`Communicator::into_shared`] gives a handle
//! for several threads. `examples/` has a program for each.
//!
//! # Numbers
//!
//! Every element is `round(((x[0] + x[1]) + x[2]) + ... + x[W-1])` in rank order: float32 accumulation and one rounding to nearest even.
//! All ranks get the same bits, whatever the algorithm, the alignment, in place or not, eager or in a graph, and these are the bits of
//! [`mod@reference`], a plain Rust function. Signed zeros, infinities and subnormals come out as that expression says; every NaN is the canonical one
//! (`0x7FFF` for f16 and bf16, `0x7FFF_FFFF` for f32). So which kernel a call takes never changes a result. A group of one copies its input.
//!
//! # Failures
//!
//! Every wait of peersum's own has a deadline; only calls that go to NCCL (the feature `nccl`) wait
//! without one. A rank that a peer keeps waiting past [`CommunicatorBuilder::timeout`] gives up,
//! and so do all others; an [`AbortHandle`] ends the waits of its rank at once. What was not
//! reduced is filled with NaN, the CUDA context survives, and [`Communicator::synchronize`] says
//! why:
//!
//! - [`Failure::PeerTimeout`] names who waited for whom, in which algorithm, call and block, and whose process has ended or is stopped;
//! - [`Failure::Disagreement`], on every rank, for ranks that call with different sizes, types or algorithms, with both sides' values;
//! - [`Failure::Aborted`] on the rank that was aborted; [`Failure::PeerFailed`] names the rank that failed first to those who were told,
//!   and whom they waited for themselves.
//!
//! A communicator that failed gives the same reason at each later call and moves no data. It is not repaired: drop it and build a new one. What the
//! ranks' headers cannot show is a skipped call whose neighbours in the sequence are of the same size, type and algorithm: then one
//! rank's inputs of two different calls are summed.
//!
//! Set-up compares versions, kernel sources, dispatch tables and sizes; where ranks differ, every rank gets an error with both values.
//!
//! # Memory
//!
//! A rank of a group of two or more holds `20992 + 2 x push half + 2 x max_bytes` bytes of device memory, each part rounded up to 128 bytes, and its symmetric
//! buffers; [`Communicator::memory_bytes`] has the number. By default that is 2 x 32 MiB + 2 x 64 MiB. Ranks that share a device add 16 bytes for each thread of
//! the largest grid. Everything is allocated by [`CommunicatorBuilder::build`] and [`Communicator::symmetric_alloc`], nothing by a call. Larger
//! calls than [`CommunicatorBuilder::max_bytes`] are split, not refused.
//!
//! # Environment
//!
//! Each can be given in code instead; none is read after `build`.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `RANK`, `WORLD_SIZE`, `LOCAL_RANK` | which rank this process is, of how many, and of which GPU; Open MPI's and Slurm's names too: [`Rendezvous::from_env`] |
//! | `PEERSUM_RENDEZVOUS_DIR` | the directory of the Unix socket where ranks meet, mode 0700; default `$XDG_RUNTIME_DIR/peersum`, else `peersum-{uid}` in `/tmp` |
//! | `PEERSUM_GROUP` | the name of the group, for several at once |
//! | `PEERSUM_CUBIN_DIR` | a directory of cubins with their manifest, looked at before those in the program |
//! | `PEERSUM_CACHE_DIR` | where modules that NVRTC compiled are kept; default `peersum` in the user's cache directory |
//! | `PEERSUM_JIT` | `allow`, `deny` (a missing module is an error that lists every place) or `force`: [`loader::JitMode`] |
//! | `CUDA_HOME`, `CUDA_PATH` | a toolkit to look for NVRTC in, by its absolute path; a relative one is not looked at |
//! | `CUDA_DEVICE_MAX_CONNECTIONS` | CUDA's own: how many hardware queues a context has for its streams, 1 to 32, by default 8. Set it before the context is created: to 32 if ranks share a GPU, and to the number of streams in use on a GPU or more if the process has several communicators there |
//!
//! If a context has more streams than hardware queues, several streams go through one queue, and a
//! kernel can be held up by another stream's. A call that waits for its peer then keeps another
//! communicator's call from starting, and if the ranks enqueue the calls in different orders, both
//! wait until their timeout. The streams of the program's own kernels and copies count too. CUDA
//! takes the number as a wish.
//!
//! # Features
//!
//! `nccl`: NCCL, opened at run time, for calls above the custom range or across hosts (the module
//! `nccl`). None is on by default. The [`cudarc`] with which this crate was built is re-exported.
//! `libcuda` and `libnvrtc` are opened at run time: the crate builds and links without CUDA, and an
//! error says what is missing.
//!
//! Without a GPU the same kernels run on the CPU, in `peersum-emulator`.
//!
//! # Building where an nvcc is on PATH
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

pub mod buffer;
mod communicator;
pub mod cuda;
pub mod device;
pub mod dispatch;
pub mod doctor;
mod element;
mod error;
pub mod loader;
#[cfg(feature = "nccl")]
pub mod nccl;
pub mod nccl_shape;
mod privilege;
pub mod reference;
pub mod rendezvous;

pub use buffer::{BufferError, Input, Output};
#[doc(hidden)]
pub use communicator::SetupStep;
pub use communicator::{
    AbortHandle, CallPath, Capture, Communicator, CommunicatorBuilder, Graph, Held,
    SharedCommunicator, SymmetricBuffer,
};
pub use cuda::{Cuda, open_context};
pub use cudarc;
pub use doctor::doctor;
pub use element::Element;
pub use error::{AbsentPeer, CallKind, CallSignature, Error, Failure, ProcessState, SymmetricPart};
pub use rendezvous::Rendezvous;
