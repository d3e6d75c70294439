//! One search for a module: what is looked for, what was found, what was passed over.

use std::path::PathBuf;

use peersum_artifact::{Closure, ManifestModule, ModuleKey};

use super::image::{DeviceTarget, KernelSet};
use super::place::Place;
use super::policy::LoadPolicy;
use super::reason::Reason;
use super::report::{Compilation, PassedOver};

/// What is looked for, and where it may come from.
pub(super) struct Request<'a> {
    pub(super) policy: &'a LoadPolicy,
    pub(super) kernels: &'a KernelSet<'a>,
    pub(super) key: ModuleKey,
    pub(super) device: &'a DeviceTarget,
    /// The closure of this build's sources: a module made from others is stale.
    pub(super) closure: Closure,
    /// How many modules this process compiles at once, this one included.
    pub(super) at_once: u32,
    /// The places that did not serve so far.
    pub(super) passed_over: Vec<PassedOver>,
}

impl Request<'_> {
    /// Notes that a place did not serve.
    pub(super) fn miss(&mut self, place: Place, reason: impl Into<Reason>) {
        let reason = reason.into();
        let passed = PassedOver { place, reason };
        // That nothing is there is no news; that something is there and cannot be used is.
        if passed.reason.is_absence() {
            tracing::debug!(module = %self.key, %passed, "passed over");
        } else {
            tracing::warn!(module = %self.key, %passed, "passed over");
        }
        self.passed_over.push(passed);
    }
}

/// What an image is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ImageKind {
    /// Machine code.
    Cubin,
    /// Text that the driver compiles.
    Ptx,
}

/// A module that was found and verified.
pub(super) struct Found {
    pub(super) place: Place,
    pub(super) file: Option<PathBuf>,
    pub(super) compilation: Option<Compilation>,
    pub(super) entry: ManifestModule,
    pub(super) bytes: Vec<u8>,
}
