//! The manifests that this process has read before.
//!
//! A communicator loads up to ten modules, and each rank of a process loads its own. A manifest
//! lists hundreds, so parsing it costs more than all else that a load does. It is known by its
//! whole text, not by a path or a time stamp: a manifest that has changed is never mistaken for the
//! one before.

use std::sync::{Arc, Mutex, PoisonError};

use peersum_artifact::{Manifest, SchemaError};

/// How many manifests are kept: those of a policy's two directories and of the pack, and one more.
const KEPT: usize = 4;

/// The texts and what they say, the one used last at the end.
static MANIFESTS: Mutex<Vec<(Box<str>, Arc<Manifest>)>> = Mutex::new(Vec::new());

/// As [`Manifest::parse`], for a text that was perhaps parsed before.
pub(super) fn manifest(text: &str) -> Result<Arc<Manifest>, SchemaError> {
    // Held while parsing, so that threads that arrive together parse once.
    let mut manifests = MANIFESTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(at) = manifests.iter().position(|(known, _)| **known == *text) {
        let known = manifests.remove(at);
        let manifest = Arc::clone(&known.1);
        manifests.push(known);
        return Ok(manifest);
    }
    let manifest = Arc::new(Manifest::parse(text)?);
    if manifests.len() == KEPT {
        manifests.remove(0);
    }
    manifests.push((text.into(), Arc::clone(&manifest)));
    Ok(manifest)
}
