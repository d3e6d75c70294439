//! Which directories sockets may be in, and what is left there.

#![allow(clippy::unwrap_used)]

mod rendezvous_stage;

use peersum::rendezvous::{DirectoryProblem, Rendezvous, RendezvousError};
use rendezvous_stage::{Rank, Stage, chmod, gather, open_descriptors};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

const AMPLE: Duration = Duration::from_secs(30);

fn problem(directory: &Path) -> DirectoryProblem {
    let errors: Vec<RendezvousError> = (0..2)
        .map(|rank| {
            Rendezvous::unix(directory, "group", rank, 2)
                .join(AMPLE)
                .unwrap_err()
        })
        .collect();
    let problems: Vec<DirectoryProblem> = errors
        .into_iter()
        .map(|error| match error {
            RendezvousError::Directory { path, problem } => {
                assert_eq!(path, directory.components().collect::<std::path::PathBuf>());
                problem
            }
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(problems[0], problems[1], "whatever the rank");
    problems[0].clone()
}

/// Forms a group of two in `directory`, whose ranks are threads that know nothing of it.
fn meet(directory: &Path, group: &str) {
    std::thread::scope(|scope| {
        for rank in 0..2 {
            scope.spawn(move || {
                let mut group = Rendezvous::unix(directory, group, rank, 2)
                    .join(AMPLE)
                    .unwrap();
                gather(&mut group, "work", 1, AMPLE).unwrap();
                group.barrier("end", AMPLE).unwrap();
            });
        }
    });
}

#[test]
fn a_directory_that_others_may_enter_is_refused() {
    let home = tempfile::tempdir().unwrap();
    for mode in [0o755, 0o750, 0o701, 0o777, 0o600, 0o500] {
        chmod(home.path(), mode);
        let found = problem(home.path());
        assert_eq!(found, DirectoryProblem::WrongMode { mode });
        assert!(
            found.to_string().contains(&format!("{mode:04o}"))
                && found.to_string().contains("chmod 700")
        );
    }
    chmod(home.path(), 0o700);
    meet(home.path(), "group");
}

#[test]
fn a_link_is_refused_with_and_without_a_slash() {
    let home = tempfile::tempdir().unwrap();
    let (target, link) = (home.path().join("target"), home.path().join("link"));
    std::fs::create_dir(&target).unwrap();
    chmod(&target, 0o700);
    std::os::unix::fs::symlink(&target, &link).unwrap();
    assert_eq!(problem(&link), DirectoryProblem::Symlink);
    assert_eq!(
        problem(&home.path().join("link/")),
        DirectoryProblem::Symlink
    );
    std::fs::remove_dir(&target).unwrap();
    assert_eq!(problem(&link), DirectoryProblem::Symlink);
}

#[test]
fn a_file_in_the_place_of_the_directory_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert_eq!(problem(&file), DirectoryProblem::NotADirectory);
}

#[test]
fn a_directory_of_another_user_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let ours = rustix::process::geteuid().as_raw();
    // Root can give a directory away; anybody else finds one that is not theirs.
    let (directory, owner) = if ours == 0 {
        std::os::unix::fs::chown(home.path(), Some(65534), None).unwrap();
        (home.path(), 65534)
    } else {
        (Path::new("/proc"), 0)
    };
    assert_eq!(
        problem(directory),
        DirectoryProblem::WrongOwner { owner, ours }
    );
    if ours == 0 {
        std::os::unix::fs::chown(home.path(), Some(0), None).unwrap();
    }
}

#[test]
fn a_directory_that_is_not_there_is_made_for_this_user_alone() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("one/two");
    meet(&directory, "group");
    assert_eq!(
        std::fs::metadata(&directory).unwrap().permissions().mode() & 0o777,
        0o700
    );
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let error = Rendezvous::unix("/proc/peersum", "group", 0, 2)
        .join(AMPLE)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("create the rendezvous directory /proc/peersum: No such file"),
        "{error}"
    );
}

#[test]
fn a_path_longer_than_a_socket_address_serves() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("d".repeat(120)).join("e".repeat(120));
    meet(&directory, &"g".repeat(64));
}

#[test]
fn something_else_under_the_sockets_name_is_replaced_or_named() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("sockets");
    meet(&directory, "other");
    std::fs::write(directory.join("group.sock"), "not a socket").unwrap();
    std::fs::write(directory.join("group.lock"), "not a pid").unwrap();
    meet(&directory, "group");
    std::fs::create_dir(directory.join("group.sock")).unwrap();
    let error = Rendezvous::unix(&directory, "group", 0, 2)
        .join(AMPLE)
        .unwrap_err();
    assert!(
        error.to_string().starts_with("bind ")
            && error
                .to_string()
                .contains("group.sock: Address already in use"),
        "{error}"
    );
}

/// A cleaner of old files leaves the group without its names; a successor takes them.
#[test]
fn a_group_that_ends_leaves_its_successor_s_files() {
    let stage = Stage::enter("a_group_that_ends_leaves_its_successor_s_files");
    for removed in [&["run.lock", "run.sock"][..], &["run.lock"]] {
        let socket = || std::fs::metadata(stage.directory().join("run.sock")).map(|it| it.ino());
        let start = || {
            let steps = "join, pause, gather work 1, leave";
            let before = socket().ok();
            let started = Instant::now();
            let zero = stage.rank(0, 2, AMPLE, steps);
            // A rank that came before this would ask the rank 0 of the earlier group.
            while socket().map_or(true, |now| Some(now) == before) {
                assert!(started.elapsed() < AMPLE, "rank 0 does not listen");
                std::thread::sleep(Duration::from_millis(1));
            }
            let mut ranks = vec![zero, stage.rank(1, 2, AMPLE, steps)];
            for rank in &mut ranks {
                rank.hear("paused");
            }
            ranks
        };
        let end = |mut ranks: Vec<Rank>| {
            ranks.iter_mut().for_each(Rank::go);
            for rank in ranks {
                rank.succeed();
            }
        };
        let old = start();
        for file in removed {
            std::fs::remove_file(stage.directory().join(file)).unwrap();
        }
        let new = start();
        end(old);
        assert_eq!(stage.files(), ["run.lock", "run.sock"], "{removed:?}");
        // They are the successor's own: it answers late ranks, and holds its name.
        let late = stage.rank(1, 2, AMPLE, "join").error();
        assert!(late.contains("AlreadyFormed"), "{late}");
        let second = stage.rank(0, 2, AMPLE, "join").error();
        let pid = new[0].pid();
        assert!(second.contains(&format!("pid: Some({pid})")), "{second}");
        end(new);
        assert!(stage.files().is_empty(), "left behind: {:?}", stage.files());
    }
}

#[test]
fn groups_made_and_dropped_leave_nothing() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("sockets");
    meet(&directory, "group");
    // The other tests of this process open and close descriptors of their own, but fewer than a
    // leak of one descriptor for each group.
    const GROUPS: usize = 200;
    let before = open_descriptors();
    for _ in 0..GROUPS {
        meet(&directory, "group");
    }
    let after = open_descriptors();
    assert!(
        after < before + GROUPS / 2,
        "{before} descriptors before, {after} after"
    );
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
    let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
    assert!(threads < GROUPS / 2, "{threads} threads");
}
