use std::rc::Rc;

use anyhow::anyhow;
use peersum::cudarc::driver::{DeviceRepr, ValidAsZeroBits};

/// One rank of a model that is split over several.
#[derive(Debug)]
pub(crate) struct TensorParallel {
    comm: Rc<Comm>,
}

/// An id for the other ranks, as text.
pub(crate) fn new_id() -> anyhow::Result<String> {
    let id = Id::new().map_err(|error| anyhow!("{error:?}"))?;
    let bytes = id.internal().iter();
    Ok(bytes.map(|&byte| format!("{:02x}", byte as u8)).collect())
}

/// The id in such a text.
pub(crate) fn decode(text: &str) -> Option<Id> {
    let mut internal = [0; 128];
    for (place, digits) in internal.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).ok()?;
        *place = u8::from_str_radix(digits, 16).ok()? as core::ffi::c_char;
    }
    Some(Id::uninit(internal))
}

impl TensorParallel {
    pub(crate) fn new(
        stream: Stream,
        rank: usize,
        world_size: usize,
        id: Id,
    ) -> anyhow::Result<Self> {
        let comm = Comm::from_rank(stream, rank, world_size, id)
            .map_err(|error| anyhow!("rank {rank} of {world_size}: {error:?}"))?;
        Ok(Self {
            comm: Rc::new(comm),
        })
    }

    fn explain(&self, error: NcclError) -> anyhow::Error {
        anyhow!("rank {}: {error:?}", self.comm.rank())
    }

    /// The output of a row-parallel layer.
    pub(crate) fn reduce<T: NcclType + DeviceRepr + ValidAsZeroBits>(
        &self,
        partial: &Buffer<T>,
    ) -> anyhow::Result<Buffer<T>> {
        let mut sum = self.comm.stream().alloc_zeros::<T>(partial.len())?;
        self.sum(partial, &mut sum)
            .map_err(|error| self.explain(error))?;
        Ok(sum)
    }

    fn sum<T: NcclType>(&self, partial: &Buffer<T>, sum: &mut Buffer<T>) -> Result<(), NcclError> {
        if self.comm.world_size() == 1 {
            let mut whole = sum.slice_mut(..);
            self.comm
                .all_reduce(&partial.slice(..), &mut whole, &ReduceOp::Sum)?;
        } else {
            self.comm.all_reduce(partial, sum, &ReduceOp::Sum)?;
        }
        Ok(())
    }

    /// Several partial results that lie in one buffer.
    pub(crate) fn sum_in_place<T: NcclType>(
        &self,
        partials: &mut Buffer<T>,
        len: usize,
    ) -> Result<(), NcclError> {
        for begin in (0..partials.len()).step_by(len) {
            let end = partials.len().min(begin + len);
            let mut part = partials.slice_mut(begin..end);
            self.comm.all_reduce_in_place(&mut part, &ReduceOp::Sum)?;
        }
        Ok(())
    }

    /// The logits of the whole vocabulary, or all rows of a sequence-parallel layer.
    pub(crate) fn gather<T: NcclType + DeviceRepr + ValidAsZeroBits>(
        &self,
        part: &Buffer<T>,
    ) -> anyhow::Result<Buffer<T>> {
        let len = part.len() * self.comm.world_size();
        let mut whole = self.comm.stream().alloc_zeros::<T>(len)?;
        self.comm
            .all_gather(part, &mut whole)
            .map_err(|error| self.explain(error))?;
        Ok(whole)
    }

    /// This rank's rows of the output of a sequence-parallel layer.
    pub(crate) fn scatter<T: NcclType + DeviceRepr + ValidAsZeroBits>(
        &self,
        partial: &Buffer<T>,
    ) -> anyhow::Result<Buffer<T>> {
        let len = partial.len() / self.comm.world_size();
        let mut own = self.comm.stream().alloc_zeros::<T>(len)?;
        self.comm
            .reduce_scatter(partial, &mut own, &ReduceOp::Sum)
            .map_err(|error| self.explain(error))?;
        Ok(own)
    }

    /// Puts the token that rank 0 has sampled at a place of every rank's sequence.
    pub(crate) fn put_token(
        &self,
        sampled: &Buffer<u32>,
        tokens: &mut Buffer<u32>,
        place: usize,
    ) -> Result<(), NcclError> {
        let sampled = (self.comm.rank() == 0).then_some(sampled);
        let mut place = tokens.slice_mut(place..=place);
        self.comm.broadcast(sampled, &mut place, 0)?;
        Ok(())
    }

    /// Weights that one rank has read from a file.
    pub(crate) fn share<T: NcclType>(
        &self,
        weights: &mut Buffer<T>,
        root: i32,
    ) -> Result<(), NcclError> {
        self.comm.broadcast_in_place(weights, root)?;
        Ok(())
    }
}
