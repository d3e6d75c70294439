use crate::checkout::{Answer, Checkout};
use serde_json::Value;
use std::fs;
use std::process::Command;

#[test]
fn plain_lines_name_each_module_and_the_summary_counts_them() {
    let answer = Answer::of(&mut Checkout::new().precompile(&[])).succeeded();
    assert_eq!(
        answer
            .stderr
            .lines()
            .filter(|line| line.starts_with("built peersum_"))
            .count(),
        4,
        "{answer:#?}"
    );
    let summary = answer.stderr.lines().last().unwrap();
    assert!(
        summary.starts_with("4 built, 0 reused, 0 failed in "),
        "{summary}"
    );
    assert!(summary.contains("slowest peersum_"), "{summary}");
    assert!(answer.stdout.is_empty(), "{answer:#?}");
}

#[test]
fn quiet_says_nothing_when_all_is_well() {
    let answer = Answer::of(&mut Checkout::new().precompile(&["--quiet"])).succeeded();
    assert_eq!((&*answer.stdout, &*answer.stderr), ("", ""));
}

#[test]
fn json_messages_are_one_object_a_line() {
    let checkout = Checkout::new();
    checkout.edit("pull.cu", "out[0]", "nonsense[0]");
    let answer =
        Answer::of(&mut checkout.precompile(&["--message-format", "json"])).failed_saying(&[]);
    let messages: Vec<Value> = answer
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |status: &str| {
        messages
            .iter()
            .filter(|message| message["reason"] == "module" && message["status"] == status)
            .collect::<Vec<_>>()
    };
    assert_eq!((of("built").len(), of("failed").len()), (2, 2));
    assert!(
        of("built")
            .iter()
            .all(|message| message["seconds"].as_f64().unwrap() > 0.0)
    );
    assert!(
        of("failed")
            .iter()
            .all(|message| message["output"].as_str().unwrap().contains("nonsense"))
    );
    let summary = messages.last().unwrap();
    assert_eq!(
        (&summary["reason"], &summary["built"], &summary["failed"]),
        (&"summary".into(), &2.into(), &2.into())
    );

    checkout.edit("pull.cu", "nonsense[0]", "out[0]");
    Answer::of(&mut checkout.precompile(&[])).succeeded();
    let answer = Answer::of(&mut checkout.precompile(&["--message-format", "json"])).succeeded();
    assert_eq!(
        answer.stdout.matches("\"status\":\"reused\"").count(),
        4,
        "{answer:#?}"
    );
}

#[test]
fn timings_go_beside_the_output_as_one_self_contained_picture() {
    let checkout = Checkout::new();
    Answer::of(&mut checkout.precompile(&["--timings"])).succeeded();
    checkout.whole_output();
    let picture = fs::read_to_string(checkout.path().join("cubins-timings.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("peersum_push_bf16_ws2.sm_90"));
    assert_eq!(picture.matches("<title>peersum_").count(), 4);
    // The name of the SVG format is the only address in it.
    let addresses = picture.replace("http://www.w3.org/2000/svg", "");
    assert!(
        !addresses.contains("http") && !picture.contains("<script") && !picture.contains("url("),
        "it loads nothing"
    );
}

#[test]
fn help_shows_examples_and_the_environment() {
    let answer =
        Answer::of(Command::new(env!("CARGO_BIN_EXE_xtask")).args(["precompile", "--help"]))
            .succeeded();
    for word in [
        "--arch",
        "--dtype",
        "--world-size",
        "--family",
        "--jobs",
        "--out",
        "--toolkit",
        "--stock-headers",
        "glibc 2.42",
        "--check",
        "--timings",
        "--quiet",
        "--message-format",
        "Examples:",
        "native",
        "PEERSUM_TOOLCHAIN_DIR",
        "NVCC",
        "Exit status",
    ] {
        assert!(answer.stdout.contains(word), "{word}");
    }
    assert!(
        !answer.stdout.contains("--kernels"),
        "a flag for tests only"
    );
}

#[test]
fn no_command_at_all_prints_the_help() {
    let answer = Answer::of(&mut Command::new(env!("CARGO_BIN_EXE_xtask")));
    for word in ["precompile", "toolchain", "bench", "test", "ci"] {
        assert!(answer.stderr.contains(word), "{answer:#?}");
    }
}
