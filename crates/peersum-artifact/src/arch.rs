//! Architectures, compilation targets, and which target serves which device.

use std::fmt;
use std::str::FromStr;

use crate::key::ModuleKey;
use crate::vocabulary::{ParseNameError, name_traits};

/// A compute capability, e.g. `90`. Sorts by number.
///
/// Not one of the variants that NVIDIA's compilers also know, such as `90a`: code for those runs on
/// fewer devices, and the kernels gain nothing by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Arch {
    /// The major version: 9 of `90`.
    pub major: u8,
    /// The minor version, 0 to 9: 0 of `90`.
    pub minor: u8,
}

impl Arch {
    /// The oldest architecture that the kernels can be compiled for, and the oldest device that
    /// can run them: compute capability 8.0.
    pub const OLDEST: Arch = Arch::new(8, 0);

    /// Whether a device of this compute capability can run the kernels.
    #[must_use]
    pub fn runs_kernels(self) -> bool {
        self.number() >= Arch::OLDEST.number()
    }

    /// The architecture of this compute capability.
    #[must_use]
    pub const fn new(major: u8, minor: u8) -> Arch {
        Arch { major, minor }
    }

    /// The architecture as one number: 90 of 9.0.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.major as u16 * 10 + self.minor as u16
    }

    /// Whether a cubin made for this architecture runs on `device`: one of the same major version
    /// and an equal or higher minor one.
    ///
    /// This is the rule among discrete GPUs. NVIDIA does not promise it between discrete GPUs and
    /// Tegra.
    #[must_use]
    pub fn cubin_serves(self, device: Arch) -> bool {
        self.major == device.major && self.minor <= device.minor
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.number().to_string())
    }
}

impl FromStr for Arch {
    type Err = ParseNameError;

    fn from_str(given: &str) -> Result<Self, Self::Err> {
        let valid = "a compute capability without its dot, such as 80, 90 or 120";
        parse_arch(given).ok_or_else(|| ParseNameError::new("architecture", given, valid))
    }
}

fn parse_arch(given: &str) -> Option<Arch> {
    let all_digits = given.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits || !(2..=3).contains(&given.len()) || given.starts_with('0') {
        return None;
    }
    let number: u16 = given.parse().ok()?;
    Some(Arch {
        major: u8::try_from(number / 10).ok()?,
        minor: u8::try_from(number % 10).ok()?,
    })
}

name_traits!(Arch);

/// What one compilation produces: a cubin for one architecture, or PTX that a driver compiles
/// later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// `sm_90`: machine code.
    Cubin(Arch),
    /// `compute_80`: PTX.
    Ptx(Arch),
}

/// What a release holds: cubins for every data-centre and workstation generation since Ampere, and
/// PTX for the rest.
pub const RELEASE_SET: [Target; 5] = [
    Target::Ptx(Arch::new(8, 0)),
    Target::Cubin(Arch::new(8, 0)),
    Target::Cubin(Arch::new(9, 0)),
    Target::Cubin(Arch::new(10, 0)),
    Target::Cubin(Arch::new(12, 0)),
];

impl Target {
    /// The architecture it is compiled for.
    #[must_use]
    pub const fn arch(self) -> Arch {
        match self {
            Target::Cubin(arch) | Target::Ptx(arch) => arch,
        }
    }

    /// `cubin` or `ptx`: the kind in a manifest, and the file extension.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Target::Cubin(_) => "cubin",
            Target::Ptx(_) => "ptx",
        }
    }

    /// The file name of a module, e.g. `peersum_push_bf16_ws8.sm_90.cubin`.
    #[must_use]
    pub fn file_name(&self, key: &ModuleKey) -> String {
        [&key.name(), ".", &self.text(), ".", self.kind()].concat()
    }

    /// Whether a file made for this target can run on `device`, given a driver that is new enough.
    #[must_use]
    pub fn serves(self, device: Arch) -> bool {
        match self {
            Target::Cubin(arch) => arch.cubin_serves(device),
            // PTX serves every newer device as well.
            Target::Ptx(arch) => arch <= device,
        }
    }

    fn text(&self) -> String {
        let (prefix, arch) = match self {
            Target::Cubin(arch) => ("sm_", arch),
            Target::Ptx(arch) => ("compute_", arch),
        };
        format!("{prefix}{arch}")
    }
}

impl Ord for Target {
    /// By number, then cubins before PTX: the order of a manifest.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let order = |target: &Target| (target.arch(), matches!(target, Target::Ptx(_)));
        order(self).cmp(&order(other))
    }
}

impl PartialOrd for Target {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text())
    }
}

impl FromStr for Target {
    type Err = ParseNameError;

    /// Reads `sm_90` or `compute_80`. Refuses architectures older than [`Arch::OLDEST`].
    fn from_str(given: &str) -> Result<Self, Self::Err> {
        let target = match given.split_once('_') {
            Some(("sm", arch)) => parse_arch(arch).map(Target::Cubin),
            Some(("compute", arch)) => parse_arch(arch).map(Target::Ptx),
            _ => None,
        };
        let supported = target.filter(|target: &Target| target.arch().runs_kernels());
        let valid = "sm_80, sm_90, sm_100, sm_120, compute_80 and others of the form sm_N (a \
                     cubin) or compute_N (PTX); the kernels need sm_80 and newer";
        supported.ok_or_else(|| ParseNameError::new("architecture", given, valid))
    }
}

name_traits!(Target);
