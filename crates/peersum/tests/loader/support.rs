//! Small kernels with the names of the real ones, and directories of their cubins.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use peersum::loader::nvrtc::{Compiled, NvrtcLibrary, compile};
use peersum::loader::{
    DeviceTarget, JitMode, KernelSet, LoadError, LoadPolicy, LoadedImage, PassedOver, Reason,
    load_from,
};
use peersum_artifact::{
    Arch, CompilerId, CompilerKind, Digest, EntryPoint, MANIFEST_FILE, Manifest, ManifestModule,
    ModuleKey, PtxVersion, Target, include_closure,
};

use crate::toolchain;

/// Stand-ins that compile quickly; all else about them is as with the real kernels.
const SOURCES: [(&str, &str); 5] = [
    (
        "stand_in.cuh",
        "#define NAME3(family, algorithm, dtype, ws) \\\n\
         peersum_##family##_##algorithm##_##dtype##_ws##ws\n\
         #define NAME2(family, algorithm, dtype, ws) NAME3(family, algorithm, dtype, ws)\n\
         #define NAME(family, algorithm) \\\n\
         NAME2(family, algorithm, PEERSUM_DTYPE, PEERSUM_WORLD_SIZE)\n\
         #define KERNEL(family, algorithm, value) \\\n\
         extern \"C\" __global__ void __launch_bounds__(384) \\\n\
         NAME(family, algorithm)(int* out) { *out = value; }\n",
    ),
    (
        "push.cu",
        "#include \"stand_in.cuh\"\nKERNEL(push, one_shot, 1)\nKERNEL(push, two_shot, 2)\n\
         KERNEL(push, reduce_scatter, 8)\n",
    ),
    (
        "pull.cu",
        "#include \"stand_in.cuh\"\nKERNEL(pull, one_shot, 3)\nKERNEL(pull, two_shot, 4)\n",
    ),
    (
        "norm.cu",
        "#include \"stand_in.cuh\"\nKERNEL(norm, rows, 5)\n\
         #if PEERSUM_WORLD_SIZE > 1\nKERNEL(norm, one_shot, 6)\n\
         KERNEL(norm, clustered, 7)\n#endif\n",
    ),
    (
        "move.cu",
        "#include \"stand_in.cuh\"\nKERNEL(move, all_gather, 9)\nKERNEL(move, broadcast, 10)\n",
    ),
];

pub(crate) const SM_80: Arch = Arch::new(8, 0);
pub(crate) const SM_86: Arch = Arch::new(8, 6);
pub(crate) const SM_90: Arch = Arch::new(9, 0);

pub(crate) fn kernels() -> KernelSet<'static> {
    KernelSet {
        sources: SOURCES.to_vec(),
        pack: &[],
    }
}

pub(crate) fn key(name: &str) -> ModuleKey {
    name.parse().unwrap()
}

pub(crate) fn push() -> ModuleKey {
    key("peersum_push_bf16_ws8")
}

pub(crate) fn pull() -> ModuleKey {
    key("peersum_pull_bf16_ws8")
}

/// A device whose driver version is not known.
pub(crate) fn device(arch: Arch) -> DeviceTarget {
    DeviceTarget {
        arch,
        driver_version: None,
    }
}

/// Without an environment, and without JIT unless a test wants it.
pub(crate) fn policy() -> LoadPolicy {
    LoadPolicy::default().jit(JitMode::Deny)
}

/// With JIT, by the tests' NVRTC.
pub(crate) fn jit_policy() -> LoadPolicy {
    LoadPolicy::default().nvrtc_library(toolchain::nvrtc())
}

pub(crate) fn library() -> &'static NvrtcLibrary {
    static LIBRARY: LazyLock<std::sync::Arc<NvrtcLibrary>> =
        LazyLock::new(|| NvrtcLibrary::open(&toolchain::nvrtc()).unwrap());
    &LIBRARY
}

pub(crate) fn compiled(key: ModuleKey, arch: Arch) -> Compiled {
    compile(library(), key, arch, &SOURCES).unwrap()
}

/// A cubin with the manifest entry that describes it.
#[derive(Clone)]
pub(crate) struct Module {
    pub(crate) entry: ManifestModule,
    pub(crate) bytes: Vec<u8>,
}

