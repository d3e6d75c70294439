//! The manifest as data, and its JSON: every field is written in one order and checked when read.
//!
//! Each public type that differs from its JSON has a private counterpart (`...Json`) with the
//! fields of the JSON. serde reads and writes the counterpart; `TryFrom` checks what a type alone
//! cannot say, so an error stands at the place of the value that is wrong.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};

use crate::arch::Target;
use crate::cache_key::CompilerId;
use crate::cuda_version::PtxVersion;
use crate::digest::Digest;
use crate::key::{Dtype, Family, ModuleKey, WorldSize};

/// The manifest's file name in its directory.
pub const MANIFEST_FILE: &str = "manifest.json";

/// The schema that this crate writes, and the only one that it reads.
pub const MANIFEST_SCHEMA: u64 = 2;

/// The largest manifest that is read, in bytes. The whole matrix for ten architectures takes about
/// one MiB.
pub const MAX_MANIFEST_BYTES: u64 = 8 << 20;

/// The largest module that is read, in bytes. Real ones are a thousandth of it.
pub const MAX_MODULE_BYTES: u64 = 64 << 20;

/// What a directory of compiled modules holds, and what it was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ManifestJson", into = "ManifestJson")]
pub struct Manifest {
    /// The version of peersum that wrote it.
    pub peersum_version: String,
    /// The compiler.
    pub toolkit: CompilerId,
    /// The flags common to all modules, in the order in which they were passed.
    pub flags: Vec<String>,
    /// The kernels' sources.
    pub sources: Vec<SourceEntry>,
    /// The modules. Written in the order of [`ManifestModule::sort_key`], whatever their order
    /// here.
    pub modules: Vec<ManifestModule>,
}

#[derive(Serialize, Deserialize)]
#[serde(expecting = "an object")]
struct ManifestJson {
    schema: u64,
    peersum_version: String,
    toolkit: CompilerId,
    flags: Vec<String>,
    sources: Vec<SourceEntry>,
    modules: Vec<ManifestModule>,
}

impl From<Manifest> for ManifestJson {
    fn from(mut manifest: Manifest) -> Self {
        manifest.modules.sort_by_key(ManifestModule::sort_key);
        Self {
            schema: MANIFEST_SCHEMA,
            peersum_version: manifest.peersum_version,
            toolkit: manifest.toolkit,
            flags: manifest.flags,
            sources: manifest.sources,
            modules: manifest.modules,
        }
    }
}

impl TryFrom<ManifestJson> for Manifest {
    type Error = String;

    fn try_from(json: ManifestJson) -> Result<Self, String> {
        if json.schema != MANIFEST_SCHEMA {
            return Err(format!(
                "`schema` is {}, but must be {MANIFEST_SCHEMA}",
                json.schema
            ));
        }
        let mut paths = BTreeSet::new();
        let doubled = |source: &&SourceEntry| !paths.insert(source.path.clone());
        if let Some(source) = json.sources.iter().find(doubled) {
            return Err(format!("two entries for the source `{}`", source.path));
        }
        // Usually the modules are in order, and then duplicates would be neighbours.
        let in_order =
            |one: &ManifestModule, next: &ManifestModule| one.sort_key() < next.sort_key();
        let mut keys = BTreeSet::new();
        if !json.modules.is_sorted_by(in_order)
            && let Some(module) = json.modules.iter().find(|m| !keys.insert(m.sort_key()))
        {
            return Err(format!("two entries for `{}`", module.file_name()));
        }
        Ok(Self {
            peersum_version: json.peersum_version,
            toolkit: json.toolkit,
            flags: json.flags,
            sources: json.sources,
            modules: json.modules,
        })
    }
}

/// One source file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(expecting = "an object")]
pub struct SourceEntry {
    /// The path relative to the kernels' directory.
    #[serde(deserialize_with = "relative_path")]
    pub path: String,
    /// The digest of the text.
    pub sha256: Digest,
}

/// Reads a path, which must not lead out of its directory.
fn relative_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let path = String::deserialize(deserializer)?;
    let is_name = |part| matches!(part, Component::Normal(_));
    let is_within = Path::new(&path).components().all(is_name);
    if path.is_empty() || path.contains(['\0', '\\']) || !is_within {
        return Err(D::Error::custom(leads_out(&path)));
    }
    Ok(path)
}

fn leads_out(path: &str) -> String {
    format!("`{}` leads out of its directory", path.escape_debug())
}

/// One compiled module. Its name and file name follow from [`key`](Self::key) and
/// [`target`](Self::target), so they cannot disagree with them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ModuleJson", into = "ModuleJson")]
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
    /// The key it was compiled under; see [`cache_key`](crate::cache_key()). The field `key` in
    /// JSON.
    pub cache_key: Digest,
    /// The kernels, in the order of [`ModuleKey::entry_points`].
    pub entry_points: Vec<EntryPoint>,
}

#[derive(Serialize, Deserialize)]
#[serde(expecting = "an object")]
struct ModuleJson {
    name: String,
    family: Family,
    dtype: Dtype,
    world_size: WorldSize,
    arch: Target,
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ptx_version: Option<PtxVersion>,
    file: String,
    bytes: u64,
    sha256: Digest,
    closure_digest: Digest,
    key: Digest,
    entry_points: Vec<EntryPoint>,
}

