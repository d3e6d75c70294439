//! `bench-allreduce`: what it writes of a report, and a whole run on the emulator, whose times mean
//! nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness_run;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use harness_run::run;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

/// Compares with what is committed; `PEERSUM_BLESS=1` writes it.
#[track_caller]
fn assert_is_committed(name: &str, actual: &str) {
    let path = data(name);
    if std::env::var_os("PEERSUM_BLESS").is_some() {
        fs::write(&path, actual).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == actual,
        "{name} has changed; look at the difference, and bless it with PEERSUM_BLESS=1 if it is \
         wanted:\n{actual}"
    );
}

#[test]
fn a_saved_report_gives_the_page_the_picture_and_the_tables_that_it_always_gave() {
    let directory = tempfile::tempdir().unwrap();
    let report = data("allreduce.json");
    let output = run(
        "bench-allreduce",
        &[
            "--from-json",
            report.to_str().unwrap(),
            "--html",
            "page.html",
            "--svg",
            "picture.svg",
            "--json",
            "again.json",
        ],
        directory.path(),
    );
    assert!(output.status.success());
    let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
    assert_is_committed("allreduce.html", &read("page.html"));
    assert_is_committed("allreduce.svg", &read("picture.svg"));
    assert_is_committed("allreduce.txt", &String::from_utf8(output.stdout).unwrap());
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(
        json(&read("again.json")),
        json(&fs::read_to_string(report).unwrap())
    );
}

#[test]
fn the_page_and_the_picture_need_no_other_file_and_run_nothing() {
    for name in ["allreduce.html", "allreduce.svg"] {
        let text = fs::read_to_string(data(name)).unwrap();
        // The name of SVG's namespace is no address to fetch from.
        let text = text.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        for part in ["http", "src=", "<link", "<script", "@import", "url("] {
            assert!(!text.contains(part), "{name} has {part}");
        }
        assert!(text.contains("a &lt;made up&gt; card"), "{name}");
    }
}

#[test]
fn a_file_that_is_no_report_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    for (text, said) in [
        ("{}", "is not a report"),
        ("not JSON", "is not a report"),
        (
            &fs::read_to_string(data("allreduce.json"))
                .unwrap()
                .replacen("\"schema\": 1", "\"schema\": 2", 1),
            "has schema 2",
        ),
    ] {
        fs::write(directory.path().join("broken.json"), text).unwrap();
        let output = run(
            "bench-allreduce",
            &["--from-json", "broken.json"],
            directory.path(),
        );
        assert!(!output.status.success());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(
            error.contains("broken.json") && error.contains(said),
            "{error}"
        );
    }
}

#[test]
fn a_run_on_the_emulator_measures_every_cell_that_was_asked_for_and_says_that_it_means_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let output = run(
        "bench-allreduce",
        &[
            "--device=emulator",
            "--world-size=2,3",
            "--bytes=256",
            "--dtype=bf16,f32",
            "--algo=best,push_one_shot",
            "--shapes=1x8,2x8",
            "--method=both",
            "--calls=2",
            "--replays=1",
            "--json=report.json",
            "--html=page.html",
            "--svg=picture.svg",
        ],
        directory.path(),
    );
    assert!(output.status.success());
    let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
    let report: Value = serde_json::from_str(&read("report.json")).unwrap();
    let cells = report["cells"].as_array().unwrap();
    // Two world sizes, types and methods; the table's plan for three kinds of input, and two grids
    // of one algorithm; of eager calls of ordinary input, the bare launch beside them.
    assert_eq!(cells.len(), 2 * 2 * 2 * (3 + 2) + 2 * 2);
    let bare: Vec<&Value> = cells
        .iter()
        .filter(|cell| cell["system"] == "bare_launch")
        .collect();
    assert_eq!(bare.len(), 2 * 2);
    for cell in bare {
        assert_eq!(
            (&cell["launch"], &cell["placement"]),
            (&json!("eager"), &json!("ordinary"))
        );
    }
    for cell in cells {
        let us = &cell["us"];
        let value = |name: &str| us[name].as_f64().unwrap();
        assert!(value("min") > 0.0, "{cell}");
        assert!(value("min") <= value("median") && value("median") <= value("max"));
        assert_eq!(cell["host_us"].is_null(), cell["launch"] == "graph");
        assert_eq!(cell["link"], "emulator");
    }
    assert_eq!(report["failures"], Value::Array(Vec::new()));
    for text in [
        read("page.html"),
        read("picture.svg"),
        String::from_utf8(output.stdout).unwrap(),
    ] {
        assert!(text.contains("these times say nothing about any GPU"));
    }
}

/// The tables, the report and the page of a run without failures.
#[track_caller]
fn measured(arguments: &[&str], directory: &Path) -> (String, Value, String) {
    let files = ["--json=report.json", "--html=page.html"];
    let output = run("bench-allreduce", &[arguments, &files].concat(), directory);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
    let report: Value = serde_json::from_str(&read("report.json")).unwrap();
    assert_eq!(report["failures"], Value::Array(Vec::new()));
    (text, report, read("page.html"))
}

