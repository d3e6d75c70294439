//! Looking for a module among those that were compiled ahead of time.

use std::path::Path;

use peersum_artifact::pack::Pack;
use peersum_artifact::{
    Closure, Manifest, ManifestModule, ModuleKey, Target, VerifyError, verify_file,
};

use super::DeviceTarget;
use super::known;
use super::report::Reason;

/// What is looked for.
pub(super) struct Wanted<'a> {
    pub(super) key: ModuleKey,
    pub(super) device: &'a DeviceTarget,
    /// The closure of this build's sources: a module made from others is stale.
    pub(super) closure: &'a Closure,
    /// PTX instead of a cubin.
    pub(super) ptx: bool,
}

/// A module that was found and verified.
pub(super) struct Found {
    pub(super) entry: ManifestModule,
    pub(super) bytes: Vec<u8>,
}

/// What came of looking at one place: the module, and what was passed over there before or instead.
pub(super) struct Outcome {
    pub(super) found: Option<Found>,
    pub(super) passed_over: Vec<Reason>,
}

impl From<Reason> for Outcome {
    fn from(reason: Reason) -> Self {
        Self {
            found: None,
            passed_over: vec![reason],
        }
    }
}

impl Wanted<'_> {
    /// Looks in a directory of compiled modules.
    pub(super) fn in_directory(&self, directory: &Path) -> Outcome {
        match Manifest::read_dir_with(directory, known::manifest) {
            Ok(manifest) => self.in_manifest(&manifest, |entry| verify_file(directory, entry)),
            Err(error) => Reason::Manifest(error).into(),
        }
    }

    /// Looks in an embedded pack.
    pub(super) fn in_pack(&self, pack: &[u8]) -> Outcome {
        match Pack::parse_with(pack, known::manifest) {
            Ok(Some(pack)) => self.in_manifest(pack.manifest(), |entry| pack.verified(entry)),
            Ok(None) => Reason::EmptyPack.into(),
            Err(error) => Reason::Pack(error).into(),
        }
    }

    /// Takes the best entry that holds: the nearest architecture first, a lower one that serves as well after it.
    fn in_manifest(
        &self,
        manifest: &Manifest,
        read: impl Fn(&ManifestModule) -> Result<Vec<u8>, VerifyError>,
    ) -> Outcome {
        let of_module = || {
            manifest
                .modules
                .iter()
                .filter(|entry| entry.key == self.key)
        };
        let mut candidates: Vec<&ManifestModule> = of_module()
            .filter(|entry| {
                matches!(entry.target, Target::Ptx(_)) == self.ptx
                    && entry.target.serves(self.device.arch)
            })
            .collect();
        candidates.sort_by_key(|entry| std::cmp::Reverse(entry.target));
        let mut passed_over = Vec::new();
        for entry in candidates {
            match self
                .check(manifest, entry)
                .and_then(|()| read(entry).map_err(Reason::File))
            {
                Ok(bytes) => {
                    return Outcome {
                        found: Some(Found {
                            entry: entry.clone(),
                            bytes,
                        }),
                        passed_over,
                    };
                }
                Err(reason) => passed_over.push(reason),
            }
        }
        if passed_over.is_empty() {
            passed_over.push(Reason::NoEntry {
                module: self.key,
                device: self.device.arch,
                ptx: self.ptx,
                listed: of_module().map(|entry| entry.target.to_string()).collect(),
            });
        }
        Outcome {
            found: None,
            passed_over,
        }
    }

    /// What can be said without the file: whether it is of these sources, and whether the driver would take it.
    fn check(&self, manifest: &Manifest, entry: &ManifestModule) -> Result<(), Reason> {
        let file = || entry.file_name();
        if entry.closure_digest != self.closure.digest {
            return Err(Reason::StaleSources {
                file: file(),
                expected: self.closure.digest,
                found: entry.closure_digest,
            });
        }
        // A driver whose version is not known is believed to be new enough: it says so itself when it is not.
        let Some(driver) = self.device.driver_version else {
            return Ok(());
        };
        match entry.ptx_version {
            Some(ptx) if !driver.compiles_ptx(ptx) => Err(Reason::PtxTooNew {
                file: file(),
                ptx,
                driver,
            }),
            Some(_) => Ok(()),
            None => match manifest.toolkit.toolkit() {
                Some(toolkit) if !driver.loads_cubins_of(toolkit) => Err(Reason::DriverTooOld {
                    file: file(),
                    toolkit,
                    driver,
                }),
                _ => Ok(()),
            },
        }
    }
}
