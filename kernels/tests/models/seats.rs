//! Which block has a seat: when the next kernel of a stream may take a place on a multiprocessor. A
//! model of its own.
//!
//! A block that waits for a peer keeps its seat until that peer's block has had one. So a kernel
//! that starts too early can take the seat without which the call before it never ends. Data is
//! left out: a block that runs has sent its data, and a block that has all its peers' data has met
//! them.

use std::collections::HashSet;

/// The progress of a block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Block {
    /// Without a seat.
    Absent,
    /// In `griddepcontrol.wait`.
    Seated,
    /// Past the wait: what it sends is in flight.
    Running,
    /// The same block of every rank has sent.
    Met,
    Ended,
}

/// The progress at which a block allows the next kernel to start. (A block that has ended always
/// does.)
type Trigger = Block;

/// What a stream runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kernel {
    /// An all-reduce on this grid.
    Call(usize),
    /// Normalises the rows of the call before. Its first block waits for the peers' norm words.
    Rows {
        blocks: usize,
        /// Whether it allows the next kernel once it runs, and not by its end.
        is_early: bool,
    },
    /// A kernel of the program, launched with the programmatic attribute or without.
    Other {
        blocks: usize,
        programmatic: bool,
        /// Whether it executes `griddepcontrol.wait`.
        waits: bool,
    },
}

impl Kernel {
    fn blocks(self) -> usize {
        match self {
            Kernel::Call(blocks) | Kernel::Rows { blocks, .. } | Kernel::Other { blocks, .. } => {
                blocks
            }
        }
    }
}

/// One rank of one group.
#[derive(Clone, Debug)]
struct Stream {
    group: usize,
    gpu: usize,
    kernels: Vec<Kernel>,
    /// The hardware queue of the GPU that the stream uses. The streams of one queue were enqueued
    /// one after another, in the order of [`Machine::streams`].
    queue: usize,
}

#[derive(Clone, Debug)]
struct Machine {
    /// Seats of each GPU.
    seats: usize,
    streams: Vec<Stream>,
    trigger: Trigger,
}

/// Indexed by stream, kernel and block.
type State = Vec<Vec<Vec<Block>>>;

impl Machine {
    fn initial(&self) -> State {
        let absent = |kernel: &Kernel| vec![Block::Absent; kernel.blocks()];
        let blocks = |stream: &Stream| stream.kernels.iter().map(absent).collect();
        self.streams.iter().map(blocks).collect()
    }

    fn seats_taken(&self, state: &State, gpu: usize) -> usize {
        let is_seated = |block: &&Block| (Block::Seated..=Block::Met).contains(*block);
        let of_stream = |(stream, kernels): (&Stream, &Vec<Vec<Block>>)| {
            if stream.gpu == gpu {
                kernels.iter().flatten().filter(is_seated).count()
            } else {
                0
            }
        };
        self.streams.iter().zip(state).map(of_stream).sum()
    }

    /// Whether everything that was enqueued before this stream in its hardware queue has begun.
    fn is_at_the_head(&self, state: &State, s: usize) -> bool {
        let own = &self.streams[s];
        let has_begun = |blocks: &Vec<Block>| blocks.iter().any(|block| *block >= Block::Seated);
        let before = self.streams.iter().zip(state).take(s);
        before
            .filter(|(other, _)| other.gpu == own.gpu && other.queue == own.queue)
            .all(|(_, kernels)| kernels.iter().all(has_begun))
    }

    /// Whether one block can make progress.
    fn can_step(&self, state: &State, s: usize, k: usize, b: usize) -> bool {
        let stream = &self.streams[s];
        let before = k.checked_sub(1).map(|before| &state[s][before]);
        let all_before = |at_least: Block| {
            before.is_none_or(|blocks| blocks.iter().all(|block| *block >= at_least))
        };
        match state[s][k][b] {
            Block::Absent => {
                let may_come = match stream.kernels[k] {
                    Kernel::Other {
                        programmatic: false,
                        ..
                    } => Block::Ended,
                    _ => match k.checked_sub(1).map(|before| stream.kernels[before]) {
                        // A kernel of the program never allows the next kernel to start early.
                        Some(Kernel::Other { .. }) => Block::Ended,
                        Some(Kernel::Rows { is_early, .. }) => match is_early {
                            true => Block::Running,
                            false => Block::Ended,
                        },
                        _ => self.trigger,
                    },
                };
                all_before(may_come)
                    && self.seats_taken(state, stream.gpu) < self.seats
                    && self.is_at_the_head(state, s)
            }
            Block::Seated => match stream.kernels[k] {
                Kernel::Other { waits: false, .. } => true,
                // This waits for the previous kernel alone.
                _ => all_before(Block::Ended),
            },
            Block::Running => match stream.kernels[k] {
                Kernel::Other { .. } => true,
                Kernel::Rows { .. } if b > 0 => true,
                Kernel::Call(_) | Kernel::Rows { .. } => self
                    .streams
                    .iter()
                    .zip(state)
                    .filter(|(peer, _)| peer.group == stream.group)
                    .all(|(_, kernels)| kernels[k][b] >= Block::Running),
            },
            Block::Met => true,
            Block::Ended => false,
        }
    }

