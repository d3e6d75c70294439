//! `bench allreduce`: microseconds a call by world size, size, type, route and shape, in the graph method.

use std::io::Write;
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use half::{bf16, f16};
use peersum::cudarc::driver::{CudaContext, CudaSlice};
use peersum::dispatch::{Placement, Plan, Route};
use peersum::loader::{JitMode, LoadPolicy};
use peersum::{Communicator, Cuda, Element, Error, Rendezvous};
use peersum_artifact::Dtype;

use super::timing::{Method, median, time_graph};
use crate::data::{self, Content};

/// More units a thread than this are not worth a try.
const MAX_UNITS_PER_THREAD: u64 = 24;

/// What `bench allreduce` measures.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct BenchArgs {
    /// World sizes; ranks share the cards if there are fewer.
    #[arg(long, value_delimiter = ',', default_value = "2,4,8")]
    pub(crate) world_size: Vec<u32>,
    /// Message sizes in bytes; K and M are powers of 1024.
    #[arg(long, value_delimiter = ',', default_value = "4K,16K,64K,256K,1M,4M,16M", value_parser = parse_bytes)]
    pub(crate) bytes: Vec<usize>,
    /// Element types.
    #[arg(long, value_delimiter = ',', default_value = "bf16")]
    pub(crate) dtype: Vec<Dtype>,
    /// `best` takes the dispatch table's plan, `all` every route with the shapes of --shapes, or names like push_one_shot.
    #[arg(long, value_delimiter = ',', default_value = "best")]
    pub(crate) algo: Vec<String>,
    /// Shapes to try for a named route, as BLOCKSxTHREADS.
    #[arg(long, value_delimiter = ',', value_parser = parse_shape, default_value = "1x256,2x128,8x64,16x128,16x256,16x512,33x256,33x512,66x256,66x512,132x512")]
    pub(crate) shapes: Vec<(u32, u32)>,
    /// Programmatic dependent launch.
    #[arg(long, default_value = "on", value_parser = ["on", "off"])]
    pub(crate) pdl: String,
    /// The directory of cubins.
    #[arg(long, default_value = "target/cubins")]
    pub(crate) cubins: std::path::PathBuf,
    /// Calls in one graph.
    #[arg(long, default_value_t = 50)]
    pub(crate) calls: u32,
    /// Replays that are counted.
    #[arg(long, default_value_t = 9)]
    pub(crate) replays: u32,
    /// Writes one JSON object a line.
    #[arg(long)]
    pub(crate) json: Option<std::path::PathBuf>,
}

/// One measured cell.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Measured {
    card: String,
    world_size: u32,
    devices: usize,
    dtype: Dtype,
    bytes: usize,
    placement: String,
    plan: Plan,
    pdl: bool,
    median_us: f64,
    min_us: f64,
    max_us: f64,
}

/// Every cell of one rank with the times of its replays, in microseconds a call.
type RankTimes = Vec<(Measured, Vec<f64>)>;

fn parse_bytes(text: &str) -> Result<usize, String> {
    let (digits, factor) = match text.strip_suffix(['K', 'k']) {
        Some(digits) => (digits, 1 << 10),
        None => text
            .strip_suffix(['M', 'm'])
            .map_or((text, 1), |digits| (digits, 1 << 20)),
    };
    digits
        .parse::<usize>()
        .map(|n| n * factor)
        .map_err(|_| format!("`{text}` is not a size like 4096, 64K or 16M"))
}

fn parse_shape(text: &str) -> Result<(u32, u32), String> {
    text.split_once('x')
        .and_then(|(blocks, threads)| Some((blocks.parse().ok()?, threads.parse().ok()?)))
        .ok_or_else(|| format!("`{text}` is not a shape like 16x256"))
}

fn parse_routes(names: &[String]) -> Result<Vec<Route>> {
    let mut routes = Vec::new();
    for name in names {
        match name.as_str() {
            "all" => routes.extend(Route::ALL),
            "best" => {}
            name => routes.push(
                serde_json::from_value(serde_json::Value::String(name.to_owned()))
                    .with_context(|| format!("`{name}` is no route"))?,
            ),
        }
    }
    Ok(routes)
}

/// Runs the benchmark and prints one line a cell.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    peersum::cuda::driver_present()?;
    let devices = CudaContext::device_count()? as usize;
    let contexts = (0..devices)
        .map(|ordinal| {
            let context = CudaContext::new(ordinal)?;
            // SAFETY: every slice here is used on its rank's own stream only.
            unsafe { context.disable_event_tracking() };
            Ok(context)
        })
        .collect::<Result<Vec<_>>>()?;
    let card = contexts.first().context("there is no GPU")?.name()?;
    let routes = parse_routes(&args.algo)?;
    println!(
        "# {card} x {devices}, graph of {} calls, median of {} replays, microseconds a call",
        args.calls, args.replays
    );
    let mut json = args
        .json
        .as_ref()
        .map(std::fs::File::create)
        .transpose()
        .context("creating the JSON file")?;
    for &world_size in &args.world_size {
        let measured = run_world(args, &contexts, &card, &routes, world_size)?;
        for cell in &measured {
            if let Some(json) = &mut json {
                writeln!(json, "{}", serde_json::to_string(cell)?)?;
            }
        }
        print_table(&measured, args);
    }
    Ok(())
}

