//! What holds in every run of fused calls whose rows have several threads, in one block or in a
//! cluster, and each of their rules left out.

use crate::controls::assert_is_needed;
use crate::explorer::explore;
use crate::machine::Machine;
use crate::program::{Break, Call, Kind, Violation, Waits, call};
use crate::promises::{assert_holds, bounded};

/// Rows of which a block handles several, each with a unit for the first `row_units` threads.
fn rows(blocks: usize, rows: usize, row_units: usize) -> Call {
    Call {
        places: rows * row_units,
        row_units,
        ..call(Kind::NormOneShot, blocks)
    }
}

/// A row that a cluster of two blocks shares.
fn shared(row_units: usize) -> Call {
    Call {
        cluster: 2,
        ..rows(2, 1, row_units)
    }
}

/// The same rows, which become FP8 too.
fn with_row_scales(rows: Call) -> Call {
    Call {
        has_row_scales: true,
        ..rows
    }
}

/// With and without FP8.
fn both(rows: Call) -> [Call; 2] {
    [rows, with_row_scales(rows)]
}

/// Threads that enter a call one by one.
fn apart(machine: Machine) -> Machine {
    Machine {
        enters_apart: true,
        ..machine
    }
}

/// Two data threads in a block.
fn two_threads(machine: Machine) -> Machine {
    Machine {
        threads: 2,
        ..apart(machine)
    }
}

/// Two data threads in each block of a cluster.
fn four_threads(machine: Machine) -> Machine {
    Machine {
        threads: 2,
        takes_headers_at_once: true,
        ..machine
    }
}

/// Waits that end at any time.
fn losing(machine: Machine) -> Machine {
    Machine {
        takes_headers_at_once: true,
        ..bounded(machine)
    }
}

#[test]
fn a_row_is_sent_while_the_row_before_it_is_awaited() {
    for row_units in [1, 2] {
        for grids in [[1, 1], [2, 1]] {
            let calls = grids.map(|blocks| rows(blocks, 3, row_units));
            let machine = two_threads(Machine::new(2, &calls));
            assert_holds(
                &format!("{row_units} units a row, grids {grids:?}"),
                &machine,
            );
        }
    }
}

#[test]
fn rows_that_become_fp8_share_one_place_for_their_largest_magnitudes() {
    let calls = [3, 1].map(|count| with_row_scales(rows(1, count, 2)));
    assert_holds("one block", &two_threads(Machine::new(2, &calls)));
}

#[test]
fn a_cluster_normalises_its_row_by_the_values_of_all_its_threads() {
    for row_units in [1, 2] {
        for row in both(shared(row_units)) {
            assert_holds(&format!("{row:?}"), &apart(Machine::new(2, &[row])));
        }
    }
    for row in both(shared(2)) {
        assert_holds(&format!("{row:?}, three ranks"), &Machine::new(3, &[row]));
    }
    for row_units in [3, 4] {
        for row in both(shared(row_units)) {
            let machine = apart(four_threads(Machine::new(2, &[row])));
            assert_holds(&format!("{row:?}, four threads"), &machine);
        }
    }
}

#[test]
fn calls_in_clusters_and_in_single_blocks_follow_each_other() {
    let [cluster, block] = [shared(2), rows(2, 3, 1)].map(with_row_scales);
    for calls in [
        [cluster; 3],
        [cluster, block, cluster],
        [block, cluster, block],
    ] {
        assert_holds(&format!("{calls:?}"), &Machine::new(2, &calls));
    }
}

#[test]
fn a_lost_thread_makes_its_rows_nan_and_keeps_no_thread_of_its_block_waiting() {
    for (calls, row_units) in [(1, 2), (1, 1)] {
        let calls = vec![rows(1, 4 - calls, row_units); calls];
        let machine = two_threads(losing(Machine::new(2, &calls)));
        assert_holds(&format!("{calls:?}"), &machine);
    }
    let machine = two_threads(losing(Machine::new(2, &[with_row_scales(rows(1, 1, 2))])));
    assert_holds("FP8", &machine);
}

