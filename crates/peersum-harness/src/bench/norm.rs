//! A rank that makes calls with RMSNorm: their times, and a check of their results.

use anyhow::{Result, bail, ensure};
use peersum::device::{Device, MemorySharing};
use peersum::dispatch::{Placement, Plan};
use peersum::reference::{self, NormNumbers};
use peersum::{Element, RmsNorm, Scalar};
use peersum_kernels::abi;

use super::ranks::{INPUT_SEED, Rank, pattern, write_repeated};
use super::timing::{Launch, Method, Times};
use crate::data::{Key, TestElement, bytes_of};
use crate::memory::{Guarded, difference, lend};
use crate::norm_output::{Fp8Buffers, NormOutput};

/// As in most models.
const NUMBERS: NormNumbers = NormNumbers {
    epsilon: 1e-6,
    weight_offset: 0.0,
};

/// With which few FP8 values saturate.
const INVERSE_SCALE: f32 = 100.0;

/// How a call is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// As the dispatch table says.
    Table,
    /// By the fused kernel in its own shape, if one row fits the slots.
    Fused,
    /// The all-reduce of the dispatch table, and the kernel that normalises behind it.
    Unfused,
    /// By the fused kernel in this shape.
    FusedAs(Plan),
    /// The all-reduce by this plan, and the kernel that normalises behind it.
    UnfusedAs(Plan),
}

impl Way {
    /// Whether the fused kernel is asked for; `None`: the table decides.
    pub(crate) fn fuses(self) -> Option<bool> {
        match self {
            Way::Table => None,
            Way::Fused | Way::FusedAs(_) => Some(true),
            Way::Unfused | Way::UnfusedAs(_) => Some(false),
        }
    }
}

/// A call with residual and RMSNorm.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormCall {
    pub(crate) placement: Placement,
    pub(crate) rows: u32,
    pub(crate) hidden: u32,
    pub(crate) output: NormOutput,
    pub(crate) way: Way,
}

impl NormCall {
    /// Whether the result replaces the input.
    fn is_in_place(&self) -> bool {
        self.placement == Placement::SymmetricInPlace || self.output.has_fp8()
    }

    fn elements(&self) -> usize {
        self.rows as usize * self.hidden as usize
    }
}

/// One rank with what such calls need beside its messages.
pub(crate) struct NormRank<'r, 'a, D: Device> {
    pub(crate) rank: &'r mut Rank<'a, D>,
    residual: Guarded<D>,
    weight: Guarded<D>,
    fp8_values: Guarded<D>,
    fp8_scales: Guarded<D>,
}

/// What a first call leaves.
pub(crate) struct Expected<T> {
    output: Vec<T>,
    residual: Vec<T>,
    fp8_values: Vec<u8>,
    fp8_scales: Vec<f32>,
}

impl<'r, 'a, D: Device> NormRank<'r, 'a, D> {
    /// # Errors
    /// The device refuses the memory.
    pub(crate) fn new(rank: &'r mut Rank<'a, D>) -> Result<Self> {
        let device = &rank.stopwatch.device;
        let guarded = |bytes| Guarded::new(device, bytes, MemorySharing::Auto);
        Ok(NormRank {
            residual: guarded(rank.bytes())?,
            weight: guarded(abi::PEERSUM_MAX_HIDDEN as usize * size_of::<f32>())?,
            // An element has at least two bytes, a row at least one unit.
            fp8_values: guarded(rank.bytes() / 2)?,
            fp8_scales: guarded(rank.bytes() / 4)?,
            rank,
        })
    }

    /// This rank's own residual, which repeats, and its weight.
    fn sides<T: TestElement>(&self, hidden: u32) -> (Vec<T>, Vec<T>) {
        let side = |layer, bytes| {
            let key = Key::new(INPUT_SEED, 0, layer, self.rank.stopwatch.peers.rank());
            pattern(key, bytes)
        };
        let weight_bytes = hidden as usize * size_of::<T>();
        (side(1, self.rank.bytes()), side(2, weight_bytes))
    }

