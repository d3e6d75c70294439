//! The ranks' memory, with one byte for each word, and the stores in flight to it.
//!
//! A store is issued, and performed at some later moment. Stores are performed in any order, except
//! for three rules:
//!
//! - Stores of one rank to one address are performed in the order of issue (coherence).
//! - A release store is performed after everything that its block issued before it, and after
//!   everything of the rank's earlier kernels.
//! - A rank's stores to its own memory are performed before its kernel ends ([`Order::Physical`]).
//!   For the slots this is the argument of kernels/README.md, "Re-arming", which the PTX model does
//!   not guarantee; [`Order::Formal`] leaves this rule out.
//!
//! Performing a store is not a step of its own, which would multiply the states: the store stays in
//! flight until a reader takes it. A wait may end as soon as what it waits for is in flight; any
//! other load is explored with the old value and with the new one. This covers every moment, as
//! long as no reader can miss a value because the next one overwrites it. Three places allow that.
//! In a slot that was not emptied, issuing the second store is a violation. In a place of the
//! header or detail ring, performing the second store is a step of its own.

use std::hash::{Hash, Hasher};

pub(crate) const RANKS: usize = 3;
pub(crate) const BLOCKS: usize = 2;
/// Units of a chunk, or of a one-shot call (places).
pub(crate) const PLACES: usize = 3;
pub(crate) const UNITS: usize = RANKS * PLACES;

/// One rank's memory: the arena of abi.h and the symmetric buffer.
pub(crate) type Memory = [u8; SIZE];

const SLOTS: usize = 0;
/// Adjacent words for the slots of one source.
const GROUP: usize = 2 * PLACES;
/// Words of one half of the push memory. A two-shot call gathers in the second half.
const HALF: usize = 2 * RANKS * GROUP;
const HEADERS: usize = SLOTS + 2 * HALF;
const OWN_HEADERS: usize = HEADERS + 4 * RANKS;
const DETAILS: usize = OWN_HEADERS + 4;
const NORM_WORDS: usize = DETAILS + 4 * RANKS;
const OWN_NORM_WORDS: usize = NORM_WORDS + 4 * RANKS;
const FLAGS: usize = OWN_NORM_WORDS + 4;
const STAGING: usize = FLAGS + BLOCKS * RANKS;
const SYMMETRIC: usize = STAGING + 2 * UNITS;
const PUSH_EPOCHS: usize = SYMMETRIC + UNITS;
const PULL_EPOCHS: usize = PUSH_EPOCHS + BLOCKS;
const POISON: usize = PULL_EPOCHS + BLOCKS;
const SIZE: usize = POISON + BLOCKS;

/// The value of a slot whose data has not arrived.
pub(crate) const EMPTY: u8 = 0;
/// A sum of anything but the inputs of its call.
pub(crate) const WRONG: u8 = 0xFE;
/// What a lost call leaves in its output.
pub(crate) const NAN: u8 = 0xFD;
/// A header is a sequence number above this many bits, which hold the signature.
pub(crate) const SIGNATURE_BITS: u32 = 5;
const ESCAPE_MARK: u8 = 0x40;
/// The value of a unit of staging memory that is used as scratch.
pub(crate) const SCRATCH: u8 = 0xFF;

/// The data of the `call`-th call: an input, or the sum of all ranks. The address tells who sent it
/// and for which unit.
pub(crate) fn data(call: u8, reduced: bool) -> u8 {
    1 + 2 * call + u8::from(reduced)
}

/// The first word of an escaped unit, the escape mark; the words of the rest; and a token.
pub(crate) fn escaped(call: u8) -> u8 {
    ESCAPE_MARK | data(call, false)
}
pub(crate) fn begins_escaped(word: u8) -> bool {
    word & ESCAPE_MARK != 0
}
pub(crate) fn rest_of_escaped(call: u8) -> u8 {
    0x20 | data(call, false)
}
pub(crate) fn token(call: u8) -> u8 {
    0x10 | data(call, false)
}

