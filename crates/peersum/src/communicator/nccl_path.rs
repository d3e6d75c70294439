//! Calls that go to NCCL: which, how its ranks meet, how it ends.

use core::ffi::c_char;

use super::agreement::gather;
use super::builder::CommunicatorBuilder;
use super::prepared::Call;
use super::state::Communicator;
use super::stream_claim::StreamClaim;
use crate::device::{Device, DeviceStream};
use crate::dispatch::{DispatchTables, Topology};
use crate::error::Error;
use crate::nccl::{AcrossHosts, Link};
use crate::rendezvous::RendezvousError;

impl CommunicatorBuilder {
    pub(super) fn refuse_nccl_on_shared_devices(&self, shares_device: bool) -> Result<(), Error> {
        if shares_device && self.above_range.is_some() {
            return Err(Error::invalid(
                "above_range",
                "ranks of this group share a device, which NCCL refuses by default: leave \
                 above_range out, and larger calls go through peersum's kernels in pieces",
            ));
        }
        Ok(())
    }
}

/// A rank of a group that has no rendezvous and none of peersum's kernels.
pub(super) fn build_across_hosts<S: DeviceStream>(
    builder: CommunicatorBuilder,
    across_hosts: AcrossHosts,
    stream: &S,
) -> Result<Communicator<S::Device>, Error> {
    let AcrossHosts {
        id,
        rank,
        world_size,
    } = across_hosts;
    if builder.rendezvous.is_some() {
        return Err(Error::invalid(
            "above_range",
            "a group across hosts has NCCL's id in the place of a rendezvous; give one of the two",
        ));
    }
    if rank >= world_size {
        return Err(RendezvousError::InvalidRank { rank, world_size }.into());
    }
    let device = S::Device::open(stream)?;
    let claim = StreamClaim::new::<S::Device>(device.stream_id())?;
    let identity = device.identity()?;
    let nccl = match &builder.above_range {
        Some(nccl) if world_size > 1 => {
            // Makes the device the one that NCCL finds.
            device.library_stream()?;
            Some(Link::connect(nccl.open()?, id, rank, world_size, 0)?)
        }
        _ => None,
    };
    // No call is ever looked up in it.
    let table = DispatchTables::shipped()?.choose(None, 2, Topology::Peer)?;
    let alone = builder.load_alone(&device, &identity);
    let mut communicator =
        Communicator::unconnected(&builder, device, identity, table, claim, rank, world_size);
    communicator.alone = alone;
    communicator.nccl = nccl;
    Ok(communicator)
}

impl<D: Device> Communicator<D> {
    /// Lets NCCL's ranks meet. This is the last step of set-up, when nothing else can fail on one
    /// rank alone.
    pub(super) fn connect_nccl(&mut self, builder: &CommunicatorBuilder) -> Result<(), Error> {
        let (Some(nccl), Some(group), true) = (
            &builder.above_range,
            self.group.as_mut(),
            self.connected.is_some(),
        ) else {
            return Ok(());
        };
        let connected = nccl.open().and_then(|library| {
            let own: Vec<c_char> = match self.rank {
                0 => library.unique_id()?.to_vec(),
                _ => Vec::new(),
            };
            let ids = gather(group, "NCCL id", &own, self.setup_timeout)?;
            let id = ids.into_iter().next().and_then(|id| id.try_into().ok());
            let Some(id) = id else {
                return Err(RendezvousError::Protocol {
                    rank: 0,
                    detail: "its NCCL id is not of 128 bytes".to_owned(),
                }
                .into());
            };
            self.device.library_stream()?;
            Link::connect(library, id, self.rank, self.world_size, builder.max_bytes)
        });
        match connected {
            Ok(link) => {
                self.nccl = Some(link);
                Ok(())
            }
            Err(error) => {
                if let Some(group) = self.group.take() {
                    group.abandon(&error.to_string());
                }
                Err(error)
            }
        }
    }

    /// NCCL, if it carries out a call of so many bytes. A forced plan is one of peersum's kernels.
    pub(super) fn nccl_for(&self, bytes: u64) -> Option<&Link> {
        self.nccl.as_ref().filter(|nccl| {
            bytes > nccl.above_bytes && (self.forced.is_none() || self.connected.is_none())
        })
    }

    pub(super) fn enqueue_to_nccl(&self, nccl: &Link, call: Call) -> Result<(), Error> {
        let stream = self.device.library_stream()?;
        // SAFETY: `Input` and `Output` vouch for both ranges for whatever is enqueued on the
        // communicator's stream, which this is, with its context current.
        unsafe { nccl.all_reduce(call.dtype, call.input, call.output, call.elements, stream) }
    }

    /// Errors that NCCL has noticed on its own.
    pub(super) fn check_nccl(&self) -> Result<(), Error> {
        self.nccl.as_ref().map_or(Ok(()), Link::check)
    }

    pub(super) fn close_nccl(&mut self) {
        let Some(nccl) = self.nccl.take() else {
            return;
        };
        // If a rank is known to have failed, only the abort ends the calls that wait for it.
        if self.status().is_ok() && nccl.check().is_ok() {
            // After an error there is nothing to wait for.
            let _ = self.device.synchronize();
        }
    }
}
