//! Bits equal to the reference, whatever the route, shape, type, placement and content.

use half::{bf16, f16};
use peersum::SymmetricBuffer;
use peersum::dispatch::{Placement, Route};
use peersum_artifact::Dtype;
use peersum_emulator::Emulator;

use crate::stage::{
    Comm, Content, Framed, TestElement, assert_bits, expected, input, on_ranks, plan, poison,
    settings,
};

/// The most elements of a symmetric buffer here.
const SYMMETRIC_LEN: usize = 6000;

/// One call as all ranks know it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    /// `None`: by the table.
    route: Option<Route>,
    dtype: Dtype,
    len: usize,
    blocks: u32,
    threads: u32,
    content: Content,
    in_place: bool,
    symmetric: bool,
    seed: u64,
}

impl Case {
    fn random(random: &mut fastrand::Rng) -> Case {
        let route = random.choice(Route::ALL).filter(|_| random.u8(..4) != 0);
        let content = [
            Content::Ordinary,
            Content::Ordinary,
            Content::Special,
            Content::Sentinel,
            Content::NegativeZero,
        ];
        let in_place = match route {
            Some(Route::SymmetricOneShot) => false,
            Some(Route::SymmetricTwoShot) => true,
            _ => random.bool(),
        };
        Case {
            route,
            dtype: Dtype::REDUCED[random.usize(..3)],
            len: match random.u8(..4) {
                0 => random.usize(1..16),
                1 => random.usize(16..300),
                2 => 8 * random.usize(1..64),
                _ => random.usize(300..3000),
            },
            blocks: random.u32(1..=3),
            threads: random.u32(8..=17),
            content: content[random.usize(..content.len())],
            in_place,
            symmetric: route.map_or_else(|| random.u8(..3) == 0, Route::is_symmetric),
            seed: random.u64(..),
        }
    }
}

/// A call that has been launched, and what its output must become.
pub(crate) struct Launched<T: TestElement> {
    case: Case,
    input: Option<Framed<T>>,
    output: Framed<T>,
}

impl<T: TestElement> Launched<T> {
    /// Calls with views whose offsets differ from rank to rank.
    pub(crate) fn ordinary(comm: &mut Comm, case: Case) -> Self {
        let own = input::<T>(case.seed, comm.rank(), case.len, case.content);
        // 16-byte units start at every possible element somewhere.
        let offset = |salt: u32| (case.seed as u32 + 3 * comm.rank() + salt) as usize % 9;
        let (begin, output_begin) = (offset(0), offset(5));
        if case.in_place {
            let mut output = Framed::new(begin, &own);
            let range = output.range();
            comm.all_reduce_in_place(&mut output.buffer.slice_mut(range))
                .unwrap();
            return Launched {
                case,
                input: None,
                output,
            };
        }
        let input = Framed::new(begin, &own);
        let mut output = Framed::new(output_begin, &poison::<T>(case.len));
        let range = output.range();
        comm.all_reduce(
            &input.buffer.slice(input.range()),
            &mut output.buffer.slice_mut(range),
        )
        .unwrap();
        Launched {
            case,
            input: Some(input),
            output,
        }
    }

    pub(crate) fn check(self, rank: u32, world_size: u32) {
        let Case {
            seed, len, content, ..
        } = self.case;
        let found = self.output.take(&self.case);
        assert_bits(
            &found,
            &expected::<T>(seed, world_size, len, content),
            &self.case,
        );
        if let Some(kept) = self.input {
            let own = input::<T>(seed, rank, len, content);
            assert_bits(&kept.take(&self.case), &own, &self.case);
        }
    }
}

/// Calls with a part of a symmetric buffer and compares at once, since the buffer is used again.
fn symmetric_call<T: TestElement>(
    comm: &mut Comm,
    buffer: &mut SymmetricBuffer<T, Emulator>,
    case: Case,
) {
    let own = input::<T>(case.seed, comm.rank(), case.len, case.content);
    // The same part on every rank, misaligned now and then.
    let begin = (case.seed % 11) as usize;
    let range = begin..begin + case.len;
    let mut all = poison::<T>(SYMMETRIC_LEN);
    all[range.clone()].copy_from_slice(&own);
    // A peer may still read what the last call left here: only a call orders the ranks, and the
    // last one has been waited for on this rank alone. Its closing barrier is what makes this write
    // safe.
    buffer.as_view_mut().copy_from_slice(&all);
    let expected = expected::<T>(case.seed, comm.world_size(), case.len, case.content);
    if case.in_place {
        comm.all_reduce_in_place(&mut buffer.as_view_mut().slice_mut(range.clone()))
            .unwrap();
        comm.synchronize().unwrap();
        all[range].copy_from_slice(&expected);
    } else {
        let mut output = Framed::new((case.seed % 5) as usize, &poison::<T>(case.len));
        let output_range = output.range();
        comm.all_reduce(
            &buffer.slice(range.clone()),
            &mut output.buffer.slice_mut(output_range),
        )
        .unwrap();
        comm.synchronize().unwrap();
        assert_bits(&output.take(&case), &expected, &case);
    }
    assert_bits(&buffer.to_vec(), &all, &case);
}

