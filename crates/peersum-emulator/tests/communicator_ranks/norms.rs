//! Calls with RMSNorm: the reference's bits, whatever the route, shape, batch and kind of call.

use half::{bf16, f16};
use peersum::dispatch::Route;
use peersum::reference::{self, NormNumbers};
use peersum::{Error, Failure, Held, NormError, RmsNorm, SymmetricBuffer};
use peersum_emulator::EmulatorBuffer;

use crate::stage::{
    Comm, Content, TestElement, assert_all_nan, assert_bits, expected, failure, input, on_ranks,
    plan, poison, settings,
};

const HIDDEN: [usize; 12] = [
    8, 64, 1024, 2880, 3072, 4096, 5120, 7168, 8192, 12288, 16384, 32768,
];
const ROWS: [usize; 9] = [1, 2, 3, 7, 16, 64, 128, 513, 2048];

/// One call as all ranks know it.
#[derive(Debug, Clone, Copy)]
struct Case {
    hidden: usize,
    rows: usize,
    route: Option<Route>,
    blocks: u32,
    threads: u32,
    content: Content,
    numbers: NormNumbers,
    has_residual: bool,
    in_place: bool,
    is_symmetric: bool,
    is_captured: bool,
    seed: u64,
}

impl Case {
    fn random(random: &mut fastrand::Rng, hidden: usize, rows: usize) -> Case {
        let route = random.choice(Route::ALL).filter(|_| random.u8(..3) != 0);
        let content = [Content::Ordinary, Content::Ordinary, Content::Special];
        let in_place = match route {
            Some(Route::SymmetricOneShot) => false,
            Some(Route::SymmetricTwoShot) => true,
            _ => random.bool(),
        };
        Case {
            hidden,
            rows,
            route,
            blocks: random.u32(1..=8),
            threads: random.u32(8..=24),
            content: content[random.usize(..content.len())],
            numbers: NormNumbers {
                epsilon: [0.0, 1e-6, 1e-5][random.usize(..3)],
                weight_offset: [0.0, 1.0, -0.0][random.usize(..3)],
            },
            has_residual: random.bool(),
            in_place,
            is_symmetric: route.map_or_else(|| random.u8(..3) == 0, Route::is_symmetric),
            is_captured: random.u8(..4) == 0,
            seed: random.u64(..),
        }
    }

    /// Residual and weight of a rank: each has its own.
    fn side<T: TestElement>(&self, salt: u64, rank: u32, len: usize) -> Vec<T> {
        input(self.seed ^ salt, rank, len, self.content)
    }

    /// What the output and the residual of a rank must become.
    fn expected<T: TestElement>(&self, rank: u32, world_size: u32) -> (Vec<T>, Vec<T>) {
        let len = self.hidden * self.rows;
        let sum: Vec<T> = expected(self.seed, world_size, len, self.content);
        let weight = self.side(1, rank, self.hidden);
        let kept = match self.has_residual {
            true => reference::add_residual(&sum, &self.side(2, rank, len)),
            false => sum,
        };
        let normalised = reference::rms_norm(&kept, &weight, self.numbers);
        (normalised, kept)
    }

