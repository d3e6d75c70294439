//! The manifest of a directory of compiled modules, schema 1.

mod json;
mod read;
mod verify;

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

pub use read::{ManifestError, SchemaError};
pub use verify::{FileError, VerifyError, verify_bytes, verify_file};

use crate::arch::{Arch, Target, best_target};
use crate::cache_key::CompilerId;
use crate::cuda_version::PtxVersion;
use crate::digest::Digest;
use crate::key::ModuleKey;

/// The manifest's file name in its directory.
pub const MANIFEST_FILE: &str = "manifest.json";

/// The schema that this crate writes, and the only one that it reads.
pub const MANIFEST_SCHEMA: u64 = 1;

/// The largest manifest that is read, in bytes. The whole matrix for ten architectures takes about one MiB.
pub const MAX_MANIFEST_BYTES: u64 = 8 << 20;

/// The largest module that is read, in bytes. Real ones are a thousandth of it.
pub const MAX_MODULE_BYTES: u64 = 64 << 20;

/// What a directory of compiled modules holds, and what it was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The version of peersum that wrote it.
    pub peersum_version: String,
    /// The compiler.
    pub toolkit: CompilerId,
    /// The flags common to all modules, in the order in which they were passed.
    pub flags: Vec<String>,
    /// The kernels' sources.
    pub sources: Vec<SourceEntry>,
    /// The modules. Written in the order of [`ManifestModule::sort_key`], whatever their order here.
    pub modules: Vec<ManifestModule>,
}

/// One source file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceEntry {
    /// The path relative to the kernels' directory.
    pub path: String,
    /// The digest of the text.
    pub sha256: Digest,
}

/// One compiled module. Its name and file name follow from [`key`](Self::key) and [`target`](Self::target), so they
/// cannot disagree with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestModule {
    /// Which module.
    pub key: ModuleKey,
    /// What it is compiled for.
    pub target: Target,
    /// The ISA version of PTX; `None` for a cubin.
    pub ptx_version: Option<PtxVersion>,
    /// The file's length.
    pub bytes: u64,
    /// The file's digest.
    pub sha256: Digest,
    /// The digest of what it was compiled from; see [`Closure::digest`](crate::Closure::digest).
    pub closure_digest: Digest,
    /// The key it was compiled under; see [`cache_key`](crate::cache_key()). The field `key` in JSON.
    pub cache_key: Digest,
    /// The kernels, in the order of [`ModuleKey::entry_points`].
    pub entry_points: Vec<EntryPoint>,
}

/// One kernel of a module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EntryPoint {
    /// The name by which it is found.
    pub name: String,
    /// What it uses of a multiprocessor. `None` for PTX, where the driver decides; the fields are then absent in JSON.
    #[serde(flatten)]
    pub resources: Option<KernelResources>,
    /// The largest block, in threads, that it may be launched with.
    pub max_threads: u32,
    /// Whether it may be launched with programmatic stream serialization: it then waits for the kernel before it.
    pub pdl: bool,
}

/// What ptxas reports of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct KernelResources {
    /// Registers a thread.
    pub registers: u32,
    /// Bytes a thread that spilled into local memory, stores and loads together.
    pub spill_bytes: u32,
    /// Static shared memory a block, in bytes.
    pub shared_bytes: u32,
}

impl ManifestModule {
    /// The module's name.
    #[must_use]
    pub fn name(&self) -> String {
        self.key.name()
    }

    /// The file's name in the manifest's directory.
    #[must_use]
    pub fn file_name(&self) -> String {
        self.target.file_name(&self.key)
    }

    /// The order of modules in a manifest: family, dtype, world size, architecture as a number, cubins before PTX.
    #[must_use]
    pub fn sort_key(&self) -> (ModuleKey, Target) {
        (self.key, self.target)
    }
}

impl Serialize for ManifestModule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fields = 12 + usize::from(self.ptx_version.is_some());
        let mut module = serializer.serialize_struct("ManifestModule", fields)?;
        module.serialize_field("name", &self.name())?;
        module.serialize_field("family", &self.key.family)?;
        module.serialize_field("dtype", &self.key.dtype)?;
        module.serialize_field("world_size", &self.key.world_size.get())?;
        module.serialize_field("arch", &self.target)?;
        module.serialize_field("kind", self.target.kind())?;
        match &self.ptx_version {
            Some(version) => module.serialize_field("ptx_version", version)?,
            None => module.skip_field("ptx_version")?,
        }
        module.serialize_field("file", &self.file_name())?;
        module.serialize_field("bytes", &self.bytes)?;
        module.serialize_field("sha256", &self.sha256)?;
        module.serialize_field("closure_digest", &self.closure_digest)?;
        module.serialize_field("key", &self.cache_key)?;
        module.serialize_field("entry_points", &self.entry_points)?;
        module.end()
    }
}

impl Serialize for Manifest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut modules: Vec<&ManifestModule> = self.modules.iter().collect();
        modules.sort_by_key(|module| module.sort_key());
        let mut manifest = serializer.serialize_struct("Manifest", 6)?;
        manifest.serialize_field("schema", &MANIFEST_SCHEMA)?;
        manifest.serialize_field("peersum_version", &self.peersum_version)?;
        manifest.serialize_field("toolkit", &self.toolkit)?;
        manifest.serialize_field("flags", &self.flags)?;
        manifest.serialize_field("sources", &self.sources)?;
        manifest.serialize_field("modules", &modules)?;
        manifest.end()
    }
}

impl Manifest {
    /// The manifest as it is written to [`MANIFEST_FILE`]: the same manifest gives the same bytes.
    #[must_use]
    #[expect(
        clippy::expect_used,
        reason = "names and numbers serialise to memory without failing"
    )]
    pub fn to_json_string(&self) -> String {
        let mut json = serde_json::to_string_pretty(self).expect("a manifest is plain data");
        json.push('\n');
        json
    }

    /// The entry of one module for exactly one target.
    #[must_use]
    pub fn find(&self, key: ModuleKey, target: Target) -> Option<&ManifestModule> {
        self.modules
            .iter()
            .find(|module| module.sort_key() == (key, target))
    }

    /// The entry of one module that serves `device` best, by the rule of [`best_target`].
    #[must_use]
    pub fn find_for(&self, key: ModuleKey, device: Arch) -> Option<&ManifestModule> {
        let targets = self
            .modules
            .iter()
            .filter(|module| module.key == key)
            .map(|module| module.target);
        self.find(key, best_target(targets, device)?)
    }
}
