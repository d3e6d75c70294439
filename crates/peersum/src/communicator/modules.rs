//! The modules that a rank of a group of two or more has loaded.

use peersum_artifact::{Dtype, Family};

use crate::device::Device;

/// The two families' modules of every element type.
pub(super) struct Modules<D: Device> {
    modules: Vec<D::Module>,
}

impl<D: Device> Modules<D> {
    /// In the order of [`Modules::keys`].
    pub(super) fn new(modules: Vec<D::Module>) -> Self {
        Modules { modules }
    }

    pub(super) fn keys() -> impl Iterator<Item = (Family, Dtype)> {
        Family::ALL
            .iter()
            .flat_map(|&family| Dtype::ALL.iter().map(move |&dtype| (family, dtype)))
    }

    pub(super) fn get(&self, family: Family, dtype: Dtype) -> &D::Module {
        let dtypes = Dtype::ALL.len();
        // `keys` enumerates families first, both in the order of their declaration.
        &self.modules[family as usize * dtypes + dtype as usize]
    }

    pub(super) fn of_family(&self, family: Family) -> impl Iterator<Item = &D::Module> {
        Dtype::ALL.iter().map(move |&dtype| self.get(family, dtype))
    }
}
