//! Environments as launchers set them, each written as a shell would: `NAME=value NAME=value`.

use super::*;

fn launched(environment: &str) -> Result<Rendezvous, RendezvousError> {
    let variables: Vec<(&str, &str)> = environment
        .split_whitespace()
        .map(|variable| variable.split_once('=').unwrap())
        .collect();
    read(&|name| {
        let set = variables.iter().find(|(variable, _)| *variable == name);
        set.map(|(_, value)| OsString::from(value))
    })
}

fn error(environment: &str) -> String {
    launched(environment).unwrap_err().to_string()
}

#[test]
fn each_launcher_is_understood() {
    for environment in [
        "RANK=3 WORLD_SIZE=8 LOCAL_RANK=2 LOCAL_WORLD_SIZE=8",
        "OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=8 OMPI_COMM_WORLD_LOCAL_RANK=2",
        "SLURM_PROCID=3 SLURM_NTASKS=8 SLURM_LOCALID=2",
    ] {
        let it = launched(environment).unwrap();
        assert_eq!((it.rank(), it.world_size(), it.local_rank()), (3, 8, 2));
        assert_eq!(it.group, "default");
    }
    let shell_loop = launched("RANK=1 WORLD_SIZE=2").unwrap();
    assert_eq!(shell_loop.local_rank(), 1);
}

#[test]
fn a_half_set_launcher_is_refused_by_the_names_of_its_variables() {
    assert_eq!(
        error("RANK=1"),
        "RANK is set but WORLD_SIZE is not: set all of them or none"
    );
    assert_eq!(
        error("LOCAL_RANK=1"),
        "LOCAL_RANK is set but RANK, WORLD_SIZE are not: set all of them or none"
    );
    assert!(error("OMPI_COMM_WORLD_SIZE=4").contains("OMPI_COMM_WORLD_RANK is not"));
    assert!(error("SLURM_NTASKS=4").contains("SLURM_PROCID is not"));
    // Half of one beside another that is whole is no less a mistake.
    let half = error("RANK=0 OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2");
    assert!(half.contains("WORLD_SIZE"), "{half}");
    let none = error("");
    assert!(none.contains("OMPI_COMM_WORLD_RANK") && none.contains("RANK and WORLD_SIZE"));
}

#[test]
fn a_shell_loop_inside_a_slurm_allocation_is_a_rank_of_the_loop() {
    let it = launched("RANK=1 WORLD_SIZE=2 SLURM_NTASKS=16").unwrap();
    assert_eq!((it.rank(), it.world_size()), (1, 2));
}

#[test]
fn launchers_that_disagree_are_named_with_their_values() {
    let text = error("RANK=1 WORLD_SIZE=4 OMPI_COMM_WORLD_RANK=2 OMPI_COMM_WORLD_SIZE=4");
    assert!(
        text.contains(
            "RANK=1, WORLD_SIZE=4 contradicts OMPI_COMM_WORLD_RANK=2, OMPI_COMM_WORLD_SIZE=4"
        ),
        "{text}"
    );
    assert!(launched("RANK=1 WORLD_SIZE=4 SLURM_PROCID=1 SLURM_NTASKS=4").is_ok());
    let text = error("RANK=1 WORLD_SIZE=4 SLURM_PROCID=0 SLURM_NTASKS=1");
    assert!(text.contains("SLURM_PROCID=0"), "{text}");
}

#[test]
fn under_torchrun_its_own_count_holds_whichever_launcher_started_it() {
    let it = launched(
        "RANK=1 WORLD_SIZE=4 TORCHELASTIC_RUN_ID=none TORCHELASTIC_RESTART_COUNT=0 \
         MASTER_PORT=29500 SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_JOB_ID=77",
    )
    .unwrap();
    assert_eq!((it.rank(), it.world_size()), (1, 4));
    assert_eq!(it.run, "none.0.29500");
    assert_eq!(it.group, "run-none.0.29500");
}

#[test]
fn ranks_on_several_slurm_nodes_are_refused_at_once() {
    let with = |variables: &str| {
        launched(&format!(
            "SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_LOCALID=0 {variables}"
        ))
    };
    for variable in [
        "SLURM_STEP_NUM_NODES",
        "SLURM_NNODES",
        "SLURM_JOB_NUM_NODES",
    ] {
        let error = with(&format!("{variable}=2")).unwrap_err();
        let RendezvousError::SpansHosts {
            value, expected, ..
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!((value, expected), (2, 1));
        let text = error.to_string();
        assert!(
            text.contains(&format!("{variable} is 2, and would be 1")),
            "{text}"
        );
        assert!(with(&format!("{variable}=1")).is_ok());
    }
    // One node of a job that has two.
    assert!(with("SLURM_STEP_NUM_NODES=1 SLURM_JOB_NUM_NODES=2").is_ok());
    assert!(with("SLURM_NNODES=1 SLURM_JOB_NUM_NODES=2").is_ok());
    // A program of the user's that translates Slurm's variables.
    assert!(with("RANK=1 WORLD_SIZE=2 SLURM_NNODES=2").is_err());
    // A shell loop on one of two nodes.
    assert!(launched("RANK=1 WORLD_SIZE=2 SLURM_NNODES=2").is_ok());
}

#[test]
fn invalid_values_are_refused() {
    assert_eq!(
        error("RANK=one WORLD_SIZE=2"),
        "RANK is \"one\", expected a number from 0 on"
    );
    assert!(error("RANK=-1 WORLD_SIZE=2").contains("RANK is \"-1\""));
    assert!(error("RANK=2 WORLD_SIZE=2").contains("below the world size"));
    for (variable, complaint) in [
        ("PEERSUM_RENDEZVOUS_DIR=relative", "an absolute path"),
        ("PEERSUM_GROUP=../x", "group name \"../x\""),
        ("PEERSUM_GROUP=", "group name \"\""),
        (
            "LOCAL_WORLD_SIZE=1",
            "LOCAL_WORLD_SIZE is 1, and would be 2 if all 2 ranks ran on this machine",
        ),
    ] {
        let text = error(&format!("RANK=0 WORLD_SIZE=2 {variable}"));
        assert!(text.contains(complaint), "{text}");
    }
}

#[test]
fn a_name_made_from_a_run_is_always_a_group_name() {
    for run in ["prterun-host-123@1", "é", &"x".repeat(300), "...", "a/b"] {
        assert!(is_group_name(&group_of_run(run)), "{run}");
    }
}

#[test]
fn the_directory_is_the_users_own() {
    let with = |variable: &str| {
        let environment = format!("RANK=0 WORLD_SIZE=2 {variable}");
        launched(&environment)
            .unwrap()
            .directory()
            .unwrap()
            .to_owned()
    };
    let uid = rustix::process::geteuid().as_raw();
    let default = Path::new("/tmp").join(format!("peersum-{uid}"));
    assert_eq!(with(""), default);
    assert_eq!(with("XDG_RUNTIME_DIR=/nowhere/at/all"), default);
    let own = tempfile::tempdir().unwrap();
    let session = format!("XDG_RUNTIME_DIR={}", own.path().display());
    assert_eq!(with(&session), own.path().join("peersum"));
    assert_eq!(with("PEERSUM_RENDEZVOUS_DIR=/run/x"), Path::new("/run/x"));
}
