use crate::checkout::{Answer, Checkout, pinned_nvcc, snapshot, test_file};
use std::fs;
use std::process::Command;

#[test]
fn an_unknown_value_is_one_error_that_lists_the_valid_ones() {
    for (arguments, words) in [
        (
            ["--arch", "sm90"],
            &["sm90", "sm_90", "compute_80", "native"][..],
        ),
        (["--dtype", "f64"], &["f64", "f16, bf16, f32"]),
        (["--world-size", "9"], &["9", "1 to 8"]),
        (["--world-size", "2..9"], &["9", "1 to 8"]),
        (["--world-size", "8..2"], &["8..2", "1 to 8"]),
        (["--world-size", "two"], &["two", "1 to 8"]),
        (["--world-size", "0"], &["0", "1 to 8"]),
        (["--family", "ring"], &["ring", "push, pull, norm"]),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        let answer = Answer::of(command.arg("precompile").args(arguments)).failed_saying(words);
        assert_eq!(answer.stderr.matches("error: ").count(), 1, "{answer:#?}");
    }
}

#[test]
fn a_selection_without_modules_is_refused_and_the_output_stays() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("cubins");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("manifest.json"), "what was there").unwrap();
    let before = snapshot(&out);
    for selection in [
        &["--dtype", "i64"][..],
        &["--family", "move", "--dtype", "bf16"],
        &["--family", "push", "--world-size", "1"],
    ] {
        for check in [&[][..], &["--check"]] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
            command.args(["precompile", "--arch", "sm_90", "--out"]);
            command.arg(&out).args(selection).args(check);
            Answer::of(&mut command).failed_saying(&[
                "--family, --dtype and --world-size",
                "push: f16, bf16, f32 for world sizes 2 to 8",
                "move: u8 for world sizes 2 to 8",
            ]);
            assert_eq!(snapshot(&out), before);
        }
    }
}

#[test]
fn an_architecture_that_the_compiler_does_not_know_is_an_error_with_its_list() {
    let checkout = Checkout::new();
    Answer::of(&mut checkout.precompile_with("pinned", "sm_81", &[])).failed_saying(&[
        "sm_81",
        "it lists: ",
        "sm_90",
        "--arch",
    ]);
    assert!(!checkout.out().exists());
}

#[test]
fn an_architecture_older_than_the_kernels_need_is_refused_before_a_compiler_starts() {
    let checkout = Checkout::new();
    for old in ["sm_75", "compute_75", "sm_52a", "sm_90,sm_70"] {
        let mut command = checkout.precompile_with("pinned", old, &[]);
        let answer = Answer::of(&mut command).failed_saying(&["--arch", "sm_80 and newer"]);
        assert_eq!(answer.stderr.matches("error: ").count(), 1, "{answer:#?}");
        assert_eq!(checkout.compiled(), 0, "{old}");
        assert!(!checkout.out().exists());
    }
}

#[test]
fn native_on_a_machine_of_old_gpus_says_what_the_kernels_need() {
    let checkout = Checkout::new();
    Answer::of(&mut checkout.precompile_native("7.5 7.0"))
        .failed_saying(&["sm_70, sm_75", "sm_80 and newer"]);
    assert_eq!(checkout.compiled(), 0);
}

#[test]
fn native_without_a_gpu_is_an_error_that_says_what_to_do() {
    let checkout = Checkout::new();
    Answer::of(&mut checkout.precompile_native(""))
        .failed_saying(&["no NVIDIA GPU", "--arch sm_90"]);
}

#[test]
fn a_compile_error_is_shown_with_its_module_and_command_and_leaves_the_earlier_output() {
    let checkout = Checkout::new();
    Answer::of(&mut checkout.precompile(&[])).succeeded();
    let earlier = checkout.whole_output();
    checkout.edit("pull.cu", "out[0]", "nonsense[0]");
    let answer = Answer::of(&mut checkout.precompile(&[])).failed_saying(&[
        "error: peersum_pull_bf16_ws2.sm_90",
        "error: peersum_pull_bf16_ws3.sm_90",
        "pull.cu(6)",
        "nonsense",
        "0 built, 2 reused, 2 failed",
    ]);
    assert_eq!(checkout.whole_output(), earlier);

    // The command can be pasted and prints the same error.
    let command = answer
        .stderr
        .lines()
        .find_map(|line| line.trim().strip_prefix("command: "))
        .unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let mut pasted = Command::new("sh");
    pasted
        .arg("-c")
        .arg(command)
        .current_dir(elsewhere.path())
        .env("CXX_LOG", elsewhere.path().join("log"));
    let pasted = Answer::of(&mut pasted);
    assert_ne!(pasted.code, Some(0));
    assert!(pasted.stderr.contains("nonsense"), "{pasted:#?}");

    // After the fix, the next run makes what was missing.
    checkout.edit("pull.cu", "nonsense[0]", "out[0]");
    Answer::of(&mut checkout.precompile(&[])).succeeded();
    assert_eq!(checkout.whole_output(), earlier);
}

