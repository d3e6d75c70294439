//! Where clusters find their seats: the blocks of one start all at once, in one part of a GPU (a
//! graphics processing cluster). A model of its own, with the trigger of `seats.rs`: the next call
//! may take seats once the call before has met its peers.
//!
//! Blocks that hold seats elsewhere may leave free seats in every part and enough in none. So a
//! call has at most as many clusters as find room wherever those blocks are, and as many more as
//! leave one cluster that runs on every rank.
//!
//! A cluster is one thing here: once it has met its peers, each of its blocks ends without waiting
//! for anything. A single block is a cluster of one. The clusters of a call start in any order, and
//! each stream has a hardware queue of its own.

use std::collections::HashSet;

/// The progress of a cluster, and the part in which it has its seats.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Cluster {
    Absent,
    /// In `griddepcontrol.wait`.
    Seated(usize),
    /// What it sends is in flight.
    Running(usize),
    /// The same cluster of every rank has sent.
    Met(usize),
    Ended,
}

impl Cluster {
    fn part(self) -> Option<usize> {
        match self {
            Cluster::Seated(part) | Cluster::Running(part) | Cluster::Met(part) => Some(part),
            Cluster::Absent | Cluster::Ended => None,
        }
    }
    fn has_sent(self) -> bool {
        matches!(self, Cluster::Running(_) | Cluster::Met(_) | Cluster::Ended)
    }
    fn has_met(self) -> bool {
        matches!(self, Cluster::Met(_) | Cluster::Ended)
    }
}

#[derive(Clone, Copy, Debug)]
struct Call {
    clusters: usize,
    /// Blocks of a cluster.
    size: usize,
}

/// One rank of one group.
#[derive(Clone, Debug)]
struct Stream {
    group: usize,
    gpu: usize,
    calls: Vec<Call>,
    /// The rank of another group whose calls the program has put before these, into one stream.
    behind: Option<usize>,
}

#[derive(Clone, Debug)]
struct Machine {
    /// The seats of each part of a GPU.
    parts: Vec<usize>,
    streams: Vec<Stream>,
    /// The most seats that other communicators hold on each GPU: of single blocks, which wait for
    /// something for as long as they like.
    held: usize,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    /// Indexed by stream, call and cluster.
    clusters: Vec<Vec<Vec<Cluster>>>,
    /// The seats that others hold, by GPU and part.
    held: Vec<Vec<usize>>,
}

impl Machine {
    fn initial(&self) -> State {
        let absent = |call: &Call| vec![Cluster::Absent; call.clusters];
        let clusters = |stream: &Stream| stream.calls.iter().map(absent).collect();
        let gpus = 1 + self.streams.iter().map(|own| own.gpu).max().unwrap_or(0);
        State {
            clusters: self.streams.iter().map(clusters).collect(),
            held: vec![vec![0; self.parts.len()]; gpus],
        }
    }

    /// Free seats of a part of a GPU.
    fn free(&self, state: &State, gpu: usize, part: usize) -> usize {
        let mut free = self.parts[part] - state.held[gpu][part];
        for (stream, calls) in self.streams.iter().zip(&state.clusters) {
            for (call, clusters) in stream.calls.iter().zip(calls) {
                let has_its_seats = |own: &&Cluster| own.part() == Some(part);
                if stream.gpu == gpu {
                    free -= call.size * clusters.iter().filter(has_its_seats).count();
                }
            }
        }
        free
    }

