//! One rank's calls of any operation, and what they must give.

use std::fmt;

use anyhow::{Context, Result, ensure};
use half::bf16;
use peersum::device::Device;
use peersum::{Communicator, Error, SymmetricBuffer};
use peersum_kernels::abi::PEERSUM_UNIT_BYTES;

use crate::collective::Collective;
use crate::data::{self, Content, Key};
use crate::memory::{TestBuffer, elements_of};
use crate::message::{Message, NormArrays};
use crate::norm_data::{INVERSE_SCALE, NUMBERS, NormData, NormKind};
use crate::norm_output::NormOutput;
use crate::written::{Outcome, Written};

/// What calls do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum What {
    AllReduce,
    /// With RMSNorm that writes this.
    Norm(NormOutput),
    Other(Collective),
}

impl What {
    /// Everything, with broadcasts from the first of three ranks and from the last.
    pub(crate) const ALL: [What; 8] = [
        What::AllReduce,
        What::Norm(NormOutput::Same),
        What::Norm(NormOutput::Fp8Static),
        What::Norm(NormOutput::Fp8PerToken),
        What::Other(Collective::AllGather),
        What::Other(Collective::ReduceScatter),
        What::Other(Collective::Broadcast { root: 0 }),
        What::Other(Collective::Broadcast { root: 2 }),
    ];
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::AllReduce => f.write_str("all_reduce"),
            What::Norm(NormOutput::Same) => f.write_str("all_reduce with RMSNorm"),
            What::Norm(output) => write!(f, "all_reduce with RMSNorm, {output}"),
            What::Other(collective) => write!(f, "{collective}"),
        }
    }
}

/// The rows of a call with RMSNorm.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) hidden: usize,
    /// Whether a residual is added.
    pub(crate) adds: bool,
}

/// The buffer that takes the place of the input.
pub(crate) struct Symmetric<D: Device> {
    pub(crate) buffer: SymmetricBuffer<bf16, D>,
    /// Whether it takes the place of the output too.
    pub(crate) is_in_place: bool,
}

/// A rank's calls of one kind, with their arrays. A call may be made any number of times.
pub(crate) struct Calls<D: Device> {
    device: D,
    what: What,
    norm: Option<NormKind>,
    elements: usize,
    /// `None`: the calls work in place.
    input: Option<TestBuffer<D>>,
    weight: TestBuffer<D>,
    output: Written<D>,
    residual: Written<D>,
    fp8_values: Written<D>,
    fp8_scales: Written<D>,
    /// Whether a test asked for a wrong result.
    corrupts: bool,
}

/// An element of an output that was not reduced.
fn is_nan(element: &[u8]) -> bool {
    element == 0x7FFF_u16.to_ne_bytes()
}

/// An element of an output to which nothing was moved.
fn is_ones(element: &[u8]) -> bool {
    element == [0xFF; 2]
}

/// The FP8 of an element that was not reduced.
fn is_fp8_nan(element: &[u8]) -> bool {
    element == [0x7F]
}

fn is_nan_scale(element: &[u8]) -> bool {
    elements_of::<f32>(element)[0].is_nan()
}

/// Of what no call writes to.
fn is_never(_: &[u8]) -> bool {
    false
}

impl<D: Device> Calls<D> {
    /// Calls of so many elements, of each rank if it has chunks. With RMSNorm a row has `hidden`
    /// elements. All ranks must pass the same arguments.
    pub(crate) fn new(
        communicator: &Communicator<D>,
        what: What,
        seed: u64,
        elements: usize,
        hidden: usize,
    ) -> Result<Self> {
        let rows = Rows {
            hidden,
            adds: false,
        };
        match what {
            What::Other(kind) => Self::collective(communicator, kind, seed, elements),
            What::AllReduce | What::Norm(_) => {
                Self::sum(communicator, what, seed, elements, rows, None)
            }
        }
    }

