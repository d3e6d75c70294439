//! Controls: each rule of the protocols is left out in turn, and the explorer must find a run that
//! breaks a promise. A model that finds none could never fail.

use crate::explorer::explore;
use crate::machine::Machine;
use crate::memory::Order;
use crate::program::{Break, Call, Kind, Violation, Waits, call, small};

/// Asserts that `machine` keeps all promises with the rule, and without it breaks one in the way
/// that the rule prevents.
pub(crate) fn assert_is_needed(rule: Break, machine: Machine, violation: Violation) {
    let whole = explore(&machine);
    if let Some(counterexample) = whole.counterexample {
        panic!("{rule:?}, with the rule:\n{counterexample}");
    }
    let broken = explore(&Machine {
        broken: Some(rule),
        ..machine
    });
    let Some(counterexample) = broken.counterexample else {
        panic!("{rule:?}: no counterexample in {} states", broken.states);
    };
    println!(
        "{rule:?}, found after {} states:\n{counterexample}",
        broken.states
    );
    assert_eq!(
        counterexample.violation, violation,
        "{rule:?}\n{counterexample}"
    );
}

fn bounded(world: usize, calls: &[Call]) -> Machine {
    Machine {
        waits: Waits::Bounded,
        ..Machine::new(world, calls)
    }
}

#[test]
fn an_epoch_advanced_before_all_threads_have_read_it_deadlocks() {
    let machine = Machine {
        threads: 2,
        enters_apart: true,
        ..Machine::new(2, &[call(Kind::PushOneShot, 1); 2])
    };
    assert_is_needed(
        Break::EpochAdvancedBeforeBarrier,
        machine,
        Violation::Deadlock,
    );
}

#[test]
fn epochs_of_launched_blocks_alone_do_not_survive_a_change_of_grid() {
    use Kind::PushOneShot as Push;
    let machine = Machine::new(2, &[call(Push, 1), call(Push, 2)]);
    // The block that was not launched then stores into the half of the call before.
    assert_is_needed(
        Break::EpochOfLaunchedBlocksOnly,
        machine,
        Violation::SlotOverwritten,
    );
}

#[test]
fn a_ring_of_two_headers_loses_one_that_a_slow_rank_has_not_checked() {
    let machine = Machine::new(2, &[small(Kind::PushOneShot); 4]);
    assert_is_needed(Break::RingOfTwo, machine, Violation::Deadlock);
}

#[test]
fn synchronize_without_the_last_headers_accepts_a_wrong_last_call() {
    let mut machine = Machine {
        waits: Waits::Look,
        ..Machine::new(2, &[small(Kind::PushOneShot); 2])
    };
    // The rank that calls with more elements sends everything that the other waits for.
    machine.programs[1][1].places = 2;
    assert_is_needed(Break::SynchronizeSkipsHeaders, machine, Violation::FalseOk);
}

/// Two ranks whose details differ in call number `differing`.
fn with_other_detail(calls: &[Call], differing: usize) -> Machine {
    let mut machine = Machine {
        waits: Waits::Look,
        ..Machine::new(2, calls)
    };
    machine.programs[1][differing].detail = 3;
    machine
}

#[test]
fn synchronize_without_the_last_details_accepts_a_wrong_last_call() {
    let calls = [small(Kind::SymmetricOneShot).with_detail(1)];
    let machine = with_other_detail(&calls, 0);
    assert_is_needed(Break::SynchronizeSkipsDetails, machine, Violation::FalseOk);
}

#[test]
fn details_that_the_next_call_does_not_compare_are_never_compared() {
    let calls = [
        small(Kind::SymmetricOneShot).with_detail(1),
        small(Kind::PushOneShot),
    ];
    let machine = with_other_detail(&calls, 0);
    assert_is_needed(Break::DetailsNotCompared, machine, Violation::FalseOk);
}

