//! Errors that cudarc's destructors left in a context, which cudarc returns from its next call
//! instead of doing its work. With a fake driver, each case in a process of its own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::c_int;
use std::process::Command;
use std::sync::Arc;

use peersum::cudarc::driver::sys::CUresult;
use peersum::cudarc::driver::{CudaContext, CudaSlice, CudaStream, DriverError};
use peersum::device::{Device, DeviceError, DeviceStream};
use peersum::{BufferError, Cuda, Error, Input, Output, open_context};

#[path = "../../peersum-harness/tests/fake_driver/mod.rs"]
mod fake_driver;
use fake_driver::whole_driver;

/// Set in a child.
const CHILD: &str = "PEERSUM_TEST_CHILD";

/// Runs `body` in a process whose driver has this fault.
#[track_caller]
fn with_driver(test: &str, fault: &str, body: impl FnOnce()) {
    if let Some(asked_for) = std::env::var_os(CHILD) {
        if asked_for == fault {
            body();
        }
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, fault)
        .env("LD_LIBRARY_PATH", whole_driver())
        .env("FAKE_CUDA", fault)
        .env_remove("CUDA_VISIBLE_DEVICES")
        .output()
        .unwrap();
    assert!(output.status.success(), "{fault}: {output:#?}");
}

const STALE: DriverError = DriverError(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);

/// As the destructor of something unrelated would.
fn leave_an_error(context: &CudaContext) {
    context.record_err::<()>(Err(STALE));
}

/// The waits and the records that have reached the driver.
fn enqueued() -> (c_int, c_int) {
    // SAFETY: the fake is loaded already and has no initialisers.
    let driver = unsafe { libloading::Library::new("libcuda.so.1") }.unwrap();
    let read = |name: &str| {
        // SAFETY: the fake has ints of these names, which no other thread writes.
        unsafe { **driver.get::<*const c_int>(name).unwrap() }
    };
    (read("fake_waits"), read("fake_records"))
}

/// What `calls` enqueues.
fn enqueued_by<R>(calls: impl FnOnce() -> R) -> (R, (c_int, c_int)) {
    let before = enqueued();
    let result = calls();
    let after = enqueued();
    (result, (after.0 - before.0, after.1 - before.1))
}

/// A stream, and a slice that belongs to another stream, of another `CudaContext` of the same
/// context. The slice's memory is of no use.
fn stream_and_slice() -> (Arc<CudaStream>, CudaSlice<f32>) {
    let stream = open_context(0).unwrap().new_stream().unwrap();
    let other = open_context(0).unwrap().new_stream().unwrap();
    // SAFETY: nothing uses the memory, and the slice is leaked or frees nothing.
    let slice = unsafe { other.upgrade_device_ptr(4096, 8) };
    (stream, slice)
}

#[test]
fn a_stale_error_changes_neither_the_order_between_streams_nor_itself() {
    let test = "a_stale_error_changes_neither_the_order_between_streams_nor_itself";
    with_driver(test, "gpus=1", || {
        let (stream, mut slice) = stream_and_slice();
        let (own, owner) = (stream.context().clone(), slice.context().clone());
        for stale in [&[][..], &[&own], &[&owner], &[&own, &owner]] {
            let leave = || stale.iter().for_each(|context| leave_an_error(context));
            let check = || {
                for context in [&own, &owner] {
                    let left = stale.iter().any(|one| Arc::ptr_eq(one, context));
                    let expected = if left { Err(STALE) } else { Ok(()) };
                    assert_eq!(context.check_err(), expected);
                }
            };
            leave();
            let (read, enqueued) =
                enqueued_by(|| Input::<f32, Cuda>::with_input(&slice, &stream, Ok::<_, Error>));
            assert_eq!((read.unwrap(), enqueued), (4096, (1, 1)));
            check();
            leave();
            let (written, enqueued) = enqueued_by(|| slice.with_output(&stream, Ok::<_, Error>));
            assert_eq!((written.unwrap(), enqueued), (4096, (2, 1)));
            check();
        }
        let _ = slice.leak();
    });
}

