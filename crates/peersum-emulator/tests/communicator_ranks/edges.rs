//! Calls without elements, calls that are refused, a group of one, and who outlives whom.

use half::bf16;
use peersum::dispatch::Route;
use peersum::reference::NormNumbers;
use peersum::{Rendezvous, RmsNorm, SharedCommunicator};
use peersum_artifact::Dtype;
use peersum_emulator::{Emulator, EmulatorBuffer};

use crate::results::{Launched, ordinary};
use crate::stage::{
    Content, Framed, assert_bits, build, expected, input, on_ranks, plan, settings,
};

#[test]
fn a_call_of_no_elements_does_nothing_and_does_not_count() {
    on_ranks(2, settings, |comm| {
        let mut nothing = EmulatorBuffer::<f32>::zeroed(0);
        // Only one rank makes these calls. If they counted, the ranks' sequences would differ from
        // here on.
        if comm.rank() == 0 {
            for _ in 0..5 {
                comm.all_reduce_in_place(&mut nothing).unwrap();
                comm.all_reduce(
                    &EmulatorBuffer::<bf16>::zeroed(0),
                    &mut EmulatorBuffer::zeroed(0),
                )
                .unwrap();
            }
        }
        for seed in 0..3 {
            let launched = Launched::<f32>::ordinary(comm, ordinary(Dtype::F32, 33, seed));
            comm.synchronize().unwrap();
            launched.check(comm.rank(), comm.world_size());
        }
    });
}

#[test]
fn lengths_that_differ_between_input_and_output_are_refused_before_anything_is_launched() {
    on_ranks(2, settings, |comm| {
        let (input, mut output) = (EmulatorBuffer::<f32>::zeroed(8), EmulatorBuffer::zeroed(9));
        if comm.rank() == 1 {
            let error = comm.all_reduce(&input, &mut output).unwrap_err();
            assert!(
                matches!(
                    error,
                    peersum::Error::LengthMismatch {
                        input: 8,
                        output: 9
                    }
                ),
                "{error}"
            );
        }
        comm.all_reduce_in_place(&mut output).unwrap();
        comm.synchronize().unwrap();
    });
}

#[test]
fn a_symmetric_route_without_a_symmetric_buffer_and_a_plan_out_of_bounds_are_refused() {
    on_ranks(2, settings, |comm| {
        comm.force_plan(plan(Route::SymmetricTwoShot, 1, 8))
            .unwrap();
        let mut buffer = EmulatorBuffer::<f32>::zeroed(8);
        let error = comm.all_reduce_in_place(&mut buffer).unwrap_err();
        assert!(error.to_string().contains("symmetric"), "{error}");
        for (blocks, threads) in [(0, 8), (257, 8), (1, 7), (1, 513)] {
            let plan = plan(Route::PushOneShot, blocks, threads);
            assert!(comm.force_plan(plan).is_err(), "{blocks} x {threads}");
        }
        comm.force_plan(None).unwrap();
        comm.all_reduce_in_place(&mut buffer).unwrap();
        comm.synchronize().unwrap();
    });
}

#[test]
fn a_group_of_one_copies_bits_and_needs_no_memory() {
    on_ranks(1, settings, |comm| {
        let content = Content::Special;
        let own = input::<f32>(1, 0, 100, content);
        let source = Framed::new(3, &own);
        let mut output = Framed::new(1, &vec![0.0; 100]);
        let range = output.range();
        comm.all_reduce(
            &source.buffer.slice(source.range()),
            &mut output.buffer.slice_mut(range.clone()),
        )
        .unwrap();
        comm.all_reduce_in_place(&mut output.buffer.slice_mut(range))
            .unwrap();
        let mut symmetric = comm.symmetric_alloc::<f32>(100).unwrap();
        comm.all_reduce(
            &source.buffer.slice(source.range()),
            &mut symmetric.as_view_mut(),
        )
        .unwrap();
        comm.synchronize().unwrap();
        // NaN payloads too: nothing is added.
        assert_bits(&output.take(&"one"), &own, &"one");
        assert_bits(&symmetric.to_vec(), &own, &"symmetric");
        assert_eq!(comm.memory_bytes(), 0);
    });
}