/// The slot for a word that `source` sends: of a unit, or of a unit of the receiver's chunk.
pub(crate) fn input_slot(half: u8, source: usize, word: usize) -> usize {
    SLOTS + usize::from(half) * HALF + source * GROUP + word
}
/// The slot for a reduced unit of `owner`'s chunk.
pub(crate) fn reduced_slot(half: u8, owner: usize, place: usize) -> usize {
    input_slot(half, RANKS + owner, place)
}
/// The slot for a word of the rest of an escaped unit that `source` sends: where a two-shot call
/// has its reduced units.
pub(crate) fn overflow_slot(half: u8, source: usize, word: usize) -> usize {
    reduced_slot(half, source, word)
}
pub(crate) fn header(ring: u8, source: usize) -> usize {
    HEADERS + usize::from(ring) * RANKS + source
}
pub(crate) fn own_header(ring: u8) -> usize {
    OWN_HEADERS + usize::from(ring)
}
/// Empty, except from a call with a detail to the next call. The value contains no sequence: the
/// proof that no old detail is taken for a new one must not rest on a number that wraps around.
pub(crate) fn detail(ring: u8, source: usize) -> usize {
    DETAILS + usize::from(ring) * RANKS + source
}
/// The two norm words, as one: empty, except within a call. As for a detail, without a sequence.
pub(crate) fn norm_word(ring: u8, source: usize) -> usize {
    NORM_WORDS + usize::from(ring) * RANKS + source
}
/// Read by this rank alone, which knows by the sequence whether it has sent its words.
pub(crate) fn own_norm_word(ring: u8) -> usize {
    OWN_NORM_WORDS + usize::from(ring)
}
pub(crate) fn flag(block: usize, source: usize) -> usize {
    FLAGS + block * RANKS + source
}
pub(crate) fn staging(half: u8, unit: usize) -> usize {
    STAGING + usize::from(half) * UNITS + unit
}
pub(crate) fn symmetric(unit: usize) -> usize {
    SYMMETRIC + unit
}
pub(crate) fn push_epoch(block: usize) -> usize {
    PUSH_EPOCHS + block
}
pub(crate) fn pull_epoch(block: usize) -> usize {
    PULL_EPOCHS + block
}
pub(crate) fn poison(block: usize) -> usize {
    POISON + block
}

pub(crate) fn zeroed() -> Memory {
    [0; SIZE]
}

pub(crate) fn is_slot(address: usize) -> bool {
    address < HEADERS
}
pub(crate) fn is_header(address: usize) -> bool {
    (HEADERS..OWN_HEADERS).contains(&address)
}
/// Whether the word is a detail or a norm word: the places are empty before and after its use.
pub(crate) fn is_detail(address: usize) -> bool {
    (DETAILS..OWN_NORM_WORDS).contains(&address)
}
pub(crate) fn is_poison(address: usize) -> bool {
    address >= POISON
}

/// What orders a rank's stores to its own memory before its next kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Performed before the kernel ends.
    Physical,
    /// The PTX model alone: only later kernels of this rank are guaranteed to see the store.
    Formal,
}

/// A store in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Store {
    pub(crate) issuer: usize,
    pub(crate) call: u8,
    /// How many releases the block had issued in this call before this store.
    pub(crate) stage: u8,
    pub(crate) block: usize,
    pub(crate) release: bool,
    pub(crate) target: usize,
    pub(crate) address: usize,
    pub(crate) value: u8,
}

/// The stores in flight, as a sorted set. Each store carries its order of issue as far as it
/// matters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct InFlight {
    packed: [u32; InFlight::CAPACITY],
}

impl Hash for InFlight {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        for pair in self.packed.chunks(2).take_while(|pair| pair[0] != 0) {
            hasher.write_u64(u64::from(pair[0]) << 32 | u64::from(pair[1]));
        }
    }
}

impl InFlight {
    const CAPACITY: usize = 64;

