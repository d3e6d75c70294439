//! Objects of the driver that are given back when they are dropped.

use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::CUresult;

use super::driver::{bind, check, note};

/// An object of the driver, by its handle or address. Given back once, when dropped, with its
/// context as the current one.
pub(super) struct Owned<T: Copy> {
    context: Arc<CudaContext>,
    handle: T,
    /// The driver function that `give_back` calls.
    call: &'static str,
    give_back: fn(T) -> CUresult,
}

impl<T: Copy> Owned<T> {
    /// Takes over what the driver has made in `context`.
    pub(super) fn new(
        context: &Arc<CudaContext>,
        handle: T,
        call: &'static str,
        give_back: fn(T) -> CUresult,
    ) -> Self {
        Self {
            context: Arc::clone(context),
            handle,
            call,
            give_back,
        }
    }

    pub(super) fn handle(&self) -> T {
        self.handle
    }
}

impl<T: Copy> Drop for Owned<T> {
    fn drop(&mut self) {
        note(bind(&self.context).and_then(|()| check(self.call, (self.give_back)(self.handle))));
    }
}
