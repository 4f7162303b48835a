//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

use dualpipe::schedule::{self, Schedule, Work};
use lexopt::prelude::*;

/// What `--help` prints.
pub(crate) const HELP: &str = "\
Trains a small byte-level mixture-of-experts language model, cut into pipeline stages.

Usage: cargo run --release --example train -- [OPTIONS]

  --text FILE         the text to learn; default: this project's own sources
  --schedule NAME     dualpipe, dualpipe_v, 1f1b, or sequential (no pipeline); default: dualpipe
  --ranks N           pipeline ranks, 1 to 64; default: 4
                      the model has a stage for each, in dualpipe_v two
  --microbatches N    micro-batches of a step, both directions together, 1 to 1024; default: 12
  --steps N           optimizer steps, 1 to 100000; default: 60
  --device NAME       what the ranks compute on: cpu, or cuda: the NVIDIA devices there are, rank r on
                      device r % their number; default: cpu
  --graph             with cuda: captures the second step as a CUDA graph, which the later steps launch
  --seed N            draws the first weights and the text of each step; default: 1
  --help              prints this

The same options print the same losses on the same machine. With --device cuda nothing but a stand-in for the driver
has run this so far: no figure of a GPU is claimed.
";

/// How the micro-batches of a step are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScheduleName {
    /// [`dualpipe::schedule::dualpipe`].
    DualPipe,
    /// [`dualpipe::schedule::dualpipe_v`].
    DualPipeV,
    /// [`dualpipe::schedule::one_f_one_b`].
    OneFOneB,
    /// One after the other, by one rank that holds all stages.
    Sequential,
}

impl FromStr for ScheduleName {
    type Err = String;

    fn from_str(name: &str) -> Result<ScheduleName, String> {
        match name {
            "dualpipe" => Ok(ScheduleName::DualPipe),
            "dualpipe_v" => Ok(ScheduleName::DualPipeV),
            "1f1b" => Ok(ScheduleName::OneFOneB),
            "sequential" => Ok(ScheduleName::Sequential),
            _ => Err("must be dualpipe, dualpipe_v, 1f1b or sequential".into()),
        }
    }
}

/// What the ranks compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceName {
    /// Threads of the host.
    Cpu,
    /// CUDA devices.
    Cuda,
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(name: &str) -> Result<DeviceName, String> {
        match name {
            "cpu" => Ok(DeviceName::Cpu),
            "cuda" => Ok(DeviceName::Cuda),
            _ => Err("must be cpu or cuda".into()),
        }
    }
}

/// The options of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) text: Option<PathBuf>,
    pub(crate) schedule: ScheduleName,
    pub(crate) device: DeviceName,
    /// Whether steps are launches of a graph.
    pub(crate) uses_graph: bool,
    pub(crate) num_ranks: usize,
    pub(crate) num_microbatches: usize,
    pub(crate) num_steps: usize,
    pub(crate) seed: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            text: None,
            schedule: ScheduleName::DualPipe,
            device: DeviceName::Cpu,
            uses_graph: false,
            num_ranks: 4,
            num_microbatches: 12,
            num_steps: 60,
            seed: 1,
        }
    }
}