    /// All-reduces, with RMSNorm or without.
    ///
    /// # Errors
    /// The symmetric buffer is too small, or the result would not be in place though calls with FP8
    /// are; or the device refuses.
    pub(crate) fn sum(
        communicator: &Communicator<D>,
        what: What,
        seed: u64,
        elements: usize,
        rows: Rows,
        symmetric: Option<Symmetric<D>>,
    ) -> Result<Self> {
        let device = D::open(communicator.stream())?;
        let rank = communicator.rank();
        let keys = Key::of_all(seed, communicator.world_size());
        let own = data::input::<bf16>(Content::Ordinary, keys[rank as usize], elements);
        let sum = data::expected::<bf16>(Content::Ordinary, &keys, elements);
        let norm = match what {
            What::Norm(output) => Some(NormKind {
                seed,
                content: Content::Ordinary,
                hidden: rows.hidden,
                adds: rows.adds,
                output,
                numbers: NUMBERS,
                inverse_scale: INVERSE_SCALE,
            }),
            _ => None,
        };
        let has_fp8 = norm.is_some_and(|norm| norm.output.has_fp8());
        let is_in_place = symmetric.as_ref().map_or(has_fp8, |it| it.is_in_place);
        ensure!(is_in_place || !has_fp8, "FP8 is made in place only");
        let symmetric = symmetric.map(|it| TestBuffer::symmetric(&device, it.buffer, elements));
        let memory = || TestBuffer::new::<bf16>(&device, elements);
        let (input, output) = match (is_in_place, symmetric.transpose()?) {
            (true, symmetric) => (None, symmetric.map_or_else(memory, Ok)?),
            (false, symmetric) => (Some(symmetric.map_or_else(memory, Ok)?), memory()?),
        };
        if let Some(input) = &input {
            input.write(&device, &own)?;
        }
        let data = norm.map(|kind| NormData::new(&kind, &sum, rank));
        let expected = data.as_ref().map_or(&sum, |data| &data.output);
        let before = is_in_place.then_some(&own[..]);
        let output = Written::new("output", output, before, expected, is_nan);
        Self::prepared(device, what, elements, input, output, norm.zip(data))
    }

    /// A rank's message has `elements` elements, or its chunk. A root that the group does not have
    /// stands for another.
    pub(crate) fn collective(
        communicator: &Communicator<D>,
        kind: Collective,
        seed: u64,
        elements: usize,
    ) -> Result<Self> {
        let device = D::open(communicator.stream())?;
        let (rank, world_size) = (communicator.rank(), communicator.world_size());
        let kind = kind.of(world_size);
        let inputs = kind.inputs(Content::Ordinary, seed, world_size, elements);
        let (own, expected) = (&inputs[rank as usize], kind.expected(&inputs, rank));
        let output = TestBuffer::new::<bf16>(&device, expected.len())?;
        let is_broadcast = matches!(kind, Collective::Broadcast { .. });
        let is_lost = match kind {
            Collective::ReduceScatter => is_nan,
            // It keeps what it has.
            Collective::Broadcast { root } if root == rank => is_never,
            _ => is_ones,
        };
        let before = is_broadcast.then_some(&own[..]);
        let mut output = Written::new("output", output, before, &expected, is_lost);
        let input = match is_broadcast {
            true => None,
            false => Some(TestBuffer::new::<bf16>(&device, own.len())?),
        };
        if let Some(input) = &input {
            input.write(&device, own)?;
        }
        output.right_from = match kind {
            Collective::Broadcast { root } if root == rank => 0,
            // Others may have received all but the first unit.
            Collective::Broadcast { .. } => PEERSUM_UNIT_BYTES as usize / size_of::<bf16>(),
            _ => usize::MAX,
        };
        Self::prepared(device, What::Other(kind), elements, input, output, None)
    }

