//! Whether the communicator's stream records, and whose capture that is.

use super::state::Communicator;
use crate::device::{BufferError, Device, DeviceError, Recording, Waits};
use crate::error::Error;

/// The program owns the graph of such a capture: it could outlive the communicator, or run on
/// another stream at the same time as another call.
const NOT_OURS: &str = "the program captures the communicator's stream, so this call would become \
     part of a graph that the communicator does not know; capture with `Communicator::capture`, or \
     with `capture_begin` and `capture_end`, or build the communicator with the unsafe setting \
     `allow_outside_capture`";
pub(super) const ENDED_ELSEWHERE: &str = "the capture that `capture_begin` began was not ended by \
     `capture_end`; call `capture_end`, which reports it, and let nothing else end a capture of \
     the communicator's stream";
pub(super) const SPOILT: &str = "something that a capture cannot contain has spoilt the capture \
     of the communicator's stream: end it and begin anew; if cudarc's event tracking is on, call \
     `CudaContext::disable_event_tracking` first, because its waits for events from outside cannot \
     be captured";

impl<D: Device> Communicator<D> {
    /// Refuses what would be recorded in a capture that is not the communicator's own, or is
    /// spoilt. Costs one query of the driver.
    ///
    /// # Errors
    /// [`Error::Capture`].
    pub(super) fn check_recording(&self) -> Result<(), Error> {
        match (self.device.recording()?, self.capture) {
            (Recording::Off, None) => Ok(()),
            (Recording::On { capture }, Some(own)) if capture == own => Ok(()),
            (Recording::On { .. }, None) if self.allow_outside_capture => Ok(()),
            (Recording::On { .. }, None) => Err(Error::Capture(NOT_OURS)),
            (Recording::Off | Recording::On { .. }, Some(_)) => {
                Err(Error::Capture(ENDED_ELSEWHERE))
            }
            (Recording::Spoilt, _) => Err(Error::Capture(SPOILT)),
        }
    }

    /// [`Communicator::check_recording`] before buffers enqueue waits. If they enqueue none, the
    /// check of [`Communicator::admit`] is early enough.
    pub(super) fn check_before_waits(&self, waits: Waits) -> Result<(), Error> {
        match waits {
            Waits::Never => Ok(()),
            Waits::Possible => self.check_recording(),
        }
    }

    /// Whether the stream may record, so that it cannot be waited for now.
    pub(super) fn may_record(&self) -> bool {
        self.capture.is_some() || !matches!(self.device.recording(), Ok(Recording::Off))
    }

    /// Notes whether something else may have ended the capture `own`, given what the stream records
    /// now: it then has a graph of its calls. A spoilt capture has no number, so it may be another.
    pub(super) fn note_lost_capture(
        &mut self,
        recording: &Result<Recording, DeviceError>,
        own: u64,
    ) {
        let may_be_ended = match recording {
            Ok(Recording::Off | Recording::Spoilt) => true,
            Ok(Recording::On { capture }) => *capture != own,
            Err(_) => false,
        };
        self.lost_a_capture |= may_be_ended && self.capture_has_calls;
    }

    /// Ends a capture of the stream, whoever began it, if this thread may.
    pub(super) fn end_any_capture(&mut self) {
        if let Some(own) = self.capture {
            self.note_lost_capture(&self.device.recording(), own);
        }
        if self.may_record() {
            self.capture = None;
            // If it fails, the stream still records, and the next wait for the stream fails.
            let _ = self.device.capture_end();
        }
    }
}

impl From<BufferError> for Error {
    fn from(error: BufferError) -> Self {
        match error {
            BufferError::SpoiltCapture => Error::Capture(SPOILT),
            error => Error::Buffer(error),
        }
    }
}
