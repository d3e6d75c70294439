//! The examples, as their documentation says to run them. (Cargo puts the examples of all packages
//! into one folder, hence their names.)

use std::path::PathBuf;
use std::process::Command;

/// Where cargo put an example. Running named targets only does not build them, so they are built if
/// they are not there.
fn example(name: &str) -> PathBuf {
    // target/PROFILE/deps/this-test
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let path = profile.join("examples").join(name);
    if !path.exists() {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo.args(["build", "--package", "peersum-emulator", "--example", name]);
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        cargo.env("CARGO_TARGET_DIR", profile.parent().unwrap());
        assert!(cargo.status().unwrap().success());
    }
    path
}

/// Runs the shell loop of an example's documentation, with the path of the example for the one of a
/// build by hand.
fn run_shell_loop(name: &str, source: &str) -> String {
    let lines: Vec<&str> = source
        .lines()
        .filter_map(|line| line.strip_prefix("//! "))
        .skip_while(|line| !line.starts_with("for "))
        .take_while(|line| !line.starts_with("```"))
        .collect();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    let script = lines.join("\n");
    let documented = format!("target/debug/examples/{name}");
    assert!(script.contains(&documented), "{script}");
    let script = script.replace(&documented, &example(name).display().to_string());
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new("sh")
        .args(["-c", &script])
        .env("PEERSUM_RENDEZVOUS_DIR", directory.path().join("sockets"))
        .output()
        .unwrap();
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_shell_loop_of_emulated_all_reduce_runs() {
    let said = run_shell_loop(
        "emulated_all_reduce",
        include_str!("../../examples/emulated_all_reduce.rs"),
    );
    for rank in 0..2 {
        assert!(
            said.contains(&format!("rank {rank} of 2: every element is 3")),
            "{said}"
        );
    }
}

#[test]
fn the_shell_loop_of_emulated_graph_runs() {
    let said = run_shell_loop(
        "emulated_graph",
        include_str!("../../examples/emulated_graph.rs"),
    );
    for rank in 0..2 {
        assert!(
            said.contains(&format!("rank {rank}: three replays, 8")),
            "{said}"
        );
    }
}

/// An example that compares its ranks with the reference itself.
#[track_caller]
fn assert_both_ranks_have_the_bits_of_the_reference(name: &str) {
    let output = Command::new(example(name)).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    for rank in 0..2 {
        assert!(
            said.contains(&format!("rank {rank}: the reference's bits")),
            "{said}"
        );
    }
}

#[test]
fn emulated_decoder_block_has_the_bits_of_the_reference_on_both_ranks() {
    assert_both_ranks_have_the_bits_of_the_reference("emulated_decoder_block");
}

#[test]
fn emulated_collectives_has_the_bits_of_the_reference_on_both_ranks() {
    assert_both_ranks_have_the_bits_of_the_reference("emulated_collectives");
}
