//! One rank, in a process of its own: it joins, calls and checks until something happens to the group, says what it was told, forms a new group
//! with the other survivors, and looks at what it still holds.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use half::bf16;
use peersum::cudarc::driver::CudaContext;
use peersum::device::{Device, DeviceStream};
use peersum::dispatch::{Plan, Route};
use peersum::loader::LoadPolicy;
use peersum::{Communicator, Error, Graph, Output, Rendezvous, SymmetricBuffer, reference};
use peersum_emulator::EmulatorDevice;
use serde::{Deserialize, Serialize};
use tracing_subscriber::layer::SubscriberExt;

use super::holdings::Holdings;
use super::scenario::{Phase, Step};
use super::words::{Place, Verdict, Word};
use crate::data::{self, Content};
use crate::grid::DeviceKind;
use crate::memory::TestBuffer;

/// Odd, so that there is a partial unit; several units a thread on the emulator.
const ELEMENTS: usize = 603;

/// Calls of a graph.
const LAYERS: usize = 4;

/// What an array holds before a call; not a number of any type.
const POISON: u16 = 0xA5A5;
const NAN: u16 = 0x7FFF;

/// The longest that a rank goes on calling without anything happening to it.
const PATIENCE: Duration = Duration::from_secs(120);

/// For groups that nothing happens to.
const UNDISTURBED: Duration = Duration::from_secs(60);

/// What the referee makes of a process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Role {
    /// The referee's process id.
    pub(crate) parent: i32,
    pub(crate) device: DeviceKind,
    /// Where the ranks meet.
    pub(crate) directory: PathBuf,
    pub(crate) rank: u32,
    pub(crate) world_size: u32,
    pub(crate) phase: Phase,
    pub(crate) route: Route,
    /// Where it waits for a word of the referee.
    pub(crate) held_at: Option<Place>,
    pub(crate) timeout: Duration,
    pub(crate) setup_timeout: Duration,
    /// Its rank among the survivors, and their number; `None` for the victim.
    pub(crate) survivor: Option<(u32, u32)>,
    pub(crate) plant: Option<Plant>,
    /// Whether the ranks share one emulated device.
    pub(crate) one_device: bool,
}

/// A fault in a survivor, that the referee must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Plant {
    /// It never says what became of its communicator.
    Hang,
    /// It keeps shared memory.
    Leak,
    /// It takes a wrong result for a right one.
    Corrupt,
    /// It leaves a file where the ranks meet.
    Litter,
}

/// The flags of `kill-rank`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct RankArgs {
    /// [`Role`] as JSON.
    #[arg(long)]
    role: String,
}

/// Plays one rank.
///
/// # Errors
/// The process cannot be a rank at all. What goes wrong later is told to the referee.
pub(crate) fn run(args: &RankArgs) -> Result<()> {
    let role: Role = serde_json::from_str(&args.role).context("reading the role")?;
    crate::parent::end_with(role.parent)?;
    let outcome = match role.device {
        DeviceKind::Cuda => on_gpu(&role),
        DeviceKind::Emulator => {
            let device = if role.one_device { 0 } else { role.rank };
            play(&role, &|| Ok(EmulatorDevice::new(device).stream()?))
        }
    };
    if let Err(error) = outcome {
        say(&Word::Broken(format!("{error:#}")));
        std::process::exit(1);
    }
    Ok(())
}

fn on_gpu(role: &Role) -> Result<()> {
    peersum::cuda::driver_present()?;
    let count = CudaContext::device_count().context("counting the GPUs")?;
    ensure!(count > 0, "the CUDA driver finds no GPU");
    let context = peersum::open_context(role.rank % count.unsigned_abs())?;
    // SAFETY: every slice here is used on the stream of one rank only.
    unsafe { context.disable_event_tracking() };
    let stream = || Ok(context.new_stream()?);
    // The driver opens what it needs when it first needs it.
    undisturbed(role, "before", role.rank, role.world_size, &stream)?;
    play(role, &stream)
}

fn say(word: &Word) {
    if let Ok(line) = serde_json::to_string(word) {
        let mut stdout = std::io::stdout().lock();
        // The referee may have ended already, and then so does this process.
        let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    }
}

