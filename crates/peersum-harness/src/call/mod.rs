//! Calls of every operation as ranks make them: their arrays, what these must hold before and after
//! a call, and how the call is made.

mod array;
mod launch;
mod loss;
mod moved;
mod norm;
mod norm_data;
mod rank_call;
mod slot;
mod sum;

pub(crate) use array::{Array, Role, Sum, Values, stride};
pub(crate) use loss::{Loss, Outcome};
pub(crate) use moved::MoveCall;
pub(crate) use norm::norm_call;
pub(crate) use norm_data::{INVERSE_SCALE, NUMBERS, NormKind};
pub(crate) use rank_call::{CallKind, RankCall};
pub(crate) use slot::{Slot, Wrong};
pub(crate) use sum::{SumCall, Variant};
