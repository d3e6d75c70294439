//! A case to explore: the calls of the ranks, when a wait ends, which rule is left out; and the
//! promises that a run may break.

/// One entry point and the kind of its source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    PushOneShot,
    PushTwoShot,
    PullOneShot,
    PullTwoShot,
    SymmetricOneShot,
    SymmetricTwoShot,
    /// A one-shot push that normalises its rows.
    NormOneShot,
    /// Normalises the rows of the call before it, of whatever kind. Part of that call: it has no
    /// epoch and no header.
    NormRows,
    /// A push call by which every rank gets the data of all.
    AllGather,
    /// A push call by which every rank gets the sum of its own chunk.
    ReduceScatter,
    /// A push call by which every rank gets the data of one, the root.
    Broadcast,
}

impl Kind {
    pub(crate) fn is_push(self) -> bool {
        matches!(
            self,
            Kind::PushOneShot
                | Kind::PushTwoShot
                | Kind::NormOneShot
                | Kind::AllGather
                | Kind::ReduceScatter
                | Kind::Broadcast
        )
    }
    /// Whether data is taken as it is, and none comes from the rank itself.
    pub(crate) fn is_move(self) -> bool {
        matches!(self, Kind::AllGather | Kind::Broadcast)
    }
    /// Whether the input or the output has a chunk for each rank.
    pub(crate) fn has_chunks(self) -> bool {
        self.is_two_shot() || matches!(self, Kind::AllGather | Kind::ReduceScatter)
    }
    pub(crate) fn is_symmetric(self) -> bool {
        matches!(self, Kind::SymmetricOneShot | Kind::SymmetricTwoShot)
    }
    pub(crate) fn is_two_shot(self) -> bool {
        matches!(
            self,
            Kind::PushTwoShot | Kind::PullTwoShot | Kind::SymmetricTwoShot
        )
    }
}

/// One call of a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Call {
    pub(crate) kind: Kind,
    /// The grid.
    pub(crate) blocks: usize,
    /// Units of a one-shot call, or of each rank's chunk.
    pub(crate) places: usize,
    /// The content of the detail; 0 if the call has none.
    pub(crate) detail: u8,
    /// What the norm words say; 0 if the call has none.
    pub(crate) norm: u8,
    /// Units of a row, one for each of the first threads that share it. `places` is a multiple of
    /// it.
    pub(crate) row_units: usize,
    /// Blocks that share a row: a cluster. `blocks` is a multiple of it. Each cluster of several
    /// blocks has one row.
    pub(crate) cluster: usize,
    /// Whether the rows become FP8 too, with a scale for each.
    pub(crate) has_row_scales: bool,
    /// The rank that has the data of a broadcast.
    pub(crate) root: usize,
    /// All-gather: a bit for each rank. Its even units are escaped and its odd ones are not, or the
    /// other way round if the bit is 0.
    pub(crate) escapes: u8,
}

impl Call {
    /// What a header says of the call. Never 0, which stands for the calls before the first.
    /// Differs for every kind, between calls of one and of two places, between calls with and
    /// without RMSNorm, and between broadcasts with different roots. (The last three kinds have
    /// numbers of sums with RMSNorm, which no test sets against them.)
    pub(crate) fn signature(&self) -> u8 {
        if self.kind as u8 > Kind::NormRows as u8 {
            let number = (self.kind as u8 - Kind::AllGather as u8) + self.root as u8;
            return 17 + 2 * number + (self.places as u8 - 1);
        }
        let normalised = u8::from(self.norm != 0 && self.kind != Kind::NormOneShot);
        1 + 2 * self.kind as u8 + (self.places as u8 - 1) + 16 * normalised
    }

    /// This call with these norm words, and the kernel that normalises its rows.
    pub(crate) fn with_rows(self, norm: u8) -> [Self; 2] {
        let call = Call { norm, ..self };
        let kind = Kind::NormRows;
        [call, Call { kind, ..call }]
    }

    /// The same call with a detail. Only symmetric calls have one.
    pub(crate) fn with_detail(self, detail: u8) -> Self {
        assert!(self.kind.is_symmetric());
        Call { detail, ..self }
    }

    /// The same broadcast from another rank.
    pub(crate) fn with_root(self, root: usize) -> Self {
        assert_eq!(self.kind, Kind::Broadcast);
        Call { root, ..self }
    }

