//! Figures, which mean something on a real device only.

mod host;
mod overlap;
mod step;

use std::sync::Arc;

use crate::driver::Gpu;
use crate::report::Report;
use crate::settings::Settings;

/// Nanoseconds, from some event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interval {
    pub(crate) begin: f64,
    pub(crate) end: f64,
}

/// Of the time of `comm` the share during which something of `compute` runs, 0 to 1. Those of `comm` do not overlap,
/// and those of `compute` are in order of their beginnings.
pub(crate) fn hidden_share(compute: &[Interval], comm: &[Interval]) -> f64 {
    let (mut hidden, mut all) = (0.0, 0.0);
    for one in comm {
        all += one.end - one.begin;
        let mut at = one.begin;
        for other in compute {
            let (from, to) = (other.begin.max(at), other.end.min(one.end));
            if to > from {
                hidden += to - from;
                at = to;
            }
        }
    }
    if all > 0.0 {
        hidden / all
    } else {
        0.0
    }
}

/// `12.3 µs (11.0 to 15.2)`.
fn microseconds([median, least, greatest]: [f64; 3]) -> String {
    format!("{:.1} µs ({:.1} to {:.1})", median / 1e3, least / 1e3, greatest / 1e3)
}

pub(crate) fn measure(gpu: &Arc<Gpu>, settings: &Settings, report: &mut Report) {
    if settings.has("host") {
        host::measure(gpu, settings, report);
    }
    if settings.has("overlap") {
        overlap::measure(gpu, settings, report);
    }
    if settings.has("step") {
        step::measure(gpu, settings, report);
    }
}
