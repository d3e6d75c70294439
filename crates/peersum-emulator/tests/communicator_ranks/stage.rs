//! Ranks as threads, their data, and the comparison with the reference.

use std::time::Duration;

use peersum::dispatch::{Plan, Route};
use peersum::reference::{self, ReferenceElement};
use peersum::{Communicator, CommunicatorBuilder, Element, Failure, Rendezvous};
use peersum_emulator::{Emulator, EmulatorBuffer, EmulatorDevice};

/// A communicator of the emulator.
pub(crate) type Comm = Communicator<Emulator>;

/// Beyond what any call that succeeds takes, however busy the machine is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What every test's communicator has unless it says otherwise.
pub(crate) fn settings() -> CommunicatorBuilder {
    Communicator::builder()
        .max_bytes(64 << 10)
        .max_blocks(3)
        .timeout(PATIENCE)
        .setup_timeout(PATIENCE)
}

/// Builds a communicator for each rank, each on a thread and a device of its own, runs `program`
/// there and returns what the ranks return.
pub(crate) fn on_ranks<T: Send>(
    world_size: u32,
    settings: impl Fn() -> CommunicatorBuilder + Sync,
    program: impl Fn(&mut Comm) -> T + Sync,
) -> Vec<T> {
    let (settings, program) = (&settings, &program);
    std::thread::scope(|scope| {
        let ranks: Vec<_> = Rendezvous::threads(world_size)
            .into_iter()
            .map(|rendezvous| scope.spawn(move || program(&mut build(settings(), rendezvous))))
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// This rank's communicator, on a new stream of the device with the rank's number.
pub(crate) fn build(settings: CommunicatorBuilder, rendezvous: Rendezvous) -> Comm {
    let stream = EmulatorDevice::new(rendezvous.rank()).stream().unwrap();
    settings.rendezvous(rendezvous).build(&stream).unwrap()
}

/// The failure in an error.
#[track_caller]
pub(crate) fn failure(outcome: Result<(), peersum::Error>) -> Failure {
    match outcome {
        Err(peersum::Error::Failed(failure)) => failure,
        other => panic!("expected a failure, not {other:?}"),
    }
}

pub(crate) fn plan(route: Route, blocks: u32, threads: u32) -> Option<Plan> {
    Some(Plan {
        route,
        blocks,
        threads,
    })
}

/// What inputs hold.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Content {
    Ordinary,
    /// Signed zeros, infinities, NaN, subnormals, the pattern of the empty slot, the largest
    /// values, at random.
    Special,
    /// The word that marks an empty slot, in every lane.
    Sentinel,
    NegativeZero,
}

/// An element type with what tests need of it.
pub(crate) trait TestElement: Element {
    const SPECIAL: &'static [Self::Bits];
    const POISON: Self::Bits;
}

impl TestElement for f32 {
    const SPECIAL: &'static [u32] = &[
        0,
        0x8000_0000,
        0x7F80_0000,
        0xFF80_0000,
        0x7FC0_0000,
        0x7FFF_FFFF,
        0xFFFF_FFFF,
        0xFFFF_0000,
        0x0000_FFFF,
        0x7F80_0001,
        1,
        0x8000_0001,
        0x007F_FFFF,
        0x7F7F_FFFF,
        0xFF7F_FFFF,
        0x3F80_0000,
    ];
    const POISON: u32 = 0xFFC0_BAD5;
}

impl TestElement for half::bf16 {
    const SPECIAL: &'static [u16] = &[
        0, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0x7FFF, 0xFFFF, 0x7F81, 1, 0x8001, 0x007F, 0x7F7F,
        0xFF7F, 0x3F80,
    ];
    const POISON: u16 = 0xFFE5;
}

impl TestElement for half::f16 {
    const SPECIAL: &'static [u16] = &[
        0, 0x8000, 0x7C00, 0xFC00, 0x7E00, 0x7FFF, 0xFFFF, 0x7C01, 1, 0x8001, 0x03FF, 0x7BFF,
        0xFBFF, 0x3C00,
    ];
    const POISON: u16 = 0xFEE5;
}

