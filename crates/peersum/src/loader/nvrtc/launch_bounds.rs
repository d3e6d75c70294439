//! The largest block that a kernel may be launched with, as its cubin says.

use object::LittleEndian;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader, SectionHeader};

/// The attribute of `.nv.info.{kernel}` that holds `__launch_bounds__`: three 32-bit extents.
const MAX_THREADS: u8 = 0x05;
/// The format of attributes whose value's length is given in bytes. The other formats hold theirs
/// in two bytes.
const SIZED: u8 = 0x04;

/// The launch bound of `kernel` in threads, or `None` if the cubin gives none.
pub(super) fn launch_bound(cubin: &[u8], kernel: &str) -> Option<u32> {
    let header = FileHeader64::<LittleEndian>::parse(cubin).ok()?;
    let sections = header.sections(LittleEndian, cubin).ok()?;
    let name = format!(".nv.info.{kernel}");
    let (_, section) = sections.section_by_name(LittleEndian, name.as_bytes())?;
    let mut rest = section.data(LittleEndian, cubin).ok()?;
    while let [format, attribute, low, high, tail @ ..] = rest {
        rest = tail;
        if *format == SIZED {
            let (value, after) =
                tail.split_at_checked(usize::from(u16::from_le_bytes([*low, *high])))?;
            if let (MAX_THREADS, [x0, x1, x2, x3, y0, y1, y2, y3, z0, z1, z2, z3]) =
                (*attribute, value)
            {
                let x = u32::from_le_bytes([*x0, *x1, *x2, *x3]);
                let y = u32::from_le_bytes([*y0, *y1, *y2, *y3]);
                let z = u32::from_le_bytes([*z0, *z1, *z2, *z3]);
                return x.checked_mul(y)?.checked_mul(z);
            }
            rest = after;
        }
    }
    None
}
