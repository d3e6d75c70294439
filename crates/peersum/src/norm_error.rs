//! Why a call with RMSNorm is refused.

use peersum_kernels::abi;

/// What keeps a call from normalising rows. Nothing was launched.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NormError {
    /// The weight has no length that a row can have.
    #[error(
        "the weight has {hidden} elements; a row has a multiple of {unit} elements (16 bytes), and \
         at most {}",
        abi::PEERSUM_MAX_HIDDEN
    )]
    Hidden {
        /// The weight's length.
        hidden: usize,
        /// Elements of 16 bytes.
        unit: usize,
    },
    /// The input is not made of rows.
    #[error(
        "the input has {elements} elements, which are not whole rows of {hidden}, the length of \
         the weight"
    )]
    Rows {
        /// The input's length.
        elements: usize,
        /// The weight's length.
        hidden: usize,
    },
    /// The residual is not as long as the input.
    #[error("the input has {input} elements and the residual {residual}; they must be equal")]
    ResidualLength {
        /// Elements of the input.
        input: usize,
        /// Elements of the residual.
        residual: usize,
    },
    /// A buffer of an FP8 output does not fit the rows.
    #[error("{len} elements of {buffer}; the call needs {needed}")]
    Fp8Length {
        /// Which buffer.
        buffer: &'static str,
        /// Its elements.
        len: usize,
        /// Those that the call writes or reads.
        needed: usize,
    },
    /// A buffer does not begin at a multiple of 16 bytes.
    #[error(
        "the {buffer} begins at {address:#x}, but a call with RMSNorm needs a multiple of 16 \
         bytes: use whole allocations, or views that begin at a row"
    )]
    Misaligned {
        /// Which buffer.
        buffer: &'static str,
        /// Its address.
        address: u64,
    },
    /// A number that no norm can have.
    #[error("{name} is {value}; it must be {demand}")]
    Parameter {
        /// `epsilon` or `weight_offset`.
        name: &'static str,
        /// The value given.
        value: f32,
        /// What it must be.
        demand: &'static str,
    },
    /// A rank without peers has no kernel for it. (A rank with peers fails at set-up.)
    #[error("no module of the norm family could be loaded at set-up: {reason}")]
    Unavailable {
        /// Why not.
        reason: String,
    },
    /// Two buffers share memory.
    #[error("the {one} overlaps the {other}; give it memory of its own")]
    Overlap {
        /// One buffer.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
}
