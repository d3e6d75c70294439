//! Names, manifest, digests and file checks of peersum's ahead-of-time compiled CUDA modules.
//!
//! The build side (`cargo xtask precompile`) writes a directory of cubins with a [`Manifest`]; the
//! runtime finds each module in it by [`ModuleKey`] and [`Target`], and believes a file only after
//! [`verify_file`]. Both sides use this crate for every name and every rule, so that they cannot
//! disagree. It needs no CUDA and loads no library.
//!
//! - [`ModuleKey`] and the vocabulary it is made of: [`Family`], [`Algorithm`], [`Dtype`],
//!   [`WorldSize`].
//! - [`Arch`] and [`Target`]: what a module is compiled for, which device it serves, which driver
//!   it needs.
//! - [`Digest`], [`include_closure`] and [`cache_key`]: what makes two compilations the same.
//! - [`Manifest`]: schema 2, read strictly.
//! - [`inspect_cubin`] and [`text_sections`]: what the ELF headers of a cubin say.
//!
//! Digests detect corruption, not malice: whoever can write the directory can write its manifest
//! too.

mod arch;
mod cache_key;
mod closure;
mod cuda_version;
mod digest;
mod elf;
mod key;
mod manifest;
#[cfg(feature = "pack")]
pub mod pack;
mod ptx;
mod ptxas;
mod vocabulary;

pub use arch::{Arch, RELEASE_SET, Target};
pub use cache_key::{CACHE_KEY_SCHEMA, CacheKeyInputs, CompilerId, CompilerKind, cache_key};
pub use closure::{Closure, ClosureError, include_closure};
pub use cuda_version::{CudaVersion, PtxVersion, driver_branch_floor};
pub use digest::Digest;
pub use elf::{CubinInfo, ElfError, inspect_cubin, text_sections};
pub use key::{Algorithm, Dtype, Family, ModuleKey, WorldSize};
pub use manifest::{
    EntryPoint, FileError, FileProblem, KernelResources, MANIFEST_FILE, MANIFEST_SCHEMA,
    MAX_MANIFEST_BYTES, MAX_MODULE_BYTES, Manifest, ManifestError, ManifestModule, SchemaError,
    SourceEntry, VerifyError, verify_bytes, verify_file,
};
pub use ptx::{PtxError, PtxInfo, inspect_ptx};
pub use ptxas::PtxasReport;
pub use vocabulary::ParseNameError;
