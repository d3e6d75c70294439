//! Which nvcc and which host compiler are used, and what the notes say about the others.

use crate::machine::{Answer, Machine, fake};
use std::env;
use std::fs;
use std::path::Path;

/// The first lines of `toolchain which`, for an nvcc of `toolkit`.
fn nvcc_of(toolkit: &Path, origin: &str, version: &str) -> String {
    format!(
        "nvcc           {} (of {origin})\nversion        {version}\n",
        toolkit.join("bin/nvcc").display()
    )
}

#[test]
fn the_order_is_nvcc_cuda_home_cuda_path_path() {
    let machine = Machine::new();
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| machine.toolkit(name, "13.0.1"));
    let path = env::join_paths([machine.path("bin"), d.join("bin")]).unwrap();
    let mut which = machine.toolchain(&["which"]);
    which
        .env("NVCC", a.join("bin/nvcc"))
        .env("CUDA_HOME", &b)
        .env("CUDA_PATH", &c)
        .env("PATH", path);
    for (origin, toolkit) in [
        ("$NVCC", &a),
        ("$CUDA_HOME", &b),
        ("$CUDA_PATH", &c),
        ("PATH", &d),
    ] {
        let answer = Answer::of(&mut which).succeeded();
        assert!(
            answer
                .stdout
                .starts_with(&nvcc_of(toolkit, origin, "13.0.1")),
            "{answer:#?}"
        );
        assert_eq!(answer.stderr, "");
        which.env_remove(origin.trim_start_matches('$'));
    }
}

#[test]
fn toolkit_takes_a_directory_or_a_program_and_comes_before_all_else() {
    let machine = Machine::new();
    let chosen = machine.toolkit("chosen", "12.4.131");
    let other = machine.toolkit("other", "13.0.1");
    for toolkit in [chosen.clone(), chosen.join("bin/nvcc")] {
        let mut which = machine.toolchain(&["which", "--toolkit"]);
        which.arg(toolkit).env("NVCC", other.join("bin/nvcc"));
        let answer = Answer::of(&mut which).succeeded();
        let expected = nvcc_of(&chosen, "--toolkit", "12.4.131");
        assert!(answer.stdout.starts_with(&expected), "{answer:#?}");
        assert!(
            answer.stdout.contains("cuda_12.4.r12.4/compiler.1_0"),
            "{answer:#?}"
        );
        assert!(
            answer.stdout.contains("sm_80 sm_90 compute_80 compute_90"),
            "{answer:#?}"
        );
    }
}

#[test]
fn toolkit_pinned_ignores_what_the_machine_has() {
    let machine = Machine::new();
    let toolkit = machine.toolkit("a", "13.0.1");
    let mut which = machine.toolchain(&["which", "--toolkit", "pinned"]);
    which.env("NVCC", toolkit.join("bin/nvcc"));
    let answer = Answer::of(&mut which).succeeded();
    assert!(
        answer.stdout.starts_with("the pinned toolchain"),
        "{answer:#?}"
    );
}

#[test]
fn cuda_12_4_to_13_x_is_supported_and_nothing_else() {
    for (version, supported) in [
        ("11.8.89", false),
        ("12.3.107", false),
        ("12.4.0", true),
        ("12.9.41", true),
        ("13.0.88", true),
        ("13.9.1", true),
        ("14.0.1", false),
    ] {
        let machine = Machine::new();
        let toolkit = machine.toolkit("cuda", version);
        let answer = Answer::of(machine.toolchain(&["which", "--toolkit"]).arg(toolkit));
        assert_eq!(answer.success, supported, "{version}: {answer:#?}");
    }
}

#[test]
fn an_explicit_nvcc_that_is_too_old_is_an_error_that_says_what_is_supported() {
    let machine = Machine::new();
    let old = machine.toolkit("old", "11.8.89");
    let good = machine.toolkit("good", "13.0.1");

    let mut by_flag = machine.toolchain(&["which", "--toolkit"]);
    by_flag.arg(&old).env("CUDA_HOME", &good);
    let answer = Answer::of(&mut by_flag).failed();
    let program = old.join("bin/nvcc");
    answer.says(&["--toolkit", "11.8", "12.4 to 13.x", "--toolkit pinned"]);
    answer.says(&[program.to_str().unwrap()]);

    let mut by_variable = machine.toolchain(&["which"]);
    by_variable.env("NVCC", &program).env("CUDA_HOME", &good);
    Answer::of(&mut by_variable)
        .failed()
        .says(&["$NVCC", "11.8", "12.4 to 13.x"]);
}

