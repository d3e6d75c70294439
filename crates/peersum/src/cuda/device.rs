//! One stream of a GPU as a [`Device`].

use std::sync::Arc;

use cudarc::driver::sys::{self, CUdevice_attribute, CUresult, CUstream};
use cudarc::driver::{CudaSlice, CudaStream, CudaViewMut, DriverError};
use peersum_artifact::{Algorithm, Arch, CudaVersion, ModuleKey};
use peersum_kernels::abi::PeersumParams;

use super::driver::{arch, attribute, bind, check, describe, device_name, device_uuid};
use super::graph::{self, Graph};
use super::mapping::Mapping;
use super::memory::Allocation;
use super::module::Module;
use super::pending::SetAside;
use super::{launch, start, status};
use crate::device::{
    Device, DeviceError, DeviceIdentity, Export, Import, LaunchShape, LibraryStream, MemorySharing,
    Recording, StatusRecord,
};
use crate::element::Scalar;
use crate::loader::{self, DeviceTarget, LoadError, LoadPolicy, LoadReport};

/// The stream that every thread of the process shares: `CU_STREAM_LEGACY` of cuda.h. Null names it
/// as well.
pub(super) const STREAM_LEGACY: usize = 1;
/// A stream of each thread's own: `CU_STREAM_PER_THREAD` of cuda.h.
pub(super) const STREAM_PER_THREAD: usize = 2;

/// One stream of an NVIDIA GPU.
///
/// Every method makes the stream's context the calling thread's current one and leaves it so, as
/// `cudarc` does.
pub struct Cuda {
    stream: Arc<CudaStream>,
    arch: Arch,
    driver_version: CudaVersion,
}

impl Cuda {
    /// Makes the context current.
    fn bind(&self) -> Result<(), DeviceError> {
        bind(self.stream.context())
    }

    /// Makes the context current and calls the driver function `call` with the stream, which is
    /// live.
    fn enqueue(
        &self,
        call: &'static str,
        run: impl FnOnce(CUstream) -> CUresult,
    ) -> Result<(), DeviceError> {
        self.bind()?;
        check(call, run(self.stream.cu_stream()))
    }

    /// As [`Cuda::enqueue`], and waits until the stream has passed it.
    fn enqueue_and_wait(
        &self,
        call: &'static str,
        run: impl FnOnce(CUstream) -> CUresult,
    ) -> Result<(), DeviceError> {
        self.refuse_while_recording(call)?;
        self.enqueue(call, run)?;
        self.wait()
    }

    /// Fails while the stream records: the driver would refuse `call` as well, and spoil the
    /// recording.
    fn refuse_while_recording(&self, call: &'static str) -> Result<(), DeviceError> {
        match self.recording()? {
            Recording::Off => Ok(()),
            Recording::On { .. } | Recording::Spoilt => Err(DeviceError::driver(
                call,
                "the stream is recording a graph: end the recording first",
            )),
        }
    }

    /// Waits for the stream, which does not record.
    fn wait(&self) -> Result<(), DeviceError> {
        // SAFETY: the stream is live.
        self.enqueue("cuStreamSynchronize", |stream| unsafe {
            sys::cuStreamSynchronize(stream)
        })
    }
}

// SAFETY: addresses, memory and handles are those of the driver, which keeps what the trait says;
// see each method.
unsafe impl Device for Cuda {
    type Stream = Arc<CudaStream>;
    type Module = Module;
    type Allocation = Allocation;
    type Mapping = Mapping;
    type Graph = Graph;
    type Buffer<T: Scalar> = CudaSlice<T>;
    type ViewMut<'v, T: Scalar> = CudaViewMut<'v, T>;

