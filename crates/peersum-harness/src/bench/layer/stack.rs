//! One rank's layers: its weights, its activations, and the products that are enqueued.

use std::ffi::c_int;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use cudarc::cublas::sys::cublasOperation_t;
use cudarc::cublas::{Gemm, GemmConfig};
use half::bf16;
use peersum::cudarc::driver::{CudaSlice, CudaStream};

use super::weights;
use crate::bench::cublas::Cublas;
use crate::data::{self, Content, Key};

/// Every product reads whole units of 16 bytes of a row, which the fast kernels of cuBLAS and of
/// peersum need.
const UNIT_ELEMENTS: u32 = 8;

/// Square layers that are split over ranks by rows of their weights: each rank has `hidden /
/// world_size` inputs of every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) hidden: u32,
    pub(super) world_size: u32,
    pub(super) layers: u32,
}

impl Shape {
    /// # Errors
    /// The hidden size does not divide into shards of whole units.
    pub(super) fn new(hidden: u32, world_size: u32, layers: u32) -> Result<Shape> {
        ensure!(
            hidden.is_multiple_of(UNIT_ELEMENTS * world_size),
            "hidden {hidden} does not divide into {world_size} shards of whole units of \
             {UNIT_ELEMENTS}: take a multiple of {}",
            UNIT_ELEMENTS * world_size
        );
        Ok(Shape {
            hidden,
            world_size,
            layers,
        })
    }

    fn inputs(self) -> u32 {
        self.hidden / self.world_size
    }

    /// Elements of a rank's weights of one layer.
    fn shard_elements(self) -> usize {
        self.inputs() as usize * self.hidden as usize
    }

    /// Elements of a rank's weights of all layers.
    fn weight_elements(self) -> usize {
        self.shard_elements() * self.layers as usize
    }

    /// Elements of a layer's output, which every rank has in full.
    fn output_elements(self, rows: u32) -> usize {
        rows as usize * self.hidden as usize
    }

    /// Bytes that the all-reduce of one layer sums.
    pub(super) fn message_bytes(self, rows: u32) -> usize {
        self.output_elements(rows) * size_of::<bf16>()
    }

    /// `y = x w^T` of row-major matrices: x [rows, inputs] is a rank's columns of [rows, hidden], w
    /// [hidden, inputs], y [rows, hidden]. To cuBLAS, whose matrices go by columns, a row-major
    /// matrix is its transpose: y^T = w x^T, where `w` must be turned back.
    fn product(self, rows: u32) -> GemmConfig<bf16> {
        let (hidden, inputs) = (self.hidden as c_int, self.inputs() as c_int);
        GemmConfig {
            transa: cublasOperation_t::CUBLAS_OP_T,
            transb: cublasOperation_t::CUBLAS_OP_N,
            m: hidden,
            n: rows as c_int,
            k: inputs,
            alpha: bf16::ONE,
            lda: inputs,
            ldb: hidden,
            beta: bf16::ZERO,
            ldc: hidden,
        }
    }
}

/// The layers of one rank.
///
/// Every layer has its own weights, [hidden, hidden / world_size] as checkpoints store them, so
/// that no layer's weights are still in the cache when its turn comes again: at hidden 4096 and two
/// ranks 64 layers are 1 GiB a rank, at eight ranks still 256 MiB.
pub(super) struct Stack {
    shape: Shape,
    rank: u32,
    cublas: Cublas,
    weights: CudaSlice<bf16>,
    stream: Arc<CudaStream>,
}

/// What the layers compute on, for one number of rows.
pub(super) struct Activations {
    rows: u32,
    /// The first layer's input, the same on every rank and in every replay.
    input: CudaSlice<bf16>,
    /// The layers' outputs, in turn: one is the input of the next.
    outputs: [CudaSlice<bf16>; 2],
}

impl Stack {
    /// Opens cuBLAS and makes random weights, different ones on each rank, which keep the variance
    /// of what they multiply.
    ///
    /// # Errors
    /// cuBLAS or the driver refuses, for instance so much memory.
    pub(super) fn new(stream: &Arc<CudaStream>, rank: u32, shape: Shape) -> Result<Stack> {
        let cublas = Cublas::new(stream)?;
        let weights = weights::random(stream, rank, shape.weight_elements(), shape.hidden)?;
        Ok(Stack {
            shape,
            rank,
            cublas,
            weights,
            stream: Arc::clone(stream),
        })
    }

