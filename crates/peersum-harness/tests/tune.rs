//! `tune` on the emulator: the times mean nothing, the tables must be whole.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness_run;

use std::fs;

use peersum::dispatch::{DispatchTables, Origin, Placement, Topology};
use peersum_artifact::Arch;
use serde_json::Value;

use harness_run::run;

#[test]
fn a_sweep_writes_tables_whose_rows_say_what_was_measured_and_that_a_communicator_takes() {
    let directory = tempfile::tempdir().unwrap();
    let output = run(
        "tune",
        &[
            "--device=emulator",
            "--world-size=2",
            "--bytes=512,8K",
            "--dtype=bf16,f32",
            "--seconds=3600",
            "--calls=1",
            "--replays=1",
            "--out=tuned/tables.json",
        ],
        directory.path(),
    );
    assert!(output.status.success());
    let text = fs::read_to_string(directory.path().join("tuned/tables.json")).unwrap();
    let tables = DispatchTables::parse(&text).unwrap();
    let tuned = tables.choose(None, 2, Topology::Emulator).unwrap();
    assert_eq!(tuned.world_sizes, [2]);
    for placement in Placement::ALL {
        for bytes in [512, 8192] {
            let row = tuned.row(placement, bytes).unwrap();
            let Origin::Measured(measurement) = &row.origin else {
                panic!("{placement:?} at {bytes}: {row:?}");
            };
            assert_eq!((measurement.bytes, measurement.world_size), (bytes, 2));
            assert_eq!(measurement.device, "emulator");
            assert_eq!(measurement.dtypes.len(), 2);
            assert!(measurement.us.unwrap() > 0.0);
            assert!(row.route.serves(placement));
        }
        // Beyond twice the largest size the row is the one of before.
        let far = tuned.row(placement, 1 << 20).unwrap();
        assert_eq!(far.origin, Origin::Default);
    }
    // What was not swept is as it was shipped.
    let shipped = DispatchTables::shipped().unwrap();
    for (arch, world_size, link) in [
        (Some(Arch::plain(9, 0)), 2, Topology::Peer),
        (Some(Arch::plain(9, 0)), 8, Topology::Shared),
    ] {
        assert_eq!(
            tables.choose(arch, world_size, link).unwrap(),
            shipped.choose(arch, world_size, link).unwrap()
        );
    }
    let others = tables.choose(None, 3, Topology::Emulator).unwrap();
    assert_eq!(others.world_sizes, [3, 4, 5, 6, 7, 8]);

    let output = run(
        "bench-allreduce",
        &[
            "--device=emulator",
            "--world-size=2",
            "--bytes=512",
            "--calls=1",
            "--replays=1",
            "--tables=tuned/tables.json",
            "--json=report.json",
        ],
        directory.path(),
    );
    assert!(output.status.success());
    let text = fs::read_to_string(directory.path().join("report.json")).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    let plan = tuned.plan(Placement::Ordinary, 512);
    let used = &report["cells"][0]["plan"];
    assert_eq!(used["route"], serde_json::to_value(plan.route).unwrap());
    assert_eq!(used["threads"], plan.threads);
}

#[test]
fn a_time_that_is_up_before_anything_was_measured_writes_nothing_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let output = run(
        "tune",
        &[
            "--device=emulator",
            "--world-size=2,3",
            "--bytes=512",
            "--seconds=0.000001",
            "--out=tables.json",
        ],
        directory.path(),
    );
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("nothing was measured"), "{error}");
    assert!(!directory.path().join("tables.json").exists());
}

#[test]
fn tables_that_are_none_are_refused_before_anything_is_measured() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("base.json"), "{\"schema\": 9}").unwrap();
    let output = run(
        "tune",
        &["--device=emulator", "--base=base.json"],
        directory.path(),
    );
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("--base"), "{error}");
}
