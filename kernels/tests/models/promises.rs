//! What holds in every run: no deadlock; no slot is overwritten before its data was taken; every
//! output is right or NaN; `synchronize` returns Ok only if all outputs are right; between calls
//! all blocks hold equal epochs; every peer of a failed rank is poisoned.

use crate::explorer::explore;
use crate::machine::Machine;
use crate::memory::Order;
use crate::program::{self, Call, KINDS, Kind, Waits, call, small};

pub(crate) fn assert_holds(name: &str, machine: &Machine) {
    let explored = explore(machine);
    println!("{name}: {} states", explored.states);
    if let Some(counterexample) = explored.counterexample {
        panic!("{name}:\n{counterexample}");
    }
}

pub(crate) fn bounded(machine: Machine) -> Machine {
    Machine {
        waits: Waits::Bounded,
        ..machine
    }
}

/// Four calls on the grids 2, 1, 2, 1.
fn on_changing_grids(kinds: [Kind; 4]) -> [Call; 4] {
    [
        call(kinds[0], 2),
        call(kinds[1], 1),
        call(kinds[2], 2),
        call(kinds[3], 1),
    ]
}

/// Sequences that mix families, sources and algorithms.
const MIXED: [[Kind; 4]; 4] = [
    [
        Kind::PushOneShot,
        Kind::PushTwoShot,
        Kind::PushTwoShot,
        Kind::PushOneShot,
    ],
    [
        Kind::PullOneShot,
        Kind::PushOneShot,
        Kind::PullTwoShot,
        Kind::PushTwoShot,
    ],
    [
        Kind::PullTwoShot,
        Kind::SymmetricOneShot,
        Kind::PullOneShot,
        Kind::SymmetricTwoShot,
    ],
    [
        Kind::SymmetricTwoShot,
        Kind::PushTwoShot,
        Kind::SymmetricOneShot,
        Kind::PullOneShot,
    ],
];

#[test]
fn two_ranks_end_every_call_with_the_right_sum_on_changing_grids() {
    for kind in KINDS {
        let mut calls = on_changing_grids([kind; 4]).to_vec();
        calls.push(call(kind, 2));
        assert_holds(&format!("{kind:?}"), &Machine::new(2, &calls));
    }
}

#[test]
fn three_ranks_end_every_call_with_the_right_sum_on_changing_grids() {
    for kind in KINDS {
        let calls = [call(kind, 2), call(kind, 1), call(kind, 2)];
        assert_holds(&format!("{kind:?}"), &Machine::new(3, &calls));
    }
}

#[test]
fn a_thread_of_a_push_may_have_several_places_in_flight() {
    for kind in [Kind::PushOneShot, Kind::PushTwoShot] {
        let call = |blocks| Call {
            places: 3,
            ..program::call(kind, blocks)
        };
        let holds = |what: &str, machine: &Machine| {
            assert_holds(&format!("{kind:?}, {what}"), machine);
        };
        holds("one grid", &Machine::new(2, &[1, 1, 1].map(call)));
        holds("changing grids", &Machine::new(2, &[1, 2, 1].map(call)));
        // For the data alone each rank could choose its own grid in this family. The seats need the
        // same grid on all ranks (seats.rs).
        let mut machine = Machine::new(2, &[1, 2, 1].map(call));
        machine.programs[1] = [2, 1, 1].map(call).to_vec();
        holds("other grids on each rank", &machine);
        holds("three ranks", &Machine::new(3, &[1, 1].map(call)));
        holds("bounded", &bounded(Machine::new(2, &[1, 1].map(call))));
    }
}

#[test]
fn calls_of_all_kinds_follow_each_other() {
    for kinds in MIXED {
        let machine = Machine::new(2, &on_changing_grids(kinds));
        assert_holds(&format!("{kinds:?}"), &machine);
        let machine = Machine::new(3, &kinds.map(small));
        assert_holds(&format!("{kinds:?}, three ranks"), &machine);
    }
}

