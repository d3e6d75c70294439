//! A communicator behind a mutex.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::abort::AbortHandle;
use super::fp8::Fp8Output;
use super::rms_norm::RmsNorm;
use super::state::Communicator;
use crate::device::Device;
use crate::device::{Input, Output};
use crate::element::{Element, Scalar};
use crate::error::Error;

/// A [`Communicator`] that can be shared between threads: each call locks a mutex.
///
/// The order of calls must still be the same on every rank; threads that race for the mutex do not
/// give one.
pub struct SharedCommunicator<D: Device> {
    communicator: Mutex<Communicator<D>>,
    handle: AbortHandle,
}

impl<D: Device> Communicator<D> {
    /// Wraps the communicator in a mutex, for callers that need `&self` and `Sync`.
    pub fn into_shared(self) -> SharedCommunicator<D> {
        SharedCommunicator {
            handle: self.abort_handle(),
            communicator: Mutex::new(self),
        }
    }
}

impl<D: Device> SharedCommunicator<D> {
    /// The communicator, locked. A panic of another thread that held it does not spread: a
    /// communicator keeps its own state of failure.
    pub fn lock(&self) -> MutexGuard<'_, Communicator<D>> {
        self.communicator
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`Communicator::all_reduce`].
    ///
    /// # Errors
    /// As there.
    pub fn all_reduce<T: Element, I: Input<T, D>, O: Output<T, D>>(
        &self,
        input: &I,
        output: &mut O,
    ) -> Result<(), Error> {
        self.lock().all_reduce(input, output)
    }

    /// See [`Communicator::all_reduce_in_place`].
    ///
    /// # Errors
    /// As there.
    pub fn all_reduce_in_place<T: Element, O: Output<T, D>>(
        &self,
        buffer: &mut O,
    ) -> Result<(), Error> {
        self.lock().all_reduce_in_place(buffer)
    }

    /// See [`Communicator::all_reduce_rms_norm`].
    ///
    /// # Errors
    /// As there.
    pub fn all_reduce_rms_norm<T: Element, I: Input<T, D>, W: Input<T, D>, O: Output<T, D>>(
        &self,
        input: &I,
        norm: &RmsNorm<'_, W>,
        output: &mut O,
    ) -> Result<(), Error> {
        self.lock().all_reduce_rms_norm(input, norm, output)
    }

    /// See [`Communicator::all_reduce_add_rms_norm`].
    ///
    /// # Errors
    /// As there.
    pub fn all_reduce_add_rms_norm<T, I, R, W, O>(
        &self,
        input: &I,
        residual: &mut R,
        norm: &RmsNorm<'_, W>,
        output: &mut O,
    ) -> Result<(), Error>
    where
        T: Element,
        I: Input<T, D>,
        R: Output<T, D>,
        W: Input<T, D>,
        O: Output<T, D>,
    {
        self.lock()
            .all_reduce_add_rms_norm(input, residual, norm, output)
    }

    /// See [`Communicator::all_reduce_rms_norm_in_place`].
    ///
    /// # Errors
    /// As there.
    pub fn all_reduce_rms_norm_in_place<T: Element, W: Input<T, D>, O: Output<T, D>>(
        &self,
        buffer: &mut O,
        norm: &RmsNorm<'_, W>,
    ) -> Result<(), Error> {
        self.lock().all_reduce_rms_norm_in_place(buffer, norm)
    }

    /// See [`Communicator::all_reduce_add_rms_norm_in_place`].
    ///
    /// # Errors
    /// As there.
    pub fn all_reduce_add_rms_norm_in_place<T, R, W, O>(
        &self,
        buffer: &mut O,
        residual: &mut R,
        norm: &RmsNorm<'_, W>,
    ) -> Result<(), Error>
    where
        T: Element,
        R: Output<T, D>,
        W: Input<T, D>,
        O: Output<T, D>,
    {
        self.lock()
            .all_reduce_add_rms_norm_in_place(buffer, residual, norm)
    }

    /// See [`Communicator::all_reduce_rms_norm_fp8`].
    ///
    /// # Errors
    /// As there.
    pub fn all_reduce_rms_norm_fp8<T: Element, W: Input<T, D>, O: Output<T, D>>(
        &self,
        buffer: &mut O,
        norm: &RmsNorm<'_, W>,
        fp8: impl Fp8Output<D>,
    ) -> Result<(), Error> {
        self.lock().all_reduce_rms_norm_fp8(buffer, norm, fp8)
    }

    /// See [`Communicator::all_reduce_add_rms_norm_fp8`].
    ///
    /// # Errors
    /// As there.
    pub fn all_reduce_add_rms_norm_fp8<T, R, W, O>(
        &self,
        buffer: &mut O,
        residual: &mut R,
        norm: &RmsNorm<'_, W>,
        fp8: impl Fp8Output<D>,
    ) -> Result<(), Error>
    where
        T: Element,
        R: Output<T, D>,
        W: Input<T, D>,
        O: Output<T, D>,
    {
        self.lock()
            .all_reduce_add_rms_norm_fp8(buffer, residual, norm, fp8)
    }

    /// See [`Communicator::all_gather`].
    ///
    /// # Errors
    /// As there.
    pub fn all_gather<T: Scalar, I: Input<T, D>, O: Output<T, D>>(
        &self,
        input: &I,
        output: &mut O,
    ) -> Result<(), Error> {
        self.lock().all_gather(input, output)
    }

    /// See [`Communicator::all_gather_in_place`].
    ///
    /// # Errors
    /// As there.
    pub fn all_gather_in_place<T: Scalar, O: Output<T, D>>(
        &self,
        buffer: &mut O,
    ) -> Result<(), Error> {
        self.lock().all_gather_in_place(buffer)
    }

    /// See [`Communicator::reduce_scatter`].
    ///
    /// # Errors
    /// As there.
    pub fn reduce_scatter<T: Element, I: Input<T, D>, O: Output<T, D>>(
        &self,
        input: &I,
        output: &mut O,
    ) -> Result<(), Error> {
        self.lock().reduce_scatter(input, output)
    }

    /// See [`Communicator::reduce_scatter_in_place`].
    ///
    /// # Errors
    /// As there.
    pub fn reduce_scatter_in_place<T: Element, O: Output<T, D>>(
        &self,
        buffer: &mut O,
    ) -> Result<(), Error> {
        self.lock().reduce_scatter_in_place(buffer)
    }

    /// See [`Communicator::broadcast`].
    ///
    /// # Errors
    /// As there.
    pub fn broadcast<T: Scalar, O: Output<T, D>>(
        &self,
        buffer: &mut O,
        root: u32,
    ) -> Result<(), Error> {
        self.lock().broadcast(buffer, root)
    }

    /// See [`Communicator::synchronize`].
    ///
    /// # Errors
    /// As there.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.lock().synchronize()
    }

    /// See [`Communicator::status`]. Takes no lock, so that a watchdog learns of a failure also
    /// while another thread waits in [`SharedCommunicator::synchronize`].
    ///
    /// # Errors
    /// As there.
    pub fn status(&self) -> Result<(), Error> {
        self.handle.status()
    }

    /// See [`Communicator::abort_handle`]. Takes no lock.
    pub fn abort_handle(&self) -> AbortHandle {
        self.handle.clone()
    }

    /// The communicator, alone again.
    pub fn into_inner(self) -> Communicator<D> {
        self.communicator
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
