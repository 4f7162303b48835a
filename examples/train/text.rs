//! The text to learn, and the micro-batches drawn from it.

use std::fs;
use std::path::{Path, PathBuf};

use dualpipe::ids::Direction;
use dualpipe::op::Pass;

use crate::model::Config;

/// Bytes, and how to name them.
pub(crate) struct Text {
    bytes: Vec<u8>,
    /// Where they come from.
    pub(crate) name: String,
}

impl Text {
    /// The file at `path`.
    pub(crate) fn from_file(path: &Path) -> Result<Text, String> {
        let bytes = fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        let name = path.display().to_string();
        Ok(Text { bytes, name })
    }

    /// All `.rs` files of this project's src folder, in order of their paths.
    pub(crate) fn own_sources() -> Result<Text, String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut paths = Vec::new();
        rust_files(&root, &mut paths)?;
        paths.sort();
        let mut bytes = Vec::new();
        for path in &paths {
            bytes.extend(Text::from_file(path)?.bytes);
        }
        let name = format!("the {} files of this project's src", paths.len());
        Ok(Text { bytes, name })
    }

    /// How many bytes there are.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The micro-batches of step `step`: sequences that start at random places.
    ///
    /// Every rank draws the same ones from the same seed, so nobody has to send them.
    pub(crate) fn batch(
        &self,
        config: &Config,
        seed: u64,
        step: usize,
        num_microbatches: usize,
    ) -> Result<Batch, String> {
        let length = config.sequence + 1;
        if self.bytes.len() < length {
            let (name, have) = (&self.name, self.bytes.len());
            return Err(format!("{name} has {have} bytes, must be at least {length}"));
        }
        let mut rng = fastrand::Rng::with_seed(seed ^ ((step as u64 + 1) << 32));
        let microbatches = (0..num_microbatches).map(|_| {
            let mut microbatch = Microbatch::default();
            for _ in 0..config.num_sequences {
                let start = rng.usize(..=self.bytes.len() - length);
                let window = &self.bytes[start..start + length];
                microbatch.tokens.extend(&window[..config.sequence]);
                microbatch.targets.extend(&window[1..]);
            }
            microbatch
        });
        Ok(Batch { microbatches: microbatches.collect() })
    }
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), String> {
    let cannot_read = |e| format!("cannot read {}: {e}", folder.display());
    for entry in fs::read_dir(folder).map_err(cannot_read)? {
        let path = entry.map_err(cannot_read)?.path();
        if path.is_dir() {
            rust_files(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// What stage 0 reads and what the last stage should predict, one byte per row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Microbatch {
    pub(crate) tokens: Vec<u8>,
    pub(crate) targets: Vec<u8>,
}

/// The micro-batches of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Batch {
    microbatches: Vec<Microbatch>,
}

impl Batch {
    /// The micro-batch of `pass`: direction 0 counts from the first on, direction 1 from the last back.
    pub(crate) fn microbatch(&self, pass: Pass) -> Result<&Microbatch, String> {
        Ok(&self.microbatches[self.index(pass)?])
    }

    /// Which of [`Batch::microbatches`] that is.
    pub(crate) fn index(&self, pass: Pass) -> Result<usize, String> {
        let (index, have) = (pass.microbatch.index(), self.microbatches.len());
        if index >= have {
            return Err(format!("there is no micro-batch {index}, the step has {have}"));
        }
        Ok(match pass.direction {
            Direction::Down => index,
            Direction::Up => have - 1 - index,
        })
    }

    /// All micro-batches, in order.
    pub(crate) fn microbatches(&self) -> &[Microbatch] {
        &self.microbatches
    }

    /// A step of each micro-batch alone.
    pub(crate) fn one_by_one(&self) -> impl Iterator<Item = Batch> + '_ {
        self.microbatches.iter().map(|microbatch| Batch { microbatches: vec![microbatch.clone()] })
    }

    /// How many micro-batches there are, both directions together.
    pub(crate) fn num_microbatches(&self) -> usize {
        self.microbatches.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dualpipe::ids::{Microbatch as Number, Stage};

    fn letters() -> Text {
        Text { bytes: (b'a'..=b'z').cycle().take(1000).collect(), name: "letters".into() }
    }

    #[test]
    fn a_step_draws_the_same_batch_again_and_steps_differ() {
        let draw = |seed, step| letters().batch(&Config::small(4), seed, step, 6).unwrap();
        assert_eq!(draw(1, 0), draw(1, 0));
        assert_ne!(draw(1, 0), draw(1, 1));
        assert_ne!(draw(1, 0), draw(2, 0));
    }

    #[test]
    fn targets_are_the_next_bytes() {
        let config = Config::small(4);
        let batch = letters().batch(&config, 1, 0, 3).unwrap();
        for microbatch in &batch.microbatches {
            assert_eq!(microbatch.tokens.len(), config.num_tokens());
            for (token, target) in microbatch.tokens.iter().zip(&microbatch.targets) {
                assert_eq!((token - b'a' + 1) % 26, target - b'a');
            }
        }
    }

    #[test]
    fn the_two_directions_share_out_the_micro_batches() {
        let batch = letters().batch(&Config::small(4), 1, 0, 5).unwrap();
        let of = |direction, i| {
            let (stage, microbatch) = (Stage(0), Number(i));
            let pass = Pass { direction, stage, microbatch };
            batch.microbatch(pass)
        };
        let down = (0..3).map(|i| of(Direction::Down, i).unwrap());
        let up = (0..2).rev().map(|i| of(Direction::Up, i).unwrap());
        assert!(down.chain(up).eq(&batch.microbatches));
        assert!(of(Direction::Down, 5).is_err());
    }

    #[test]
    fn a_text_shorter_than_a_sequence_is_refused() {
        for (num_bytes, is_ok) in [(0, false), (64, false), (65, true)] {
            let mut text = letters();
            text.bytes.truncate(num_bytes);
            assert_eq!(text.batch(&Config::small(4), 1, 0, 1).is_ok(), is_ok, "{num_bytes}");
        }
    }
}
