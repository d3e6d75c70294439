//! Calls with RMSNorm that also write FP8.

use std::time::Duration;

use half::{bf16, f16};
use peersum::dispatch::Route;
use peersum::reference::{self, NormNumbers};
use peersum::{
    Element, Error, Failure, Fp8Output, Fp8PerToken, Fp8Static, Held, HeldFp8Output, NormError,
    NormOutput, Output, RmsNorm,
};
use peersum_emulator::{Emulator, EmulatorBuffer};

use crate::stage::{
    Comm, Content, TestElement, assert_bits, expected, failure, input, on_ranks, plan, settings,
};

const NUMBERS: NormNumbers = NormNumbers {
    epsilon: 1e-6,
    weight_offset: 1.0,
};

/// One call as all ranks know it.
#[derive(Debug, Clone, Copy)]
struct Case {
    hidden: usize,
    rows: usize,
    route: Option<Route>,
    blocks: u32,
    threads: u32,
    content: Content,
    has_residual: bool,
    has_row_scales: bool,
    is_captured: bool,
    seed: u64,
}

/// What a call leaves besides the residual.
struct Found<T: Element> {
    rows: Vec<T>,
    values: Vec<u8>,
    scales: Vec<f32>,
}

impl Case {
    fn random(random: &mut fastrand::Rng, hidden: usize, rows: usize) -> Case {
        let content = [Content::Ordinary, Content::Ordinary, Content::Special];
        Case {
            hidden,
            rows,
            // The rows replace the input, which a symmetric one-shot call cannot.
            route: random
                .choice(Route::ALL)
                .filter(|route| *route != Route::SymmetricOneShot),
            blocks: random.u32(1..=8),
            threads: random.u32(8..=24),
            content: content[random.usize(..content.len())],
            has_residual: random.bool(),
            has_row_scales: random.bool(),
            is_captured: random.u8(..4) == 0,
            seed: random.u64(..),
        }
    }

    fn len(&self) -> usize {
        self.hidden * self.rows
    }

    fn side<T: TestElement>(&self, salt: u64, rank: u32, len: usize) -> Vec<T> {
        input(self.seed ^ salt, rank, len, self.content)
    }

    fn inverse_scale(&self) -> f32 {
        // Small, ordinary, and so large that most values saturate.
        [0.01, 13.0, 1e6][self.seed as usize % 3]
    }

    /// What a rank must find.
    fn expected<T: TestElement>(&self, rank: u32, world_size: u32) -> Found<T> {
        let sum: Vec<T> = expected(self.seed, world_size, self.len(), self.content);
        let kept = match self.has_residual {
            true => reference::add_residual(&sum, &self.side(2, rank, self.len())),
            false => sum,
        };
        let rows = reference::rms_norm(&kept, &self.side(1, rank, self.hidden), NUMBERS);
        let (values, scales) = match self.has_row_scales {
            true => reference::fp8_per_token(&rows, self.hidden),
            false => (
                reference::fp8_static(&rows, self.inverse_scale()),
                vec![7.0; self.rows],
            ),
        };
        Found {
            rows,
            values,
            scales,
        }
    }

    fn check<T: TestElement>(&self, comm: &mut Comm) {
        let rank = comm.rank();
        let own: Vec<T> = input(self.seed, rank, self.len(), self.content);
        let is_symmetric = self.route.is_some_and(Route::is_symmetric);
        comm.force_plan(
            self.route
                .and_then(|route| plan(route, self.blocks, self.threads)),
        )
        .unwrap();
        let found = if is_symmetric {
            let mut symmetric = comm.symmetric_alloc::<T>(self.len()).unwrap();
            symmetric.as_view_mut().copy_from_slice(&own);
            let mut view = symmetric.as_view_mut();
            let (values, scales) = self.call::<T, _>(comm, &mut view);
            Found {
                rows: symmetric.to_vec(),
                values,
                scales,
            }
        } else {
            let mut buffer = EmulatorBuffer::from_slice(&own);
            let (values, scales) = self.call::<T, _>(comm, &mut buffer);
            Found {
                rows: buffer.to_vec(),
                values,
                scales,
            }
        };
        let expected = self.expected::<T>(rank, comm.world_size());
        assert_bits(&found.rows, &expected.rows, &(self, "rows", rank));
        assert_bits(&found.scales, &expected.scales, &(self, "scales", rank));
        assert_eq!(found.values, expected.values, "{self:?} on rank {rank}");
    }

