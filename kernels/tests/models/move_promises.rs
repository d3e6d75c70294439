//! What holds in every run of all-gathers, reduce-scatters and broadcasts, alone and among other
//! calls, and each rule of theirs left out.

use crate::controls::assert_is_needed;
use crate::machine::Machine;
use crate::memory::Order;
use crate::program::{Break, Call, KINDS, Kind, Violation, Waits, call, small};
use crate::promises::{assert_holds, bounded, bounded_trio};

/// What each call of a sequence is: its kind and, by its number, the root or the escaped units.
#[derive(Clone, Copy, Debug)]
enum Move {
    /// All units of the even places of ranks 1 and 2 are escaped, then those of rank 0, and so on.
    Gather,
    Scatter,
    /// From rank 0 each time.
    FromOne,
    /// From one rank after the other.
    FromEach,
}

const MOVES: [Move; 4] = [Move::Gather, Move::Scatter, Move::FromOne, Move::FromEach];

impl Move {
    /// Turns a call into the `number`-th call of a sequence of such calls by `world` ranks.
    fn of(self, made: Call, number: usize, world: usize) -> Call {
        let with_kind = |kind| Call { kind, ..made };
        match self {
            Move::Gather => {
                let escapes = if number.is_multiple_of(2) {
                    0b110
                } else {
                    0b001
                };
                with_kind(Kind::AllGather).with_escapes(escapes)
            }
            Move::Scatter => with_kind(Kind::ReduceScatter),
            Move::FromOne => with_kind(Kind::Broadcast),
            Move::FromEach => with_kind(Kind::Broadcast).with_root(number % world),
        }
    }

    fn on_grids(self, world: usize, grids: &[usize]) -> Vec<Call> {
        let calls = grids.iter().map(|&blocks| call(Kind::PushOneShot, blocks));
        self.all_of(world, calls)
    }

    /// Calls of one block and one place.
    fn small(self, world: usize, calls: usize) -> Vec<Call> {
        self.all_of(world, std::iter::repeat_n(small(Kind::PushOneShot), calls))
    }

    fn all_of(self, world: usize, calls: impl Iterator<Item = Call>) -> Vec<Call> {
        let numbered = calls.enumerate();
        numbered
            .map(|(number, call)| self.of(call, number, world))
            .collect()
    }
}

/// Sequences that mix these calls with others. The roots and the escaped units change.
fn mixed(call: impl Fn(Kind, usize) -> Call) -> [Vec<Call>; 5] {
    let gather = |escapes, blocks| call(Kind::AllGather, blocks).with_escapes(escapes);
    let broadcast = |root, blocks| call(Kind::Broadcast, blocks).with_root(root);
    [
        // The slots of a two-shot call before and after those of escaped units.
        vec![
            gather(0b001, 2),
            call(Kind::PushTwoShot, 1),
            gather(0b110, 2),
            call(Kind::PushTwoShot, 1),
        ],
        vec![
            call(Kind::PushOneShot, 2),
            broadcast(0, 1),
            call(Kind::PushOneShot, 2),
            broadcast(1, 1),
        ],
        vec![
            broadcast(1, 2),
            call(Kind::PullTwoShot, 1),
            broadcast(0, 2),
            gather(0b001, 1),
        ],
        vec![
            call(Kind::ReduceScatter, 2),
            broadcast(0, 1),
            gather(0b001, 2),
            call(Kind::SymmetricOneShot, 1),
        ],
        vec![
            call(Kind::PullOneShot, 2),
            gather(0b110, 1),
            call(Kind::PushTwoShot, 2),
            call(Kind::ReduceScatter, 1),
        ],
    ]
}

#[test]
fn ranks_end_every_call_with_the_right_data_on_changing_grids() {
    for kind in MOVES {
        let machine = Machine::new(2, &kind.on_grids(2, &[2, 1, 2, 1, 2]));
        assert_holds(&format!("{kind:?}"), &machine);
        let machine = Machine::new(3, &kind.on_grids(3, &[2, 1, 2]));
        assert_holds(&format!("{kind:?}, three ranks"), &machine);
    }
}

#[test]
fn calls_of_all_kinds_follow_each_other() {
    for calls in mixed(call) {
        assert_holds(&format!("{:?}", kinds(&calls)), &Machine::new(2, &calls));
    }
    for calls in mixed(|kind, _| small(kind)) {
        let name = format!("{:?}, three ranks", kinds(&calls));
        assert_holds(&name, &Machine::new(3, &calls));
    }
}

fn kinds(calls: &[Call]) -> Vec<Kind> {
    calls.iter().map(|call| call.kind).collect()
}

