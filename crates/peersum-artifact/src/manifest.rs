//! The manifest of a directory of compiled modules, schema 3.

mod model;
mod read;
mod verify;

pub use model::{
    EntryPoint, MANIFEST_FILE, MANIFEST_SCHEMA, MAX_MANIFEST_BYTES, MAX_MODULE_BYTES, Manifest,
    ManifestModule, Schema, SourceEntry,
};
pub use read::{ManifestError, SchemaError};
pub use verify::{FileError, FileProblem, VerifyError, verify_bytes, verify_file};