    pub(crate) fn none() -> Self {
        Self {
            packed: [0; Self::CAPACITY],
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Store> + '_ {
        self.packed
            .iter()
            .take_while(|&&packed| packed != 0)
            .map(|&packed| Store::unpack(packed))
    }

    pub(crate) fn issue(&mut self, store: Store) {
        let packed = store.pack();
        let Err(at) = self.packed.binary_search_by(|probe| packed.cmp(probe)) else {
            return;
        };
        assert_eq!(self.packed[Self::CAPACITY - 1], 0, "too many stores");
        self.packed.copy_within(at..Self::CAPACITY - 1, at + 1);
        self.packed[at] = packed;
    }

    fn first(&self, is_wanted: impl Fn(&Store) -> bool) -> Option<Store> {
        self.iter().find(is_wanted)
    }

    /// Whether a store of `rank` to its own memory is in flight.
    pub(crate) fn has_own(&self, rank: usize) -> bool {
        self.first(|store| store.issuer == rank && store.target == rank)
            .is_some()
    }

    /// Performs a store, after every store that must precede it.
    pub(crate) fn perform(&mut self, store: &Store, memory: &mut [Memory; RANKS]) {
        while let Some(earlier) = self.first(|other| other.precedes(store)) {
            self.perform(&earlier, memory);
        }
        memory[store.target][store.address] = store.value;
        let packed = store.pack();
        if let Ok(at) = self.packed.binary_search_by(|probe| packed.cmp(probe)) {
            self.packed.copy_within(at + 1.., at);
            self.packed[Self::CAPACITY - 1] = 0;
        }
    }

    /// Performs every store that `is_due`. Returns whether there was one.
    pub(crate) fn perform_all(
        &mut self,
        memory: &mut [Memory; RANKS],
        is_due: impl Fn(&Store) -> bool,
    ) -> bool {
        let mut has_performed = false;
        while let Some(store) = self.first(&is_due) {
            self.perform(&store, memory);
            has_performed = true;
        }
        has_performed
    }

    /// Performs the stores to a rank that no longer reads these words.
    pub(crate) fn perform_unread(&mut self, rank: usize, memory: &mut [Memory; RANKS]) -> bool {
        self.perform_all(memory, |store| {
            store.target == rank && !(STAGING..PUSH_EPOCHS).contains(&store.address)
        })
    }

    /// The stores in flight to a word, the oldest of each issuer first.
    pub(crate) fn to(&self, target: usize, address: usize) -> impl Iterator<Item = Store> + '_ {
        // The set is sorted in descending order.
        let count = self
            .packed
            .iter()
            .take_while(|&&packed| packed != 0)
            .count();
        self.packed[..count]
            .iter()
            .rev()
            .map(|&packed| Store::unpack(packed))
            .filter(move |store| store.target == target && store.address == address)
    }

    /// What a block of the rank's kernel `call` sees of its own memory before the store is
    /// performed: its own stores and, if the end of a kernel performs nothing, those of earlier
    /// kernels.
    pub(crate) fn own_store(
        &self,
        rank: usize,
        address: usize,
        (call, block): (u8, usize),
        order: Order,
    ) -> Option<u8> {
        self.iter()
            .filter(|store| {
                store.issuer == rank && store.target == rank && store.address == address
            })
            .filter(|store| {
                store.call == call && store.block == block
                    || store.call < call && order == Order::Formal
            })
            .max_by_key(|store| (store.call, store.stage))
            .map(|store| store.value)
    }
}

impl Store {
    /// Whether this store is always performed before `other`.
    fn precedes(&self, other: &Store) -> bool {
        let age = |store: &Store| (store.call, store.stage);
        let is_before_in_word =
            self.target == other.target && self.address == other.address && age(self) < age(other);
        let is_before_release = other.release
            && !self.release
            && (self.call < other.call
                || self.call == other.call
                    && self.block == other.block
                    && self.stage <= other.stage);
        self.issuer == other.issuer && self != other && (is_before_in_word || is_before_release)
    }

    fn pack(&self) -> u32 {
        let bits = |value: usize, shift: u32| (value as u32) << shift;
        1 << 31
            | bits(self.issuer, 29)
            | u32::from(self.call) << 26
            | u32::from(self.stage) << 24
            | bits(self.block, 23)
            | u32::from(self.release) << 22
            | bits(self.target, 20)
            | bits(self.address, 8)
            | u32::from(self.value)
    }

    fn unpack(packed: u32) -> Self {
        let bits = |shift: u32, mask: u32| (packed >> shift & mask) as usize;
        Self {
            issuer: bits(29, 3),
            call: bits(26, 7) as u8,
            stage: bits(24, 3) as u8,
            block: bits(23, 1),
            release: bits(22, 1) == 1,
            target: bits(20, 3),
            address: bits(8, 0xFFF),
            value: bits(0, 0xFF) as u8,
        }
    }
}