    /// The clusters of the calls before a call in its stream.
    fn before<'a>(
        &self,
        state: &'a State,
        s: usize,
        k: usize,
    ) -> impl Iterator<Item = &'a Cluster> {
        let own = state.clusters[s][..k].iter();
        let others = self.streams[s].behind.map(|other| &state.clusters[other]);
        own.chain(others.into_iter().flatten()).flatten()
    }

    /// Takes the steps that need no seat and give none back. They enable others and disable none,
    /// so a stuck state has taken them, whenever that was.
    fn settle(&self, state: &mut State) {
        let mut has_moved = true;
        while std::mem::take(&mut has_moved) {
            for (s, stream) in self.streams.iter().enumerate() {
                for (k, call) in stream.calls.iter().enumerate() {
                    for c in 0..call.clusters {
                        let next = self.without_seats(state, s, k, c);
                        has_moved |= next.is_some();
                        let own = &mut state.clusters[s][k][c];
                        *own = next.unwrap_or(*own);
                    }
                }
            }
        }
    }

    fn without_seats(&self, state: &State, s: usize, k: usize, c: usize) -> Option<Cluster> {
        match state.clusters[s][k][c] {
            Cluster::Seated(part) => {
                let mut before = self.before(state, s, k);
                let is_first = before.all(|cluster| *cluster == Cluster::Ended);
                is_first.then_some(Cluster::Running(part))
            }
            Cluster::Running(part) => {
                let group = self.streams[s].group;
                let mut ranks = self.streams.iter().zip(&state.clusters);
                let have_met =
                    ranks.all(|(peer, calls)| peer.group != group || calls[k][c].has_sent());
                have_met.then_some(Cluster::Met(part))
            }
            _ => None,
        }
    }

    /// What a cluster may become in its next step: seated in any part with room for it, or ended.
    fn steps(&self, state: &State, s: usize, k: usize, c: usize) -> Vec<Cluster> {
        let stream = &self.streams[s];
        match state.clusters[s][k][c] {
            Cluster::Absent => {
                if !self.before(state, s, k).all(|cluster| cluster.has_met()) {
                    return Vec::new();
                }
                let size = stream.calls[k].size;
                let has_room = |part: &usize| self.free(state, stream.gpu, *part) >= size;
                let parts = (0..self.parts.len()).filter(has_room);
                parts.map(Cluster::Seated).collect()
            }
            Cluster::Met(_) => vec![Cluster::Ended],
            _ => Vec::new(),
        }
    }

    /// Adds the states in which the others hold one seat more, or one less. Nothing makes them take
    /// such a step, so it ends no wait.
    fn add_steps_of_others(&self, state: &State, open: &mut Vec<State>) {
        for gpu in 0..state.held.len() {
            for part in 0..self.parts.len() {
                let held: usize = state.held[gpu].iter().sum();
                if held < self.held && self.free(state, gpu, part) > 0 {
                    let mut next = state.clone();
                    next.held[gpu][part] += 1;
                    open.push(next);
                }
                if state.held[gpu][part] > 0 {
                    let mut next = state.clone();
                    next.held[gpu][part] -= 1;
                    open.push(next);
                }
            }
        }
    }

    /// The number of states, and one in which no call can go on unless others give seats back, if
    /// there is one.
    fn explore(&self) -> (usize, Option<State>) {
        let mut seen = HashSet::new();
        let mut open = vec![self.initial()];
        while let Some(state) = open.pop() {
            if !seen.insert(state.clone()) {
                continue;
            }
            let mut is_stuck = true;
            for (s, calls) in state.clusters.iter().enumerate() {
                for (k, clusters) in calls.iter().enumerate() {
                    for c in 0..clusters.len() {
                        for step in self.steps(&state, s, k, c) {
                            is_stuck = false;
                            let mut next = state.clone();
                            next.clusters[s][k][c] = step;
                            self.settle(&mut next);
                            open.push(next);
                        }
                    }
                }
            }
            let mut all = state.clusters.iter().flatten().flatten();
            if is_stuck && !all.all(|cluster| *cluster == Cluster::Ended) {
                return (seen.len(), Some(state));
            }
            self.add_steps_of_others(&state, &mut open);
        }
        (seen.len(), None)
    }
}

/// The clusters of `size` blocks of a rank with so many seats that always find room: in each part
/// fewer seats than one needs may be left over. As `clusters` of crates/peersum/src/cuda/launch.rs.
fn clusters_at_once(seats: usize, parts: usize, size: usize) -> usize {
    seats.saturating_sub(parts * (size - 1)) / size
}

/// The most clusters of a call of so many ranks, if they have the seats. As
/// `LaunchLimits::clusters`.
fn most_clusters(at_once: usize, ranks: usize) -> usize {
    at_once + at_once.div_ceil(ranks - 1).saturating_sub(1)
}

/// A group of some ranks, on one GPU each or all on one. Others hold the seats that are not its
/// own.
fn with_others(
    parts: &[usize],
    seats: usize,
    (ranks, gpus): (usize, usize),
    calls: &[Call],
) -> Machine {
    let stream = |rank| Stream {
        group: 0,
        gpu: rank % gpus,
        calls: calls.to_vec(),
        behind: None,
    };
    let all: usize = parts.iter().sum();
    Machine {
        parts: parts.to_vec(),
        streams: (0..ranks).map(stream).collect(),
        held: all - seats * ranks / gpus,
    }
}

/// Two groups of two ranks, each with one rank on either of two GPUs and half of its seats. On the
/// first GPU each has a stream. On the second GPU the calls of group 1 are behind those of group 0
/// if `is_one_stream`.
fn two_groups(parts: &[usize], calls: [&[Call]; 2], is_one_stream: bool) -> Machine {
    let stream = |group: usize, gpu, behind| Stream {
        group,
        gpu,
        calls: calls[group].to_vec(),
        behind,
    };
    let behind = is_one_stream.then_some(2);
    Machine {
        parts: parts.to_vec(),
        streams: vec![
            stream(0, 0, None),
            stream(1, 0, None),
            stream(0, 1, None),
            stream(1, 1, behind),
        ],
        held: 0,
    }
}