#[test]
fn an_explicit_nvcc_that_is_not_there_is_an_error() {
    let machine = Machine::new();
    machine
        .ask(&["which", "--toolkit", "/nowhere/cuda"])
        .failed()
        .says(&["/nowhere/cuda", "no such program"]);
    Answer::of(machine.toolchain(&["which"]).env("NVCC", "nvcc-13"))
        .failed()
        .says(&["$NVCC", "nvcc-13", "no such program"]);
}

#[test]
fn a_discovered_nvcc_that_is_too_old_is_one_note_and_the_next_is_tried() {
    let machine = Machine::new();
    let old = machine.toolkit("old", "11.8.89");
    let good = machine.toolkit("good", "12.4.131");
    // The old one is found three times and mentioned once.
    let path = [
        old.join("bin"),
        old.join("bin"),
        good.join("bin"),
        machine.path("bin"),
    ];
    let mut which = machine.toolchain(&["which"]);
    which
        .env("CUDA_HOME", &old)
        .env("PATH", env::join_paths(path).unwrap());
    let answer = Answer::of(&mut which).succeeded();
    assert!(
        answer
            .stdout
            .starts_with(&nvcc_of(&good, "PATH", "12.4.131")),
        "{answer:#?}"
    );
    assert_eq!(answer.passed_over(), 1, "{answer:#?}");
    assert_eq!(answer.stderr.lines().count(), 1, "{answer:#?}");
    answer.says(&["$CUDA_HOME", "11.8", "12.4 to 13.x"]);
}

#[test]
fn a_cuda_home_without_nvcc_is_one_note_and_the_next_is_tried() {
    let machine = Machine::new();
    let good = machine.toolkit("good", "13.0.1");
    let mut which = machine.toolchain(&["which"]);
    which.env("CUDA_HOME", "/nowhere").env("CUDA_PATH", &good);
    let answer = Answer::of(&mut which).succeeded();
    assert!(
        answer
            .stdout
            .starts_with(&nvcc_of(&good, "$CUDA_PATH", "13.0.1")),
        "{answer:#?}"
    );
    assert_eq!(answer.passed_over(), 1, "{answer:#?}");
    answer.says(&["/nowhere/bin/nvcc", "no such program"]);
}

#[test]
fn what_a_crashing_nvcc_printed_is_shown_whole_if_it_was_asked_for() {
    let machine = Machine::new();
    let crashing = machine.broken_toolkit("crashing", "nvcc-crashing.sh");
    Answer::of(machine.toolchain(&["which", "--toolkit"]).arg(&crashing))
        .failed()
        .says(&[
            "--version",
            "signal: 11",
            "error while loading shared libraries: libnothere.so.1",
            "second line of what it says",
        ]);

    let good = machine.toolkit("good", "13.0.1");
    let mut which = machine.toolchain(&["which"]);
    which.env("CUDA_HOME", &crashing).env("CUDA_PATH", &good);
    let answer = Answer::of(&mut which).succeeded();
    assert_eq!(answer.stderr.lines().count(), 1, "{answer:#?}");
    assert_eq!(answer.passed_over(), 1, "{answer:#?}");
}

#[test]
fn a_program_that_does_not_answer_as_nvcc_is_not_taken_for_one() {
    let machine = Machine::new();
    let garbled = machine.broken_toolkit("garbled", "nvcc-garbled.sh");
    Answer::of(machine.toolchain(&["which", "--toolkit"]).arg(&garbled))
        .failed()
        .says(&["did not answer as nvcc does", "Welcome to the compile farm"]);

    // A file that is not a program.
    let text = machine.path("text");
    fs::write(&text, "not a program").unwrap();
    Answer::of(machine.toolchain(&["which", "--toolkit"]).arg(&text))
        .failed()
        .says(&["cannot be started"]);
}

