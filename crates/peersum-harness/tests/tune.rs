//! `tune` on the emulator: the times mean nothing, the tables must be whole.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness_run;

use std::fs;

use peersum::dispatch::{DispatchTables, FusedShape, NormRow, Origin, Placement, Topology};
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
        (Some(Arch::new(9, 0)), 2, Topology::Peer),
        (Some(Arch::new(9, 0)), 8, Topology::Shared),
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
fn a_sweep_of_norms_writes_rows_of_their_own_that_decide_which_calls_are_fused() {
    let directory = tempfile::tempdir().unwrap();
    let output = run(
        "tune",
        &[
            "--op=rms-norm",
            "--device=emulator",
            "--world-size=2",
            "--bytes=256,1K",
            "--hidden=64,128",
            "--dtype=bf16",
            "--seconds=3600",
            "--calls=1",
            "--replays=1",
            "--out=tables.json",
        ],
        directory.path(),
    );
    assert!(output.status.success());
    let text = fs::read_to_string(directory.path().join("tables.json")).unwrap();
    let tuned = DispatchTables::parse(&text)
        .and_then(|tables| tables.choose(None, 2, Topology::Emulator))
        .unwrap();
    for placement in Placement::ALL {
        let rows = tuned.rms_norm.rows(placement);
        let bounds: Vec<_> = rows.iter().map(|row| row.max_bytes).collect();
        assert_eq!(bounds, [Some(512), Some(2048)]);
        for (row, bytes) in rows.iter().zip([256, 1024]) {
            let Origin::Measured(measurement) = &row.origin else {
                panic!("{row:?}");
            };
            assert_eq!((measurement.bytes, measurement.world_size), (bytes, 2));
        }
    }
    // The rows of the plain calls are as they were shipped.
    let shipped = DispatchTables::shipped().unwrap();
    let shipped = shipped.choose(None, 2, Topology::Emulator).unwrap();
    assert_eq!(tuned.ordinary, shipped.ordinary);
}

#[test]
fn a_benchmark_with_rows_for_norms_fuses_what_they_say() {
    let directory = tempfile::tempdir().unwrap();
    let shipped = DispatchTables::shipped().unwrap();
    let mut edited = shipped.choose(None, 2, Topology::Emulator).unwrap();
    let row = |max_bytes, fused| NormRow {
        max_bytes,
        fused,
        origin: Origin::Default,
    };
    let shape = FusedShape {
        blocks: 1,
        threads: 8,
    };
    edited.rms_norm.ordinary = vec![row(Some(512), None), row(None, Some(shape))];
    let tables = DispatchTables {
        schema: 1,
        tables: vec![edited],
    };
    let text = serde_json::to_string(&tables).unwrap();
    fs::write(directory.path().join("edited.json"), text).unwrap();
    let output = run(
        "bench-allreduce",
        &[
            "--op=rms-norm",
            "--device=emulator",
            "--world-size=2",
            "--rows=2,8",
            "--hidden=64",
            "--calls=1",
            "--replays=1",
            "--tables=edited.json",
            "--json=report.json",
        ],
        directory.path(),
    );
    assert!(output.status.success());
    let text = fs::read_to_string(directory.path().join("report.json")).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    let cells = report["cells"].as_array().unwrap();
    let by_table = |rows: u32| {
        let is_meant = |cell: &&Value| {
            cell["norm"]["rows"] == rows
                && cell["placement"] == "ordinary"
                && cell["from_table"] == true
        };
        cells.iter().find(is_meant).unwrap()
    };
    assert_eq!(by_table(2)["norm"]["is_fused"], false);
    assert_eq!(by_table(8)["norm"]["is_fused"], true);
    assert_eq!(by_table(8)["plan"]["blocks"], 1);
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
