//! A world in which time and the network are simulated and every fault comes from a seed.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use dualpipe::execute::fault::{Fault, Notice};
use dualpipe::execute::rank::{Progress, RankMachine, Stop, World};
use dualpipe::execute::transport::mailbox::{Key, Mailbox};
use dualpipe::execute::transport::tag;
use dualpipe::ids::Rank;
use dualpipe::op::{Message, Task};
use dualpipe::program::{lower, BufferId, Program};
use dualpipe::schedule::Schedule;
use fastrand::Rng;

/// What may happen to messages, each in so many of a thousand cases.
#[derive(Clone, Copy, Default)]
pub(crate) struct Faults {
    pub(crate) lost: u32,
    pub(crate) doubled: u32,
    /// Much later than the others, so that later ones overtake.
    pub(crate) late: u32,
    /// The message that is sent as number so many is lost.
    pub(crate) loses: Option<u64>,
    /// Messages are told apart by their sender and the order of arrival only, and keep that order.
    pub(crate) untagged: bool,
    /// This rank never does anything.
    pub(crate) absent: Option<usize>,
    /// This rank does nothing more from this instruction on.
    pub(crate) dies_at: Option<(usize, usize)>,
    /// This rank's task fails at this instruction.
    pub(crate) fails_at: Option<(usize, usize)>,
    /// Whether a failing rank's notice reaches the others.
    pub(crate) deaf: bool,
}

pub(crate) const PATIENCE_NS: u64 = 10_000;

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) results: Vec<Option<Result<(), Fault>>>,
    pub(crate) now_ns: u64,
    pub(crate) doubled: usize,
    pub(crate) posted: u64,
    pub(crate) ran: Vec<Vec<Task>>,
}

struct Net {
    now_ns: u64,
    rng: Rng,
    faults: Faults,
    /// What is under way: by arrival time and a number of its own.
    under_way: BTreeMap<(u64, u64), (Rank, Key, Message)>,
    sent: u64,
    /// How many messages were handed to the network, lost ones too.
    posted: u64,
    doubled: usize,
    mailboxes: Vec<Mailbox<Message, BufferId>>,
    /// What has been received: by rank, buffer and message.
    received: HashSet<(Rank, BufferId, Message)>,
    notice: Option<Notice>,
}

impl Net {
    fn deliver(&mut self) {
        while let Some(entry) = self.under_way.first_entry() {
            if entry.key().0 > self.now_ns {
                break;
            }
            let (to, key, message) = entry.remove();
            if let Some((message, buffer)) = self.mailboxes[to.index()].send(key, message) {
                self.received.insert((to, buffer, message));
            }
        }
    }

    fn chance(&mut self, per_thousand: u32) -> bool {
        self.rng.u32(0..1000) < per_thousand
    }
}

struct Port<'a> {
    net: &'a mut Net,
    rank: Rank,
    step: u16,
    at: usize,
    ran: &'a mut Vec<Task>,
}

impl Port<'_> {
    fn key(&self, from: Rank, message: Message) -> Key {
        let tag = if self.net.faults.untagged { 0 } else { tag(message, self.step, 0) };
        Key { from, tag }
    }
}

