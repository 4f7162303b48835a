//! Where things are: how many pixels a rank and a nanosecond get.

use crate::timeline::Timeline;

/// White space around the picture.
pub(super) const MARGIN: f64 = 16.0;
/// Where time 0 is.
pub(super) const LEFT: f64 = 84.0;
/// Room behind the last time, for the idle share of each rank.
pub(super) const RIGHT: f64 = 72.0;

/// More tasks than this are drawn merged, without numbers.
const TASKS_MAX: usize = 50_000;
/// About as many boxes are drawn at most.
const BOXES_MAX: usize = 200_000;
/// A short task gets so many pixels, if the picture does not become too wide: enough for two digits.
const SHORT_TASK: f64 = 24.0;

/// The scale of a picture, common to all its timelines.
pub(super) struct Layout {
    /// The end of the time axis: the latest end of all.
    pub(super) end_ns: u64,
    /// Pixels of the time axis.
    pub(super) width: f64,
    /// From one rank to the next.
    pub(super) pitch: f64,
    /// Of a box.
    pub(super) height: f64,
    /// `None`: one box per task. Otherwise one per run of pixels, of which a row has so many.
    pub(super) pixels: Option<usize>,
}

impl Layout {
    pub(super) fn of(timelines: &[&Timeline]) -> Layout {
        let end_ns = timelines.iter().map(|t| t.makespan_ns()).max().unwrap_or(0);
        let rows = timelines.iter().map(|t| t.spans.len()).sum::<usize>();
        let tasks = timelines.iter().flat_map(|t| &t.spans).map(Vec::len).sum();
        let width = width(timelines, tasks, end_ns);
        let pitch = match rows {
            0..=40 => 34.0,
            41..=160 => 24.0,
            161..=640 => 14.0,
            _ => 6.0,
        };
        let pixels = (width as usize).min(BOXES_MAX / 2 / rows.max(1)).max(1);
        Layout {
            end_ns,
            width,
            pitch,
            height: (pitch * 0.88_f64).floor(),
            pixels: (tasks > TASKS_MAX).then_some(pixels),
        }
    }

    /// Where a time is.
    pub(super) fn x(&self, ns: u64) -> f64 {
        match self.end_ns {
            0 => LEFT,
            end_ns => LEFT + ns.min(end_ns) as f64 / end_ns as f64 * self.width,
        }
    }

    /// Font size of a number in a box.
    pub(super) fn number_size(&self) -> f64 {
        (self.height * 0.45).min(13.0).floor()
    }

    /// Font size of a number in half a box.
    pub(super) fn half_number_size(&self) -> f64 {
        (self.height * 0.36).min(11.0).floor()
    }

    /// Whether a rank's row is named: each, or every so many if the rows are lower than letters.
    pub(super) fn names_rank(&self, rank: usize) -> bool {
        rank % (14.0 / self.pitch).ceil() as usize == 0
    }

    /// Round times along the axis, about 80 pixels apart.
    pub(super) fn ticks(&self) -> impl Iterator<Item = u64> {
        let wanted = (u128::from(self.end_ns) * 80).div_ceil(self.width as u128);
        let mut power: u128 = 1;
        while power * 10 <= wanted {
            power *= 10;
        }
        let step = [1, 2, 5, 10].map(|k| k * power);
        let step = step.into_iter().find(|&step| step >= wanted);
        let step = step.unwrap_or(10 * power);
        let end_ns = u128::from(self.end_ns);
        // No tick is later than `end_ns`, which is a u64.
        (0..=end_ns / step).map(move |i| (i * step) as u64)
    }
}

/// As wide as numbers in the shortest tenth of all tasks need, within limits.
fn width(timelines: &[&Timeline], tasks: usize, end_ns: u64) -> f64 {
    const RANGE: (f64, f64) = (720.0, 3200.0);
    if tasks > TASKS_MAX {
        return RANGE.1;
    }
    let spans = timelines.iter().flat_map(|t| t.spans.iter().flatten());
    let mut durations: Vec<u64> =
        spans.map(|span| span.end_ns.saturating_sub(span.start_ns)).filter(|&ns| ns > 0).collect();
    durations.sort_unstable();
    match durations.get(durations.len() / 10) {
        Some(&short) => (SHORT_TASK * end_ns as f64 / short as f64).clamp(RANGE.0, RANGE.1).round(),
        None => RANGE.0,
    }
}
