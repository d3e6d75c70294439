//! CUDA and PTX versions, and which driver each needs.

use std::fmt;
use std::str::FromStr;

use crate::vocabulary::{ParseNameError, name_traits};

/// A CUDA release: that of a toolkit, or the newest that a driver supports. Older ones sort first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CudaVersion {
    /// 13 of 13.0.
    pub major: u32,
    /// 0 of 13.0.
    pub minor: u32,
}

impl CudaVersion {
    /// From the number that `cuDriverGetVersion` and `CUDA_VERSION` use: 13000 is 13.0.
    ///
    /// A negative number, which no driver reports, reads as 0.0.
    #[must_use]
    pub fn from_driver_api(version: i32) -> CudaVersion {
        let version = u32::try_from(version).unwrap_or(0);
        CudaVersion {
            major: version / 1000,
            minor: version % 1000 / 10,
        }
    }

    /// The release that a compiler's version such as `13.0.88` belongs to, or `None` if the text
    /// does not begin with two numbers.
    #[must_use]
    pub fn of_release(version: &str) -> Option<CudaVersion> {
        let mut numbers = version.split('.').map(str::parse);
        Some(CudaVersion {
            major: numbers.next()?.ok()?,
            minor: numbers.next()?.ok()?,
        })
    }

    /// Whether a driver that supports this release loads cubins of the given toolkit: any minor
    /// version of its own major or of an older one.
    #[must_use]
    pub const fn loads_cubins_of(self, toolkit: CudaVersion) -> bool {
        self.major >= toolkit.major
    }

    /// Whether a driver that supports this release compiles PTX of the given version. False for a
    /// PTX version that this crate does not know: the driver may be older.
    #[must_use]
    pub fn compiles_ptx(self, ptx: PtxVersion) -> bool {
        ptx.cuda().is_some_and(|needed| self >= needed)
    }
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The oldest Linux driver branch (the first number of a driver's version, e.g. 580) that loads
/// cubins of a toolkit of the given major version, or `None` for one that this crate does not know.
#[must_use]
pub fn driver_branch_floor(toolkit_major: u32) -> Option<u32> {
    match toolkit_major {
        11 => Some(450),
        12 => Some(525),
        13 => Some(580),
        _ => None,
    }
}

/// A PTX ISA version, as in the `.version` directive. Older ones sort first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PtxVersion {
    /// 9 of 9.0.
    pub major: u32,
    /// 0 of 9.0.
    pub minor: u32,
}

impl PtxVersion {
    /// The first CUDA release whose driver compiles this version, or `None` where this crate does
    /// not know it.
    #[must_use]
    pub fn cuda(self) -> Option<CudaVersion> {
        let (major, minor) = match (self.major, self.minor) {
            (7, minor @ 0..=8) => (11, minor),
            (8, minor @ 0..=5) => (12, minor),
            // CUDA 12.6 kept PTX 8.5.
            (8, minor @ 6..=8) => (12, minor + 1),
            (9, minor @ 0..=5) => (13, minor),
            _ => return None,
        };
        Some(CudaVersion { major, minor })
    }
}

impl fmt::Display for PtxVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for PtxVersion {
    type Err = ParseNameError;

    fn from_str(given: &str) -> Result<Self, Self::Err> {
        let number = |digits: &str| {
            let canonical = digits.bytes().all(|byte| byte.is_ascii_digit())
                && (digits.len() == 1 || !digits.starts_with('0'));
            if canonical { digits.parse().ok() } else { None }
        };
        given
            .split_once('.')
            .and_then(|(major, minor)| {
                Some(PtxVersion {
                    major: number(major)?,
                    minor: number(minor)?,
                })
            })
            .ok_or_else(|| {
                ParseNameError::new("PTX version", given, "two numbers with a dot, such as 9.0")
            })
    }
}

name_traits!(PtxVersion);
