//! Capturing calls into a graph and replaying them.

use std::marker::PhantomData;

use super::fp8::HeldFp8Output;
use super::held::Held;
use super::recording::{ENDED_ELSEWHERE, SPOILT};
use super::rms_norm::RmsNorm;
use super::state::Communicator;
use crate::device::{Device, Input, Output, Recording};
use crate::element::{Element, Scalar};
use crate::error::Error;

/// Recorded calls of one communicator. Launched through that communicator only, so that one
/// communicator cannot run on two streams.
pub struct Graph<'a, D: Device> {
    graph: D::Graph,
    communicator: u64,
    buffers: PhantomData<&'a mut ()>,
}

impl<D: Device> Graph<'_, D> {
    /// Enqueues every recorded call on the communicator's stream. All ranks must launch graphs of
    /// the same calls.
    ///
    /// # Errors
    /// [`Error::ForeignGraph`] for another communicator than the one that it was captured on;
    /// [`Error::Failed`] if the communicator is known to have failed, and then no data moves.
    pub fn launch(&self, communicator: &mut Communicator<D>) -> Result<(), Error> {
        if communicator.id != self.communicator {
            return Err(Error::ForeignGraph);
        }
        if communicator.capture.is_some() {
            return Err(Error::Capture(
                "a graph cannot be launched while a capture is open",
            ));
        }
        // In a capture of the program the graph would become a part of another.
        communicator.check_recording()?;
        communicator.refuse_if_failed()?;
        // SAFETY: the communicator is the one that the graph was captured on, so its arenas are
        // mapped; the buffers are borrowed for `'a`, or the caller of `capture_end` has promised
        // that they live.
        unsafe { communicator.device.launch_graph(&self.graph)? };
        Ok(())
    }
}

/// An open capture: calls are recorded instead of launched.
pub struct Capture<'a, 'c, D: Device> {
    communicator: &'c mut Communicator<D>,
    buffers: PhantomData<&'a mut ()>,
}

