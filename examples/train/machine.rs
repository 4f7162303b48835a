//! What the ranks compute on: cores of the CPU, or CUDA devices.

use std::fmt;

use dualpipe::execute::cuda_available;

use crate::options::{DeviceName, Options};

/// What there is to compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Machine {
    Cpu { num_cores: usize },
    Cuda { num_devices: usize, driver_version: u32, uses_graph: bool },
}

impl Machine {
    /// What `options` ask for.
    ///
    /// # Errors
    /// The library's, if there is no CUDA device.
    pub(crate) fn find(options: &Options) -> Result<Machine, String> {
        match options.device {
            DeviceName::Cpu => Ok(Machine::Cpu { num_cores: num_cores() }),
            DeviceName::Cuda => {
                let info = cuda_available().map_err(|e| e.to_string())?;
                let (num_devices, driver_version) = (info.num_devices, info.driver_version);
                Ok(Machine::Cuda { num_devices, driver_version, uses_graph: options.uses_graph })
            }
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Machine::Cpu { num_cores } => write!(f, "cpu: {}", counted(num_cores, "core")),
            Machine::Cuda { num_devices, driver_version, uses_graph } => {
                let devices = counted(num_devices, "device");
                let (major, minor) = (driver_version / 1000, driver_version % 1000 / 10);
                write!(f, "cuda: {devices}, a driver for CUDA {major}.{minor}")?;
                f.write_str(if uses_graph { "; steps as graphs" } else { "" })
            }
        }
    }
}

/// Cores that this process may use.
fn num_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// "1 core", "2 cores".
pub(crate) fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