#[test]
fn a_lost_thread_makes_its_row_nan_in_every_block_of_a_cluster() {
    let row = shared(2);
    for calls in [
        &[row][..],
        &[with_row_scales(row)],
        &[row, with_row_scales(row)],
    ] {
        assert_holds(&format!("{calls:?}"), &losing(Machine::new(2, calls)));
    }
    for machine in [
        four_threads(Machine::new(2, &[shared(3)])),
        apart(Machine::new(2, &[row])),
    ] {
        let name = format!("{} threads a block", machine.threads);
        assert_holds(&name, &losing(machine));
    }
}

#[test]
fn a_rank_that_stops_in_a_cluster_lets_its_peers_end() {
    for rows in both(shared(2)) {
        let machine = Machine {
            stops: Some(1),
            ..losing(Machine::new(2, &[rows]))
        };
        assert_holds(&format!("{rows:?}"), &machine);
    }
}

#[test]
fn a_rank_whose_norm_differs_ends_the_waits_of_a_cluster() {
    for rows in both(shared(2)) {
        let mut machine = Machine {
            waits: Waits::Look,
            ..Machine::new(2, &[rows])
        };
        machine.programs[1][0].norm = 3;
        assert_holds(&format!("{rows:?}"), &machine);
    }
}

#[test]
fn a_row_without_its_barrier_is_normalised_by_a_part_of_its_sum() {
    for machine in [
        two_threads(Machine::new(2, &[rows(1, 1, 2)])),
        Machine::new(2, &[shared(2)]),
    ] {
        assert_is_needed(Break::NoRowBarrier, machine, Violation::WrongResult);
    }
}

#[test]
fn one_half_for_the_sums_of_rows_is_overwritten_by_the_next_row() {
    let machine = two_threads(Machine::new(2, &[rows(1, 2, 2)]));
    assert_is_needed(Break::OneHalfForRowSums, machine, Violation::WrongResult);
}

/// Why the host gives a call clusters only if every row gets one.
#[test]
fn a_second_row_of_a_cluster_is_normalised_before_its_sums_arrive() {
    let two_rows = Call {
        places: 4,
        ..shared(2)
    };
    let explored = explore(&Machine::new(2, &[two_rows]));
    let counterexample = explored.counterexample.expect("a counterexample");
    println!("{counterexample}");
    assert_eq!(counterexample.violation, Violation::WrongResult);
}

#[test]
fn largest_magnitudes_without_a_sum_between_are_overwritten_by_the_next_row() {
    let machine = two_threads(Machine::new(2, &[with_row_scales(rows(1, 2, 2))]));
    assert_is_needed(Break::LargestWithoutSum, machine, Violation::WrongResult);
}

#[test]
fn a_lost_thread_that_passes_over_the_barrier_of_its_row_blocks_the_others() {
    let rule = Break::LostThreadSkipsRowBarrier;
    let machine = two_threads(bounded(Machine::new(2, &[rows(1, 1, 2)])));
    assert_is_needed(rule, machine, Violation::Deadlock);
}

#[test]
fn a_lost_block_that_passes_over_its_row_ends_before_it_has_the_sums_of_the_others() {
    let machine = losing(Machine::new(2, &[shared(2)]));
    let rule = Break::LostThreadSkipsRowBarrier;
    assert_is_needed(rule, machine, Violation::StoreToEndedBlock);
}

#[test]
fn a_lost_thread_that_adds_nothing_leaves_a_row_that_is_wrong_and_not_nan() {
    let rule = Break::LostThreadAddsNothing;
    for machine in [
        two_threads(bounded(Machine::new(2, &[rows(1, 1, 2)]))),
        losing(Machine::new(2, &[shared(2)])),
    ] {
        assert_is_needed(rule, machine, Violation::WrongResult);
    }
}

#[test]
fn a_thread_without_a_unit_that_does_not_wait_ends_its_block_before_the_sums_arrive() {
    let machine = Machine::new(2, &[shared(1)]);
    let rule = Break::IdleThreadDoesNotWait;
    assert_is_needed(rule, machine, Violation::StoreToEndedBlock);
}

#[test]
fn a_sum_that_arrives_before_a_block_of_the_cluster_has_started_is_not_counted() {
    let machine = Machine::new(2, &[shared(2)]);
    assert_is_needed(Break::NoStartOfCluster, machine, Violation::Deadlock);
}