    /// What the first call with such rows must leave on this rank.
    pub(crate) fn expected<T: TestElement>(
        &self,
        rows: u32,
        hidden: u32,
        kind: NormOutput,
    ) -> Expected<T> {
        let bytes = self.rank.bytes();
        let ranks = 0..self.rank.communicator.world_size();
        let inputs: Vec<Vec<T>> = ranks
            .map(|rank| pattern(Key::of(INPUT_SEED, rank), bytes))
            .collect();
        let slices: Vec<&[T]> = inputs.iter().map(Vec::as_slice).collect();
        let (residual, weight) = self.sides::<T>(hidden);
        let kept = reference::add_residual(&reference::all_reduce(&slices), &residual);
        let elements = rows as usize * hidden as usize;
        let residual: Vec<T> = kept.iter().copied().cycle().take(elements).collect();
        let output = reference::rms_norm(&residual, &weight, NUMBERS);
        let (fp8_values, fp8_scales) = kind.expected(&output, hidden as usize, INVERSE_SCALE);
        Expected {
            output,
            residual,
            fp8_values,
            fp8_scales,
        }
    }

    /// What the call launches of the fused kernel. `None` if it is not fused.
    ///
    /// # Errors
    /// The kernels cannot run in the shape that the call asks for.
    pub(crate) fn fused_launch<T: Element>(&mut self, call: NormCall) -> Result<Option<Plan>> {
        self.force(Some(call.way))?;
        let communicator = &self.rank.communicator;
        let launch = communicator.fused_launch::<T>(call.placement, call.rows, call.hidden);
        self.force(None)?;
        Ok(launch)
    }

    fn force(&mut self, way: Option<Way>) -> Result<()> {
        let plan = match way {
            Some(Way::FusedAs(plan) | Way::UnfusedAs(plan)) => Some(plan),
            Some(Way::Table | Way::Fused | Way::Unfused) | None => None,
        };
        self.rank.communicator.force_plan(plan)?;
        let fuses = way.and_then(Way::fuses);
        self.rank.communicator.force_fused(fuses);
        Ok(())
    }

    /// Writes what the next call reads, and poisons the outputs.
    ///
    /// # Errors
    /// The device refuses.
    pub(crate) fn prepare<T: TestElement>(&mut self, hidden: u32) -> Result<()> {
        self.rank.fill::<T>()?;
        let device = &self.rank.stopwatch.device;
        let (residual, weight) = self.sides::<T>(hidden);
        self.weight.write(device, 0, bytes_of(&weight))?;
        // SAFETY: the allocation has room for the largest message.
        unsafe { write_repeated(device, self.residual.base(), self.rank.bytes(), &residual)? };
        self.fp8_values.poison(device)?;
        self.fp8_scales.poison(device)?;
        self.fp8_scales
            .write(device, 0, bytes_of(&[INVERSE_SCALE]))?;
        self.rank.poison_output()
    }

    /// Makes one call, launched as it will be when it is timed, and compares every bit that it
    /// leaves.
    ///
    /// # Errors
    /// The results are wrong, or the call failed.
    pub(crate) fn check<T: TestElement>(
        &mut self,
        call: NormCall,
        launch: Launch,
        expected: &Expected<T>,
    ) -> Result<()> {
        self.prepare::<T>(call.hidden)?;
        let once = Method {
            launch,
            calls: 1,
            warm_up: 0,
            replays: 1,
        };
        self.time::<T>(call, once)?;
        let output = match call.is_in_place() {
            true => self.rank.input_address(call.placement),
            false => self.rank.output_address(),
        };
        self.compare(output, &expected.output, "output")?;
        self.compare(self.residual.base(), &expected.residual, "residual")?;
        let (values, scales) = (&expected.fp8_values, &expected.fp8_scales);
        self.compare(self.fp8_values.base(), values, "FP8 values")?;
        self.compare(self.fp8_scales.base(), scales, "FP8 scales")
    }

    fn compare<T: Scalar>(&self, address: u64, expected: &[T], name: &str) -> Result<()> {
        let mut bytes = vec![0; size_of_val(expected)];
        // SAFETY: memory of this rank, with room for the largest message.
        unsafe { self.rank.stopwatch.device.read(address, &mut bytes)? };
        match difference::<T>(&bytes, bytes_of(expected), name) {
            Some(wrong) => bail!("{wrong}"),
            None => Ok(()),
        }
    }

