//! What holds in every run of calls with RMSNorm, fused and not, and each rule of their norm words
//! left out. (For rows of several threads see `row_promises.rs`.)

use crate::controls::assert_is_needed;
use crate::machine::Machine;
use crate::memory::Order;
use crate::program::{Break, Call, Kind, Violation, Waits, call, small};
use crate::promises::{assert_holds, bounded, bounded_trio};

#[test]
fn the_strict_build_needs_no_argument_beyond_the_memory_model_for_norm_words() {
    let fused = |blocks| call(Kind::NormOneShot, blocks);
    for machine in [
        Machine::new(2, &[fused(2), fused(1), fused(2), fused(1), fused(1)]),
        Machine::new(3, &[small(Kind::NormOneShot); 3]),
    ] {
        let machine = Machine {
            order: Order::Formal,
            is_strict: true,
            ..machine
        };
        assert_holds(&format!("{} ranks", machine.world), &machine);
    }
}

/// Calls that are normalised by a kernel of their own, with other calls between.
fn unfused() -> Vec<Vec<Call>> {
    let [two_shot, pull, symmetric] =
        [Kind::PushTwoShot, Kind::PullOneShot, Kind::SymmetricTwoShot]
            .map(|kind| small(kind).with_rows(1));
    let fused = small(Kind::NormOneShot);
    let push = small(Kind::PushOneShot);
    vec![
        [two_shot, two_shot].concat(),
        [&pull[..], &[fused], &symmetric].concat(),
        [&[fused][..], &two_shot, &[push]].concat(),
        [&symmetric[..], &[push], &pull].concat(),
    ]
}

#[test]
fn calls_of_all_kinds_are_normalised_by_a_kernel_of_their_own() {
    for calls in unfused() {
        let kinds: Vec<Kind> = calls.iter().map(|call| call.kind).collect();
        assert_holds(&format!("{kinds:?}"), &Machine::new(2, &calls));
        assert_holds(&format!("{kinds:?}, three ranks"), &Machine::new(3, &calls));
        assert_holds(
            &format!("{kinds:?}, bounded"),
            &bounded(Machine::new(2, &calls)),
        );
        let machine = bounded_trio(&calls[..3]);
        assert_holds(&format!("{kinds:?}, bounded, three ranks"), &machine);
    }
}

#[test]
fn a_rank_that_stops_between_a_call_and_the_kernel_of_its_rows_lets_its_peers_end() {
    for calls in unfused() {
        let machine = Machine {
            stops: Some(1),
            ..bounded(Machine::new(2, &calls[..3]))
        };
        assert_holds(&format!("{calls:?}"), &machine);
    }
}

#[test]
fn six_calls_in_a_row_find_every_place_for_norm_words_empty() {
    let fused = small(Kind::NormOneShot);
    assert_holds("fused", &Machine::new(2, &[fused; 6]));
    let push = small(Kind::PushOneShot);
    let machine = Machine::new(2, &[fused, push, push, push, fused, push]);
    assert_holds("the ring wraps around", &machine);
}

/// Two or three ranks of which one says something else in its norm words.
fn with_other_norm(world: usize, calls: &[Call], differing: usize) -> Machine {
    let mut machine = Machine {
        waits: Waits::Look,
        signals: 1,
        takes_headers_at_once: world == 3,
        ..Machine::new(world, calls)
    };
    let own = machine.programs[1][differing].norm;
    let made = machine.programs[1].iter_mut().skip(differing);
    // The kernel of the rows has the words of its call.
    made.take_while(|call| call.norm == own)
        .take(2)
        .filter(|call| call.kind != Kind::PushOneShot)
        .for_each(|call| call.norm = 3);
    machine
}

#[test]
fn a_rank_whose_norm_alone_differs_makes_all_fail_before_any_deadline() {
    let fused = small(Kind::NormOneShot);
    let push = small(Kind::PushOneShot);
    let two_shot = small(Kind::PushTwoShot).with_rows(1);
    let symmetric = small(Kind::SymmetricOneShot).with_detail(1).with_rows(1);
    for (calls, differing) in [
        (vec![fused], 0),
        (vec![fused, push], 0),
        (vec![push, fused], 1),
        (two_shot.to_vec(), 0),
        (symmetric.to_vec(), 0),
        ([&two_shot[..], &[push]].concat(), 0),
    ] {
        for world in [2, 3] {
            let machine = with_other_norm(world, &calls, differing);
            assert_holds(
                &format!("{world} ranks, call {differing} of {calls:?}"),
                &machine,
            );
        }
    }
    let machine = with_other_norm(2, &[fused, push, push, push, fused], 4);
    assert_holds("the ring wraps around", &machine);
}

#[test]
fn a_rank_that_normalises_what_its_peer_only_sums_makes_all_fail_before_any_deadline() {
    for kind in [Kind::PushTwoShot, Kind::PullOneShot] {
        let normalised = small(kind).with_rows(1);
        let mut machine = Machine {
            waits: Waits::Look,
            ..Machine::new(2, &normalised)
        };
        machine.programs[1] = vec![small(kind)];
        assert_holds(&format!("{kind:?}"), &machine);
    }
}

#[test]
fn norm_words_that_are_not_compared_let_ranks_normalise_differently() {
    let machine = with_other_norm(2, &[small(Kind::NormOneShot)], 0);
    assert_is_needed(Break::NormWordsNotCompared, machine, Violation::FalseOk);
    let machine = with_other_norm(2, &small(Kind::PullOneShot).with_rows(1), 0);
    assert_is_needed(Break::NormWordsNotCompared, machine, Violation::FalseOk);
}

#[test]
fn a_look_that_leaves_norm_words_out_waits_until_a_deadline() {
    let machine = with_other_norm(2, &[small(Kind::NormOneShot)], 0);
    assert_is_needed(Break::LookSkipsNormWords, machine, Violation::Deadlock);
}

#[test]
fn a_norm_word_that_is_not_removed_is_taken_for_that_of_a_later_call() {
    let fused = small(Kind::NormOneShot);
    let push = small(Kind::PushOneShot);
    let machine = with_other_norm(2, &[fused, push, push, push, fused], 4);
    assert_is_needed(Break::NormWordsNotRemoved, machine, Violation::FalseOk);
}

#[test]
fn one_place_for_norm_words_is_not_empty_when_the_next_call_needs_it() {
    let machine = Machine::new(2, &[small(Kind::NormOneShot); 2]);
    let rule = Break::OnePlaceForNormWords;
    assert_is_needed(rule, machine, Violation::SlotOverwritten);
}
