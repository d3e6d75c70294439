//! What the ranks of one group measure of all-gather, reduce-scatter and broadcast.

use anyhow::{Context, Result, bail};
use peersum::device::Device;
use peersum::dispatch::{Placement, Plan, Route};
use peersum::reference;

use super::group::Group;
use crate::bench::candidates::candidates;
use crate::bench::ranks::{INPUT_SEED, Rank, pattern};
use crate::bench::report::{Call, Sample};
use crate::bench::timing::{Launch, Method, Times};
use crate::data::{Key, TestElement, bytes_of};
use crate::memory::{difference, lend};
use crate::operation::Operation;

/// The root of broadcasts.
pub(super) const ROOT: u32 = 0;

/// Measures every size that the flags name. Each call is checked before it is timed.
pub(super) fn measure<T: TestElement, D: Device>(
    group: &Group<'_>,
    rank: &mut Rank<'_, D>,
    samples: &mut Vec<Sample>,
) -> Result<()> {
    let args = group.args;
    let world_size = group.settings.world_size;
    // What was measured before had other data.
    rank.fill::<T>()?;
    for bytes in args.bytes(T::DTYPE) {
        let sent = args.sent_bytes(bytes, world_size);
        let mut plans: Vec<Option<Plan>> = Vec::new();
        if args.measures_best() {
            plans.push(None);
        }
        if args.routes().any(|route| route == Route::PushOneShot) {
            let launched = |plan| rank.communicator.launched(plan, sent as u64);
            let route = Route::PushOneShot;
            let forced = candidates(route, &args.shapes, sent as u64, world_size, launched);
            plans.extend(forced.into_iter().map(Some));
        }
        for plan in plans {
            rank.communicator.force_plan(plan)?;
            check::<T, D>(rank, args.op, sent)
                .with_context(|| format!("{:?} of {sent} bytes a rank, {plan:?}", args.op))?;
            let operation = operation_of(args.op);
            for &launch in &args.method {
                let times = time::<T, D>(rank, args.op, sent, args.call.method(launch))?;
                let call = Call {
                    operation: args.op,
                    placement: Some(Placement::Ordinary),
                    plan: rank.communicator.collective_launch(operation, sent as u64),
                    from_table: plan.is_none(),
                    ..group.call::<T>(bytes, launch)
                };
                samples.push(Sample::new(call, times));
            }
        }
        rank.communicator.force_plan(None)?;
    }
    Ok(())
}

fn operation_of(operation: Operation) -> peersum::Operation {
    match operation {
        Operation::ReduceScatter => peersum::Operation::ReduceScatter,
        Operation::Broadcast => peersum::Operation::Broadcast { root: ROOT },
        _ => peersum::Operation::AllGather,
    }
}

/// Times calls in which each rank sends `sent` bytes to each peer that it has data for.
fn time<T: TestElement, D: Device>(
    rank: &mut Rank<'_, D>,
    operation: Operation,
    sent: usize,
    method: Method,
) -> Result<Times> {
    let chunk = sent / size_of::<T>();
    let whole = chunk * rank.communicator.world_size() as usize;
    let (input_len, output_len) = match operation {
        Operation::AllGather => (chunk, whole),
        Operation::ReduceScatter => (whole, chunk),
        _ => (0, chunk),
    };
    let input = rank.input_address(Placement::Ordinary);
    let output = rank.output_address();
    let Rank {
        communicator,
        stopwatch,
        ..
    } = rank;
    let device = &stopwatch.device;
    // SAFETY: each place holds the largest message, aligned for every type, and outlives the wait
    // below.
    let times = unsafe {
        lend::<T, D, _, _>(device, input, input_len, |input| {
            lend::<T, D, _, _>(device, output, output_len, |output| {
                stopwatch.time(method, |_| {
                    Ok(match operation {
                        Operation::AllGather => communicator.all_gather(&*input, output),
                        Operation::ReduceScatter => communicator.reduce_scatter(&*input, output),
                        _ => communicator.broadcast(output, ROOT),
                    }?)
                })
            })
        })
    }?;
    communicator.synchronize()?;
    Ok(times)
}

/// Makes one call on a poisoned output, and compares with the reference.
fn check<T: TestElement, D: Device>(
    rank: &mut Rank<'_, D>,
    operation: Operation,
    sent: usize,
) -> Result<()> {
    let (own, world_size) = (rank.communicator.rank(), rank.communicator.world_size());
    let chunk = sent / size_of::<T>();
    let len = match operation {
        Operation::ReduceScatter => chunk * world_size as usize,
        _ => chunk,
    };
    let inputs: Vec<Vec<T>> = (0..world_size)
        .map(|rank_of_input| {
            let key = Key::of(INPUT_SEED, rank_of_input);
            let pattern: Vec<T> = pattern(key, rank.bytes());
            pattern.iter().copied().cycle().take(len).collect()
        })
        .collect();
    let slices: Vec<&[T]> = inputs.iter().map(Vec::as_slice).collect();
    let expected = match operation {
        Operation::AllGather => reference::all_gather(&slices),
        Operation::ReduceScatter => reference::reduce_scatter(&slices, own as usize),
        _ => reference::broadcast(&slices, ROOT as usize),
    };
    rank.poison_output()?;
    if operation == Operation::Broadcast && own == ROOT {
        let data = bytes_of(slices[ROOT as usize]);
        // SAFETY: the output holds the largest message.
        unsafe { rank.stopwatch.device.write(rank.output_address(), data)? };
    }
    let once = Method {
        launch: Launch::Eager,
        calls: 1,
        warm_up: 0,
        replays: 1,
    };
    time::<T, D>(rank, operation, sent, once)?;
    let mut found = vec![0; size_of_val(expected.as_slice())];
    let device = &rank.stopwatch.device;
    // SAFETY: as above.
    unsafe { device.read(rank.output_address(), &mut found)? };
    match difference::<T>(&found, bytes_of(&expected), "output") {
        Some(wrong) => bail!("{wrong}"),
        None => Ok(()),
    }
}
