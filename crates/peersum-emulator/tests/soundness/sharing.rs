//! Memory that cannot be shared, and buffers of another device.

use std::time::Instant;

use peersum::{BufferError, Error, Rendezvous, rendezvous::RendezvousError};
use peersum_emulator::{EmulatorBuffer, EmulatorDevice, EmulatorOptions};

use crate::{LEN, PATIENCE, alone, settings};

/// A size that no other test of this file's process has.
const ODD_BYTES: usize = 777 * 4096;

/// Mappings of so many bytes in this process.
fn mappings_of(bytes: usize) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines()
        .filter_map(|line| line.split(' ').next()?.split_once('-'))
        .filter(|(begin, end)| {
            let number = |text| usize::from_str_radix(text, 16).unwrap();
            number(end) - number(begin) == bytes
        })
        .count()
}

#[test]
fn a_rank_that_cannot_map_a_symmetric_buffer_is_named_by_all_and_nothing_is_freed_too_early() {
    const REFUSING: u32 = 1;
    let began = Instant::now();
    std::thread::scope(|scope| {
        for rendezvous in Rendezvous::threads(3) {
            scope.spawn(move || {
                let rank = rendezvous.rank();
                let mut options = EmulatorOptions::default();
                options.refused_import_bytes = (rank == REFUSING).then_some(ODD_BYTES);
                let stream = EmulatorDevice::with_options(rank, &options)
                    .stream()
                    .unwrap();
                let mut comm = settings().rendezvous(rendezvous).build(&stream).unwrap();
                let error = comm.symmetric_alloc::<f32>(ODD_BYTES / 4).err();
                match error {
                    Some(Error::Device(_)) if rank == REFUSING => {}
                    Some(Error::Rendezvous(RendezvousError::PeerFailed {
                        rank: named,
                        reason,
                    })) if rank != REFUSING => {
                        assert_eq!(named, REFUSING);
                        assert!(reason.contains("refuses to map"), "{reason}");
                    }
                    other => panic!("rank {rank}: {other:?}"),
                }
                // The communicator is as it was, and another size works.
                let mut symmetric = comm.symmetric_alloc::<f32>(LEN).unwrap();
                symmetric.as_view_mut().copy_from_slice(&[1.0; LEN]);
                comm.all_reduce_in_place(&mut symmetric.as_view_mut())
                    .unwrap();
                comm.synchronize().unwrap();
                assert_eq!(symmetric.to_vec(), [3.0; LEN]);
            });
        }
    });
    assert_eq!(
        mappings_of(ODD_BYTES),
        0,
        "all ranks have let go, so it is freed"
    );
    assert!(began.elapsed() < PATIENCE);
}

#[test]
fn a_rank_without_memory_tells_the_others_at_once() {
    let began = Instant::now();
    let outcomes = crate::on_ranks(2, |mut comm| {
        let len = match comm.rank() {
            0 => LEN,
            // More than a buffer can have, and a number that an address space could.
            _ => 1 << 58,
        };
        let error = comm.symmetric_alloc::<f32>(len).err();
        crate::good_call(&mut comm);
        error
    });
    assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
    assert!(
        matches!(
            &outcomes[..],
            [
                Some(Error::Rendezvous(RendezvousError::PeerFailed {
                    rank: 1,
                    ..
                })),
                Some(Error::InvalidSetting { .. })
            ]
        ),
        "{outcomes:?}"
    );
}

#[test]
fn a_buffer_of_another_device_is_a_typed_error_and_nothing_is_launched() {
    let (mut own, mut other) = (alone(0), alone(1));
    let mut foreign = other.symmetric_alloc::<f32>(LEN).unwrap();
    foreign.as_view_mut().copy_from_slice(&[2.0; LEN]);
    let mut ordinary = EmulatorBuffer::<f32>::zeroed(LEN);
    let refused = [
        own.all_reduce(&*foreign, &mut ordinary),
        own.all_reduce(&foreign.slice(1..), &mut ordinary.slice_mut(1..)),
        own.all_reduce(&ordinary, &mut foreign.as_view_mut()),
        own.all_reduce_in_place(&mut foreign.as_view_mut()),
        own.all_reduce_in_place(&mut foreign.as_view_mut().slice_mut(..4)),
    ];
    for outcome in refused {
        let Err(Error::Buffer(BufferError::OtherDevice {
            buffer,
            communicator,
        })) = outcome
        else {
            panic!("{outcome:?}");
        };
        assert!(buffer.contains("device 1"), "{buffer}");
        assert!(communicator.contains("device 0"), "{communicator}");
    }
    own.synchronize().unwrap();
    assert_eq!(ordinary.to_vec(), [0.0; LEN]);
    assert_eq!(foreign.to_vec(), [2.0; LEN]);
    // On its own device, also through a communicator that did not allocate it.
    other.all_reduce(&*foreign, &mut ordinary).unwrap();
    let mut neighbour = alone(1);
    neighbour
        .all_reduce_in_place(&mut foreign.as_view_mut())
        .unwrap();
    neighbour.synchronize().unwrap();
    other.synchronize().unwrap();
    assert_eq!(ordinary.to_vec(), [2.0; LEN]);
}

#[test]
fn memory_that_a_peer_knows_by_its_address_is_leaked_if_the_group_breaks() {
    // Of no other test of this process.
    const BYTES: usize = 778 * 4096;
    crate::on_ranks(2, |mut comm| {
        if comm.rank() == 1 {
            // Rank 0 has given its address away by then, or will have, and never learns who uses
            // it.
            return;
        }
        let outcome = comm.symmetric_alloc::<f32>(BYTES / 4).map(drop);
        assert!(matches!(outcome, Err(Error::Rendezvous(_))), "{outcome:?}");
    });
    assert_eq!(mappings_of(BYTES), 1, "it stays until the process ends");
}
