//! Schedules as the CSV that `torch.distributed.pipelining` loads: written and read.
//!
//! A row for each rank, in the order of the ranks; a cell for each action. `3F0` is the forward of micro-batch 0 in
//! stage 3, likewise `I` (backward for input), `W` (for weight) and `B` (full backward); `(0F3;3B1)OVERLAP_F_B` is an
//! overlapped pair. What else a cell may hold depends on the [`Format`] and on the [`TorchVersion`]:
//!
//! | torch        | compute_only          | compute_comms                                                       |
//! | ------------ | --------------------- | ------------------------------------------------------------------- |
//! | 2.6 to 2.8   | F, I, W, B and blanks | F, I, W, B, SEND_F, RECV_F, SEND_B, RECV_B, UNSHARD, RESHARD          |
//! | 2.9          | also pairs            | as before                                                           |
//! | 2.10 to 2.14 | as before             | also pairs and REDUCE_GRAD                                          |
//! | 2.15         | as before             | also WAIT_SEND_F, WAIT_SEND_B, WAIT_REDUCE_GRAD                     |
//! | newer        | as before             | not known                                                           |
//!
//! A receive names the stage that receives.
//!
//! Source: `_Action`, `_load_csv` and `_prepare_schedule_with_comms` of `torch/distributed/pipelining/schedules.py` in
//! torch 2.6 to 2.15. Deviations of the reader, which is for files that a torch of that version runs as they say:
//!
//! 1. A cell is read to its end. Torch stops where its pattern ends, so that `0F0x` is its `0F0`, and the
//!    `0WAIT_SEND_F1` of torch 2.15 is the `0W` of torch 2.14.
//! 2. A pair is one forward, then one full backward; torch takes any actions.
//! 3. A stage that is named at all is computed on one rank, and stages 0 to S-1 are all there.
//! 4. From torch 2.10 on, every stage has its one REDUCE_GRAD after its last weight gradient: torch 2.15 looks only
//!    whether each has its wait, and its older versions do not look.

mod cell;
mod communication;
mod lower;
mod read;
mod write;

pub use read::{read_csv, TorchCsv};
pub use write::write_csv;

use std::fmt;

use crate::error::{Error, Result};

/// What the errors of this module begin with, and the name of the schedules that it reads.
const WHAT: &str = "torch csv";

/// A version of torch, as far as its schedules depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TorchVersion {
    /// 2 in 2.10.1.
    pub major: u32,
    /// 10 in 2.10.1.
    pub minor: u32,
}

impl TorchVersion {
    /// The first version that loads a CSV with I.
    pub const OLDEST: TorchVersion = TorchVersion { major: 2, minor: 6 };
    /// The last version whose `compute_comms` is known.
    pub const NEWEST: TorchVersion = TorchVersion { major: 2, minor: 15 };

    /// The version in a text such as `torch.__version__`: 2.10 of `2.10`, `2.10.0+cpu` or `2.10.0a0+git12`.
    ///
    /// # Errors
    /// A text that does not begin with two numbers and dots between.
    pub fn parse(text: &str) -> Result<TorchVersion> {
        let mut parts = text.split('.');
        match (parts.next().and_then(number), parts.next().and_then(number)) {
            (Some(major), Some(minor)) => Ok(TorchVersion { major, minor }),
            _ => Err(Error::argument(WHAT, "torch_version", quoted(text), "must be like \"2.10.0\"")),
        }
    }
}

impl fmt::Display for TorchVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}", self.major, self.minor))
    }
}

/// Which of torch's two formats a CSV is in: the `format` of its `_load_csv`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Format {
    /// F, I, W, B and pairs: torch puts in the communication when it loads the file.
    #[default]
    ComputeOnly,
    /// The communication is in the file.
    ComputeComms,
}

impl Format {
    /// Both, in order.
    pub const ALL: [Format; 2] = [Format::ComputeOnly, Format::ComputeComms];

    /// The format that torch calls so.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn parse(name: &str) -> Result<Format> {
        let found = Format::ALL.into_iter().find(|format| format.name() == name);
        let range = "must be \"compute_only\" or \"compute_comms\"";
        found.ok_or_else(|| Error::argument(WHAT, "format", quoted(name), range))
    }

    /// Torch's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Format::ComputeOnly => "compute_only",
            Format::ComputeComms => "compute_comms",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A version and a format of it that is known here: what a cell may hold.
#[derive(Clone, Copy)]
struct Dialect {
    version: TorchVersion,
    format: Format,
}

impl Dialect {
    fn new(version: TorchVersion, format: Format) -> Result<Dialect> {
        let refused = |range: String| Err(Error::argument(WHAT, "torch_version", version, range));
        if version < TorchVersion::OLDEST {
            return refused(format!("must be at least {}", TorchVersion::OLDEST));
        }
        if format == Format::ComputeComms && version > TorchVersion::NEWEST {
            return refused(format!(
                "must be at most {} for format \"compute_comms\", whose cells change from version to version; \
                 \"compute_only\" has no such limit",
                TorchVersion::NEWEST
            ));
        }
        Ok(Dialect { version, format })
    }

    fn has_communication(self) -> bool {
        self.format == Format::ComputeComms
    }

    fn has_pairs(self) -> bool {
        self.version >= self.first_with_pairs()
    }

    fn first_with_pairs(self) -> TorchVersion {
        let minor = if self.has_communication() { 10 } else { 9 };
        TorchVersion { major: 2, minor }
    }

    fn has_reductions(self) -> bool {
        self.has_communication() && self.version >= FIRST_WITH_REDUCTIONS
    }

    fn has_waits(self) -> bool {
        self.has_communication() && self.version >= FIRST_WITH_WAITS
    }
}

const FIRST_WITH_REDUCTIONS: TorchVersion = TorchVersion { major: 2, minor: 10 };
const FIRST_WITH_WAITS: TorchVersion = TorchVersion { major: 2, minor: 15 };

/// A number of ASCII digits alone.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// A foreign text as an error shows it: in quotes, what cannot be seen escaped, its beginning if it is long.
fn quoted(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}
