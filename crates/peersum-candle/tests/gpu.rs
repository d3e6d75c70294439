//! The operations on real tensors. Needs a GPU for each of two ranks, which are threads: on a
//! shared GPU candle's own work, such as loading its kernels, waits for a peer's call to end, and
//! the peer waits for this rank. README.md says how to build it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use candle_core::{DType, Device, Error, Tensor, WithDType};
use half::{bf16, f16};
use peersum::nccl_shape::{Comm, Id};
use peersum::reference::{self, NormNumbers, ReferenceElement};
use peersum::{Communicator, Rendezvous};
use peersum_candle::{AllReduce, AllReduceError, AllReduceRmsNorm};

const WORLD_SIZE: usize = 2;
const ROWS: usize = 5;
/// Odd, so that rows of 16-bit elements begin between units of 16 bytes.
const COLUMNS: usize = 1003;
/// Columns of what is normalised: rows are whole units.
const HIDDEN: usize = 1000;
const NUMBERS: NormNumbers = NormNumbers {
    epsilon: 1e-6,
    weight_offset: 1.0,
};

fn gpu_of(rank: usize) -> usize {
    let ordinal = peersum::open_context(rank as u32).unwrap().ordinal();
    assert_eq!(ordinal, rank, "the tests need a GPU for each rank");
    ordinal
}

/// Runs a program on each rank, with the rank's device and its operation.
fn on_ranks(program: impl Fn(usize, &Device, &AllReduce) + Sync) {
    let program = &program;
    std::thread::scope(|scope| {
        for rendezvous in Rendezvous::threads(WORLD_SIZE as u32) {
            scope.spawn(move || {
                let rank = rendezvous.rank() as usize;
                let device = Device::new_cuda_with_stream(gpu_of(rank)).unwrap();
                let stream = device.as_cuda_device().unwrap().cuda_stream();
                let communicator = Communicator::builder()
                    .rendezvous(rendezvous)
                    .max_bytes(1 << 20)
                    .build(&stream)
                    .unwrap();
                program(rank, &device, &AllReduce::new(Comm::from(communicator)));
            });
        }
    });
}

fn input<T: ReferenceElement>(rank: usize) -> Vec<T> {
    (0..ROWS * COLUMNS)
        .map(|index| T::round(((index * (rank + 3)) % 777) as f32 * 0.37 - 100.0))
        .collect()
}

fn expected<T: ReferenceElement>() -> Vec<T> {
    let inputs: Vec<Vec<T>> = (0..WORLD_SIZE).map(input).collect();
    let inputs: Vec<&[T]> = inputs.iter().map(Vec::as_slice).collect();
    reference::all_reduce(&inputs)
}

fn tensor<T: ReferenceElement + WithDType>(rank: usize, device: &Device) -> Tensor {
    Tensor::from_vec(input::<T>(rank), (ROWS, COLUMNS), device).unwrap()
}

#[track_caller]
fn assert_bits<T: ReferenceElement + WithDType>(found: &Tensor, expected: &[T]) {
    let found: Vec<T> = found.flatten_all().unwrap().to_vec1().unwrap();
    let bits =
        |elements: &[T]| -> Vec<_> { elements.iter().map(|element| element.raw()).collect() };
    assert_eq!(bits(&found), bits(expected));
}

fn sums<T: ReferenceElement + WithDType>(rank: usize, device: &Device, all_reduce: &AllReduce) {
    let sum = expected::<T>();
    let own = input::<T>(rank);

    let whole = tensor::<T>(rank, device);
    let found = whole.apply_op1_no_bwd(all_reduce).unwrap();
    assert_eq!(found.dims(), [ROWS, COLUMNS]);
    assert_bits(&found, &sum);
    assert_bits(&whole, &own);

    // Rows that begin inside the storage, and between units.
    let rows = whole.narrow(0, 1, 3).unwrap();
    let part = COLUMNS..4 * COLUMNS;
    assert_bits(
        &rows.apply_op1_no_bwd(all_reduce).unwrap(),
        &sum[part.clone()],
    );
    rows.inplace_op1(all_reduce).unwrap();
    all_reduce.comm().synchronize().unwrap();
    let mut mixed = own;
    mixed[part.clone()].copy_from_slice(&sum[part]);
    assert_bits(&whole, &mixed);

    let columns = tensor::<T>(rank, device).t().unwrap().contiguous().unwrap();
    let columns = columns.apply_op1_no_bwd(all_reduce).unwrap();
    assert_bits(&columns.t().unwrap().contiguous().unwrap(), &sum);
}

