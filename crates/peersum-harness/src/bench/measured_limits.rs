//! The limits of a machine, and what they mean for a call.

use peersum::dispatch::Topology;
use serde::{Deserialize, Serialize};

use super::bandwidth::bus_bytes;
use super::timing::rounded;
use crate::operation::Operation;

/// With and without programmatic dependent launch, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct ByPdl {
    pub(crate) on: f64,
    pub(crate) off: f64,
}

impl ByPdl {
    pub(crate) fn get(self, pdl: bool) -> f64 {
        if pdl { self.on } else { self.off }
    }
}

/// What the machine allows to one world size: measured by kernels that do nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Limits {
    pub(crate) world_size: u32,
    pub(crate) link: Topology,
    /// An empty kernel in a graph.
    pub(crate) empty_us: ByPdl,
    /// A kernel with one exchange of flags between all ranks, in a graph.
    pub(crate) exchange_us: ByPdl,
    /// A word from one rank to another: half of a round of a ping-pong between two streams.
    pub(crate) one_way_us: f64,
    /// Stores to the peers' memory by all ranks at once, GB/s a rank and direction.
    pub(crate) store_gb_s: f64,
    /// Where ranks share a device: a copy of so many bytes within each rank's memory, all ranks at
    /// once, in microseconds.
    pub(crate) copies: Vec<Copied>,
}

/// One size of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Copied {
    pub(crate) bytes: u64,
    pub(crate) us: f64,
}

impl Limits {
    /// No call of `bytes` bytes can take less than about this: one exchange, since every output
    /// depends on every rank, and the time that its bytes need. Over a link they are those of
    /// [`bus_bytes`]; on a shared device each rank reads its input and writes its output, which is
    /// what the copies measure, beyond what a copy of the smallest size takes.
    pub(crate) fn call_us(&self, operation: Operation, bytes: u64, pdl: bool) -> Option<f64> {
        let exchange = self.exchange_us.get(pdl);
        let moving = match self.link {
            // The copies are those of an all-reduce.
            Topology::Shared if !operation.all_reduces() => return None,
            Topology::Shared => {
                let least = self
                    .copies
                    .iter()
                    .map(|copied| copied.us)
                    .fold(f64::NAN, f64::min);
                let copied = self.copies.iter().find(|copied| copied.bytes == bytes)?;
                copied.us - least
            }
            Topology::Peer => {
                bus_bytes(operation, bytes, self.world_size) / self.store_gb_s / 1000.0
            }
            Topology::Emulator => return None,
        };
        Some(rounded(exchange + moving))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(link: Topology) -> Limits {
        Limits {
            world_size: 4,
            link,
            empty_us: ByPdl { on: 0.7, off: 1.0 },
            exchange_us: ByPdl { on: 1.5, off: 1.9 },
            one_way_us: 0.75,
            store_gb_s: 360.0,
            copies: vec![
                Copied { bytes: 16, us: 1.0 },
                Copied {
                    bytes: 1 << 20,
                    us: 3.5,
                },
            ],
        }
    }

    #[test]
    fn over_a_link_the_limit_is_an_exchange_and_the_bus_bytes() {
        // 1.5 x 720000 bytes at 360 GB/s are 3 us.
        assert_eq!(
            limits(Topology::Peer).call_us(Operation::AllReduce, 720_000, true),
            Some(4.5)
        );
        assert_eq!(
            limits(Topology::Peer).call_us(Operation::AllReduce, 720_000, false),
            Some(4.9)
        );
    }

    #[test]
    fn on_a_shared_device_the_limit_is_an_exchange_and_what_a_copy_takes_beyond_the_least() {
        assert_eq!(
            limits(Topology::Shared).call_us(Operation::AllReduce, 1 << 20, true),
            Some(4.0)
        );
        assert_eq!(
            limits(Topology::Shared).call_us(Operation::AllReduce, 16, true),
            Some(1.5)
        );
        // A size that was not copied has no limit.
        assert_eq!(
            limits(Topology::Shared).call_us(Operation::AllReduce, 4096, true),
            None
        );
    }
}
