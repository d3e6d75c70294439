//! NVIDIA's own wheels: installed once into the user's cache, as `precompile` does, and used.

use crate::machine::Answer;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

fn toolchain(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.arg("toolchain").args(arguments);
    command
}

/// The pinned compiler's directory. The settings are ones that have broken such installs. If an
/// earlier run has made the install, they change nothing.
fn compiler() -> PathBuf {
    let mut install = toolchain(&["install"]);
    install
        .env("PIP_DRY_RUN", "1")
        .env("PIP_USER", "1")
        .env("PIP_REQUIRE_VIRTUALENV", "1");
    Answer::of(&mut install).succeeded().directory()
}

#[test]
fn the_pinned_compiler_is_cuda_13_0_88_and_compiles_for_the_release_set() {
    let dir = compiler();
    let answer = Answer::of(&mut toolchain(&["which", "--toolkit", "pinned"])).succeeded();
    let nvcc = dir.join("nvidia/cu13/bin/nvcc");
    for expected in [
        nvcc.to_str().unwrap(),
        "version        13.0.88\n",
        "build          cuda_13.0.r13.0/compiler.36424714_0\n",
    ] {
        assert!(answer.stdout.contains(expected), "{expected}: {answer:#?}");
    }

    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("kernel.cu");
    fs::write(
        &source,
        "extern \"C\" __global__ void store(int *p) { *p = 1; }\n",
    )
    .unwrap();
    for target in ["sm_80", "sm_90", "sm_100", "sm_120"] {
        let cubin = work.path().join(target);
        let mut compile = Command::new(&nvcc);
        compile
            // With nvcc's own headers this would also test this machine's C library.
            .args(["-I", concat!(env!("CARGO_MANIFEST_DIR"), "/prelude")])
            .args(["-cubin", "-ccbin", "c++", "-arch", target, "-o"])
            .arg(&cubin)
            .arg(&source);
        Answer::of(&mut compile).succeeded();
        assert_eq!(&fs::read(cubin).unwrap()[..4], b"\x7fELF");
    }
}

#[test]
fn the_pinned_nvcc_is_asked_once_when_the_machine_has_it_as_its_own() {
    // The same program as a toolkit of the machine: a real nvcc's answers can be remembered.
    let toolkit = compiler().join("nvidia/cu13");
    let memory = tempfile::tempdir().unwrap();
    let mut which = toolchain(&["which", "--toolkit"]);
    which
        .arg(&toolkit)
        .env("PEERSUM_TOOLCHAIN_DIR", memory.path());
    let first = Answer::of(&mut which).succeeded();
    assert!(first.stdout.contains("13.0.88"), "{first:#?}");
    let remembered = fs::read_dir(memory.path().join("compilers")).unwrap();
    assert_eq!(remembered.count(), 1);
    assert_eq!(Answer::of(&mut which).succeeded().stdout, first.stdout);
}
