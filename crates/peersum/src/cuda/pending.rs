//! The errors that cudarc keeps in a context for later.
//!
//! Destructors and what makes streams wait return no error, so cudarc leaves theirs in the context.
//! The next call of cudarc on that context takes it and returns it *instead of doing its work*. If
//! that is a wait of one stream for another, the order is not made, and its error is left in turn:
//! nobody is told. So calls of cudarc that peersum relies on are made while older errors are aside.

use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::{CudaContext, DriverError};

/// Held while the errors of a device's contexts are aside, so that no rank that is a thread of this
/// process takes what another one's call has just left. (Other threads of the program still can.)
/// Ranks on different devices do not wait for each other, unless their ordinals are equal modulo
/// 16, which is more GPUs than a machine has.
static ALONE: [Mutex<()>; 16] = [const { Mutex::new(()) }; 16];

type Alone = MutexGuard<'static, ()>;

/// Locks the devices of both contexts, always in the same order.
fn alone(contexts: [&CudaContext; 2]) -> (Alone, Option<Alone>) {
    let [first, second] = contexts.map(|context| context.ordinal() % ALONE.len());
    let lock = |at: usize| ALONE[at].lock().unwrap_or_else(PoisonError::into_inner);
    let lower = lock(first.min(second));
    (lower, (first != second).then(|| lock(first.max(second))))
}

/// The errors that were in two contexts, which may be the same. They are put back when this is
/// dropped, for the program to see.
pub(super) struct SetAside<'c> {
    contexts: [&'c CudaContext; 2],
    errors: [Option<DriverError>; 2],
}

impl<'c> SetAside<'c> {
    pub(super) fn of(contexts: [&'c CudaContext; 2]) -> Self {
        let errors = [None; 2];
        SetAside { contexts, errors }
    }

    /// Runs `calls` of cudarc, which no older error disturbs. What they leave in the contexts is
    /// taken and returned.
    pub(super) fn undisturbed<R>(
        &mut self,
        calls: impl FnOnce() -> R,
    ) -> (R, Result<(), DriverError>) {
        let _alone = alone(self.contexts);
        for (context, error) in self.contexts.iter().zip(&mut self.errors) {
            *error = context.check_err().err().or(*error);
        }
        let result = calls();
        // Of both, so that none is left.
        let [first, second] = self.contexts.map(CudaContext::check_err);
        (result, first.and(second))
    }

    /// Puts this error back as well, in the place of an older one of the first context.
    pub(super) fn keep(&mut self, error: DriverError) {
        self.errors[0] = Some(error);
    }
}

impl Drop for SetAside<'_> {
    fn drop(&mut self) {
        if self.errors == [None; 2] {
            return;
        }
        let _alone = alone(self.contexts);
        for (context, error) in self.contexts.iter().zip(self.errors) {
            // A context has room for one: that of another thread meanwhile is the newest.
            if let Some(error) = context.check_err().err().or(error) {
                context.record_err::<()>(Err(error));
            }
        }
    }
}