impl World for Port<'_> {
    fn now_ns(&mut self) -> u64 {
        self.net.now_ns
    }

    fn receive(&mut self, message: Message, from: Rank, buffer: BufferId) -> Result<bool, Stop> {
        let key = self.key(from, message);
        if let Some((message, buffer)) = self.net.mailboxes[self.rank.index()].receive(key, buffer) {
            self.net.received.insert((self.rank, buffer, message));
        }
        Ok(true)
    }

    fn is_received(&mut self, message: Message, _: Rank, buffer: BufferId) -> Result<bool, Stop> {
        Ok(self.net.received.remove(&(self.rank, buffer, message)))
    }

    fn send(&mut self, message: Message, to: Rank, _: BufferId) -> Result<bool, Stop> {
        let key = self.key(self.rank, message);
        self.net.posted += 1;
        if self.net.chance(self.net.faults.lost) || self.net.faults.loses == Some(self.net.posted - 1) {
            return Ok(true);
        }
        let copies = 1 + usize::from(self.net.chance(self.net.faults.doubled));
        self.net.doubled += copies - 1;
        for _ in 0..copies {
            let delay_ns = if self.net.chance(self.net.faults.late) { 400 } else { 40 };
            let delay_ns = if self.net.faults.untagged { 40 } else { self.net.rng.u64(1..=delay_ns) };
            let arrival_ns = self.net.now_ns + delay_ns;
            self.net.sent += 1;
            self.net.under_way.insert((arrival_ns, self.net.sent), (to, key, message));
        }
        Ok(true)
    }

    fn is_sent(&mut self, _: Message, _: Rank, _: BufferId) -> Result<bool, Stop> {
        Ok(true)
    }

    fn run(&mut self, task: Task) -> Result<(), Stop> {
        if self.net.faults.fails_at == Some((self.rank.index(), self.at)) {
            return Err(Stop::Callback("as planned".into()));
        }
        self.ran.push(task);
        Ok(())
    }

    fn free(&mut self, _: BufferId) {}

    fn notice(&mut self) -> Option<Notice> {
        if self.net.faults.deaf {
            return None;
        }
        self.net.notice.clone()
    }
}

/// Runs `steps` steps of all ranks of `schedule`, which take turns in an order drawn from the seed.
pub(crate) fn run(schedule: &Schedule, steps: u16, seed: u64, faults: Faults) -> End {
    run_programs(lower(schedule).unwrap(), steps, seed, faults)
}

pub(crate) fn run_programs(programs: Vec<Program>, steps: u16, seed: u64, faults: Faults) -> End {
    let num_ranks = programs.len();
    let mut net = Net {
        now_ns: 0,
        rng: Rng::with_seed(seed),
        faults,
        under_way: BTreeMap::new(),
        sent: 0,
        posted: 0,
        doubled: 0,
        mailboxes: (0..num_ranks).map(|_| Mailbox::default()).collect(),
        received: HashSet::new(),
        notice: None,
    };
    let machine = |program| RankMachine::new(Arc::new(program), Duration::from_nanos(PATIENCE_NS));
    let mut machines: Vec<RankMachine> = programs.into_iter().map(machine).collect();
    let mut results: Vec<Option<Result<(), Fault>>> = vec![None; num_ranks];
    let mut step = vec![0; num_ranks];
    let mut ran = vec![Vec::new(); num_ranks];
    let is_dead = |rank: usize, machine: &RankMachine| {
        faults.absent == Some(rank)
            || faults.dies_at.is_some_and(|(r, at)| r == rank && machine.instruction() >= at)
    };
    loop {
        net.deliver();
        let mut running: Vec<usize> = (0..num_ranks).filter(|&r| results[r].is_none()).collect();
        running.retain(|&rank| !is_dead(rank, &machines[rank]));
        if running.is_empty() {
            break;
        }
        net.rng.shuffle(&mut running);
        for rank in running {
            // One instruction at a time, so that a rank can die at each.
            let ran = &mut ran[rank];
            let at = machines[rank].instruction();
            let mut port = Port { net: &mut net, rank: Rank(rank as u32), step: step[rank], at, ran };
            match machines[rank].advance_once(&mut port) {
                Ok(Some(Progress::Finished)) => {
                    step[rank] += 1;
                    machines[rank].restart();
                    if step[rank] == steps {
                        results[rank] = Some(Ok(()));
                    }
                }
                Ok(_) => {}
                Err(fault) => {
                    net.notice.get_or_insert_with(|| fault.notice());
                    results[rank] = Some(Err(fault));
                }
            }
        }
        net.now_ns += 1 + net.rng.u64(0..10);
        assert!(net.now_ns < 10_000_000, "SEED={seed}: a rank neither finishes nor gives up");
    }
    End { results, now_ns: net.now_ns, doubled: net.doubled, posted: net.posted, ran }
}
