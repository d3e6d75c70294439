//! All-gather, reduce-scatter and broadcast: every bit as the reference has it, between calls of
//! every other kind.

use half::{bf16, f16};
use peersum::dispatch::Route;
use peersum::reference;
use peersum::{Error, Held, Operation, Scalar};
use peersum_emulator::EmulatorBuffer;

use crate::stage::{
    Comm, Content, TestElement, assert_bits, expected, input, on_ranks, plan, settings,
};

/// A type that calls move, as its bits.
pub(crate) trait Moved: Scalar {
    fn from_word(word: u64) -> Self;
    fn word(self) -> u64;
}

macro_rules! moved {
    ($($number:ty: $from:expr, $to:expr;)*) => {$(
        impl Moved for $number {
            fn from_word(word: u64) -> Self {
                $from(word)
            }
            fn word(self) -> u64 {
                $to(self)
            }
        }
    )*};
}

moved! {
    f16: |word| f16::from_bits(word as u16), |it: f16| u64::from(it.to_bits());
    bf16: |word| bf16::from_bits(word as u16), |it: bf16| u64::from(it.to_bits());
    f32: |word| f32::from_bits(word as u32), |it: f32| u64::from(it.to_bits());
    u8: |word| word as u8, u64::from;
    i8: |word| word as i8, |it| u64::from(it as u8);
    u32: |word| word as u32, u64::from;
    i32: |word| word as i32, |it| u64::from(it as u32);
    u64: |word| word, |it| it;
    i64: |word| word as i64, |it| it as u64;
}

/// The empty mark of a slot and the mark of an escaped unit, of which inputs are full.
const MARKS: [u64; 2] = [0xFFFF_FFFF_FFFF_FFFF, 0x7FB5_FFA3_7FB5_FFA3];

/// What one rank has in one call.
fn words(seed: u64, rank: u32, len: usize) -> Vec<u64> {
    let mut random =
        fastrand::Rng::with_seed(seed.wrapping_mul(0x9E37_79B9) ^ u64::from(rank) << 48);
    // From no mark at all to nothing but marks.
    let marks = [0, 1, 30, 64][random.usize(..4)];
    let mut all = Vec::with_capacity(len);
    while all.len() < len {
        let run = random.usize(1..20).min(len - all.len());
        match random.u8(..64) < marks {
            true => all.extend([MARKS[random.usize(..2)]].repeat(run)),
            false => all.extend((0..run).map(|_| random.u64(..))),
        }
    }
    all
}

pub(crate) fn moved_input<T: Moved>(seed: u64, rank: u32, len: usize) -> Vec<T> {
    words(seed, rank, len)
        .into_iter()
        .map(T::from_word)
        .collect()
}

pub(crate) fn moved_inputs<T: Moved>(seed: u64, world_size: u32, len: usize) -> Vec<Vec<T>> {
    (0..world_size)
        .map(|rank| moved_input(seed, rank, len))
        .collect()
}

#[track_caller]
pub(crate) fn assert_words<T: Moved>(found: &[T], expected: &[T], context: &dyn std::fmt::Debug) {
    assert_eq!(found.len(), expected.len(), "{context:?}");
    let pairs = found.iter().zip(expected).enumerate();
    for (index, (found, expected)) in pairs {
        let (found, expected) = (found.word(), expected.word());
        assert!(
            found == expected,
            "element {index}: {found:#x} instead of {expected:#x} in {context:?}"
        );
    }
}

pub(crate) fn slices<T>(inputs: &[Vec<T>]) -> Vec<&[T]> {
    inputs.iter().map(Vec::as_slice).collect()
}

/// What the elements around a view hold.
const FRAME: u64 = 0x5A5A_5A5A_5A5A_5A5A;

/// A view of a larger buffer.
pub(crate) struct View<T: Scalar> {
    pub(crate) buffer: EmulatorBuffer<T>,
    begin: usize,
    len: usize,
}

impl<T: Moved> View<T> {
    pub(crate) fn new(begin: usize, elements: &[T]) -> Self {
        let mut all = vec![T::from_word(FRAME); begin];
        all.extend_from_slice(elements);
        all.extend([T::from_word(FRAME); 9]);
        View {
            buffer: EmulatorBuffer::from_slice(&all),
            begin,
            len: elements.len(),
        }
    }

    pub(crate) fn range(&self) -> std::ops::Range<usize> {
        self.begin..self.begin + self.len
    }

    #[track_caller]
    pub(crate) fn take(&self, context: &dyn std::fmt::Debug) -> Vec<T> {
        let all = self.buffer.to_vec();
        let outside = all[..self.begin]
            .iter()
            .chain(&all[self.begin + self.len..]);
        let frame = T::from_word(FRAME).word();
        assert!(
            outside.into_iter().all(|it| it.word() == frame),
            "elements around the view were written in {context:?}"
        );
        all[self.range()].to_vec()
    }
}

