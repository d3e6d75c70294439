//! How long tests wait.

use std::time::Duration;

/// Beyond any deadline that a test sets: only a hang reaches it.
pub(super) const HANG: Duration = Duration::from_secs(60);

/// Long enough for a loaded machine; nothing that works waits for it.
pub const AMPLE: Duration = Duration::from_secs(30);

/// Waits until rank 0 and the others have connected, which nothing but their silence shows.
pub fn settle() {
    std::thread::sleep(Duration::from_millis(400));
}