#[test]
fn calls_with_rmsnorm_are_measured_fused_and_unfused_beside_the_all_reduce_of_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let (text, report, page) = measured(
        &[
            "--op=rms-norm",
            "--device=emulator",
            "--world-size=2,3",
            "--rows=1,2",
            "--hidden=64,128",
            "--dtype=bf16,f32",
            "--algo=best,push_one_shot",
            "--shapes=1x8,2x8",
            "--method=both",
            "--calls=2",
            "--replays=1",
        ],
        directory.path(),
    );
    let cells = report["cells"].as_array().unwrap();
    let count = |is_meant: &dyn Fn(&Value) -> bool| {
        let meant = cells.iter().filter(|cell| is_meant(cell));
        meant.count()
    };
    // World sizes, types and methods; four shapes, two of them with the same bytes.
    let groups = 2 * 2 * 2;
    let placements = 3;
    let is_alone = |cell: &Value| cell["norm"].is_null() && cell["system"] == "peersum";
    assert_eq!(count(&is_alone), groups * 3 * placements);
    let is_way = |cell: &Value, is_fused: bool, from_table: bool| {
        cell["norm"]["is_fused"] == is_fused && cell["from_table"] == from_table
    };
    // The table fuses calls that are so small; what it does not do is measured beside it.
    assert_eq!(
        count(&|cell| is_way(cell, true, true)),
        groups * 4 * placements
    );
    // One row has one grid of the fused kernel, two rows have two. Two blocks share one row, unless
    // it is 64 elements of two bytes.
    let shared_rows = groups / 2 * (1 + 2);
    assert_eq!(
        count(&|cell| is_way(cell, true, false)),
        groups * 2 * (1 + 2) + shared_rows
    );
    let unfused = count(&|cell| is_way(cell, false, false));
    assert!(unfused >= groups * 4 * placements, "{unfused}");
    assert_eq!(count(&|cell| is_way(cell, false, true)), 0);
    for cell in cells.iter().filter(|cell| !cell["norm"].is_null()) {
        let norm = |name: &str| cell["norm"][name].as_u64().unwrap();
        let element = if cell["dtype"] == "f32" { 4 } else { 2 };
        assert_eq!(cell["bytes"], norm("rows") * norm("hidden") * element);
        assert!(cell["us"]["min"].as_f64().unwrap() > 0.0, "{cell}");
    }
    for part in ["2 x 128", "fused", "of unfused", "of all-reduce"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    assert!(page.contains("RMSNorm fused, hidden 128"));
}

#[test]
fn calls_with_fp8_are_measured_in_place_beside_those_without_it() {
    let directory = tempfile::tempdir().unwrap();
    let (text, report, page) = measured(
        &[
            "--op=rms-norm",
            "--output=same,fp8-static,fp8-per-token",
            "--device=emulator",
            "--world-size=2",
            "--rows=2",
            "--hidden=64",
            "--algo=best,push_one_shot,symmetric_one_shot",
            "--shapes=1x8",
            "--calls=2",
            "--replays=1",
        ],
        directory.path(),
    );
    let cells = report["cells"].as_array().unwrap();
    let placements = |output: &Value, is_fused: bool| {
        let is_meant = |cell: &&Value| {
            let norm = &cell["norm"];
            let is_best = cell["from_table"] == true || !is_fused;
            norm["output"] == *output && norm["is_fused"] == is_fused && is_best
        };
        let own = cells.iter().filter(is_meant);
        let own = own.map(|cell| cell["placement"].as_str().unwrap());
        own.collect::<std::collections::BTreeSet<_>>()
    };
    let in_place = ["ordinary", "symmetric_in_place"].into();
    let all = ["ordinary", "symmetric", "symmetric_in_place"].into();
    for is_fused in [true, false] {
        // As in the reports from before there was FP8.
        assert_eq!(placements(&Value::Null, is_fused), all);
        for fp8 in ["fp8_static", "fp8_per_token"] {
            assert_eq!(placements(&json!(fp8), is_fused), in_place, "{fp8}");
        }
    }
    for part in ["fp8-static", "fp8-per-token", "without FP8"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    assert!(page.contains("RMSNorm fp8-static fused, hidden 64"));
    let again = run(
        "bench-allreduce",
        &["--from-json=report.json"],
        directory.path(),
    );
    assert_eq!(String::from_utf8(again.stdout).unwrap(), text);
}

#[test]
fn sizes_in_bytes_and_in_rows_exclude_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let flags = ["--op=rms-norm", "--rows=1", "--bytes=4K"];
    let output = run("bench-allreduce", &flags, directory.path());
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("--rows") && error.contains("--bytes"),
        "{error}"
    );
}

#[test]
fn what_cannot_be_measured_is_named_and_the_rest_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let output = run(
        "bench-allreduce",
        &[
            "--device=emulator",
            "--world-size=2",
            "--bytes=256",
            "--calls=1",
            "--replays=1",
            "--rounds=1",
            // A build that the emulator has not.
            "--unsafe-baseline=nowhere",
            "--json=report.json",
        ],
        directory.path(),
    );
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("unsafe baseline"), "{error}");
    let text = fs::read_to_string(directory.path().join("report.json")).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["cells"].as_array().unwrap().len(), 3);
    assert_eq!(report["failures"].as_array().unwrap().len(), 1);
}