#[test]
fn a_detail_that_is_not_removed_is_taken_for_that_of_a_later_call() {
    let symmetric = small(Kind::SymmetricOneShot).with_detail(1);
    let push = small(Kind::PushOneShot);
    // The ring wraps around between the two symmetric calls.
    let machine = with_other_detail(&[symmetric, push, push, push, symmetric], 4);
    assert_is_needed(Break::DetailsNotRemoved, machine, Violation::FalseOk);
}

#[test]
fn a_symmetric_call_without_its_closing_barrier_is_overwritten_while_it_is_read() {
    let machine = Machine::new(2, &[small(Kind::SymmetricOneShot); 2]);
    assert_is_needed(Break::NoClosingBarrier, machine, Violation::WrongResult);
}

#[test]
fn a_two_shot_pull_without_its_second_barrier_reads_unreduced_units() {
    for kind in [Kind::PullTwoShot, Kind::SymmetricTwoShot] {
        let machine = Machine::new(2, &[small(kind); 2]);
        assert_is_needed(Break::NoClosingBarrier, machine, Violation::WrongResult);
    }
}

#[test]
fn a_pull_without_its_opening_barrier_reads_inputs_that_are_not_ready() {
    for kind in [Kind::PullOneShot, Kind::SymmetricOneShot] {
        let machine = Machine::new(2, &[small(kind); 2]);
        assert_is_needed(Break::NoOpeningBarrier, machine, Violation::WrongResult);
    }
}

#[test]
fn a_relaxed_flag_does_not_make_staged_units_visible() {
    let machine = Machine::new(2, &[small(Kind::PullOneShot)]);
    assert_is_needed(Break::RelaxedStagingFlag, machine, Violation::WrongResult);
}

#[test]
fn a_symmetric_two_shot_that_gathers_by_reading_needs_a_third_barrier() {
    let machine = Machine::new(2, &[small(Kind::SymmetricTwoShot); 2]);
    let rule = Break::GatherByReadingWithoutThirdBarrier;
    assert_is_needed(rule, machine, Violation::WrongResult);
}

#[test]
fn a_gather_with_another_unit_to_block_mapping_reads_units_that_no_flag_covers() {
    let machine = Machine::new(2, &[call(Kind::PullTwoShot, 2)]);
    assert_is_needed(Break::OtherMappingInGather, machine, Violation::WrongResult);
}

#[test]
fn one_staging_half_is_overwritten_while_a_peer_reads_it() {
    let machine = Machine::new(2, &[small(Kind::PullOneShot); 2]);
    assert_is_needed(Break::OneStagingHalf, machine, Violation::WrongResult);
}

#[test]
fn scratch_memory_in_the_half_of_the_last_pull_is_read_by_a_peer() {
    let calls = [Kind::PullOneShot, Kind::PushOneShot].map(small);
    let machine = Machine {
        has_narrow_units: true,
        ..Machine::new(2, &calls)
    };
    assert_is_needed(Break::ScratchInBusyHalf, machine, Violation::WrongResult);
}

#[test]
fn one_push_half_is_overwritten_before_it_is_read() {
    let machine = Machine::new(2, &[small(Kind::PushOneShot); 2]);
    assert_is_needed(Break::OnePushHalf, machine, Violation::SlotOverwritten);
}

#[test]
fn a_slot_that_is_not_re_armed_gives_its_old_data_again() {
    let machine = Machine::new(2, &[small(Kind::PushOneShot); 3]);
    assert_is_needed(Break::NoRearm, machine, Violation::SlotOverwritten);
}

#[test]
fn an_unchecked_word_tears_a_unit() {
    let machine = Machine {
        words: 2,
        ..Machine::new(2, &[small(Kind::PushOneShot)])
    };
    assert_is_needed(Break::LaneUnchecked, machine, Violation::WrongResult);
}

#[test]
fn the_memory_model_alone_does_not_order_a_re_arm_before_the_next_data() {
    let machine = Machine {
        order: Order::Formal,
        ..Machine::new(2, &[small(Kind::PushOneShot); 3])
    };
    let Some(counterexample) = explore(&machine).counterexample else {
        panic!("kernels/README.md claims more than it must");
    };
    println!("{counterexample}");
    assert_eq!(counterexample.violation, Violation::SlotOverwritten);
}