    /// Times calls. Each finds the residual that the one before has left.
    ///
    /// # Errors
    /// A call failed.
    pub(crate) fn time<T: Element>(&mut self, call: NormCall, method: Method) -> Result<Times> {
        self.force(Some(call.way))?;
        let len = call.elements();
        ensure!(
            len * size_of::<T>() <= self.rank.bytes(),
            "{} x {} elements are more than the largest message",
            call.rows,
            call.hidden
        );
        let (weight, residual) = (self.weight.base(), self.residual.base());
        let (values, scales) = (self.fp8_values.base(), self.fp8_scales.base());
        let scale_count = call.output.scales(call.rows as usize);
        let input = self.rank.input_address(call.placement);
        let output = self.rank.output_address();
        let Rank {
            communicator,
            stopwatch,
            ..
        } = &mut *self.rank;
        let device = &stopwatch.device;
        // SAFETY: each array has at least so many elements, begins at a multiple of 16 bytes, and
        // outlives the wait in `Stopwatch::time`.
        let times = unsafe {
            lend::<T, D, _, _>(device, weight, call.hidden as usize, |weight| {
                let norm = RmsNorm {
                    weight: &*weight,
                    epsilon: NUMBERS.epsilon,
                    weight_offset: NUMBERS.weight_offset,
                };
                lend::<T, D, _, _>(device, residual, len, |residual| {
                    lend::<T, D, _, _>(device, input, len, |input| {
                        if !call.is_in_place() {
                            return lend::<T, D, _, _>(device, output, len, |output| {
                                stopwatch.time(method, |_| {
                                    Ok(communicator.all_reduce_add_rms_norm(
                                        &*input, residual, &norm, output,
                                    )?)
                                })
                            });
                        }
                        lend::<u8, D, _, _>(device, values, len, |values| {
                            lend::<f32, D, _, _>(device, scales, scale_count, |scales| {
                                stopwatch.time(method, |_| {
                                    let residual = Some(&mut *residual);
                                    let fp8 = Fp8Buffers {
                                        values: &mut *values,
                                        scales: &mut *scales,
                                    };
                                    let kind = call.output;
                                    Ok(kind.call_in_place(
                                        communicator,
                                        input,
                                        residual,
                                        &norm,
                                        fp8,
                                    )?)
                                })
                            })
                        })
                    })
                })
            })
        }?;
        self.rank.communicator.synchronize()?;
        self.force(None)?;
        Ok(times)
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use peersum::loader::LoadPolicy;

    use super::*;
    use crate::bench::ranks::{GroupSettings, run_group};
    use crate::machine::Emulators;

    #[test]
    fn a_wrong_bit_of_an_output_or_the_residual_is_found() {
        let settings = GroupSettings {
            world_size: 2,
            largest_bytes: 1024,
            pdl: true,
            load_policy: LoadPolicy::default(),
            max_blocks: None,
            tables: None,
        };
        let call = |way| NormCall {
            placement: Placement::Symmetric,
            rows: 3,
            hidden: 64,
            output: NormOutput::Same,
            way,
        };
        let fp8_call = NormCall {
            placement: Placement::Ordinary,
            output: NormOutput::Fp8PerToken,
            ..call(Way::Fused)
        };
        run_group(&Emulators::default(), &settings, |rank| {
            let rank = &mut NormRank::new(rank)?;
            for way in [Way::Fused, Way::Unfused] {
                let mut expected = rank.expected::<bf16>(3, 64, NormOutput::Same);
                rank.check(call(way), Launch::Graph, &expected)?;
                expected.output[191] = bf16::from_bits(expected.output[191].to_bits() ^ 1);
                let error = rank.check(call(way), Launch::Graph, &expected).unwrap_err();
                assert!(
                    error.to_string().starts_with("output, element 191"),
                    "{error}"
                );

                let mut expected = rank.expected::<f16>(3, 64, NormOutput::Same);
                expected.residual[7] = f16::from_bits(expected.residual[7].to_bits() ^ 1);
                let error = rank.check(call(way), Launch::Eager, &expected).unwrap_err();
                assert!(
                    error.to_string().starts_with("residual, element 7"),
                    "{error}"
                );
            }
            let mut expected = rank.expected::<bf16>(3, 64, fp8_call.output);
            rank.check(fp8_call, Launch::Graph, &expected)?;
            expected.fp8_scales[2] += 1.0;
            let error = rank.check(fp8_call, Launch::Graph, &expected).unwrap_err();
            assert!(
                error.to_string().starts_with("FP8 scales, element 2"),
                "{error}"
            );
            Ok(())
        })
        .unwrap();
    }
}
