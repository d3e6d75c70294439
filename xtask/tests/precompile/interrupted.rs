use crate::checkout::{Answer, Checkout, Snapshot, snapshot};
use crate::seeded::seeded;
use std::fs;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The kernels' two states, between which every run has work to do.
fn toggle(checkout: &Checkout, second: bool) {
    let (from, to) = if second {
        ("2.0f", "3.0f")
    } else {
        ("3.0f", "2.0f")
    };
    checkout.edit("scale.cuh", from, to);
}

#[test]
fn killed_at_any_moment_a_run_leaves_the_old_state_or_the_new_one() {
    let mut random = seeded();

    let checkout = Checkout::new();
    let begun = Instant::now();
    Answer::of(&mut checkout.precompile(&[])).succeeded();
    let whole_run = begun.elapsed();
    let first = checkout.whole_output();
    toggle(&checkout, true);
    Answer::of(&mut checkout.precompile(&[])).succeeded();
    let second = checkout.whole_output();
    assert_ne!(first, second);

    // The output is at `second`; every run must reach the state that is not there.
    let mut killed = 0;
    let mut published = 0;
    let mut wants_second = true;
    for turn in 0..20 {
        let is_second = checkout.whole_output() == second;
        if is_second == wants_second {
            wants_second = !wants_second;
            toggle(&checkout, wants_second);
        }
        let mut run = checkout
            .precompile(&["--quiet"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        // The first at once, so that one at least is killed however fast a run is.
        if turn > 0 {
            sleep(whole_run.mul_f64(random.f64() * 1.1));
        }
        run.kill().unwrap();
        killed += usize::from(!run.wait().unwrap().success());
        let state = checkout.whole_output();
        assert!(
            state == first || state == second,
            "neither the old state nor the new one"
        );
        published += usize::from((state == second) == wants_second);
    }
    assert!(killed > 0);
    println!("{killed} of 20 runs were killed before they ended, {published} had published");

    // The next run succeeds and leaves nothing beside the output but the lock.
    Answer::of(&mut checkout.precompile(&[])).succeeded();
    let state = checkout.whole_output();
    assert_eq!(state == second, wants_second);
    assert_eq!(leftovers(&checkout), Vec::<String>::new());
}

fn leftovers(checkout: &Checkout) -> Vec<String> {
    let names = fs::read_dir(checkout.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains("staging")).collect()
}

#[test]
fn two_runs_at_once_compile_once_and_both_succeed() {
    let checkout = Checkout::new();
    let runs: Vec<_> = (0..2)
        .map(|_| {
            let mut command = checkout.precompile(&[]);
            command
                .stdin(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let said: Vec<String> = runs
        .into_iter()
        .map(|run| {
            let output = run.wait_with_output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stderr).unwrap()
        })
        .collect();
    assert_eq!(checkout.compiled(), 4);
    assert_eq!(
        said.iter()
            .filter(|said| said.contains("4 built, 0 reused"))
            .count(),
        1,
        "{said:?}"
    );
    assert_eq!(
        said.iter()
            .filter(|said| said.contains("0 built, 4 reused"))
            .count(),
        1,
        "{said:?}"
    );
    checkout.whole_output();
    assert_eq!(leftovers(&checkout), Vec::<String>::new());
}

#[test]
fn a_run_that_waits_says_for_what() {
    let checkout = Checkout::new();
    Answer::of(&mut checkout.precompile(&[])).succeeded();
    let lock = fs::File::open(checkout.path().join(".cubins.lock")).unwrap();
    lock.lock().unwrap();
    let run = checkout
        .precompile(&[])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It cannot end before the lock is released; half a second is enough for it to reach the lock.
    sleep(Duration::from_millis(500));
    drop(lock);
    let output = run.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("waiting for another precompile") && said.contains(".cubins.lock"),
        "{said}"
    );
}

#[test]
fn a_check_beside_runs_that_replace_the_output_always_finds_it_whole() {
    let checkout = Checkout::new();
    Answer::of(&mut checkout.precompile(&[])).succeeded();
    let first: Snapshot = snapshot(&checkout.out());
    let (out, stop) = (checkout.out(), std::sync::atomic::AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // A subset and everything in turn: each run replaces the directory without compiling.
            for round in 0..10 {
                let arguments: &[&str] = if round % 2 == 0 {
                    &["--family", "push"]
                } else {
                    &[]
                };
                Answer::of(&mut checkout.precompile(arguments)).succeeded();
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            Answer::of(&mut checkout.check_of("push")).succeeded();
        }
    });
    assert_eq!(snapshot(&out), first);
}
