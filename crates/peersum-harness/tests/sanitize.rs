//! What `sanitize` makes of what compute-sanitizer says, with a fake one; and that its grid runs.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn fake() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fakes/compute-sanitizer.sh")
}

/// `sanitize` with a compute-sanitizer that behaves as `behaviour` says.
fn command(behaviour: &str, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peersum-harness"));
    command
        .arg("sanitize")
        .arg("--compute-sanitizer")
        .arg(fake())
        .args(["--cubins", "nowhere"])
        .args(flags)
        .env("BEHAVIOUR", behaviour);
    command
}

/// The same with one tool, which must fail and say why.
#[track_caller]
fn fails(behaviour: &str, flags: &[&str], reasons: &[&str]) -> String {
    let (succeeded, text) = said(&command(behaviour, flags).output().unwrap());
    assert!(!succeeded, "{text}");
    for reason in reasons {
        assert!(text.contains(reason), "no `{reason}` in {text}");
    }
    text
}

fn said(output: &Output) -> (bool, String) {
    let text = [&output.stdout[..], &output.stderr]
        .map(String::from_utf8_lossy)
        .concat();
    assert!(!text.contains("panicked"), "{text}");
    (output.status.success(), text)
}

#[test]
fn four_tools_that_find_their_planted_error_and_nothing_else_are_a_success() {
    let (succeeded, text) = said(&command("sound", &[]).output().unwrap());
    assert!(succeeded, "{text}");
    for tool in ["memcheck", "initcheck", "racecheck", "synccheck"] {
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(tool)).collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].ends_with("the planted error was found"), "{text}");
        assert!(lines[1].ends_with("nothing found"), "{text}");
    }
    assert!(text.contains("8 of 8 runs passed"), "{text}");
}

#[test]
fn ranks_that_are_processes_have_a_grid_of_each_operation() {
    let flags = ["--ranks", "processes", "--tool", "memcheck,racecheck"];
    let (succeeded, text) = said(&command("sound", &flags).output().unwrap());
    assert!(succeeded, "{text}");
    let operations = [
        "all-reduce",
        "rms-norm",
        "all-gather",
        "reduce-scatter",
        "broadcast",
    ];
    for operation in operations {
        let operation = format!(" {operation} ");
        let grids = text.lines().filter(|line| line.contains(&operation));
        assert_eq!(grids.count(), 2, "{text}");
    }
    // Each tool has them and its planted error.
    let runs = 2 * (operations.len() + 1);
    assert_eq!(text.matches("nothing found").count(), runs - 2, "{text}");
    assert!(
        text.contains(&format!("{runs} of {runs} runs passed")),
        "{text}"
    );
    // An error in one of them counts as one in any other grid.
    let text = fails("unsound", &flags, &[&format!("2 of {runs} runs")]);
    assert!(text.contains(r#""--op" "rms-norm""#), "{text}");
}

#[test]
fn a_tool_that_does_not_find_the_planted_error_is_a_failure() {
    let reasons = ["the planted error was not found", "7 of 8 runs"];
    let flags = "memcheck,initcheck,racecheck,synccheck";
    for tool in flags.split(',') {
        fails("blind", &["--tool", tool], &[reasons[0], "1 of 2 runs"]);
    }
}

#[test]
fn an_error_in_another_kernel_than_the_planted_one_is_a_failure() {
    let reasons = ["none in the kernel that has one", "another_kernel"];
    fails("elsewhere", &["--tool", "synccheck"], &reasons);
}

#[test]
fn an_error_with_the_exit_status_of_none_is_a_failure() {
    let reasons = ["exit status: 0 and not with 86"];
    fails("wrong-status", &["--tool", "memcheck"], &reasons);
}

#[test]
fn an_error_in_the_grid_is_a_failure_that_shows_the_report() {
    let reasons = ["errors in the kernels", "at peersum_push_one_shot_bf16_ws2"];
    fails("unsound", &["--tool", "racecheck"], &reasons);
}

#[test]
fn a_grid_that_fails_without_an_error_of_the_tool_is_a_failure_that_shows_what_it_printed() {
    let reasons = [
        "nothing found, but the grid ended with exit status: 1",
        "the grid says something",
    ];
    fails("failing", &["--tool", "memcheck"], &reasons);
}

#[test]
fn a_run_without_a_summary_is_a_failure_whatever_its_exit_status() {
    for behaviour in ["silent", "mute"] {
        let reasons = ["no summary, so nothing was checked", "0 of 2 runs"];
        fails(behaviour, &["--tool", "memcheck"], &reasons);
    }
    // Each tool's own summary.
    fails("silent", &["--tool", "racecheck"], &["no summary"]);
}

#[test]
fn a_tool_that_crashes_is_a_failure_that_names_the_signal() {
    fails("crashing", &["--tool", "initcheck"], &["signal: 11"]);
}

#[test]
fn a_tool_that_hangs_is_killed_with_all_it_started() {
    let directory = tempfile::tempdir().unwrap();
    let pids = directory.path().join("pids");
    let mut command = command("hanging", &["--tool", "memcheck", "--limit", "1"]);
    let (succeeded, text) = said(&command.env("PIDS", &pids).output().unwrap());
    assert!(!succeeded, "{text}");
    assert!(text.contains("killed: it did not end within 1 s"), "{text}");
    // A process is gone a moment after its death, once somebody has waited for it.
    let began = Instant::now();
    for pid in std::fs::read_to_string(&pids).unwrap().split_whitespace() {
        let process = Path::new("/proc").join(pid);
        while is_alive(&process) {
            assert!(began.elapsed() < Duration::from_secs(30), "{pid} lives on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Whether a process is there and is more than a name that nobody has asked for.
fn is_alive(process: &Path) -> bool {
    std::fs::read_to_string(process.join("stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn a_compute_sanitizer_that_is_not_there_is_an_error_that_says_where_it_comes_from() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peersum-harness"));
    let command = command.args([
        "sanitize",
        "--compute-sanitizer",
        "/nowhere/compute-sanitizer",
        "--cubins",
        "nowhere",
    ]);
    let (succeeded, text) = said(&command.output().unwrap());
    assert!(!succeeded);
    for part in ["/nowhere/compute-sanitizer", "nvidia-cuda-sanitizer-api"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn the_grids_for_sanitizers_pass_on_the_emulator() {
    for flags in ["--op all-reduce", "--op rms-norm --ranks processes"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_peersum-harness"));
        let grid = "grid --device emulator --grid sanitizer --world-size 2,3 --dtype bf16";
        command.args(grid.split(' ')).args(flags.split(' '));
        let (succeeded, text) = said(&command.output().unwrap());
        assert!(succeeded, "{text}");
    }
}
