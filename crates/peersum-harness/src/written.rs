//! An array that a rank's calls write, and what it may hold after them.

use anyhow::{Result, ensure};
use peersum::device::Device;
use peersum::Scalar;

use crate::data::bytes_of;
use crate::memory::{POISON, TestBuffer};

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was refused, and nothing was launched.
    Refused,
    Failed,
    Succeeded,
}

/// The array of one rank, whatever the type of its elements.
pub(crate) struct Written<D: Device> {
    pub(crate) buffer: TestBuffer<D>,
    name: &'static str,
    element_bytes: usize,
    /// What it holds before a call. Poison, if a call does not read it.
    before: Vec<u8>,
    /// What a call that succeeds leaves.
    after: Vec<u8>,
    /// Whether an element is one that was written because the call has failed.
    is_lost: fn(&[u8]) -> bool,
    /// From which element on a call in which a rank had no part may leave the right ones.
    pub(crate) right_from: usize,
    /// Whether a call that fails may leave what was there. Then nothing has to be lost.
    pub(crate) may_stay: bool,
}

impl<D: Device> Written<D> {
    /// What a call does not read of it is poisoned.
    pub(crate) fn new<T: Scalar>(
        name: &'static str,
        buffer: TestBuffer<D>,
        before: Option<&[T]>,
        after: &[T],
        is_lost: fn(&[u8]) -> bool,
    ) -> Self {
        let after = bytes_of(after).to_vec();
        Written {
            buffer,
            name,
            element_bytes: size_of::<T>(),
            before: before.map_or(vec![POISON; after.len()], |it| bytes_of(it).to_vec()),
            after,
            is_lost,
            right_from: usize::MAX,
            may_stay: false,
        }
    }

    /// Restores what the array holds before a call.
    pub(crate) fn prepare(&self, device: &D) -> Result<()> {
        self.buffer.poison(device)?;
        self.buffer.write(device, &self.before)
    }

    /// Fails unless `is_right(index, found, before, after)` for each element. `demand` says what
    /// that is.
    fn check_each(
        &self,
        device: &D,
        demand: &str,
        corrupts: bool,
        is_right: impl Fn(usize, &[u8], &[u8], &[u8]) -> bool,
    ) -> Result<()> {
        let (name, bytes) = (self.name, self.element_bytes);
        let (mut found, intact) = self.buffer.read::<u8>(device)?;
        ensure!(intact, "memory beside the {name} was written");
        if corrupts && !found.is_empty() {
            found[0] ^= 1;
        }
        let old = self.before.chunks_exact(bytes);
        let new = self.after.chunks_exact(bytes);
        let elements = found.chunks_exact(bytes).zip(old.zip(new)).enumerate();
        for (index, (found, (before, after))) in elements {
            ensure!(
                is_right(index, found, before, after),
                "element {index} of the {name} has the bytes {found:02x?}, those of the reference \
                 are {after:02x?} ({demand})"
            );
        }
        Ok(())
    }

    /// Right if the call succeeded, right or lost if it failed, the old contents if it was refused.
    pub(crate) fn check(&self, device: &D, outcome: Outcome, corrupts: bool) -> Result<()> {
        let demand = format!("{outcome:?}");
        self.check_each(
            device,
            &demand,
            corrupts,
            |_, found, before, after| match outcome {
                Outcome::Succeeded => found == after,
                Outcome::Failed => {
                    found == after || (self.is_lost)(found) || self.may_stay && found == before
                }
                Outcome::Refused => found == before,
            },
        )
    }

    /// Fails unless everything is lost that must be after a call in which a rank had no part.
    pub(crate) fn ensure_lost(&self, device: &D) -> Result<()> {
        if self.may_stay {
            return Ok(());
        }
        self.check_each(
            device,
            "must be lost",
            false,
            |index, found, _, after| match index >= self.right_from {
                true => found == after || (self.is_lost)(found),
                false => (self.is_lost)(found),
            },
        )
    }
}
