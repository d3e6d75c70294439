//! The cache key: equal keys promise equal machine code.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::arch::Target;
use crate::closure::Closure;
use crate::cuda_version::CudaVersion;
use crate::digest::Digest;
use crate::key::ModuleKey;
use crate::vocabulary::vocabulary;

/// The version of the key's layout, which is that of [`CacheKeyInputs`]. It enters every key, so
/// raising it makes all older entries misses.
pub const CACHE_KEY_SCHEMA: u32 = 2;

/// Which compiler made a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CompilerKind {
    /// The command-line compiler.
    Nvcc,
    /// The runtime compilation library.
    Nvrtc,
}

vocabulary!(CompilerKind, "compiler", { Nvcc => "nvcc", Nvrtc => "nvrtc" });

/// A compiler, down to the build: two builds of one version may differ in code.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CompilerId {
    /// Which compiler.
    #[serde(rename = "compiler")]
    pub kind: CompilerKind,
    /// The version, e.g. `13.0.88`.
    pub version: String,
    /// nvcc: the build as it prints it, e.g. `cuda_13.0.r13.0/compiler.36424714_0`. NVRTC: the
    /// library's GNU build id.
    pub build: String,
}

impl CompilerId {
    /// The toolkit release that the compiler belongs to, or `None` where the version does not begin
    /// with one.
    #[must_use]
    pub fn toolkit(&self) -> Option<CudaVersion> {
        CudaVersion::of_release(&self.version)
    }
}

impl fmt::Display for CompilerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.kind, self.version, self.build)
    }
}

/// Everything that decides the code of one module, and nothing else: no path, host compiler or
/// time.
#[derive(Debug, Clone, Serialize)]
pub struct CacheKeyInputs<'a> {
    /// The module.
    pub module: ModuleKey,
    /// What it is compiled for.
    pub target: Target,
    /// What it is compiled from.
    pub closure: &'a Closure,
    /// The digest of the text that stands in for the compiler's implicit header, if one does.
    pub prelude: Option<Digest>,
    /// Flags that reach the compiler, in order, without paths and without the definitions.
    pub flags: &'a [String],
    /// The definitions, in order; see [`ModuleKey::defines`].
    pub defines: &'a [String],
    /// The compiler.
    pub compiler: &'a CompilerId,
    /// The entry points that the result must have.
    pub entry_points: &'a [String],
}

/// The key under which a compiled module is stored and found again.
#[must_use]
pub fn cache_key(inputs: &CacheKeyInputs<'_>) -> Digest {
    Digest::of_json(&(CACHE_KEY_SCHEMA, inputs))
}
