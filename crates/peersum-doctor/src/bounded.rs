//! Checks that end in time, whatever a driver or a file system does.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// A check of many steps may take so many times as long as one of few.
pub(crate) const STEPS: u32 = 4;

/// Why a check gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unanswered {
    /// It still runs. Its thread is left alone: nothing can end a thread that waits for a driver.
    #[error("no answer within {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    /// It panicked, which is a defect; the panic's message is on stderr.
    #[error(
        "the check itself failed, which is a defect of peersum: please report it with the message \
         on stderr"
    )]
    Panicked,
    /// There is no thread for it.
    #[error("the system gives this process no further thread ({0})")]
    NoThread(String),
}

/// Runs `check` on a thread of its own and waits for its answer at most `patience`.
///
/// # Errors
/// [`Unanswered`] if it has not answered by then.
pub(crate) fn bounded<T: Send + 'static>(
    patience: Duration,
    check: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unanswered> {
    let (answer, answered) = channel();
    thread::Builder::new()
        .name("peersum-doctor".to_owned())
        .spawn(move || {
            // After a timeout nobody receives it.
            let _ = answer.send(check());
        })
        .map_err(|error| Unanswered::NoThread(error.to_string()))?;
    answered
        .recv_timeout(patience)
        .map_err(|error| match error {
            RecvTimeoutError::Timeout => Unanswered::TimedOut(patience),
            RecvTimeoutError::Disconnected => Unanswered::Panicked,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_hangs_is_given_up_and_one_that_panics_is_named() {
        let long = Duration::from_secs(60);
        assert_eq!(bounded(long, || 7), Ok(7));
        let short = Duration::from_millis(20);
        let hanging = bounded(short, move || thread::sleep(long));
        assert_eq!(hanging, Err(Unanswered::TimedOut(short)));
        let panicking = bounded(long, || panic!("on purpose"));
        assert_eq!(panicking, Err::<(), _>(Unanswered::Panicked));
    }
}