    /// The number of states, and a deadlock if there is one.
    fn explore(&self) -> (usize, Option<State>) {
        self.find(|_| false)
    }

    /// The number of states, and a state that is bad or a deadlock if there is one.
    fn find(&self, is_bad: impl Fn(&State) -> bool) -> (usize, Option<State>) {
        let mut seen = HashSet::new();
        let mut open = vec![self.initial()];
        while let Some(state) = open.pop() {
            if !seen.insert(state.clone()) {
                continue;
            }
            let mut is_stuck = true;
            for s in 0..state.len() {
                for k in 0..state[s].len() {
                    for b in 0..state[s][k].len() {
                        if self.can_step(&state, s, k, b) {
                            is_stuck = false;
                            let mut next = state.clone();
                            next[s][k][b] = match state[s][k][b] {
                                Block::Absent => Block::Seated,
                                Block::Seated => Block::Running,
                                Block::Running => Block::Met,
                                Block::Met | Block::Ended => Block::Ended,
                            };
                            open.push(next);
                        }
                    }
                }
            }
            let has_ended = state.iter().flatten().flatten().all(|b| *b == Block::Ended);
            if is_bad(&state) || is_stuck && !has_ended {
                return (seen.len(), Some(state));
            }
        }
        (seen.len(), None)
    }
}

/// Ranks that share a GPU which has exactly one seat for each block of their largest calls.
fn shared_gpu(ranks: usize, kernels: &[Kernel], trigger: Trigger) -> Machine {
    let largest = |kernel: &Kernel| match kernel {
        Kernel::Call(blocks) | Kernel::Rows { blocks, .. } => *blocks,
        Kernel::Other { .. } => 0,
    };
    let stream = |rank| Stream {
        group: 0,
        gpu: 0,
        kernels: kernels.to_vec(),
        queue: rank,
    };
    Machine {
        seats: ranks * kernels.iter().map(largest).max().unwrap_or(1),
        streams: (0..ranks).map(stream).collect(),
        trigger,
    }
}

/// Two groups of two ranks, each with one rank on either of two GPUs. The ranks on one GPU enqueue
/// all calls of the first group and then those of the second; the ranks on the other GPU begin with
/// the second group.
fn two_groups_on_two_gpus(seats: usize, calls: &[usize], trigger: Trigger) -> Machine {
    let stream = |group, gpu| Stream {
        group,
        gpu,
        kernels: calls.iter().map(|blocks| Kernel::Call(*blocks)).collect(),
        queue: group,
    };
    Machine {
        seats,
        streams: vec![stream(0, 0), stream(1, 0), stream(1, 1), stream(0, 1)],
        trigger,
    }
}

fn sequences() -> Vec<(usize, Vec<Kernel>)> {
    let filling = |blocks, programmatic| Kernel::Other {
        blocks,
        programmatic,
        waits: true,
    };
    let mut all = Vec::new();
    for grids in [[1, 1, 1], [2, 1, 2], [1, 2, 1], [2, 2, 1]] {
        all.push((2, grids.map(Kernel::Call).to_vec()));
    }
    all.push((3, vec![Kernel::Call(1); 3]));
    for programmatic in [true, false] {
        for blocks in [1, 2] {
            let fills_the_gpu = filling(2 * blocks, programmatic);
            let call = Kernel::Call(blocks);
            all.push((2, vec![call, fills_the_gpu, call]));
        }
    }
    for blocks in [1, 2] {
        let is_early = false;
        let rows = Kernel::Rows { blocks, is_early };
        all.push((2, vec![Kernel::Call(2), rows, Kernel::Call(1), rows]));
        all.push((2, vec![Kernel::Call(1), rows, filling(4, true)]));
    }
    all
}

