//! NCCL, found at run time: the same calls by the same method, for comparison. None of its variables is set or changed here.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use libloading::Library;
use peersum::Cuda;
use peersum::cudarc::driver::{CudaStream, DevicePtr};
use peersum::device::Device;
use peersum::dispatch::Link;
use peersum_artifact::Dtype;

use super::build::Build;
use super::report::{Call, Launch, System};
use super::sample::{Sample, merge};
use super::timing::{EventTimer, Method, time_eager, time_recorded};
use crate::machine::{Gpus, Machine};
use crate::ranks::{Peers, run_threads};

/// `NCCL_WIN_COLL_SYMMETRIC` of nccl.h.
const WINDOW_SYMMETRIC: c_int = 1;
/// `ncclSum`.
const SUM: c_int = 0;

type Communicator = *mut c_void;
type Window = *mut c_void;
type Status = c_int;

/// The functions that are used, by nccl.h. The types of what they take have not changed since 2.0; the last three came with 2.19 and 2.27.
struct Functions {
    get_version: unsafe extern "C" fn(*mut c_int) -> Status,
    get_error_string: unsafe extern "C" fn(Status) -> *const c_char,
    comm_init_all: unsafe extern "C" fn(*mut Communicator, c_int, *const c_int) -> Status,
    comm_destroy: unsafe extern "C" fn(Communicator) -> Status,
    all_reduce: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        c_int,
        c_int,
        Communicator,
        *mut c_void,
    ) -> Status,
    symmetric: Option<SymmetricFunctions>,
}

struct SymmetricFunctions {
    mem_alloc: unsafe extern "C" fn(*mut *mut c_void, usize) -> Status,
    mem_free: unsafe extern "C" fn(*mut c_void) -> Status,
    window_register:
        unsafe extern "C" fn(Communicator, *mut c_void, usize, *mut Window, c_int) -> Status,
    window_deregister: unsafe extern "C" fn(Communicator, Window) -> Status,
}

/// The library.
pub(crate) struct Nccl {
    functions: Functions,
    version: String,
    // Dropped after the functions, which are its.
    _library: Library,
}

/// What is measured.
pub(crate) struct Work<'a> {
    pub(crate) world_size: u32,
    pub(crate) dtypes: &'a [Dtype],
    pub(crate) bytes: &'a [usize],
    pub(crate) launches: &'a [Launch],
    pub(crate) method: Method,
}

impl Nccl {
    /// Opens the library: that of `path`, else the one that the loader finds.
    ///
    /// # Errors
    /// It is not there, or lacks a function that every NCCL has.
    pub(crate) fn open(path: Option<&Path>) -> Result<Nccl> {
        let names: Vec<&Path> = match path {
            Some(path) => vec![path],
            None => vec![Path::new("libnccl.so.2"), Path::new("libnccl.so")],
        };
        let mut library = Err(anyhow::anyhow!("no name was tried"));
        for name in names {
            // SAFETY: NCCL's initialisers run; the file is the one that the user names or that their loader finds for NCCL's name.
            library = unsafe { Library::new(name) }
                .with_context(|| format!("opening {}", name.display()));
            if library.is_ok() {
                break;
            }
        }
        let library = library?;
        // SAFETY: the types are those of nccl.h, see `Functions`; the library is kept as long as the functions.
        let functions = unsafe {
            Functions {
                get_version: function(&library, "ncclGetVersion")?,
                get_error_string: function(&library, "ncclGetErrorString")?,
                comm_init_all: function(&library, "ncclCommInitAll")?,
                comm_destroy: function(&library, "ncclCommDestroy")?,
                all_reduce: function(&library, "ncclAllReduce")?,
                symmetric: SymmetricFunctions::find(&library).ok(),
            }
        };
        let mut number = 0;
        // SAFETY: `number` is a place for one number.
        let status = unsafe { (functions.get_version)(&raw mut number) };
        ensure!(status == 0, "ncclGetVersion: {status}");
        Ok(Nccl {
            functions,
            version: version_text(number),
            _library: library,
        })
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Whether this NCCL is too old for it.
    pub(crate) fn lacks(&self, system: System) -> bool {
        system == System::NcclSymmetric && self.functions.symmetric.is_none()
    }

    fn check(&self, call: &str, status: Status) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: NCCL returns a string of its own for every number.
        let text = unsafe { CStr::from_ptr((self.functions.get_error_string)(status)) };
        bail!("{call}: {} ({status})", text.to_string_lossy())
    }