impl<'a, D: Device> Capture<'a, '_, D> {
    /// Records [`Communicator::all_reduce`].
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`].
    pub fn all_reduce<T: Element, I: Input<T, D>, O: Output<T, D>>(
        &mut self,
        input: &Held<'a, I>,
        output: &mut Held<'a, O>,
    ) -> Result<(), Error> {
        self.communicator
            .all_reduce::<T, I, O>(&*input.buffer, output.buffer)
    }

    /// Records [`Communicator::all_reduce_in_place`].
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`].
    pub fn all_reduce_in_place<T: Element, O: Output<T, D>>(
        &mut self,
        buffer: &mut Held<'a, O>,
    ) -> Result<(), Error> {
        self.communicator.all_reduce_in_place::<T, O>(buffer.buffer)
    }

    /// Records [`Communicator::all_reduce_rms_norm`]. The weight is borrowed as shared, for several
    /// calls and graphs may use one.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_rms_norm`].
    pub fn all_reduce_rms_norm<T: Element, I: Input<T, D>, W: Input<T, D>, O: Output<T, D>>(
        &mut self,
        input: &Held<'a, I>,
        norm: &RmsNorm<'a, W>,
        output: &mut Held<'a, O>,
    ) -> Result<(), Error> {
        self.communicator
            .all_reduce_rms_norm::<T, I, W, O>(&*input.buffer, norm, output.buffer)
    }

    /// Records [`Communicator::all_reduce_add_rms_norm`].
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_rms_norm`].
    pub fn all_reduce_add_rms_norm<T, I, R, W, O>(
        &mut self,
        input: &Held<'a, I>,
        residual: &mut Held<'a, R>,
        norm: &RmsNorm<'a, W>,
        output: &mut Held<'a, O>,
    ) -> Result<(), Error>
    where
        T: Element,
        I: Input<T, D>,
        R: Output<T, D>,
        W: Input<T, D>,
        O: Output<T, D>,
    {
        self.communicator.all_reduce_add_rms_norm::<T, I, R, W, O>(
            &*input.buffer,
            residual.buffer,
            norm,
            output.buffer,
        )
    }

    /// Records [`Communicator::all_reduce_rms_norm_in_place`].
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_rms_norm`].
    pub fn all_reduce_rms_norm_in_place<T: Element, W: Input<T, D>, O: Output<T, D>>(
        &mut self,
        buffer: &mut Held<'a, O>,
        norm: &RmsNorm<'a, W>,
    ) -> Result<(), Error> {
        self.communicator
            .all_reduce_rms_norm_in_place::<T, W, O>(buffer.buffer, norm)
    }

    /// Records [`Communicator::all_reduce_add_rms_norm_in_place`].
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_rms_norm`].
    pub fn all_reduce_add_rms_norm_in_place<T, R, W, O>(
        &mut self,
        buffer: &mut Held<'a, O>,
        residual: &mut Held<'a, R>,
        norm: &RmsNorm<'a, W>,
    ) -> Result<(), Error>
    where
        T: Element,
        R: Output<T, D>,
        W: Input<T, D>,
        O: Output<T, D>,
    {
        self.communicator
            .all_reduce_add_rms_norm_in_place::<T, R, W, O>(buffer.buffer, residual.buffer, norm)
    }

    /// Records [`Communicator::all_reduce_rms_norm_fp8`].
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_rms_norm_fp8`].
    pub fn all_reduce_rms_norm_fp8<T, W, O>(
        &mut self,
        buffer: &mut Held<'a, O>,
        norm: &RmsNorm<'a, W>,
        fp8: impl HeldFp8Output<'a, D>,
    ) -> Result<(), Error>
    where
        T: Element,
        W: Input<T, D>,
        O: Output<T, D>,
    {
        self.communicator
            .all_reduce_rms_norm_fp8(buffer.buffer, norm, fp8.lend())
    }

    /// Records [`Communicator::all_reduce_add_rms_norm_fp8`].
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_rms_norm_fp8`].
    pub fn all_reduce_add_rms_norm_fp8<T, R, W, O>(
        &mut self,
        buffer: &mut Held<'a, O>,
        residual: &mut Held<'a, R>,
        norm: &RmsNorm<'a, W>,
        fp8: impl HeldFp8Output<'a, D>,
    ) -> Result<(), Error>
    where
        T: Element,
        R: Output<T, D>,
        W: Input<T, D>,
        O: Output<T, D>,
    {
        self.communicator.all_reduce_add_rms_norm_fp8(
            buffer.buffer,
            residual.buffer,
            norm,
            fp8.lend(),
        )
    }

    /// Records [`Communicator::all_gather`].
    ///
    /// # Errors
    /// As [`Communicator::all_gather`].
    pub fn all_gather<T: Scalar, I: Input<T, D>, O: Output<T, D>>(
        &mut self,
        input: &Held<'a, I>,
        output: &mut Held<'a, O>,
    ) -> Result<(), Error> {
        self.communicator
            .all_gather::<T, I, O>(&*input.buffer, output.buffer)
    }

    /// Records [`Communicator::all_gather_in_place`].
    ///
    /// # Errors
    /// As [`Communicator::all_gather_in_place`].
    pub fn all_gather_in_place<T: Scalar, O: Output<T, D>>(
        &mut self,
        buffer: &mut Held<'a, O>,
    ) -> Result<(), Error> {
        self.communicator.all_gather_in_place::<T, O>(buffer.buffer)
    }

    /// Records [`Communicator::reduce_scatter`].
    ///
    /// # Errors
    /// As [`Communicator::reduce_scatter`].
    pub fn reduce_scatter<T: Element, I: Input<T, D>, O: Output<T, D>>(
        &mut self,
        input: &Held<'a, I>,
        output: &mut Held<'a, O>,
    ) -> Result<(), Error> {
        self.communicator
            .reduce_scatter::<T, I, O>(&*input.buffer, output.buffer)
    }

    /// Records [`Communicator::reduce_scatter_in_place`].
    ///
    /// # Errors
    /// As [`Communicator::reduce_scatter_in_place`].
    pub fn reduce_scatter_in_place<T: Element, O: Output<T, D>>(
        &mut self,
        buffer: &mut Held<'a, O>,
    ) -> Result<(), Error> {
        self.communicator
            .reduce_scatter_in_place::<T, O>(buffer.buffer)
    }

    /// Records [`Communicator::broadcast`].
    ///
    /// # Errors
    /// As [`Communicator::broadcast`].
    pub fn broadcast<T: Scalar, O: Output<T, D>>(
        &mut self,
        buffer: &mut Held<'a, O>,
        root: u32,
    ) -> Result<(), Error> {
        self.communicator.broadcast::<T, O>(buffer.buffer, root)
    }

    /// The stream under capture, for kernels of the program between the calls. Their memory is not
    /// held: it must stay valid as long as the graph, as in any graph of cudarc's. Nothing but the
    /// communicator may end the capture.
    pub fn stream(&self) -> &D::Stream {
        self.communicator.stream()
    }
}

/// Ends the capture in case that the program panics.
impl<D: Device> Drop for Capture<'_, '_, D> {
    fn drop(&mut self) {
        if self.communicator.capture.is_some() {
            self.communicator.end_any_capture();
        }
    }
}

impl<D: Device> Communicator<D> {
    /// Records the calls that `record` makes into a graph.
    ///
    /// cudarc's event tracking must be off while slices are captured
    /// (`CudaContext::disable_event_tracking`): a wait on an event from outside cannot be captured.
    ///
    /// # Errors
    /// Whatever `record` returns; [`Error::Capture`] if the program captures the stream already, or
    /// if something that a capture cannot contain was enqueued; [`Error::Device`] if the driver
    /// refuses the capture.
    ///
    /// # Panics
    /// If `record` does. The capture is ended, and nothing of it is launched.
    pub fn capture<'a>(
        &mut self,
        record: impl FnOnce(&mut Capture<'a, '_, D>) -> Result<(), Error>,
    ) -> Result<Graph<'a, D>, Error> {
        self.capture_begin()?;
        let mut capture = Capture {
            communicator: self,
            buffers: PhantomData,
        };
        let recorded = record(&mut capture);
        // The capture is ended whatever happened, so that the stream is usable again.
        let graph = capture.communicator.end_capture();
        recorded?;
        graph
    }

    /// Starts recording on the communicator's stream: its calls, and whatever else the program
    /// enqueues there, until [`Communicator::capture_end`].
    ///
    /// # Errors
    /// [`Error::Capture`] if a capture is open, the communicator's or the program's;
    /// [`Error::Failed`] if the communicator has failed.
    pub fn capture_begin(&mut self) -> Result<(), Error> {
        if self.capture.is_some() {
            return Err(Error::Capture("a capture is open already"));
        }
        self.refuse_if_failed()?;
        if self.device.recording()? != Recording::Off {
            return Err(Error::Capture(
                "the program captures the communicator's stream: end that capture first",
            ));
        }
        self.device.capture_begin()?;
        match self.device.recording() {
            Ok(Recording::On { capture }) => {
                self.capture = Some(capture);
                self.capture_has_calls = false;
                Ok(())
            }
            recording => {
                let _ = self.device.capture_end();
                recording?;
                Err(Error::Capture(SPOILT))
            }
        }
    }

    /// Ends a recording that [`Communicator::capture_begin`] started.
    ///
    /// # Safety
    /// Every buffer that was passed to a call since then must stay allocated, at its address, as
    /// long as the graph is launched.
    ///
    /// # Errors
    /// [`Error::Capture`] if no capture is open, or if something that a capture cannot contain was
    /// enqueued; [`Error::Device`] if the driver refuses.
    pub unsafe fn capture_end(&mut self) -> Result<Graph<'static, D>, Error> {
        self.end_capture()
    }

    fn end_capture<'a>(&mut self) -> Result<Graph<'a, D>, Error> {
        let Some(own) = self.capture.take() else {
            return Err(Error::Capture("no capture is open"));
        };
        // Asked before it is ended: the driver's own error does not name the remedy.
        let recording = self.device.recording();
        self.note_lost_capture(&recording, own);
        match recording {
            Ok(Recording::Off) => return Err(Error::Capture(ENDED_ELSEWHERE)),
            Ok(Recording::On { capture }) if capture != own => {
                // The program has begun another one. It ends without a graph, so that the stream is
                // usable again.
                let _ = self.device.capture_end();
                return Err(Error::Capture(ENDED_ELSEWHERE));
            }
            _ => {}
        }
        let was_spoilt = matches!(recording, Ok(Recording::Spoilt));
        let ended = self.device.capture_end();
        if ended.is_err() {
            // If another thread began the capture, only that thread may end it: it is still open.
            let recording = self.device.recording();
            let is_open = matches!(recording, Ok(Recording::On { .. } | Recording::Spoilt));
            self.capture = is_open.then_some(own);
        }
        let graph = ended.map_err(|error| {
            if was_spoilt {
                tracing::warn!(%error, "a capture was spoilt");
                return Error::Capture(SPOILT);
            }
            error.into()
        })?;
        Ok(Graph {
            graph,
            communicator: self.id,
            buffers: PhantomData,
        })
    }
}
