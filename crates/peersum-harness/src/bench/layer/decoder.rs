//! One rank's part of a decode step: its weights, its activations, and what is enqueued.

use std::sync::Arc;

use anyhow::{Context, Result};
use cudarc::cublas::Gemm;
use half::bf16;
use peersum::cudarc::driver::{CudaSlice, CudaStream, CudaView, DevicePtr};

use super::model::{Product, Shape};
use super::weights;
use crate::bench::cublas::Cublas;
use crate::data::{self, Content, Key};

/// The layers of one rank. Every layer has its own weights, so that none is in the cache when its
/// turn comes.
pub(super) struct Decoder {
    pub(super) shape: Shape,
    cublas: Cublas,
    weights: CudaSlice<bf16>,
    /// The weights of the norms, two a layer.
    gammas: CudaSlice<bf16>,
    stream: Arc<CudaStream>,
}

/// What a step computes on, for one number of rows.
pub(super) struct Activations {
    rows: u32,
    /// What the residual begins with, the same on every rank and in every step.
    embedding: CudaSlice<bf16>,
    /// The first layer's input, likewise.
    input: CudaSlice<bf16>,
    qkv: CudaSlice<bf16>,
    gate_up: CudaSlice<bf16>,
    sums: Sums,
}

/// What a sum over the ranks and the norm behind it work on.
pub(super) struct Sums {
    /// A rank's part of the sum.
    pub(super) partial: CudaSlice<bf16>,
    pub(super) residual: CudaSlice<bf16>,
    pub(super) normalised: CudaSlice<bf16>,
}

impl Decoder {
    /// Opens cuBLAS and makes random weights, different ones on each rank.
    ///
    /// # Errors
    /// cuBLAS or the driver refuses, for instance so much memory.
    pub(super) fn new(stream: &Arc<CudaStream>, rank: u32, shape: Shape) -> Result<Decoder> {
        let cublas = Cublas::new(stream)?;
        let elements = shape.layer_elements() * shape.layers as usize;
        let gammas = vec![bf16::ONE; 2 * shape.layers as usize * shape.hidden as usize];
        Ok(Decoder {
            weights: weights::random(stream, rank, elements, shape.hidden)?,
            gammas: stream.clone_htod(&gammas)?,
            shape,
            cublas,
            stream: Arc::clone(stream),
        })
    }

    /// # Errors
    /// The driver refuses the memory.
    pub(super) fn activations(&self, rows: u32) -> Result<Activations> {
        let elements = |columns: u32| rows as usize * columns as usize;
        let hidden = elements(self.shape.hidden);
        let given = |seed| -> Result<CudaSlice<bf16>> {
            let values: Vec<bf16> = data::input(Content::Even, Key::of(seed, 0), hidden);
            Ok(self.stream.clone_htod(&values)?)
        };
        let activations = Activations {
            rows,
            embedding: given(12)?,
            input: given(13)?,
            qkv: self.stream.alloc_zeros(elements(self.shape.qkv))?,
            gate_up: self.stream.alloc_zeros(elements(self.shape.gate_up()))?,
            sums: Sums {
                partial: self.stream.alloc_zeros(hidden)?,
                residual: self.stream.alloc_zeros(hidden)?,
                normalised: self.stream.alloc_zeros(hidden)?,
            },
        };
        self.stream.synchronize()?;
        Ok(activations)
    }

    /// Enqueues a step. `sum` enqueues what follows the output and the down product of each layer:
    /// the sum over the ranks and the norm with the given weights.
    ///
    /// # Errors
    /// cuBLAS or the driver refuses, or `sum` fails.
    pub(super) fn enqueue(
        &self,
        activations: &mut Activations,
        mut sum: impl FnMut(&mut Sums, CudaView<'_, bf16>) -> Result<()>,
    ) -> Result<()> {
        let [qkv, output, gate_up, down] = self.shape.products();
        let Activations { rows, sums, .. } = activations;
        let hidden = self.shape.hidden as usize;
        let embedding = &activations.embedding;
        self.stream.memcpy_dtod(embedding, &mut sums.residual)?;
        let weights = &mut self.weights.as_view();
        let mut product = |product, input: &_, output: &mut _| {
            self.product(product, *rows, weights, input, output)
        };
        for layer in 0..self.shape.layers as usize {
            let gamma = |norm: usize| {
                let first = (2 * layer + norm) * hidden;
                self.gammas.slice(first..first + hidden)
            };
            let normalised = match layer {
                0 => &activations.input,
                _ => &sums.normalised,
            };
            product(qkv, normalised, &mut activations.qkv)?;
            product(output, &activations.qkv, &mut sums.partial)?;
            sum(sums, gamma(0))?;
            product(gate_up, &sums.normalised, &mut activations.gate_up)?;
            product(down, &activations.gate_up, &mut sums.partial)?;
            sum(sums, gamma(1))?;
        }
        Ok(())
    }

    /// Enqueues a product with the next weights.
    fn product(
        &self,
        product: Product,
        rows: u32,
        weights: &mut CudaView<'_, bf16>,
        input: &CudaSlice<bf16>,
        output: &mut CudaSlice<bf16>,
    ) -> Result<()> {
        let (own, rest) = weights.split_at(product.elements());
        // SAFETY: the weights hold every layer's products in order; input and output are
        // allocations of `rows` rows of the columns that the product reads and writes. All are
        // freed in the stream's order.
        unsafe {
            self.cublas
                .blas
                .gemm(product.gemm(rows), &own, input, output)
        }
        .context("cublasGemmEx")?;
        *weights = rest;
        Ok(())
    }

    /// Fills what the norms write with NaN, which stays in every element that is not written.
    ///
    /// # Errors
    /// The driver refuses.
    pub(super) fn poison(&self, activations: &mut Activations) -> Result<()> {
        let sums = &mut activations.sums;
        let poison = vec![bf16::NAN; sums.residual.len()];
        for written in [&mut sums.residual, &mut sums.normalised] {
            self.stream.memcpy_htod(&poison, written)?;
        }
        self.stream.synchronize()?;
        Ok(())
    }

    /// The residual and the normalised rows that the last layer leaves.
    ///
    /// # Errors
    /// The driver refuses.
    pub(super) fn read(&self, activations: &Activations) -> Result<Vec<bf16>> {
        let sums = &activations.sums;
        let mut all = self.stream.clone_dtoh(&sums.residual)?;
        all.extend(self.stream.clone_dtoh(&sums.normalised)?);
        self.stream.synchronize()?;
        Ok(all)
    }
}

impl Sums {
    /// The number of elements of a sum, and where a rank's part of it is.
    pub(super) fn place(&self, stream: &Arc<CudaStream>) -> (usize, u64) {
        (self.partial.len(), self.partial.device_ptr(stream).0)
    }
}
