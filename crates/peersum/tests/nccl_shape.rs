//! `nccl_shape` in the place of `cudarc::nccl`: the same code compiles against both, and an id
//! survives what engines do to it.

use core::ffi::c_char;

use peersum::nccl_shape::{Comm, Id, ReduceOp};

#[allow(
    dead_code,
    reason = "that it compiles is the promise; it needs NCCL to run"
)]
mod against_cudarc {
    use peersum::cudarc::driver::{CudaSlice as Buffer, CudaStream};
    use peersum::cudarc::nccl::{Comm, Id, NcclType, ReduceOp, result::NcclError};

    type Stream = std::sync::Arc<CudaStream>;

    include!("../examples/nccl_shape/engine.rs");
}

#[allow(dead_code, reason = "the example runs it")]
mod against_peersum {
    use peersum::cudarc::driver::{CudaSlice as Buffer, CudaStream};
    use peersum::nccl_shape::{Comm, Id, NcclType, ReduceOp, result::NcclError};

    type Stream = std::sync::Arc<CudaStream>;

    include!("../examples/nccl_shape/engine.rs");

    /// What the engine makes of an id comes back as the same id.
    #[test]
    fn an_id_survives_the_engines_own_serialisation() {
        let text = new_id().expect("the system gives random bytes");
        let id = decode(&text).expect("it is text of this kind");
        let bytes: Vec<u8> = id.internal().iter().map(|&byte| byte as u8).collect();
        assert_eq!(text.len(), 256);
        let again: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(again, text);
    }
}

/// Compiles for both kinds of engine: those that share a communicator and those that keep one for
/// each thread.
#[test]
fn a_communicator_can_be_shared_between_threads() {
    fn requires<T: Send + Sync + std::fmt::Debug>() {}
    requires::<Comm>();
}

#[test]
fn no_two_ids_are_the_same() {
    let ids: Vec<Id> = (0..100)
        .map(|_| Id::new().expect("the system gives random bytes"))
        .collect();
    for (index, id) in ids.iter().enumerate() {
        assert!(!ids[..index].contains(id), "{id:?}");
    }
}

#[test]
fn an_id_survives_json_and_raw_bytes() {
    let id = Id::new().expect("the system gives random bytes");
    // serde has no arrays of 128 elements: engines send slices.
    let json = serde_json::to_string(&id.internal()[..]).expect("numbers");
    let internal: Vec<c_char> = serde_json::from_str(&json).expect("what was just written");
    assert_eq!(Id::uninit(internal.try_into().expect("128 bytes")), id);

    let raw: Vec<u8> = id.internal().iter().map(|&byte| byte as u8).collect();
    let internal: Vec<c_char> = raw.into_iter().map(|byte| byte as c_char).collect();
    assert_eq!(Id::uninit(internal.try_into().expect("128 bytes")), id);
}

#[test]
fn an_operation_prints_by_the_name_that_cudarc_gives_it() {
    assert_eq!(format!("{:?}", ReduceOp::Avg), "Avg");
}
