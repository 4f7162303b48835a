//! The memory rule: which F may run so that no rank ever waits for room that cannot come, however little there is.
//!
//! Source: the banker's algorithm (Dijkstra, EWD 108), with the order in which all could finish fixed beforehand.
//!
//! Micro-batches are put in the order in which they enter (their F of stage 0). Call a state safe if, for every
//! rank r and every micro-batch k that has entered,
//!
//! ```text
//! what k and all later ones keep alive on r + what k has yet to keep alive on r  <=  room of r
//! ```
//!
//! - A safe state can go on, and stay safe: the oldest micro-batch can go all its way, as the sum says for it; then the
//!   next; and so on.
//! - An F of k on r changes no sum of k itself: it moves a part of it from yet to be to alive. It raises only the sums
//!   of older micro-batches on r, and these matter only while they still need r. So these are all that
//!   [`Dispatch::fits`] looks at, and it never holds up the oldest.
//! - A micro-batch that enters needs no more than the room for itself: `Lines::new` has checked it.
//! - I and W only make sums smaller.

use super::dispatch::Dispatch;

impl Dispatch<'_> {
    /// Whether the next F of `stop` leaves the state safe.
    pub(super) fn fits(&self, stop: usize) -> bool {
        let at = &self.lines.stops[stop];
        let held = &self.lines.on_rank[at.rank];
        let room = self.lines.room[at.rank];
        if room == u64::MAX {
            return true;
        }
        let alive = self.ranks[at.rank].alive + at.size;
        let most_needed: u64 = held.iter().map(|&other| self.lines.stops[other].size).sum();
        if alive + most_needed <= room {
            return true;
        }
        if alive > room {
            return false;
        }
        let microbatch = self.stops[stop].forwards;
        let before = self.before(at.line, microbatch);
        held.iter().all(|&other| {
            let line = self.lines.stops[other].line;
            let older = self.stops[other].forwards..before[line];
            older.into_iter().all(|older| self.sum(at.rank, line, older) + at.size <= room)
        })
    }

    /// What a micro-batch and all later ones keep alive on `rank`, and what it has yet to.
    fn sum(&self, rank: usize, line: usize, microbatch: usize) -> u64 {
        let before = self.before(line, microbatch);
        let sums = self.lines.on_rank[rank].iter().map(|&stop| {
            let (at, progress) = (&self.lines.stops[stop], &self.stops[stop]);
            let first = before[at.line];
            let put_off = progress.put_off.len() - progress.put_off.partition_point(|&m| m < first);
            let alive = put_off + progress.forwards.saturating_sub(progress.inputs.max(first));
            let is_needed = at.line == line && progress.forwards <= first;
            at.size * (alive as u64 + u64::from(is_needed))
        });
        sums.sum()
    }

    /// How many of each line come before a micro-batch in the order of entering: all that have, if it has not yet.
    pub(super) fn before(&self, line: usize, microbatch: usize) -> [usize; 2] {
        self.entered_before[line].get(microbatch).copied().unwrap_or(self.entered)
    }
}
