//! One rank's calls of any operation, and what they must give.

use std::fmt;

use anyhow::{Context, Result, ensure};
use half::bf16;
use peersum::device::Device;
use peersum::{Communicator, Error, Scalar, SymmetricBuffer};
use serde::{Deserialize, Serialize};

use crate::call::{
    Array, CallKind, INVERSE_SCALE, Loss, MoveCall, NUMBERS, NormKind, Outcome, RankCall, Role,
    SumCall, norm_call,
};
use crate::collective::Collective;
use crate::data::{Content, Key};
use crate::memory::TestBuffer;
use crate::norm_output::NormOutput;

/// What calls do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    rank: u32,
    what: What,
    call: RankCall,
    /// One for each array of the call.
    buffers: Vec<TestBuffer<D>>,
    /// Whether a test asked for a wrong result.
    corrupts: bool,
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
        let adds = false;
        let rows = Rows { hidden, adds };
        Self::with(communicator, what, seed, elements, rows, None)
    }

    /// The same with a residual, or with a symmetric buffer.
    ///
    /// # Errors
    /// The symmetric buffer is too small, or the result would not be in place though calls with FP8
    /// are; or the device refuses.
    pub(crate) fn with(
        communicator: &Communicator<D>,
        what: What,
        seed: u64,
        elements: usize,
        rows: Rows,
        symmetric: Option<Symmetric<D>>,
    ) -> Result<Self> {
        let (rank, world_size) = (communicator.rank(), communicator.world_size());
        let keys = Key::of_all(seed, world_size);
        let has_fp8 = matches!(what, What::Norm(output) if output.has_fp8());
        let is_in_place = symmetric.as_ref().map_or(has_fp8, |it| it.is_in_place);
        ensure!(is_in_place || !has_fp8, "FP8 is made in place only");
        let content = Content::Ordinary;
        let sum = SumCall::aligned(None, elements, symmetric.is_some(), is_in_place, content);
        let call = match what {
            What::AllReduce => sum.of_rank(bf16::DTYPE, &keys, rank),
            What::Norm(output) => {
                let kind = NormKind {
                    seed,
                    content,
                    hidden: rows.hidden,
                    adds: rows.adds,
                    output,
                    numbers: NUMBERS,
                    inverse_scale: INVERSE_SCALE,
                };
                norm_call(&sum, bf16::DTYPE, kind, &keys, rank)
            }
            What::Other(kind) => {
                let kind = kind.of(world_size);
                let call = MoveCall {
                    kind,
                    dtype: bf16::DTYPE,
                    elements,
                    is_unaligned: false,
                    in_place: matches!(kind, Collective::Broadcast { .. }),
                    content,
                };
                call.with_marks(&keys, rank)
            }
        };
        Self::of(communicator, what, call, symmetric)
    }

    /// This call of this rank.
    pub(crate) fn of(
        communicator: &Communicator<D>,
        what: What,
        call: RankCall,
        mut symmetric: Option<Symmetric<D>>,
    ) -> Result<Self> {
        let device = D::open(communicator.stream())?;
        let buffer = |array: &Array| match symmetric.take_if(|_| array.is_symmetric) {
            Some(it) => TestBuffer::symmetric(&device, it.buffer, array.elements),
            None => TestBuffer::new::<u8>(&device, array.bytes()),
        };
        let calls = Calls {
            buffers: call.arrays.iter().map(buffer).collect::<Result<_>>()?,
            device,
            rank: communicator.rank(),
            what,
            call,
            corrupts: false,
        };
        calls.prepare()?;
        Ok(calls)
    }

    /// Whether the result of a call replaces the data that all ranks sum. Such a call has to be
    /// prepared each time.
    pub(crate) fn is_in_place(&self) -> bool {
        self.call.array(Role::Input).is_none() && !matches!(self.call.kind, CallKind::Other(_))
    }

    /// Makes results wrong before they are checked, for a test.
    pub(crate) fn corrupt(&mut self, corrupts: bool) {
        self.corrupts = corrupts;
    }

    fn arrays(&self) -> impl Iterator<Item = (&Array, &TestBuffer<D>)> {
        self.call.arrays.iter().zip(&self.buffers)
    }

    /// Poisons what the next call writes, and writes what it reads.
    pub(crate) fn prepare(&self) -> Result<()> {
        for (array, buffer) in self.arrays() {
            buffer.poison(&self.device)?;
            buffer.write(&self.device, &array.before())?;
        }
        Ok(())
    }

    pub(crate) fn call(&self, communicator: &mut Communicator<D>) -> Result<(), Error> {
        let address = |wanted: &Array| {
            let mut arrays = self.arrays().filter(|(array, _)| array.role == wanted.role);
            arrays.next().map_or(0, |(_, buffer)| buffer.address())
        };
        // SAFETY: each buffer is as large as its array, and `self` keeps it until its calls have
        // ended.
        unsafe { self.call.launch(&self.device, communicator, address) }
    }

    /// Fails unless `is_right(loss, index, found, before, after)` for each element of each array.
    /// `demand` says what that is.
    fn check_each(
        &self,
        demand: &str,
        is_right: impl Fn(&Loss, usize, &[u8], &[u8], &[u8]) -> bool,
    ) -> Result<()> {
        for (array, buffer) in self.arrays() {
            let (what, role, bytes) = (self.what, array.role, array.element_bytes);
            let loss = Loss::of(&self.call, array, self.rank);
            let (mut found, intact) = buffer.read::<u8>(&self.device)?;
            ensure!(intact, "{what}: memory beside the {role} was written");
            if self.corrupts && role == Role::Output {
                found[0] ^= 1;
            }
            let (before, after) = (array.before(), array.after.bytes());
            let old = before.chunks_exact(bytes);
            let new = after.chunks_exact(bytes);
            let elements = found.chunks_exact(bytes).zip(old.zip(new)).enumerate();
            for (index, (found, (before, after))) in elements {
                ensure!(
                    is_right(&loss, index, found, before, after),
                    "{what}: element {index} of the {role} has the bytes {found:02x?}, those of \
                     the reference are {after:02x?} ({demand})"
                );
            }
        }
        Ok(())
    }

    /// Checks the result: right if the calls succeeded, right or lost if they failed, the old
    /// contents if nothing was launched. The residual may also stay if they failed.
    pub(crate) fn check(&self, outcome: Outcome) -> Result<()> {
        let demand = format!("{outcome:?}");
        self.check_each(&demand, |loss, _, found, before, after| match outcome {
            Outcome::Succeeded => found == after,
            Outcome::Failed => {
                found == after || (loss.is_lost)(found) || loss.may_stay && found == before
            }
            Outcome::Refused => found == before,
        })
    }

    pub(crate) fn ensure_result(&self) -> Result<()> {
        self.check(Outcome::Succeeded)
    }

    /// Fails unless everything is lost that a call writes, as after one in which a rank had no
    /// part: NaN, or ones in all bits. Of a broadcast the root keeps what it has, and others may
    /// have received all but the first unit.
    pub(crate) fn ensure_lost(&self) -> Result<()> {
        let lost = self.check_each("must be lost", |loss, index, found, _, after| {
            loss.may_stay || (loss.is_lost)(found) || index >= loss.right_from && found == after
        });
        lost.context("an output that was not reduced")
    }

    /// Fails unless everything is as [`Calls::prepare`] has left it.
    pub(crate) fn ensure_untouched(&self) -> Result<()> {
        let untouched = self.check(Outcome::Refused);
        untouched.context("the output of a refused call")
    }
}