    /// Makes the call. Returns the FP8 values and the scales.
    fn call<T: TestElement, B: Output<T, Emulator>>(
        &self,
        comm: &mut Comm,
        buffer: &mut B,
    ) -> (Vec<u8>, Vec<f32>) {
        let rank = comm.rank();
        let weight = EmulatorBuffer::from_slice(&self.side::<T>(1, rank, self.hidden));
        let norm = RmsNorm {
            weight: &weight,
            epsilon: NUMBERS.epsilon,
            weight_offset: NUMBERS.weight_offset,
        };
        let inverse_scale = &EmulatorBuffer::from_slice(&[self.inverse_scale()]);
        let mut residual = EmulatorBuffer::from_slice(&self.side::<T>(2, rank, self.len()));
        let mut values = EmulatorBuffer::from_slice(&vec![0x55_u8; self.len()]);
        let mut scales = EmulatorBuffer::from_slice(&vec![7.0_f32; self.rows]);
        match (self.is_captured, self.has_row_scales) {
            (false, false) => {
                let values = &mut values;
                let fp8 = Fp8Static {
                    values,
                    inverse_scale,
                };
                self.call_eagerly(comm, buffer, &mut residual, &norm, fp8);
            }
            (false, true) => {
                let (values, scales) = (&mut values, &mut scales);
                let fp8 = Fp8PerToken { values, scales };
                self.call_eagerly(comm, buffer, &mut residual, &norm, fp8);
            }
            (true, false) => {
                let values = &mut Held::new(&mut values);
                let fp8 = Fp8Static {
                    values,
                    inverse_scale,
                };
                self.capture(comm, buffer, &mut residual, &norm, fp8);
            }
            (true, true) => {
                let (values, scales) = (&mut Held::new(&mut values), &mut Held::new(&mut scales));
                let fp8 = Fp8PerToken { values, scales };
                self.capture(comm, buffer, &mut residual, &norm, fp8);
            }
        }
        comm.synchronize().unwrap();
        (values.to_vec(), scales.to_vec())
    }

    fn call_eagerly<T: TestElement, B: Output<T, Emulator>>(
        &self,
        comm: &mut Comm,
        buffer: &mut B,
        residual: &mut EmulatorBuffer<T>,
        norm: &RmsNorm<'_, EmulatorBuffer<T>>,
        fp8: impl Fp8Output<Emulator>,
    ) {
        match self.has_residual {
            false => comm.all_reduce_rms_norm_fp8(buffer, norm, fp8),
            true => comm.all_reduce_add_rms_norm_fp8(buffer, residual, norm, fp8),
        }
        .unwrap();
    }

    fn capture<'a, T: TestElement, B: Output<T, Emulator>>(
        &self,
        comm: &mut Comm,
        buffer: &'a mut B,
        residual: &'a mut EmulatorBuffer<T>,
        norm: &RmsNorm<'a, EmulatorBuffer<T>>,
        fp8: impl HeldFp8Output<'a, Emulator>,
    ) {
        let (mut buffer, mut residual) = (Held::new(buffer), Held::new(residual));
        let graph = comm
            .capture(|capture| match self.has_residual {
                false => capture.all_reduce_rms_norm_fp8(&mut buffer, norm, fp8),
                true => capture.all_reduce_add_rms_norm_fp8(&mut buffer, &mut residual, norm, fp8),
            })
            .unwrap();
        graph.launch(comm).unwrap();
        comm.synchronize().unwrap();
    }
}

#[test]
fn fp8_with_either_kind_of_scale_has_the_references_bits_by_every_route() {
    const SIZES: [(usize, usize); 9] = [
        (8, 1),
        (8, 7),
        (64, 3),
        (64, 128),
        (1000, 5),
        (2880, 2),
        (4096, 1),
        (8192, 2),
        (32768, 1),
    ];
    let mut random = fastrand::Rng::new();
    for world_size in [1, 2, 3, 5, 8] {
        let seed = random.u64(..);
        println!("seed {seed}");
        on_ranks(
            world_size,
            || {
                let small = settings().max_bytes(32 << 10).push_half_bytes(96 << 10);
                // As many emulated threads as the machine takes well.
                small.max_blocks(if world_size <= 3 { 8 } else { 3 })
            },
            |comm| {
                let mut random = fastrand::Rng::with_seed(seed);
                for (hidden, rows) in SIZES {
                    let case = Case::random(&mut random, hidden, rows);
                    match random.u8(..3) {
                        0 => case.check::<bf16>(comm),
                        1 => case.check::<f16>(comm),
                        _ => case.check::<f32>(comm),
                    }
                }
            },
        );
    }
}

