//! The plan of one run: which rank is hit, when and how. It depends on the seed and the number of
//! the run alone.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use fastrand::Rng;
use peersum::SetupStep;
use peersum::dispatch::Route;
use serde::{Deserialize, Serialize};

use super::words::Place;
use crate::calls::What;
use crate::collective::Collective;
use crate::names::{by_name, name_of};
use crate::norm_output::NormOutput;

/// Where the victim is when it is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// It looks for the other ranks, one of which has not come yet.
    Rendezvous,
    /// It waits in one of set-up's exchanges, for a rank that is not there yet.
    SetUp,
    /// Its communicator is built; it has called nothing.
    BeforeFirstCall,
    /// It makes one call after the other.
    InsideCall,
    /// It launches a graph of calls again and again.
    GraphReplay,
    /// It drops its communicator, and so do the others.
    Teardown,
}

/// How the victim is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Blow {
    /// SIGKILL.
    Kill,
    /// SIGSTOP, and SIGCONT once every other rank has reported.
    Stop,
}

/// One run.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Scenario {
    /// Its number, from 0.
    pub(crate) run: u64,
    pub(crate) world_size: u32,
    pub(crate) victim: u32,
    pub(crate) phase: Phase,
    pub(crate) blow: Blow,
    /// In phases in which the victim waits for another rank: that rank. It continues once the
    /// victim has been hit.
    pub(crate) held: u32,
    /// In [`Phase::SetUp`]: what the victim and the held rank have done last.
    pub(crate) step: SetupStep,
    pub(crate) route: Route,
    /// The time from the victim's report that it is in the phase to the blow.
    pub(crate) delay: Duration,
    /// In [`Phase::BeforeFirstCall`]: whether the victim is hit before the others call.
    pub(crate) victim_first: bool,
    /// What the calls do. Only all-reduces have a route.
    pub(crate) what: What,
}

impl Scenario {
    /// Where the victim is in the phase.
    pub(super) fn place(&self) -> Place {
        match self.phase {
            Phase::Rendezvous => Place::Joining,
            Phase::SetUp => Place::SetUp(self.step),
            Phase::BeforeFirstCall => Place::Built,
            Phase::InsideCall | Phase::GraphReplay => Place::Calling,
            Phase::Teardown => Place::Leaving,
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "run {}: {} of rank {} of {} in {}",
            self.run,
            name_of(&self.blow),
            self.victim,
            self.world_size,
            name_of(&self.phase)
        )?;
        match self.phase {
            Phase::SetUp => write!(f, " (behind {:?})", self.step)?,
            Phase::Rendezvous | Phase::Teardown => {}
            _ => match self.what {
                What::Other(collective) => write!(f, " ({collective})")?,
                what => write!(f, " ({what} by {})", self.route.name())?,
            },
        }
        write!(f, ", {:?} after its word", self.delay)
    }
}

/// Maximum time from the victim's report to the blow, much longer than a call.
const LONGEST_DELAY: Duration = Duration::from_millis(40);

/// The choices from which runs are drawn.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Choices {
    /// World sizes.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "2,3,4",
        value_parser = clap::value_parser!(u32).range(2..=8)
    )]
    pub(crate) world_size: Vec<u32>,
    /// The phases in which the victim is hit.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_values_t = Phase::value_variants().to_vec()
    )]
    pub(crate) phase: Vec<Phase>,
    /// The signals that hit it.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_values_t = Blow::value_variants().to_vec()
    )]
    pub(crate) signal: Vec<Blow>,
    /// In set-up: the step that the victim has done last [default: random].
    #[arg(long, hide = true, value_parser = by_name::<SetupStep>)]
    pub(crate) step: Option<SetupStep>,
}

