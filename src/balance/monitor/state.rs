//! A monitor as bytes: the same for monitors that are equal, refused unless they are exactly what was written.
//!
//! | bytes                          | what                                                      |
//! | ------------------------------ | --------------------------------------------------------- |
//! | 8                              | `"DPLOADS"` and the version, 1                            |
//! | 4 x 4                          | num_layers, num_experts, window, num_ranks                |
//! | 8                              | half_life, as float64                                     |
//! | 4                              | the number of steps; then for each, in order:             |
//! | - 8                            | - its number                                              |
//! | - 4 per layer                  | - reports                                                 |
//! | - 1 to 7 per layer and expert  | - counts, 7 bits per byte, low ones first (LEB128)        |
//! | 4                              | the counters of a layer that were read, 0 if none were    |
//! | - 4 per layer and counter      | - what they showed                                        |
//! | 8                              | FNV-1a of all bytes before                                |
//!
//! Numbers are little-endian. Counts below 128, which many are, take a byte. The hash finds damage, not malice: bytes
//! that were made to fit still come to a valid monitor or an error.

use std::collections::BTreeMap;

use super::{LoadMonitor, MonitorOptions, SlotCounters, Step, STEP_MAX};
use crate::error::{Error, ErrorKind, Result};

const MAGIC: &[u8; 7] = b"DPLOADS";
const VERSION: u8 = 1;
const HASH_BYTES: usize = 8;

impl LoadMonitor {
    /// Its whole state. Monitors are equal exactly if these are. `O(what it holds)`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let MonitorOptions { num_layers, num_experts, window, num_ranks, half_life } = self.options;
        let mut bytes = MAGIC.to_vec();
        bytes.push(VERSION);
        for size in [num_layers, num_experts, window, num_ranks] {
            bytes.extend((size as u32).to_le_bytes());
        }
        bytes.extend(half_life.to_le_bytes());
        bytes.extend((self.steps.len() as u32).to_le_bytes());
        for (number, step) in &self.steps {
            bytes.extend(number.to_le_bytes());
            bytes.extend(step.reports.iter().flat_map(|reports| reports.to_le_bytes()));
            for &count in &step.counts {
                let mut rest = count;
                while rest >= 128 {
                    bytes.push(rest as u8 | 128);
                    rest >>= 7;
                }
                bytes.push(rest as u8);
            }
        }
        bytes.extend(((self.counters().len() / num_layers) as u32).to_le_bytes());
        bytes.extend(self.counters().iter().flat_map(|value| value.to_le_bytes()));
        bytes.extend(fnv1a(&bytes).to_le_bytes());
        bytes
    }

    /// The monitor that [`to_bytes`](LoadMonitor::to_bytes) wrote. Takes little more memory than the monitor, whatever
    /// the bytes say.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: bytes of something else, of another version, damaged, or cut off.
    pub fn from_bytes(bytes: &[u8]) -> Result<LoadMonitor> {
        if !bytes.starts_with(MAGIC) {
            return Err(unfit("does not begin with DPLOADS: not a monitor's state"));
        }
        if let Some(&version) = bytes.get(MAGIC.len()).filter(|&&version| version != VERSION) {
            return Err(unfit(format!("has version {version}, must be {VERSION}")));
        }
        let body_len = bytes.len().saturating_sub(HASH_BYTES).max(MAGIC.len());
        let (body, hash) = bytes.split_at(body_len);
        if fnv1a(body).to_le_bytes() != hash {
            return Err(unfit(format!(
                "is damaged or cut off: the hash of its {} bytes differs",
                bytes.len()
            )));
        }
        let mut reader = Reader { bytes: body, at: MAGIC.len() + 1 };
        let options = MonitorOptions {
            num_layers: reader.u32()? as usize,
            num_experts: reader.u32()? as usize,
            window: reader.u32()? as usize,
            num_ranks: reader.u32()? as usize,
            half_life: f64::from_le_bytes(reader.array()?),
        };
        options.check()?;
        let num_steps = reader.u32()?;
        let mut steps = BTreeMap::new();
        let mut last = None;
        for _ in 0..num_steps {
            let number = u64::from_le_bytes(reader.array()?);
            if number > STEP_MAX || last.is_some_and(|last| number <= last) {
                return Err(unfit(format!("has step {number} after step {}", last.unwrap_or(0))));
            }
            last = Some(number);
            steps.insert(number, reader.step(number, &options)?);
        }
        let counters = reader.counters(&options)?;
        if reader.at != body.len() {
            return Err(unfit(format!("has {} bytes more than it needs", body.len() - reader.at)));
        }
        if let (Some((&oldest, _)), Some(newest)) = (steps.first_key_value(), last) {
            if newest - oldest >= options.window as u64 {
                let window = options.window;
                return Err(unfit(format!(
                    "has steps {oldest} and {newest}, must be within a window of {window}"
                )));
            }
        }
        Ok(LoadMonitor { options, steps, counters })
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<N>());
        let bytes = *bytes.ok_or_else(|| unfit(format!("ends within a number at byte {}", self.at)))?;
        self.at += N;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn step(&mut self, number: u64, options: &MonitorOptions) -> Result<Step> {
        // Before anything is allocated for it.
        let needed = options.num_layers * (4 + options.num_experts);
        if self.bytes.len() - self.at < needed {
            return Err(unfit(format!("ends within step {number}")));
        }
        let mut step = Step::new(options);
        for (layer, reports) in step.reports.iter_mut().enumerate() {
            *reports = self.u32()?;
            if *reports as usize > options.num_ranks {
                let ranks = options.num_ranks;
                return Err(unfit(format!(
                    "has {reports} reports of step {number}, layer {layer}, of {ranks} ranks"
                )));
            }
        }
        if step.reports.iter().all(|&reports| reports == 0) {
            return Err(unfit(format!("has step {number} without a report")));
        }
        for (index, count) in step.counts.iter_mut().enumerate() {
            *count = self.count()?;
            let (layer, expert) = (index / options.num_experts, index % options.num_experts);
            if *count > u64::from(step.reports[layer]) * u64::from(u32::MAX) {
                let place = format!("step {number}, layer {layer}, expert {expert}");
                return Err(unfit(format!("has {count} tokens of {place}, too many for its reports")));
            }
        }
        Ok(step)
    }

    fn counters(&mut self, options: &MonitorOptions) -> Result<Option<SlotCounters>> {
        let num_counters = options.num_layers * self.u32()? as usize;
        if num_counters == 0 {
            return Ok(None);
        }
        if (self.bytes.len() - self.at) / 4 < num_counters {
            return Err(unfit("ends within its counters"));
        }
        let mut counters = SlotCounters::new(options.num_layers, num_counters)?;
        let values = (0..num_counters).map(|_| Ok(i32::from_le_bytes(self.array()?)));
        counters.set(&values.collect::<Result<Vec<i32>>>()?);
        Ok(Some(counters))
    }

    /// A count, which has no zero bytes behind it: there is one way to write it.
    fn count(&mut self) -> Result<u64> {
        let mut count = 0;
        for shift in (0..63).step_by(7) {
            let [byte] = self.array()?;
            count |= u64::from(byte & 127) << shift;
            if byte < 128 && (byte > 0 || shift == 0) {
                return Ok(count);
            }
            if byte < 128 {
                break;
            }
        }
        Err(unfit(format!("has no count before byte {}", self.at)))
    }
}

fn unfit(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("monitor: the state {what}"))
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