/// The symmetric buffers of one rank, one a type.
struct Symmetric {
    f16: SymmetricBuffer<f16, Emulator>,
    bf16: SymmetricBuffer<bf16, Emulator>,
    f32: SymmetricBuffer<f32, Emulator>,
}

impl Symmetric {
    fn new(comm: &mut Comm) -> Self {
        Symmetric {
            f16: comm.symmetric_alloc(SYMMETRIC_LEN).unwrap(),
            bf16: comm.symmetric_alloc(SYMMETRIC_LEN).unwrap(),
            f32: comm.symmetric_alloc(SYMMETRIC_LEN).unwrap(),
        }
    }
}

/// Runs cases in order. Ordinary calls follow each other without a wait for up to `depth` calls.
fn run_cases(comm: &mut Comm, symmetric: &mut Symmetric, cases: &[Case], depth: usize) {
    let (rank, world_size) = (comm.rank(), comm.world_size());
    let mut pending: Vec<Box<dyn FnOnce()>> = Vec::new();
    for &case in cases {
        comm.force_plan(
            case.route
                .and_then(|route| plan(route, case.blocks, case.threads)),
        )
        .unwrap();
        match (case.symmetric, case.dtype) {
            (true, Dtype::F16) => symmetric_call(comm, &mut symmetric.f16, case),
            (true, Dtype::Bf16) => symmetric_call(comm, &mut symmetric.bf16, case),
            (true, _) => symmetric_call(comm, &mut symmetric.f32, case),
            (false, Dtype::F16) => {
                let launched = Launched::<f16>::ordinary(comm, case);
                pending.push(Box::new(move || launched.check(rank, world_size)));
            }
            (false, Dtype::Bf16) => {
                let launched = Launched::<bf16>::ordinary(comm, case);
                pending.push(Box::new(move || launched.check(rank, world_size)));
            }
            (false, _) => {
                let launched = Launched::<f32>::ordinary(comm, case);
                pending.push(Box::new(move || launched.check(rank, world_size)));
            }
        }
        if pending.len() >= depth {
            comm.synchronize().unwrap();
            pending.drain(..).for_each(|check| check());
        }
    }
    comm.force_plan(None).unwrap();
    comm.synchronize().unwrap();
    pending.drain(..).for_each(|check| check());
}

#[test]
fn every_route_type_and_world_size_gives_the_references_bits_for_every_content() {
    for world_size in 2..=8 {
        let mut cases = Vec::new();
        for route in Route::ALL {
            for &dtype in Dtype::REDUCED {
                for (len, content) in [
                    (1, Content::Special),
                    (world_size as usize * 8 + 3, Content::Sentinel),
                    (97, Content::NegativeZero),
                    (701, Content::Special),
                    (640, Content::Ordinary),
                ] {
                    let seed = cases.len() as u64 * 7919;
                    cases.push(Case {
                        route: Some(route),
                        dtype,
                        len,
                        blocks: 2,
                        threads: 8,
                        content,
                        in_place: route == Route::SymmetricTwoShot
                            || (!route.is_symmetric() && len % 2 == 0),
                        symmetric: route.is_symmetric(),
                        seed,
                    });
                }
            }
        }
        on_ranks(world_size, settings, |comm| {
            let mut symmetric = Symmetric::new(comm);
            run_cases(comm, &mut symmetric, &cases, 8);
        });
    }
}

#[test]
fn calls_whose_size_type_grid_route_and_placement_change_need_no_wait_between_them() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for world_size in [2, 3, 5, 8] {
        let cases: Vec<Case> = (0..80).map(|_| Case::random(&mut random)).collect();
        on_ranks(world_size, settings, |comm| {
            let mut symmetric = Symmetric::new(comm);
            run_cases(comm, &mut symmetric, &cases, 10);
        });
    }
}

