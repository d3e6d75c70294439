//! Children of a rank that are made by fork and execute no other program.

use rustix::process::{Pid, WaitOptions, waitpid};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// The most seconds that a child lives, whatever becomes of the test.
const LIFETIME: u32 = 60;
/// How long a child's one step may take. Only a hang takes as long.
const PATIENCE: Duration = Duration::from_secs(20);

fn fork() -> Option<Pid> {
    // SAFETY: the child goes on in the calling thread alone. It allocates, for which the C library
    // makes its allocator ready at a fork, and it waits for none of the threads that it lacks.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        // SAFETY: alarm has no precondition.
        unsafe { libc::alarm(LIFETIME) };
    }
    Pid::from_raw(pid)
}

fn exit(code: i32) -> ! {
    // SAFETY: ends the child at once, without what its parent has registered for its own end.
    unsafe { libc::_exit(code) }
}

/// A child takes `step`; fails if it hangs or panics.
pub(super) fn child_takes(step: impl FnOnce()) {
    let Some(child) = fork() else {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(step));
        exit(i32::from(outcome.is_err()));
    };
    let began = Instant::now();
    loop {
        if let Some((_, status)) = waitpid(Some(child), WaitOptions::NOHANG).unwrap() {
            assert_eq!(status.exit_status(), Some(0), "{status:?}");
            return;
        }
        if began.elapsed() > PATIENCE {
            rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
            panic!("the child hangs");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A child that lives until it is killed. Returns its process id.
pub(super) fn child_stays() -> i32 {
    if let Some(child) = fork() {
        return child.as_raw_pid();
    }
    // The test waits until the rank's output is closed; the child must not keep it open.
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .unwrap();
    for standard in 0..3 {
        // SAFETY: the child replaces descriptors of its own, which the standard library never
        // closes.
        assert_eq!(unsafe { libc::dup2(null.as_raw_fd(), standard) }, standard);
    }
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}