#[test]
fn six_calls_in_a_row_reuse_every_place_of_the_ring() {
    for kind in MOVES {
        assert_holds(&format!("{kind:?}"), &Machine::new(2, &kind.small(2, 6)));
        let machine = Machine::new(3, &kind.small(3, 5));
        assert_holds(&format!("{kind:?}, three ranks"), &machine);
    }
}

#[test]
fn a_thread_may_have_several_places_in_flight() {
    for kind in MOVES {
        let calls = |world, calls| {
            let one = Call {
                places: 3,
                ..call(Kind::PushOneShot, 1)
            };
            kind.all_of(world, std::iter::repeat_n(one, calls))
        };
        let holds = |what: &str, machine: &Machine| {
            assert_holds(&format!("{kind:?}, {what}"), machine);
        };
        holds("two ranks", &Machine::new(2, &calls(2, 3)));
        holds("three ranks", &Machine::new(3, &calls(3, 2)));
        holds("bounded", &bounded(Machine::new(2, &calls(2, 2))));
    }
}

#[test]
fn the_words_of_a_unit_and_of_its_rest_may_come_in_any_order() {
    for kind in [Move::Gather, Move::FromEach] {
        let machine = Machine {
            words: 2,
            ..Machine::new(2, &kind.on_grids(2, &[2, 1, 2, 1]))
        };
        assert_holds(&format!("{kind:?}"), &machine);
    }
}

/// Blocks of two data threads. On two blocks a call has three places: the last thread has none.
fn with_two_threads(world: usize, kind: Move, grids: &[usize]) -> Machine {
    let calls = grids.iter().map(|&blocks| Call {
        places: 1 + blocks,
        ..call(Kind::PushOneShot, blocks)
    });
    Machine {
        threads: 2,
        ..Machine::new(world, &kind.all_of(world, calls))
    }
}

#[test]
fn the_threads_of_a_block_may_be_at_different_steps() {
    for kind in MOVES {
        let machine = Machine {
            enters_apart: true,
            ..with_two_threads(2, kind, &[2, 1, 1])
        };
        assert_holds(&format!("{kind:?}"), &machine);
        let machine = with_two_threads(3, kind, &[2, 1, 2]);
        assert_holds(&format!("{kind:?}, three ranks"), &machine);
    }
}

#[test]
fn units_that_pass_through_scratch_memory_disturb_no_peer() {
    for calls in mixed(call) {
        let machine = Machine {
            has_narrow_units: true,
            ..Machine::new(2, &calls)
        };
        assert_holds(&format!("{:?}", kinds(&calls)), &machine);
    }
}

#[test]
fn the_strict_build_needs_no_argument_beyond_the_memory_model() {
    for kind in MOVES {
        for machine in [
            Machine::new(2, &kind.on_grids(2, &[2, 1, 2, 1])),
            Machine::new(3, &kind.small(3, 4)),
        ] {
            let machine = Machine {
                order: Order::Formal,
                is_strict: true,
                ..machine
            };
            assert_holds(&format!("{kind:?}, {} ranks", machine.world), &machine);
        }
    }
}

#[test]
fn a_rank_that_stalls_before_any_step_makes_no_result_wrong_and_all_fail() {
    for kind in MOVES {
        let machine = bounded(Machine::new(2, &kind.on_grids(2, &[2, 1, 2])));
        assert_holds(&format!("{kind:?}"), &machine);
        let machine = bounded_trio(&kind.small(3, 3));
        assert_holds(&format!("{kind:?}, three ranks"), &machine);
        let machine = bounded_trio(&kind.on_grids(3, &[1, 1]));
        assert_holds(&format!("{kind:?}, three ranks, two places"), &machine);
    }
    let machine = bounded_trio(&Move::FromOne.on_grids(3, &[2]));
    assert_holds("three ranks, two blocks", &machine);
    for calls in mixed(call) {
        let machine = bounded(Machine::new(2, &calls[..3]));
        assert_holds(&format!("{:?}", kinds(&calls)), &machine);
    }
    for calls in mixed(|kind, _| small(kind)) {
        let name = format!("{:?}, three ranks", kinds(&calls));
        assert_holds(&name, &bounded_trio(&calls[..3]));
    }
}

#[test]
fn the_signal_threads_of_a_block_may_learn_of_a_failure_at_different_steps() {
    for kind in MOVES {
        let machine = Machine {
            signals: 2,
            ..bounded_trio(&kind.small(3, 2))
        };
        assert_holds(&format!("{kind:?}, three ranks"), &machine);
    }
}

/// With one place all of these calls take the same steps as a one-shot push.
#[test]
fn a_wait_for_a_header_may_end_at_any_step_of_the_data() {
    let machine = Machine {
        takes_headers_at_once: false,
        ..bounded_trio(&Move::FromEach.small(3, 2))
    };
    assert_holds("three ranks", &machine);
}

