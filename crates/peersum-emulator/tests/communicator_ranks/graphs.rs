//! Captured calls, replayed in loops and between eager calls.

use half::bf16;
use peersum::dispatch::Route;
use peersum::{Error, Held};
use peersum_emulator::EmulatorBuffer;

use crate::stage::{Comm, Content, assert_bits, expected, input, on_ranks, plan, settings};

const LEN: usize = 333;
const LAYERS: u64 = 4;
const REPLAYS: u64 = 100;
/// One for each layer: every route that takes ordinary buffers.
const ROUTES: [Route; LAYERS as usize] = [
    Route::PushOneShot,
    Route::PullOneShot,
    Route::PushTwoShot,
    Route::PullTwoShot,
];

/// An eager call between replays, of its own size and route, so that grids and epochs move.
fn eager_call(comm: &mut Comm, seed: u64) {
    let route = [Route::PullTwoShot, Route::PushOneShot, Route::PullOneShot][seed as usize % 3];
    comm.force_plan(plan(route, 1 + seed as u32 % 3, 8))
        .unwrap();
    let len = 1 + 37 * (seed as usize % 9);
    let mut buffer =
        EmulatorBuffer::from_slice(&input::<f32>(seed, comm.rank(), len, Content::Special));
    comm.all_reduce_in_place(&mut buffer).unwrap();
    comm.synchronize().unwrap();
    let expected = expected(seed, comm.world_size(), len, Content::Special);
    assert_bits(&buffer.to_vec(), &expected, &("eager", seed));
    comm.force_plan(None).unwrap();
}

#[test]
fn four_captured_layers_replay_a_hundred_times_between_eager_calls() {
    on_ranks(3, settings, |comm| {
        let (rank, world_size) = (comm.rank(), comm.world_size());
        let mut inputs: Vec<_> = (0..LAYERS)
            .map(|_| EmulatorBuffer::<bf16>::zeroed(LEN))
            .collect();
        let mut outputs: Vec<_> = (0..LAYERS)
            .map(|_| EmulatorBuffer::<bf16>::zeroed(LEN))
            .collect();
        let mut symmetric = comm.symmetric_alloc::<f32>(LEN).unwrap();
        let mut symmetric_output = EmulatorBuffer::<f32>::zeroed(LEN);

        let mut held_inputs: Vec<_> = inputs.iter_mut().map(Held::new).collect();
        let mut held_outputs: Vec<_> = outputs.iter_mut().map(Held::new).collect();
        let mut symmetric = symmetric.as_view_mut();
        let mut held_symmetric = Held::new(&mut symmetric);
        let mut held_symmetric_output = Held::new(&mut symmetric_output);
        // What is captured is fixed: a plan that is forced later does not change it.
        let graphs: Vec<_> = ROUTES
            .iter()
            .enumerate()
            .map(|(layer, &route)| {
                comm.force_plan(plan(route, 1 + layer as u32 % 3, 8))
                    .unwrap();
                comm.capture(|capture| {
                    capture.all_reduce(&held_inputs[layer], &mut held_outputs[layer])
                })
                .unwrap()
            })
            .collect();
        comm.force_plan(plan(Route::SymmetricOneShot, 2, 8))
            .unwrap();
        let symmetric_graph = comm.capture(|capture| {
            capture.all_reduce(&held_symmetric, &mut held_symmetric_output)?;
            // Staged: the table's choice for its size, in a graph.
            capture.all_reduce_in_place(&mut held_symmetric_output)
        });
        assert!(
            symmetric_graph.is_err(),
            "an ordinary buffer cannot take a symmetric route"
        );
        comm.force_plan(plan(Route::SymmetricOneShot, 2, 8))
            .unwrap();
        let symmetric_graph = comm
            .capture(|capture| capture.all_reduce(&held_symmetric, &mut held_symmetric_output))
            .unwrap();
        comm.force_plan(None).unwrap();

        for replay in 0..REPLAYS {
            let seed = |layer: u64| replay * 16 + layer;
            for (layer, held) in (0..).zip(&mut held_inputs) {
                let values = input(seed(layer), rank, LEN, Content::Special);
                held.as_view_mut().copy_from_slice(&values);
            }
            let values = input(seed(9), rank, LEN, Content::Special);
            held_symmetric.as_view_mut().copy_from_slice(&values);
            for graph in &graphs {
                graph.launch(comm).unwrap();
            }
            symmetric_graph.launch(comm).unwrap();
            if replay % 4 == 3 {
                eager_call(comm, replay);
            } else {
                comm.synchronize().unwrap();
            }
            for (layer, held) in (0..).zip(&held_outputs) {
                let expected = expected(seed(layer), world_size, LEN, Content::Special);
                assert_bits(&held.to_vec(), &expected, &("replay", replay, layer));
            }
            let expected = expected(seed(9), world_size, LEN, Content::Special);
            assert_bits(
                &held_symmetric_output.to_vec(),
                &expected,
                &("symmetric", replay),
            );
        }
    });
}

