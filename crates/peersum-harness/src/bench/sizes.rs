//! Sizes and shapes as they are typed and printed.

/// `4096`, `64K`, `16M`: K and M are powers of 1024.
pub(crate) fn parse_bytes(text: &str) -> Result<usize, String> {
    let (digits, factor) = match text.strip_suffix(['K', 'k']) {
        Some(digits) => (digits, 1 << 10),
        None => text
            .strip_suffix(['M', 'm'])
            .map_or((text, 1), |digits| (digits, 1 << 20)),
    };
    digits
        .parse::<usize>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .filter(|bytes| (4..=1 << 34).contains(bytes) && bytes % 4 == 0)
        .ok_or_else(|| {
            format!(
                "`{text}` is not a size like 4096, 64K or 16M: 4 bytes to 16384M, a multiple of 4"
            )
        })
}

/// The shortest of the forms that [`parse_bytes`] reads.
pub(crate) fn bytes_text(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 && bytes % (1 << 20) == 0 => format!("{}M", bytes >> 20),
        bytes if bytes >= 1 << 10 && bytes % (1 << 10) == 0 => format!("{}K", bytes >> 10),
        bytes => bytes.to_string(),
    }
}

/// `16x256`: blocks and threads.
pub(crate) fn parse_shape(text: &str) -> Result<(u32, u32), String> {
    text.split_once('x')
        .and_then(|(blocks, threads)| Some((blocks.parse().ok()?, threads.parse().ok()?)))
        .filter(|(blocks, threads)| (1..=256).contains(blocks) && (8..=512).contains(threads))
        .ok_or_else(|| {
            format!("`{text}` is not a shape like 16x256: 1 to 256 blocks of 8 to 512 threads")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_printed() {
        for bytes in [4, 4096, 5000, 65536, 1 << 20, 3 << 20, 64 << 20] {
            assert_eq!(parse_bytes(&bytes_text(bytes as u64)), Ok(bytes));
        }
        for bad in [
            "",
            "K",
            "-4K",
            "4G",
            "1.5M",
            "0",
            "6",
            "99999999999999999999M",
        ] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shapes_outside_what_the_kernels_allow_are_refused() {
        assert_eq!(parse_shape("16x256"), Ok((16, 256)));
        for bad in ["16", "0x64", "16x0", "257x64", "1x513", "x", "16x256x2"] {
            assert!(parse_shape(bad).is_err(), "{bad}");
        }
    }
}