/// Says where this rank is, and waits there if it is held.
fn arrive(role: &Role, place: Place) {
    say(&Word::At(place));
    if role.held_at == Some(place) {
        let _ = std::io::stdin().lock().read_line(&mut String::new());
    }
}

fn play<S: DeviceStream>(role: &Role, stream: &dyn Fn() -> Result<S>) -> Result<()> {
    let before = Holdings::now()?;
    disturbed(role, &stream()?)?;
    if let Some((rank, world_size)) = role.survivor.filter(|(_, world_size)| *world_size > 1) {
        undisturbed(role, "survivors", rank, world_size, stream)?;
    }
    say(&Word::Left {
        surplus: before.surplus()?,
    });
    Ok(())
}

/// A rank of the group that something happens to.
fn disturbed<S: DeviceStream>(role: &Role, stream: &S) -> Result<()> {
    let planted = |plant| role.survivor.is_some() && role.plant == Some(plant);
    if planted(Plant::Litter) {
        std::fs::write(role.directory.join("litter"), "")?;
    }
    arrive(role, Place::Joining);
    let steps = tracing_subscriber::registry().with(Steps({
        let role = role.clone();
        move |step| arrive(&role, Place::SetUp(step))
    }));
    let built = tracing::subscriber::with_default(steps, || {
        let rendezvous = Rendezvous::unix(&role.directory, "disturbed", role.rank, role.world_size);
        build(role, stream, rendezvous, role.setup_timeout)
    });
    let (mut communicator, symmetric) = match built {
        Ok(built) => built,
        Err(error) => {
            if planted(Plant::Hang) {
                std::thread::sleep(PATIENCE);
            }
            say(&Word::Failed(Verdict::new(&error)));
            return Ok(());
        }
    };
    let mut work = Work::new(&communicator, role.route, symmetric)?;
    work.corrupts = planted(Plant::Corrupt);
    arrive(role, Place::Built);
    let failure = match role.phase {
        Phase::Teardown => {
            work.calls(&mut communicator, Some(3))?;
            None
        }
        Phase::GraphReplay => Some(work.replays(&mut communicator)?),
        _ => work.calls(&mut communicator, None)?,
    };
    if planted(Plant::Hang) {
        std::thread::sleep(PATIENCE);
    }
    match failure {
        Some(error) => {
            say(&Word::Failed(Verdict::new(&error)));
            drop(communicator);
        }
        None => {
            arrive(role, Place::Leaving);
            drop(communicator);
            say(&Word::Completed);
        }
    }
    if planted(Plant::Leak) {
        std::mem::forget(work);
    }
    Ok(())
}

/// A group that nothing happens to: the process and its device are as good as before.
fn undisturbed<S: DeviceStream>(
    role: &Role,
    group: &str,
    rank: u32,
    world_size: u32,
    stream: &dyn Fn() -> Result<S>,
) -> Result<()> {
    let rendezvous = Rendezvous::unix(&role.directory, group, rank, world_size);
    let role = Role {
        timeout: UNDISTURBED,
        ..role.clone()
    };
    let stream = stream()?;
    let (mut communicator, symmetric) = build(&role, &stream, rendezvous, UNDISTURBED)
        .with_context(|| format!("building group {group:?}"))?;
    let mut work = Work::new(&communicator, role.route, symmetric)?;
    let failure = work.calls(&mut communicator, Some(2))?;
    ensure!(failure.is_none(), "group {group:?} got {failure:?}");
    drop(communicator);
    Ok(())
}

type Built<D> = (Communicator<D>, Option<SymmetricBuffer<bf16, D>>);

fn build<S: DeviceStream>(
    role: &Role,
    stream: &S,
    rendezvous: Rendezvous,
    setup_timeout: Duration,
) -> Result<Built<S::Device>, Error> {
    let mut builder = Communicator::builder()
        .rendezvous(rendezvous)
        .max_bytes(64 << 10)
        .timeout(role.timeout)
        .setup_timeout(setup_timeout);
    if role.device == DeviceKind::Emulator {
        builder = builder.load_policy(LoadPolicy::default()).max_blocks(1);
    }
    let mut communicator = builder.build(stream)?;
    // On the emulator every thread of a grid is a thread of the host, and all of them spin.
    let (blocks, threads) = match role.device {
        DeviceKind::Cuda => (8, 128),
        DeviceKind::Emulator => (1, 8),
    };
    communicator.force_plan(Some(Plan {
        route: role.route,
        blocks,
        threads,
    }))?;
    let symmetric = match role.route.is_symmetric() {
        true => Some(communicator.symmetric_alloc(ELEMENTS)?),
        false => None,
    };
    Ok((communicator, symmetric))
}

