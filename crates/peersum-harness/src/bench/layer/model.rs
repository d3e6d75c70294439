//! The models whose decode steps are measured, and the share of a rank.

use std::ffi::c_int;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use cudarc::cublas::GemmConfig;
use cudarc::cublas::sys::cublasOperation_t;
use half::bf16;
use serde::Serialize;

/// Elements of a head, in each of these models.
const HEAD: u32 = 128;

/// A model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
pub(super) enum Model {
    /// Llama 8B: hidden size 4096, 32 layers.
    #[value(name = "8b")]
    #[serde(rename = "8b")]
    Llama8b,
    /// Llama 70B: hidden size 8192, 80 layers.
    #[value(name = "70b")]
    #[serde(rename = "70b")]
    Llama70b,
}

impl Model {
    pub(super) fn name(self) -> &'static str {
        match self {
            Model::Llama8b => "8b",
            Model::Llama70b => "70b",
        }
    }
}

/// A rank's share of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) hidden: u32,
    pub(super) layers: u32,
    /// Columns of the rank's queries; keys and values are behind them.
    query: u32,
    pub(super) qkv: u32,
    /// Columns of the rank's gate; those of the projection up are behind them.
    gate: u32,
}

/// `y = x w^T` of row-major matrices: x is columns of a matrix of `stride` columns, w is
/// [outputs, inputs].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Product {
    inputs: u32,
    outputs: u32,
    stride: u32,
}

impl Shape {
    /// # Errors
    /// The heads do not divide into so many ranks.
    pub(super) fn new(model: Model, world_size: u32, layers: Option<u32>) -> Result<Shape> {
        let (hidden, all_layers, feed_forward) = match model {
            Model::Llama8b => (4096, 32, 14336),
            Model::Llama70b => (8192, 80, 28672),
        };
        let key_heads = 8;
        ensure!(
            key_heads % world_size == 0,
            "the {key_heads} key heads of a Llama do not divide into {world_size} ranks: take 2, \
             4 or 8"
        );
        let query = hidden / world_size;
        Ok(Shape {
            hidden,
            layers: layers.unwrap_or(all_layers),
            query,
            qkv: query + 2 * key_heads / world_size * HEAD,
            gate: feed_forward / world_size,
        })
    }

    pub(super) fn gate_up(self) -> u32 {
        2 * self.gate
    }

    /// The products of a layer, in order: QKV, output, gate and up, down.
    pub(super) fn products(self) -> [Product; 4] {
        let product = |inputs, outputs, stride| Product {
            inputs,
            outputs,
            stride,
        };
        [
            product(self.hidden, self.qkv, self.hidden),
            // In place of the attention, which would give as many columns: the queries.
            product(self.query, self.hidden, self.qkv),
            product(self.hidden, self.gate_up(), self.hidden),
            // In place of the activation, likewise: the gate.
            product(self.gate, self.hidden, self.gate_up()),
        ]
    }

    /// Elements of the rank's weights of a layer.
    pub(super) fn layer_elements(self) -> usize {
        self.products().map(Product::elements).iter().sum()
    }

    /// Bytes that each sum has.
    pub(super) fn message_bytes(self, rows: u32) -> u64 {
        u64::from(rows) * u64::from(self.hidden) * size_of::<bf16>() as u64
    }
}

impl Product {
    /// Elements of the weights.
    pub(super) fn elements(self) -> usize {
        self.inputs as usize * self.outputs as usize
    }

    /// To cuBLAS, whose matrices go by columns, a row-major matrix is its transpose: y^T = w x^T,
    /// where `w` must be turned back.
    pub(super) fn gemm(self, rows: u32) -> GemmConfig<bf16> {
        GemmConfig {
            transa: cublasOperation_t::CUBLAS_OP_T,
            transb: cublasOperation_t::CUBLAS_OP_N,
            m: self.outputs as c_int,
            n: rows as c_int,
            k: self.inputs as c_int,
            alpha: bf16::ONE,
            lda: self.inputs as c_int,
            ldb: self.stride as c_int,
            beta: bf16::ZERO,
            ldc: self.outputs as c_int,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_all_ranks_are_the_weights_of_the_model() {
        for world_size in [1, 2, 4, 8] {
            for (model, billions) in [(Model::Llama8b, 6.98), (Model::Llama70b, 68.45)] {
                let shape = Shape::new(model, world_size, None).unwrap();
                let elements = shape.layer_elements() * (shape.layers * world_size) as usize;
                // Without embeddings and norms.
                let found = elements as f64 / 1e9;
                assert!((found - billions).abs() < 0.01, "{model:?}: {found}");
            }
        }
    }

    #[test]
    fn a_product_reads_the_columns_that_the_one_before_wrote_for_it() {
        let shape = Shape::new(Model::Llama70b, 4, Some(2)).unwrap();
        let [_, output, _, down] = shape.products();
        assert_eq!((output.inputs, output.stride), (2048, 2560));
        assert_eq!((down.inputs, down.stride), (7168, 14336));
        let gemm = down.gemm(8);
        assert_eq!((gemm.m, gemm.n, gemm.k), (8192, 8, 7168));
        assert_eq!((gemm.lda, gemm.ldb, gemm.ldc), (7168, 14336, 8192));
    }

    #[test]
    fn ranks_that_cannot_share_the_heads_are_told_which_can() {
        let error = Shape::new(Model::Llama8b, 3, None).unwrap_err().to_string();
        assert!(error.contains("2, 4 or 8"), "{error}");
    }
}
