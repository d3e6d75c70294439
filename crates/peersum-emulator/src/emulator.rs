//! The device seam on the CPU.

use std::sync::Arc;
use std::time::Instant;

use peersum::Scalar;
use peersum::device::{
    Device, DeviceError, DeviceIdentity, DeviceStream, Export, Import, LaunchShape, LibraryStream,
    MemorySharing, Recording, StatusRecord,
};
use peersum::loader::{LoadPolicy, LoadReport, Place};
use peersum_artifact::{Algorithm, ModuleKey};
use peersum_kernels::abi::{
    PEERSUM_MAX_BLOCKS, PEERSUM_MAX_CLUSTER_BLOCKS, PEERSUM_MAX_THREADS, PEERSUM_MIN_THREADS,
    PeersumParams,
};

use crate::buffer::{EmulatorBuffer, EmulatorViewMut};
use crate::entry_points;
use crate::handles::{Emulator, EmulatorGraph, EmulatorModule};
use crate::launch::Launch;
use crate::memory::{self, EmulatorAllocation, EmulatorMapping};
use crate::stream::{Command, EmulatorStream, misuse};

impl DeviceStream for EmulatorStream {
    type Device = Emulator;

    fn wait_for(&self, other: &Self) -> Result<(), DeviceError> {
        // The caller waits instead of the stream.
        other.synchronize();
        Ok(())
    }
}

impl Emulator {
    /// A module, whose kernels are linked into the program.
    fn find(&self, key: ModuleKey) -> Result<(EmulatorModule, LoadReport), DeviceError> {
        let began = Instant::now();
        let suffix = self.stream.device().entry_point_suffix();
        let find = |algorithm| {
            let name = key.entry_point(algorithm);
            // A protocol that is broken on purpose is compiled only for modules that tests call.
            let broken = entry_points::find(&format!("{name}{suffix}"));
            broken.or_else(|| entry_points::find(&name)).ok_or_else(|| {
                let message = format!("{name} is not among the kernels compiled for the CPU");
                misuse("load", message)
            })
        };
        let mut entry_points = [None; Algorithm::ALL.len()];
        for &algorithm in key.algorithms() {
            entry_points[algorithm as usize] = Some(find(algorithm)?);
        }
        let module = EmulatorModule {
            entry_points,
            signal_threads: key.world_size.get(),
        };
        let report = LoadReport {
            module: key,
            place: Place::Pack,
            file: None,
            compilation: None,
            passed_over: Vec::new(),
            took: began.elapsed(),
        };
        Ok((module, report))
    }
}

// SAFETY: addresses are those of mappings that live as long as their `EmulatorAllocation` or
// `EmulatorMapping`, and `EmulatorStream::synchronize` waits for everything enqueued before.
unsafe impl Device for Emulator {
    type Stream = EmulatorStream;
    type Module = EmulatorModule;
    type Allocation = EmulatorAllocation;
    type Mapping = EmulatorMapping;
    type Graph = EmulatorGraph;
    type Buffer<T: Scalar> = EmulatorBuffer<T>;
    type ViewMut<'v, T: Scalar> = EmulatorViewMut<'v, T>;

    fn open(stream: &EmulatorStream) -> Result<Self, DeviceError> {
        Ok(Self {
            stream: stream.clone(),
        })
    }

    fn stream(&self) -> &EmulatorStream {
        &self.stream
    }

    fn stream_id(&self) -> u64 {
        self.stream.id()
    }

    fn identity(&self) -> Result<DeviceIdentity, DeviceError> {
        Ok(self.stream.device().identity.clone())
    }

    /// The kernels are linked into the program, so `policy` is not consulted.
    fn load(
        &self,
        _policy: &LoadPolicy,
        keys: &[ModuleKey],
    ) -> Result<Vec<(EmulatorModule, LoadReport)>, DeviceError> {
        keys.iter().map(|&key| self.find(key)).collect()
    }

    /// Nominal: all blocks of a launch run at once whatever their number.
    fn fits_seat(
        &self,
        _module: &EmulatorModule,
        _algorithm: Algorithm,
        threads: u32,
    ) -> Result<bool, DeviceError> {
        Ok(threads <= PEERSUM_MAX_THREADS / 2)
    }

    /// Nominal, too: every cluster finds room.
    fn clusters(
        &self,
        _module: &EmulatorModule,
        _algorithm: Algorithm,
        _threads: u32,
        size: u32,
        seats: u32,
    ) -> Result<u32, DeviceError> {
        Ok(seats / size.max(1))
    }

    /// Always allocates a memfd. Fails only if `sharing` demands CUDA IPC.
    fn allocate_shared(
        &self,
        bytes: usize,
        sharing: MemorySharing,
    ) -> Result<EmulatorAllocation, DeviceError> {
        match sharing {
            MemorySharing::Auto | MemorySharing::FileDescriptor => EmulatorAllocation::new(bytes),
            MemorySharing::LegacyIpc => Err(DeviceError::CannotShare {
                reason: "the emulator has file descriptors only, no CUDA IPC".to_owned(),
            }),
        }
    }

