//! What a run is asked for.

use std::time::Duration;

/// A mistake made on purpose, which a check must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plant {
    /// A weight gradient is added twice.
    Gradient,
    /// A launched step goes on from weights that were moved twice.
    Graph,
    /// The task that should fail does not.
    Fault,
    /// The kernel that should never end does.
    Spin,
}

impl Plant {
    pub(crate) const ALL: [(&'static str, Plant); 4] = [
        ("gradient", Plant::Gradient),
        ("graph", Plant::Graph),
        ("fault", Plant::Fault),
        ("spin", Plant::Spin),
    ];
}

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Sizes that the stand-in and compute-sanitizer get through in seconds.
    pub(crate) is_small: bool,
    pub(crate) plant: Option<Plant>,
    /// No wait of a step that is to end lasts longer.
    pub(crate) timeout: Duration,
    /// Parts to run; empty: all.
    pub(crate) only: Vec<String>,
}

impl Settings {
    /// `--small`, `--plant NAME`, `--timeout SECONDS`, and names of parts.
    pub(crate) fn parse(mut parser: lexopt::Parser) -> Result<Settings, lexopt::Error> {
        use lexopt::prelude::*;
        let (mut is_small, mut plant, mut timeout, mut only) = (false, None, 60, Vec::new());
        while let Some(argument) = parser.next()? {
            match argument {
                Long("small") => is_small = true,
                Long("timeout") => timeout = parser.value()?.parse()?,
                Long("plant") => {
                    let name = parser.value()?.string()?;
                    let found = Plant::ALL.into_iter().find(|(known, _)| *known == name);
                    plant = Some(found.ok_or(format!("there is no mistake called {name}"))?.1);
                }
                Value(part) => only.push(part.string()?),
                _ => return Err(argument.unexpected()),
            }
        }
        Ok(Settings { is_small, plant, timeout: Duration::from_secs(timeout), only })
    }

    pub(crate) fn has(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| wanted == part)
    }
}
