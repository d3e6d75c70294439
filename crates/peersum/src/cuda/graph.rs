//! Recording the launches of a stream, and running the recording.

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::{Arc, OnceLock};

use cudarc::driver::CudaStream;
use cudarc::driver::sys::{
    self, CUgraph, CUgraphExec, CUstream, CUstreamCaptureMode, CUstreamCaptureStatus,
};

use super::driver::{check, describe_number, library, returned};
use super::owned::Owned;
use crate::device::{DeviceError, Recording};

/// A recorded sequence of launches, ready to run. Destroyed when dropped; a run in flight ends
/// first.
pub struct Graph(Owned<CUgraphExec>);

// SAFETY: the handle names an object of the driver, which may be used by any thread, one at a time;
// there is no `Sync`.
unsafe impl Send for Graph {}

/// Starts recording on a stream of the current context.
///
/// In the thread-local mode, only calls of this thread that a recording cannot hold are refused
/// meanwhile: other ranks of the process go on allocating.
pub(super) fn begin(stream: &CudaStream) -> Result<(), DeviceError> {
    // SAFETY: the stream is live.
    check("cuStreamBeginCapture", unsafe {
        sys::cuStreamBeginCapture_v2(
            stream.cu_stream(),
            CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
        )
    })
}

/// Whether a stream of the current context is being recorded, by whomever.
pub(super) fn recording(stream: &CudaStream) -> Result<Recording, DeviceError> {
    let (status, capture) = capture_info(stream)?;
    Ok(match status {
        CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE => Recording::Off,
        CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE => Recording::On { capture },
        CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_INVALIDATED => Recording::Spoilt,
    })
}

/// The status of a stream's capture, and the capture's number.
fn capture_info(stream: &CudaStream) -> Result<(CUstreamCaptureStatus, u64), DeviceError> {
    let stream = stream.cu_stream();
    let mut status = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    let mut capture = 0;
    let Some(get) = get_capture_info() else {
        // SAFETY: the stream is live, and the place is the status, whose three values cudarc knows.
        let result = unsafe { sys::cuStreamIsCapturing(stream, &raw mut status) };
        check("cuStreamIsCapturing", result)?;
        return Ok((status, capture));
    };
    let (status_out, id_out) = (&raw mut status, &raw mut capture);
    // SAFETY: as above; the other place is the number, and the rest may be null.
    match unsafe {
        get(
            stream,
            status_out,
            id_out,
            null_mut(),
            null_mut(),
            null_mut(),
        )
    } {
        0 => Ok((status, capture)),
        failure => {
            let call = "cuStreamGetCaptureInfo";
            Err(DeviceError::driver(call, describe_number(failure)))
        }
    }
}

/// The driver's function. Looked up by hand, because each version of cudarc's bindings has the
/// variants of its own release only; this one is in every driver from CUDA 11.3 on. `None` if
/// cudarc has found the driver under another name than ours: then all captures have one number.
fn get_capture_info() -> Option<GetCaptureInfo> {
    static FUNCTION: OnceLock<Option<GetCaptureInfo>> = OnceLock::new();
    *FUNCTION.get_or_init(|| {
        // SAFETY: this is the signature in cuda.h since CUDA 11.3.
        unsafe { library().ok()?.function("cuStreamGetCaptureInfo_v2") }
    })
}

// The result is declared as a number: cudarc's enumeration may lack an error of a newer driver.
type GetCaptureInfo = unsafe extern "C" fn(
    CUstream,
    *mut CUstreamCaptureStatus,
    *mut u64,
    *mut CUgraph,
    *mut *const c_void,
    *mut usize,
) -> c_int;

impl Graph {
    /// Ends recording on a stream of the current context, and uploads what was recorded.
    pub(super) fn end(stream: &Arc<CudaStream>) -> Result<Self, DeviceError> {
        let null = std::ptr::null_mut();
        // SAFETY: the stream is live, and the place is one handle. A recording that something
        // spoilt leaves null in it and is an error that is returned.
        let recorded = returned("cuStreamEndCapture", null, |place| unsafe {
            sys::cuStreamEndCapture(stream.cu_stream(), place)
        })?;
        let recorded = Owned::new(stream.context(), recorded, "cuGraphDestroy", |recorded| {
            // SAFETY: the handle is live and destroyed once; an instance does not need it.
            unsafe { sys::cuGraphDestroy(recorded) }
        });
        let null = std::ptr::null_mut();
        // SAFETY: the place is one handle; the recording is live and not needed after the call.
        let graph = returned("cuGraphInstantiate", null, |place| unsafe {
            sys::cuGraphInstantiateWithFlags(place, recorded.handle(), 0)
        })?;
        let graph = Owned::new(stream.context(), graph, "cuGraphExecDestroy", |graph| {
            // SAFETY: the handle is live and destroyed once. The driver puts it off while a run is
            // in flight.
            unsafe { sys::cuGraphExecDestroy(graph) }
        });
        // The first run would otherwise bear this, at different times on each rank.
        // SAFETY: both are live and of the same context.
        check("cuGraphUpload", unsafe {
            sys::cuGraphUpload(graph.handle(), stream.cu_stream())
        })?;
        Ok(Self(graph))
    }

    /// Enqueues the recording on a stream of the current context.
    ///
    /// # Safety
    ///
    /// Every address that the recorded launches use is valid until they have ended.
    pub(super) unsafe fn launch(&self, stream: &CudaStream) -> Result<(), DeviceError> {
        // SAFETY: both handles are live; the rest is the caller's promise.
        check("cuGraphLaunch", unsafe {
            sys::cuGraphLaunch(self.0.handle(), stream.cu_stream())
        })
    }
}
