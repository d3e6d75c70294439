//! Which file serves which device, and which driver it needs.

use peersum_artifact::{Arch, CudaVersion, PtxVersion, RELEASE_SET, Target, driver_branch_floor};

mod support;
use support::target;

/// The best of several targets for a device, as the loader chooses it: cubins before PTX, and the
/// highest that serves.
fn best_target(targets: impl IntoIterator<Item = Target>, device: Arch) -> Option<Target> {
    let serving = targets.into_iter().filter(|target| target.serves(device));
    serving.max_by_key(|target| (matches!(target, Target::Cubin(_)), *target))
}

fn device(number: u8) -> Arch {
    Arch::new(number / 10, number % 10)
}

const DEVICES: [u8; 12] = [75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121, 130];

fn served_by(name: &str) -> Vec<u8> {
    DEVICES
        .into_iter()
        .filter(|&number| target(name).serves(device(number)))
        .collect()
}

#[test]
fn a_cubin_serves_its_major_version_from_its_minor_on() {
    assert_eq!(served_by("sm_80"), [80, 86, 87, 89]);
    assert_eq!(served_by("sm_86"), [86, 87, 89]);
    assert_eq!(served_by("sm_90"), [90]);
    assert_eq!(served_by("sm_100"), [100, 103]);
    assert_eq!(served_by("sm_120"), [120, 121]);
}

#[test]
fn ptx_serves_its_number_and_every_higher_one() {
    assert_eq!(
        served_by("compute_80"),
        [80, 86, 87, 89, 90, 100, 103, 110, 120, 121, 130]
    );
    assert_eq!(served_by("compute_100"), [100, 103, 110, 120, 121, 130]);
}

#[test]
fn the_release_set_serves_every_device_since_ampere_and_with_a_cubin_where_there_is_one() {
    let best = |number| best_target(RELEASE_SET, device(number)).map(|target| target.to_string());
    assert_eq!(best(75), None);
    for (number, expected) in [
        (80, "sm_80"),
        (89, "sm_80"),
        (90, "sm_90"),
        (103, "sm_100"),
        (110, "compute_80"),
        (121, "sm_120"),
        (130, "compute_80"),
    ] {
        assert_eq!(best(number).as_deref(), Some(expected), "for {number}");
    }
}

#[test]
fn the_nearest_cubin_is_the_best_whatever_the_order() {
    let mut offered: Vec<Target> = ["compute_90", "sm_80", "sm_86", "sm_90", "sm_100"]
        .map(target)
        .to_vec();
    for _ in 0..offered.len() {
        offered.rotate_left(1);
        assert_eq!(
            best_target(offered.clone(), device(90)),
            Some(target("sm_90"))
        );
        assert_eq!(
            best_target(offered.clone(), device(89)),
            Some(target("sm_86"))
        );
        assert_eq!(
            best_target(offered.clone(), device(103)),
            Some(target("sm_100"))
        );
        assert_eq!(
            best_target(offered.clone(), device(120)),
            Some(target("compute_90"))
        );
    }
}

#[test]
fn targets_sort_by_number_and_cubins_before_ptx() {
    let sorted = [
        "sm_80",
        "compute_80",
        "sm_90",
        "compute_90",
        "sm_100",
        "sm_120",
    ]
    .map(target);
    let mut shuffled = sorted;
    shuffled.reverse();
    shuffled.sort();
    assert_eq!(shuffled, sorted);
}

#[test]
fn a_target_is_read_back_and_nothing_near_it_is() {
    for name in ["sm_80", "sm_120", "compute_80", "compute_100"] {
        assert_eq!(target(name).to_string(), name);
    }
    for wrong in [
        "",
        "80",
        "sm80",
        "sm_",
        "sm_8",
        "sm_080",
        "sm_1000",
        "sm_90a",
        "sm_100f",
        "sm_90A",
        "sm_90aa",
        "sm_a",
        "sm_+90",
        "sm_9.0",
        "SM_90",
        " sm_90",
        "sm_90 ",
        "lto_90",
        "sm_९०",
    ] {
        let error = wrong.parse::<Target>().unwrap_err().to_string();
        assert!(
            error.contains("sm_80, sm_90, sm_100, sm_120, compute_80"),
            "{error}"
        );
    }
}

#[test]
fn no_target_is_older_than_what_the_kernels_need() {
    for old in [
        "sm_79",
        "sm_75",
        "sm_75a",
        "sm_10",
        "compute_75",
        "compute_50",
    ] {
        let error = old.parse::<Target>().unwrap_err().to_string();
        assert!(
            error.contains(old) && error.contains("sm_80 and newer"),
            "{error}"
        );
    }
    assert!(!device(75).runs_kernels() && Arch::OLDEST.runs_kernels());
    assert!(device(80).runs_kernels() && device(103).runs_kernels());
    // A device of any age is read, since errors name it.
    assert_eq!("75".parse(), Ok(device(75)));
}

#[test]
fn a_driver_loads_cubins_of_its_major_version_and_older() {
    let cuda = |major, minor| CudaVersion { major, minor };
    assert_eq!(CudaVersion::from_driver_api(12090), cuda(12, 9));
    assert_eq!(CudaVersion::from_driver_api(13000), cuda(13, 0));
    assert_eq!(CudaVersion::from_driver_api(-1), cuda(0, 0));
    assert!(cuda(13, 0).loads_cubins_of(cuda(13, 2)));
    assert!(cuda(13, 0).loads_cubins_of(cuda(12, 4)));
    assert!(!cuda(12, 9).loads_cubins_of(cuda(13, 0)));
    assert_eq!(driver_branch_floor(13), Some(580));
    assert_eq!(driver_branch_floor(12), Some(525));
    assert_eq!(driver_branch_floor(99), None);
}

#[test]
fn ptx_needs_a_driver_as_new_as_its_version() {
    let cuda = |major, minor| CudaVersion { major, minor };
    let ptx = |text: &str| text.parse::<PtxVersion>().unwrap();
    assert!(cuda(13, 0).compiles_ptx(ptx("9.0")));
    assert!(!cuda(12, 9).compiles_ptx(ptx("9.0")));
    assert!(!cuda(13, 0).compiles_ptx(ptx("9.1")));
    // CUDA 12.6 has no PTX version of its own.
    assert!(cuda(12, 6).compiles_ptx(ptx("8.5")));
    assert!(!cuda(12, 6).compiles_ptx(ptx("8.6")));
    // Unknown to this crate: never assumed to work.
    assert!(!cuda(99, 0).compiles_ptx(ptx("42.0")));
    for wrong in ["9", "9.", ".0", "09.0", "9.00", "9.0.1", "+9.0", "9,0", ""] {
        assert!(wrong.parse::<PtxVersion>().is_err(), "{wrong}");
    }
}
