//! Module keys: which kernels there are, and every name that follows from a key.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::vocabulary::{ParseNameError, name_traits, vocabulary};

/// What a module's kernels do: a call that reduces, whose data travels one way or the other, the
/// normalisation of its rows, or a call that only moves data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Ranks store into their peers' slots.
    Push,
    /// Ranks load from their peers' buffers.
    Pull,
    /// RMSNorm of the rows of an all-reduce.
    Norm,
    /// All-gather and broadcast.
    Move,
}

vocabulary!(Family, "family", {
    Push => "push", Pull => "pull", Norm => "norm", Move => "move"
});

impl Family {
    /// The algorithms of the family for groups of this size, in the order of the entry points of a
    /// module. Empty if the family has no module for them.
    #[must_use]
    pub const fn algorithms(self, world_size: WorldSize) -> &'static [Algorithm] {
        match (self, world_size.0) {
            (Family::Push | Family::Pull | Family::Move, 1) => &[],
            (Family::Push, _) => &[
                Algorithm::OneShot,
                Algorithm::ReduceScatter,
                Algorithm::TwoShot,
            ],
            (Family::Pull, _) => &[Algorithm::OneShot, Algorithm::TwoShot],
            // One rank exchanges nothing.
            (Family::Norm, 1) => &[Algorithm::Rows],
            (Family::Norm, _) => &[Algorithm::Clustered, Algorithm::OneShot, Algorithm::Rows],
            (Family::Move, _) => &[Algorithm::AllGather, Algorithm::Broadcast],
        }
    }

    /// The element types that the family has modules for.
    #[must_use]
    pub const fn dtypes(self) -> &'static [Dtype] {
        match self {
            Family::Push | Family::Pull | Family::Norm => Dtype::REDUCED,
            // One module moves the bytes of every type.
            Family::Move => &[Dtype::U8],
        }
    }
}

/// How the work is divided between ranks. All algorithms of a family are entry points of the same
/// module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// Every rank reduces everything.
    OneShot,
    /// Every rank reduces one chunk, and the chunks are gathered.
    TwoShot,
    /// No exchange: every rank normalises rows that are reduced already.
    Rows,
    /// One-shot, with a cluster of blocks for every row. On architectures without clusters it does
    /// nothing.
    Clustered,
    /// Every rank reduces one chunk.
    ReduceScatter,
    /// Every rank receives the data of all ranks.
    AllGather,
    /// Every rank receives the data of one rank.
    Broadcast,
}

vocabulary!(Algorithm, "algorithm", {
    OneShot => "one_shot", TwoShot => "two_shot", Rows => "rows",
    Clustered => "clustered", ReduceScatter => "reduce_scatter",
    AllGather => "all_gather", Broadcast => "broadcast"
});

/// The element type. Sums are formed in float32 whatever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dtype {
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// IEEE 754 binary32.
    F32,
    /// Unsigned, 8 bits. Moved, not reduced, as all that follow.
    U8,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 32 bits.
    U32,
    /// Signed, 32 bits.
    I32,
    /// Unsigned, 64 bits.
    U64,
    /// Signed, 64 bits.
    I64,
}

vocabulary!(Dtype, "dtype", {
    F16 => "f16", Bf16 => "bf16", F32 => "f32", U8 => "u8", I8 => "i8", U32 => "u32",
    I32 => "i32", U64 => "u64", I64 => "i64"
});

impl Dtype {
    /// The types that calls can sum.
    pub const REDUCED: &'static [Dtype] = &[Dtype::F16, Dtype::Bf16, Dtype::F32];

    /// The size of one element in bytes.
    #[must_use]
    pub const fn size_bytes(self) -> usize {
        match self {
            Dtype::U8 | Dtype::I8 => 1,
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::F32 | Dtype::U32 | Dtype::I32 => 4,
            Dtype::U64 | Dtype::I64 => 8,
        }
    }
}

/// The number of ranks a module is compiled for, 1 to 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorldSize(u8);

impl WorldSize {
    /// A group of one rank, which only normalises.
    pub const ONE: WorldSize = WorldSize(1);
    /// The smallest group whose ranks exchange data.
    pub const MIN: WorldSize = WorldSize(2);
    /// The largest group.
    pub const MAX: WorldSize = WorldSize(8);
    /// Every value, in order.
    pub const ALL: &'static [WorldSize] = &[
        WorldSize(1),
        WorldSize(2),
        WorldSize(3),
        WorldSize(4),
        WorldSize(5),
        WorldSize(6),
        WorldSize(7),
        WorldSize(8),
    ];

    /// The number of ranks.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0 as u32
    }

    fn error(given: impl fmt::Display) -> ParseNameError {
        ParseNameError::new("world size", given, "1 to 8")
    }
}

impl TryFrom<u32> for WorldSize {
    type Error = ParseNameError;

    fn try_from(ranks: u32) -> Result<Self, Self::Error> {
        match u8::try_from(ranks) {
            Ok(small @ 1..=8) => Ok(WorldSize(small)),
            _ => Err(WorldSize::error(ranks)),
        }
    }
}

