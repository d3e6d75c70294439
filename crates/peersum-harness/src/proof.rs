//! The proof on a card: every module from the manifest, every route, type and world size, bits against the plain Rust reference.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use half::{bf16, f16};
use peersum::device::{Device, DeviceStream};
use peersum::dispatch::{Plan, Route};
use peersum::loader::{JitMode, LoadPolicy, Place};
use peersum::reference;
use peersum::{Communicator, Element, Output, Rendezvous};

use crate::data::{self, Content};
use crate::memory::TestBuffer;

/// Settings of a proof.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ProofArgs {
    /// The directory of cubins and manifest.json.
    #[arg(long, default_value = "target/cubins")]
    pub(crate) cubins: std::path::PathBuf,
    /// World sizes, each with its ranks as threads that share device 0.
    #[arg(long, value_delimiter = ',', default_value = "2,3,4,5,6,7,8")]
    pub(crate) world_size: Vec<u32>,
    /// Elements a call: odd, below a unit, and large ones by default.
    #[arg(long, value_delimiter = ',', default_value = "1,1037,65536,300001")]
    pub(crate) elements: Vec<usize>,
    /// Blocks of each call, as far as the ranks' share of the device goes.
    #[arg(long, default_value_t = 16)]
    pub(crate) blocks: u32,
    /// Threads a block.
    #[arg(long, default_value_t = 256)]
    pub(crate) threads: u32,
    /// The seed of all inputs.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

/// What one rank reports.
struct Outcome {
    cases: usize,
    modules: usize,
    mismatches: Vec<String>,
}

/// Runs all world sizes. `stream` makes a stream for a rank.
pub(crate) fn run<S: DeviceStream + Send + 'static>(
    args: &ProofArgs,
    stream: impl Fn(u32) -> Result<S> + Sync,
) -> Result<()> {
    let mut summary = BTreeMap::new();
    for &world_size in &args.world_size {
        let began = Instant::now();
        let outcomes: Vec<Result<Outcome>> = std::thread::scope(|scope| {
            let ranks: Vec<_> = Rendezvous::threads(world_size)
                .into_iter()
                .map(|rendezvous| {
                    let stream = &stream;
                    scope.spawn(move || run_rank(args, rendezvous, &stream))
                })
                .collect();
            ranks
                .into_iter()
                .map(|rank| rank.join().unwrap_or_else(|_| bail!("a rank panicked")))
                .collect()
        });
        let mut cases = 0;
        let mut modules = 0;
        for (rank, outcome) in outcomes.into_iter().enumerate() {
            let outcome = outcome.with_context(|| format!("rank {rank} of {world_size}"))?;
            if !outcome.mismatches.is_empty() {
                bail!(
                    "world size {world_size}, rank {rank}: {}",
                    outcome.mismatches.join("\n")
                );
            }
            cases += outcome.cases;
            modules = outcome.modules;
        }
        println!(
            "world size {world_size}: {modules} modules from the directory, {cases} results equal to the reference bit for bit, {:.1} s",
            began.elapsed().as_secs_f64()
        );
        summary.insert(world_size, (modules, cases));
    }
    let modules: usize = summary.values().map(|(modules, _)| modules).sum();
    let cases: usize = summary.values().map(|(_, cases)| cases).sum();
    println!("proof: {modules} modules, {cases} results, all equal");
    Ok(())
}

fn run_rank<S: DeviceStream>(
    args: &ProofArgs,
    rendezvous: Rendezvous,
    stream: &impl Fn(u32) -> Result<S>,
) -> Result<Outcome> {
    let rank = rendezvous.rank();
    let stream = stream(rank)?;
    // A second handle on the same stream: the communicator keeps its own.
    let device = S::Device::open(&stream)?;
    let policy = LoadPolicy::default()
        .cubin_dir(&args.cubins)
        .jit(JitMode::Deny);
    let mut communicator = Communicator::builder()
        .rendezvous(rendezvous)
        .load_policy(policy)
        .max_bytes(4 << 20)
        .timeout(std::time::Duration::from_secs(5))
        .build(&stream)?;
    let from_directory = communicator
        .load_reports()
        .iter()
        .filter(|report| matches!(report.place, Place::Directory(_)))
        .count();
    let mut outcome = Outcome {
        cases: 0,
        modules: from_directory,
        mismatches: Vec::new(),
    };
    run_type::<bf16, S>(args, &device, &mut communicator, &mut outcome)?;
    run_type::<f16, S>(args, &device, &mut communicator, &mut outcome)?;
    run_type::<f32, S>(args, &device, &mut communicator, &mut outcome)?;
    Ok(outcome)
}