/// The best plan of each route and size, and the best of all.
fn print_table(measured: &[Measured], args: &BenchArgs) {
    for &dtype in &args.dtype {
        for &bytes in &args.bytes {
            let cells = measured
                .iter()
                .filter(|cell| cell.dtype == dtype && cell.bytes == bytes);
            let mut best: Vec<&Measured> = Vec::new();
            for cell in cells {
                let same = best.iter_mut().find(|other| {
                    other.plan.route == cell.plan.route && other.placement == cell.placement
                });
                match same {
                    Some(other) if cell.median_us < other.median_us => *other = cell,
                    Some(_) => {}
                    None => best.push(cell),
                }
            }
            best.sort_by(|a, b| a.median_us.total_cmp(&b.median_us));
            for cell in best {
                let gigabytes = cell.bytes as f64 / cell.median_us / 1000.0;
                let w = f64::from(cell.world_size);
                println!(
                    "W{} {dtype} {bytes:>9} B  {:>8.2} us [{:.2}..{:.2}]  {:<18} {:>3} x {:<3} {:<10} alg {:.1} GB/s bus {:.1} GB/s",
                    cell.world_size,
                    cell.median_us,
                    cell.min_us,
                    cell.max_us,
                    format!("{:?}", cell.plan.route),
                    cell.plan.blocks,
                    cell.plan.threads,
                    cell.placement,
                    gigabytes,
                    gigabytes * 2.0 * (w - 1.0) / w,
                );
            }
        }
    }
}

fn run_world(
    args: &BenchArgs,
    contexts: &[Arc<CudaContext>],
    card: &str,
    routes: &[Route],
    world_size: u32,
) -> Result<Vec<Measured>> {
    let barrier = Barrier::new(world_size as usize);
    let results: Mutex<Vec<RankTimes>> = Mutex::new(Vec::new());
    let outcomes: Vec<Result<()>> = std::thread::scope(|scope| {
        let ranks: Vec<_> = Rendezvous::threads(world_size)
            .into_iter()
            .enumerate()
            .map(|(rank, rendezvous)| {
                let context = &contexts[rank % contexts.len()];
                let (barrier, results) = (&barrier, &results);
                scope.spawn(move || -> Result<()> {
                    let cells = run_rank(
                        args,
                        context,
                        card,
                        contexts.len(),
                        routes,
                        rendezvous,
                        barrier,
                    )
                    .unwrap_or_else(|error| {
                        // The other ranks wait for this one at a barrier that has no deadline.
                        eprintln!("rank {rank} of {world_size}: {error:#}");
                        std::process::exit(1)
                    });
                    results
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(cells);
                    Ok(())
                })
            })
            .collect();
        ranks
            .into_iter()
            .map(|rank| rank.join().unwrap_or_else(|_| bail!("a rank panicked")))
            .collect()
    });
    for outcome in outcomes {
        outcome?;
    }
    let ranks = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut merged = Vec::new();
    for index in 0..ranks.first().map_or(0, Vec::len) {
        // The rank that began last has the shortest time; the others waited for it.
        let replays = ranks[0][index].1.len();
        let shortest: Vec<f64> = (0..replays)
            .map(|replay| {
                ranks
                    .iter()
                    .map(|rank| rank[index].1[replay])
                    .fold(f64::INFINITY, f64::min)
            })
            .collect();
        let mut cell = ranks[0][index].0.clone();
        cell.median_us = median(&shortest);
        cell.min_us = shortest.iter().copied().fold(f64::INFINITY, f64::min);
        cell.max_us = shortest.iter().copied().fold(0.0, f64::max);
        merged.push(cell);
    }
    Ok(merged)
}

