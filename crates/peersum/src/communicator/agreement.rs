//! What the ranks must agree on before they share memory: every rank tells its settings, and every rank finds the same difference.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use peersum_artifact::Digest;
use peersum_kernels::abi;
use serde::{Deserialize, Serialize};

use super::builder::CommunicatorBuilder;
use super::layout::StartEpochs;
use crate::device::DeviceIdentity;
use crate::dispatch::{DispatchTable, LaunchLimits};
use crate::error::Error;
use crate::rendezvous::Group;

/// What every rank tells the others first. All but the last four fields must be equal.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) version: String,
    pub(super) abi_version: u32,
    pub(super) kernel_sources: String,
    pub(super) max_bytes: u64,
    pub(super) push_half_bytes: u64,
    pub(super) tables: String,
    pub(super) above_range: String,
    pub(super) start_epochs: (u32, u64),
    pub(super) identity: DeviceIdentity,
    pub(super) is_emulated: bool,
    /// Rank 0's tells the ranks of this group apart from those of others in the same process.
    pub(super) token: u64,
    pub(super) setup_timeout: Duration,
}

/// What every rank tells the others once it knows its modules.
#[derive(Debug, Serialize, Deserialize)]
struct Seating {
    table_digest: String,
    limits: LaunchLimits,
}

pub(super) fn exchange_hellos(
    builder: &CommunicatorBuilder,
    identity: &DeviceIdentity,
    group: &mut Group,
) -> Result<Vec<Hello>, Error> {
    let StartEpochs { push, pull } = builder.start;
    let sources: String = peersum_kernels::SOURCES
        .iter()
        .map(|source| format!("{}\0{}\0", source.path, source.text))
        .collect();
    let own = Hello {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        abi_version: abi::PEERSUM_ABI_VERSION,
        kernel_sources: Digest::of(sources.as_bytes()).to_string(),
        max_bytes: builder.max_bytes,
        push_half_bytes: builder.push_half_bytes_or_default(),
        tables: builder
            .tables
            .as_ref()
            .map_or("shipped".to_owned(), |text| {
                Digest::of(text.as_bytes()).to_string()
            }),
        above_range: builder.above_range_name(group.world_size())?,
        start_epochs: (push, pull),
        identity: identity.clone(),
        is_emulated: identity.arch.is_none(),
        token: unique_token(group),
        setup_timeout: builder.setup_timeout,
    };
    let hellos: Vec<Hello> = gather(group, "hello", &own, builder.setup_timeout)?;
    require_equal("version", &hellos, |hello| hello.version.clone())?;
    require_equal("ABI version", &hellos, |hello| {
        hello.abi_version.to_string()
    })?;
    require_equal("kernel sources", &hellos, |hello| {
        hello.kernel_sources.clone()
    })?;
    require_equal("max_bytes", &hellos, |hello| hello.max_bytes.to_string())?;
    require_equal("push_half_bytes", &hellos, |hello| {
        hello.push_half_bytes.to_string()
    })?;
    require_equal("dispatch tables", &hellos, |hello| hello.tables.clone())?;
    require_equal("above_range", &hellos, |hello| hello.above_range.clone())?;
    require_equal("start epochs", &hellos, |hello| {
        format!("{:?}", hello.start_epochs)
    })?;
    require_equal("device kind", &hellos, |hello| {
        if hello.is_emulated {
            "emulator"
        } else {
            "CUDA"
        }
        .to_owned()
    })?;
    Ok(hellos)
}

/// Compares a value over all ranks; every rank computes the same error from the same messages.
fn require_equal<T>(
    what: &'static str,
    messages: &[T],
    value: impl Fn(&T) -> String,
) -> Result<(), Error> {
    let mut values = messages.iter().map(value);
    let Some(first) = values.next() else {
        return Ok(());
    };
    match values.enumerate().find(|(_, other)| *other != first) {
        None => Ok(()),
        Some((index, other_value)) => Err(Error::SetupMismatch {
            what,
            rank: 0,
            value: first,
            other_rank: index as u32 + 1,
            other_value,
        }),
    }
}

/// The launches that every rank can make: a call has the same grid on all of them.
pub(super) fn exchange_seating(
    group: &mut Group,
    table: &DispatchTable,
    limits: LaunchLimits,
    timeout: Duration,
) -> Result<LaunchLimits, Error> {
    let own = Seating {
        table_digest: table.digest().to_string(),
        limits,
    };
    let seating: Vec<Seating> = gather(group, "seating", &own, timeout)?;
    require_equal("dispatch table", &seating, |seating| {
        seating.table_digest.clone()
    })?;
    let all = seating.iter().map(|seating| &seating.limits);
    Ok(all.fold(limits, LaunchLimits::min))
}

/// Different for every group that this process ever takes part in.
fn unique_token(group: &Group) -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let text = format!(
        "{:?} {}",
        group.peers(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    let digest = Digest::of(text.as_bytes()).to_string();
    u64::from_str_radix(&digest[..16], 16).unwrap_or_default()
}

pub(super) fn gather<T: Serialize + serde::de::DeserializeOwned>(
    group: &mut Group,
    label: &'static str,
    own: &T,
    timeout: Duration,
) -> Result<Vec<T>, Error> {
    let message = serde_json::to_vec(own).unwrap_or_default();
    let messages = group.all_gather(label, &message, timeout)?;
    messages
        .iter()
        .enumerate()
        .map(|(rank, message)| parse(label, rank, message))
        .collect()
}

/// A message that does not parse comes from another version: that is what differs.
pub(super) fn parse<T: serde::de::DeserializeOwned>(
    label: &'static str,
    rank: usize,
    message: &[u8],
) -> Result<T, Error> {
    serde_json::from_slice(message).map_err(|error| Error::SetupMismatch {
        what: "the set-up protocol",
        rank: rank as u32,
        value: format!("a {label} message that this version cannot read ({error})"),
        other_rank: rank as u32,
        other_value: env!("CARGO_PKG_VERSION").to_owned(),
    })
}