fn run_type<T: Element, S: DeviceStream>(
    args: &ProofArgs,
    device: &S::Device,
    communicator: &mut Communicator<S::Device>,
    outcome: &mut Outcome,
) -> Result<()>
where
    T::Bits: TryFrom<u32>,
{
    let (rank, world_size) = (communicator.rank(), communicator.world_size());
    for &len in &args.elements {
        let mut symmetric = communicator.symmetric_alloc::<T>(len)?;
        for (index, (route, content)) in Route::ALL
            .into_iter()
            .flat_map(|route| [(route, Content::Ordinary), (route, Content::Special)])
            .enumerate()
        {
            let seed = args.seed + 1000 * len as u64 + index as u64;
            let inputs: Vec<Vec<T>> = (0..world_size)
                .map(|rank| data::input(seed, rank, len, content))
                .collect();
            let slices: Vec<&[T]> = inputs.iter().map(Vec::as_slice).collect();
            let expected = reference::all_reduce(&slices);
            communicator.force_plan(Some(Plan {
                route,
                blocks: args.blocks,
                threads: args.threads,
            }))?;
            let own = &inputs[rank as usize];
            // Ordinary buffers start at another offset on every rank, so that some are aligned to units and some are not.
            let offset = (rank as usize + index) % 3;
            let input = TestBuffer::<T, S::Device>::new(device, len, offset)?;
            let output = TestBuffer::<T, S::Device>::new(device, len, (offset + index) % 2)?;
            input.write(device, own)?;
            match route {
                Route::SymmetricOneShot | Route::SymmetricTwoShot => {
                    // SAFETY: the symmetric buffer holds `len` elements.
                    unsafe {
                        let address = symmetric_address::<T, S>(&mut symmetric, device);
                        device.write(
                            address,
                            std::slice::from_raw_parts(
                                own.as_ptr().cast(),
                                size_of_val(own.as_slice()),
                            ),
                        )?;
                    }
                    if route == Route::SymmetricOneShot {
                        output.with(device, |output| {
                            communicator.all_reduce(&*symmetric, output)
                        })?;
                    } else {
                        communicator.all_reduce_in_place(&mut symmetric.as_view_mut())?;
                    }
                }
                // In place and out of place in turn.
                _ if content == Content::Special => {
                    input.with(device, |buffer| communicator.all_reduce_in_place(buffer))?
                }
                _ => input.with(device, |input| {
                    output.with(device, |output| communicator.all_reduce(&*input, output))
                })?,
            }
            communicator.synchronize()?;
            let (actual, guards) = match route {
                Route::SymmetricTwoShot => {
                    let mut values = vec![T::CANONICAL_NAN; len];
                    let address = symmetric_address::<T, S>(&mut symmetric, device);
                    // SAFETY: the symmetric buffer holds `len` elements, which any bytes are.
                    unsafe {
                        device.read(
                            address,
                            std::slice::from_raw_parts_mut(
                                values.as_mut_ptr().cast(),
                                len * size_of::<T>(),
                            ),
                        )?;
                    }
                    (values, true)
                }
                Route::SymmetricOneShot => output.read(device)?,
                _ if content == Content::Special => input.read(device)?,
                _ => output.read(device)?,
            };
            let wrong = (0..len).find(|&i| actual[i].raw() != expected[i].raw());
            if let Some(i) = wrong {
                outcome.mismatches.push(format!(
                    "{route:?} {} x {len}, {content:?}, seed {seed}: element {i} is {:x}, expected {:x}",
                    T::DTYPE,
                    actual[i].raw(),
                    expected[i].raw()
                ));
            }
            if !guards {
                outcome.mismatches.push(format!(
                    "{route:?} {} x {len}: wrote outside its output",
                    T::DTYPE
                ));
            }
            outcome.cases += 1;
        }
    }
    Ok(())
}

fn symmetric_address<T: Element, S: DeviceStream>(
    symmetric: &mut peersum::SymmetricBuffer<T, S::Device>,
    device: &S::Device,
) -> u64 {
    symmetric
        .as_view_mut()
        .with_output(device.stream(), |address| address)
}