    /// Makes the call and compares what it leaves with the reference.
    fn check<T: TestElement>(
        &self,
        comm: &mut Comm,
        symmetric: &mut SymmetricBuffer<T, peersum_emulator::Emulator>,
    ) {
        let (rank, len) = (comm.rank(), self.hidden * self.rows);
        let forced = self
            .route
            .and_then(|route| plan(route, self.blocks, self.threads));
        comm.force_plan(forced).unwrap();
        let own: Vec<T> = input(self.seed, rank, len, self.content);
        let weight = EmulatorBuffer::from_slice(&self.side::<T>(1, rank, self.hidden));
        let mut residual = EmulatorBuffer::from_slice(&self.side::<T>(2, rank, len));
        let norm = RmsNorm {
            weight: &weight,
            epsilon: self.numbers.epsilon,
            weight_offset: self.numbers.weight_offset,
        };
        let before = if self.in_place {
            own.clone()
        } else {
            poison(len)
        };
        let mut output = EmulatorBuffer::from_slice(&before);
        let input = EmulatorBuffer::from_slice(&own);
        if self.is_symmetric {
            let all = [own.clone(), poison(symmetric.len() - len)].concat();
            symmetric.as_view_mut().copy_from_slice(&all);
            let mut part = symmetric.as_view_mut();
            let mut part = part.slice_mut(0..len);
            match (self.in_place, self.has_residual) {
                (false, false) => comm.all_reduce_rms_norm(&part, &norm, &mut output),
                (false, true) => {
                    comm.all_reduce_add_rms_norm(&part, &mut residual, &norm, &mut output)
                }
                (true, false) => comm.all_reduce_rms_norm_in_place(&mut part, &norm),
                (true, true) => {
                    comm.all_reduce_add_rms_norm_in_place(&mut part, &mut residual, &norm)
                }
            }
            .unwrap();
        } else if self.is_captured {
            self.capture(comm, &input, &mut residual, &norm, &mut output);
        } else {
            match (self.in_place, self.has_residual) {
                (false, false) => comm.all_reduce_rms_norm(&input, &norm, &mut output),
                (false, true) => {
                    comm.all_reduce_add_rms_norm(&input, &mut residual, &norm, &mut output)
                }
                (true, false) => comm.all_reduce_rms_norm_in_place(&mut output, &norm),
                (true, true) => {
                    comm.all_reduce_add_rms_norm_in_place(&mut output, &mut residual, &norm)
                }
            }
            .unwrap();
        }
        comm.synchronize().unwrap();
        let (normalised, kept) = self.expected::<T>(rank, comm.world_size());
        let output = output.to_vec();
        if self.is_symmetric {
            // In place the buffer has the rows; otherwise it has what it had.
            let (buffer, rows) = match self.in_place {
                true => (normalised, own),
                false => (own, normalised),
            };
            let buffer = [buffer, poison(symmetric.len() - len)].concat();
            assert_bits(&symmetric.to_vec(), &buffer, &(self, "symmetric", rank));
            assert_bits(&output, &rows, &(self, "output", rank));
        } else {
            assert_bits(&output, &normalised, &(self, "output", rank));
            assert_bits(&input.to_vec(), &own, &(self, "input", rank));
        }
        if self.has_residual {
            assert_bits(&residual.to_vec(), &kept, &(self, "residual", rank));
        }
    }

    fn capture<T: TestElement>(
        &self,
        comm: &mut Comm,
        input: &EmulatorBuffer<T>,
        residual: &mut EmulatorBuffer<T>,
        norm: &RmsNorm<'_, EmulatorBuffer<T>>,
        output: &mut EmulatorBuffer<T>,
    ) {
        let mut input = EmulatorBuffer::from_slice(&input.to_vec());
        let input = Held::new(&mut input);
        let (mut residual, mut output) = (Held::new(residual), Held::new(output));
        let graph = comm
            .capture(|capture| match (self.in_place, self.has_residual) {
                (false, false) => capture.all_reduce_rms_norm(&input, norm, &mut output),
                (false, true) => {
                    capture.all_reduce_add_rms_norm(&input, &mut residual, norm, &mut output)
                }
                (true, false) => capture.all_reduce_rms_norm_in_place(&mut output, norm),
                (true, true) => {
                    capture.all_reduce_add_rms_norm_in_place(&mut output, &mut residual, norm)
                }
            })
            .unwrap();
        graph.launch(comm).unwrap();
        comm.synchronize().unwrap();
    }
}

fn run(world_size: u32, seed: u64, sizes: &[(usize, usize)]) {
    println!("seed {seed}");
    on_ranks(
        world_size,
        || {
            let small = settings().max_bytes(32 << 10).push_half_bytes(96 << 10);
            small.max_blocks(16)
        },
        |comm| {
            let longest = sizes.iter().map(|(hidden, rows)| hidden * rows).max();
            let longest = longest.unwrap_or(0);
            let mut bf16s = comm.symmetric_alloc::<bf16>(longest).unwrap();
            let mut f16s = comm.symmetric_alloc::<f16>(longest).unwrap();
            let mut f32s = comm.symmetric_alloc::<f32>(longest).unwrap();
            let mut random = fastrand::Rng::with_seed(seed);
            for &(hidden, rows) in sizes {
                let case = Case::random(&mut random, hidden, rows);
                match random.u8(..3) {
                    0 => case.check(comm, &mut bf16s),
                    1 => case.check(comm, &mut f16s),
                    _ => case.check(comm, &mut f32s),
                }
            }
        },
    );
}

