//! Every safe public function that reaches memory or a device, with the most hostile call that we
//! know.
//!
//! Functions that are not in [`TABLE`] return a copy of a number or a reference (`rank`,
//! `world_size`, `stream`, `device`, `identity`, `load_reports`, `dispatch_table`, `max_blocks`,
//! `memory_bytes`), read files and text (`loader`, `dispatch`, `rendezvous`:
//! hostile input has tests and fuzz targets of its own), or have a test in this directory (`drops`,
//! `captures`, `sharing`, `sizes`, `handles`).

use std::mem::{forget, swap, take};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use peersum::device::{Device, DeviceStream, Import, MemorySharing};
use peersum::dispatch::{Placement, Plan, Route};
use peersum::nccl_shape::{Comm as NcclComm, ReduceOp};
use peersum::{Error, Held, Rendezvous};
use peersum_emulator::{Emulator, EmulatorBuffer, EmulatorDevice};

use crate::{Comm, LEN, alone, good_call, in_child, on_ranks, ranks_buffer, settings};

/// The function, the call, and what tries it on each rank of a group of two.
type Attempt = (&'static str, &'static str, fn(&mut Comm));

/// A good call follows each.
const TABLE: &[Attempt] = &[
    (
        "Communicator::all_reduce",
        "an output that is shorter or longer than the input",
        |comm| {
            let input = ranks_buffer(comm.rank());
            for len in [0, 1, LEN - 1, LEN + 1] {
                let mut output = EmulatorBuffer::<f32>::zeroed(len);
                let outcome = comm.all_reduce(&input, &mut output);
                assert!(matches!(outcome, Err(Error::LengthMismatch { .. })));
            }
        },
    ),
    (
        "Communicator::all_reduce_in_place",
        "buffers that are dropped while their calls are in the stream",
        |comm| {
            for _ in 0..20 {
                let mut buffer = ranks_buffer(comm.rank());
                comm.all_reduce_in_place(&mut buffer).unwrap();
                comm.all_reduce_in_place(&mut buffer.slice_mut(3..77))
                    .unwrap();
            }
        },
    ),
    (
        "Communicator::force_plan",
        "shapes beyond every bound, and a symmetric route for an ordinary buffer",
        |comm| {
            for (blocks, threads) in [(0, 8), (u32::MAX, 8), (1, 0), (1, u32::MAX), (1, 1 << 31)] {
                let plan = Plan {
                    route: Route::PushOneShot,
                    blocks,
                    threads,
                };
                assert!(comm.force_plan(Some(plan)).is_err(), "{plan:?}");
            }
            let symmetric = Plan {
                route: Route::SymmetricTwoShot,
                blocks: 1,
                threads: 8,
            };
            comm.force_plan(Some(symmetric)).unwrap();
            let outcome = comm.all_reduce_in_place(&mut ranks_buffer(comm.rank()));
            assert!(matches!(outcome, Err(Error::InvalidSetting { .. })));
            comm.force_plan(None).unwrap();
        },
    ),
    (
        "Communicator::plan, path",
        "more bytes than there are addresses",
        |comm| {
            for placement in Placement::ALL {
                comm.plan(placement, u64::MAX);
                comm.plan(placement, 0);
            }
            comm.path(usize::MAX);
        },
    ),
    (
        "Communicator::symmetric_alloc, SymmetricBuffer",
        "no elements; views that change places; one that is leaked; one that dies in its call",
        |comm| {
            let mut empty = comm.symmetric_alloc::<f32>(0).unwrap();
            comm.all_reduce_in_place(&mut empty.as_view_mut()).unwrap();
            let mut first = comm.symmetric_alloc::<f32>(LEN).unwrap();
            let mut second = comm.symmetric_alloc::<f32>(2 * LEN).unwrap();
            first.as_view_mut().copy_from_slice(&[1.0; LEN]);
            second.as_view_mut().copy_from_slice(&[2.0; 2 * LEN]);
            let (mut one, mut two) = (first.as_view_mut(), second.as_view_mut());
            swap(&mut one, &mut two);
            one.copy_from_slice(&[2.0; 2 * LEN]);
            assert_eq!((first.len(), second.len()), (LEN, 2 * LEN));
            swap(&mut first, &mut second);
            comm.all_reduce_in_place(&mut first.as_view_mut()).unwrap();
            comm.all_reduce_in_place(&mut second.as_view_mut()).unwrap();
            drop(first);
            forget(second);
            comm.synchronize().unwrap();
        },
    ),
    (
        "Communicator::capture, Held, Graph::launch",
        "held views that change places; launches in flight when graph and buffers die",
        |comm| {
            let (mut first, mut second) = (ranks_buffer(comm.rank()), ranks_buffer(comm.rank()));
            {
                let (mut one, mut two) = (Held::new(&mut first), Held::new(&mut second));
                let (mut view, mut other) = (one.as_view_mut(), two.as_view_mut());
                swap(&mut view, &mut other);
                let graph = comm
                    .capture(|capture| {
                        capture.all_reduce_in_place(&mut one)?;
                        capture.all_reduce(&one, &mut two)
                    })
                    .unwrap();
                swap(&mut one, &mut two);
                for _ in 0..10 {
                    graph.launch(comm).unwrap();
                }
            }
            drop((first, second));
        },
    ),
    (
        "Communicator::capture",
        "a closure that ends the capture itself, or leaves another open",
        |comm| {
            let device = Emulator::open(comm.stream()).unwrap();
            let outcome = comm.capture(|_| {
                device.capture_end().unwrap();
                Ok(())
            });
            assert!(outcome.is_err());
            let outcome = comm.capture(|_| {
                device.capture_end().unwrap();
                device.capture_begin().unwrap();
                Ok(())
            });
            // Which of the two it was cannot be told; nothing was recorded in either.
            drop(outcome);
        },
    ),
    (
        "Communicator::capture_begin",
        "twice, and whatever waits meanwhile",
        |comm| {
            comm.capture_begin().unwrap();
            assert!(comm.capture_begin().is_err());
            assert!(comm.synchronize().is_err());
            assert!(comm.symmetric_alloc::<f32>(4).is_err());
            // SAFETY: nothing was recorded.
            drop(unsafe { comm.capture_end() }.unwrap());
        },
    ),
    (
        "Device::{allocate_shared, import, fits_seat, disown}, \
         DeviceStream::wait_for",
        "sizes that no memory has, descriptors that are no memory, a stream that waits for itself",
        |comm| {
            let device = comm.device();
            for bytes in [0, usize::MAX, usize::MAX / 2, 1 << 60] {
                assert!(device.allocate_shared(bytes, MemorySharing::Auto).is_err());
            }
            assert!(device.allocate_shared(1, MemorySharing::LegacyIpc).is_err());
            let (_reader, writer) = std::io::pipe().unwrap();
            let pipe = std::os::fd::AsFd::as_fd(&writer);
            assert!(device.import(Import::Fd(pipe), 4096).is_err());
            assert!(device.import(Import::LegacyIpc([0xFF; 64]), 4096).is_err());
            drop(device.import(Import::SameProcess(0xDEAD_BEEF), 4096));
            Emulator::disown(EmulatorBuffer::<f32>::zeroed(9)).unwrap();
            comm.stream().wait_for(comm.stream()).unwrap();
        },
    ),
    (
        "EmulatorBuffer::{slice, slice_mut}, EmulatorViewMut::slice_mut",
        "ranges that wrap around",
        |_| {
            let mut buffer = EmulatorBuffer::<f32>::zeroed(8);
            let outside = |attempt: &mut dyn FnMut()| {
                assert!(catch_unwind(AssertUnwindSafe(attempt)).is_err());
            };
            outside(&mut || _ = buffer.slice(0..=usize::MAX));
            outside(&mut || _ = buffer.slice(usize::MAX..));
            outside(&mut || _ = buffer.slice_mut(..9));
            outside(&mut || _ = buffer.slice_mut(2..6).slice_mut(..5));
            outside(&mut || _ = buffer.slice_mut(2..6).slice_mut(4..=usize::MAX));
            outside(&mut || buffer.slice_mut(2..6).copy_from_slice(&[0.0; 5]));
        },
    ),
    (
        "AbortHandle::status",
        "from many threads while calls are made",
        |comm| {
            let handle = comm.abort_handle();
            std::thread::scope(|scope| {
                for handle in vec![handle; 4] {
                    scope.spawn(move || (0..10_000).for_each(|_| handle.status().unwrap()));
                }
                for _ in 0..20 {
                    good_call(comm);
                }
            });
        },
    ),
];

