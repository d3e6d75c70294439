//! Tables with rows for calls with RMSNorm: which calls are fused, with the same bits.

use half::bf16;
use peersum::dispatch::{Placement, Plan, Route};
use peersum::reference::{self, NormNumbers};
use peersum::{CommunicatorBuilder, RmsNorm};
use peersum_emulator::EmulatorBuffer;

use crate::stage::{Comm, Content, assert_bits, expected, input, on_ranks, settings};

const HIDDEN: u32 = 64;

/// Every all-reduce is a push, one-shot up to 1 KiB, and the table has these rows for norms.
fn with_rows(norms: &str) -> CommunicatorBuilder {
    let plain = concat!(
        r#"[{"max_bytes":1024,"route":"push_one_shot","blocks":2,"threads":16},"#,
        r#"{"max_bytes":null,"route":"push_two_shot","blocks":2,"threads":16}]"#
    );
    let tables = format!(
        r#"{{"schema":1,"tables":[{{"arch":null,"world_sizes":[2],"link":"emulator",
        "ordinary":{plain},"symmetric":{plain},"symmetric_in_place":{plain}{norms}}}]}}"#
    );
    settings().dispatch_tables(tables)
}

/// Which calls of so many rows are fused, and how; each call has the reference's bits.
fn fused<const N: usize>(comm: &mut Comm, rows: [u32; N]) -> [Option<Plan>; N] {
    rows.map(|rows| {
        let len = (rows * HIDDEN) as usize;
        let own: Vec<bf16> = input(3, comm.rank(), len, Content::Ordinary);
        let weight: Vec<bf16> = input(4, 0, HIDDEN as usize, Content::Ordinary);
        let mut buffer = EmulatorBuffer::from_slice(&own);
        let norm = RmsNorm {
            weight: &EmulatorBuffer::from_slice(&weight),
            epsilon: 1e-6,
            weight_offset: 0.0,
        };
        comm.all_reduce_rms_norm_in_place(&mut buffer, &norm)
            .unwrap();
        comm.synchronize().unwrap();
        let sum: Vec<bf16> = expected(3, comm.world_size(), len, Content::Ordinary);
        let numbers = NormNumbers {
            epsilon: 1e-6,
            weight_offset: 0.0,
        };
        let normalised = reference::rms_norm(&sum, &weight, numbers);
        assert_bits(&buffer.to_vec(), &normalised, &rows);
        comm.fused_launch::<bf16>(Placement::Ordinary, rows, HIDDEN)
    })
}

fn shape(blocks: u32, threads: u32) -> Option<Plan> {
    Some(Plan {
        route: Route::PushOneShot,
        blocks,
        threads,
    })
}

#[test]
fn without_rows_of_its_own_a_call_is_fused_if_its_all_reduce_is_a_one_shot_push() {
    on_ranks(
        2,
        || with_rows(""),
        |comm| {
            assert_eq!(fused(comm, [1, 8, 9]), [shape(1, 8), shape(2, 8), None]);
        },
    );
}

#[test]
fn the_table_s_rows_say_which_calls_are_fused_and_in_which_shape() {
    let rows = concat!(
        r#","rms_norm":{"ordinary":[{"max_bytes":256,"fused":null},"#,
        r#"{"max_bytes":2048,"fused":{"blocks":3,"threads":8}},"#,
        r#"{"max_bytes":4096,"fused":null}]}"#
    );
    on_ranks(
        2,
        || with_rows(rows),
        |comm| {
            // 128 bytes a row. Neither bound is that of the plain table.
            let found = fused(comm, [2, 3, 16, 17, 33]);
            assert_eq!(found, [None, shape(3, 8), shape(3, 8), None, None]);
            // A symmetric buffer that the all-reduce would not read is as an ordinary one.
            let symmetric = |rows| comm.fused_launch::<bf16>(Placement::Symmetric, rows, HIDDEN);
            assert_eq!([1, 9].map(symmetric), [None, shape(3, 8)]);
        },
    );
}

#[test]
fn what_is_forced_comes_before_the_rows_of_the_table() {
    let rows = r#","rms_norm":{"ordinary":[{"max_bytes":null,"fused":null}]}"#;
    on_ranks(
        2,
        || with_rows(rows),
        |comm| {
            assert_eq!(fused(comm, [1]), [None]);
            comm.force_fused(Some(true));
            assert_eq!(fused(comm, [1, 9]), [shape(1, 8), shape(2, 8)]);
            comm.force_fused(None);
            comm.force_plan(shape(1, 8)).unwrap();
            assert_eq!(fused(comm, [9]), [shape(1, 8)]);
        },
    );
}