#[test]
fn sums_have_the_references_bits_whatever_the_type_the_layout_and_the_place() {
    on_ranks(|rank, device, all_reduce| {
        sums::<f32>(rank, device, all_reduce);
        sums::<f16>(rank, device, all_reduce);
        sums::<bf16>(rank, device, all_reduce);
        all_reduce.comm().synchronize().unwrap();
    });
}

#[test]
fn a_tensor_without_elements_is_summed_without_a_launch() {
    on_ranks(|rank, device, all_reduce| {
        let nothing = tensor::<bf16>(rank, device).narrow(0, 2, 0).unwrap();
        let sum = nothing.apply_op1_no_bwd(all_reduce).unwrap();
        assert_eq!(sum.dims(), [0, COLUMNS]);
        nothing.inplace_op1(all_reduce).unwrap();
        all_reduce.comm().synchronize().unwrap();
    });
}

/// Elements that are not those of [`input`].
fn other<T: ReferenceElement>(len: usize, salt: usize) -> Vec<T> {
    (0..len)
        .map(|index| T::round(((index * 5 + salt) % 31) as f32 * 0.125 - 1.5))
        .collect()
}

/// The rows of `[ROWS, HIDDEN]`, which are the front of the sum's.
fn rows<T: ReferenceElement + WithDType>(elements: &[T], device: &Device) -> Tensor {
    Tensor::from_slice(&elements[..ROWS * HIDDEN], (ROWS, HIDDEN), device).unwrap()
}

fn norms<T: ReferenceElement + WithDType>(rank: usize, device: &Device, comm: &Arc<Comm>) {
    let weight = other::<T>(HIDDEN, 7);
    let before = other::<T>(ROWS * HIDDEN, rank);
    let sum = &expected::<T>()[..ROWS * HIDDEN];
    let added = reference::add_residual(sum, &before);
    let normalised = |rows: &[T]| reference::rms_norm(rows, &weight, NUMBERS);

    let gamma = Tensor::from_slice(&weight, HIDDEN, device).unwrap();
    let norm = AllReduceRmsNorm::new(comm.clone(), gamma, NUMBERS.epsilon)
        .with_weight_offset(NUMBERS.weight_offset);
    let partial = rows(&input::<T>(rank), device);
    let residual = rows(&before, device);
    let found = norm.forward(&partial).unwrap();
    assert_eq!(found.dims(), [ROWS, HIDDEN]);
    assert_bits(&found, &normalised(sum));

    // Two rows from the middle, which the others must not notice.
    let middle = |tensor: &Tensor| tensor.narrow(0, 1, 2).unwrap();
    let part = HIDDEN..3 * HIDDEN;
    let found = norm
        .forward_add(&middle(&partial), &middle(&residual))
        .unwrap();
    assert_bits(&found, &normalised(&added[part.clone()]));
    let mut mixed = before.clone();
    mixed[part.clone()].copy_from_slice(&added[part]);
    assert_bits(&residual, &mixed);

    let residual = rows(&before, device);
    let found = norm.forward_add(&partial, &residual).unwrap();
    assert_bits(&found, &normalised(&added));
    assert_bits(&residual, &added);
    assert_bits(&partial, &input::<T>(rank)[..ROWS * HIDDEN]);

    let nothing = |tensor: &Tensor| tensor.narrow(0, 2, 0).unwrap();
    let found = norm
        .forward_add(&nothing(&partial), &nothing(&residual))
        .unwrap();
    assert_eq!(found.dims(), [0, HIDDEN]);
    comm.synchronize().unwrap();
}

#[test]
fn normalised_sums_have_the_references_bits_whatever_the_type_and_the_residual() {
    on_ranks(|rank, device, all_reduce| {
        norms::<f32>(rank, device, all_reduce.comm());
        norms::<f16>(rank, device, all_reduce.comm());
        norms::<bf16>(rank, device, all_reduce.comm());
    });
}

