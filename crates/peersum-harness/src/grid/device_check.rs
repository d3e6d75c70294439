//! Makes data and compares results on the GPU, with kernels that `cargo xtask test-allreduce`
//! compiles ahead of time. For large results, copying to and comparing on the host would take most
//! of a run.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use peersum::cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr, DeviceRepr, LaunchConfig,
    PushKernelArg,
};
use peersum::cudarc::nvrtc::Ptx;
use peersum::device::{Device, MemorySharing};
use peersum_artifact::Dtype;

use crate::call::{Slot, Sum, Wrong};
use crate::data::{Content, Key};
use crate::memory::{GUARD_BYTES, POISON};

/// Names the directory with the cubins of `check.cu`, `check.sm_90.cubin` and so on.
const DIRECTORY_VARIABLE: &str = "PEERSUM_GRID_CHECK_DIR";

/// The most results between two calls of [`DeviceCheck::take`].
pub(crate) const PLACES: usize = 512;

/// In place of an index in what `check.cu` reports.
const OUTSIDE: u32 = 0xFFFF_FFFE;

/// The two kernels on one GPU.
#[derive(Clone)]
pub(crate) struct DeviceCheckModule {
    generate: CudaFunction,
    check: CudaFunction,
}

impl DeviceCheckModule {
    /// Loads the cubin for the GPU from the directory that the environment names; `None` if it
    /// names none, and results are then compared on the host.
    pub(crate) fn load(context: &Arc<CudaContext>) -> Result<Option<DeviceCheckModule>> {
        let Some(directory) = std::env::var_os(DIRECTORY_VARIABLE) else {
            return Ok(None);
        };
        let (major, minor) = context.compute_capability()?;
        let path = std::path::Path::new(&directory).join(format!("check.sm_{major}{minor}.cubin"));
        let cubin = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let module = context
            .load_module(Ptx::from_binary(cubin))
            .with_context(|| format!("loading {}", path.display()))?;
        Ok(Some(DeviceCheckModule {
            generate: module.load_function("peersum_grid_generate")?,
            check: module.load_function("peersum_grid_check")?,
        }))
    }

    /// The kernels on one stream.
    pub(crate) fn on(&self, stream: &Arc<CudaStream>) -> Result<DeviceCheck> {
        Ok(DeviceCheck {
            module: self.clone(),
            results: stream.alloc_zeros(PLACES)?,
            starts: [0; PLACES],
            stream: Arc::clone(stream),
        })
    }
}

/// Makes data and compares results on a rank's stream. Everything is enqueued; only `take` waits.
pub(crate) struct DeviceCheck {
    stream: Arc<CudaStream>,
    module: DeviceCheckModule,
    results: CudaSlice<u64>,
    /// Where the array of each checked slot began.
    starts: [usize; PLACES],
}

/// One key a rank, as `check.cu` takes them.
#[derive(Clone, Copy)]
#[repr(C)]
struct Keys([u32; 8]);

// SAFETY: a plain array of integers, the layout of `Keys` in check.cu.
unsafe impl DeviceRepr for Keys {}

/// Few and small blocks: they must fit on the GPU beside blocks that wait for this rank.
fn shape(elements: u64) -> LaunchConfig {
    const THREADS: u32 = 256;
    let blocks = elements.div_ceil(u64::from(THREADS) * 4).clamp(1, 264) as u32;
    LaunchConfig {
        grid_dim: (blocks, 1, 1),
        block_dim: (THREADS, 1, 1),
        shared_mem_bytes: 0,
    }
}

impl DeviceCheck {
    /// Writes one rank's array, the sum of a single one.
    pub(crate) fn generate(&mut self, own: &Sum, slot: &Slot) -> Result<()> {
        let elements = own.elements as u64;
        let (address, number, key) = (slot.address(), own.dtype as u32, own.keys[0].0);
        let special = u32::from(own.content == Content::Special);
        let mut launch = self.stream.launch_builder(&self.module.generate);
        launch
            .arg(&address)
            .arg(&elements)
            .arg(&number)
            .arg(&special)
            .arg(&key);
        // SAFETY: the arguments are those of the kernel, which writes `elements` elements from the
        // array's address on; the slot holds them.
        unsafe { launch.launch(shape(elements))? };
        Ok(())
    }

    /// Compares a slot with a sum, and keeps the first difference under `place`.
    pub(crate) fn check(&mut self, sum: &Sum, slot: &Slot, place: usize) -> Result<()> {
        let keys = &sum.keys;
        ensure!(
            place < PLACES && keys.len() <= 8,
            "no place for result {place}"
        );
        self.starts[place] = slot.start;
        let all = Keys(std::array::from_fn(|rank| {
            keys.get(rank).map_or(0, |key| key.0)
        }));
        let elements = sum.elements as u64;
        let (start, guarded) = (slot.start as u64, slot.guarded_bytes as u64);
        let (number, world_size) = (sum.dtype as u32, keys.len() as u32);
        let special = u32::from(sum.content == Content::Special);
        let result = {
            let (address, _guard) = self.results.device_ptr(&self.stream);
            address + (place * size_of::<u64>()) as u64
        };
        let mut launch = self.stream.launch_builder(&self.module.check);
        launch
            .arg(&slot.base)
            .arg(&start)
            .arg(&guarded)
            .arg(&elements)
            .arg(&number)
            .arg(&special)
            .arg(&all)
            .arg(&world_size)
            .arg(&result);
        // SAFETY: the arguments are those of the kernel, which reads the slot and writes one
        // result; this stream alone uses the results.
        unsafe { launch.launch(shape(elements))? };
        Ok(())
    }