impl Serialize for WorldSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.get())
    }
}

impl<'de> Deserialize<'de> for WorldSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ranks = u64::deserialize(deserializer)?;
        let small = u32::try_from(ranks).map_err(|_| WorldSize::error(ranks));
        small
            .and_then(WorldSize::try_from)
            .map_err(D::Error::custom)
    }
}

impl FromStr for WorldSize {
    type Err = ParseNameError;

    fn from_str(given: &str) -> Result<Self, Self::Err> {
        // One digit exactly: names must have one spelling, so neither `+8` nor `08`.
        match given.as_bytes() {
            [digit @ b'1'..=b'8'] => Ok(WorldSize(digit - b'0')),
            _ => Err(WorldSize::error(given)),
        }
    }
}

impl WorldSize {
    /// As [`Display`](fmt::Display) writes it. Reading a manifest builds a thousand names, and the
    /// formatting machinery would take most of that time.
    fn digit(self) -> &'static str {
        let index = usize::from(self.0) - 1;
        &"12345678"[index..=index]
    }
}

impl fmt::Display for WorldSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// One module of the matrix. Keys sort by family, dtype and world size, as a manifest lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuleKey {
    /// What its kernels do.
    pub family: Family,
    /// The element type.
    pub dtype: Dtype,
    /// The number of ranks.
    pub world_size: WorldSize,
}

impl ModuleKey {
    /// The whole matrix in order: 73 keys.
    pub fn all() -> impl Iterator<Item = ModuleKey> {
        Family::ALL.iter().flat_map(|&family| {
            family.dtypes().iter().flat_map(move |&dtype| {
                WorldSize::ALL
                    .iter()
                    .map(move |&world_size| ModuleKey {
                        family,
                        dtype,
                        world_size,
                    })
                    .filter(ModuleKey::exists)
            })
        })
    }

    /// Whether the matrix has such a module.
    #[must_use]
    pub fn exists(&self) -> bool {
        !self.algorithms().is_empty() && self.family.dtypes().contains(&self.dtype)
    }

    /// The algorithms of the module's entry points, in their order.
    #[must_use]
    pub const fn algorithms(&self) -> &'static [Algorithm] {
        self.family.algorithms(self.world_size)
    }

    /// The module's name, e.g. `peersum_push_bf16_ws8`. No two keys share one.
    #[must_use]
    pub fn name(&self) -> String {
        let (family, dtype, ranks) = self.words();
        ["peersum_", family, "_", dtype, "_ws", ranks].concat()
    }

    /// The name of one entry point, e.g. `peersum_push_one_shot_bf16_ws8`. No other module has it.
    #[must_use]
    pub fn entry_point(&self, algorithm: Algorithm) -> String {
        let ((family, dtype, ranks), algorithm) = (self.words(), algorithm.as_str());
        ["peersum_", family, "_", algorithm, "_", dtype, "_ws", ranks].concat()
    }

    fn words(&self) -> (&'static str, &'static str, &'static str) {
        let Self {
            family,
            dtype,
            world_size,
        } = self;
        (family.as_str(), dtype.as_str(), world_size.digit())
    }

    /// The names of all entry points, in the order of [`ModuleKey::algorithms`].
    #[must_use]
    pub fn entry_points(&self) -> Vec<String> {
        let algorithms = self.algorithms().iter();
        algorithms.map(|&it| self.entry_point(it)).collect()
    }

    /// The source file that the module is compiled from, relative to the kernels' directory.
    #[must_use]
    pub fn source_root(&self) -> &'static str {
        match self.family {
            Family::Push => "push.cu",
            Family::Pull => "pull.cu",
            Family::Norm => "norm.cu",
            Family::Move => "move.cu",
        }
    }

    /// The preprocessor definitions of the module as `NAME=value`, in the order in which they are
    /// passed.
    #[must_use]
    pub fn defines(&self) -> Vec<String> {
        vec![
            format!("PEERSUM_DTYPE={}", self.dtype),
            format!("PEERSUM_WORLD_SIZE={}", self.world_size),
        ]
    }
}

impl fmt::Display for ModuleKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name())
    }
}

impl FromStr for ModuleKey {
    type Err = ParseNameError;

    /// Reads a module's name back.
    fn from_str(given: &str) -> Result<Self, Self::Err> {
        let parts = || {
            let (family, rest) = given.strip_prefix("peersum_")?.split_once('_')?;
            let (dtype, world_size) = rest.split_once("_ws")?;
            let key = ModuleKey {
                family: family.parse().ok()?,
                dtype: dtype.parse().ok()?,
                world_size: world_size.parse().ok()?,
            };
            key.exists().then_some(key)
        };
        let valid = "peersum_{push|pull}_{f16|bf16|f32}_ws{2..8}, \
                     peersum_norm_{f16|bf16|f32}_ws{1..8}, peersum_move_u8_ws{2..8}";
        parts().ok_or_else(|| ParseNameError::new("module", given, valid))
    }
}

name_traits!(ModuleKey);
