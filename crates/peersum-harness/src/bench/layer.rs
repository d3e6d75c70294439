//! `bench layer`: a decode step of a Llama, with NCCL and a norm kernel, with peersum unfused, and
//! with peersum fused.

mod arguments;
mod decoder;
mod measure;
mod model;
mod report;
mod weights;

use anyhow::Result;

pub(crate) use self::arguments::LayerArgs;
use self::measure::{Group, measure_group};
use self::model::{Model, Shape};
use self::report::Report;
use super::build::Build;
use super::cublas::{self, Cublas};
use super::nccl::Nccl;
use super::report::{Run, write_json};
use crate::machine::{DeviceKind, Gpus, Machine};

/// Runs the benchmark, prints its tables and writes the report if that is asked for.
///
/// # Errors
/// There is no GPU or no cuBLAS, a model does not divide into the ranks, or something could not be
/// measured. Everything else was measured and written.
pub(crate) fn run(args: &LayerArgs) -> Result<()> {
    let gpus = Gpus::open(u32::MAX)?;
    let world_size = args
        .world_size
        .unwrap_or_else(|| default_world_size(gpus.devices()));
    let shapes = args.model.iter().map(|&model| {
        let shape = Shape::new(model, world_size, args.layers)?;
        Ok((model, shape))
    });
    let shapes = shapes.collect::<Result<Vec<(Model, Shape)>>>()?;
    cublas::load()?;
    let mut report = Report {
        run: Run::new(&gpus, &args.run.cubins, args.run.replays)?,
        world_size,
        pdl: args.pdl,
        cublas: Cublas::new(&gpus.stream(0)?)?.version()?,
        cells: Vec::new(),
    };
    let load_policy = Build::Shipped.load_policy(DeviceKind::Cuda, &args.run.cubins)?;
    let measure = |report: &mut Report, system, nccl: Option<&Nccl>| {
        for &(model, shape) in &shapes {
            let what = format!("{system}, a step of {}", model.name());
            eprintln!("{what}, {world_size} ranks");
            let group = Group {
                args,
                load_policy: &load_policy,
                model,
                shape,
                world_size,
            };
            report.add(&what, measure_group(&gpus, &group, nccl));
        }
    };
    measure(&mut report, "peersum", None);
    // Write now, in case NCCL hangs.
    write_json(args.json.as_deref(), &report)?;
    let nccl = args.nccl.open(world_size, gpus.devices(), &mut report.run);
    if let Some(nccl) = &nccl {
        measure(&mut report, "NCCL", Some(nccl));
    }
    write_json(args.json.as_deref(), &report)?;
    print!("{}", report.to_text());
    report.run.ensure_all_was_measured()
}

/// One rank per GPU, limited to the sizes that divide a model: 2, 4 or 8.
fn default_world_size(gpus: u32) -> u32 {
    let power = gpus.checked_ilog2().unwrap_or(0).clamp(1, 3);
    1 << power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_rank_a_gpu_but_never_fewer_than_two() {
        let by_gpus = [0, 1, 2, 3, 4, 6, 8, 16].map(default_world_size);
        assert_eq!(by_gpus, [2, 2, 2, 2, 4, 4, 8, 8]);
    }
}