#[test]
fn a_symmetric_buffer_outlives_its_communicator_and_may_die_before_its_calls() {
    let kept = on_ranks(3, settings, |comm| {
        let first = {
            let mut short_lived = comm.symmetric_alloc::<f32>(1024).unwrap();
            short_lived.as_view_mut().copy_from_slice(&input(
                9,
                comm.rank(),
                1024,
                Content::Ordinary,
            ));
            comm.force_plan(plan(Route::SymmetricTwoShot, 2, 8))
                .unwrap();
            comm.all_reduce_in_place(&mut short_lived.as_view_mut())
                .unwrap();
            let mut copy = EmulatorBuffer::<f32>::zeroed(1024);
            comm.force_plan(plan(Route::SymmetricOneShot, 2, 8))
                .unwrap();
            comm.all_reduce(&*short_lived, &mut copy).unwrap();
            copy
        };
        let mut kept = comm.symmetric_alloc::<f32>(64).unwrap();
        kept.as_view_mut()
            .copy_from_slice(&input(10, comm.rank(), 64, Content::Ordinary));
        comm.force_plan(plan(Route::SymmetricTwoShot, 1, 8))
            .unwrap();
        comm.all_reduce_in_place(&mut kept.as_view_mut()).unwrap();
        comm.synchronize().unwrap();
        let once = expected::<f32>(9, 3, 1024, Content::Ordinary);
        let twice = peersum::reference::all_reduce(&[&once[..], &once, &once]);
        assert_bits(&first.to_vec(), &twice, &"reduced twice");
        assert!(comm.memory_bytes() > 1024 * 4);
        kept
    });
    for kept in kept {
        assert_bits(
            &kept.to_vec(),
            &expected::<f32>(10, 3, 64, Content::Ordinary),
            &"kept",
        );
    }
}

#[test]
fn a_shared_communicator_takes_calls_from_several_threads_and_comes_back_alone() {
    std::thread::scope(|scope| {
        for (rank, rendezvous) in (0..).zip(Rendezvous::threads(2)) {
            scope.spawn(move || {
                let shared = build(settings(), rendezvous).into_shared();
                take_turns(&shared, rank);
                assert_eq!(shared.into_inner().rank(), rank);
            });
        }
    });
}

/// One of six all-reduces: without and with RMSNorm and a residual, in place and not.
fn shared_call(shared: &SharedCommunicator<Emulator>, rank: u32, step: u64) {
    let own = input::<bf16>(step, rank, 64, Content::Special);
    let mut buffer = EmulatorBuffer::from_slice(&own);
    let source = EmulatorBuffer::from_slice(&own);
    let gamma = input::<bf16>(20, rank, 32, Content::Ordinary);
    let norm = RmsNorm {
        weight: &EmulatorBuffer::from_slice(&gamma),
        epsilon: 1e-6,
        weight_offset: 1.0,
    };
    let before = input::<bf16>(21, rank, 64, Content::Ordinary);
    let mut residual = EmulatorBuffer::from_slice(&before);
    match step {
        0 => shared.all_reduce_in_place(&mut buffer),
        1 => shared.all_reduce(&source, &mut buffer),
        2 => shared.all_reduce_rms_norm_in_place(&mut buffer, &norm),
        3 => shared.all_reduce_rms_norm(&source, &norm, &mut buffer),
        4 => shared.all_reduce_add_rms_norm_in_place(&mut buffer, &mut residual, &norm),
        _ => shared.all_reduce_add_rms_norm(&source, &mut residual, &norm, &mut buffer),
    }
    .unwrap();
    shared.synchronize().unwrap();
    let sum: Vec<bf16> = expected(step, 2, 64, Content::Special);
    let added = peersum::reference::add_residual(&sum, &before);
    let (kept, left) = if step < 4 {
        (&sum, &before)
    } else {
        (&added, &added)
    };
    let numbers = NormNumbers {
        epsilon: norm.epsilon,
        weight_offset: norm.weight_offset,
    };
    let normalised = peersum::reference::rms_norm(kept, &gamma, numbers);
    let result = if step < 2 { &sum } else { &normalised };
    assert_bits(&buffer.to_vec(), result, &step);
    assert_bits(&residual.to_vec(), left, &step);
}

/// Calls from one thread after another, so that the order is the same on all ranks.
fn take_turns(shared: &SharedCommunicator<Emulator>, rank: u32) {
    for step in 0..6 {
        std::thread::scope(|scope| {
            scope.spawn(move || shared_call(shared, rank, step));
        });
    }
}

#[test]
fn a_capture_that_another_thread_tried_to_end_is_still_that_of_its_own_thread() {
    on_ranks(2, settings, |comm| {
        let mut buffer = EmulatorBuffer::from_slice(&[1f32; 8]);
        comm.capture_begin().unwrap();
        comm.all_reduce_in_place(&mut buffer).unwrap();
        let refused = std::thread::scope(|scope| {
            // SAFETY: it fails, so there is no graph.
            let ended = scope.spawn(|| unsafe { comm.capture_end() }.err());
            ended.join().unwrap()
        });
        assert!(refused.is_some());
        // SAFETY: the buffer outlives the graph.
        let graph = unsafe { comm.capture_end() }.unwrap();
        graph.launch(comm).unwrap();
        comm.synchronize().unwrap();
        assert_eq!(buffer.to_vec(), [2.0; 8]);
    });
}