#[derive(Debug, Clone, Copy)]
struct Case {
    operation: Operation,
    /// Which of the types that the operation takes.
    dtype: usize,
    len: usize,
    blocks: u32,
    threads: u32,
    in_place: bool,
    seed: u64,
}

impl Case {
    fn random(random: &mut fastrand::Rng, world_size: u32) -> Case {
        let root = random.u32(..world_size);
        let operations = [
            Operation::AllReduce,
            Operation::AllGather,
            Operation::ReduceScatter,
            Operation::Broadcast { root },
        ];
        Case {
            operation: operations[random.usize(..4)],
            dtype: random.usize(..9),
            len: match random.u8(..4) {
                0 => random.usize(1..16),
                1 => random.usize(16..300),
                2 => 16 * random.usize(1..64),
                _ => random.usize(300..2000),
            },
            blocks: random.u32(1..=3),
            threads: random.u32(8..=17),
            in_place: random.bool(),
            seed: random.u64(..),
        }
    }

    /// Where a view begins. Units start at every element somewhere.
    fn begin(&self, rank: u32, salt: u64) -> usize {
        let offset = (self.seed >> 8) + 3 * u64::from(rank) + salt;
        // One call in four has whole units alone.
        match self.seed % 4 {
            0 => 0,
            _ => offset as usize % 17,
        }
    }
}

/// What is left to check once a call has ended.
type Check = Box<dyn FnOnce()>;

fn gather<T: Moved>(comm: &mut Comm, case: Case) -> Check {
    let (rank, world_size) = (comm.rank(), comm.world_size());
    let own = moved_input::<T>(case.seed, rank, case.len);
    let mut whole = vec![T::from_word(1); case.len * world_size as usize];
    if case.in_place {
        whole[rank as usize * case.len..][..case.len].copy_from_slice(&own);
    }
    let mut output = View::new(case.begin(rank, 5), &whole);
    let range = output.range();
    let input = View::new(case.begin(rank, 0), &own);
    if case.in_place {
        comm.all_gather_in_place(&mut output.buffer.slice_mut(range))
    } else {
        let from = input.buffer.slice(input.range());
        comm.all_gather(&from, &mut output.buffer.slice_mut(range))
    }
    .unwrap();
    Box::new(move || {
        let inputs = moved_inputs::<T>(case.seed, world_size, case.len);
        let expected = reference::all_gather(&slices(&inputs));
        assert_words(&output.take(&case), &expected, &case);
        assert_words(&input.take(&case), &own, &case);
    })
}

fn scatter<T: TestElement + Moved>(comm: &mut Comm, case: Case) -> Check {
    let (rank, world_size) = (comm.rank(), comm.world_size());
    let len = case.len * world_size as usize;
    let content = [Content::Ordinary, Content::Special, Content::Sentinel][case.seed as usize % 3];
    let inputs: Vec<Vec<T>> = (0..world_size)
        .map(|rank| input(case.seed, rank, len, content))
        .collect();
    let own = inputs[rank as usize].clone();
    let mut whole = View::new(case.begin(rank, 0), &own);
    let mut output = View::new(case.begin(rank, 5), &vec![T::from_word(1); case.len]);
    if case.in_place {
        let range = whole.range();
        comm.reduce_scatter_in_place(&mut whole.buffer.slice_mut(range))
    } else {
        let range = output.range();
        let from = whole.buffer.slice(whole.range());
        comm.reduce_scatter(&from, &mut output.buffer.slice_mut(range))
    }
    .unwrap();
    Box::new(move || {
        let sum = reference::reduce_scatter(&slices(&inputs), rank as usize);
        let mut kept = own;
        if case.in_place {
            kept[rank as usize * case.len..][..case.len].copy_from_slice(&sum);
        } else {
            assert_bits(&output.take(&case), &sum, &case);
        }
        assert_bits(&whole.take(&case), &kept, &case);
    })
}

fn broadcast<T: Moved>(comm: &mut Comm, case: Case) -> Check {
    let Operation::Broadcast { root } = case.operation else {
        unreachable!("{case:?}");
    };
    let (rank, world_size) = (comm.rank(), comm.world_size());
    let own = moved_input::<T>(case.seed, rank, case.len);
    let mut buffer = View::new(case.begin(rank, 0), &own);
    let range = buffer.range();
    comm.broadcast(&mut buffer.buffer.slice_mut(range), root)
        .unwrap();
    Box::new(move || {
        let buffers = moved_inputs::<T>(case.seed, world_size, case.len);
        let expected = reference::broadcast(&slices(&buffers), root as usize);
        assert_words(&buffer.take(&case), &expected, &case);
    })
}