#[test]
fn one_graph_of_four_layers_replays_without_a_wait_between() {
    on_ranks(2, settings, |comm| {
        let rank = comm.rank();
        let mut buffers: Vec<_> = (0..LAYERS)
            .map(|_| EmulatorBuffer::<f32>::zeroed(LEN))
            .collect();
        let mut held: Vec<_> = buffers.iter_mut().map(Held::new).collect();
        for (layer, buffer) in (0..).zip(&mut held) {
            buffer
                .as_view_mut()
                .copy_from_slice(&input(layer, rank, LEN, Content::Ordinary));
        }
        let graph = comm
            .capture(|capture| {
                assert!(!format!("{:?}", capture.stream()).is_empty());
                held.iter_mut()
                    .try_for_each(|buffer| capture.all_reduce_in_place(buffer))
            })
            .unwrap();
        // The first leaves the same sum on both ranks, and each behind it doubles that exactly, so
        // the result counts the replays without a wait between them.
        for _ in 0..REPLAYS {
            graph.launch(comm).unwrap();
        }
        comm.synchronize().unwrap();
        for (layer, buffer) in (0..).zip(&held) {
            let mut expected = expected::<f32>(layer, 2, LEN, Content::Ordinary);
            for element in &mut expected {
                *element *= 2f32.powi(REPLAYS as i32 - 1);
            }
            assert!(expected.iter().all(|element| element.is_finite()));
            assert_bits(&buffer.to_vec(), &expected, &layer);
        }
    });
}

#[test]
fn the_raw_form_captures_what_is_called_between_begin_and_end() {
    on_ranks(2, settings, |comm| {
        let mut buffer = EmulatorBuffer::<f32>::zeroed(LEN);
        comm.capture_begin().unwrap();
        assert!(matches!(comm.capture_begin(), Err(Error::Capture(_))));
        assert!(matches!(comm.synchronize(), Err(Error::Capture(_))));
        comm.all_reduce_in_place(&mut buffer).unwrap();
        // SAFETY: `buffer` lives to the end of this closure, and the graph is not launched after
        // it.
        let graph = unsafe { comm.capture_end() }.unwrap();
        // SAFETY: no capture is open, so this makes no graph.
        let nothing = unsafe { comm.capture_end() };
        assert!(matches!(nothing, Err(Error::Capture(_))));
        for seed in 0..10 {
            buffer.copy_from_slice(&input(seed, comm.rank(), LEN, Content::Ordinary));
            graph.launch(comm).unwrap();
            comm.synchronize().unwrap();
            let expected = expected::<f32>(seed, 2, LEN, Content::Ordinary);
            assert_bits(&buffer.to_vec(), &expected, &seed);
        }
    });
}

#[test]
fn a_graph_runs_on_its_own_communicator_only_and_not_inside_a_capture() {
    let directory = tempfile::tempdir().unwrap();
    on_ranks(2, settings, |comm| {
        let mut other = {
            // The second group meets through the same pair of threads, in a directory of its own.
            let place = directory.path().join("other");
            let rendezvous = peersum::Rendezvous::unix(place, "other", comm.rank(), 2);
            crate::stage::build(settings(), rendezvous)
        };
        let mut buffer = EmulatorBuffer::<f32>::zeroed(LEN);
        let mut held = Held::new(&mut buffer);
        let graph = comm
            .capture(|capture| capture.all_reduce_in_place(&mut held))
            .unwrap();
        assert!(matches!(graph.launch(&mut other), Err(Error::ForeignGraph)));
        comm.capture_begin().unwrap();
        assert!(matches!(graph.launch(comm), Err(Error::Capture(_))));
        // SAFETY: nothing was recorded.
        drop(unsafe { comm.capture_end() }.unwrap());
        graph.launch(comm).unwrap();
        comm.synchronize().unwrap();
        other.synchronize().unwrap();
    });
}

#[test]
fn a_capture_that_fails_leaves_the_stream_usable() {
    on_ranks(2, settings, |comm| {
        let mut buffer =
            EmulatorBuffer::<f32>::from_slice(&input(5, comm.rank(), LEN, Content::Ordinary));
        {
            let mut held = Held::new(&mut buffer);
            let refused = comm.capture(|capture| {
                capture.all_reduce_in_place(&mut held)?;
                Err(Error::Capture("the program changed its mind"))
            });
            assert!(refused.is_err());
        }
        comm.all_reduce_in_place(&mut buffer).unwrap();
        comm.synchronize().unwrap();
        let expected = expected::<f32>(5, 2, LEN, Content::Ordinary);
        assert_bits(&buffer.to_vec(), &expected, &"after");
    });
}