#[test]
fn the_words_of_a_unit_may_come_in_any_order() {
    let calls = on_changing_grids([Kind::PushOneShot; 4]);
    let machine = Machine {
        words: 2,
        ..Machine::new(2, &calls)
    };
    assert_holds("two words a unit", &machine);
}

#[test]
fn the_threads_of_a_block_may_be_at_different_steps() {
    for kind in KINDS {
        let calls = [call(kind, 2), call(kind, 1), call(kind, 1)];
        let machine = Machine {
            threads: 2,
            enters_apart: true,
            ..Machine::new(2, &calls)
        };
        assert_holds(&format!("{kind:?}"), &machine);
    }
}

#[test]
fn units_that_pass_through_scratch_memory_disturb_no_peer() {
    for kinds in [
        MIXED[0],
        MIXED[1],
        [Kind::PullOneShot; 4],
        [Kind::PullTwoShot; 4],
    ] {
        let machine = Machine {
            has_narrow_units: true,
            ..Machine::new(2, &on_changing_grids(kinds))
        };
        assert_holds(&format!("{kinds:?}"), &machine);
    }
}

#[test]
fn six_calls_in_a_row_reuse_every_place_of_the_ring() {
    let machine = Machine::new(2, &[small(Kind::PushOneShot); 6]);
    assert_holds("two ranks", &machine);
    let machine = Machine::new(3, &[small(Kind::PushOneShot); 5]);
    assert_holds("three ranks", &machine);
}

#[test]
fn the_strict_build_needs_no_argument_beyond_the_memory_model() {
    for kind in [Kind::PushOneShot, Kind::PushTwoShot] {
        let calls = [call(kind, 2), call(kind, 1), call(kind, 2), call(kind, 1)];
        for machine in [Machine::new(2, &calls), Machine::new(3, &[small(kind); 4])] {
            let machine = Machine {
                order: Order::Formal,
                is_strict: true,
                ..machine
            };
            assert_holds(&format!("{kind:?}, {} ranks", machine.world), &machine);
        }
    }
}

/// Three ranks whose waits end at any moment. Two simplifications keep this small: one thread of a
/// block carries the signals for both peers, and it takes a header as soon as it has been sent. Two
/// tests each drop one of them:
/// `the_signal_threads_of_a_block_may_learn_of_a_failure_at_different_steps` and
/// `a_wait_for_a_header_may_end_at_any_step_of_the_data`.
pub(crate) fn bounded_trio(calls: &[Call]) -> Machine {
    Machine {
        signals: 1,
        takes_headers_at_once: true,
        ..bounded(Machine::new(3, calls))
    }
}

#[test]
fn a_rank_that_stalls_before_any_step_makes_no_result_wrong_and_all_fail() {
    for kind in KINDS {
        let calls = [call(kind, 2), call(kind, 1), call(kind, 2)];
        let machine = bounded(Machine::new(2, &calls));
        assert_holds(&format!("{kind:?}"), &machine);
        let machine = bounded_trio(&[small(kind); 3]);
        assert_holds(&format!("{kind:?}, three ranks"), &machine);
    }
    for kinds in MIXED {
        let machine = bounded(Machine::new(2, &on_changing_grids(kinds)[..3]));
        assert_holds(&format!("{kinds:?}"), &machine);
        let machine = bounded_trio(&kinds.map(small)[..3]);
        assert_holds(&format!("{kinds:?}, three ranks"), &machine);
    }
}

#[test]
fn the_signal_threads_of_a_block_may_learn_of_a_failure_at_different_steps() {
    for kind in KINDS {
        let machine = Machine {
            signals: 2,
            ..bounded_trio(&[small(kind); 2])
        };
        assert_holds(&format!("{kind:?}, three ranks"), &machine);
    }
}

#[test]
fn a_wait_for_a_header_may_end_at_any_step_of_the_data() {
    for kind in KINDS.into_iter().filter(|kind| *kind != Kind::PushTwoShot) {
        let machine = Machine {
            takes_headers_at_once: false,
            ..bounded_trio(&[small(kind); 2])
        };
        assert_holds(&format!("{kind:?}, three ranks"), &machine);
    }
}