fn reduce<T: TestElement>(comm: &mut Comm, case: Case) -> Check {
    let own = input::<T>(case.seed, comm.rank(), case.len, Content::Special);
    let mut buffer = EmulatorBuffer::from_slice(&own);
    comm.all_reduce_in_place(&mut buffer).unwrap();
    let sum = expected::<T>(case.seed, comm.world_size(), case.len, Content::Special);
    Box::new(move || assert_bits(&buffer.to_vec(), &sum, &case))
}

fn call(comm: &mut Comm, case: Case) -> Check {
    let staged: Vec<Route> = Route::ALL
        .into_iter()
        .filter(|it| !it.is_symmetric())
        .collect();
    let route = staged[case.seed as usize % staged.len()];
    comm.force_plan(plan(route, case.blocks, case.threads))
        .unwrap();
    macro_rules! of_type {
        ($call:ident, [$($number:ty),* $(,)?]) => {{
            let calls: &[&dyn Fn(&mut Comm) -> Check] =
                &[$(&|comm: &mut Comm| $call::<$number>(comm, case)),*];
            calls[case.dtype % calls.len()](comm)
        }};
    }
    match case.operation {
        Operation::AllGather => of_type!(gather, [f16, bf16, f32, u8, i8, u32, i32, u64, i64]),
        Operation::ReduceScatter => of_type!(scatter, [f16, bf16, f32]),
        Operation::Broadcast { .. } => {
            of_type!(broadcast, [f16, bf16, f32, u8, i8, u32, i32, u64, i64])
        }
        _ => of_type!(reduce, [f16, bf16, f32]),
    }
}

/// Makes calls that follow each other without a wait, a few at a time.
fn run(comm: &mut Comm, cases: &[Case]) {
    for some in cases.chunks(6) {
        let checks: Vec<Check> = some.iter().map(|&case| call(comm, case)).collect();
        comm.synchronize().unwrap();
        checks.into_iter().for_each(|check| check());
    }
}

#[test]
fn every_bit_arrives_whatever_the_type_the_length_the_alignment_and_the_calls_around() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    for world_size in 2..=8 {
        let mut random = fastrand::Rng::with_seed(seed ^ u64::from(world_size));
        let count = 300 / world_size;
        let cases: Vec<Case> = (0..count)
            .map(|_| Case::random(&mut random, world_size))
            .collect();
        on_ranks(world_size, settings, |comm| run(comm, &cases));
    }
}

#[test]
fn calls_larger_than_the_slots_go_in_pieces() {
    for world_size in [2, 3, 8] {
        // The least that a communicator has: a few groups of slots.
        let small = || settings().push_half_bytes(1);
        let operations = [
            Operation::AllGather,
            Operation::ReduceScatter,
            Operation::Broadcast { root: 1 },
        ];
        let cases: Vec<Case> = (0..27)
            .map(|index| Case {
                operation: operations[index % 3],
                dtype: index / 3,
                len: 5000 + 7 * index,
                blocks: 2,
                threads: 8,
                in_place: index % 2 == 0,
                seed: index as u64,
            })
            .collect();
        on_ranks(world_size, small, |comm| run(comm, &cases));
    }
}

#[test]
fn captured_calls_replay_with_the_data_that_is_there_then() {
    const LEN: usize = 333;
    on_ranks(3, settings, |comm| {
        let (rank, world_size) = (comm.rank(), comm.world_size());
        let mut part = EmulatorBuffer::<f32>::zeroed(LEN);
        let mut gathered = EmulatorBuffer::<f32>::zeroed(3 * LEN);
        let mut scattered = EmulatorBuffer::<f32>::zeroed(LEN);
        let mut tokens = EmulatorBuffer::<u32>::zeroed(LEN);
        let mut part = Held::new(&mut part);
        let mut gathered = Held::new(&mut gathered);
        let mut scattered = Held::new(&mut scattered);
        let mut tokens = Held::new(&mut tokens);
        let graph = comm
            .capture(|capture| {
                capture.all_gather(&part, &mut gathered)?;
                capture.reduce_scatter(&gathered, &mut scattered)?;
                capture.broadcast(&mut tokens, 2)?;
                capture.all_gather_in_place(&mut gathered)?;
                capture.reduce_scatter_in_place(&mut gathered)
            })
            .unwrap();
        for replay in 0..30 {
            let parts: Vec<Vec<f32>> = (0..world_size)
                .map(|rank| input(replay, rank, LEN, Content::Special))
                .collect();
            let sent = moved_inputs::<u32>(replay, world_size, LEN);
            part.as_view_mut().copy_from_slice(&parts[rank as usize]);
            tokens.as_view_mut().copy_from_slice(&sent[rank as usize]);
            graph.launch(comm).unwrap();
            comm.synchronize().unwrap();
            let all = reference::all_gather(&slices(&parts));
            let same = vec![all.as_slice(); world_size as usize];
            let sum = reference::reduce_scatter(&same, rank as usize);
            assert_bits(&scattered.to_vec(), &sum, &replay);
            assert_words(&tokens.to_vec(), &sent[2], &replay);
            let mut kept = all;
            kept[rank as usize * LEN..][..LEN].copy_from_slice(&sum);
            assert_bits(&gathered.to_vec(), &kept, &replay);
        }
    });
}

