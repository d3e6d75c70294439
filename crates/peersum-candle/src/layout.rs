//! Which elements of its storage a tensor is.

use std::ops::Range;

use candle_core::{Error, Layout, Result};

use crate::error::NAME;

/// The elements of a tensor that lie in its storage in order and without gaps.
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only GPUs reduce"))]
pub(crate) fn elements(layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((begin, end)) => Ok(begin..end),
        None => Err(Error::RequiresContiguous { op: NAME }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Tensor};

    fn tensor() -> Tensor {
        Tensor::zeros((4, 6), DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn a_tensor_that_begins_inside_its_storage_is_its_own_elements_only() {
        assert_eq!(elements(tensor().layout()).unwrap(), 0..24);
        let rows = tensor().narrow(0, 1, 2).unwrap();
        assert_eq!(elements(rows.layout()).unwrap(), 6..18);
        let one = tensor().get(3).unwrap().get(5).unwrap();
        assert_eq!(elements(one.layout()).unwrap(), 23..24);
    }

    #[test]
    fn a_tensor_without_elements_is_an_empty_range() {
        let nothing = tensor().narrow(0, 2, 0).unwrap();
        assert!(elements(nothing.layout()).unwrap().is_empty());
    }

    #[test]
    fn a_tensor_with_gaps_or_repeats_is_refused_by_candles_own_error() {
        let columns = tensor().narrow(1, 0, 3).unwrap();
        let transposed = tensor().t().unwrap();
        let repeated = tensor().get(0).unwrap().broadcast_as((2, 6)).unwrap();
        for tensor in [columns, transposed, repeated] {
            assert!(matches!(
                elements(tensor.layout()),
                Err(Error::RequiresContiguous { op: NAME })
            ));
            assert!(elements(tensor.contiguous().unwrap().layout()).is_ok());
        }
    }
}
