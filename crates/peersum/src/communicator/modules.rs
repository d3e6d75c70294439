//! The modules that a rank has loaded.

use peersum_artifact::{Dtype, Family, ModuleKey, WorldSize};

use crate::device::Device;

/// The modules of every element type, for groups of one size. A group of one has those of the norm
/// family only.
pub(super) struct Modules<D: Device> {
    world_size: WorldSize,
    modules: Vec<D::Module>,
}

impl<D: Device> Modules<D> {
    /// In the order of [`Modules::keys`].
    pub(super) fn new(world_size: WorldSize, modules: Vec<D::Module>) -> Self {
        Modules {
            world_size,
            modules,
        }
    }

    /// All modules for groups of this size, in the order of the matrix.
    pub(super) fn keys(world_size: WorldSize) -> impl Iterator<Item = ModuleKey> {
        ModuleKey::all().filter(move |key| key.world_size == world_size)
    }

    /// One of a family that the group's size has.
    pub(super) fn get(&self, family: Family, dtype: Dtype) -> &D::Module {
        let dtypes = Dtype::ALL.len();
        // `keys` enumerates families first, both in the order of their declaration.
        let families = Family::ALL.iter();
        let before = families
            .take_while(|&&other| other != family)
            .filter(|other| !other.algorithms(self.world_size).is_empty());
        &self.modules[before.count() * dtypes + dtype as usize]
    }

    pub(super) fn of_family(&self, family: Family) -> impl Iterator<Item = &D::Module> {
        Dtype::ALL.iter().map(move |&dtype| self.get(family, dtype))
    }

    pub(super) fn world_size(&self) -> WorldSize {
        self.world_size
    }
}