    fn open(stream: &Arc<CudaStream>) -> Result<Self, DeviceError> {
        let unsuitable = |reason: &str| {
            Err(DeviceError::UnsuitableStream {
                reason: format!("{reason}; make one of its own with `context.new_stream()`"),
            })
        };
        match stream.cu_stream().addr() {
            0 | STREAM_LEGACY => {
                return unsuitable(
                    "it is the legacy default stream: it and the other streams of the process \
                     wait for each other, so that ranks could deadlock",
                );
            }
            STREAM_PER_THREAD => {
                return unsuitable(
                    "it is the per-thread default stream, which is another stream in each thread",
                );
            }
            _ => {}
        }
        let driver_version = start::version()?;
        let context = stream.context();
        bind(context)?;
        if graph::recording(stream)? != Recording::Off {
            return unsuitable("it is recording a graph");
        }
        let arch = arch(context.cu_device())?;
        if !arch.runs_kernels() {
            // Checked before the ranks meet, so that the error comes at once.
            return Err(LoadError::ArchTooOld { device: arch }.into());
        }
        Ok(Self {
            arch,
            driver_version,
            stream: Arc::clone(stream),
        })
    }

    fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    fn stream_id(&self) -> u64 {
        // The special handles, equal in all contexts, are refused by `open`: this is an address,
        // unique in the process.
        self.stream.cu_stream().addr() as u64
    }

    fn identity(&self) -> Result<DeviceIdentity, DeviceError> {
        let device = self.stream.context().cu_device();
        let multiprocessors = attribute(
            device,
            CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
        )?;
        Ok(DeviceIdentity {
            name: device_name(device)?,
            uuid: device_uuid(device)?,
            arch: Some(self.arch),
            multiprocessors: u32::try_from(multiprocessors).unwrap_or(0),
        })
    }

    fn load(
        &self,
        policy: &LoadPolicy,
        keys: &[ModuleKey],
    ) -> Result<Vec<(Module, LoadReport)>, DeviceError> {
        let target = DeviceTarget {
            arch: self.arch,
            driver_version: Some(self.driver_version),
        };
        let images = loader::load_all(policy, keys, &target)?;
        self.bind()?;
        let images = images.into_iter().zip(keys);
        images
            .map(|(image, &key)| {
                let module = Module::load(self.stream.context(), &image, key)?;
                Ok((module, image.report))
            })
            .collect()
    }

    fn fits_seat(
        &self,
        module: &Module,
        algorithm: Algorithm,
        threads: u32,
    ) -> Result<bool, DeviceError> {
        self.bind()?;
        module.fits_seat(algorithm, threads)
    }

    fn clusters(
        &self,
        module: &Module,
        algorithm: Algorithm,
        threads: u32,
        size: u32,
        seats: u32,
    ) -> Result<u32, DeviceError> {
        self.bind()?;
        launch::clusters(module.entry_point(algorithm)?, threads, size, seats)
    }

    fn allocate_shared(
        &self,
        bytes: usize,
        sharing: MemorySharing,
    ) -> Result<Allocation, DeviceError> {
        self.bind()?;
        Allocation::new(self.stream.context(), bytes, sharing)
    }

    fn allocation_address(&self, allocation: &Allocation) -> u64 {
        allocation.address()
    }

    fn export(&self, allocation: &Allocation, same_process: bool) -> Result<Export, DeviceError> {
        self.bind()?;
        allocation.export(same_process)
    }

    fn import(&self, import: Import<'_>, bytes: usize) -> Result<Mapping, DeviceError> {
        self.bind()?;
        Mapping::new(self.stream.context(), &import, bytes)
    }

    fn mapping_address(&self, mapping: &Mapping) -> u64 {
        mapping.address()
    }

    unsafe fn adopt<T: Scalar>(
        &self,
        address: u64,
        len: usize,
    ) -> Result<CudaSlice<T>, DeviceError> {
        let context = self.stream.context();
        let adopt = || {
            if context.is_event_tracking() {
                // A slice has two, and cudarc panics if it cannot make them.
                let _both = (context.new_event(None)?, context.new_event(None)?);
            }
            // SAFETY: the caller vouches for the memory; every bit pattern is a valid element.
            Ok(unsafe { self.stream.upgrade_device_ptr(address, len) })
        };
        let (adopted, _) = SetAside::of([context, context]).undisturbed(adopt);
        adopted
            .map_err(|error: DriverError| DeviceError::driver("cuEventCreate", describe(error.0)))
    }

