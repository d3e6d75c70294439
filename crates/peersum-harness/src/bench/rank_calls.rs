//! A rank that makes calls: what they launch, their times, and a check of their results.

use anyhow::{Context, Result, bail, ensure};
use peersum::device::Device;
use peersum::dispatch::{Placement, Plan};
use peersum::{Communicator, Element, Scalar, reference};

use super::call::{MeasuredCall, ROOT};
use super::norm_arrays::{INVERSE_SCALE, NUMBERS, small};
use super::ranks::{DATA_SEED, Rank};
use super::timing::{Launch, Method, Times};
use crate::data::{self, Content, Key, TestElement, bytes_of};
use crate::memory::{difference, lend, write_repeated};
use crate::norm_output::Fp8Buffers;
use crate::operation::Operation;

/// What a call launches.
#[derive(Default)]
pub(crate) struct Launched {
    /// The fused kernel, or else the kernel that moves or sums.
    pub(crate) plan: Option<Plan>,
    pub(crate) is_fused: bool,
    /// Whether the library launches the same by itself.
    pub(crate) by_table: bool,
}

/// What a checked call must leave. Arrays that are longer repeat it.
struct Expected<T> {
    output: Vec<T>,
    residual: Vec<T>,
    fp8_values: Vec<u8>,
    fp8_scales: Vec<f32>,
}

impl Launched {
    /// # Errors
    /// The kernels cannot run in the shape that the call asks for.
    pub(crate) fn of<T: Element, D: Device>(
        communicator: &mut Communicator<D>,
        call: &MeasuredCall,
    ) -> Result<Launched> {
        let fused = |communicator: &Communicator<D>| match call.operation {
            Operation::RmsNorm => {
                let (placement, rows) = (call.placement, call.rows::<T>());
                communicator.fused_launch::<T>(placement, rows, call.hidden)
            }
            _ => None,
        };
        let fuses_by_table = fused(communicator).is_some();
        force(communicator, call.plan, call.fuses)?;
        let fused = fused(communicator);
        let sent = call.sent_bytes(communicator.world_size()) as u64;
        let moving = match call.operation {
            Operation::AllGather => Some(peersum::Operation::AllGather),
            Operation::ReduceScatter => Some(peersum::Operation::ReduceScatter),
            Operation::Broadcast => Some(peersum::Operation::Broadcast { root: ROOT }),
            Operation::AllReduce | Operation::RmsNorm => None,
        };
        let plan = match moving {
            Some(operation) => communicator.collective_launch(operation, sent),
            None => {
                let of_table = communicator.plan(call.placement, sent);
                Some(communicator.launched(call.plan.unwrap_or(of_table), sent))
            }
        };
        force(communicator, None, None)?;
        Ok(Launched {
            plan: fused.or(plan),
            is_fused: fused.is_some(),
            by_table: call.plan.is_none() && fused.is_some() == fuses_by_table,
        })
    }
}

fn force<D: Device>(
    communicator: &mut Communicator<D>,
    plan: Option<Plan>,
    fuses: Option<bool>,
) -> Result<()> {
    communicator.force_plan(plan)?;
    communicator.force_fused(fuses);
    Ok(())
}

