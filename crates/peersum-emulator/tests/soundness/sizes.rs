//! Sizes whose products overflow.

use peersum::{CommunicatorBuilder, Error, Rendezvous};
use peersum_emulator::EmulatorDevice;

use crate::{alone, good_call, on_ranks, settings};

#[test]
fn a_symmetric_buffer_has_the_length_that_was_asked_for_or_is_an_error() {
    const LENGTHS: [usize; 5] = [
        (1 << 62) + 64,
        usize::MAX,
        usize::MAX / 4,
        1 << 61,
        (usize::MAX >> 3) + 1,
    ];
    let outcomes = |mut comm: crate::Comm| {
        LENGTHS
            .map(|len| comm.symmetric_alloc::<f32>(len).err())
            .map(|error| (comm.world_size(), error))
    };
    let mut all = vec![outcomes(alone(0))];
    all.extend(on_ranks(2, outcomes));
    for (world_size, error) in all.into_iter().flatten() {
        let Some(Error::TooLong { elements, .. }) = error else {
            panic!("{world_size} ranks: {error:?}");
        };
        assert!(LENGTHS.contains(&elements));
    }
    on_ranks(2, |mut comm| {
        assert!(comm.symmetric_alloc::<f32>(usize::MAX).is_err());
        good_call(&mut comm);
    });
}

#[test]
fn a_setting_that_no_memory_can_have_is_refused_by_name() {
    let refusal = |change: &(dyn Fn(CommunicatorBuilder) -> CommunicatorBuilder + Sync)| {
        let names: Vec<_> = std::thread::scope(|scope| {
            let ranks: Vec<_> = Rendezvous::threads(2)
                .into_iter()
                .map(|rendezvous| {
                    scope.spawn(move || {
                        let stream = EmulatorDevice::new(rendezvous.rank()).stream().unwrap();
                        let built = change(settings()).rendezvous(rendezvous).build(&stream);
                        match built.err() {
                            Some(Error::InvalidSetting { setting, reason }) => {
                                assert!(reason.contains("bytes"), "{reason}");
                                setting
                            }
                            other => panic!("{other:?}"),
                        }
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        assert_eq!(names[0], names[1]);
        names[0]
    };
    for bytes in [1 << 63, usize::MAX, usize::MAX - 127, 32 << 30] {
        assert_eq!(
            refusal(&|builder| builder.push_half_bytes(bytes)),
            "push_half_bytes"
        );
        assert_eq!(refusal(&|builder| builder.max_bytes(bytes)), "max_bytes");
        assert_eq!(
            refusal(&|builder| builder.max_bytes(bytes).push_half_bytes(bytes)),
            "max_bytes"
        );
    }
}
