//! Status for watchdogs.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use peersum::nccl_shape::Comm as NcclComm;
use peersum::{AbortHandle, Error, Failure};

use crate::{LEN, build, ranks_buffer, settings};

/// How long a call waits in vain.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Within this a watchdog must be answered.
const AT_ONCE: Duration = Duration::from_secs(1);

fn is_send_and_sync<T: Send + Sync + Clone>() {}

#[test]
fn a_watchdog_reads_the_status_while_another_thread_waits_in_synchronize() {
    is_send_and_sync::<AbortHandle>();
    let met = &Barrier::new(2);
    std::thread::scope(|scope| {
        for rendezvous in peersum::Rendezvous::threads(2) {
            scope.spawn(move || {
                let comm = build(settings().timeout(TIMEOUT), rendezvous);
                let is_absent = comm.rank() == 1;
                let comm = NcclComm::from(comm);
                if is_absent {
                    met.wait();
                    return;
                }
                let mut buffer = ranks_buffer(0);
                comm.communicator()
                    .all_reduce_in_place(&mut buffer)
                    .unwrap();
                std::thread::scope(|scope| {
                    let began = Instant::now();
                    let waiting = scope.spawn(|| comm.synchronize());
                    // The thread above holds the lock by then.
                    std::thread::sleep(Duration::from_millis(200));
                    let asked = Instant::now();
                    let handle = comm.abort_handle();
                    comm.status().unwrap();
                    comm.communicator().status().unwrap();
                    handle.status().unwrap();
                    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
                    assert!(waiting.join().unwrap().is_err());
                    assert!(began.elapsed() >= TIMEOUT);
                    // The very reason that `synchronize` found.
                    for status in [comm.communicator().status(), handle.status()] {
                        assert!(
                            matches!(
                                status,
                                Err(Error::Failed(Failure::PeerTimeout { peer: 1, .. }))
                            ),
                            "{status:?}"
                        );
                    }
                });
                met.wait();
                assert!(buffer.to_vec().iter().all(|element| element.is_nan()));
                assert_eq!(buffer.len(), LEN);
            });
        }
    });
}

#[test]
fn a_handle_outlives_its_communicator_and_keeps_its_last_status() {
    let handles = crate::on_ranks(2, |comm| comm.abort_handle());
    for (rank, handle) in (0..).zip(handles) {
        handle.status().unwrap();
        handle.abort();
        let status = handle.clone().status();
        let Err(Error::Failed(Failure::AbortedIdle { rank: aborted })) = status else {
            panic!("{status:?}");
        };
        assert_eq!(aborted, rank);
    }
}
