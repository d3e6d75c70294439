//! NVRTC and nvcc of one release make the same machine code, so a module compiled at run time
//! behaves like the shipped one.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up fails")]

#[path = "loader/toolchain.rs"]
mod toolchain;

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use peersum::loader::KernelSet;
use peersum::loader::nvrtc::{NvrtcLibrary, compile};
use peersum_artifact::{
    Arch, Dtype, Manifest, ModuleKey, Target, WorldSize, include_closure, inspect_cubin,
    text_sections, verify_file,
};

/// The architecture on which every module is compared. On the others that were precompiled the
/// largest module of each family is compared.
const WHOLE_MATRIX: Arch = Arch::plain(9, 0);

#[test]
fn nvrtc_makes_the_machine_code_of_nvcc_for_every_module() {
    let library = NvrtcLibrary::open(&toolchain::nvrtc()).unwrap();
    let directory = toolchain::cubins();
    let manifest = Manifest::read_dir(&directory).unwrap();
    let kernels = KernelSet::embedded();
    let toolkit = manifest.toolkit.toolkit().unwrap();
    assert_eq!(
        toolkit,
        library.version(),
        "the cubins are of another CUDA release than NVRTC"
    );

    let others = manifest
        .modules
        .iter()
        .filter_map(|entry| match entry.target {
            Target::Cubin(arch)
                if arch != WHOLE_MATRIX
                    && entry.key.dtype == Dtype::Bf16
                    && entry.key.world_size == WorldSize::MAX =>
            {
                Some((entry.key, arch))
            }
            _ => None,
        });
    let pairs: Vec<(ModuleKey, Arch)> = ModuleKey::all()
        .map(|key| (key, WHOLE_MATRIX))
        .chain(others)
        .collect();
    assert!(pairs.len() >= 73);
    let next = AtomicUsize::new(0);
    let differences = Mutex::new(Vec::new());
    let check = |pair| compare(&library, &directory, &manifest, &kernels, pair);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(&pair) = pairs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(difference) = check(pair) {
                        differences
                            .lock()
                            .unwrap()
                            .push(format!("{} for sm_{}: {difference}", pair.0, pair.1));
                    }
                }
            });
        }
    });
    let mut differences = differences.into_inner().unwrap();
    differences.sort();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Compares one module of nvcc with NVRTC's.
fn compare(
    library: &NvrtcLibrary,
    directory: &Path,
    manifest: &Manifest,
    kernels: &KernelSet,
    (key, arch): (ModuleKey, Arch),
) -> Result<(), String> {
    let entry = manifest
        .find(key, Target::Cubin(arch))
        .ok_or(format!("nvcc's cubin for sm_{arch} is missing"))?;
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