impl From<ManifestModule> for ModuleJson {
    fn from(module: ManifestModule) -> Self {
        Self {
            name: module.name(),
            family: module.key.family,
            dtype: module.key.dtype,
            world_size: module.key.world_size,
            arch: module.target,
            kind: module.target.kind().to_owned(),
            ptx_version: module.ptx_version,
            file: module.file_name(),
            bytes: module.bytes,
            sha256: module.sha256,
            closure_digest: module.closure_digest,
            key: module.cache_key,
            entry_points: module.entry_points,
        }
    }
}

impl TryFrom<ModuleJson> for ManifestModule {
    type Error = String;

    fn try_from(json: ModuleJson) -> Result<Self, String> {
        let key = ModuleKey {
            family: json.family,
            dtype: json.dtype,
            world_size: json.world_size,
        };
        if !key.exists() {
            return Err(format!("there is no module `{}`", key.name()));
        }
        let target = json.arch;
        must_be("name", &json.name, &key.name())?;
        must_be("kind", &json.kind, target.kind())?;
        // This gets its own error: a path that leads out is an attack or a serious bug.
        let file = json.file.as_str();
        if ["", ".", ".."].contains(&file) || file.contains(['/', '\\', '\0']) {
            return Err(format!("`file`: {}", leads_out(file)));
        }
        must_be("file", file, &target.file_name(&key))?;
        if json.bytes > MAX_MODULE_BYTES {
            return Err(format!(
                "`bytes` is {}, but at most {MAX_MODULE_BYTES} are read",
                json.bytes
            ));
        }
        let is_cubin = matches!(target, Target::Cubin(_));
        if !is_cubin && json.ptx_version.is_none() {
            return Err("missing field `ptx_version`, which PTX must have".to_owned());
        }
        Ok(Self {
            key,
            target,
            ptx_version: json.ptx_version.filter(|_| !is_cubin),
            bytes: json.bytes,
            sha256: json.sha256,
            closure_digest: json.closure_digest,
            cache_key: json.key,
            entry_points: checked_entry_points(json.entry_points, key, is_cubin)?,
        })
    }
}

/// The entry points, which must be those of the module, with resources for a cubin only.
fn checked_entry_points(
    mut found: Vec<EntryPoint>,
    key: ModuleKey,
    is_cubin: bool,
) -> Result<Vec<EntryPoint>, String> {
    let names = key.entry_points();
    if found.len() != names.len() {
        return Err(format!(
            "`entry_points` has {} entries, but must have {}: {}",
            found.len(),
            names.len(),
            names.join(", ")
        ));
    }
    for (index, (entry_point, name)) in found.iter_mut().zip(&names).enumerate() {
        must_be(
            &format!("entry_points[{index}].name"),
            &entry_point.name,
            name,
        )?;
        match is_cubin {
            true if entry_point.resources.is_none() => {
                return Err(format!(
                    "missing field `entry_points[{index}].registers`, which a cubin must have"
                ));
            }
            true => {}
            false => entry_point.resources = None,
        }
    }
    Ok(found)
}

fn must_be(field: &str, found: &str, expected: &str) -> Result<(), String> {
    match found == expected {
        true => Ok(()),
        false => Err(format!("`{field}` is `{found}`, but must be `{expected}`")),
    }
}

/// One kernel of a module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "EntryPointJson", into = "EntryPointJson")]
pub struct EntryPoint {
    /// The name by which it is found.
    pub name: String,
    /// What it uses of a multiprocessor. `None` for PTX, where the driver decides; the fields are
    /// then absent in JSON.
    pub resources: Option<KernelResources>,
    /// The largest block, in threads, that it may be launched with.
    pub max_threads: u32,
    /// Whether it may be launched with programmatic stream serialization: it then waits for the
    /// kernel before it.
    pub pdl: bool,
}

/// What ptxas reports of a kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KernelResources {
    /// Registers a thread.
    pub registers: u32,
    /// Bytes a thread that spilled into local memory, stores and loads together.
    pub spill_bytes: u32,
    /// Static shared memory a block, in bytes.
    pub shared_bytes: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(expecting = "an object")]
struct EntryPointJson {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    registers: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spill_bytes: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shared_bytes: Option<u32>,
    max_threads: u32,
    pdl: bool,
}

impl From<EntryPoint> for EntryPointJson {
    fn from(entry_point: EntryPoint) -> Self {
        let resources = entry_point.resources;
        Self {
            name: entry_point.name,
            registers: resources.map(|used| used.registers),
            spill_bytes: resources.map(|used| used.spill_bytes),
            shared_bytes: resources.map(|used| used.shared_bytes),
            max_threads: entry_point.max_threads,
            pdl: entry_point.pdl,
        }
    }
}

impl TryFrom<EntryPointJson> for EntryPoint {
    type Error = String;

    fn try_from(json: EntryPointJson) -> Result<Self, String> {
        let missing = |field| move || format!("missing field `{field}`");
        let resources = match (json.registers, json.spill_bytes, json.shared_bytes) {
            (None, None, None) => None,
            (registers, spill_bytes, shared_bytes) => Some(KernelResources {
                registers: registers.ok_or_else(missing("registers"))?,
                spill_bytes: spill_bytes.ok_or_else(missing("spill_bytes"))?,
                shared_bytes: shared_bytes.ok_or_else(missing("shared_bytes"))?,
            }),
        };
        Ok(Self {
            name: json.name,
            resources,
            max_threads: json.max_threads,
            pdl: json.pdl,
        })
    }
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

    /// The order of modules in a manifest: family, dtype, world size, architecture as a number,
    /// cubins before PTX.
    #[must_use]
    pub fn sort_key(&self) -> (ModuleKey, Target) {
        (self.key, self.target)
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
}
