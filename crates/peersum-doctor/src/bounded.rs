//! Checks that end in time, whatever a driver or a file system does.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// A check of many steps may take so many times as long as one of few.
pub(crate) const STEPS: u32 = 4;

/// Runs `check` on a thread of its own and waits for its answer at most `patience`.
///
/// # Errors
/// Why it has not answered by then.
pub(crate) fn bounded<T: Send + 'static>(
    patience: Duration,
    check: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (answer, answered) = channel();
    thread::Builder::new()
        .name("peersum-doctor".to_owned())
        .spawn(move || {
            // After a timeout nobody receives it.
            let _ = answer.send(check());
        })
        .map_err(|error| format!("the system gives this process no further thread ({error})"))?;
    answered
        .recv_timeout(patience)
        .map_err(|error| match error {
            // Its thread is left alone: nothing can end a thread that waits for a driver.
            RecvTimeoutError::Timeout => format!("no answer within {} s", patience.as_secs_f64()),
            RecvTimeoutError::Disconnected => {
                "the check itself failed, which is a defect of peersum: \
            please report it with the message on stderr"
                    .to_owned()
            }
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
        assert_eq!(hanging, Err("no answer within 0.02 s".to_owned()));
        let panicking: Result<(), String> = bounded(long, || panic!("on purpose"));
        assert!(panicking.unwrap_err().contains("defect"));
    }
}
