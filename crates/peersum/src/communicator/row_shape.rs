//! The blocks that normalise a row.

use peersum_kernels::abi;

/// Lanes of an emulated warp. The number of threads is a multiple of it, as of a warp on a GPU.
pub(super) const EMULATED_LANES: u32 = 4;

/// Warps of a block below which a row is not shared out further.
const LEAST_WARPS: u32 = 2;

/// The blocks that normalise a row, and how the row lies in the slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowShape {
    /// Blocks that share a row: if several, a cluster.
    pub(super) blocks: u32,
    /// Threads of a block that handle units.
    pub(super) threads: u32,
    /// Units of a row that each has.
    pub(super) per_thread: u32,
    /// Slots of a row from one source, in units: the counterpart of `PushedRows::slots` of the
    /// kernels.
    pub(super) slots: u32,
}

/// What a block that normalises keeps to.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowBounds {
    /// The most threads that handle units.
    pub(super) threads: u32,
    /// What the number of threads is a multiple of.
    pub(super) lanes: u32,
    /// Units that a thread of a large cluster has, if the row has as many.
    pub(super) units_in_cluster: u32,
}

impl RowBounds {
    /// Units that a thread has at least. Fewer warps have fewer sums to send to every block of a
    /// large cluster; two blocks have few of them anyway.
    fn least_units(self, cluster: u32) -> u32 {
        if cluster > 2 {
            self.units_in_cluster
        } else {
            1
        }
    }

    fn shape(self, row_units: u32, blocks: u32, threads: u32, per_thread: u32) -> RowShape {
        RowShape {
            blocks,
            threads,
            per_thread,
            slots: row_units.next_multiple_of(abi::PEERSUM_SLOT_GROUP),
        }
    }

    /// The smallest block in which each thread has as few units as possible.
    pub(super) fn one_block(self, row_units: u32) -> RowShape {
        let lanes = self.lanes;
        let fewest = row_units.div_ceil(abi::PEERSUM_MAX_ROW_UNITS_PER_THREAD);
        let most = (self.threads / lanes * lanes).max(fewest.next_multiple_of(lanes));
        let mut per_thread = 1;
        while row_units.div_ceil(per_thread) > most {
            per_thread *= 2;
        }
        let threads = row_units.div_ceil(per_thread).next_multiple_of(lanes);
        let threads = threads.max(abi::PEERSUM_MIN_THREADS.next_multiple_of(lanes));
        self.shape(row_units, 1, threads, per_thread)
    }

    /// The block of the kernel that only normalises. Each thread has at most two units, which it
    /// keeps in registers, if a block can be so large. For a row of 4096 elements of two bytes, 256
    /// threads with two units each are faster than 512 with one.
    pub(super) fn block_of_reduced(self, row_units: u32) -> RowShape {
        let threads = self.threads.min(abi::PEERSUM_MAX_THREADS / 2);
        let half = RowBounds { threads, ..self }.one_block(row_units);
        match half.per_thread {
            ..=2 => half,
            _ => self.one_block(row_units),
        }
    }

    /// The largest cluster of which every row of a call gets one, if there is one: `clusters` says
    /// how many of a size there may be. Its blocks have a power of two of threads, and none is
    /// without a unit.
    pub(super) fn cluster(
        self,
        row_units: u32,
        rows: u64,
        clusters: impl Fn(u32) -> u32,
    ) -> Option<RowShape> {
        let least = (LEAST_WARPS * self.lanes).max(abi::PEERSUM_MIN_THREADS);
        let sizes = [8, 4, 2].into_iter();
        let mut shapes = sizes.filter(|&size| rows <= u64::from(clusters(size)));
        shapes.find_map(|size| {
            let most = self.threads.min(abi::PEERSUM_MAX_CLUSTER_THREADS / size);
            let most = 1 << most.checked_ilog2()?;
            let wanted = row_units.div_ceil(size * self.least_units(size));
            let wanted = wanted.next_power_of_two();
            let threads = wanted.max(least).min(most);
            let per_thread = row_units.div_ceil(size * threads).next_power_of_two();
            let blocks = row_units.div_ceil(threads * per_thread);
            let fits = threads >= least && per_thread <= abi::PEERSUM_MAX_ROW_UNITS_PER_THREAD;
            (fits && blocks > 1).then(|| self.shape(row_units, blocks, threads, per_thread))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPU: RowBounds = RowBounds {
        threads: 320,
        lanes: abi::PEERSUM_WARP_THREADS,
        units_in_cluster: 2,
    };

    /// Blocks, threads and units a thread, with the clusters of two ranks with 132 blocks each.
    fn shape(row_units: u32, rows: u64) -> (u32, u32, u32) {
        let clusters = |size| if size > 2 { 66 / size } else { 66 };
        let shape = GPU.cluster(row_units, rows, clusters);
        let shape = shape.unwrap_or_else(|| GPU.one_block(row_units));
        (shape.blocks, shape.threads, shape.per_thread)
    }

    #[test]
    fn few_rows_have_large_clusters_and_many_rows_a_block_each() {
        // 4096 elements of two bytes.
        let of_512 = [1, 8, 9, 16, 17, 66, 67].map(|rows| shape(512, rows));
        let [eight, four, two] = [(8, 64, 1), (4, 64, 2), (2, 256, 1)];
        assert_eq!(of_512[..6], [eight, eight, four, four, two, two]);
        assert_eq!(of_512[6], (1, 256, 2));
        let of_1024 = [1, 9, 17, 67].map(|rows| shape(1024, rows));
        assert_eq!(of_1024, [(8, 64, 2), (4, 128, 2), (2, 256, 2), (1, 256, 4)]);
    }

    #[test]
    fn a_thread_that_only_normalises_has_two_units_at_most_if_the_block_can_be_so_large() {
        let bounds = RowBounds {
            threads: 352,
            ..GPU
        };
        let shape = |row_units| {
            let shape = bounds.block_of_reduced(row_units);
            (shape.threads, shape.per_thread)
        };
        let shapes = [256, 512, 640, 1024, 2048].map(shape);
        let expected = [(256, 1), (256, 2), (320, 2), (256, 4), (256, 8)];
        assert_eq!(shapes, expected);
    }

    #[test]
    fn no_block_of_a_cluster_is_without_a_unit_and_short_rows_have_one_block() {
        for row_units in 1..=8192 {
            for rows in [1, 9, 17] {
                let (blocks, threads, per_thread) = shape(row_units, rows);
                let of_block = threads * per_thread;
                assert!(blocks * of_block >= row_units, "{row_units} {rows}");
                assert!((blocks - 1) * of_block < row_units, "{row_units} {rows}");
                assert!(blocks == 1 || threads.is_power_of_two());
                assert_eq!(blocks == 1, row_units <= 64, "{row_units} {rows}");
            }
        }
        // 5120 elements of two bytes.
        assert_eq!(shape(640, 4), (5, 64, 2));
    }
}
