//! Runs the harness in a directory of the test's own, its output shown where the test fails.

use std::path::Path;
use std::process::{Command, Output};

pub(crate) fn run(command: &str, flags: &[&str], directory: &Path) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_peersum-harness"))
        .arg(command)
        .args(flags)
        .current_dir(directory)
        .output()
        .unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    println!("{}", String::from_utf8_lossy(&output.stderr));
    output
}
