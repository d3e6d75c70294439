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

/// The oldest driver branch on Linux that loads a toolkit's cubins, by the toolkit's major version.
const DRIVER_BRANCH_FLOORS: &[(u32, u32)] = &[(11, 450), (12, 525), (13, 580)];

/// The oldest Linux driver branch (the first number of a driver's version, e.g. 580) that loads
/// cubins of a toolkit of the given major version, or `None` for one that this crate does not know.
#[must_use]
pub fn driver_branch_floor(toolkit_major: u32) -> Option<u32> {
    DRIVER_BRANCH_FLOORS
        .iter()
        .find(|(major, _)| *major == toolkit_major)
        .map(|(_, branch)| *branch)
}

/// A PTX ISA version, as in the `.version` directive. Older ones sort first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PtxVersion {
    /// 9 of 9.0.
    pub major: u32,
    /// 0 of 9.0.
    pub minor: u32,
}

/// PTX ISA version, and the first CUDA release whose driver knows it. After PTX 8.5 the minor
/// versions part ways (CUDA 12.6 kept 8.5), and from 9.0 on they agree again.
const PTX_RELEASES: &[(PtxVersion, CudaVersion)] = &[
    release(7, 0, 11, 0),
    release(7, 1, 11, 1),
    release(7, 2, 11, 2),
    release(7, 3, 11, 3),
    release(7, 4, 11, 4),
    release(7, 5, 11, 5),
    release(7, 6, 11, 6),
    release(7, 7, 11, 7),
    release(7, 8, 11, 8),
    release(8, 0, 12, 0),
    release(8, 1, 12, 1),
    release(8, 2, 12, 2),
    release(8, 3, 12, 3),
    release(8, 4, 12, 4),
    release(8, 5, 12, 5),
    release(8, 6, 12, 7),
    release(8, 7, 12, 8),
    release(8, 8, 12, 9),
    release(9, 0, 13, 0),
    release(9, 1, 13, 1),
    release(9, 2, 13, 2),
    release(9, 3, 13, 3),
    release(9, 4, 13, 4),
    release(9, 5, 13, 5),
];

const fn release(
    ptx_major: u32,
    ptx_minor: u32,
    cuda_major: u32,
    cuda_minor: u32,
) -> (PtxVersion, CudaVersion) {
    (
        PtxVersion {
            major: ptx_major,
            minor: ptx_minor,
        },
        CudaVersion {
            major: cuda_major,
            minor: cuda_minor,
        },
    )
}

impl PtxVersion {
    /// The first CUDA release whose driver compiles this version, or `None` where this crate does
    /// not know it.
    #[must_use]
    pub fn cuda(self) -> Option<CudaVersion> {
        PTX_RELEASES
            .iter()
            .find(|(ptx, _)| *ptx == self)
            .map(|(_, cuda)| *cuda)
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
            .ok_or_else(|| ParseNameError {
                what: "PTX version",
                given: given.to_owned(),
                valid: "two numbers with a dot, such as 9.0".to_owned(),
            })
    }
}

name_traits!(PtxVersion);
