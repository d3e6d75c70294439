//! `--stock-headers`, with a C library that nvcc's own headers agree with and with one that
//! contradicts them.

use crate::checkout::{Answer, Checkout, snapshot, test_file};
use std::io::Write as _;
use std::process::{Command, Stdio};

/// The flag's error if CUDA 13.0's headers do not compile.
const CONTRADICTION: [&str; 5] = [
    "--stock-headers cannot work here",
    "the headers of this machine's C library",
    "glibc 2.42",
    "Leave the flag out",
    "\"rsqrt\"",
];

/// Whether the C library declares `rsqrt`, as glibc does from 2.42 on. CUDA 13.0's headers declare
/// it too, and C++ refuses the two declarations together.
fn c_library_has_rsqrt() -> bool {
    let mut preprocessor = Command::new("c++")
        .args(["-E", "-x", "c++", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut source = preprocessor.stdin.take().unwrap();
    source.write_all(b"#include <math.h>\n").unwrap();
    drop(source);
    let output = preprocessor.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.any(|word| word == "rsqrt")
}

#[test]
fn the_stock_headers_give_the_same_bytes_under_other_keys_where_the_c_library_allows_them() {
    let checkout = Checkout::new();
    checkout.precompile(&[]).status().unwrap();
    let with_prelude = checkout.whole_output();
    checkout.compiled();
    let answer = Answer::of(&mut checkout.precompile(&["--stock-headers"]));
    if c_library_has_rsqrt() {
        answer.failed_saying(&CONTRADICTION);
        assert_eq!(checkout.whole_output(), with_prelude);
        return;
    }
    answer.succeeded();
    assert_eq!(checkout.compiled(), 1 + 4, "an empty file and each module");
    for (name, bytes) in snapshot(&checkout.out())
        .iter()
        .filter(|(name, _)| *name != "manifest.json")
    {
        assert_eq!(Some(bytes), with_prelude.get(name), "{name}");
    }
    Answer::of(&mut checkout.precompile(&["--stock-headers"])).succeeded();
    assert_eq!(checkout.compiled(), 0, "nothing changed");
}

#[test]
fn stock_headers_that_contradict_the_c_library_are_one_error_before_any_module() {
    let checkout = Checkout::new();
    Answer::of(&mut checkout.precompile(&[])).succeeded();
    let earlier = checkout.whole_output();
    checkout.compiled();
    let mut stock = checkout.precompile(&["--stock-headers"]);
    stock.env("CPLUS_INCLUDE_PATH", test_file("fakes/glibc-2.42"));
    let answer = Answer::of(&mut stock).failed_saying(&CONTRADICTION);
    assert!(!answer.stderr.contains("peersum_pu"), "{answer:#?}");
    assert_eq!(checkout.compiled(), 1, "only the empty file");
    assert_eq!(checkout.whole_output(), earlier);

    // Nothing else needs these headers.
    checkout.edit("scale.cuh", "2.0f", "3.0f");
    let mut with_prelude = checkout.precompile(&[]);
    with_prelude.env("CPLUS_INCLUDE_PATH", test_file("fakes/glibc-2.42"));
    Answer::of(&mut with_prelude).succeeded();
    assert_eq!(checkout.compiled(), 2);
}

#[test]
fn stock_headers_that_fail_for_another_reason_are_told_with_what_nvcc_said() {
    let checkout = Checkout::new();
    let headers = tempfile::tempdir().unwrap();
    let text = "#include_next <math.h>\n#error what no release says\n";
    std::fs::write(headers.path().join("math.h"), text).unwrap();
    let mut stock = checkout.precompile(&["--stock-headers"]);
    stock.env("CPLUS_INCLUDE_PATH", headers.path());
    let answer = Answer::of(&mut stock).failed_saying(&[
        "--stock-headers cannot work here",
        "an empty file",
        "what no release says",
    ]);
    assert!(!answer.stderr.contains("glibc"), "{answer:#?}");
}