/// The input of one rank in one call: every rank can make every rank's.
pub(crate) fn input<T: TestElement>(seed: u64, rank: u32, len: usize, content: Content) -> Vec<T> {
    let mut random =
        fastrand::Rng::with_seed(seed.wrapping_mul(0x9E37_79B9) ^ u64::from(rank) << 48);
    let ordinary = |random: &mut fastrand::Rng| {
        let scale = 2f32.powi(random.i32(-12..12));
        <T as ReferenceElement>::round((random.f32() - 0.5) * scale)
    };
    let special = |index: usize| T::from_raw(T::SPECIAL[index]);
    (0..len)
        .map(|_| match content {
            Content::Ordinary => ordinary(&mut random),
            Content::Special if random.bool() => special(random.usize(..T::SPECIAL.len())),
            Content::Special => ordinary(&mut random),
            // 0xFFFF or 0xFFFF_FFFF: the sixth of each list.
            Content::Sentinel => special(6),
            Content::NegativeZero => special(1),
        })
        .collect()
}

/// What a buffer holds before a call writes to it: a NaN with a payload, which is the canonical one
/// of no type, so no result has it.
pub(crate) fn poison<T: TestElement>(len: usize) -> Vec<T> {
    vec![T::from_raw(T::POISON); len]
}

/// What every rank must have after such a call.
pub(crate) fn expected<T: TestElement>(
    seed: u64,
    world_size: u32,
    len: usize,
    content: Content,
) -> Vec<T> {
    let inputs: Vec<Vec<T>> = (0..world_size)
        .map(|rank| input(seed, rank, len, content))
        .collect();
    let inputs: Vec<&[T]> = inputs.iter().map(Vec::as_slice).collect();
    reference::all_reduce(&inputs)
}

/// Compares bits.
#[track_caller]
pub(crate) fn assert_bits<T: Element>(found: &[T], expected: &[T], context: &dyn std::fmt::Debug) {
    assert_eq!(found.len(), expected.len(), "{context:?}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            found.raw() == expected.raw(),
            "element {index}: {:#x} instead of {:#x} in {context:?}",
            found.raw(),
            expected.raw()
        );
    }
}

#[track_caller]
pub(crate) fn assert_all_nan<T: Element>(found: &[T]) {
    let finite = found.iter().position(|element| !element.widen().is_nan());
    assert_eq!(finite, None, "an output that was not reduced holds NaN");
}

/// Elements in front of and behind a view, which no call may touch.
pub(crate) struct Framed<T: TestElement> {
    pub(crate) buffer: EmulatorBuffer<T>,
    pub(crate) begin: usize,
    pub(crate) len: usize,
}

/// What the elements around a view hold.
const FRAME: f32 = 77.0;
const BEHIND: usize = 9;

impl<T: TestElement> Framed<T> {
    /// `elements` from element `begin` of a buffer on, with others on both sides.
    pub(crate) fn new(begin: usize, elements: &[T]) -> Self {
        let frame = <T as ReferenceElement>::round(FRAME);
        let mut all = vec![frame; begin];
        all.extend_from_slice(elements);
        all.extend([frame; BEHIND]);
        Framed {
            buffer: EmulatorBuffer::from_slice(&all),
            begin,
            len: elements.len(),
        }
    }

    pub(crate) fn range(&self) -> std::ops::Range<usize> {
        self.begin..self.begin + self.len
    }

    /// The view's elements, after a look at those around it.
    #[track_caller]
    pub(crate) fn take(&self, context: &dyn std::fmt::Debug) -> Vec<T> {
        let all = self.buffer.to_vec();
        let frame = <T as ReferenceElement>::round(FRAME).raw();
        let range = self.range();
        let outside = all[..range.start].iter().chain(&all[range.end..]);
        assert!(
            outside.into_iter().all(|element| element.raw() == frame),
            "elements around the view were written in {context:?}"
        );
        all[range].to_vec()
    }
}