#[test]
fn a_toolkit_that_lost_its_device_compiler_is_passed_over() {
    let machine = Machine::new();
    let half = machine.toolkit("half", "13.0.1");
    let good = machine.toolkit("good", "13.0.1");
    fs::remove_file(half.join("nvvm/bin/cicc")).unwrap();
    Answer::of(machine.toolchain(&["which", "--toolkit"]).arg(&half))
        .failed()
        .says(&["incomplete", "nvvm/bin/cicc"]);
    let mut which = machine.toolchain(&["which"]);
    which.env("CUDA_HOME", &half).env("CUDA_PATH", &good);
    let answer = Answer::of(&mut which).succeeded();
    assert_eq!(answer.passed_over(), 1, "{answer:#?}");
}

#[test]
fn the_host_compiler_is_the_named_one_else_the_usual_ones_in_order() {
    let machine = Machine::new();
    let toolkit = machine.toolkit("cuda", "13.0.1");
    let bin = machine.path("bin");
    let host_compiler = |variables: &[(&str, &str)]| {
        let mut which = machine.toolchain(&["which", "--toolkit"]);
        which.arg(&toolkit).envs(variables.iter().copied());
        let answer = Answer::of(&mut which).succeeded();
        let line = answer
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix("host compiler  "))
            .map(str::to_owned);
        line.unwrap()
    };
    let on_path = |name: &str| bin.join(name).to_str().unwrap().to_owned();

    for name in ["my-c++", "clang++", "g++", "cc"] {
        machine.has(name, &fake("cxx.sh"));
    }
    let (mine, clang) = (on_path("my-c++"), on_path("clang++"));
    assert_eq!(
        host_compiler(&[("NVCC_CCBIN", "my-c++"), ("CXX", "clang++")]),
        mine
    );
    assert_eq!(host_compiler(&[("CXX", &clang)]), clang);
    // A command line cannot be passed to nvcc.
    assert_eq!(host_compiler(&[("CXX", "ccache g++")]), on_path("c++"));
    for name in ["c++", "g++", "clang++", "cc"] {
        assert_eq!(host_compiler(&[]), on_path(name));
        fs::remove_file(on_path(name)).unwrap();
    }
}

#[test]
fn a_relative_directory_of_the_host_compiler_is_made_absolute() {
    let machine = Machine::new();
    let toolkit = machine.toolkit("cuda", "13.0.1");
    let mut which = machine.toolchain(&["which", "--toolkit"]);
    which.arg(&toolkit).env("NVCC_CCBIN", "./bin");
    which.current_dir(machine.path("bin").parent().unwrap());
    let expected = format!("host compiler  {}\n", machine.path("bin").display());
    let answer = Answer::of(&mut which).succeeded();
    assert!(answer.stdout.contains(&expected), "{answer:#?}");
}

#[test]
fn no_host_compiler_is_an_error_that_says_what_to_install() {
    let machine = Machine::new();
    let toolkit = machine.toolkit("cuda", "13.0.1");
    let mut which = machine.toolchain(&["which", "--toolkit"]);
    which.arg(&toolkit).env("NVCC_CCBIN", "nothere");
    Answer::of(&mut which)
        .failed()
        .says(&["NVCC_CCBIN", "nothere"]);

    fs::remove_file(machine.path("bin/c++")).unwrap();
    which.env_remove("NVCC_CCBIN");
    Answer::of(&mut which)
        .failed()
        .says(&["C++ compiler", "apt install g++", "NVCC_CCBIN"]);
}

#[test]
fn a_relative_cuda_home_or_cuda_path_is_passed_over_with_a_note() {
    let machine = Machine::new();
    // In the directory that the command runs in.
    machine.toolkit("cuda", "13.0.1");
    let good = machine.toolkit("good", "13.0.1");
    let mut which = machine.toolchain(&["which"]);
    which.env("CUDA_HOME", "cuda").env("CUDA_PATH", &good);
    let answer = Answer::of(&mut which).succeeded();
    let expected = nvcc_of(&good, "$CUDA_PATH", "13.0.1");
    assert!(answer.stdout.starts_with(&expected), "{answer:#?}");
    answer.says(&["passed over cuda ($CUDA_HOME): it must be an absolute path"]);

    let mut which = machine.toolchain(&["which"]);
    which.env("CUDA_PATH", "./cuda");
    let answer = Answer::of(&mut which).succeeded();
    assert!(!answer.stdout.contains("$CUDA_PATH"), "{answer:#?}");
    assert_eq!(answer.passed_over(), 1, "{answer:#?}");
}
