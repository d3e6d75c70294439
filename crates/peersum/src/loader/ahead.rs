//! Looking for a module among those that were compiled ahead of time.

use std::cmp::Reverse;
use std::path::Path;
use std::sync::Arc;

use peersum_artifact::pack::Pack;
use peersum_artifact::{Manifest, ManifestModule, Target, VerifyError, verify_file};

use super::known;
use super::place::Place;
use super::policy::{Environment, JitMode};
use super::reason::Reason;
use super::search::{Found, ImageKind, Search};

/// What reads and verifies the file of an entry.
type Read<'a> = Box<dyn Fn(&ManifestModule) -> Result<Vec<u8>, VerifyError> + 'a>;

impl<'a> Search<'a> {
    /// Looks for a cubin or for PTX in the directories and the pack.
    pub(super) fn compiled_ahead(&mut self, kind: ImageKind) -> Option<Found> {
        let policy = self.policy;
        // The driver would compile PTX.
        if kind == ImageKind::Ptx && policy.jit != JitMode::Allow {
            self.miss(Place::Ptx(None), Reason::JitMode(policy.jit));
            return None;
        }
        // Each place with its directory, which the pack has not, or with why there is none.
        let named = policy.cubin_dir.as_deref();
        let named =
            named.map(|directory| (Place::Directory(directory.into()), Ok(Some(directory))));
        let environment = match &policy.environment {
            Environment::NotRead => None,
            Environment::Ignored => {
                Some((Place::EnvDirectory(None), Err(Reason::EnvironmentIgnored)))
            }
            Environment::Read { cubin_dir } => Some((
                Place::EnvDirectory(cubin_dir.clone()),
                cubin_dir.as_deref().map(Some).ok_or(Reason::NotSet),
            )),
        };
        let pack = (Place::Pack, Ok(None));
        for (place, directory) in named.into_iter().chain(environment).chain([pack]) {
            match directory {
                Ok(directory) => {
                    let found = self.look_in(place, directory, kind);
                    if found.is_some() {
                        return found;
                    }
                }
                // Said once, for the cubins.
                Err(reason) if kind == ImageKind::Cubin => self.miss(place, reason),
                Err(_) => {}
            }
        }
        None
    }

    /// Looks in a directory, or in the pack if there is none. Takes the best entry that holds: the
    /// nearest architecture first, then lower ones that serve the device as well.
    fn look_in(
        &mut self,
        place: Place,
        directory: Option<&'a Path>,
        kind: ImageKind,
    ) -> Option<Found> {
        let ptx = kind == ImageKind::Ptx;
        let place = if ptx {
            Place::Ptx(directory.map(Path::to_owned))
        } else {
            place
        };
        let opened = self.open(directory);
        let (manifest, read) = opened
            .map_err(|reason| self.miss(place.clone(), reason))
            .ok()?;
        let (module, device) = (self.key, self.device.arch);
        let of_module = || manifest.modules.iter().filter(|entry| entry.key == module);
        let serves =
            |target: Target| matches!(target, Target::Ptx(_)) == ptx && target.serves(device);
        let mut candidates: Vec<_> = of_module().filter(|entry| serves(entry.target)).collect();
        candidates.sort_by_key(|entry| Reverse(entry.target));
        if candidates.is_empty() {
            let listed = of_module().map(|entry| entry.target.to_string()).collect();
            let reason = Reason::NoEntry {
                module,
                device,
                ptx,
                listed,
            };
            self.miss(place.clone(), reason);
        }
        for entry in candidates {
            let checked = self.check(&manifest, entry);
            match checked.and_then(|()| read(entry).map_err(Reason::File)) {
                Ok(bytes) => {
                    return Some(Found {
                        file: directory.map(|directory| directory.join(entry.file_name())),
                        place,
                        compilation: None,
                        entry: entry.clone(),
                        bytes,
                    });
                }
                Err(reason) => self.miss(place.clone(), reason),
            }
        }
        None
    }

    /// The manifest of a directory, or of the pack if there is none.
    fn open(&self, directory: Option<&'a Path>) -> Result<(Arc<Manifest>, Read<'a>), Reason> {
        if self.policy.jit == JitMode::Force {
            return Err(Reason::JitMode(JitMode::Force));
        }
        if let Some(directory) = directory {
            let manifest = Manifest::read_dir_with(directory, known::manifest)?;
            let read: Read<'a> = Box::new(move |entry| verify_file(directory, entry));
            return Ok((manifest, read));
        }
        let pack = Pack::parse_with(self.kernels.pack, known::manifest)?;
        let pack = pack.ok_or(Reason::EmptyPack)?;
        let manifest = Arc::clone(pack.manifest());
        Ok((manifest, Box::new(move |entry| pack.verified(entry))))
    }

    /// What can be said without the file: whether it was compiled from these sources, and whether
    /// the driver would load it.
    fn check(&self, manifest: &Manifest, entry: &ManifestModule) -> Result<(), Reason> {
        let file = || entry.file_name();
        if entry.closure_digest != self.closure.digest {
            return Err(Reason::StaleSources {
                file: file(),
                expected: self.closure.digest,
                found: entry.closure_digest,
            });
        }
        // A driver whose version is not known counts as new enough: it says so itself if it is not.
        let Some(driver) = self.device.driver_version else {
            return Ok(());
        };
        match (entry.ptx_version, manifest.toolkit.toolkit()) {
            (Some(ptx), _) if !driver.compiles_ptx(ptx) => Err(Reason::PtxTooNew {
                file: file(),
                ptx,
                driver,
            }),
            (None, Some(toolkit)) if !driver.loads_cubins_of(toolkit) => {
                Err(Reason::DriverTooOld {
                    file: file(),
                    toolkit,
                    driver,
                })
            }
            _ => Ok(()),
        }
    }
}
