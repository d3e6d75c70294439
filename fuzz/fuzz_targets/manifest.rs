#![no_main]

mod limit;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    peersum_fuzz::manifest(input);
});