#[test]
fn a_stale_error_disturbs_neither_symmetric_buffers_nor_default_streams() {
    let test = "a_stale_error_disturbs_neither_symmetric_buffers_nor_default_streams";
    with_driver(test, "gpus=1", || {
        let stream = open_context(0).unwrap().new_stream().unwrap();
        let context = stream.context();
        let device = Cuda::open(&stream).unwrap();
        leave_an_error(context);
        // SAFETY: nothing uses the memory, and the buffer is disowned.
        let adopted = unsafe { device.adopt::<f32>(4096, 8) }.unwrap();
        assert_eq!(context.check_err(), Err(STALE));
        leave_an_error(context);
        let (disowned, enqueued) = enqueued_by(|| Cuda::disown(adopted));
        disowned.unwrap();
        assert_eq!(enqueued, (2, 0));
        assert_eq!(context.check_err(), Err(STALE));
        leave_an_error(context);
        assert!(context.default_stream().stand_in().unwrap().is_some());
        assert_eq!(context.check_err(), Err(STALE));
    });
}

#[test]
fn a_slice_of_a_context_object_without_streams_is_ordered_with_the_call() {
    let test = "a_slice_of_a_context_object_without_streams_is_ordered_with_the_call";
    with_driver(test, "gpus=1", || {
        // Its `CudaContext` has the default stream alone, so cudarc makes no waits for it.
        let owner = open_context(0).unwrap().default_stream();
        // SAFETY: nothing uses the memory, and the slice is leaked.
        let mut slice = unsafe { owner.upgrade_device_ptr::<f32>(4096, 8) };
        let stream = open_context(0).unwrap().new_stream().unwrap();
        // The call waits for the owner, then the owner for the call. cudarc records the use.
        let (read, enqueued) =
            enqueued_by(|| Input::<f32, Cuda>::with_input(&slice, &stream, Ok::<_, Error>));
        assert_eq!((read.unwrap(), enqueued), (4096, (2, 3)));
        let (written, enqueued) = enqueued_by(|| slice.with_output(&stream, Ok::<_, Error>));
        assert_eq!((written.unwrap(), enqueued), (4096, (2, 3)));
        let _ = slice.leak();
    });
}

#[test]
fn nothing_is_launched_on_a_stream_that_cannot_be_made_to_wait() {
    let test = "nothing_is_launched_on_a_stream_that_cannot_be_made_to_wait";
    with_driver(test, "fails:cuStreamWaitEvent", || {
        let (stream, mut slice) = stream_and_slice();
        leave_an_error(stream.context());
        let launch = |_| -> Result<(), Error> { panic!("launched") };
        let is_refusal = |result: Result<(), Error>| match result {
            Err(Error::Buffer(BufferError::Unordered { message })) => {
                assert!(message.contains("CUDA_ERROR_OF_A_FAKE"), "{message}");
            }
            other => panic!("{other:?}"),
        };
        is_refusal(Input::<f32, Cuda>::with_input(&slice, &stream, launch));
        is_refusal(slice.with_output(&stream, launch));
        assert_eq!(stream.context().check_err(), Err(STALE));
        let error = Cuda::disown(slice).unwrap_err();
        assert!(error.to_string().contains("cuStreamWaitEvent"), "{error}");
    });
    with_driver(test, "spoilt fails:cuStreamWaitEvent", || {
        let (stream, mut slice) = stream_and_slice();
        let refused = slice.with_output(&stream, |_| -> Result<(), Error> { panic!("launched") });
        assert!(
            matches!(&refused, Err(Error::Capture(text)) if text.contains("event_tracking")),
            "{refused:?}"
        );
        assert_eq!(stream.context().check_err(), Ok(()));
        let _ = slice.leak();
    });
}

#[test]
fn a_record_that_fails_is_left_for_the_program_to_see() {
    let test = "a_record_that_fails_is_left_for_the_program_to_see";
    with_driver(test, "fails:cuEventRecord", || {
        let (stream, mut slice) = stream_and_slice();
        slice.with_output(&stream, |_| Ok::<_, Error>(())).unwrap();
        assert!(stream.context().check_err().is_err());
        let _ = slice.leak();
    });
}

#[test]
fn a_buffer_whose_events_cannot_be_made_is_an_error() {
    let test = "a_buffer_whose_events_cannot_be_made_is_an_error";
    with_driver(test, "fails:cuEventCreate", || {
        let stream = open_context(0).unwrap().new_stream().unwrap();
        let device = Cuda::open(&stream).unwrap();
        // SAFETY: as above.
        let adopted = unsafe { device.adopt::<f32>(4096, 8) };
        match adopted.map(drop) {
            Err(DeviceError::Driver { call, .. }) => assert_eq!(call, "cuEventCreate"),
            other => panic!("{other:?}"),
        }
    });
}