#[test]
fn a_thread_of_a_block_may_lose_a_call_that_the_others_end() {
    for kind in MOVES {
        let machine = Machine {
            enters_apart: true,
            takes_headers_at_once: true,
            ..bounded(with_two_threads(2, kind, &[1, 1]))
        };
        assert_holds(&format!("{kind:?}"), &machine);
    }
}

#[test]
fn a_rank_that_stops_for_good_lets_its_peers_end() {
    for kind in MOVES {
        for stops in [0, 1] {
            let machine = Machine {
                stops: Some(stops),
                ..bounded(Machine::new(2, &kind.on_grids(2, &[2, 1])))
            };
            assert_holds(&format!("{kind:?}, rank {stops}"), &machine);
            let machine = Machine {
                stops: Some(stops),
                ..bounded_trio(&kind.small(3, 2))
            };
            assert_holds(&format!("{kind:?}, rank {stops} of three"), &machine);
        }
    }
}

/// Every call that a rank could make instead of `made`.
fn other_calls(made: Call, world: usize) -> impl Iterator<Item = Call> {
    let kinds = KINDS.into_iter().map(|kind| call(kind, 1));
    let moves = [Kind::AllGather, Kind::ReduceScatter].map(|kind| call(kind, 1));
    let broadcasts = (0..world).map(|root| call(Kind::Broadcast, 1).with_root(root));
    let all = kinds.chain(moves).chain(broadcasts);
    all.flat_map(|call| [1, 2].map(|places| Call { places, ..call }))
        .filter(move |other| other.signature() != made.signature())
}

/// In turn, each call of rank 1 is replaced by every other one.
fn assert_ends_whatever_rank_1_calls(world: usize, calls: &[Call]) {
    for differing in 0..calls.len() {
        for other in other_calls(calls[differing], world) {
            let mut machine = Machine {
                waits: Waits::Look,
                signals: 1,
                takes_headers_at_once: world == 3,
                ..Machine::new(world, calls)
            };
            machine.programs[1][differing] = other;
            let names = format!("{:?}, call {differing}: {other:?}", kinds(calls));
            assert_holds(&format!("{world} ranks, {names}"), &machine);
        }
    }
}

#[test]
fn a_rank_that_calls_differently_makes_all_fail_before_any_deadline() {
    for kind in MOVES {
        assert_ends_whatever_rank_1_calls(2, &kind.small(2, 3));
        assert_ends_whatever_rank_1_calls(2, &kind.on_grids(2, &[1]));
    }
    for kind in [Move::Gather, Move::FromEach] {
        assert_ends_whatever_rank_1_calls(3, &kind.small(3, 2));
    }
    // Behind the place in which all ranks meet, rank 2 waits for rank 0 alone.
    assert_ends_whatever_rank_1_calls(3, &Move::FromOne.on_grids(3, &[1]));
}

#[test]
fn a_broadcast_without_tokens_lets_its_root_be_two_calls_ahead() {
    for world in [2, 3] {
        let machine = Machine {
            enters_apart: true,
            ..Machine::new(world, &Move::FromOne.small(world, 3))
        };
        let rule = Break::BroadcastWithoutTokens;
        assert_is_needed(rule, machine, Violation::SlotOverwritten);
    }
}

#[test]
fn ranks_that_do_not_exchange_tokens_with_each_other_are_two_calls_apart() {
    let calls = [Kind::PushOneShot, Kind::Broadcast, Kind::PushOneShot].map(small);
    let rule = Break::TokensForRootOnly;
    assert_is_needed(rule, Machine::new(3, &calls), Violation::SlotOverwritten);
}

#[test]
fn an_overflow_slot_that_is_not_re_armed_gives_its_old_data_again() {
    let gather = small(Kind::AllGather).with_escapes(0b11);
    let [push, two_shot] = [Kind::PushOneShot, Kind::PushTwoShot].map(small);
    for last in [gather, two_shot] {
        let machine = Machine::new(2, &[gather, push, last]);
        let rule = Break::OverflowNotRearmed;
        assert_is_needed(rule, machine, Violation::SlotOverwritten);
    }
}

#[test]
fn an_overflow_slot_that_is_not_awaited_tears_a_unit() {
    let gather = small(Kind::AllGather).with_escapes(0b11);
    let machine = Machine::new(2, &[gather]);
    assert_is_needed(Break::OverflowNotAwaited, machine, Violation::WrongResult);
}

#[test]
fn slots_that_are_not_re_armed_give_their_old_data_again() {
    for kind in [Move::Gather, Move::Scatter, Move::FromOne] {
        let machine = Machine::new(2, &kind.small(2, 3));
        assert_is_needed(Break::NoRearm, machine, Violation::SlotOverwritten);
    }
}