#[test]
fn epochs_that_pass_their_wrap_around_change_nothing() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for (push, pull) in [
        // The header's 16 bits; the push epoch's 32; the pull epoch beyond 32 bits.
        (65_525, 1),
        (u32::MAX - 6, 65_530),
        (3, u64::from(u32::MAX) - 5),
    ] {
        let cases: Vec<Case> = (0..40).map(|_| Case::random(&mut random)).collect();
        let settings = || settings().start_epochs(push, pull);
        on_ranks(3, settings, |comm| {
            let mut symmetric = Symmetric::new(comm);
            run_cases(comm, &mut symmetric, &cases, 10);
        });
    }
}

pub(crate) fn ordinary(dtype: Dtype, len: usize, seed: u64) -> Case {
    Case {
        route: None,
        dtype,
        len,
        blocks: 1,
        threads: 8,
        content: Content::Special,
        in_place: false,
        symmetric: false,
        seed,
    }
}

#[test]
fn the_table_takes_each_of_its_routes_and_never_changes_the_bits() {
    let lens = [1, 1024, 1025, 16 << 10, (16 << 10) + 1, 70_001];
    on_ranks(
        2,
        || settings().max_bytes(1 << 20),
        |comm| {
            let routes: std::collections::HashSet<Route> = lens
                .iter()
                .map(|len| {
                    let bytes = 4 * *len as u64;
                    comm.dispatch_table().plan(Placement::Ordinary, bytes).route
                })
                .collect();
            assert_eq!(routes.len(), 4, "{routes:?}");
            for (seed, len) in (0..).zip(lens) {
                let launched = Launched::<f32>::ordinary(comm, ordinary(Dtype::F32, len, seed));
                comm.synchronize().unwrap();
                launched.check(comm.rank(), comm.world_size());
            }
        },
    );
}

#[test]
fn a_call_larger_than_max_bytes_is_split() {
    let settings = || settings().max_bytes(1000).push_half_bytes(2048);
    on_ranks(3, settings, |comm| {
        for (seed, route) in (0..).zip([
            None,
            Some(Route::PushOneShot),
            Some(Route::PushTwoShot),
            Some(Route::PullOneShot),
            Some(Route::PullTwoShot),
        ]) {
            comm.force_plan(route.and_then(|route| plan(route, 2, 8)))
                .unwrap();
            for len in [257, 1999] {
                let case = Case {
                    in_place: len == 1999,
                    ..ordinary(Dtype::F32, len, seed)
                };
                let launched = Launched::<f32>::ordinary(comm, case);
                let half = Launched::<f16>::ordinary(
                    comm,
                    Case {
                        dtype: Dtype::F16,
                        ..case
                    },
                );
                comm.synchronize().unwrap();
                launched.check(comm.rank(), comm.world_size());
                half.check(comm.rank(), comm.world_size());
            }
        }
    });
}

#[test]
fn a_call_that_its_push_slots_cannot_hold_takes_another_route() {
    // The smallest half there is, of 8 KiB: a pair's slots of 512 units, and messages of more.
    let settings = || settings().push_half_bytes(1);
    on_ranks(2, settings, |comm| {
        let route = |bytes| comm.plan(Placement::Ordinary, bytes).route;
        assert_eq!(
            (route(4096), route(8196)),
            (Route::PushOneShot, Route::PullTwoShot)
        );
        for (seed, len) in (0..).zip([1, 17, 1024, 2048, 2049, 5000]) {
            let launched = Launched::<f32>::ordinary(comm, ordinary(Dtype::F32, len, seed));
            comm.synchronize().unwrap();
            launched.check(comm.rank(), comm.world_size());
        }
    });
}

#[test]
fn a_call_larger_than_push_slots_of_a_megabyte_goes_through_them_in_pieces() {
    let row = concat!(
        r#"[{"max_bytes":null,"route":"push_one_shot","#,
        r#""blocks":2,"threads":16,"origin":"default"}]"#
    );
    let tables = format!(
        r#"{{"schema":1,"tables":[{{"arch":null,"world_sizes":[2],"link":"emulator",
        "ordinary":{row},"symmetric":{row},"symmetric_in_place":{row}}}]}}"#
    );
    let settings = || {
        settings()
            .max_bytes(4 << 20)
            .push_half_bytes(1 << 20)
            .dispatch_tables(tables.as_str())
    };
    on_ranks(2, settings, |comm| {
        for (seed, len) in (0..).zip([1 << 18, (1 << 18) + 1, 600_001]) {
            let plan = comm.plan(Placement::Ordinary, 4 * len as u64);
            assert_eq!(plan.route, Route::PushOneShot);
            let launched = Launched::<f32>::ordinary(comm, ordinary(Dtype::F32, len, seed));
            comm.synchronize().unwrap();
            launched.check(comm.rank(), comm.world_size());
        }
    });
}
