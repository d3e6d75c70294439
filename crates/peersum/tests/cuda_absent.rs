//! A machine without the CUDA driver gets a typed error and no panic.

use libloading::Library;
use peersum::cuda::driver_present;
use peersum::device::DeviceError;

/// Looks for the driver by itself, under the name that every driver installs.
fn machine_has_the_driver() -> bool {
    // SAFETY: NVIDIA's driver may be opened at any time and by any thread.
    unsafe { Library::new("libcuda.so.1") }.is_ok()
}

#[test]
fn a_missing_driver_is_an_error_that_says_what_to_install() {
    match driver_present() {
        Ok(()) => assert!(
            machine_has_the_driver(),
            "no libcuda.so.1 on this machine, and the driver was found"
        ),
        Err(DeviceError::LibraryMissing { library, help }) => {
            assert!(
                !machine_has_the_driver(),
                "libcuda.so.1 is on this machine, and was not found: {help}"
            );
            assert_eq!(library, "libcuda.so.1");
            assert!(help.contains("install NVIDIA's driver"), "{help}");
        }
        Err(other) => panic!("expected LibraryMissing, got {other:?}"),
    }
}

#[test]
fn asking_again_and_from_other_threads_gives_the_same_answer() {
    let first = driver_present().is_ok();
    let answers: Vec<bool> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| driver_present().is_ok()))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("driver_present does not panic"))
            .collect()
    });
    assert_eq!(answers, [first; 4]);
}