/// Hears how far `peersum` has come in set-up.
struct Steps<F>(F);

impl<S: tracing::Subscriber, F: Fn(Step) + 'static> tracing_subscriber::Layer<S> for Steps<F> {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        struct Name<'a>(&'a dyn Fn(Step));
        impl tracing::field::Visit for Name<'_> {
            fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
                if field.name() == "step"
                    && let Some(step) = Step::named(value)
                {
                    (self.0)(step);
                }
            }
            fn record_debug(&mut self, _: &tracing::field::Field, _: &dyn std::fmt::Debug) {}
        }
        event.record(&mut Name(&self.0));
    }
}

/// Calls, or launches a graph of calls.
type Launch<'a, D> = dyn Fn(&mut Work<D>, &mut Communicator<D>) -> Result<(), Error> + 'a;

/// A rank's arrays, and what its calls must give.
struct Work<D: Device> {
    device: D,
    route: Route,
    input: TestBuffer<bf16, D>,
    output: TestBuffer<bf16, D>,
    symmetric: Option<SymmetricBuffer<bf16, D>>,
    own: Vec<bf16>,
    expected: Vec<bf16>,
    corrupts: bool,
}

impl<D: Device> Work<D> {
    fn new(
        communicator: &Communicator<D>,
        route: Route,
        symmetric: Option<SymmetricBuffer<bf16, D>>,
    ) -> Result<Self> {
        let device = D::open(communicator.stream())?;
        let inputs: Vec<Vec<bf16>> = (0..communicator.world_size())
            .map(|rank| data::input(5, rank, ELEMENTS, Content::Ordinary))
            .collect();
        let slices: Vec<&[bf16]> = inputs.iter().map(Vec::as_slice).collect();
        let expected = reference::all_reduce(&slices);
        let own = inputs
            .into_iter()
            .nth(communicator.rank() as usize)
            .context("a rank beyond its group")?;
        let (input, output) = (
            TestBuffer::new(&device, ELEMENTS, 0)?,
            TestBuffer::new(&device, ELEMENTS, 0)?,
        );
        input.write(&device, &own)?;
        Ok(Work {
            device,
            route,
            input,
            output,
            symmetric,
            own,
            expected,
            corrupts: false,
        })
    }

    fn symmetric_address(&mut self) -> Option<u64> {
        let symmetric = self.symmetric.as_mut()?;
        Some(
            symmetric
                .as_view_mut()
                .with_output(self.device.stream(), |address| address),
        )
    }

    /// Writes the input anew where a call has replaced it, and makes the output recognisable.
    fn prepare(&mut self) -> Result<()> {
        self.output.poison(&self.device)?;
        if let Some(address) = self.symmetric_address() {
            // SAFETY: the symmetric buffer has as many elements as `own`, and elements are plain data.
            unsafe {
                let bytes = std::slice::from_raw_parts(
                    self.own.as_ptr().cast(),
                    size_of_val(self.own.as_slice()),
                );
                self.device.write(address, bytes)?;
            }
        }
        Ok(())
    }

    fn call(&mut self, communicator: &mut Communicator<D>) -> Result<(), Error> {
        let Work {
            device,
            route,
            input,
            output,
            symmetric,
            ..
        } = self;
        match (route, symmetric) {
            (Route::SymmetricTwoShot, Some(symmetric)) => {
                communicator.all_reduce_in_place(&mut symmetric.as_view_mut())
            }
            (Route::SymmetricOneShot, Some(symmetric)) => output.with(device, |output| {
                communicator.all_reduce(&**symmetric, output)
            }),
            _ => input.with(device, |input| {
                output.with(device, |output| communicator.all_reduce(&*input, output))
            }),
        }
    }

