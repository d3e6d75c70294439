//! NVRTC itself: what it is asked, what it answers, and what happens without it.

use std::fs;
use std::path::Path;
use std::process::Command;

use peersum::loader::nvrtc::{NvrtcError, NvrtcLibrary, build_id, compile};
use peersum::loader::{JitMode, LoadError, LoadPolicy, Reason, load_from};
use peersum_artifact::{Arch, inspect_cubin};
use tempfile::tempdir;

use crate::support::{
    SM_80, SM_90, compiled, device, faults, jit_policy, kernels, library, load_push, not_found,
    push,
};
use crate::toolchain;

#[test]
fn a_module_is_compiled_from_sources_in_memory_to_a_cubin_for_the_architecture_asked_for() {
    for arch in [SM_80, SM_90] {
        let module = compiled(push(), arch);
        let cubin = inspect_cubin(&module.cubin).unwrap();
        assert_eq!(cubin.arch, arch);
        assert_eq!(cubin.entry_points, push().entry_points());
        for entry_point in &module.entry_points {
            assert_eq!(entry_point.max_threads, 384);
            assert_eq!(entry_point.pdl, arch == SM_90);
            assert!(entry_point.resources.unwrap().registers > 0);
        }
    }
}

#[test]
fn a_compile_error_carries_the_whole_log() {
    let mut sources = kernels().sources;
    sources.retain(|(path, _)| *path != "push.cu");
    sources.push((
        "push.cu",
        "#include \"stand_in.cuh\"\n\
         __global__ void f() { first_mistake(); }\n\
         int g = second_mistake;\n",
    ));
    let error = compile(library(), push(), SM_90, &sources).unwrap_err();
    let NvrtcError::Compile { log, module, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(module, "peersum_push_bf16_ws8");
    assert!(
        log.contains("push.cu(2)") && log.contains("first_mistake"),
        "{log}"
    );
    assert!(
        log.contains("push.cu(3)") && log.contains("second_mistake"),
        "{log}"
    );
    assert!(error.to_string().contains(log));
}

#[test]
fn an_architecture_that_nvrtc_does_not_know_is_an_error_with_its_list() {
    let error = compile(library(), push(), Arch::new(8, 1), &kernels().sources).unwrap_err();
    let NvrtcError::ArchUnsupported { supported, .. } = &error else {
        panic!("{error}")
    };
    let knows = |major, minor| supported.contains(&Arch::new(major, minor));
    assert!(knows(9, 0) && !knows(8, 1));
    assert!(
        error.to_string().contains("sm_80, ") && error.to_string().contains("sm_81"),
        "{error}"
    );
}

#[test]
fn an_old_gpu_is_refused_with_what_the_kernels_need_before_any_place_is_looked_at() {
    for arch in [Arch::new(7, 5), Arch::new(6, 1)] {
        // Sources that no compiler takes: nothing may be compiled.
        let sources = [("push.cu", "mistake")];
        let error = compile(library(), push(), arch, &sources).unwrap_err();
        assert!(matches!(error, NvrtcError::ArchTooOld { .. }), "{error}");
        assert!(error.to_string().contains("sm_80 and newer"), "{error}");

        for mode in [JitMode::Allow, JitMode::Deny, JitMode::Force] {
            let policy = jit_policy().jit(mode);
            let error = load_from(&policy, &kernels(), push(), &device(arch)).unwrap_err();
            assert!(matches!(error, LoadError::ArchTooOld { .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains("sm_80 and newer"), "{text}");
            assert!(!text.contains("precompile"), "{text}");
        }
    }
}

#[test]
fn without_nvrtc_the_error_says_what_was_looked_for_and_where_and_what_to_install() {
    let policy = LoadPolicy::default().nvrtc_library("/nowhere/libnvrtc.so.13");
    let (passed_over, text) = not_found(load_push(&policy));
    assert!(
        matches!(
            faults(&passed_over)[..],
            [
                Reason::Nvrtc(NvrtcError::NotFound { .. }),
                Reason::NoEntry { .. }
            ] | [Reason::Nvrtc(NvrtcError::NotFound { .. })]
        ),
        "{text}"
    );
    assert!(
        text.contains("looked at: /nowhere/libnvrtc.so.13") && text.contains("nvidia-cuda-nvrtc"),
        "{text}"
    );
}

#[test]
fn a_file_that_is_no_library_is_a_typed_error() {
    let directory = tempdir().unwrap();
    let text_file = directory.path().join("libnvrtc.so.13");
    fs::write(&text_file, "not a library").unwrap();
    let error = NvrtcLibrary::open(&text_file).unwrap_err();
    assert!(matches!(error, NvrtcError::Open { .. }), "{error}");
    assert_eq!(build_id(&text_file).unwrap(), None);

    let (passed_over, text) =
        not_found(load_push(&LoadPolicy::default().nvrtc_library(&text_file)));
    assert!(
        matches!(
            faults(&passed_over)[..],
            [Reason::Nvrtc(NvrtcError::Open { .. })]
        ),
        "{text}"
    );
}

#[test]
fn a_library_that_is_not_nvrtc_is_a_typed_error() {
    // The C library, which is loaded already, whatever its path.
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let libc = maps
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .find(|path| path.contains("libc.so") || path.contains("libc-"))
        .unwrap();
    let error = NvrtcLibrary::open(Path::new(libc)).unwrap_err();
    assert!(
        matches!(
            error,
            NvrtcError::MissingSymbol {
                symbol: "nvrtcVersion",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn the_build_id_is_the_sha1_that_the_linker_noted() {
    let id = build_id(&toolchain::nvrtc()).unwrap().unwrap();
    assert_eq!(id.len(), 40);
    assert!(id.bytes().all(|digit| digit.is_ascii_hexdigit()));
}

/// Set in a child, which then says where it would take NVRTC from.
const ASKED: &str = "PEERSUM_TEST_NVRTC_SEARCH";

#[test]
fn a_relative_cuda_home_or_cuda_path_never_leads_to_a_library() {
    if std::env::var_os(ASKED).is_some() {
        let policy = LoadPolicy::from_env().unwrap();
        let search = policy.nvrtc_search();
        for file in search.files() {
            println!("\nTOLD {}", file.path.display());
        }
        println!("\nTOLD looked at {}", search.looked_at().join(", "));
        return;
    }
    let directory = tempdir().unwrap();
    let directory = directory.path().canonicalize().unwrap();
    let toolkit = directory.join("cuda");
    for lib in ["lib", "lib64"] {
        fs::create_dir_all(toolkit.join(lib)).unwrap();
        for name in ["libnvrtc.so.13", "libnvrtc.so.12"] {
            fs::copy(toolchain::nvrtc(), toolkit.join(lib).join(name)).unwrap();
        }
    }
    let asked = |variable: &str, value: &Path| {
        let test = "nvrtc::a_relative_cuda_home_or_cuda_path_never_leads_to_a_library";
        let output = Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .current_dir(&directory)
            .env_remove("CUDA_HOME")
            .env_remove("CUDA_PATH")
            .env(variable, value)
            .env(ASKED, "")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        let told = said.lines().filter_map(|line| line.strip_prefix("TOLD "));
        told.map(str::to_owned).collect::<Vec<_>>()
    };
    for variable in ["CUDA_HOME", "CUDA_PATH", "LD_LIBRARY_PATH"] {
        let lib = if variable == "LD_LIBRARY_PATH" {
            "lib"
        } else {
            ""
        };
        for relative in ["cuda", "./cuda", "../cuda/../cuda"] {
            let relative = if relative.starts_with("..") {
                Path::new("..")
                    .join(directory.file_name().unwrap())
                    .join("cuda")
            } else {
                relative.into()
            };
            let told = asked(variable, &relative.join(lib));
            let files = &told[..told.len() - 1];
            assert!(
                files.iter().all(|file| Path::new(file).is_absolute()),
                "{told:#?}"
            );
            assert!(
                !files
                    .iter()
                    .any(|file| Path::new(file).starts_with(&directory)),
                "{variable}={}: {told:#?}",
                relative.display()
            );
        }
        // The same directory by its absolute path is looked at.
        let told = asked(variable, &toolkit.join(lib));
        assert!(
            told.iter()
                .any(|file| Path::new(file).starts_with(&toolkit)),
            "{told:#?}"
        );
    }
    let told = asked("CUDA_HOME", Path::new("cuda"));
    assert!(
        told.last().unwrap().contains("not cuda: it is relative"),
        "{told:#?}"
    );
}
