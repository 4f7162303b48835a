//! When the k-th F and the k-th I of a parameter copy can run at all: windows of time.
//!
//! The k-th is counted by time, whichever micro-batch it is. That is enough: the k-th F of a copy cannot start before
//! k Fs of the copy before it have ended, for the first k that start there need k different activations; the same
//! holds for gradients, and for the ends, read backwards. So the windows need no order of the micro-batches.

/// No limit; far enough from the ends of `i64` that a few can be added.
pub(super) const FAR_NS: i64 = i64::MAX / 8;

/// F and I, as indices.
pub(super) const KINDS: [usize; 2] = [FORWARD, INPUT];
pub(super) const FORWARD: usize = 0;
pub(super) const INPUT: usize = 1;

/// The windows of the ops of one copy, or of a group of copies on one rank.
#[derive(Clone, Debug)]
pub(super) struct Windows {
    /// `[kind][k]`: the k-th op starts no earlier.
    pub(super) ready_ns: [Vec<i64>; 2],
    /// `[kind][k]`: the k-th op ends no later.
    pub(super) due_ns: [Vec<i64>; 2],
}

/// What a rank found about ops that have windows: when its other ops leave time for them.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// `[kind][k]`: the k-th op ends no earlier.
    pub(super) end_ns: [Vec<i64>; 2],
    /// `[kind][k]`: the k-th op starts no later.
    pub(super) start_ns: [Vec<i64>; 2],
}

impl Windows {
    /// Of `count` Fs and as many Is that may run at any time.
    pub(super) fn open(count: usize) -> Windows {
        Windows { ready_ns: KINDS.map(|_| vec![0; count]), due_ns: KINDS.map(|_| vec![FAR_NS; count]) }
    }

    /// The same windows for a schedule that ends by `horizon_ns`, if these are for one that ends by `from_ns`.
    pub(super) fn moved(&self, from_ns: i64, horizon_ns: i64) -> Windows {
        let moved = |due: &i64| if *due == FAR_NS { FAR_NS } else { due - from_ns + horizon_ns };
        let due_ns = KINDS.map(|kind| self.due_ns[kind].iter().map(moved).collect());
        Windows { ready_ns: self.ready_ns.clone(), due_ns }
    }

    /// The k-th op of this kind waits until `end_ns[k]` and a message. Whether that is news.
    pub(super) fn wait_for(&mut self, kind: usize, end_ns: &[i64], message_ns: i64) -> bool {
        let mut is_narrower = false;
        for (ready, &end) in self.ready_ns[kind].iter_mut().zip(end_ns) {
            is_narrower |= end + message_ns > *ready;
            *ready = (*ready).max(end + message_ns);
        }
        is_narrower
    }

    /// The k-th op of this kind has to end in time for a message to be there at `start_ns[k]`. Whether that is news.
    pub(super) fn hurry_for(&mut self, kind: usize, start_ns: &[i64], message_ns: i64) -> bool {
        let mut is_narrower = false;
        for (due, &start) in self.due_ns[kind].iter_mut().zip(start_ns) {
            is_narrower |= start - message_ns < *due;
            *due = (*due).min(start - message_ns);
        }
        is_narrower
    }

    /// The windows of all ops of several copies, counted together.
    ///
    /// By any time t at most those have started whose `ready_ns` ≤ t, so the k-th of all starts no earlier than the
    /// k-th smallest of all `ready_ns`; with `due_ns` likewise.
    pub(super) fn merged<'a>(copies: impl Iterator<Item = &'a Windows> + Clone) -> Windows {
        let sorted = |of: &dyn Fn(&Windows) -> &Vec<i64>| {
            let mut all: Vec<i64> = copies.clone().flat_map(|copy| of(copy).iter().copied()).collect();
            all.sort_unstable();
            all
        };
        Windows {
            ready_ns: KINDS.map(|kind| sorted(&|copy| &copy.ready_ns[kind])),
            due_ns: KINDS.map(|kind| sorted(&|copy| &copy.due_ns[kind])),
        }
    }
}

impl Found {
    /// What is known of the ops of one copy, `count` of each kind, if this is what is known of its group's.
    ///
    /// The copy's k-th op is the group's k-th or a later one, and as many of the group's come after it as of its own.
    pub(super) fn of_member(&self, count: usize) -> Found {
        let first = |all: &Vec<i64>| all[..count].to_vec();
        let last = |all: &Vec<i64>| all[all.len() - count..].to_vec();
        Found {
            end_ns: KINDS.map(|kind| first(&self.end_ns[kind])),
            start_ns: KINDS.map(|kind| last(&self.start_ns[kind])),
        }
    }
}
