//! PTX is read as far as loading needs.

use peersum_artifact::{Family, PtxError, inspect_ptx};

mod support;
use support::{data, key, seed, target};

#[test]
fn version_target_and_kernels_are_read_from_real_ptx() {
    let ptx = inspect_ptx(&data("push.compute_80.ptx")).unwrap();
    assert_eq!(ptx.version.to_string(), "9.0");
    assert_eq!(ptx.target, target("compute_80"));
    assert_eq!(ptx.entry_points, key(Family::Push).entry_points());
}

#[test]
fn comments_and_longer_words_are_not_directives() {
    let text = "// .version 1.0\n.versions 2.0\n.version 9.1 // current\n\
                .target sm_90, texmode_independent\n.address_size 64\n\
                // .visible .entry no()\n.visible .entry yes(\n)\n{ ret; }\n\
                .entry bare() { ret; }\n";
    let ptx = inspect_ptx(text.as_bytes()).unwrap();
    assert_eq!(ptx.version.to_string(), "9.1");
    assert_eq!(ptx.target, target("compute_90"));
    assert_eq!(ptx.entry_points, ["bare", "yes"]);
}

#[test]
fn what_is_no_ptx_is_refused_by_its_reason() {
    assert_eq!(inspect_ptx(b"\xff"), Err(PtxError::NotText));
    assert_eq!(
        inspect_ptx(b".version 9.0\n.target sm_80\n\0"),
        Err(PtxError::NotText)
    );
    assert_eq!(
        inspect_ptx(b""),
        Err(PtxError::Directive {
            directive: ".version"
        })
    );
    assert_eq!(
        inspect_ptx(b".version nine\n"),
        Err(PtxError::Directive {
            directive: ".version"
        })
    );
    assert_eq!(
        inspect_ptx(b".version 9.0\n.target gfx90a\n"),
        Err(PtxError::Directive {
            directive: ".target"
        })
    );
    assert_eq!(
        inspect_ptx(&data("push.sm_90.cubin")),
        Err(PtxError::NotText)
    );
}

#[test]
fn ptx_cut_off_in_a_body_is_refused() {
    let whole = data("push.compute_80.ptx");
    let body = whole.iter().rposition(|&byte| byte == b'{').unwrap();
    let end = whole.iter().rposition(|&byte| byte == b'}').unwrap();
    for length in body + 1..=end {
        assert_eq!(
            inspect_ptx(&whole[..length]),
            Err(PtxError::Truncated),
            "its first {length} bytes"
        );
    }
    // Cut off between two kernels it is whole text with a kernel less, which the entry points show.
    let text = String::from_utf8(whole).unwrap();
    let last = text.rfind(".visible .entry").unwrap();
    assert_eq!(
        inspect_ptx(&text.as_bytes()[..last])
            .unwrap()
            .entry_points
            .len(),
        2
    );
}

#[test]
fn no_edit_makes_the_reader_panic() {
    let mut random = fastrand::Rng::with_seed(seed());
    for _ in 0..5000 {
        let mut bytes = data("push.compute_80.ptx");
        for _ in 0..random.usize(1..8) {
            let at = random.usize(0..bytes.len());
            bytes[at] = random.u8(..);
        }
        bytes.truncate(random.usize(0..=bytes.len()));
        let _ = inspect_ptx(&bytes);
    }
}