    /// A communicator for each rank of a group, one a GPU.
    ///
    /// # Errors
    /// There are fewer GPUs than ranks, or NCCL refuses.
    pub(crate) fn communicators(
        &self,
        gpus: &Gpus,
        world_size: u32,
    ) -> Result<Vec<OwnedCommunicator<'_>>> {
        ensure!(
            world_size <= gpus.devices(),
            "NCCL wants a GPU a rank: there are {} for {world_size} ranks",
            gpus.devices()
        );
        let ordinals: Vec<c_int> = (0..world_size as c_int).collect();
        let mut communicators = vec![std::ptr::null_mut(); ordinals.len()];
        // SAFETY: there is a place for each communicator and a number for each device.
        let status = unsafe {
            (self.functions.comm_init_all)(
                communicators.as_mut_ptr(),
                ordinals.len() as c_int,
                ordinals.as_ptr(),
            )
        };
        self.check("ncclCommInitAll", status)?;
        Ok(communicators
            .into_iter()
            .map(|communicator| OwnedCommunicator {
                nccl: self,
                communicator,
            })
            .collect())
    }

    /// Measures with one rank a GPU, all threads of this process.
    ///
    /// # Errors
    /// There are fewer GPUs than ranks, this NCCL has no symmetric windows, or NCCL or the driver refuses something.
    pub(crate) fn measure(
        &self,
        gpus: &Gpus,
        system: System,
        work: &Work<'_>,
    ) -> Result<Vec<Sample>> {
        ensure!(
            !self.lacks(system),
            "NCCL {} has no symmetric windows, which came with 2.27",
            self.version
        );
        let communicators = self.communicators(gpus, work.world_size)?;
        let ranks = run_threads(work.world_size, 0, |member| {
            let rank = member.peers.rank();
            let communicator = communicators
                .get(rank as usize)
                .context("a communicator for each rank")?;
            Rank {
                nccl: self,
                communicator,
                stream: gpus.stream(rank)?,
                peers: member.peers,
            }
            .measure(system, work)
        })?;
        merge(ranks)
    }
}

impl SymmetricFunctions {
    /// # Safety
    /// `library` is NCCL, and kept as long as the functions.
    unsafe fn find(library: &Library) -> Result<SymmetricFunctions> {
        // SAFETY: the caller's promise; the types are those of nccl.h.
        unsafe {
            Ok(SymmetricFunctions {
                mem_alloc: function(library, "ncclMemAlloc")?,
                mem_free: function(library, "ncclMemFree")?,
                window_register: function(library, "ncclCommWindowRegister")?,
                window_deregister: function(library, "ncclCommWindowDeregister")?,
            })
        }
    }
}

/// # Safety
/// `T` is the function's type, and it is not used after the library.
unsafe fn function<T: Copy>(library: &Library, name: &str) -> Result<T> {
    // SAFETY: the caller's promise.
    let symbol = unsafe { library.get::<T>(name.as_bytes()) };
    Ok(*symbol.with_context(|| format!("NCCL has no {name}"))?)
}

/// `2.28.9` of 22809, as nccl.h puts numbers together; before 2.9 a minor number had one digit.
fn version_text(number: c_int) -> String {
    let (major, minor, patch) = if number < 10_000 {
        (number / 1000, number / 100 % 10, number % 100)
    } else {
        (number / 10_000, number / 100 % 100, number % 100)
    };
    format!("{major}.{minor}.{patch}")
}