    /// # Errors
    /// The driver refuses the memory.
    pub(super) fn activations(&self, rows: u32) -> Result<Activations> {
        let elements = self.shape.output_elements(rows);
        // The same input on all ranks.
        let input: Vec<bf16> = data::input(Content::Even, Key::of(12, 0), elements);
        let activations = Activations {
            rows,
            input: self.stream.clone_htod(&input)?,
            outputs: [
                self.stream.alloc_zeros(elements)?,
                self.stream.alloc_zeros(elements)?,
            ],
        };
        self.stream.synchronize()?;
        Ok(activations)
    }

    /// Enqueues the product of this rank's shard of a layer, and returns the layer's output: the
    /// sum over all ranks is to be put in its place.
    ///
    /// # Errors
    /// cuBLAS refuses.
    pub(super) fn enqueue<'a>(
        &self,
        activations: &'a mut Activations,
        layer: u32,
    ) -> Result<&'a mut CudaSlice<bf16>> {
        let shard = self.shape.shard_elements();
        let weights = self.weights.slice(layer as usize * shard..);
        let [even, odd] = &mut activations.outputs;
        let (output, previous) = match layer % 2 {
            0 => (even, &*odd),
            _ => (odd, &*even),
        };
        let input = match layer {
            0 => &activations.input,
            _ => previous,
        };
        let own_columns = input.slice((self.rank * self.shape.inputs()) as usize..);
        let product = self.shape.product(activations.rows);
        // SAFETY: the weights hold every layer's shard; input and output are two of three
        // allocations of `rows` rows of `hidden` elements, of which this rank reads its own
        // columns. All are freed in the stream's order.
        unsafe {
            self.cublas
                .blas
                .gemm(product, &weights, &own_columns, output)
        }
        .context("cublasGemmEx")?;
        Ok(output)
    }

    /// Fills the outputs with NaN, which stays in every element that is not written.
    ///
    /// # Errors
    /// The driver refuses.
    pub(super) fn poison(&self, activations: &mut Activations) -> Result<()> {
        let poison = vec![bf16::NAN; self.shape.output_elements(activations.rows)];
        for output in &mut activations.outputs {
            self.stream.memcpy_htod(&poison, output)?;
        }
        self.stream.synchronize()?;
        Ok(())
    }

    /// The last layer's output, when the stream has passed it.
    ///
    /// # Errors
    /// The driver refuses.
    pub(super) fn read(&self, activations: &Activations) -> Result<Vec<bf16>> {
        let [even, odd] = &activations.outputs;
        let last = match self.shape.layers % 2 {
            0 => odd,
            _ => even,
        };
        let output = self.stream.clone_dtoh(last)?;
        self.stream.synchronize()?;
        Ok(output)
    }

    pub(super) fn shape(&self) -> Shape {
        self.shape
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_split_by_its_inputs_and_its_output_is_the_message() {
        let shape = Shape::new(8192, 4, 64).unwrap();
        assert_eq!(shape.message_bytes(64), 1 << 20);
        // A quarter of 8192 x 8192, and 64 of them in bf16 are 2 GiB.
        assert_eq!(shape.shard_elements(), 1 << 24);
        assert_eq!(shape.weight_elements() * size_of::<bf16>(), 2 << 30);
        let product = shape.product(8);
        assert_eq!((product.m, product.n, product.k), (8192, 8, 2048));
        assert_eq!((product.lda, product.ldb, product.ldc), (2048, 8192, 8192));
    }

    #[test]
    fn a_hidden_size_that_does_not_divide_into_units_is_answered_with_one_that_does() {
        let error = Shape::new(4096, 3, 64).unwrap_err().to_string();
        assert!(
            error.contains("4096") && error.contains("multiple of 24"),
            "{error}"
        );
        assert!(Shape::new(4104, 2, 1).is_err());
        assert!(Shape::new(16, 2, 1).is_ok());
    }
}
