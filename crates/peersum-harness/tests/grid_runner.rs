//! What the runner of the grid promises, with real ranks on the emulator.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A configuration that the runs below have.
const CASE: &str = "ws3/bf16/push_one_shot/1040/graph/aligned";

/// A run of the harness, with a seed that no other run on this machine has, so that its processes
/// are known.
struct Run {
    seed: String,
    /// `TMPDIR` of the run: the ranks meet there.
    directory: tempfile::TempDir,
}

impl Run {
    fn new() -> Run {
        Run {
            seed: fastrand::u32(..).to_string(),
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_peersum-harness"));
        command
            .args(["grid", "--device", "emulator", "--seed", &self.seed])
            .args(flags)
            .env("TMPDIR", self.directory.path());
        command
    }

    fn output(&self, flags: &[&str]) -> Output {
        println!("seed {}", self.seed);
        let output = self.command(flags).output().unwrap();
        println!("{}", text(&output));
        output
    }

    /// Processes of the run that are alive, the runner among them.
    fn processes(&self) -> Vec<i32> {
        let (flag, json) = (self.seed.as_bytes(), format!("\"seed\":{},", self.seed));
        let mut alive = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            // Empty for a process that has ended but was not waited for.
            let command_line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let mut words = command_line.split(|byte| *byte == 0);
            if words.any(|word| word == flag || contains(word, json.as_bytes())) {
                alive.push(pid);
            }
        }
        alive
    }