fn dtype_number(dtype: Dtype) -> c_int {
    match dtype {
        Dtype::F16 => 6,
        Dtype::F32 => 7,
        Dtype::Bf16 => 9,
    }
}

/// One rank's communicator. Destroyed when dropped.
pub(crate) struct OwnedCommunicator<'a> {
    nccl: &'a Nccl,
    communicator: Communicator,
}

// SAFETY: each communicator is used by the thread of its rank alone, and dropped after those have ended.
unsafe impl Sync for OwnedCommunicator<'_> {}

impl OwnedCommunicator<'_> {
    /// Enqueues a sum over all ranks, in place if both addresses are the same.
    ///
    /// # Errors
    /// NCCL refuses.
    ///
    /// # Safety
    /// Both addresses hold `elements` elements of `dtype` until the stream, which is of this rank's device, has passed this point. One
    /// thread at a time uses a communicator.
    pub(crate) unsafe fn all_reduce(
        &self,
        input: u64,
        output: u64,
        elements: usize,
        dtype: Dtype,
        stream: &CudaStream,
    ) -> Result<()> {
        // SAFETY: the communicator is live; the rest is the caller's promise.
        let status = unsafe {
            (self.nccl.functions.all_reduce)(
                input as *const c_void,
                output as *mut c_void,
                elements,
                dtype_number(dtype),
                SUM,
                self.communicator,
                stream.cu_stream().cast(),
            )
        };
        self.nccl.check("ncclAllReduce", status)
    }
}

impl Drop for OwnedCommunicator<'_> {
    fn drop(&mut self) {
        // SAFETY: made by ncclCommInitAll, and destroyed once, here.
        let status = unsafe { (self.nccl.functions.comm_destroy)(self.communicator) };
        if let Err(error) = self.nccl.check("ncclCommDestroy", status) {
            tracing::warn!("{error:#}");
        }
    }
}

/// One rank.
struct Rank<'a> {
    nccl: &'a Nccl,
    communicator: &'a OwnedCommunicator<'a>,
    stream: Arc<CudaStream>,
    peers: Peers<'a>,
}

/// Where messages are.
struct Buffers {
    input: u64,
    output: u64,
}

impl Rank<'_> {
    fn measure(&self, system: System, work: &Work<'_>) -> Result<Vec<Sample>> {
        self.stream.context().bind_to_thread()?;
        let largest = work.bytes.iter().copied().max().unwrap_or(0);
        if system == System::NcclSymmetric {
            let functions = self.nccl.functions.symmetric.as_ref();
            let functions = functions.context("symmetric windows")?;
            let (input, output) = (
                SymmetricMemory::new(self, functions, largest)?,
                SymmetricMemory::new(self, functions, largest)?,
            );
            let buffers = Buffers {
                input: input.address as u64,
                output: output.address as u64,
            };
            let measured = self.measure_in(system, &buffers, work);
            self.stream.synchronize()?;
            self.peers.meet()?;
            measured
        } else {
            let input = self.stream.alloc_zeros::<u8>(largest)?;
            let output = self.stream.alloc_zeros::<u8>(largest)?;
            // The addresses outlive the guards: both are dropped behind the wait below, and used on this stream alone.
            let buffers = Buffers {
                input: input.device_ptr(&self.stream).0,
                output: output.device_ptr(&self.stream).0,
            };
            let measured = self.measure_in(system, &buffers, work);
            self.stream.synchronize()?;
            measured
        }
    }

    fn measure_in(
        &self,
        system: System,
        buffers: &Buffers,
        work: &Work<'_>,
    ) -> Result<Vec<Sample>> {
        let mut measured = Vec::new();
        let device = Cuda::open(&self.stream)?;
        let mut timer = EventTimer::new(&self.stream)?;
        for &dtype in work.dtypes {
            for &bytes in work.bytes {
                let all_reduce = || self.all_reduce(buffers, dtype, bytes);
                // The first call of a size may connect and allocate, which a recording cannot hold.
                all_reduce()?;
                self.stream.synchronize()?;
                for &launch in work.launches {
                    let (times, host) = match launch {
                        // SAFETY: the buffers and the communicator outlive this call.
                        Launch::Graph => unsafe {
                            let times = time_recorded(
                                &device,
                                &mut timer,
                                self.peers,
                                work.method,
                                all_reduce,
                            )?;
                            (times, Vec::new())
                        },
                        Launch::Eager => {
                            time_eager(&mut timer, self.peers, work.method, all_reduce)?
                        }
                    };
                    let call = Call {
                        system,
                        build: Build::Shipped,
                        world_size: work.world_size,
                        link: Link::Peer,
                        dtype,
                        bytes: bytes as u64,
                        launch,
                        pdl: false,
                        placement: None,
                        plan: None,
                        from_table: false,
                    };
                    measured.push(Sample { call, times, host });
                }
            }
        }
        Ok(measured)
    }

    fn all_reduce(&self, buffers: &Buffers, dtype: Dtype, bytes: usize) -> Result<()> {
        // SAFETY: both buffers hold the largest message; the stream is of this rank's device, the communicator of this thread.
        unsafe {
            self.communicator.all_reduce(
                buffers.input,
                buffers.output,
                bytes / dtype.size_bytes(),
                dtype,
                &self.stream,
            )
        }
    }
}

