//! The manifest of a directory of compiled modules, schema 2.

mod model;
mod read;
mod verify;

pub use model::{
    EntryPoint, KernelResources, MANIFEST_FILE, MANIFEST_SCHEMA, MAX_MANIFEST_BYTES,
    MAX_MODULE_BYTES, Manifest, ManifestModule, SourceEntry,
};
pub use read::{ManifestError, SchemaError};
pub use verify::{FileError, FileProblem, VerifyError, verify_bytes, verify_file};