    fn allocation_address(&self, allocation: &EmulatorAllocation) -> u64 {
        allocation.address()
    }

    fn export(
        &self,
        allocation: &EmulatorAllocation,
        same_process: bool,
    ) -> Result<Export, DeviceError> {
        allocation.export(same_process)
    }

    fn import(&self, import: Import<'_>, bytes: usize) -> Result<EmulatorMapping, DeviceError> {
        self.stream.device().check_import(bytes)?;
        EmulatorMapping::new(import, bytes)
    }

    fn mapping_address(&self, mapping: &EmulatorMapping) -> u64 {
        mapping.address
    }

    unsafe fn adopt<T: Scalar>(
        &self,
        address: u64,
        len: usize,
    ) -> Result<EmulatorBuffer<T>, DeviceError> {
        // SAFETY: the caller answers for the memory until it disowns the buffer.
        Ok(unsafe { EmulatorBuffer::adopt(self.stream.clone(), address, len) })
    }

    fn disown<T: Scalar>(buffer: EmulatorBuffer<T>) -> Result<(), DeviceError> {
        // An adopted buffer does not own its memory. Its stream waits for what uses it on others.
        drop(buffer);
        Ok(())
    }

    fn allocate_status(&self) -> Result<StatusRecord, DeviceError> {
        Ok(memory::allocate_status())
    }

    unsafe fn fill(&self, address: u64, word: u32, words: usize) -> Result<(), DeviceError> {
        self.stream.enqueue(Command::Fill {
            address,
            word,
            words,
        })
    }

    unsafe fn copy(&self, destination: u64, source: u64, bytes: usize) -> Result<(), DeviceError> {
        self.stream.enqueue(Command::Copy {
            destination,
            source,
            bytes,
        })
    }

    unsafe fn write(&self, destination: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.refuse_while_capturing("write")?;
        self.stream.enqueue(Command::Write {
            destination,
            bytes: bytes.into(),
        })
    }

    unsafe fn read(&self, source: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.synchronize()?;
        let source = source as *const u8;
        // SAFETY: the caller answers for the source, and the stream has passed what it enqueued
        // before; `bytes` is borrowed mutably, so the two do not overlap.
        unsafe { source.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    unsafe fn launch(
        &self,
        module: &EmulatorModule,
        algorithm: Algorithm,
        shape: LaunchShape,
        params: &PeersumParams,
    ) -> Result<(), DeviceError> {
        let LaunchShape {
            blocks,
            threads,
            cluster,
            ..
        } = shape;
        if !(1..=PEERSUM_MAX_BLOCKS).contains(&blocks)
            || !(PEERSUM_MIN_THREADS..=PEERSUM_MAX_THREADS).contains(&threads)
            || !(1..=PEERSUM_MAX_CLUSTER_BLOCKS).contains(&cluster)
            || !blocks.is_multiple_of(cluster)
        {
            let message = format!(
                "{blocks} blocks of {threads} threads in clusters of {cluster} are beyond the \
                 kernels' bounds"
            );
            return Err(misuse("launch", message));
        }
        let entry = module
            .entry(algorithm)
            .ok_or_else(|| misuse("launch", "the module has no such entry point"))?;
        self.stream.enqueue(Command::Launch(Box::new(Launch {
            entry,
            blocks,
            threads: threads + module.signal_threads,
            cluster,
            params: *params,
            block_delay: self.stream.device().options.block_delay,
        })))
    }

    fn library_stream(&self) -> Result<LibraryStream, DeviceError> {
        self.refuse_while_capturing("library_stream")?;
        self.stream.synchronize();
        Ok(LibraryStream {
            handle: std::ptr::null_mut(),
            is_recording: false,
        })
    }

    fn recording(&self) -> Result<Recording, DeviceError> {
        let capture = self.stream.capture();
        Ok(capture.map_or(Recording::Off, |capture| Recording::On { capture }))
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.refuse_while_capturing("synchronize")?;
        self.stream.synchronize();
        Ok(())
    }

    fn capture_begin(&self) -> Result<(), DeviceError> {
        self.stream.capture_begin()
    }

    fn capture_end(&self) -> Result<EmulatorGraph, DeviceError> {
        Ok(EmulatorGraph {
            commands: self.stream.capture_end()?,
        })
    }

    unsafe fn launch_graph(&self, graph: &EmulatorGraph) -> Result<(), DeviceError> {
        self.stream
            .enqueue(Command::Graph(Arc::clone(&graph.commands)))
    }
}

impl Emulator {
    fn refuse_while_capturing(&self, call: &'static str) -> Result<(), DeviceError> {
        if self.stream.is_capturing() {
            let message = "not allowed while the stream is being captured";
            return Err(misuse(call, message));
        }
        Ok(())
    }
}