#[test]
fn a_kernel_that_reads_before_griddepcontrol_wait_takes_an_old_epoch() {
    let machine = Machine::new(2, &[small(Kind::PushOneShot); 2]);
    let rule = Break::NoGriddepcontrolWait;
    assert_is_needed(rule, machine, Violation::SlotOverwritten);
}

#[test]
fn a_poisoned_rank_that_stores_before_it_looks_overwrites_what_a_peer_has_not_summed() {
    let machine = bounded(2, &[small(Kind::PushOneShot); 3]);
    let rule = Break::PoisonReadAfterStores;
    assert_is_needed(rule, machine, Violation::SlotOverwritten);
    let machine = bounded(2, &[small(Kind::PullOneShot); 3]);
    assert_is_needed(rule, machine, Violation::WrongResult);
}

#[test]
fn a_leaver_that_does_not_mark_itself_returns_ok() {
    let machine = bounded(2, &[small(Kind::PushOneShot)]);
    assert_is_needed(Break::LeaverSkipsItself, machine, Violation::FalseOk);
}

#[test]
fn an_observer_of_poison_that_records_nothing_returns_ok() {
    let machine = bounded(2, &[small(Kind::PushOneShot); 2]);
    assert_is_needed(Break::ObserverRecordsNothing, machine, Violation::FalseOk);
}

#[test]
fn an_observer_that_does_not_relay_lets_a_third_rank_read_what_is_overwritten() {
    let machine = Machine {
        signals: 1,
        ..bounded(3, &[small(Kind::SymmetricOneShot); 2])
    };
    assert_is_needed(Break::NoRelay, machine, Violation::WrongResult);
}

#[test]
fn poison_performed_after_its_kernel_ended_is_too_late_for_a_reader() {
    let machine = bounded(2, &[small(Kind::SymmetricOneShot); 2]);
    assert_is_needed(Break::NoFenceBehindPoison, machine, Violation::WrongResult);
}

#[test]
fn a_symmetric_call_without_a_last_look_at_poison_keeps_sums_of_overwritten_data() {
    let machine = bounded(2, &[small(Kind::SymmetricOneShot); 2]);
    assert_is_needed(Break::NoLastLookAtPoison, machine, Violation::WrongResult);
}

#[test]
fn a_flag_stored_before_the_last_look_lets_a_third_rank_take_sums_of_overwritten_data() {
    let machine = Machine {
        signals: 1,
        ..bounded(3, &[small(Kind::SymmetricTwoShot); 2])
    };
    let rule = Break::FlagBeforeLastLook;
    assert_is_needed(rule, machine, Violation::WrongResult);
}

#[test]
fn a_lost_block_that_does_not_wait_until_peers_are_poisoned_fills_what_they_read_with_nan() {
    // The first lost block has claimed the leave and has not yet told any rank.
    let machine = bounded(2, &[call(Kind::SymmetricTwoShot, 2)]);
    assert_is_needed(Break::LostThreadDoesNotWait, machine, Violation::FalseOk);
}

#[test]
fn a_last_look_that_records_nothing_lets_synchronize_return_ok() {
    // The poison words of a rank's blocks arrive one by one: the lost block has seen its own, while
    // the host looks at another block's.
    let machine = bounded(2, &[call(Kind::SymmetricOneShot, 2)]);
    assert_is_needed(Break::LastLookRecordsNothing, machine, Violation::FalseOk);
}

#[test]
fn a_block_that_announces_despite_a_lost_thread_is_read_half_staged() {
    let machine = Machine {
        threads: 2,
        enters_apart: true,
        ..bounded(2, &[call(Kind::PullOneShot, 2)])
    };
    assert_is_needed(Break::LostThreadAnnounced, machine, Violation::WrongResult);
}