#[test]
fn what_cannot_be_normalised_is_refused_and_harms_nothing() {
    on_ranks(|rank, device, all_reduce| {
        let comm = all_reduce.comm();
        let tensor = rows(&input::<f32>(rank), device);
        let residual = rows(&other::<f32>(ROWS * HIDDEN, rank), device);
        let with = |weight: Tensor| AllReduceRmsNorm::new(comm.clone(), weight, 1e-6);
        let gamma = residual.get(0).unwrap().copy().unwrap();
        let norm = with(gamma.clone());
        let refusals = [
            // Rows that are not the weight's, a residual of another shape, another type.
            norm.forward(&tensor.reshape((2 * ROWS, HIDDEN / 2)).unwrap()),
            norm.forward_add(&tensor, &residual.narrow(0, 0, 1).unwrap()),
            norm.forward_add(&tensor, &residual.to_dtype(DType::BF16).unwrap()),
            with(gamma.to_dtype(DType::BF16).unwrap()).forward(&tensor),
            // Gaps, and operands in one storage.
            norm.forward(&tensor.t().unwrap().contiguous().unwrap().t().unwrap()),
            norm.forward_add(&tensor, &tensor),
            with(residual.get(0).unwrap()).forward_add(&tensor, &residual),
            // Numbers that no norm has.
            AllReduceRmsNorm::new(comm.clone(), gamma.clone(), -1.0).forward(&tensor),
            // Another device, or none.
            norm.forward_add(&tensor, &residual.to_device(&Device::Cpu).unwrap()),
            with(gamma.to_device(&Device::Cpu).unwrap())
                .forward(&tensor.to_device(&Device::Cpu).unwrap()),
        ];
        for (index, refusal) in refusals.into_iter().enumerate() {
            assert!(refusal.is_err(), "refusal {index}");
        }
        norms::<bf16>(rank, device, comm);
    });
}

/// The error without the backtrace that candle may wrap it in.
fn bare(error: Error) -> Error {
    match error {
        Error::WithBacktrace { inner, .. } => bare(*inner),
        other => other,
    }
}

#[test]
fn what_cannot_be_summed_is_refused_by_a_typed_error_and_harms_nothing() {
    on_ranks(|rank, device, all_reduce| {
        let whole = tensor::<f32>(rank, device);
        let refusal = |tensor: &Tensor| {
            let out_of_place = bare(tensor.apply_op1_no_bwd(all_reduce).unwrap_err());
            let in_place = bare(tensor.inplace_op1(all_reduce).unwrap_err());
            assert_eq!(out_of_place.to_string(), in_place.to_string());
            out_of_place
        };
        let transposed = whole.t().unwrap();
        assert!(matches!(
            refusal(&transposed),
            Error::RequiresContiguous { .. }
        ));
        let integers = whole.to_dtype(DType::U32).unwrap();
        assert!(matches!(
            refusal(&integers),
            Error::UnsupportedDTypeForOp(DType::U32, _)
        ));
        let own = |error: Error| match error {
            Error::Cuda(error) => *error.downcast::<AllReduceError>().unwrap(),
            other => panic!("expected an error of peersum-candle, not {other:?}"),
        };
        let on_the_cpu = whole.to_device(&Device::Cpu).unwrap();
        assert!(matches!(own(refusal(&on_the_cpu)), AllReduceError::OnCpu));
        let elsewhere = Device::new_cuda_with_stream(gpu_of(rank)).unwrap();
        let elsewhere = tensor::<f32>(rank, &elsewhere);
        assert!(matches!(
            own(refusal(&elsewhere)),
            AllReduceError::OtherStream
        ));
        sums::<f32>(rank, device, all_reduce);
    });
}

/// `Device::new_cuda` has the per-thread default stream, which cannot carry a communicator itself.
#[test]
fn a_device_with_the_default_stream_works_by_the_id_as_with_nccl() {
    let id = Id::new().unwrap();
    std::thread::scope(|scope| {
        for rank in 0..WORLD_SIZE {
            scope.spawn(move || {
                let device = Device::new_cuda(gpu_of(rank)).unwrap();
                let stream = device.as_cuda_device().unwrap().cuda_stream();
                let comm = Comm::from_rank(stream, rank, WORLD_SIZE, id).unwrap();
                let all_reduce = AllReduce::new(Arc::new(comm));
                for _ in 0..20 {
                    sums::<bf16>(rank, &device, &all_reduce);
                    norms::<bf16>(rank, &device, all_reduce.comm());
                }
                all_reduce.comm().synchronize().unwrap();
            });
        }
    });
}