    /// What was found under the first `places` places since the last call. `expected` returns the
    /// bits of an element, given its place and index.
    pub(crate) fn take(
        &mut self,
        places: usize,
        expected: impl Fn(usize, u32) -> u64,
    ) -> Result<Vec<(usize, Wrong)>> {
        let words = self.stream.clone_dtoh(&self.results)?;
        self.stream.memset_zeros(&mut self.results)?;
        self.stream.synchronize()?;
        let found = words.into_iter().take(places).enumerate();
        Ok(found
            .filter(|(_, word)| *word != 0)
            .map(|(place, word)| {
                let (index, low) = ((!word >> 32) as u32, !word as u32);
                let wrong = if index == OUTSIDE {
                    Wrong::Outside {
                        byte: i64::from(low) - self.starts[place] as i64,
                    }
                } else {
                    Wrong::Element {
                        index,
                        expected: expected(place, index),
                        actual: u64::from(low),
                    }
                };
                (place, wrong)
            })
            .collect())
    }
}

/// Tests a check against the data and sums of the host: it must make the same data, accept the
/// reference's sums, and find one changed bit anywhere and one changed byte beside the array.
pub(crate) fn prove<D: Device>(check: &mut DeviceCheck, device: &D, world_size: u32) -> Result<()> {
    for content in [Content::Ordinary, Content::Special] {
        for &dtype in Dtype::REDUCED {
            let of_ranks = |ranks| Sum {
                dtype,
                content,
                keys: Key::of_call(7, 1, 2, ranks),
                elements: 20_001,
            };
            prove_sum(check, device, &of_ranks(world_size), &of_ranks(1))?;
        }
    }
    Ok(())
}

fn prove_sum<D: Device>(check: &mut DeviceCheck, device: &D, sum: &Sum, own: &Sum) -> Result<()> {
    let element_bytes = sum.dtype.size_bytes();
    let start = GUARD_BYTES + element_bytes;
    let bytes = sum.elements * element_bytes;
    let guarded_bytes = (start + bytes + GUARD_BYTES).next_multiple_of(4);
    let allocation = device.allocate_shared(guarded_bytes, MemorySharing::Auto)?;
    let slot = Slot {
        base: device.allocation_address(&allocation),
        start,
        bytes,
        guarded_bytes,
    };
    let mut memory = vec![POISON; guarded_bytes];
    let set = |memory: &[u8]| -> Result<()> {
        // SAFETY: the allocation holds `guarded_bytes` bytes.
        unsafe { device.write(slot.base, memory)? };
        Ok(())
    };
    let (ranks, content) = (sum.keys.len(), sum.content);
    let what = || format!("{} {content:?} of {ranks} ranks", sum.dtype);
    let first_wrong = |check: &mut DeviceCheck, memory: &[u8]| -> Result<Option<Wrong>> {
        set(memory)?;
        check.check(sum, &slot, 0)?;
        let found = check.take(1, |_, _| 0)?;
        Ok(found.first().map(|(_, wrong)| *wrong))
    };

    set(&memory)?;
    check.generate(own, &slot)?;
    let mut made = vec![0; guarded_bytes];
    // SAFETY: as above.
    unsafe { device.read(slot.base, &mut made)? };
    memory[start..start + bytes].copy_from_slice(&own.bytes());
    ensure!(
        made == memory,
        "{}: the card makes other data than the host",
        what()
    );

    memory[start..start + bytes].copy_from_slice(&sum.bytes());
    if let Some(found) = first_wrong(check, &memory)? {
        bail!(
            "{}: the card's sum is not the reference's: {found:?}",
            what()
        );
    }
    for index in [0, 1, sum.elements / 2, sum.elements - 1] {
        let at = start + index * element_bytes;
        memory[at] ^= 1;
        let found = first_wrong(check, &memory)?;
        ensure!(
            matches!(found, Some(Wrong::Element { index: at, .. }) if at as usize == index),
            "{}: a changed bit of element {index} was reported as {found:?}",
            what()
        );
        memory[at] ^= 1;
    }
    for (at, byte) in [(start - 1, -1), (start + bytes, bytes as i64)] {
        memory[at] = 0;
        let found = first_wrong(check, &memory)?;
        ensure!(
            found == Some(Wrong::Outside { byte }),
            "{}: a byte written at {byte} was reported as {found:?}",
            what()
        );
        memory[at] = POISON;
    }
    Ok(())
}