#[test]
fn symmetric_buffers_are_taken_as_any_other_memory() {
    on_ranks(2, settings, |comm| {
        let mut symmetric = comm.symmetric_alloc::<f32>(64).unwrap();
        let own = input::<f32>(5, comm.rank(), 64, Content::Special);
        symmetric.as_view_mut().copy_from_slice(&own);
        let inputs: Vec<Vec<f32>> = (0..2)
            .map(|rank| input(5, rank, 64, Content::Special))
            .collect();
        let mut output = EmulatorBuffer::<f32>::zeroed(128);
        comm.all_gather(&*symmetric, &mut output).unwrap();
        comm.reduce_scatter_in_place(&mut symmetric.as_view_mut())
            .unwrap();
        comm.synchronize().unwrap();
        assert_bits(
            &output.to_vec(),
            &reference::all_gather(&slices(&inputs)),
            &"gather",
        );
        let sum = reference::reduce_scatter(&slices(&inputs), comm.rank() as usize);
        let begin = 32 * comm.rank() as usize;
        assert_bits(&symmetric.to_vec()[begin..begin + 32], &sum, &"scatter");
    });
}

#[test]
fn a_group_of_one_copies_its_input() {
    on_ranks(1, settings, |comm| {
        let input = EmulatorBuffer::from_slice(&[1u8, 2, 3]);
        let mut output = EmulatorBuffer::<u8>::zeroed(3);
        comm.all_gather(&input, &mut output).unwrap();
        comm.broadcast(&mut output, 0).unwrap();
        assert_eq!(output.to_vec(), [1, 2, 3]);
        let numbers = EmulatorBuffer::from_slice(&[1f32, f32::INFINITY]);
        let mut sum = EmulatorBuffer::<f32>::zeroed(2);
        comm.reduce_scatter(&numbers, &mut sum).unwrap();
        comm.synchronize().unwrap();
        assert_eq!(sum.to_vec(), [1.0, f32::INFINITY]);
    });
}

#[test]
fn what_does_not_fit_is_refused_and_harms_nothing() {
    on_ranks(3, settings, |comm| {
        let part = EmulatorBuffer::<f32>::zeroed(4);
        let mut part_out = EmulatorBuffer::<f32>::zeroed(4);
        let whole = EmulatorBuffer::<f32>::zeroed(11);
        let mut whole_out = EmulatorBuffer::<f32>::zeroed(11);
        let refusals = [
            (
                comm.all_gather(&part, &mut whole_out),
                "all_gather over 3 ranks: the output has 11 elements and the input 4; the first \
                 must be 3 times as long as the second",
            ),
            (
                comm.reduce_scatter(&whole, &mut part_out),
                "reduce_scatter over 3 ranks: the input has 11 elements and the output 4; the \
                 first must be 3 times as long as the second",
            ),
            (
                comm.all_gather_in_place(&mut whole_out),
                "all_gather in place over 3 ranks: 11 elements are no multiple of 3, so the ranks' \
                 chunks would differ in length",
            ),
            (
                comm.reduce_scatter_in_place(&mut whole_out),
                "reduce_scatter in place over 3 ranks: 11 elements are no multiple of 3, so the \
                 ranks' chunks would differ in length",
            ),
            (
                comm.broadcast(&mut whole_out, 3),
                "there is no rank 3 to broadcast from: the group has ranks 0 to 2",
            ),
        ];
        for (refusal, message) in refusals {
            let refusal: Error = refusal.unwrap_err();
            assert_eq!(refusal.to_string(), message);
        }
        let empty = EmulatorBuffer::<u64>::zeroed(0);
        let mut nothing = EmulatorBuffer::<u64>::zeroed(0);
        comm.all_gather(&empty, &mut nothing).unwrap();
        comm.broadcast(&mut nothing, 2).unwrap();
        comm.broadcast(&mut whole_out, 2).unwrap();
        comm.synchronize().unwrap();
    });
}
