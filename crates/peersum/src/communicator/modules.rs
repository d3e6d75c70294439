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

    /// One of a family that the group's size has, and of a type that the family has.
    pub(super) fn get(&self, family: Family, dtype: Dtype) -> &D::Module {
        // `keys` has the families in the order of their declaration.
        let families = Family::ALL.iter();
        let before: usize = families
            .take_while(|&&other| other != family)
            .filter(|other| !other.algorithms(self.world_size).is_empty())
            .map(|other| other.dtypes().len())
            .sum();
        let dtypes = family.dtypes().iter();
        let index = dtypes.take_while(|&&other| other != dtype).count();
        &self.modules[before + index]
    }

    pub(super) fn of_family(&self, family: Family) -> impl Iterator<Item = &D::Module> {
        family
            .dtypes()
            .iter()
            .map(move |&dtype| self.get(family, dtype))
    }

    pub(super) fn world_size(&self) -> WorldSize {
        self.world_size
    }
}
