use crate::checkout::{Answer, Checkout, module, target};

#[test]
fn the_output_is_the_matrix_and_a_manifest_that_describes_it() {
    let checkout = Checkout::new();
    let archs = "sm_80,compute_80,sm_90";
    Answer::of(&mut checkout.precompile_with("pinned", archs, &[])).succeeded();
    // Compiling the sm_80 cubin makes the PTX of compute_80 too.
    assert_eq!(checkout.compiled(), 8);
    assert_eq!(checkout.whole_output().len(), 12 + 1);
    let manifest = checkout.manifest();
    assert_eq!(manifest.toolkit.version, "13.0.88");
    let sources: Vec<_> = manifest
        .sources
        .iter()
        .map(|source| &*source.path)
        .collect();
    assert_eq!(sources, ["names.cuh", "pull.cu", "push.cu", "scale.cuh"]);

    let push = module("peersum_push_bf16_ws3");
    let cubin = manifest.find(push, target("sm_90")).unwrap();
    let entries: Vec<_> = cubin
        .entry_points
        .iter()
        .map(|entry| (&*entry.name, entry.max_threads, entry.pdl))
        .collect();
    assert_eq!(
        entries,
        [
            ("peersum_push_one_shot_bf16_ws3", 512, true),
            ("peersum_push_reduce_scatter_bf16_ws3", 128, false),
            ("peersum_push_two_shot_bf16_ws3", 256, false)
        ],
        "the second one does not wait for its predecessor"
    );
    let resources = cubin.entry_points[0].resources.unwrap();
    assert!(resources.registers > 0 && resources.spill_bytes == 0);
    assert!(
        !manifest.find(push, target("sm_80")).unwrap().entry_points[0].pdl,
        "sm_80 has no such wait"
    );
    let ptx = manifest.find(push, target("compute_80")).unwrap();
    assert!(!ptx.entry_points[0].pdl);
    assert_eq!(ptx.ptx_version.unwrap().to_string(), "9.0");
}

#[test]
fn a_ptx_is_the_same_whether_or_not_the_cubin_is_made_with_it() {
    let (alone, together) = (Checkout::new(), Checkout::new());
    Answer::of(&mut alone.precompile_with("pinned", "compute_80", &[])).succeeded();
    Answer::of(&mut together.precompile_with("pinned", "compute_80,sm_80", &[])).succeeded();
    let together = together.whole_output();
    for (name, bytes) in alone
        .whole_output()
        .iter()
        .filter(|(name, _)| *name != "manifest.json")
    {
        assert_eq!(Some(bytes), together.get(name), "{name}");
    }
}

#[test]
fn two_builds_in_two_directories_give_the_same_bytes_manifest_included() {
    let (first, second) = (Checkout::new(), Checkout::new());
    Answer::of(&mut first.precompile_with("pinned", "sm_80,sm_90,compute_80", &["--jobs", "1"]))
        .succeeded();
    Answer::of(&mut second.precompile_with("pinned", "compute_80,sm_90,sm_80", &["--jobs", "3"]))
        .succeeded();
    assert_eq!(first.whole_output(), second.whole_output());
}

#[test]
fn directory_names_with_spaces_quotes_and_dollars_work() {
    let checkout = Checkout::named("it's `odd` $HOME \"\\");
    Answer::of(&mut checkout.precompile(&[])).succeeded();
    let plain = Checkout::new();
    Answer::of(&mut plain.precompile(&[])).succeeded();
    assert_eq!(checkout.whole_output(), plain.whole_output());
}

#[test]
fn flags_in_the_environment_do_not_get_into_the_code() {
    let (plain, flagged) = (Checkout::new(), Checkout::new());
    Answer::of(&mut plain.precompile(&[])).succeeded();
    let mut command = flagged.precompile(&[]);
    command
        .env("NVCC_APPEND_FLAGS", "-G")
        .env("NVCC_PREPEND_FLAGS", "-DPEERSUM_SCALE=9.0f");
    Answer::of(&mut command).succeeded();
    assert_eq!(plain.whole_output(), flagged.whole_output());
}

#[test]
fn native_is_what_the_driver_says_of_this_machine_without_old_gpus() {
    let checkout = Checkout::new();
    Answer::of(&mut checkout.precompile_native("8.9 7.5 9.0 8.9")).succeeded();
    let names = checkout.whole_output();
    assert!(
        names.contains_key("peersum_push_bf16_ws2.sm_89.cubin")
            && names.contains_key("peersum_push_bf16_ws2.sm_90.cubin")
    );
    assert_eq!(names.len(), 8 + 1);
}