#[test]
fn fp8_buffers_that_do_not_fit_are_refused_and_nothing_is_launched() {
    on_ranks(2, settings, |comm| {
        let weight = EmulatorBuffer::from_slice(&[bf16::ONE; 64]);
        let norm = RmsNorm {
            weight: &weight,
            epsilon: 1e-6,
            weight_offset: 0.0,
        };
        let mut buffer = EmulatorBuffer::from_slice(&[bf16::ONE; 256]);
        let mut values = EmulatorBuffer::<u8>::zeroed(272);
        let mut scales = EmulatorBuffer::<f32>::zeroed(5);
        let refused = |outcome, expected: &str| match outcome {
            Err(Error::Norm(error)) => assert_eq!(error.to_string(), expected),
            other => panic!("{other:?}"),
        };
        let fp8 = Fp8Static {
            values: &mut values.slice_mut(0..255),
            inverse_scale: &scales.slice(0..1),
        };
        let outcome = comm.all_reduce_rms_norm_fp8(&mut buffer, &norm, fp8);
        refused(outcome, "255 elements of FP8 values; the call needs 256");
        for len in [0, 2] {
            let fp8 = Fp8Static {
                values: &mut values.slice_mut(0..256),
                inverse_scale: &scales.slice(0..len),
            };
            let outcome = comm.all_reduce_rms_norm_fp8(&mut buffer, &norm, fp8);
            let expected = format!("{len} elements of inverse scale; the call needs 1");
            refused(outcome, &expected);
        }
        let fp8 = Fp8PerToken {
            values: &mut values.slice_mut(0..256),
            scales: &mut scales,
        };
        let outcome = comm.all_reduce_rms_norm_fp8(&mut buffer, &norm, fp8);
        refused(outcome, "5 elements of row scales; the call needs 4");
        let fp8 = Fp8PerToken {
            values: &mut values.slice_mut(8..264),
            scales: &mut scales.slice_mut(0..4),
        };
        match comm.all_reduce_rms_norm_fp8(&mut buffer, &norm, fp8) {
            Err(Error::Norm(NormError::Misaligned { buffer, .. })) => {
                assert_eq!(buffer, "FP8 values");
            }
            other => panic!("{other:?}"),
        }
        // Nothing of it counted.
        let fp8 = Fp8PerToken {
            values: &mut values.slice_mut(16..272),
            scales: &mut scales.slice_mut(1..5),
        };
        comm.all_reduce_rms_norm_fp8(&mut buffer, &norm, fp8)
            .unwrap();
        comm.synchronize().unwrap();
        assert_eq!(
            scales.to_vec(),
            [0.0, 1.0, 1.0, 1.0, 1.0].map(|n| n / 448.0)
        );
        assert!(values.to_vec()[16..].iter().all(|&value| value == 0x7E));
    });
}

#[test]
fn ranks_that_differ_in_the_kind_of_output_are_told_both_sides() {
    let failures = on_ranks(3, settings, |comm| {
        let weight = EmulatorBuffer::from_slice(&[bf16::ONE; 64]);
        let norm = RmsNorm {
            weight: &weight,
            epsilon: 1e-6,
            weight_offset: 0.0,
        };
        let mut buffer = EmulatorBuffer::from_slice(&[bf16::ONE; 256]);
        let mut values = EmulatorBuffer::<u8>::zeroed(256);
        let mut scales = EmulatorBuffer::<f32>::zeroed(4);
        match comm.rank() {
            1 => {
                let (values, inverse_scale) = (&mut values, &scales.slice(0..1));
                let fp8 = Fp8Static {
                    values,
                    inverse_scale,
                };
                comm.all_reduce_rms_norm_fp8(&mut buffer, &norm, fp8)
            }
            _ => {
                let (values, scales) = (&mut values, &mut scales);
                let fp8 = Fp8PerToken { values, scales };
                comm.all_reduce_rms_norm_fp8(&mut buffer, &norm, fp8)
            }
        }
        .unwrap();
        failure(comm.synchronize())
    });
    for failure in failures {
        let Failure::Disagreement { own, theirs, .. } = &failure else {
            panic!("{failure}");
        };
        let kinds = [own, theirs].map(|side| side.norm.map(|norm| norm.output));
        assert!(
            kinds.contains(&Some(NormOutput::Fp8Static))
                && kinds.contains(&Some(NormOutput::Fp8PerToken)),
            "{failure}"
        );
    }
}

#[test]
fn after_a_failure_fp8_values_and_scales_of_rows_are_nan() {
    for (route, hidden) in [
        (Route::PushOneShot, 64),
        (Route::PushOneShot, 4096),
        (Route::PullOneShot, 64),
    ] {
        let outputs = on_ranks(
            2,
            || settings().timeout(Duration::from_millis(300)),
            |comm| {
                comm.force_plan(plan(route, 2, 16)).unwrap();
                let weight = EmulatorBuffer::from_slice(&vec![bf16::ONE; hidden]);
                let norm = RmsNorm {
                    weight: &weight,
                    epsilon: 0.0,
                    weight_offset: 0.0,
                };
                let mut buffer = EmulatorBuffer::from_slice(&vec![bf16::ONE; 4 * hidden]);
                let mut values = EmulatorBuffer::<u8>::zeroed(4 * hidden);
                let mut scales = EmulatorBuffer::<f32>::zeroed(4);
                if comm.rank() == 1 {
                    return None;
                }
                let fp8 = Fp8PerToken {
                    values: &mut values,
                    scales: &mut scales,
                };
                comm.all_reduce_rms_norm_fp8(&mut buffer, &norm, fp8)
                    .unwrap();
                failure(comm.synchronize());
                Some((values.to_vec(), scales.to_vec()))
            },
        );
        let (values, scales) = outputs.into_iter().flatten().next().unwrap();
        assert!(values.iter().all(|&value| value == 0x7F), "{route:?}");
        assert!(scales.iter().all(|scale| scale.is_nan()), "{route:?}");
    }
}
