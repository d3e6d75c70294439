//! NVRTC and nvcc of one release make the same machine code, so a module compiled at run time behaves like the shipped one.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up fails")]

#[path = "loader/toolchain.rs"]
mod toolchain;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use peersum::loader::KernelSet;
use peersum::loader::nvrtc::{NvrtcLibrary, compile};
use peersum_artifact::{
    Arch, Manifest, ModuleKey, Target, include_closure, inspect_cubin, text_sections, verify_file,
};

/// Compiles all 42 modules for `arch` with NVRTC and compares each with nvcc's.
fn compare_all(arch: Arch) {
    let library = NvrtcLibrary::open(&toolchain::nvrtc()).unwrap();
    let directory = toolchain::cubins();
    let manifest = Manifest::read_dir(&directory).unwrap();
    let kernels = KernelSet::embedded();
    let toolkit = manifest.toolkit.toolkit().unwrap();
    assert_eq!(
        (toolkit.major, toolkit.minor),
        library.version(),
        "the cubins are of another CUDA release than NVRTC"
    );

    let keys: Vec<ModuleKey> = ModuleKey::all().collect();
    assert_eq!(keys.len(), 42);
    let next = AtomicUsize::new(0);
    let differences = Mutex::new(Vec::new());
    let check = |key: ModuleKey| -> Result<(), String> {
        let entry = manifest
            .find(key, Target::Cubin(arch))
            .ok_or(format!("nvcc's cubin for sm_{arch} is missing"))?;
        let closure = include_closure(key.source_root(), &kernels.sources)
            .map_err(|error| error.to_string())?;
        if entry.closure_digest != closure.digest {
            return Err(
                "nvcc's cubin was made from other sources: run `cargo xtask precompile`".to_owned(),
            );
        }
        let nvcc = verify_file(&directory, entry).map_err(|error| error.to_string())?;
        let nvrtc =
            compile(&library, key, arch, &kernels.sources).map_err(|error| error.to_string())?;
        let of_nvcc = inspect_cubin(&nvcc).map_err(|error| error.to_string())?;
        let of_nvrtc = inspect_cubin(&nvrtc.cubin).map_err(|error| error.to_string())?;
        if of_nvcc.entry_points != of_nvrtc.entry_points {
            return Err(format!(
                "entry points {:?} and {:?}",
                of_nvcc.entry_points, of_nvrtc.entry_points
            ));
        }
        let nvcc_text = text_sections(&nvcc).map_err(|error| error.to_string())?;
        let nvrtc_text = text_sections(&nvrtc.cubin).map_err(|error| error.to_string())?;
        let names = |text: &[(String, Vec<u8>)]| -> Vec<String> {
            text.iter().map(|(name, _)| name.clone()).collect()
        };
        if names(&nvcc_text) != names(&nvrtc_text) || nvcc_text.len() < 2 {
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
        let differing: Vec<&String> = differing.map(|((name, _), _)| name).collect();
        if !differing.is_empty() {
            return Err(format!("the machine code differs in {differing:?}"));
        }
        // What a launch goes by must agree as well.
        if entry.entry_points != nvrtc.entry_points {
            return Err(format!(
                "{:?} and {:?}",
                entry.entry_points, nvrtc.entry_points
            ));
        }
        Ok(())
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(&key) = keys.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(difference) = check(key) {
                        differences
                            .lock()
                            .unwrap()
                            .push(format!("{key}: {difference}"));
                    }
                }
            });
        }
    });
    let mut differences = differences.into_inner().unwrap();
    differences.sort();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn nvrtc_makes_the_machine_code_of_nvcc_for_every_module_on_sm_90() {
    compare_all(Arch::plain(9, 0));
}