#[test]
fn everything_a_failing_nvcc_says_is_shown_and_the_rest_still_runs() {
    let checkout = Checkout::new();
    let nvcc = test_file("fakes/nvcc-failing.sh");
    let mut command = checkout.precompile_with(nvcc.to_str().unwrap(), "sm_90", &[]);
    let answer = Answer::of(command.env("REAL_NVCC", pinned_nvcc())).failed_saying(&[
        "error: peersum_push_bf16_ws3.sm_90: nvcc failed: exit status 42",
        "1 built, 0 reused, 3 failed",
    ]);
    let said: Vec<&str> = answer
        .stderr
        .lines()
        .filter_map(|line| line.strip_prefix("  | "))
        .collect();
    let mut expected = vec!["line 1 on stdout".to_owned()];
    expected.extend(
        (1..=20).map(|line| format!("line {line} on stderr: $HOME 'quoted' \"twice\" \\n")),
    );
    expected.push("no newline at the end".to_owned());
    assert_eq!(said, [&expected[..], &expected[..], &expected[..]].concat());
    assert!(!checkout.out().exists(), "nothing was published");
}

#[test]
fn a_kernel_that_spills_registers_is_refused() {
    let checkout = Checkout::new();
    // 64 live values, but only 32 registers a thread for two blocks of 1024 threads.
    let mut body =
        String::from("float v[64];\n#pragma unroll\nfor (int i = 0; i < 64; ++i) v[i] = out[i];\n");
    body.push_str(
        "asm volatile(\"bar.sync 0;\" ::: \"memory\");\n\
         #pragma unroll\nfor (int i = 0; i < 64; ++i) out[63 - i] = v[i];\n",
    );
    checkout.edit(
        "push.cu",
        "__launch_bounds__(512)",
        "__launch_bounds__(1024, 2)",
    );
    checkout.edit("push.cu", "out[0] += PEERSUM_WORLD_SIZE;", &body);
    Answer::of(&mut checkout.precompile(&[])).failed_saying(&[
        "registers spill to memory in `peersum_push_one_shot_bf16_ws2`",
        "launch bounds",
        "2 built, 0 reused, 2 failed",
    ]);
    // A kernel that is only measured may.
    let answer = Answer::of(&mut checkout.precompile(&["--allow-spills"])).succeeded();
    let warning = "registers spill to memory in `peersum_push_one_shot_bf16_ws2`";
    assert!(answer.stderr.contains(warning), "{answer:#?}");
    // A run without the flag does not reuse them.
    Answer::of(&mut checkout.precompile(&[])).failed_saying(&[warning]);
}

#[test]
fn a_file_that_comes_into_the_output_during_a_run_is_not_deleted() {
    let checkout = Checkout::new();
    Answer::of(&mut checkout.precompile(&[])).succeeded();
    checkout.edit("push.cu", "out[0] +=", "out[1] +=");
    // The host compiler writes it.
    let notes = checkout.out().join("notes.txt");
    Answer::of(checkout.precompile(&[]).env("CXX_LOG", &notes)).failed_saying(&[
        "notes.txt",
        "which precompile did not write",
        "--out",
    ]);
    assert!(notes.exists());
    fs::remove_file(notes).unwrap();
    Answer::of(&mut checkout.precompile(&[])).succeeded();
}

#[test]
fn a_kernel_without_its_entry_point_is_refused() {
    let checkout = Checkout::new();
    checkout.edit(
        "push.cu",
        "PEERSUM_ENTRY(push, two_shot)",
        "PEERSUM_ENTRY(pull, two_shot)",
    );
    Answer::of(&mut checkout.precompile(&[]))
        .failed_saying(&["no entry point `peersum_push_two_shot_bf16_ws2`"]);
}

#[test]
fn an_include_of_anything_but_the_kernels_is_refused_before_a_compiler_starts() {
    let checkout = Checkout::new();
    checkout.edit(
        "push.cu",
        "#include \"names.cuh\"",
        "#include \"names.cuh\"\n#include <cuda_fp16.h>",
    );
    Answer::of(&mut checkout.precompile(&[])).failed_saying(&["push.cu:2", "cuda_fp16.h"]);
    assert_eq!(checkout.compiled(), 0);
}

#[test]
fn sources_edited_while_they_are_compiled_are_not_published() {
    let checkout = Checkout::new();
    let mut command = checkout.precompile(&[]);
    command.env(
        "CXX_BEFORE",
        format!(
            "echo '// edited' >> {}",
            checkout.kernels().join("scale.cuh").display()
        ),
    );
    Answer::of(&mut command).failed_saying(&["changed while they were compiled", "run it again"]);
    assert!(!checkout.out().exists());
}