    fn disown<T: Scalar>(buffer: CudaSlice<T>) -> Result<(), DeviceError> {
        let context = Arc::clone(buffer.stream().context());
        let (_, waited) = SetAside::of([&context, &context]).undisturbed(|| buffer.leak());
        waited.map_err(|error| DeviceError::driver("cuStreamWaitEvent", describe(error.0)))
    }

    fn allocate_status(&self) -> Result<StatusRecord, DeviceError> {
        self.bind()?;
        status::allocate(self.stream.context())
    }

    unsafe fn fill(&self, address: u64, word: u32, words: usize) -> Result<(), DeviceError> {
        if words == 0 {
            return Ok(());
        }
        // SAFETY: the stream is live; the range is the caller's promise.
        self.enqueue("cuMemsetD32Async", |stream| unsafe {
            sys::cuMemsetD32Async(address, word, words, stream)
        })
    }

    unsafe fn copy(&self, destination: u64, source: u64, bytes: usize) -> Result<(), DeviceError> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the stream is live; the ranges are the caller's promise.
        self.enqueue("cuMemcpyDtoDAsync", |stream| unsafe {
            sys::cuMemcpyDtoDAsync_v2(destination, source, bytes, stream)
        })
    }

    unsafe fn write(&self, destination: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let (source, len) = (bytes.as_ptr().cast(), bytes.len());
        // SAFETY: the stream is live; `bytes` is borrowed until the copy has ended, since this
        // waits; the destination is the caller's promise.
        self.enqueue_and_wait("cuMemcpyHtoDAsync", |stream| unsafe {
            sys::cuMemcpyHtoDAsync_v2(destination, source, len, stream)
        })
    }

    unsafe fn read(&self, source: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let (destination, len) = (bytes.as_mut_ptr().cast(), bytes.len());
        // SAFETY: the stream is live; `bytes` is borrowed until the copy has ended, since this
        // waits; the source is the caller's promise.
        self.enqueue_and_wait("cuMemcpyDtoHAsync", |stream| unsafe {
            sys::cuMemcpyDtoHAsync_v2(destination, source, len, stream)
        })
    }

    unsafe fn launch(
        &self,
        module: &Module,
        algorithm: Algorithm,
        shape: LaunchShape,
        params: &PeersumParams,
    ) -> Result<(), DeviceError> {
        // SAFETY: the stream lives as long as `self`, the kernel as long as `module`; addresses and
        // shape are the caller's promise.
        unsafe {
            launch::launch(
                self.stream.cu_stream(),
                module.entry_point(algorithm)?,
                shape,
                params,
            )
        }
    }

    fn library_stream(&self) -> Result<LibraryStream, DeviceError> {
        Ok(LibraryStream {
            handle: self.stream.cu_stream().cast(),
            is_recording: self.recording()? != Recording::Off,
        })
    }

    fn recording(&self) -> Result<Recording, DeviceError> {
        self.bind()?;
        graph::recording(&self.stream)
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.refuse_while_recording("cuStreamSynchronize")?;
        self.wait()
    }

    fn capture_begin(&self) -> Result<(), DeviceError> {
        self.bind()?;
        graph::begin(&self.stream)
    }

    fn capture_end(&self) -> Result<Graph, DeviceError> {
        self.bind()?;
        Graph::end(&self.stream)
    }

    unsafe fn launch_graph(&self, graph: &Graph) -> Result<(), DeviceError> {
        self.bind()?;
        // SAFETY: the caller's promise is handed on.
        unsafe { graph.launch(&self.stream) }
    }
}
