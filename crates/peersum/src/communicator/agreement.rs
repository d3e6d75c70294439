//! What the ranks must agree on before they share memory: every rank tells its settings, and every
//! rank finds the same difference.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use peersum_artifact::Digest;
use peersum_kernels::abi;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::builder::CommunicatorBuilder;
use super::layout::StartEpochs;
use crate::device::DeviceIdentity;
use crate::dispatch::{DispatchTable, LaunchLimits};
use crate::error::Error;
use crate::rendezvous::Group;

/// What every rank tells the others first.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RankSettings {
    /// The settings that must be equal on all ranks: names, and values as text.
    shared: BTreeMap<String, String>,
    pub(super) device: DeviceIdentity,
    /// Rank 0's tells the ranks of this group apart from those of others in the same process.
    pub(super) token: u64,
}

/// Tells this rank's settings and returns those of all ranks, by rank, if they agree.
pub(super) fn exchange_settings(
    builder: &CommunicatorBuilder,
    device: &DeviceIdentity,
    group: &mut Group,
) -> Result<Vec<RankSettings>, Error> {
    let StartEpochs { push, pull } = builder.start;
    let sources: String = peersum_kernels::SOURCES
        .iter()
        .map(|source| format!("{}\0{}\0", source.path, source.text))
        .collect();
    let digest = |text: &String| Digest::of(text.as_bytes()).to_string();
    let tables = builder.tables.as_ref();
    let kind = if device.is_emulated() {
        "emulator"
    } else {
        "CUDA"
    };
    // The version comes first: ranks of two versions may differ in more.
    let shared = [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("ABI version", abi::PEERSUM_ABI_VERSION.to_string()),
        ("kernel sources", digest(&sources)),
        ("max_bytes", builder.max_bytes.to_string()),
        (
            "push_half_bytes",
            builder.push_half_bytes_or_default().to_string(),
        ),
        (
            "dispatch tables",
            tables.map_or_else(|| "shipped".to_owned(), digest),
        ),
        ("above_range", builder.above_range_name(group.world_size())?),
        ("start epochs", format!("{:?}", (push, pull))),
        ("device kind", kind.to_owned()),
    ];
    let named = shared.iter().cloned();
    let own = RankSettings {
        shared: named
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        device: device.clone(),
        token: unique_token(group),
    };
    let settings: Vec<RankSettings> = gather(group, "settings", &own, builder.setup_timeout)?;
    for (what, _) in shared {
        let value = |rank: &RankSettings| rank.shared.get(what).cloned().unwrap_or_default();
        require_equal(what, &settings, value)?;
    }
    Ok(settings)
}

/// What every rank tells the others once it knows its modules.
#[derive(Debug, Serialize, Deserialize)]
struct RankLimits {
    table_digest: String,
    limits: LaunchLimits,
}

/// The launches that every rank can make: a call has the same grid on all of them.
pub(super) fn agree_on_limits(
    group: &mut Group,
    table: &DispatchTable,
    limits: LaunchLimits,
    timeout: Duration,
) -> Result<LaunchLimits, Error> {
    let own = RankLimits {
        table_digest: table.digest().to_string(),
        limits,
    };
    let ranks: Vec<RankLimits> = gather(group, "launch limits", &own, timeout)?;
    require_equal("dispatch table", &ranks, |rank| rank.table_digest.clone())?;
    let all = ranks.iter().map(|rank| &rank.limits);
    Ok(all.fold(limits, LaunchLimits::min))
}

/// Compares a value over all ranks. Every rank computes the same error from the same messages.
pub(super) fn require_equal<T>(
    what: &'static str,
    messages: &[T],
    value: impl Fn(&T) -> String,
) -> Result<(), Error> {
    let mut values = messages.iter().map(value);
    let Some(first) = values.next() else {
        return Ok(());
    };
    match (1..).zip(values).find(|(_, other)| *other != first) {
        None => Ok(()),
        Some((other_rank, other_value)) => Err(Error::SetupMismatch {
            what,
            rank: 0,
            value: first,
            other_rank,
            other_value,
        }),
    }
}

/// Different for every group that this process ever takes part in.
fn unique_token(group: &Group) -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let text = format!("{:?} {number}", group.peers());
    let digest = Digest::of(text.as_bytes()).to_string();
    u64::from_str_radix(&digest[..16], 16).unwrap_or_default()
}

/// Sends `own` to all ranks and returns what every rank sent, by rank.
pub(super) fn gather<T: Serialize + DeserializeOwned>(
    group: &mut Group,
    label: &'static str,
    own: &T,
    timeout: Duration,
) -> Result<Vec<T>, Error> {
    let message = serde_json::to_vec(own).unwrap_or_default();
    let messages = group.all_gather(label, &message, timeout)?;
    (0..)
        .zip(&messages)
        .map(|(rank, message)| parse(label, rank, message))
        .collect()
}

/// A message that does not parse comes from another version: that is what differs.
pub(super) fn parse<T: DeserializeOwned>(
    label: &'static str,
    rank: u32,
    message: &[u8],
) -> Result<T, Error> {
    serde_json::from_slice(message).map_err(|error| Error::SetupMismatch {
        what: "the set-up protocol",
        rank,
        value: format!("a {label} message that this version cannot read ({error})"),
        other_rank: rank,
        other_value: env!("CARGO_PKG_VERSION").to_owned(),
    })
}
