//! A program that has peersum from its `.crate` files alone.

use std::error::Error;

use half::bf16;
use peersum::cudarc::driver::CudaContext;
use peersum::loader::{DeviceTarget, JitMode, LoadPolicy, Place, load};
use peersum::{Communicator, Rendezvous};
use peersum_artifact::pack::Pack;
use peersum_artifact::{Arch, Target};
use peersum_emulator::{EmulatorBuffer, EmulatorDevice};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// One element, a unit and a tail, and enough for every algorithm's chunks.
const LENGTHS: [usize; 4] = [1, 13, 4096, 100_003];

fn main() -> Outcome<()> {
    check_modules()?;
    check_emulator()?;
    match gpu_count() {
        Ok(count) => check_gpus(count)?,
        Err(reason) => println!("GPU: not checked: {reason}"),
    }
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    if maps.contains("libnvrtc") {
        return Err("libnvrtc was loaded, though PEERSUM_JIT=deny".into());
    }
    println!("NVRTC: not loaded");
    // Last, since the doctor opens NVRTC and every GPU.
    println!("doctor: {}", peersum_doctor::doctor().conclusion.text);
    Ok(())
}

/// The loader's full check of every module that this executable carries.
fn check_modules() -> Outcome<()> {
    let policy = LoadPolicy::from_env()?;
    // PTX is the last resort: for a card for which nobody has made a cubin, and no NVRTC.
    let without_nvrtc = LoadPolicy::default()
        .jit(JitMode::Allow)
        .nvrtc_library("/nonexistent/libnvrtc.so");
    let pack = Pack::parse(peersum_kernels::PACK)?.ok_or("peersum-kernels carries no modules")?;
    let modules = &pack.manifest().modules;
    for module in modules {
        let (policy, arch, place) = match module.target {
            Target::Cubin(arch) => (&policy, arch, Place::Pack),
            Target::Ptx(_) => (&without_nvrtc, Arch::new(99, 0), Place::Ptx(None)),
        };
        let device = DeviceTarget {
            arch,
            driver_version: None,
        };
        let image = load(policy, module.key, &device)?;
        let is_it = image.report.place == place && image.target == module.target;
        // The loader ends PTX in a NUL.
        if !is_it || !image.bytes.starts_with(&pack.verified(module)?) {
            return Err(format!("not from the executable: {}", image.report).into());
        }
    }
    println!("modules: all {} load from the executable", modules.len());
    Ok(())
}

fn check_emulator() -> Outcome<()> {
    const WORLD_SIZE: u32 = 3;
    on_ranks(WORLD_SIZE, |rendezvous| {
        let rank = rendezvous.rank();
        let stream = EmulatorDevice::new(rank).stream()?;
        let mut communicator = Communicator::builder()
            .rendezvous(rendezvous)
            .max_bytes(1 << 20)
            .build(&stream)?;
        for length in LENGTHS {
            let input = EmulatorBuffer::from_slice(&input(rank, length));
            let mut output = EmulatorBuffer::<bf16>::zeroed(length);
            communicator.all_reduce(&input, &mut output)?;
            communicator.synchronize()?;
            compare(&output.to_vec(), WORLD_SIZE)?;
        }
        Ok(())
    })?;
    println!("emulator: {WORLD_SIZE} ranks, the reference's bits");
    Ok(())
}

fn gpu_count() -> Outcome<u32> {
    // Without the driver cudarc would panic.
    peersum::cuda::driver_present()?;
    match CudaContext::device_count()? {
        count if count > 0 => Ok(count as u32),
        _ => Err("the driver has no device".into()),
    }
}

fn check_gpus(count: u32) -> Outcome<()> {
    let world_size = count.clamp(2, 8);
    on_ranks(world_size, |rendezvous| {
        let rank = rendezvous.rank();
        let stream = peersum::open_context(rank % count)?.new_stream()?;
        let mut communicator = Communicator::builder()
            .rendezvous(rendezvous)
            .build(&stream)?;
        for length in LENGTHS {
            let mut buffer = stream.clone_htod(&input(rank, length))?;
            communicator.all_reduce_in_place(&mut buffer)?;
            // The only proof that the sums are valid.
            communicator.synchronize()?;
            compare(&stream.clone_dtoh(&buffer)?, world_size)?;
        }
        Ok(())
    })?;
    println!("GPU: {world_size} ranks on {count} GPUs, the reference's bits");
    Ok(())
}

/// Runs a function on each rank, a thread each.
fn on_ranks(world_size: u32, run: impl Fn(Rendezvous) -> Outcome<()> + Sync) -> Outcome<()> {
    let run = &run;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = Rendezvous::threads(world_size)
            .into_iter()
            .map(|rendezvous| scope.spawn(move || run(rendezvous)))
            .collect();
        ranks.into_iter().try_for_each(|rank| match rank.join() {
            Ok(outcome) => outcome,
            Err(_) => Err("a rank panicked".into()),
        })
    })
}

/// What a rank gives: different values on every rank, of which the sums round.
fn input(rank: u32, length: usize) -> Vec<bf16> {
    (0..length)
        .map(|index| bf16::from_f32((index % 977) as f32 * 0.37 - 180.0 + rank as f32 * 0.61))
        .collect()
}

fn compare(found: &[bf16], world_size: u32) -> Outcome<()> {
    let inputs: Vec<Vec<bf16>> = (0..world_size)
        .map(|rank| input(rank, found.len()))
        .collect();
    let inputs: Vec<&[bf16]> = inputs.iter().map(Vec::as_slice).collect();
    let expected = peersum::reference::all_reduce(&inputs);
    let bits = |value: &bf16| value.to_bits();
    if found.iter().map(bits).eq(expected.iter().map(bits)) {
        Ok(())
    } else {
        Err(format!("a sum of {} elements is not the reference's", found.len()).into())
    }
}