#[test]
fn a_block_of_which_one_thread_is_lost_announces_nothing() {
    for kind in KINDS {
        let blocks = match kind {
            Kind::PullOneShot | Kind::PullTwoShot => 2,
            _ => 1,
        };
        let machine = Machine {
            threads: 2,
            enters_apart: true,
            takes_headers_at_once: true,
            ..bounded(Machine::new(2, &[call(kind, blocks), call(kind, 1)]))
        };
        assert_holds(&format!("{kind:?}"), &machine);
    }
}

#[test]
fn a_rank_that_stops_for_good_lets_its_peers_end() {
    for kind in KINDS {
        let machine = Machine {
            stops: Some(1),
            ..bounded(Machine::new(2, &[call(kind, 2), call(kind, 1)]))
        };
        assert_holds(&format!("{kind:?}"), &machine);
        let machine = Machine {
            stops: Some(1),
            ..bounded_trio(&[small(kind); 2])
        };
        assert_holds(&format!("{kind:?}, three ranks"), &machine);
    }
}

/// Every call that a rank could make instead of `made`.
fn other_calls(made: Call) -> impl Iterator<Item = Call> {
    KINDS
        .into_iter()
        .flat_map(|kind| {
            [1, 2].map(|places| Call {
                places,
                ..call(kind, 1)
            })
        })
        .filter(move |other| *other != made)
}

#[test]
fn a_rank_that_calls_differently_makes_all_fail_before_any_deadline() {
    for kind in KINDS {
        for (world, calls) in [(2, 3), (3, 2)] {
            for differing in 0..calls {
                for other in other_calls(small(kind)) {
                    let mut machine = Machine {
                        waits: Waits::Look,
                        signals: 1,
                        takes_headers_at_once: world == 3,
                        ..Machine::new(world, &vec![small(kind); calls])
                    };
                    machine.programs[1][differing] = other;
                    let name = format!("{world} ranks, call {differing}: {kind:?} and {other:?}");
                    assert_holds(&name, &machine);
                }
            }
        }
    }
}

/// Symmetric calls with a detail, with other calls after and between them.
fn calls_with_details() -> Vec<Vec<Call>> {
    let one_shot = small(Kind::SymmetricOneShot).with_detail(1);
    let two_shot = small(Kind::SymmetricTwoShot).with_detail(2);
    let [push, pull] = [Kind::PushOneShot, Kind::PullOneShot].map(small);
    vec![
        vec![one_shot, two_shot, one_shot],
        vec![two_shot, push, one_shot],
        vec![one_shot, pull, two_shot],
        // The ring wraps around: the place of the first detail is used again.
        vec![one_shot, push, push, push, one_shot],
        vec![one_shot; 5],
    ]
}

#[test]
fn calls_with_details_end_and_find_the_places_of_their_details_empty() {
    for calls in calls_with_details() {
        assert_holds(&format!("{calls:?}"), &Machine::new(2, &calls));
        let first = &calls[..3];
        assert_holds(
            &format!("{first:?}, three ranks"),
            &Machine::new(3, &first[..2]),
        );
        let machine = Machine {
            takes_headers_at_once: true,
            ..bounded(Machine::new(2, first))
        };
        assert_holds(&format!("{first:?}, bounded"), &machine);
    }
}

#[test]
fn a_rank_whose_detail_alone_differs_makes_all_fail_before_any_deadline() {
    for calls in calls_with_details() {
        for differing in (0..calls.len()).filter(|&call| calls[call].detail != 0) {
            for world in [2, 3] {
                if world == 3 && calls.len() > 3 {
                    continue;
                }
                let mut machine = Machine {
                    waits: Waits::Look,
                    signals: 1,
                    takes_headers_at_once: world == 3,
                    ..Machine::new(world, &calls)
                };
                machine.programs[1][differing].detail = 3;
                let name = format!("{world} ranks, call {differing} of {calls:?}");
                assert_holds(&name, &machine);
            }
        }
    }
}