impl Options {
    /// The options that `parser` reads; `None` if help is asked for.
    pub(crate) fn parse(mut parser: lexopt::Parser) -> Result<Option<Options>, lexopt::Error> {
        let mut options = Options::default();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("text") => options.text = Some(parser.value()?.into()),
                Long("schedule") => options.schedule = parser.value()?.parse()?,
                Long("device") => options.device = parser.value()?.parse()?,
                Long("graph") => options.uses_graph = true,
                Long("ranks") => options.num_ranks = count(&mut parser, "ranks", 64)?,
                Long("microbatches") => {
                    options.num_microbatches = count(&mut parser, "microbatches", 1024)?;
                }
                Long("steps") => options.num_steps = count(&mut parser, "steps", 100_000)?,
                Long("seed") => options.seed = parser.value()?.parse()?,
                Short('h') | Long("help") => return Ok(None),
                _ => return Err(argument.unexpected()),
            }
        }
        let is_sequential = options.schedule == ScheduleName::Sequential;
        match options.device {
            DeviceName::Cpu if options.uses_graph => Err("--graph needs --device cuda".into()),
            DeviceName::Cuda if is_sequential => {
                Err("--schedule sequential runs with --device cpu only".into())
            }
            _ => Ok(Some(options)),
        }
    }

    /// The schedule asked for, if the library has it for these sizes; `None` for the sequential run.
    pub(crate) fn schedule(&self) -> dualpipe::error::Result<Option<Schedule>> {
        let make = match self.schedule {
            ScheduleName::DualPipe => schedule::dualpipe,
            ScheduleName::DualPipeV => schedule::dualpipe_v,
            ScheduleName::OneFOneB => schedule::one_f_one_b,
            ScheduleName::Sequential => return Ok(None),
        };
        make(self.num_ranks, self.num_microbatches, Work::Training).map(Some)
    }
}

/// The value of option `--name`, 1 to `limit`.
fn count(parser: &mut lexopt::Parser, name: &str, limit: usize) -> Result<usize, lexopt::Error> {
    let value = parser.value()?.parse()?;
    if (1..=limit).contains(&value) {
        return Ok(value);
    }
    Err(format!("--{name} is {value}, must be 1 to {limit}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Options>, String> {
        let words = line.split_whitespace();
        Options::parse(lexopt::Parser::from_args(words)).map_err(|e| e.to_string())
    }

    #[test]
    fn options_are_read() {
        let read = parse("--text a.txt --ranks 64 --microbatches 1 --steps 9 --seed 5");
        let expected = Options {
            text: Some("a.txt".into()),
            num_ranks: 64,
            num_microbatches: 1,
            num_steps: 9,
            seed: 5,
            ..Options::default()
        };
        assert_eq!(read, Ok(Some(expected)));
        let read = parse("--graph --device cuda");
        let expected = Options { device: DeviceName::Cuda, uses_graph: true, ..Options::default() };
        assert_eq!(read, Ok(Some(expected)));
        assert_eq!(parse(""), Ok(Some(Options::default())));
        assert_eq!(parse("--ranks 2 --help"), Ok(None));
    }

    #[test]
    fn the_library_says_what_a_schedule_cannot_fill() {
        let error = |line| {
            let options = parse(line).unwrap().unwrap();
            options.schedule().err().map(|e| e.to_string())
        };
        assert_eq!(error(""), None);
        assert_eq!(error("--schedule sequential --ranks 3"), None);
        assert_eq!(
            error("--ranks 3").as_deref(),
            Some("dualpipe: num_ranks is 3, must be even and at least 2")
        );
        assert_eq!(
            error("--schedule dualpipe_v --microbatches 6").as_deref(),
            Some("dualpipe_v: num_microbatches is 6, must be at least 7 for 4 ranks")
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (line, error) in [
            ("--ranks 0", "--ranks is 0, must be 1 to 64"),
            ("--ranks 65", "--ranks is 65, must be 1 to 64"),
            ("--steps", "missing argument for option '--steps'"),
            ("--seed x", "cannot parse argument \"x\": invalid digit found in string"),
            (
                "--schedule gpipe",
                "cannot parse argument \"gpipe\": must be dualpipe, dualpipe_v, 1f1b or sequential",
            ),
            ("--device gpu", "cannot parse argument \"gpu\": must be cpu or cuda"),
            ("--graph", "--graph needs --device cuda"),
            ("--device cuda --schedule sequential", "--schedule sequential runs with --device cpu only"),
            ("--rank 4", "invalid option '--rank'"),
            ("file", "unexpected argument \"file\""),
        ] {
            assert_eq!(parse(line), Err(error.into()), "{line}");
        }
    }
}