impl Choices {
    /// Run number `run` of `seed`. Every combination of world size, victim, phase and blow comes
    /// once before any comes again.
    pub(crate) fn scenario(&self, seed: u64, run: u64) -> Scenario {
        let mut all = Vec::new();
        for &world_size in &self.world_size {
            for victim in 0..world_size {
                for &phase in &self.phase {
                    let blows = self.signal.iter();
                    all.extend(blows.map(|&blow| (world_size, victim, phase, blow)));
                }
            }
        }
        let round = run / all.len() as u64;
        Rng::with_seed(seed ^ round.wrapping_mul(0x9E37_79B9_7F4A_7C15)).shuffle(&mut all);
        let (world_size, victim, phase, blow) = all[(run % all.len() as u64) as usize];
        let mut rng = Rng::with_seed(seed.wrapping_add(run.wrapping_mul(0xD134_2543_DE82_EF95)));
        let mut scenario = Scenario {
            run,
            world_size,
            victim,
            phase,
            blow,
            held: (victim + rng.u32(1..world_size)) % world_size,
            step: {
                let chance = SetupStep::ALL[rng.usize(..SetupStep::ALL.len())];
                self.step.unwrap_or(chance)
            },
            route: Route::ALL[rng.usize(..Route::ALL.len())],
            delay: LONGEST_DELAY.mul_f64(rng.f64()),
            victim_first: rng.bool(),
            what: What::AllReduce,
        };
        if rng.bool() {
            // Calls with FP8 work in place, a symmetric one-shot does not.
            let outputs = match scenario.route {
                Route::SymmetricOneShot => 1,
                _ => NormOutput::ALL.len(),
            };
            scenario.what = What::Norm(NormOutput::ALL[rng.usize(..outputs)]);
        }
        if rng.u8(..5) < 2 {
            scenario.what = What::Other(Collective::any(&mut rng, world_size));
            scenario.route = Route::PushOneShot;
        }
        scenario
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choices() -> Choices {
        Choices {
            world_size: vec![2, 3, 4],
            phase: Phase::value_variants().to_vec(),
            signal: Blow::value_variants().to_vec(),
            step: None,
        }
    }

    #[test]
    fn a_round_of_runs_hits_each_rank_in_each_phase_by_each_blow_once() {
        let choices = choices();
        let combinations = (2 + 3 + 4) * 6 * 2;
        let mut seen = std::collections::HashSet::new();
        for run in 0..combinations {
            let scenario = choices.scenario(7, run);
            assert_ne!(scenario.held, scenario.victim);
            assert!(scenario.held < scenario.world_size);
            seen.insert(format!(
                "{} {} {:?} {:?}",
                scenario.world_size, scenario.victim, scenario.phase, scenario.blow
            ));
        }
        assert_eq!(seen.len() as u64, combinations);
    }

    #[test]
    fn runs_have_calls_with_every_output_by_every_route_that_has_it() {
        let seen: std::collections::HashSet<_> = (0..800)
            .map(|run| choices().scenario(7, run))
            .filter(|scenario| !matches!(scenario.what, What::Other(_)))
            .map(|scenario| (scenario.route, scenario.what))
            .collect();
        // Without RMSNorm and with each output; a symmetric one-shot has no FP8.
        assert_eq!(seen.len(), Route::ALL.len() * 4 - 2);
    }

    #[test]
    fn every_other_operation_is_hit_in_each_phase_with_calls_and_each_root_too() {
        let seen: std::collections::HashSet<_> = (0..2000)
            .map(|run| choices().scenario(7, run))
            .filter_map(|scenario| match scenario.what {
                What::Other(kind) => {
                    let root = scenario.victim;
                    let is_root = kind == Collective::Broadcast { root };
                    let operation = std::mem::discriminant(&kind);
                    Some((operation, is_root, name_of(&scenario.phase)))
                }
                _ => None,
            })
            .collect();
        // A broadcast comes from the victim and from others.
        assert_eq!(seen.len(), (2 + 2) * 6);
    }

    #[test]
    fn a_run_depends_on_nothing_but_the_seed_and_its_number() {
        let twice = [choices().scenario(3, 150), choices().scenario(3, 150)];
        assert_eq!(twice[0].to_string(), twice[1].to_string());
        let others = [choices().scenario(4, 150), choices().scenario(3, 151)];
        assert!(others.iter().all(|other| other.delay != twice[0].delay));
    }
}