impl Module {
    pub(crate) fn compile(key: ModuleKey, arch: Arch) -> Self {
        let compiled = compiled(key, arch);
        Self::new(
            key,
            Target::Cubin(arch),
            compiled.cubin,
            compiled.entry_points,
        )
    }

    /// PTX with empty kernels, of a version that CUDA 13.0 knows first.
    pub(crate) fn ptx(key: ModuleKey) -> Self {
        let kernel = |name| format!(".visible .entry {name}()\n{{\n\tret;\n}}\n");
        let kernels: Vec<String> = key.entry_points().into_iter().map(kernel).collect();
        let text = format!(
            ".version 9.0\n.target sm_80\n.address_size 64\n{}",
            kernels.concat()
        );
        let entry_points = key
            .entry_points()
            .into_iter()
            .map(|name| EntryPoint {
                name,
                resources: None,
                max_threads: 1024,
                pdl: false,
            })
            .collect();
        let mut module = Self::new(key, Target::Ptx(SM_80), text.into_bytes(), entry_points);
        module.entry.ptx_version = Some(PtxVersion { major: 9, minor: 0 });
        module
    }

    fn new(key: ModuleKey, target: Target, bytes: Vec<u8>, entry_points: Vec<EntryPoint>) -> Self {
        let entry = ManifestModule {
            key,
            target,
            ptx_version: None,
            bytes: bytes.len() as u64,
            sha256: Digest::of(&bytes),
            closure_digest: include_closure(key.source_root(), &SOURCES).unwrap().digest,
            cache_key: Digest::of(key.name().as_bytes()),
            entry_points,
        };
        Self { entry, bytes }
    }

    /// Other bytes, with a manifest entry that agrees to them.
    pub(crate) fn with_bytes(mut self, bytes: Vec<u8>) -> Self {
        self.entry.bytes = bytes.len() as u64;
        self.entry.sha256 = Digest::of(&bytes);
        self.bytes = bytes;
        self
    }

    /// Where it lies in a directory.
    pub(crate) fn path(&self, directory: &Path) -> std::path::PathBuf {
        directory.join(self.entry.file_name())
    }
}

/// Writes a directory as `cargo xtask precompile` does.
pub(crate) fn write_directory(directory: &Path, modules: &[Module]) {
    fs::create_dir_all(directory).unwrap();
    for module in modules {
        fs::write(module.path(directory), &module.bytes).unwrap();
    }
    let manifest = Manifest {
        peersum_version: "0.1.0".to_owned(),
        toolkit: CompilerId {
            kind: CompilerKind::Nvcc,
            version: "13.0.88".to_owned(),
            build: "test".to_owned(),
        },
        flags: vec!["-O3".to_owned()],
        sources: Vec::new(),
        modules: modules.iter().map(|module| module.entry.clone()).collect(),
    };
    fs::write(directory.join(MANIFEST_FILE), manifest.to_json_string()).unwrap();
}

/// Loads `peersum_push_bf16_ws8` for sm_90.
pub(crate) fn load_push(policy: &LoadPolicy) -> Result<LoadedImage, LoadError> {
    load_from(policy, &kernels(), push(), &device(SM_90))
}

/// The reasons for which places were passed over, without the mere absences.
pub(crate) fn faults(passed_over: &[PassedOver]) -> Vec<&Reason> {
    let reasons = passed_over.iter().map(|passed| &passed.reason);
    reasons.filter(|reason| !reason.is_absence()).collect()
}

pub(crate) fn not_found(result: Result<LoadedImage, LoadError>) -> (Vec<PassedOver>, String) {
    let error = result.unwrap_err();
    let text = error.to_string();
    let LoadError::NotFound { passed_over, .. } = error else {
        panic!("{text}")
    };
    (passed_over, text)
}

/// Replaces one bit.
pub(crate) fn flip_bit(path: &Path, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = fs::read(path).unwrap();
    let at = random.usize(..bytes.len());
    bytes[at] ^= 1 << random.u32(..8);
    fs::write(path, bytes).unwrap();
}

/// A directory that only its owner can enter, as a JIT cache must be.
pub(crate) fn private_dir() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::Permissions::from_mode(0o700);
    tempfile::Builder::new()
        .permissions(mode)
        .tempdir()
        .unwrap()
}