fn single(blocks: usize) -> Call {
    Call {
        clusters: blocks,
        size: 1,
    }
}

/// Parts of a GPU, seats of a rank, blocks of a cluster.
type Case = (&'static [usize], usize, usize);

const CASES: [Case; 4] = [
    (&[4, 4], 4, 2),
    (&[3, 5], 4, 2),
    (&[4, 4, 2], 5, 2),
    (&[7, 7], 7, 3),
];

#[test]
fn clusters_find_room_among_the_seats_of_their_rank_wherever_others_hold_theirs() {
    let mut states = 0;
    let mut assert_goes_on = |parts, seats, gpus, calls: &[Call]| {
        let (seen, stuck) = with_others(parts, seats, (2, gpus), calls).explore();
        assert_eq!(stuck, None, "{parts:?}: {calls:?}");
        states += seen;
    };
    for (parts, seats, size) in CASES {
        let clusters = clusters_at_once(seats, parts.len(), size);
        assert_eq!(clusters, 1, "{parts:?}");
        assert_goes_on(parts, seats, 2, &[Call { clusters, size }]);
    }
    let pair = Call {
        clusters: 1,
        size: 2,
    };
    for parts in [&[4, 4], &[3, 5]] {
        assert_goes_on(parts, 4, 2, &[pair, single(1), pair]);
    }
    // Two ranks on one GPU, of which each has two clusters.
    assert_eq!(clusters_at_once(6, 2, 2), 2);
    let pairs = Call {
        clusters: 2,
        size: 2,
    };
    assert_goes_on(&[8, 8], 6, 1, &[single(1), pairs]);
    println!("{states} states");
}

#[test]
fn one_cluster_more_than_finds_room_everywhere_can_wait_for_the_seats_of_others() {
    for (parts, seats, size) in CASES {
        let clusters = 1 + clusters_at_once(seats, parts.len(), size);
        let (_, stuck) = with_others(parts, seats, (2, 2), &[Call { clusters, size }]).explore();
        println!("{:?}", stuck.expect("a state in which the group waits"));
    }
}

/// Clusters that run at once on each rank, and ranks.
const WAITING: [(usize, usize); 4] = [(2, 2), (3, 2), (2, 3), (3, 3)];

/// Each rank has a GPU with room for so many clusters of a call, wherever others hold seats.
fn with_room_for(at_once: usize, ranks: usize, clusters: usize) -> Machine {
    with_others(&[at_once], at_once, (ranks, ranks), &[single(clusters)])
}

#[test]
fn clusters_that_wait_for_room_get_it_from_one_that_runs_on_every_rank() {
    let mut states = 0;
    for (at_once, ranks) in WAITING {
        let clusters = most_clusters(at_once, ranks);
        let (seen, stuck) = with_room_for(at_once, ranks, clusters).explore();
        assert_eq!(stuck, None, "{at_once} of {clusters}, {ranks} ranks");
        states += seen;
    }
    println!("{states} states");
}

#[test]
fn one_cluster_more_can_leave_none_that_runs_on_every_rank() {
    for (at_once, ranks) in WAITING {
        let clusters = 1 + most_clusters(at_once, ranks);
        let (_, stuck) = with_room_for(at_once, ranks, clusters).explore();
        println!("{:?}", stuck.expect("a state in which the group waits"));
    }
}

#[test]
fn two_groups_in_clusters_never_deadlock_with_half_of_the_seats_each() {
    let mut states = 0;
    let pair = Call {
        clusters: clusters_at_once(4, 2, 2),
        size: 2,
    };
    for parts in [[4, 4], [3, 5]] {
        let mut assert_ends = |calls: [&[Call]; 2], is_one_stream| {
            let (seen, deadlock) = two_groups(&parts, calls, is_one_stream).explore();
            assert_eq!(deadlock, None, "{parts:?}: {calls:?}");
            states += seen;
        };
        assert_ends([&[pair, single(1)]; 2], false);
        assert_ends([&[pair, single(2)]; 2], true);
        assert_ends([&[pair], &[single(4)]], true);
    }
    println!("{states} states");
}

/// The seats suffice for one cluster of three, but not wherever the other group's blocks are: those
/// leave two seats free in each part, and their peers are behind the cluster's.
#[test]
fn a_cluster_that_does_not_find_room_everywhere_can_deadlock_with_another_group() {
    assert_eq!(clusters_at_once(4, 2, 3), 0);
    let three = Call {
        clusters: 1,
        size: 3,
    };
    let (_, deadlock) = two_groups(&[4, 4], [&[three], &[single(4)]], true).explore();
    println!("{:?}", deadlock.expect("a deadlock"));
}
