use std::rc::Rc;
use std::sync::Arc;

use anyhow::anyhow;
use peersum::cudarc::driver::{CudaSlice, CudaStream, DeviceRepr, ValidAsZeroBits};

/// A layer whose partial results are summed over the ranks.
#[derive(Debug)]
pub(crate) struct RowParallel {
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

impl RowParallel {
    pub(crate) fn new(
        stream: Arc<CudaStream>,
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

    pub(crate) fn forward<T: NcclType + DeviceRepr + ValidAsZeroBits>(
        &self,
        partial: &CudaSlice<T>,
    ) -> anyhow::Result<CudaSlice<T>> {
        let mut sum = self.comm.stream().alloc_zeros::<T>(partial.len())?;
        self.sum(partial, &mut sum)
            .map_err(|error| anyhow!("rank {}: {error:?}", self.comm.rank()))?;
        Ok(sum)
    }

    fn sum<T: NcclType>(
        &self,
        partial: &CudaSlice<T>,
        sum: &mut CudaSlice<T>,
    ) -> Result<(), NcclError> {
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
        partials: &mut CudaSlice<T>,
        len: usize,
    ) -> Result<(), NcclError> {
        for begin in (0..partials.len()).step_by(len) {
            let end = partials.len().min(begin + len);
            let mut part = partials.slice_mut(begin..end);
            self.comm.all_reduce_in_place(&mut part, &ReduceOp::Sum)?;
        }
        Ok(())
    }
}
