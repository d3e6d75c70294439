//! NVRTC and nvcc of one release make the same machine code, so a module compiled at run time
//! behaves like the shipped one.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up fails")]

#[path = "loader/toolchain.rs"]
mod toolchain;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use peersum::loader::KernelSet;
use peersum::loader::nvrtc::{NvrtcLibrary, compile};
use peersum_artifact::{
    Arch, Dtype, Manifest, ManifestModule, ModuleKey, Target, WorldSize, include_closure,
    inspect_cubin, text_sections, verify_file,
};

/// The architecture on which every module is compared. On the others of the release set the
/// largest module of each family is compared.
const WHOLE_MATRIX: Arch = Arch::new(9, 0);

#[test]
fn nvrtc_makes_the_machine_code_of_nvcc_for_every_module() {
    let library = NvrtcLibrary::open(&toolchain::nvrtc()).unwrap();
    let kernels = KernelSet::embedded();
    let mut pairs: Vec<(PathBuf, ManifestModule)> = Vec::new();
    for directory in toolchain::cubins() {
        let manifest = Manifest::read_dir(&directory).unwrap();
        let toolkit = manifest.toolkit.toolkit().unwrap();
        assert_eq!(
            toolkit,
            library.version(),
            "the cubins are of another CUDA release than NVRTC"
        );
        let compared = manifest.modules.into_iter().filter(is_compared);
        pairs.extend(compared.map(|entry| (directory.clone(), entry)));
    }
    for (arch, keys) in [
        (WHOLE_MATRIX, ModuleKey::all().collect::<Vec<_>>()),
        (Arch::new(8, 0), largest().collect()),
        (Arch::new(10, 0), largest().collect()),
        (Arch::new(12, 0), largest().collect()),
    ] {
        for key in keys {
            let target = Target::Cubin(arch);
            let is_it = |entry: &ManifestModule| entry.key == key && entry.target == target;
            let is_there = pairs.iter().any(|(_, entry)| is_it(entry));
            assert!(is_there, "nvcc's {key} for sm_{arch} is missing");
        }
    }
    let next = AtomicUsize::new(0);
    let differences = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((directory, entry)) = pairs.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    if let Err(difference) = compare(&library, directory, &kernels, entry) {
                        let which = format!("{} for {}", entry.key, entry.target);
                        let mut differences = differences.lock().unwrap();
                        differences.push(format!("{which}: {difference}"));
                    }
                }
            });
        }
    });
    let mut differences = differences.into_inner().unwrap();
    differences.sort();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// The largest module of each family.
fn largest() -> impl Iterator<Item = ModuleKey> {
    let keys = ModuleKey::all().filter(|key| key.world_size == WorldSize::MAX);
    keys.filter(|key| [Dtype::Bf16, Dtype::U8].contains(&key.dtype))
}

fn is_compared(entry: &ManifestModule) -> bool {
    match entry.target {
        Target::Cubin(WHOLE_MATRIX) => true,
        Target::Cubin(_) => largest().any(|key| key == entry.key),
        Target::Ptx(_) => false,
    }
}

/// Compares one module of nvcc with NVRTC's.
fn compare(
    library: &NvrtcLibrary,
    directory: &Path,
    kernels: &KernelSet,
    entry: &ManifestModule,
) -> Result<(), String> {
    let (key, arch) = (entry.key, entry.target.arch());
    let closure =
        include_closure(key.source_root(), &kernels.sources).map_err(|error| error.to_string())?;
    if entry.closure_digest != closure.digest {
        return Err(
            "nvcc's cubin was made from other sources: run `cargo xtask precompile`".to_owned(),
        );
    }
    let nvcc = verify_file(directory, entry).map_err(|error| error.to_string())?;
    let nvrtc = compile(library, key, arch, &kernels.sources).map_err(|error| error.to_string())?;
    compare_code(&nvcc, &nvrtc.cubin)?;
    // What a launch goes by must agree as well.
    if entry.entry_points != nvrtc.entry_points {
        return Err(format!(
            "{:?} and {:?}",
            entry.entry_points, nvrtc.entry_points
        ));
    }
    Ok(())
}

/// Compares entry points and code sections.
fn compare_code(nvcc: &[u8], nvrtc: &[u8]) -> Result<(), String> {
    let of_nvcc = inspect_cubin(nvcc).map_err(|error| error.to_string())?;
    let of_nvrtc = inspect_cubin(nvrtc).map_err(|error| error.to_string())?;
    if of_nvcc.entry_points != of_nvrtc.entry_points {
        return Err(format!(
            "entry points {:?} and {:?}",
            of_nvcc.entry_points, of_nvrtc.entry_points
        ));
    }
    let nvcc_text = text_sections(nvcc).map_err(|error| error.to_string())?;
    let nvrtc_text = text_sections(nvrtc).map_err(|error| error.to_string())?;
    let names = |text: &[(&str, &[u8])]| -> Vec<String> {
        text.iter().map(|(name, _)| (*name).to_owned()).collect()
    };
    if names(&nvcc_text) != names(&nvrtc_text) || nvcc_text.len() < of_nvcc.entry_points.len() {
        return Err(format!(
            "sections {:?} and {:?}",
            names(&nvcc_text),
            names(&nvrtc_text)
        ));
    }
    let differing = nvcc_text
        .iter()
        .zip(&nvrtc_text)
        .filter(|(nvcc, nvrtc)| nvcc != nvrtc);
    let differing: Vec<&str> = differing.map(|((name, _), _)| *name).collect();
    if !differing.is_empty() {
        return Err(format!("the machine code differs in {differing:?}"));
    }
    Ok(())
}