/// NCCL's own memory in a symmetric window. Registering is collective: all ranks make them in the same order.
struct SymmetricMemory<'a> {
    nccl: &'a Nccl,
    functions: &'a SymmetricFunctions,
    communicator: Communicator,
    address: *mut c_void,
    window: Window,
}

impl<'a> SymmetricMemory<'a> {
    fn new(rank: &Rank<'a>, functions: &'a SymmetricFunctions, bytes: usize) -> Result<Self> {
        let mut memory = SymmetricMemory {
            nccl: rank.nccl,
            functions,
            communicator: rank.communicator.communicator,
            address: std::ptr::null_mut(),
            window: std::ptr::null_mut(),
        };
        // SAFETY: `address` is a place for one address.
        let status = unsafe { (functions.mem_alloc)(&raw mut memory.address, bytes) };
        rank.nccl.check("ncclMemAlloc", status)?;
        // SAFETY: the memory was just allocated with so many bytes; `window` is a place for one handle.
        let status = unsafe {
            (functions.window_register)(
                memory.communicator,
                memory.address,
                bytes,
                &raw mut memory.window,
                WINDOW_SYMMETRIC,
            )
        };
        rank.nccl.check("ncclCommWindowRegister", status)?;
        Ok(memory)
    }
}

impl Drop for SymmetricMemory<'_> {
    fn drop(&mut self) {
        let note = |call: &str, status: Status| {
            if let Err(error) = self.nccl.check(call, status) {
                tracing::warn!("{error:#}");
            }
        };
        if !self.window.is_null() {
            // SAFETY: registered with this communicator, and deregistered once, here; the stream was waited for.
            let status =
                unsafe { (self.functions.window_deregister)(self.communicator, self.window) };
            note("ncclCommWindowDeregister", status);
        }
        if !self.address.is_null() {
            // SAFETY: allocated by ncclMemAlloc, and freed once, here.
            let status = unsafe { (self.functions.mem_free)(self.address) };
            note("ncclMemFree", status);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_nccl_writes_them() {
        assert_eq!(version_text(22809), "2.28.9");
        assert_eq!(version_text(21903), "2.19.3");
        assert_eq!(version_text(2708), "2.7.8");
    }

    #[test]
    fn a_library_that_is_not_there_is_an_error_that_names_it() {
        let error = match Nccl::open(Some(Path::new("/nonexistent/libnccl.so.2"))) {
            Ok(_) => panic!("there is no such library"),
            Err(error) => format!("{error:#}"),
        };
        assert!(error.contains("/nonexistent/libnccl.so.2"), "{error}");
    }
}
