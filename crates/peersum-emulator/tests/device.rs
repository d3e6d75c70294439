//! The device seam's own promises: order, recording, sharing, refusals.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use std::process::Command;

use half::bf16;
use peersum::device::{Device, DeviceError, Export, Import, LaunchShape, MemorySharing};
use peersum::loader::LoadPolicy;
use peersum::{DeviceBuffer, Error, Input, Output};
use peersum_artifact::Algorithm;
use peersum_emulator::{Emulator, EmulatorBuffer, EmulatorDevice};
use rig::{Setup, World, kinds, random_inputs, seeded};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn emulator() -> Emulator {
    Emulator::open(&EmulatorDevice::new(0).stream().unwrap()).unwrap()
}

#[test]
fn a_recorded_sequence_can_be_replayed_and_counts_as_calls_each_time() {
    let mut generator = seeded();
    let world = World::new(3, &Setup::default());
    let mut inputs = random_inputs::<bf16>(&mut generator, 3, 700);
    for rank in &world.ranks {
        rank.emulator.capture_begin().unwrap();
    }
    let mut recorded: Vec<_> = kinds()
        .into_iter()
        .map(|call| (call, world.start(&call, &inputs)))
        .collect();
    let graphs: Vec<_> = world
        .ranks
        .iter()
        .map(|rank| rank.emulator.capture_end().unwrap())
        .collect();
    for _ in 0..6 {
        for (rank, graph) in world.ranks.iter().zip(&graphs) {
            // SAFETY: the arrays of the recorded calls live until the end of this test.
            unsafe { rank.emulator.launch_graph(graph).unwrap() };
        }
        for (call, arrays) in &recorded {
            world.assert_reduced(call, &inputs, arrays);
        }
        inputs = random_inputs(&mut generator, 3, 700);
        for (_, arrays) in &mut recorded {
            for (arrays, input) in arrays.iter_mut().zip(&inputs) {
                arrays.replace_input(input);
            }
        }
    }
}

#[test]
fn work_of_a_stream_is_done_in_order_and_reads_see_it() {
    let emulator = emulator();
    let memory = emulator
        .allocate_shared(1 << 16, MemorySharing::Auto)
        .unwrap();
    let address = emulator.allocation_address(&memory);
    let mut found = [0; 8];
    // SAFETY: all ranges lie in `memory`, which outlives the reads.
    unsafe {
        emulator.fill(address, 0x0101_0101, 1 << 13).unwrap();
        emulator.write(address + 2, &[7, 8]).unwrap();
        emulator.copy(address + 4096, address, 8).unwrap();
        emulator.fill(address, 0, 2).unwrap();
        emulator.read(address + 4096, &mut found).unwrap();
    }
    assert_eq!(found, [1, 1, 7, 8, 1, 1, 1, 1]);
    assert!(emulator.stream().is_idle());
}

#[test]
fn shared_memory_is_seen_through_a_descriptor_and_within_the_process() {
    let (owner, peer) = (emulator(), emulator());
    let memory = owner
        .allocate_shared(4096, MemorySharing::FileDescriptor)
        .unwrap();
    let Export::Fd(fd) = owner.export(&memory, false).unwrap() else {
        panic!("not a descriptor")
    };
    let Export::SameProcess(address) = owner.export(&memory, true).unwrap() else {
        panic!("not an address")
    };
    let by_fd = peer
        .import(Import::Fd(std::os::fd::AsFd::as_fd(&fd)), 4096)
        .unwrap();
    let by_address = peer.import(Import::SameProcess(address), 4096).unwrap();
    assert_ne!(
        peer.mapping_address(&by_fd),
        owner.allocation_address(&memory)
    );
    // SAFETY: the memory outlives the calls.
    unsafe {
        owner
            .write(owner.allocation_address(&memory), b"peer")
            .unwrap()
    };
    owner.synchronize().unwrap();
    for mapping in [&by_fd, &by_address] {
        let mut found = [0; 4];
        // SAFETY: as above.
        unsafe {
            peer.read(peer.mapping_address(mapping), &mut found)
                .unwrap()
        };
        assert_eq!(&found, b"peer");
    }
}

#[test]
fn memory_that_is_too_small_or_of_another_kind_of_device_is_refused() {
    let emulator = emulator();
    let memory = emulator.allocate_shared(4096, MemorySharing::Auto).unwrap();
    let Export::Fd(fd) = emulator.export(&memory, false).unwrap() else {
        panic!("not a descriptor")
    };
    let refused = |result: Result<_, DeviceError>| match result {
        Err(DeviceError::CannotShare { reason }) => reason,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted"),
    };
    let reason = refused(
        emulator
            .import(Import::Fd(std::os::fd::AsFd::as_fd(&fd)), 8192)
            .map(drop),
    );
    assert!(
        reason.contains("4096") && reason.contains("8192"),
        "{reason}"
    );
    assert!(refused(emulator.import(Import::LegacyIpc([0; 64]), 8).map(drop)).contains("CUDA IPC"));
    assert!(
        refused(
            emulator
                .allocate_shared(8, MemorySharing::LegacyIpc)
                .map(drop)
        )
        .contains("CUDA IPC")
    );
}