#[test]
fn an_output_that_cannot_be_written_is_one_error() {
    let checkout = Checkout::new();
    let file = checkout.path().join("file");
    fs::write(&file, "mine").unwrap();
    // Not by a directory's permissions: the superuser, who may run this test, ignores them.
    for out in [
        "/proc/peersum/cubins",
        file.join("cubins").to_str().unwrap(),
        file.to_str().unwrap(),
    ] {
        Answer::of(&mut checkout.precompile(&["--out", out])).failed_saying(&["--out"]);
    }
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    assert_eq!(checkout.compiled(), 0);
}

#[test]
fn a_directory_with_files_of_somebody_else_is_not_replaced() {
    let checkout = Checkout::new();
    fs::create_dir(checkout.out()).unwrap();
    fs::write(checkout.out().join("thesis.txt"), "years of work").unwrap();
    Answer::of(&mut checkout.precompile(&[])).failed_saying(&["thesis.txt", "--out"]);
    assert_eq!(
        fs::read(checkout.out().join("thesis.txt")).unwrap(),
        b"years of work"
    );
    assert_eq!(checkout.compiled(), 0);
}

#[test]
fn the_output_of_a_newer_peersum_is_left_alone() {
    let checkout = Checkout::new();
    Answer::of(&mut checkout.precompile(&[])).succeeded();
    let manifest = checkout.out().join("manifest.json");
    let newer = fs::read_to_string(&manifest)
        .unwrap()
        .replace("\"schema\": 2", "\"schema\": 3");
    fs::write(&manifest, newer).unwrap();
    let before = snapshot(&checkout.out());
    Answer::of(&mut checkout.precompile(&[])).failed_saying(&[
        "newer peersum",
        "schema 3",
        "--out",
    ]);
    Answer::of(&mut checkout.check()).failed_saying(&["schema 3"]);
    assert_eq!(snapshot(&checkout.out()), before);
}

/// Runs `script` in a shell that `prefix` starts; "$@" in it is the precompile command.
fn in_shell(checkout: &Checkout, arguments: &[&str], prefix: &[&str], script: &str) -> Answer {
    let command = checkout.precompile(arguments);
    let words: Vec<&str> = prefix
        .iter()
        .copied()
        .chain(["sh", "-c", script, "sh"])
        .collect();
    let mut shell = Command::new(words[0]);
    shell
        .args(&words[1..])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command
        .get_envs()
        .filter_map(|(name, value)| Some((name, value?)))
    {
        shell.env(name, value);
    }
    Answer::of(shell.current_dir(checkout.path()))
}

/// A mount namespace, in which a test may mount file systems.
const NAMESPACE: [&str; 4] = ["unshare", "--user", "--map-root-user", "--mount"];

#[test]
fn a_file_that_cannot_grow_leaves_the_earlier_output_and_an_error_that_names_it() {
    let checkout = Checkout::new();
    Answer::of(&mut checkout.precompile(&["--family", "push"])).succeeded();
    let earlier = checkout.whole_output();
    // The limit is in blocks of 512 bytes, too few for a module. The signal is ignored, so the
    // write fails instead.
    in_shell(
        &checkout,
        &[],
        &[],
        "trap '' XFSZ; ulimit -f 4; exec \"$@\"",
    )
    .failed_saying(&["error: peersum_pull_bf16_ws2.sm_90", "2 failed"]);
    assert_eq!(checkout.whole_output(), earlier);
}

#[test]
fn a_full_disk_leaves_the_earlier_output() {
    let checkout = Checkout::new();
    Answer::of(&mut checkout.precompile(&["--family", "push"])).succeeded();
    let earlier = checkout.whole_output();
    // A file system with hardly more room than the output needs.
    let script = "mkdir small && mount -t tmpfs -o size=56k tmpfs small && cp -a cubins small && \
                  { \"$@\"; code=$?; cp -a small/cubins after; exit $code; }";
    let out = checkout.path().join("small/cubins");
    let arguments = ["--out", out.to_str().unwrap()];
    let answer = in_shell(&checkout, &arguments, &NAMESPACE, script).failed_saying(&[]);
    // A tool of nvcc either says so or crashes.
    let said = ["No space left on device", "is the disk full?"];
    assert!(
        said.iter().any(|words| answer.stderr.contains(words)),
        "{answer:#?}"
    );
    assert_eq!(snapshot(&checkout.path().join("after")), earlier);
}

#[test]
fn an_output_that_is_a_mount_point_is_replaced_file_by_file() {
    let checkout = Checkout::new();
    Answer::of(&mut checkout.precompile(&["--family", "push"])).succeeded();
    // A mount point cannot be renamed, and its files are on another file system.
    let script = "mount --bind cubins cubins && exec \"$@\"";
    let answer = in_shell(&checkout, &["--family", "pull"], &NAMESPACE, script);
    assert_eq!(answer.code, Some(0), "{answer:#?}");
    assert_eq!(checkout.whole_output().len(), 2 + 1);
}