#[test]
fn every_hidden_size_with_few_rows_and_every_row_count_with_short_rows_give_the_references_bits() {
    let few_rows = HIDDEN
        .iter()
        .flat_map(|&hidden| (1..=3).map(move |rows| (hidden, rows)));
    let short_rows = ROWS.iter().map(|&rows| (64, rows));
    let sizes: Vec<_> = few_rows.chain(short_rows).collect();
    let mut random = fastrand::Rng::new();
    // The grid has the others.
    for world_size in [1, 2, 3, 5, 8] {
        run(world_size, random.u64(..), &sizes);
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    const HIDDEN: usize = 1000;
    let row: Vec<bf16> = input(7, 0, HIDDEN, Content::Ordinary);
    let routes = [
        Route::PushOneShot,
        Route::PushTwoShot,
        Route::PullOneShot,
        Route::PullTwoShot,
    ];
    let results = on_ranks(2, settings, |comm| {
        let weight = EmulatorBuffer::from_slice(&input::<bf16>(8, 0, HIDDEN, Content::Ordinary));
        let norm = RmsNorm {
            weight: &weight,
            epsilon: 1e-6,
            weight_offset: 0.0,
        };
        let mut found = Vec::new();
        for route in routes {
            for (rows, place) in [
                (1, 0),
                (7, 0),
                (7, 3),
                (7, 6),
                (513, 0),
                (513, 256),
                (513, 512),
            ] {
                for threads in [8, 64] {
                    comm.force_plan(plan(route, 3, threads)).unwrap();
                    let mut batch: Vec<bf16> = input(
                        9 + rows as u64,
                        comm.rank(),
                        HIDDEN * rows,
                        Content::Ordinary,
                    );
                    batch[place * HIDDEN..][..HIDDEN].copy_from_slice(&row);
                    let mut buffer = EmulatorBuffer::from_slice(&batch);
                    comm.all_reduce_rms_norm_in_place(&mut buffer, &norm)
                        .unwrap();
                    comm.synchronize().unwrap();
                    found.push(buffer.to_vec()[place * HIDDEN..][..HIDDEN].to_vec());
                }
            }
        }
        found
    });
    let first = &results[0][0];
    let sum = reference::all_reduce(&[&row[..], &row]);
    let weight = input::<bf16>(8, 0, HIDDEN, Content::Ordinary);
    let numbers = NormNumbers {
        epsilon: 1e-6,
        weight_offset: 0.0,
    };
    let right = reference::rms_norm(&sum, &weight, numbers);
    assert_bits(first, &right, &"the row alone");
    for other in results.iter().flatten() {
        assert_bits(other, first, &"the same row in another batch");
    }
}

/// The error of a call that was refused for its arguments.
fn refused(outcome: Result<(), Error>) -> NormError {
    match outcome {
        Err(Error::Norm(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn numbers_that_no_norm_has_are_refused() {
    on_ranks(2, settings, |comm| {
        let weight = EmulatorBuffer::from_slice(&[bf16::ONE; 64]);
        let mut buffer = EmulatorBuffer::from_slice(&[bf16::ONE; 256]);
        for (epsilon, weight_offset, expected) in [
            (-1.0, 0.0, "epsilon"),
            (f32::NAN, 0.0, "epsilon"),
            (f32::INFINITY, 0.0, "epsilon"),
            (0.0, f32::NAN, "weight_offset"),
            (0.0, f32::NEG_INFINITY, "weight_offset"),
        ] {
            let norm = RmsNorm {
                weight: &weight,
                epsilon,
                weight_offset,
            };
            match refused(comm.all_reduce_rms_norm_in_place(&mut buffer, &norm)) {
                NormError::Parameter { name, .. } => assert_eq!(name, expected),
                other => panic!("{other}"),
            }
        }
    });
}

#[test]
fn buffers_that_do_not_fit_are_refused_and_nothing_is_launched() {
    on_ranks(2, settings, |comm| {
        let weight = EmulatorBuffer::from_slice(&[bf16::ONE; 64]);
        let input = EmulatorBuffer::from_slice(&[bf16::ONE; 256]);
        let mut residual = EmulatorBuffer::from_slice(&[bf16::ONE; 256]);
        let mut output = EmulatorBuffer::from_slice(&[bf16::ONE; 256]);
        let good = RmsNorm {
            weight: &weight,
            epsilon: 1e-6,
            weight_offset: 0.0,
        };
        let error =
            refused(comm.all_reduce_rms_norm_in_place(&mut output.slice_mut(0..200), &good));
        let (elements, hidden) = (200, 64);
        assert_eq!(error, NormError::Rows { elements, hidden });
        for hidden in [0, 12] {
            let norm = RmsNorm {
                weight: &weight.slice(0..hidden),
                epsilon: 0.0,
                weight_offset: 0.0,
            };
            let error = refused(comm.all_reduce_rms_norm(&input, &norm, &mut output));
            assert_eq!(error, NormError::Hidden { hidden, unit: 8 });
        }
        let outcome = comm.all_reduce_rms_norm(&input, &good, &mut output.slice_mut(0..64));
        let is_mismatch = matches!(outcome, Err(Error::LengthMismatch { output: 64, .. }));
        assert!(is_mismatch, "{outcome:?}");
        let mut short = residual.slice_mut(0..64);
        let error = refused(comm.all_reduce_add_rms_norm(&input, &mut short, &good, &mut output));
        let (input_len, residual_len) = (256, 64);
        let expected = NormError::ResidualLength {
            input: input_len,
            residual: residual_len,
        };
        assert_eq!(error, expected);
        let mut misaligned = output.slice_mut(1..65);
        let error = refused(comm.all_reduce_rms_norm_in_place(&mut misaligned, &good));
        assert!(matches!(error, NormError::Misaligned { .. }), "{error}");
        comm.all_reduce_rms_norm(&input.slice(0..0), &good, &mut output.slice_mut(0..0))
            .unwrap();
        // Nothing of it counted: the ranks still agree, and the next call works.
        comm.all_reduce_add_rms_norm(&input, &mut residual, &good, &mut output)
            .unwrap();
        comm.synchronize().unwrap();
        assert_eq!(residual.to_vec()[0], bf16::from_f32(3.0));
    });
}

/// What a rank of a group calls that another calls otherwise.
#[derive(Debug, Clone, Copy)]
enum Different {
    Epsilon,
    WeightOffset,
    Hidden,
    Residual,
    Operation,
}

#[test]
fn ranks_that_differ_in_a_norm_are_told_both_sides() {
    use Different::{Epsilon, Hidden, Operation, Residual, WeightOffset};
    for different in [Epsilon, WeightOffset, Hidden, Residual, Operation] {
        for (world_size, route) in [
            (2, Route::PushOneShot),
            (3, Route::PushOneShot),
            (2, Route::PushTwoShot),
            (3, Route::PullTwoShot),
        ] {
            let failures = on_ranks(world_size, settings, |comm| {
                comm.force_plan(plan(route, 2, 16)).unwrap();
                let is_other = comm.rank() == 1;
                let hidden = if is_other && matches!(different, Hidden) {
                    32
                } else {
                    64
                };
                let weight = EmulatorBuffer::from_slice(&vec![bf16::ONE; hidden]);
                let norm = RmsNorm {
                    weight: &weight,
                    epsilon: if is_other && matches!(different, Epsilon) {
                        1e-5
                    } else {
                        1e-6
                    },
                    weight_offset: f32::from(is_other && matches!(different, WeightOffset)),
                };
                let input = EmulatorBuffer::from_slice(&[bf16::ONE; 256]);
                let mut residual = EmulatorBuffer::from_slice(&[bf16::ONE; 256]);
                let mut output = EmulatorBuffer::from_slice(&[bf16::ONE; 256]);
                match different {
                    Residual if is_other => comm.all_reduce_rms_norm(&input, &norm, &mut output),
                    Operation if is_other => comm.all_reduce(&input, &mut output),
                    _ => comm.all_reduce_add_rms_norm(&input, &mut residual, &norm, &mut output),
                }
                .unwrap();
                failure(comm.synchronize())
            });
            for (rank, failure) in failures.into_iter().enumerate() {
                let Failure::Disagreement {
                    own, theirs, peer, ..
                } = &failure
                else {
                    panic!("{different:?} by {route:?}, rank {rank}: {failure}");
                };
                assert!(rank == 1 || *peer == 1, "{failure}");
                let sides = [own.norm, theirs.norm];
                let is_told = match (different, sides) {
                    (Operation, _) => own.operation != theirs.operation,
                    (Epsilon, [Some(own), Some(theirs)]) => own.epsilon() != theirs.epsilon(),
                    (WeightOffset, [Some(own), Some(theirs)]) => {
                        own.weight_offset() != theirs.weight_offset()
                    }
                    (Hidden, [Some(own), Some(theirs)]) => own.hidden != theirs.hidden,
                    (Residual, [Some(own), Some(theirs)]) => {
                        own.has_residual != theirs.has_residual
                    }
                    _ => false,
                };
                assert!(
                    is_told,
                    "{different:?} by {route:?}, rank {rank}: {failure}"
                );
            }
        }
    }
}

#[test]
fn a_call_whose_peer_never_comes_leaves_nan() {
    for route in [Route::PushOneShot, Route::PullOneShot] {
        let outputs = on_ranks(
            2,
            || settings().timeout(std::time::Duration::from_millis(300)),
            |comm| {
                comm.force_plan(plan(route, 2, 16)).unwrap();
                let weight = EmulatorBuffer::from_slice(&[bf16::ONE; 64]);
                let norm = RmsNorm {
                    weight: &weight,
                    epsilon: 0.0,
                    weight_offset: 0.0,
                };
                let mut buffer = EmulatorBuffer::from_slice(&[bf16::ONE; 256]);
                if comm.rank() == 1 {
                    return None;
                }
                comm.all_reduce_rms_norm_in_place(&mut buffer, &norm)
                    .unwrap();
                failure(comm.synchronize());
                Some(buffer.to_vec())
            },
        );
        assert_all_nan(&outputs.into_iter().flatten().next().unwrap());
    }
}