#[test]
fn a_kernel_that_starts_once_the_call_before_has_met_its_peers_takes_no_seat_they_need() {
    let mut states = 0;
    for (ranks, kernels) in sequences() {
        let (seen, deadlock) = shared_gpu(ranks, &kernels, Block::Met).explore();
        assert_eq!(deadlock, None, "{ranks} ranks that run {kernels:?}");
        states += seen;
    }
    println!("{states} states");
}

/// What `CommunicatorBuilder::pdl` requires of programs.
#[test]
fn a_call_runs_beside_the_one_before_only_if_a_programmatic_kernel_between_them_does_not_wait() {
    let call = Kernel::Call(1);
    let is_past_the_wait = |block: &Block| (Block::Running..=Block::Met).contains(block);
    let overlaps = |state: &State| {
        state.iter().any(|kernels| {
            let is_running = |k: usize| kernels[k].iter().any(is_past_the_wait);
            is_running(0) && is_running(2)
        })
    };
    for (programmatic, waits) in [(true, true), (true, false), (false, false)] {
        let between = Kernel::Other {
            blocks: 1,
            programmatic,
            waits,
        };
        let machine = shared_gpu(2, &[call, between, call], Block::Met);
        let (_, found) = machine.find(overlaps);
        let is_safe = waits || !programmatic;
        assert_eq!(found.is_none(), is_safe, "{between:?}: {found:?}");
    }
}

/// Two communicators with default settings: each has half of a GPU's seats.
#[test]
fn two_groups_with_half_of_the_seats_each_never_deadlock_whatever_the_enqueue_orders() {
    let mut states = 0;
    for (seats, calls) in [(2, &[1, 1, 1][..]), (4, &[2, 1]), (4, &[1, 2])] {
        let (seen, deadlock) = two_groups_on_two_gpus(seats, calls, Block::Met).explore();
        assert_eq!(deadlock, None, "{calls:?} blocks");
        states += seen;
    }
    println!("{states} states");
}

#[test]
fn two_groups_with_all_of_the_seats_each_can_deadlock() {
    let machine = two_groups_on_two_gpus(2, &[2], Block::Met);
    let (_, deadlock) = machine.explore();
    println!("{:?}", deadlock.expect("a deadlock"));
}

/// Why `CUDA_DEVICE_MAX_CONNECTIONS` matters: seats alone do not help a kernel that is queued
/// behind one that waits for it.
#[test]
fn two_groups_that_share_a_hardware_queue_can_deadlock_with_seats_for_all() {
    let mut machine = two_groups_on_two_gpus(2, &[1, 1], Block::Met);
    assert_eq!(machine.explore().1, None, "a queue for each stream");
    for stream in &mut machine.streams {
        stream.queue = 0;
    }
    let (_, deadlock) = machine.explore();
    println!("{:?}", deadlock.expect("a deadlock"));
    // With the same order on both GPUs one queue is enough.
    machine.streams.swap(2, 3);
    assert_eq!(machine.explore().1, None, "one order");
}

#[test]
fn a_kernel_that_starts_before_a_call_has_met_its_peers_can_take_their_seats() {
    let call = Kernel::Call(1);
    let programmatic = Kernel::Other {
        blocks: 2,
        programmatic: true,
        waits: true,
    };
    for trigger in [Block::Seated, Block::Running] {
        for machine in [
            shared_gpu(2, &[call; 3], trigger),
            shared_gpu(2, &[call, programmatic, call], trigger),
            two_groups_on_two_gpus(2, &[1; 3], trigger),
        ] {
            let (_, deadlock) = machine.explore();
            assert!(deadlock.is_some(), "{machine:?}");
            println!("{trigger:?}: {:?}", deadlock.unwrap_or_default());
        }
    }
}

#[test]
fn a_kernel_that_normalises_rows_and_allows_the_next_before_its_end_can_take_the_peers_seats() {
    let call = Kernel::Call(1);
    let rows = |is_early| Kernel::Rows {
        blocks: 1,
        is_early,
    };
    let explore = |is_early| {
        let kernels = [call, rows(is_early), call];
        shared_gpu(2, &kernels, Block::Met).explore().1
    };
    assert_eq!(explore(false), None);
    println!("{:?}", explore(true).expect("a deadlock"));
}