impl<D: Device> Rank<'_, D> {
    /// Makes one call, launched as it will be when it is timed, on poisoned outputs, with data that
    /// no other call has, and compares every bit with the reference. The input holds other data
    /// after it.
    ///
    /// # Errors
    /// The result is wrong, or the call failed.
    pub(crate) fn check<T: TestElement>(
        &mut self,
        call: &MeasuredCall,
        launch: Launch,
    ) -> Result<()> {
        let checked = self
            .prepare::<T>(call)
            .and_then(|expected| self.compare(call, launch, &expected));
        checked.with_context(|| format!("{} {call:?}", T::DTYPE))
    }

    /// Writes what the next call reads, poisons its outputs, and returns what it must leave.
    fn prepare<T: TestElement>(&mut self, call: &MeasuredCall) -> Result<Expected<T>> {
        self.checks += 1;
        let (own, world_size) = (self.communicator.rank(), self.communicator.world_size());
        let (device, memory, checks) = (&self.stopwatch.device, &self.memory, self.checks);
        // Layers: 0 is the input, 1 the residual, 2 the weight.
        let pattern = |layer, rank, len| -> Vec<T> {
            let key = Key::new(DATA_SEED, checks, layer, rank);
            data::input(Content::Ordinary, key, len)
        };
        let [len, _] = call.lengths::<T>(world_size);
        let period = call.period::<T>(len);
        let mut inputs: Vec<Vec<T>> = (0..world_size)
            .map(|rank| pattern(0, rank, period))
            .collect();
        if call.operation == Operation::RmsNorm {
            inputs = inputs.into_iter().map(small).collect();
        }
        if !call.operation.all_reduces() {
            // What its output has does not repeat.
            for input in &mut inputs {
                *input = input.iter().copied().cycle().take(len).collect();
            }
        }
        let slices: Vec<&[T]> = inputs.iter().map(Vec::as_slice).collect();
        memory.output.poison(device)?;
        let input = match call.operation {
            Operation::Broadcast => memory.output.base(),
            _ => memory.input_address(call.placement),
        };
        if call.operation != Operation::Broadcast || own == ROOT {
            let bytes = len * size_of::<T>();
            // SAFETY: each place has room for the largest message.
            unsafe { write_repeated(device, input, bytes, slices[own as usize])? };
        }
        let mut expected = Expected {
            output: match call.operation {
                Operation::AllReduce | Operation::RmsNorm => reference::all_reduce(&slices),
                Operation::AllGather => reference::all_gather(&slices),
                Operation::ReduceScatter => reference::reduce_scatter(&slices, own as usize),
                Operation::Broadcast => reference::broadcast(&slices, ROOT as usize),
            },
            residual: Vec::new(),
            fp8_values: Vec::new(),
            fp8_scales: Vec::new(),
        };
        if call.operation == Operation::RmsNorm {
            let hidden = call.hidden as usize;
            let (residual, weight) = (pattern(1, own, period), small(pattern(2, own, hidden)));
            memory.norm.prepare(device, len, &residual, &weight)?;
            expected.residual = reference::add_residual(&expected.output, &residual);
            expected.output = reference::rms_norm(&expected.residual, &weight, NUMBERS);
            (expected.fp8_values, expected.fp8_scales) =
                call.output
                    .expected(&expected.output, hidden, INVERSE_SCALE);
        }
        Ok(expected)
    }

    /// Makes one call, and compares what it leaves.
    fn compare<T: TestElement>(
        &mut self,
        call: &MeasuredCall,
        launch: Launch,
        expected: &Expected<T>,
    ) -> Result<()> {
        let once = Method {
            launch,
            calls: 1,
            warm_up: 0,
            replays: 1,
        };
        self.time::<T>(call, once)?;
        let memory = &self.memory;
        let output = match call.is_in_place() {
            true => memory.input_address(call.placement),
            false => memory.output.base(),
        };
        let [_, len] = call.lengths::<T>(self.communicator.world_size());
        self.compare_array(output, len, &expected.output, "output")?;
        if call.operation == Operation::RmsNorm {
            let norm = &memory.norm;
            let scales = call.output.scales(call.rows::<T>() as usize);
            let values = if call.output.has_fp8() { len } else { 0 };
            self.compare_array(norm.residual.base(), len, &expected.residual, "residual")?;
            let (address, name) = (norm.fp8_values.base(), "FP8 values");
            self.compare_array(address, values, &expected.fp8_values, name)?;
            let (address, name) = (norm.fp8_scales.base(), "FP8 scales");
            self.compare_array(address, scales, &expected.fp8_scales, name)?;
        }
        Ok(())
    }

    /// Fails unless `len` elements repeat `expected`.
    fn compare_array<T: Scalar>(
        &self,
        address: u64,
        len: usize,
        expected: &[T],
        name: &str,
    ) -> Result<()> {
        let mut found = vec![0; len * size_of::<T>()];
        // SAFETY: memory of this rank, with room for the largest message.
        unsafe { self.stopwatch.device.read(address, &mut found)? };
        let expected = bytes_of(expected);
        let expected = expected.repeat(found.len().div_ceil(expected.len().max(1)));
        ensure!(expected.len() >= found.len(), "no reference for {name}");
        match difference::<T>(&found, &expected, name) {
            Some(wrong) => bail!("{wrong}"),
            None => Ok(()),
        }
    }

    /// Times calls. Each finds the residual that the one before has left.
    ///
    /// # Errors
    /// A call failed.
    pub(crate) fn time<T: Element>(
        &mut self,
        call: &MeasuredCall,
        method: Method,
    ) -> Result<Times> {
        let [input_len, output_len] = call.lengths::<T>(self.communicator.world_size());
        ensure!(
            input_len.max(output_len) * size_of::<T>() <= self.memory.bytes,
            "the message is larger than the largest one"
        );
        force(&mut self.communicator, call.plan, call.fuses)?;
        let input = self.memory.input_address(call.placement);
        let output = self.memory.output.base();
        let (communicator, memory) = (&mut self.communicator, &self.memory);
        let (stopwatch, device) = (&self.stopwatch, &self.stopwatch.device);
        let is_in_place = call.is_in_place();
        // SAFETY: each array has at least so many elements, begins at a multiple of 16 bytes, and
        // outlives the wait below; the symmetric buffer itself is not used meanwhile.
        let times = unsafe {
            lend::<T, D, _, _>(device, input, input_len, |input| {
                lend::<T, D, _, _>(device, output, output_len, |output| match call.operation {
                    Operation::RmsNorm => {
                        memory
                            .norm
                            .lend(device, call, |norm, residual, values, scales| {
                                stopwatch.time(method, |_| {
                                    if !is_in_place {
                                        return Ok(communicator.all_reduce_add_rms_norm(
                                            &*input, residual, norm, output,
                                        )?);
                                    }
                                    let (values, scales) = (&mut *values, &mut *scales);
                                    let fp8 = Fp8Buffers { values, scales };
                                    let residual = Some(&mut *residual);
                                    let kind = call.output;
                                    Ok(kind.call_in_place(
                                        communicator,
                                        input,
                                        residual,
                                        norm,
                                        fp8,
                                    )?)
                                })
                            })
                    }
                    operation => stopwatch.time(method, |_| {
                        Ok(match operation {
                            Operation::AllGather => communicator.all_gather(&*input, output),
                            Operation::ReduceScatter => {
                                communicator.reduce_scatter(&*input, output)
                            }
                            Operation::Broadcast => communicator.broadcast(output, ROOT),
                            _ if is_in_place => communicator.all_reduce_in_place(input),
                            _ => communicator.all_reduce(&*input, output),
                        }?)
                    }),
                })
            })
        }?;
        self.communicator.synchronize()?;
        force(&mut self.communicator, None, None)?;
        Ok(times)
    }

    /// As [`Rank::time`] for all-reduces of ordinary input, without what a call adds to the launch
    /// of its kernel. `None` if the call takes several launches.
    pub(crate) fn time_bare<T: Element>(
        &mut self,
        bytes: usize,
        method: Method,
    ) -> Result<Option<Times>> {
        let input = self.memory.input_address(Placement::Ordinary);
        let (output, len) = (self.memory.output.base(), bytes / size_of::<T>());
        // SAFETY: both arrays hold so many elements and outlive the wait below; all ranks measure
        // the same, so they launch equally often.
        let times = unsafe {
            let launch = self.communicator.bare_launch::<T>(input, output, len);
            launch.map(|launch| self.stopwatch.time(method, |_| Ok(launch()?)))
        };
        let times = times.transpose()?;
        self.communicator.synchronize()?;
        Ok(times)
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::bench::ranks::{GroupSettings, run_group};
    use crate::machine::Emulators;
    use crate::norm_output::NormOutput;

    /// More than a pattern.
    const LARGEST: usize = (1 << 16) + 1024;

    fn run(body: impl Fn(&mut Rank<'_, peersum_emulator::Emulator>) -> Result<()> + Sync) {
        let settings = GroupSettings {
            world_size: 3,
            largest_bytes: LARGEST,
            normalises: true,
            pdl: true,
            ..GroupSettings::default()
        };
        run_group(&Emulators::default(), &settings, body).unwrap();
    }

    #[test]
    fn a_checked_call_is_right_whatever_was_called_before_it() {
        run(|rank| {
            for placement in Placement::ALL {
                for bytes in [16, 1024, LARGEST] {
                    let call = MeasuredCall {
                        placement,
                        ..MeasuredCall::new(Operation::AllReduce, bytes)
                    };
                    rank.check::<bf16>(&call, Launch::Eager)?;
                    rank.check::<f32>(&call, Launch::Graph)?;
                }
            }
            for operation in [
                Operation::AllGather,
                Operation::ReduceScatter,
                Operation::Broadcast,
            ] {
                rank.check::<bf16>(&MeasuredCall::new(operation, 1024), Launch::Graph)?;
            }
            Ok(())
        });
    }

    #[test]
    fn a_wrong_bit_of_an_output_or_the_residual_is_found() {
        let rows = MeasuredCall {
            placement: Placement::Symmetric,
            ..MeasuredCall::of_rows(3, 64, 2)
        };
        let fp8 = MeasuredCall {
            placement: Placement::Ordinary,
            output: NormOutput::Fp8PerToken,
            fuses: Some(true),
            ..rows
        };
        let wrong = |found: Result<()>, expected: &str| {
            let error = found.unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        };
        run(|rank| {
            let large = MeasuredCall::new(Operation::AllReduce, LARGEST);
            let mut expected = rank.prepare::<bf16>(&large)?;
            expected.output[7] = bf16::from_bits(expected.output[7].to_bits() ^ 1);
            let found = rank.compare(&large, Launch::Eager, &expected);
            wrong(found, "output, element 7");
            for fuses in [true, false].map(Some) {
                let call = MeasuredCall { fuses, ..rows };
                let mut expected = rank.prepare::<bf16>(&call)?;
                expected.output[191] = bf16::from_bits(expected.output[191].to_bits() ^ 1);
                let found = rank.compare(&call, Launch::Graph, &expected);
                wrong(found, "output, element 191");

                let mut expected = rank.prepare::<f16>(&call)?;
                expected.residual[7] = f16::from_bits(expected.residual[7].to_bits() ^ 1);
                let found = rank.compare(&call, Launch::Eager, &expected);
                wrong(found, "residual, element 7");
            }
            rank.check::<bf16>(&fp8, Launch::Graph)?;
            let mut expected = rank.prepare::<bf16>(&fp8)?;
            expected.fp8_scales[2] += 1.0;
            let found = rank.compare(&fp8, Launch::Graph, &expected);
            wrong(found, "FP8 scales, element 2");
            Ok(())
        });
    }
}