    /// What the call's result is, or would be.
    fn result(&mut self) -> Result<Vec<u16>> {
        let (values, guards_hold) = match self.symmetric_address() {
            Some(address) if self.route == Route::SymmetricTwoShot => {
                let mut bytes = vec![0; ELEMENTS * size_of::<bf16>()];
                // SAFETY: the symmetric buffer has so many elements.
                unsafe { self.device.read(address, &mut bytes)? };
                let values = bytes
                    .chunks_exact(2)
                    .map(|pair| bf16::from_bits(u16::from_ne_bytes([pair[0], pair[1]])))
                    .collect();
                (values, true)
            }
            _ => self.output.read(&self.device)?,
        };
        ensure!(guards_hold, "memory beside the output was written");
        let mut bits: Vec<u16> = values.into_iter().map(bf16::to_bits).collect();
        if self.corrupts {
            bits[ELEMENTS / 2] ^= 1;
        }
        Ok(bits)
    }

    /// What the result's array held before the call.
    fn untouched(&self, index: usize) -> u16 {
        match self.route {
            Route::SymmetricTwoShot => self.own[index].to_bits(),
            _ => POISON,
        }
    }

    /// Compares with what there must be: all right if the calls succeeded; right or NaN if they failed; what was there before if nothing was
    /// launched.
    fn check(&mut self, launched: bool, succeeded: bool) -> Result<()> {
        for (index, bits) in self.result()?.into_iter().enumerate() {
            let expected = self.expected[index].to_bits();
            let as_it_must = match (launched, succeeded) {
                (true, true) => bits == expected,
                (true, false) => bits == expected || bits == NAN,
                (false, _) => bits == self.untouched(index),
            };
            ensure!(
                as_it_must,
                "element {index} is {bits:#06x}, the reference {expected:#06x} (launched: {launched}, succeeded: {succeeded})"
            );
        }
        Ok(())
    }

    /// Calls and checks so many times, or until something fails: then with what.
    fn calls(
        &mut self,
        communicator: &mut Communicator<D>,
        count: Option<usize>,
    ) -> Result<Option<Error>> {
        let call = |work: &mut Self, communicator: &mut Communicator<D>| work.call(communicator);
        self.repeat(communicator, count, &call)
    }

    /// Launches a graph of calls until that fails: with what.
    fn replays(&mut self, communicator: &mut Communicator<D>) -> Result<Error> {
        // An in-place call would sum its own result.
        let layers = match self.route {
            Route::SymmetricTwoShot => 1,
            _ => LAYERS,
        };
        communicator.capture_begin()?;
        for _ in 0..layers {
            self.call(communicator)?;
        }
        // SAFETY: the arrays live as long as `self`, the graph until the end of this function.
        let graph: Graph<'static, D> = unsafe { communicator.capture_end()? };
        let launch = |_: &mut Self, communicator: &mut Communicator<D>| graph.launch(communicator);
        self.repeat(communicator, None, &launch)?
            .context("a graph was launched without end")
    }

    fn repeat(
        &mut self,
        communicator: &mut Communicator<D>,
        count: Option<usize>,
        launch: &Launch<'_, D>,
    ) -> Result<Option<Error>> {
        let began = Instant::now();
        for done in 0.. {
            if Some(done) == count {
                return Ok(None);
            }
            if done == 2 && count.is_none() {
                say(&Word::At(Place::Calling));
            }
            self.prepare()?;
            let launched = launch(self, communicator);
            let was_launched = launched.is_ok();
            let outcome = launched.and_then(|()| communicator.synchronize());
            self.check(was_launched, outcome.is_ok())?;
            if let Err(error) = outcome {
                self.check_refusal(communicator, &error, launch)?;
                return Ok(Some(error));
            }
            ensure!(
                began.elapsed() < PATIENCE,
                "nothing has happened for {PATIENCE:?}"
            );
        }
        bail!("no end")
    }

    /// Whatever comes after a failure gives the same error and moves no data.
    fn check_refusal(
        &mut self,
        communicator: &mut Communicator<D>,
        error: &Error,
        launch: &Launch<'_, D>,
    ) -> Result<()> {
        self.prepare()?;
        for later in [
            launch(self, communicator),
            communicator.synchronize(),
            communicator.status(),
        ] {
            let later = later.err().context("a failed communicator said Ok")?;
            ensure!(
                later.to_string() == error.to_string(),
                "first {error}, then {later}"
            );
        }
        self.check(false, false)
    }
}
