//! Bandwidths as nccl-tests define them, so that figures can be compared.

use crate::operation::Operation;

/// Algorithm bandwidth: the message over the time, in GB/s of 10^9 bytes.
pub(crate) fn algorithm_gb_s(bytes: u64, us: f64) -> f64 {
    bytes as f64 / us / 1000.0
}

/// Bytes that a call must move over each rank's link in each direction if the network itself does
/// not add: 2 (n - 1) / n of the message of an all-reduce. The message of an all-gather is its
/// output, that of a reduce-scatter its input.
pub(crate) fn bus_bytes(operation: Operation, bytes: u64, world_size: u32) -> f64 {
    let n = f64::from(world_size.max(1));
    let factor = match operation {
        Operation::AllReduce | Operation::RmsNorm => 2.0 * (n - 1.0) / n,
        Operation::AllGather | Operation::ReduceScatter => (n - 1.0) / n,
        Operation::Broadcast => 1.0,
    };
    bytes as f64 * factor
}

/// Bus bandwidth: what the links carry, whatever the number of ranks.
pub(crate) fn bus_gb_s(operation: Operation, bytes: u64, world_size: u32, us: f64) -> f64 {
    bus_bytes(operation, bytes, world_size) / us / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidths_are_those_of_nccl_tests() {
        // 4 MiB in 20 us: 209.7 GB/s.
        let algorithm = algorithm_gb_s(4 << 20, 20.0);
        assert!((algorithm - 209.7152).abs() < 1e-9, "{algorithm}");
        // The factor is 1 at two ranks, 1.5 at four, 1.75 at eight.
        for (world_size, factor) in [(2, 1.0), (4, 1.5), (8, 1.75)] {
            let bus = bus_gb_s(Operation::AllReduce, 4 << 20, world_size, 20.0);
            assert!((bus - algorithm * factor).abs() < 1e-9, "{bus}");
        }
        assert_eq!(bus_gb_s(Operation::AllReduce, 4096, 1, 1.0), 0.0);
        assert_eq!(bus_bytes(Operation::AllGather, 4096, 4), 3072.0);
        assert_eq!(bus_bytes(Operation::ReduceScatter, 4096, 2), 2048.0);
        assert_eq!(bus_bytes(Operation::Broadcast, 4096, 4), 4096.0);
    }
}