#[test]
fn a_launch_beyond_the_kernels_bounds_and_a_wait_during_a_capture_are_errors() {
    let world = World::new(2, &Setup::default());
    let emulator = &world.ranks[0].emulator;
    let keys = [world.key::<f32>(peersum_artifact::Family::Push)];
    let modules = emulator.load(&LoadPolicy::default(), &keys).unwrap();
    let (module, _) = &modules[0];
    let call = kinds()[0];
    let params = world.params(&call, 0, &world.arrays::<f32>(&call, 0, &[1.0]));
    for (blocks, threads) in [(0, 8), (257, 8), (1, 7), (1, 513)] {
        let shape = LaunchShape {
            blocks,
            threads,
            cluster: 1,
            pdl: false,
        };
        // SAFETY: refused before anything runs.
        let result = unsafe { emulator.launch(module, Algorithm::OneShot, shape, &params) };
        assert!(
            matches!(result, Err(DeviceError::Driver { call: "launch", .. })),
            "{blocks} x {threads}"
        );
    }
    emulator.capture_begin().unwrap();
    assert!(emulator.synchronize().is_err());
    assert!(emulator.capture_begin().is_err());
    emulator.capture_end().unwrap();
    assert!(emulator.capture_end().is_err());
    emulator.synchronize().unwrap();
}

/// In a process of its own, whose address space is limited.
#[test]
fn a_launch_for_whose_threads_there_is_no_memory_is_an_error_and_a_smaller_one_runs() {
    const ROLE: &str = "PEERSUM_TEST_LITTLE_MEMORY";
    const NAME: &str =
        "a_launch_for_whose_threads_there_is_no_memory_is_an_error_and_a_smaller_one_runs";
    if std::env::var_os(ROLE).is_none() {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", NAME, "--test-threads=1"]);
        assert!(child.env(ROLE, "1").status().unwrap().success());
        return;
    }
    let world = World::new(2, &Setup::default());
    let call = kinds()[0];
    let inputs = random_inputs::<f32>(&mut seeded(), 2, 700);
    let limit = getrlimit(Resource::As);
    let little = Rlimit {
        current: Some(2 << 30),
        ..limit
    };
    setrlimit(Resource::As, little).unwrap();
    let largest = LaunchShape {
        blocks: 256,
        threads: 512,
        cluster: 1,
        pdl: false,
    };
    let emulator = &world.ranks[0].emulator;
    let keys = [world.key::<f32>(call.family)];
    let modules = emulator.load(&LoadPolicy::default(), &keys).unwrap();
    let (module, _) = &modules[0];
    let params = world.params(&call, 0, &world.arrays(&call, 0, &inputs[0]));
    // SAFETY: refused before anything runs.
    let refused = unsafe { emulator.launch(module, call.algorithm, largest, &params) };
    assert!(
        matches!(refused, Err(DeviceError::System { call: "mmap", .. })),
        "{refused:?}"
    );
    let arrays = world.start(&call, &inputs);
    world.assert_reduced(&call, &inputs, &arrays);
}

#[test]
fn ranks_share_a_device_exactly_if_they_name_the_same_index() {
    let uuid = |index| {
        Emulator::open(&EmulatorDevice::new(index).stream().unwrap())
            .unwrap()
            .identity()
            .unwrap()
            .uuid
    };
    assert_eq!(uuid(3), uuid(3));
    assert_ne!(uuid(3), uuid(4));
    assert_ne!(emulator().stream_id(), emulator().stream_id());
}

#[test]
fn a_buffer_waits_for_the_streams_that_use_it() {
    let emulator = emulator();
    let mut buffer = EmulatorBuffer::<f32>::zeroed(1 << 16);
    let word = 1.5_f32.to_bits();
    for _ in 0..50 {
        let len = DeviceBuffer::<f32, Emulator>::len(&buffer);
        // SAFETY: the range is the buffer's.
        let filled = buffer.with_output(emulator.stream(), |address| unsafe {
            Ok::<_, Error>(emulator.fill(address, word, len)?)
        });
        filled.unwrap();
    }
    assert!(
        buffer
            .to_vec()
            .iter()
            .all(|&element| element.to_bits() == word)
    );
    let view = buffer.slice(3..10);
    assert_eq!(DeviceBuffer::<f32, Emulator>::len(&view), 7);
    let first = view.with_input(emulator.stream(), Ok::<_, Error>);
    assert_eq!(first.unwrap(), buffer.address() + 12);
}