#[test]
fn every_safe_function_survives_its_most_hostile_call() {
    in_child(
        "hostile::every_safe_function_survives_its_most_hostile_call",
        || {
            on_ranks(2, |mut comm| {
                for (function, call, attempt) in TABLE {
                    println!("{function}: {call}");
                    attempt(&mut comm);
                    good_call(&mut comm);
                }
            });
        },
    );
}

#[test]
fn settings_at_the_ends_of_their_ranges_build_or_are_refused() {
    in_child(
        "hostile::settings_at_the_ends_of_their_ranges_build_or_are_refused",
        || {
            for (timeout, blocks) in [
                (Duration::MAX, u32::MAX),
                (Duration::from_secs(60), 0),
                (Duration::from_nanos(u64::MAX), 1),
            ] {
                std::thread::scope(|scope| {
                    for rendezvous in Rendezvous::threads(2) {
                        scope.spawn(move || {
                            let stream = EmulatorDevice::new(rendezvous.rank()).stream().unwrap();
                            let mut comm = settings()
                                .timeout(timeout)
                                .setup_timeout(timeout)
                                .max_blocks(blocks)
                                .max_bytes(1)
                                .push_half_bytes(0)
                                .start_epochs(u32::MAX, u64::MAX)
                                .rendezvous(rendezvous)
                                .build(&stream)
                                .unwrap();
                            assert!(comm.max_blocks() >= 1);
                            good_call(&mut comm);
                            let second = settings().build(&stream).map(drop);
                            assert!(matches!(second, Err(Error::InvalidSetting { .. })));
                        });
                    }
                });
            }
            for world_size in [0, 9, u32::MAX] {
                for rendezvous in Rendezvous::threads(world_size).into_iter().take(1) {
                    let stream = EmulatorDevice::new(0).stream().unwrap();
                    assert!(settings().rendezvous(rendezvous).build(&stream).is_err());
                }
            }
        },
    );
}