    fn assert_nothing_is_left(&self) {
        assert_eq!(self.processes(), [0; 0], "processes are left");
        let files: Vec<_> = std::fs::read_dir(self.directory.path())
            .unwrap()
            .flatten()
            .collect();
        assert!(files.is_empty(), "files are left: {files:?}");
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn report(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Waits until `condition` holds; a machine that is busy takes long.
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "{what} did not come true"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a grid by each kind of rank. Every configuration must pass, with so many calls or more.
fn passes_and_is_counted(flags: &[&str], calls_each: u64) {
    for ranks in ["threads", "processes"] {
        let run = Run::new();
        let path = run.directory.path().join("report.json");
        let own = ["--ranks", ranks, "--report", path.to_str().unwrap()];
        let output = run.output(&[flags, &own].concat());
        assert!(output.status.success());
        let report = report(&path);
        let cases = report["cases"].as_array().unwrap();
        assert!(!cases.is_empty());
        assert!(cases.iter().all(|case| case["status"] == "passed"));
        assert_eq!(report["configurations"]["passed"], cases.len());
        assert_eq!(report["configurations"]["run"], cases.len());
        assert_eq!(report["configurations"]["skipped"], 0);
        assert_eq!(report["mismatches"], 0);
        assert!(report["calls"].as_u64().unwrap() >= calls_each * cases.len() as u64);
        assert!(!report["left_out"].as_array().unwrap().is_empty());
        std::fs::remove_file(&path).unwrap();
        run.assert_nothing_is_left();
    }
}

#[test]
fn ranks_that_are_threads_and_ranks_that_are_processes_pass_and_are_counted() {
    let flags = ["--op", "all_reduce", "--world-size", "2..3"];
    passes_and_is_counted(&[&flags[..], &["--dtype", "bf16,f32"]].concat(), 8);
}

#[test]
fn calls_with_rms_norm_by_threads_and_by_processes_pass_and_are_counted() {
    let flags = ["--op", "rms-norm", "--world-size", "1..2"];
    passes_and_is_counted(&[&flags[..], &["--dtype", "bf16,f32"]].concat(), 1);
}

#[test]
fn calls_that_move_and_scatter_by_threads_and_by_processes_pass_and_are_counted() {
    let ops = "all_gather,reduce_scatter,broadcast";
    passes_and_is_counted(&["--op", ops, "--world-size", "2..3"], 8);
}

/// Injects a fault into rank 1, and returns what the run said and its report.
fn with_fault(kind: &str) -> (String, Value) {
    let run = Run::new();
    let path = run.directory.path().join("report.json");
    let fault = format!("{kind}:1:{CASE}");
    let began = Instant::now();
    let output = run.output(&[
        "--op",
        "all_reduce",
        "--ranks",
        "processes",
        "--world-size",
        "3..4",
        "--dtype",
        "bf16",
        "--timeout",
        "2",
        "--inject",
        &fault,
        "--report",
        path.to_str().unwrap(),
    ]);
    // What runs before the fault, 2 s in which a call waits, at most 15 s of silence, and room for
    // a busy machine.
    assert!(
        began.elapsed() < Duration::from_secs(60),
        "the run did not end in time"
    );
    assert_eq!(output.status.code(), Some(1));
    let report = report(&path);
    std::fs::remove_file(&path).unwrap();
    run.assert_nothing_is_left();
    let said = text(&output);
    assert!(
        said.contains(&format!("in {CASE}")),
        "the last configuration is not named"
    );
    assert!(
        said.contains("as a test asked for"),
        "rank 1's stderr is not shown"
    );
    let count = |status: &str| {
        let cases = report["cases"].as_array().unwrap();
        cases.iter().filter(|case| case["status"] == status).count()
    };
    assert_eq!(count("failed"), 1);
    assert!(count("passed") > 0 && count("skipped") > 0);
    assert_eq!(report["configurations"]["skipped"], count("skipped"));
    (said, report)
}

#[test]
fn a_rank_that_is_killed_ends_the_run_with_its_name_and_its_last_words() {
    let (said, report) = with_fault("kill");
    assert!(said.contains("rank 1 ended with signal: 9"));
    let failure = report["failure"].as_str().unwrap();
    assert!(failure.starts_with("rank 1 ended with signal: 9"));
}

#[test]
fn a_rank_that_exits_early_is_not_taken_for_one_that_is_done() {
    let (said, _) = with_fault("exit");
    assert!(said.contains("rank 1 ended with exit status: 0"));
}

#[test]
fn a_rank_that_hangs_is_named_by_those_who_wait_for_it_and_killed() {
    let (said, _) = with_fault("hang");
    assert!(
        said.contains("for rank 1 in push_one_shot"),
        "nobody says who waits for whom"
    );
    assert!(said.contains("rank 1 was killed"));
}

#[test]
fn ranks_do_not_outlive_a_runner_that_is_killed() {
    let run = Run::new();
    let fault = format!("hang:0:{CASE}");
    let flags = [
        "--op",
        "all_reduce",
        "--ranks",
        "processes",
        "--world-size",
        "3",
        "--dtype",
        "bf16",
        "--inject",
        &fault,
    ];
    let mut runner = run
        .command(&flags)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("three ranks and their runner", || {
        run.processes().len() == 4
    });
    runner.kill().unwrap();
    runner.wait().unwrap();
    eventually("the end of all ranks", || run.processes().is_empty());
}

/// Makes a rank compare a wrong result. Returns the lines that say so, which the command that is
/// printed with them must print again.
fn mismatch(run: &Run, flags: &[&str], rank: u32, case: &str) -> String {
    let fault = format!("corrupt:{rank}:{case}");
    let output = run.output(&[flags, &["--inject", &fault]].concat());
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output);
    let wrong = said.lines().filter(|line| line.starts_with("mismatch on"));
    let wrong: Vec<&str> = wrong.collect();
    let command = said
        .lines()
        .find(|line| line.contains("cargo xtask test-allreduce"))
        .unwrap();
    let flags = command.split_whitespace().skip(3);
    let again = Command::new(env!("CARGO_BIN_EXE_peersum-harness"))
        .arg("grid")
        .args(flags)
        .args(["--inject", &fault])
        .output()
        .unwrap();
    let again = text(&again);
    assert!(again.contains("1 configurations"), "{again}");
    for line in &wrong {
        assert!(again.contains(line), "not the same mismatch:\n{again}");
    }
    wrong.join("\n")
}

#[test]
fn a_mismatch_names_everything_and_its_command_shows_it_again() {
    let run = Run::new();
    let flags = ["--op", "all-reduce", "--world-size", "3", "--dtype", "bf16"];
    let line = mismatch(&run, &flags, 2, CASE);
    for part in [
        "rank 2 of 3",
        CASE,
        "round 1, layer 2 (push_one_shot, 1040 elements): output, first wrong index 1:",
        // What no call writes to is compared too.
        "input, first wrong index 1:",
        "expected bits 0x",
        "actual bits 0x",
        &format!("seed {}", run.seed),
    ] {
        assert!(line.contains(part), "{part} is not in: {line}");
    }
}

#[test]
fn a_mismatch_of_a_call_with_rms_norm_names_everything_and_its_command_shows_it_again() {
    let run = Run::new();
    let flags = ["--op", "rms-norm", "--world-size", "2", "--dtype", "bf16"];
    let listed = run.output(&[&flags[..], &["--list"]].concat());
    let listed = String::from_utf8(listed.stdout).unwrap();
    // Out of place.
    let case = listed.lines().find(|name| name.ends_with("/add")).unwrap();
    let line = mismatch(
        &run,
        &[&flags[..], &["--ranks", "processes"]].concat(),
        1,
        case,
    );
    let seed = format!("seed {}", run.seed);
    // The last two are what no call writes to.
    let arrays = ["output", "residual", "input", "weight"]
        .map(|name| format!("{name}, first wrong index 1:"));
    let parts = ["rank 1 of 2", case, &seed].into_iter();
    for part in parts.chain(arrays.iter().map(String::as_str)) {
        assert!(line.contains(part), "{part} is not in: {line}");
    }
}

#[test]
fn a_mismatch_of_a_broadcast_names_everything_and_its_command_shows_it_again() {
    let run = Run::new();
    let flags = ["--op", "reduce_scatter,broadcast", "--world-size", "3"];
    let listed = run.output(&[&flags[..], &["--list"]].concat());
    let listed = String::from_utf8(listed.stdout).unwrap();
    let mut broadcasts = listed.lines().filter(|name| name.contains("/broadcast/"));
    let case = broadcasts.next_back().unwrap();
    let line = mismatch(&run, &flags, 1, case);
    let seed = format!("seed {}", run.seed);
    for part in [
        "rank 1 of 3",
        case,
        "round 1, layer 2 from rank",
        "output, first wrong index 1:",
        &seed,
    ] {
        assert!(line.contains(part), "{part} is not in: {line}");
    }
}

#[test]
fn one_run_has_every_operation_that_is_asked_for_and_all_by_default() {
    let names = |flags: &[&str]| {
        let flags = [&["--list", "--world-size", "2"], flags].concat();
        let listed = Run::new().output(&flags);
        assert!(listed.status.success());
        let names = String::from_utf8(listed.stdout).unwrap();
        names.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let ops = [
        "all_reduce",
        "rms-norm",
        "all_gather",
        "reduce_scatter",
        "broadcast",
    ];
    let each: Vec<Vec<String>> = ops.iter().map(|op| names(&["--op", op])).collect();
    assert!(each.iter().all(|names| !names.is_empty()));
    assert_eq!(names(&[]), each.concat());
    let two = [&each[0][..], &each[4]].concat();
    assert_eq!(names(&["--op", "broadcast,all_reduce"]), two);
    assert!(
        names(&["--dtype", "i32"])
            .iter()
            .all(|name| name.contains("/i32/"))
    );
}

#[test]
fn the_list_runs_nothing_and_a_filter_that_selects_nothing_is_an_error() {
    let run = Run::new();
    let listed = run.output(&["--list", "--filter", "ws3/bf16/push_one_shot"]);
    assert!(listed.status.success());
    let names = String::from_utf8(listed.stdout).unwrap();
    assert!(names.lines().any(|name| name == CASE));
    assert!(
        names
            .lines()
            .all(|name| name.starts_with("ws3/bf16/push_one_shot/"))
    );
    let nothing = run.output(&["--filter", "ws9"]);
    assert_eq!(nothing.status.code(), Some(1));
    assert!(text(&nothing).contains("--list"));
}

#[test]
fn flags_that_exclude_each_other_are_named_and_so_are_operations_without_any_of_a_type() {
    for (flags, said) in [
        (
            ["--op", "all_reduce", "--world-size", "1"],
            "--op all_reduce has no --world-size 1",
        ),
        (
            ["--op", "reduce_scatter", "--dtype", "u8,i64"],
            "--op reduce_scatter has no --dtype u8,i64",
        ),
    ] {
        for more in [&[][..], &["--list"]] {
            let output = Run::new().output(&[&flags[..], more].concat());
            assert_eq!(output.status.code(), Some(1));
            assert!(text(&output).contains(said));
        }
    }
    let run = Run::new();
    let path = run.directory.path().join("report.json");
    let (to, flags) = (path.to_str().unwrap(), ["--world-size", "2", "--dtype"]);
    let output = run.output(&[&flags[..], &["i8", "--report", to]].concat());
    assert!(output.status.success());
    let report = report(&path);
    let left_out = report["left_out"].as_array().unwrap();
    for op in ["all_reduce", "rms_norm", "reduce_scatter"] {
        assert!(left_out.contains(&format!("--op {op} has no --dtype i8").into()));
    }
    assert!(text(&output).contains("not in this grid: --op rms_norm has no --dtype i8"));
}