    fn prepared(
        device: D,
        what: What,
        elements: usize,
        input: Option<TestBuffer<D>>,
        output: Written<D>,
        norm: Option<(NormKind, NormData<bf16>)>,
    ) -> Result<Self> {
        let (norm, data) = norm.unzip();
        let data = data.unwrap_or_default();
        let buffer = |len| TestBuffer::new::<bf16>(&device, len);
        let weight = buffer(data.weight.len())?;
        weight.write(&device, &data.weight)?;
        let (residual, kept) = (&data.residual, &data.kept);
        let memory = buffer(residual.len())?;
        let mut residual = Written::new("residual", memory, Some(residual), kept, is_nan);
        residual.may_stay = true;
        let values = &data.fp8_values;
        let memory = TestBuffer::new::<u8>(&device, values.len())?;
        let fp8_values = Written::new("FP8", memory, None, values, is_fp8_nan);
        let scales = &data.fp8_scales;
        let memory = TestBuffer::new::<f32>(&device, scales.len())?;
        let mut fp8_scales = Written::new("scales", memory, None, scales, is_nan_scale);
        if norm.is_some_and(|norm| norm.output == NormOutput::Fp8Static) {
            let memory = fp8_scales.buffer;
            fp8_scales = Written::new("scale", memory, Some(scales), scales, is_never);
            fp8_scales.right_from = 0;
        }
        let calls = Calls {
            device,
            what,
            norm,
            elements,
            input,
            weight,
            output,
            residual,
            fp8_values,
            fp8_scales,
            corrupts: false,
        };
        calls.prepare()?;
        Ok(calls)
    }

    /// Whether the result of a call replaces the data that all ranks sum. Such a call has to be
    /// prepared each time.
    pub(crate) fn is_in_place(&self) -> bool {
        self.input.is_none() && !matches!(self.what, What::Other(_))
    }

    /// Makes results wrong before they are checked, for a test.
    pub(crate) fn corrupt(&mut self, corrupts: bool) {
        self.corrupts = corrupts;
    }

    fn written(&self) -> [&Written<D>; 4] {
        [
            &self.output,
            &self.residual,
            &self.fp8_values,
            &self.fp8_scales,
        ]
    }

    /// Poisons what the next call writes, and writes what it reads.
    pub(crate) fn prepare(&self) -> Result<()> {
        let mut written = self.written().into_iter();
        written.try_for_each(|array| array.prepare(&self.device))
    }

    pub(crate) fn call(&self, communicator: &mut Communicator<D>) -> Result<(), Error> {
        let message = Message {
            device: &self.device,
            input: self.input.as_ref().map(TestBuffer::address),
            output: self.output.buffer.address(),
            elements: self.elements,
        };
        // SAFETY: each array has as many elements as its constructor has given it for these calls,
        // and `self` keeps it until they have ended.
        unsafe {
            match (self.what, self.norm) {
                (What::Other(Collective::ReduceScatter), _) => {
                    message.reduce_scatter::<bf16>(communicator)
                }
                (What::Other(kind), _) => message.move_data::<bf16>(communicator, kind),
                (_, None) => message.all_reduce::<bf16>(communicator),
                (_, Some(kind)) => {
                    let arrays = NormArrays {
                        weight: self.weight.address(),
                        residual: kind.adds.then(|| self.residual.buffer.address()),
                        fp8_values: self.fp8_values.buffer.address(),
                        fp8_scales: self.fp8_scales.buffer.address(),
                        output: kind.output,
                        hidden: kind.hidden,
                        numbers: kind.numbers,
                    };
                    message.rms_norm::<bf16>(communicator, arrays)
                }
            }
        }
    }

    /// Checks the result: right if the calls succeeded, right or lost if they failed, the old
    /// contents if nothing was launched. The residual may also stay if they failed.
    pub(crate) fn check(&self, outcome: Outcome) -> Result<()> {
        let mut written = self.written().into_iter().enumerate();
        let checked = written.try_for_each(|(index, array)| {
            let corrupts = self.corrupts && index == 0;
            array.check(&self.device, outcome, corrupts)
        });
        checked.context(self.what)
    }

    pub(crate) fn ensure_result(&self) -> Result<()> {
        self.check(Outcome::Succeeded)
    }

    /// Fails unless everything is lost that a call writes, as after one in which a rank had no
    /// part: NaN, or ones in all bits. Of a broadcast the root keeps what it has, and others may
    /// have received all but the first unit.
    pub(crate) fn ensure_lost(&self) -> Result<()> {
        let mut written = self.written().into_iter();
        let lost = written.try_for_each(|array| array.ensure_lost(&self.device));
        lost.context("an output that was not reduced")
    }

    /// Fails unless everything is as [`Calls::prepare`] has left it.
    pub(crate) fn ensure_untouched(&self) -> Result<()> {
        let untouched = self.check(Outcome::Refused);
        untouched.context("the output of a refused call")
    }
}