#[test]
fn shared_handles_survive_hostile_use() {
    in_child("hostile::shared_handles_survive_hostile_use", || {
        on_ranks(2, |mut comm| {
            good_call(&mut comm);
            let rank = comm.rank();
            let shared = comm.into_shared();
            // A thread that panics with the lock must not take the communicator with it.
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                let _guard = shared.lock();
                std::panic::resume_unwind(Box::new("with the lock"));
            }));
            assert!(panicked.is_err());
            shared.all_reduce_in_place(&mut ranks_buffer(rank)).unwrap();
            // Communicators that change places behind the lock.
            let mut other = alone(7);
            swap(&mut *shared.lock(), &mut other);
            assert_eq!((shared.lock().world_size(), other.world_size()), (1, 2));
            swap(&mut *shared.lock(), &mut other);
            shared.synchronize().unwrap();

            let comm = NcclComm::from(shared.into_inner());
            let input = ranks_buffer(rank);
            let mut short = EmulatorBuffer::<f32>::zeroed(LEN - 1);
            assert!(comm.all_reduce(&input, &mut short, &ReduceOp::Sum).is_err());
            let mut buffers = vec![ranks_buffer(rank)];
            for operation in [ReduceOp::Prod, ReduceOp::Max, ReduceOp::Min, ReduceOp::Avg] {
                assert!(
                    comm.all_reduce_in_place(&mut buffers[0], &operation)
                        .is_err()
                );
            }
            comm.all_reduce_in_place(&mut buffers[0], &ReduceOp::Sum)
                .unwrap();
            drop(take(&mut buffers));
            comm.synchronize().unwrap();
        });
    });
}
