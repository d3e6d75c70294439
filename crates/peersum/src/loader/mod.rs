//! Finding a compiled module: verified bytes, and a report that says where they came from.
//!
//! In this order: the directory named in code, the directory named by `PEERSUM_CUBIN_DIR`, the
//! cubins embedded in `peersum-kernels`, the JIT cache, NVRTC, and PTX, which the driver compiles.
//! A file is used only if its length and digest are those of its manifest, it was compiled from
//! this build's sources, and its ELF is for the device's architecture and has the module's entry
//! points. Anything else is named in the report and passed over.
//!
//! The loader touches no GPU and loads no driver: a device hands the bytes to `cuModuleLoadData`.
//!
//! ```no_run
//! use peersum::loader::{DeviceTarget, LoadPolicy, load};
//! use peersum_artifact::Arch;
//!
//! let key = "peersum_push_bf16_ws8".parse()?;
//! let device = DeviceTarget { arch: Arch::new(9, 0), driver_version: None };
//! let image = load(&LoadPolicy::from_env()?, key, &device)?;
//! println!("{}", image.report);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod ahead;
mod image;
mod jit;
mod jit_cache;
mod known;
mod load;
pub mod nvrtc;
mod place;
mod policy;
mod reason;
mod report;
mod search;

pub use image::{DeviceTarget, KernelSet, LoadedImage};
pub use jit_cache::{CacheError, probe as probe_cache};
pub use load::{load, load_all, load_all_from, load_from};
pub use place::Place;
pub use policy::{JitMode, LoadPolicy, ParseJitModeError};
pub use reason::Reason;
#[doc(hidden)]
pub use reason::update_hint;
pub use report::{Compilation, LoadError, LoadReport, PassedOver};