fn run_rank(
    args: &BenchArgs,
    context: &Arc<CudaContext>,
    card: &str,
    devices: usize,
    routes: &[Route],
    rendezvous: Rendezvous,
    barrier: &Barrier,
) -> Result<RankTimes> {
    let stream = context.new_stream()?;
    let largest = args.bytes.iter().copied().max().unwrap_or(0).max(1 << 20);
    let mut communicator = Communicator::builder()
        .rendezvous(rendezvous)
        .load_policy(
            LoadPolicy::default()
                .cubin_dir(&args.cubins)
                .jit(JitMode::Deny),
        )
        .max_bytes(largest)
        // Room for the largest call of every push route.
        .push_half_bytes((largest * 8).min(256 << 20))
        .pdl(args.pdl == "on")
        .timeout(Duration::from_secs(5))
        .build(&stream)?;
    let mut measured = Vec::new();
    for &dtype in &args.dtype {
        match dtype {
            Dtype::F16 => run_type::<f16>(
                args,
                card,
                devices,
                routes,
                &mut communicator,
                barrier,
                &mut measured,
            )?,
            Dtype::Bf16 => run_type::<bf16>(
                args,
                card,
                devices,
                routes,
                &mut communicator,
                barrier,
                &mut measured,
            )?,
            Dtype::F32 => run_type::<f32>(
                args,
                card,
                devices,
                routes,
                &mut communicator,
                barrier,
                &mut measured,
            )?,
        }
    }
    Ok(measured)
}

fn run_type<T: Element>(
    args: &BenchArgs,
    card: &str,
    devices: usize,
    routes: &[Route],
    communicator: &mut Communicator<Cuda>,
    barrier: &Barrier,
    measured: &mut RankTimes,
) -> Result<()>
where
    T::Bits: TryFrom<u32>,
{
    let stream = communicator.stream().clone();
    let method = Method {
        calls: args.calls,
        warm_up: 2,
        replays: args.replays,
    };
    for &bytes in &args.bytes {
        let len = bytes / size_of::<T>();
        let values: Vec<T> = data::input(7, communicator.rank(), len, Content::Ordinary);
        let input: CudaSlice<T> = stream.clone_htod(&values)?;
        let mut output: CudaSlice<T> = stream.alloc_zeros(len)?;
        let mut symmetric = communicator.symmetric_alloc::<T>(len)?;
        stream.memcpy_htod(&values, &mut *symmetric)?;
        let mut seen = std::collections::HashSet::new();
        let mut plans: Vec<(Placement, Option<Plan>)> = Vec::new();
        if args.algo.iter().any(|name| name == "best") {
            plans.extend([
                (Placement::Ordinary, None),
                (Placement::Symmetric, None),
                (Placement::SymmetricInPlace, None),
            ]);
        }
        for &route in routes {
            let placement = match route {
                Route::SymmetricOneShot => Placement::Symmetric,
                Route::SymmetricTwoShot => Placement::SymmetricInPlace,
                _ => Placement::Ordinary,
            };
            for &(blocks, threads) in &args.shapes {
                let places = (bytes as u64).div_ceil(16);
                let places = if matches!(route.algorithm(), peersum_artifact::Algorithm::TwoShot) {
                    places.div_ceil(u64::from(communicator.world_size()))
                } else {
                    places
                };
                // What the communicator makes of it, so that equal shapes are measured once.
                // A shape that leaves a thread with more than this is no candidate where a larger one exists.
                let per_thread = places / u64::from(blocks * threads);
                let largest = args
                    .shapes
                    .iter()
                    .map(|(blocks, threads)| blocks * threads)
                    .max();
                if per_thread > MAX_UNITS_PER_THREAD && largest != Some(blocks * threads) {
                    continue;
                }
                let useful = places.div_ceil(u64::from(threads)).min(u64::from(blocks)) as u32;
                let plan = Plan {
                    route,
                    blocks: useful.min(communicator.max_blocks()).max(1),
                    threads,
                };
                if seen.insert(plan) {
                    plans.push((placement, Some(plan)));
                }
            }
        }
        for (placement, plan) in plans {
            communicator.force_plan(plan)?;
            communicator.capture_begin()?;
            let mut recorded: Result<(), Error> = Ok(());
            for _ in 0..args.calls {
                recorded = recorded.and_then(|()| match placement {
                    Placement::Ordinary => communicator.all_reduce(&input, &mut output),
                    Placement::Symmetric => communicator.all_reduce(&*symmetric, &mut output),
                    Placement::SymmetricInPlace => {
                        communicator.all_reduce_in_place(&mut *symmetric)
                    }
                });
            }
            // SAFETY: the buffers live until after the last replay, which `time_graph` waits for.
            let graph = unsafe { communicator.capture_end()? };
            recorded?;
            let times = time_graph(communicator, &graph, method, &|| {
                barrier.wait();
            })?;
            communicator
                .synchronize()
                .with_context(|| format!("{plan:?} at {bytes} bytes"))?;
            let plan =
                plan.unwrap_or_else(|| communicator.dispatch_table().plan(placement, bytes as u64));
            let cell = Measured {
                card: card.to_owned(),
                world_size: communicator.world_size(),
                devices,
                dtype: T::DTYPE,
                bytes,
                placement: format!("{placement:?}"),
                plan,
                pdl: args.pdl == "on",
                median_us: 0.0,
                min_us: 0.0,
                max_us: 0.0,
            };
            measured.push((cell, times));
        }
        communicator.force_plan(None)?;
    }
    Ok(())
}