    /// The same all-gather with other units that are escaped.
    pub(crate) fn with_escapes(self, escapes: u8) -> Self {
        assert_eq!(self.kind, Kind::AllGather);
        Call { escapes, ..self }
    }

    /// Whether the unit that `source` sends for this place is escaped.
    pub(crate) fn is_escaped(&self, source: usize, place: usize) -> bool {
        let is_even = place.is_multiple_of(2);
        self.kind == Kind::AllGather && (self.escapes >> source & 1 == 1) == is_even
    }
}

/// All kinds of calls that sum and stand alone.
pub(crate) const KINDS: [Kind; 7] = [
    Kind::PushOneShot,
    Kind::PushTwoShot,
    Kind::PullOneShot,
    Kind::PullTwoShot,
    Kind::SymmetricOneShot,
    Kind::SymmetricTwoShot,
    Kind::NormOneShot,
];

/// A call of two places on a grid of `blocks`: two blocks handle one place each, one block handles
/// both.
pub(crate) fn call(kind: Kind, blocks: usize) -> Call {
    Call {
        kind,
        blocks,
        places: 2,
        detail: 0,
        norm: u8::from(kind == Kind::NormOneShot),
        row_units: 1,
        cluster: 1,
        has_row_scales: false,
        root: 0,
        escapes: 0,
    }
}

/// A call of one block and one place.
pub(crate) fn small(kind: Kind) -> Call {
    Call {
        blocks: 1,
        places: 1,
        ..call(kind, 1)
    }
}

/// When a wait for a peer ends without the peer's data.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    /// Never. Shows what holds without any failure.
    Endless,
    /// When a look finds poison or a header that differs; there is no deadline.
    Look,
    /// At any moment: the peer may stall before any of its steps, for any time.
    Bounded,
}

/// A rule that the protocol is explored without.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Break {
    EpochAdvancedBeforeBarrier,
    EpochOfLaunchedBlocksOnly,
    RingOfTwo,
    SynchronizeSkipsHeaders,
    SynchronizeSkipsDetails,
    DetailsNotCompared,
    DetailsNotRemoved,
    NoClosingBarrier,
    NoOpeningBarrier,
    GatherByReadingWithoutThirdBarrier,
    OtherMappingInGather,
    RelaxedStagingFlag,
    OneStagingHalf,
    OnePushHalf,
    LaneUnchecked,
    NoRearm,
    ScratchInBusyHalf,
    PoisonReadAfterStores,
    LeaverSkipsItself,
    ObserverRecordsNothing,
    NoRelay,
    NoFenceBehindPoison,
    NoLastLookAtPoison,
    FlagBeforeLastLook,
    LostThreadDoesNotWait,
    LastLookRecordsNothing,
    LostThreadAnnounced,
    NoGriddepcontrolWait,
    NormWordsNotCompared,
    NormWordsNotRemoved,
    OnePlaceForNormWords,
    LookSkipsNormWords,
    NoRowBarrier,
    OneHalfForRowSums,
    LostThreadSkipsRowBarrier,
    LostThreadAddsNothing,
    IdleThreadDoesNotWait,
    NoStartOfCluster,
    LargestWithoutSum,
    OverflowNotAwaited,
    OverflowNotRearmed,
    BroadcastWithoutTokens,
    TokensForRootOnly,
}

/// A promise that a run broke.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Violation {
    /// A rank has not ended and can take no step.
    Deadlock,
    /// Data was sent to a slot before its last data was taken, a detail to a place before its last
    /// detail was removed, or a value of a row to a place before the last one had arrived.
    SlotOverwritten,
    /// A value was sent to a block of a cluster that has ended, or it is still in flight when the
    /// block ends.
    StoreToEndedBlock,
    /// An output is neither NaN nor the sum of this call's inputs: a stale, torn or too new value
    /// went into it.
    WrongResult,
    /// The blocks of a rank hold different epochs between calls.
    EpochsDiffer,
    /// A rank that has lost nothing ended a call before a peer began it: it could be calls ahead.
    PeerNotBegun,
    /// `synchronize` returned Ok, but an output is not the sum, or the ranks made different calls.
    FalseOk,
    /// A rank failed and no step is left, but a peer is not poisoned.
    PeerNotPoisoned,
    /// A rank lost a call before the last one, but a peer returned Ok.
    FailureNotShared,
}
