//! `bench layer --model`: a decode step of a Llama in one graph, with NCCL and a norm kernel, with
//! peersum unfused, and with peersum fused.

mod decoder;
mod measure;
mod model;
mod report;

use std::path::Path;

use anyhow::Result;

use self::measure::{Group, measure_group};
pub(super) use self::model::Model;
use self::model::Shape;
use self::report::Report;
use crate::bench::arguments::{NcclArgs, RunArgs};
use crate::bench::build::Build;
use crate::bench::cublas::Cublas;
use crate::bench::nccl::Nccl;
use crate::bench::report::{Run, write_json};
use crate::bench::timing::{Launch, Method};
use crate::machine::{DeviceKind, Gpus, Machine};

/// What is measured.
pub(super) struct Steps<'a> {
    pub(super) models: &'a [Model],
    pub(super) world_size: u32,
    /// `None`: all of the model's.
    pub(super) layers: Option<u32>,
    pub(super) rows: &'a [u32],
    pub(super) launches: &'a [Launch],
    pub(super) pdl: bool,
    pub(super) run: &'a RunArgs,
    pub(super) nccl: &'a NcclArgs,
    pub(super) json: Option<&'a Path>,
}

/// Measures the steps, prints the tables and writes the report if that is asked for.
///
/// # Errors
/// The model does not divide into the ranks, or something could not be measured. Everything else
/// was measured and written.
pub(super) fn run(steps: &Steps<'_>, gpus: &Gpus) -> Result<()> {
    let &Steps {
        world_size,
        layers,
        run,
        ..
    } = steps;
    let shapes = steps.models.iter().map(|&model| {
        let shape = Shape::new(model, world_size, layers)?;
        Ok((model, shape))
    });
    let shapes = shapes.collect::<Result<Vec<(Model, Shape)>>>()?;
    let mut report = Report {
        run: Run::new(gpus, &run.cubins, run.replays)?,
        world_size,
        pdl: steps.pdl,
        cublas: Cublas::new(&gpus.stream(0)?)?.version()?,
        cells: Vec::new(),
    };
    let load_policy = Build::Shipped.load_policy(DeviceKind::Cuda, &run.cubins)?;
    let launches = steps.launches.iter();
    let methods: Vec<Method> = launches.map(|&launch| run.method(launch, 1)).collect();
    let measure = |report: &mut Report, system, nccl: Option<&Nccl>| {
        for &(model, shape) in &shapes {
            let what = format!("{system}, a step of {}", model.name());
            eprintln!("{what}, {world_size} ranks");
            let group = Group {
                load_policy: &load_policy,
                model,
                shape,
                world_size,
                rows: steps.rows,
                methods: &methods,
                pdl: steps.pdl,
            };
            report.add(&what, measure_group(gpus, &group, nccl));
        }
    };
    measure(&mut report, "peersum", None);
    // Write now, in case NCCL hangs.
    write_json(steps.json, &report)?;
    if let Some(nccl) = &steps.nccl.open(world_size, gpus.devices(), &mut report.run) {
        measure(&mut report, "NCCL", Some(nccl));
    }
    write_json(steps.json, &report)?;
    print!("{}", report.to_text());
    report.run.ensure_all_was_measured()
}
