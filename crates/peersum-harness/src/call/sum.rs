//! One all-reduce: its form, and its arrays on each rank.

use std::time::Duration;

use clap::ValueEnum;
use fastrand::Rng;
use peersum::dispatch::{Plan, Route};
use peersum_artifact::Dtype;

use super::array::{Array, Role, Sum, Values};
use super::rank_call::{CallKind, RankCall};
use crate::data::{Content, Key};

/// Where the arrays of a call lie and what they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Variant {
    /// Aligned, out of place. The symmetric two-shot is always in place.
    Aligned,
    /// Views that begin at a different element on every rank; in a symmetric buffer, at an odd
    /// element.
    Unaligned,
    /// Aligned, in place.
    InPlace,
    /// In place, at a different element on every rank.
    UnalignedInPlace,
    /// NaN, infinities, zeros of both signs, subnormals and the words that the slots use, aligned.
    Special,
    /// The same, at a different element on every rank.
    SpecialUnaligned,
}

impl Variant {
    /// A random variant that the route supports.
    pub(crate) fn any(route: Route, rng: &mut Rng) -> Variant {
        let all = Variant::value_variants();
        loop {
            let any = all[rng.usize(..all.len())];
            if any.serves(route) {
                return any;
            }
        }
    }

    /// Whether a route supports the variant.
    pub(crate) fn serves(self, route: Route) -> bool {
        !route.is_symmetric() || !matches!(self, Variant::InPlace | Variant::UnalignedInPlace)
    }

    pub(crate) fn is_unaligned(self) -> bool {
        matches!(
            self,
            Variant::Unaligned | Variant::UnalignedInPlace | Variant::SpecialUnaligned
        )
    }

    pub(crate) fn is_in_place(self) -> bool {
        matches!(self, Variant::InPlace | Variant::UnalignedInPlace)
    }

    pub(crate) fn is_special(self) -> bool {
        matches!(self, Variant::Special | Variant::SpecialUnaligned)
    }
}

/// One all-reduce, equal on all ranks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SumCall {
    /// Which communicator makes it.
    pub(crate) lane: usize,
    /// `None`: as the dispatch table says.
    pub(crate) plan: Option<Plan>,
    pub(crate) elements: usize,
    /// Whether a symmetric buffer takes the place of the input.
    pub(crate) is_symmetric: bool,
    pub(crate) in_place: bool,
    is_unaligned: bool,
    pub(crate) content: Content,
}

impl SumCall {
    pub(crate) fn new(plan: Plan, elements: usize, variant: Variant) -> SumCall {
        SumCall {
            lane: 0,
            plan: Some(plan),
            elements,
            is_symmetric: plan.route.is_symmetric(),
            in_place: match plan.route {
                Route::SymmetricOneShot => false,
                Route::SymmetricTwoShot => true,
                _ => variant.is_in_place(),
            },
            is_unaligned: variant.is_unaligned(),
            content: if variant.is_special() {
                Content::Special
            } else {
                Content::Ordinary
            },
        }
    }

    /// An aligned call.
    pub(crate) fn aligned(
        plan: Option<Plan>,
        elements: usize,
        is_symmetric: bool,
        in_place: bool,
        content: Content,
    ) -> SumCall {
        SumCall {
            lane: 0,
            plan,
            elements,
            is_symmetric,
            in_place,
            is_unaligned: false,
            content,
        }
    }

    /// The call as `rank` makes it. `keys` are those of all ranks.
    pub(crate) fn of_rank(&self, dtype: Dtype, keys: &[Key], rank: u32) -> RankCall {
        let values = |keys: &[Key]| {
            Values::Sum(Sum {
                dtype,
                content: self.content,
                keys: keys.to_vec(),
                elements: self.elements,
            })
        };
        let array = |role, before, after, is_symmetric| Array {
            role,
            elements: self.elements,
            element_bytes: dtype.size_bytes(),
            is_symmetric,
            is_unaligned: self.is_unaligned,
            before,
            after,
        };
        let own = values(&keys[rank as usize..=rank as usize]);
        let (before, sum) = (Some((0, own.clone())), values(keys));
        let arrays = match self.in_place {
            true => vec![array(Role::Output, before, sum, self.is_symmetric)],
            false => vec![
                array(Role::Output, None, sum, false),
                array(Role::Input, before, own, self.is_symmetric),
            ],
        };
        let route = self.plan.map_or("table", |plan| plan.route.name());
        RankCall {
            lane: self.lane,
            delay: Duration::ZERO,
            plan: self.plan,
            kind: CallKind::AllReduce,
            dtype,
            elements: self.elements,
            arrays,
            label: format!(" ({route}, {} elements)", self.elements),
        }
    }
}
