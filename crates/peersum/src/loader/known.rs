//! What this process has worked out before: parsed manifests and the closures of the embedded
//! sources.
//!
//! A communicator loads up to six modules, and each rank of a process loads its own. A manifest
//! lists hundreds, so parsing it costs more than all else that a load does. It is known by its
//! whole text, not by a path or a time stamp: a manifest that has changed is never mistaken for the
//! one before.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use peersum_artifact::{
    Closure, ClosureError, Family, Manifest, ModuleKey, SchemaError, include_closure,
};

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

/// The closure of the module's source file among `sources`; that of the embedded sources is formed
/// once.
pub(super) fn closure(
    key: ModuleKey,
    sources: &[(&str, &str)],
) -> Result<Cow<'static, Closure>, ClosureError> {
    static EMBEDDED: [OnceLock<Closure>; Family::ALL.len()] =
        [const { OnceLock::new() }; Family::ALL.len()];
    let root = key.source_root();
    if !are_embedded(sources) {
        return include_closure(root, sources).map(Cow::Owned);
    }
    let slot = &EMBEDDED[key.family as usize];
    if let Some(closure) = slot.get() {
        return Ok(Cow::Borrowed(closure));
    }
    let closure = include_closure(root, sources)?;
    Ok(Cow::Borrowed(slot.get_or_init(|| closure)))
}

/// Whether these are the very strings that `peersum-kernels` embeds.
fn are_embedded(sources: &[(&str, &str)]) -> bool {
    let embedded = peersum_kernels::SOURCES;
    sources.len() == embedded.len()
        && sources.iter().zip(embedded).all(|((path, text), source)| {
            std::ptr::eq(*path, source.path) && std::ptr::eq(*text, source.text)
        })
}
