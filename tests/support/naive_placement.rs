//! The best placements of a small layer, found by trying all of them.

use dualpipe::balance::{Cluster, Goal, GroupRule};

/// Loads are multiples of this, so that any count of replicas up to 8 divides them.
pub(crate) const UNIT: u64 = 840;

/// The least possible load of the heaviest GPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Best {
    /// Where replicas share a load equally.
    pub(crate) equal: u64,
    /// Where they share it in the best way.
    pub(crate) weighted: f64,
}

/// None if there is no placement. `duplicates`: an expert may be twice on a GPU even if there is another that the GPU
/// could have. Where groups are whole, nodes may be left empty.
pub(crate) fn best_by_trying_all(
    cluster: &Cluster,
    goal: &Goal,
    loads: &[u64],
    duplicates: bool,
) -> Option<Best> {
    let mut nodes: Vec<u32> = cluster.live_gpus().map(|gpu| cluster.node_of_gpu()[gpu]).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let all = (1u32 << nodes.len()) - 1;
    let sets = if goal.groups == GroupRule::Whole { 1..=all } else { all..=all };
    let bests = sets.filter_map(|set| {
        let used = nodes.iter().enumerate().filter(|(i, _)| set >> i & 1 == 1).map(|(_, &node)| node);
        let used: Vec<u32> = used.collect();
        let gpus = cluster.live_gpus().filter(|&gpu| used.contains(&cluster.node_of_gpu()[gpu]));
        let slots = gpus.flat_map(|gpu| cluster.slots(gpu)).collect();
        let mut search = Search { cluster, goal, loads, duplicates, slots, held: Vec::new(), best: None };
        search.fill();
        search.best
    });
    bests.reduce(|a, b| Best { equal: a.equal.min(b.equal), weighted: a.weighted.min(b.weighted) })
}

/// How many placements there are to try.
pub(crate) fn num_placements(cluster: &Cluster, num_experts: usize) -> f64 {
    let multisets =
        |slots: usize| (0..slots).map(|i| (num_experts + i) as f64 / (i + 1) as f64).product::<f64>();
    cluster.live_gpus().map(|gpu| multisets(cluster.slots(gpu).len())).product()
}

struct Search<'a> {
    cluster: &'a Cluster,
    goal: &'a Goal,
    loads: &'a [u64],
    duplicates: bool,
    /// The slots to fill.
    slots: Vec<usize>,
    /// What the first of them hold.
    held: Vec<usize>,
    best: Option<Best>,
}

impl Search<'_> {
    fn gpu(&self, i: usize) -> usize {
        self.cluster.gpu_of_slot()[self.slots[i]] as usize
    }

    fn fill(&mut self) {
        let i = self.held.len();
        if i == self.slots.len() {
            return self.weigh();
        }
        let is_missing = |expert: &usize| !self.held.contains(expert);
        if (0..self.loads.len()).filter(is_missing).count() > self.slots.len() - i {
            return; // too few slots are left for those that have none
        }
        // On a GPU in ascending order, as the order does not matter.
        let first = match self.held.last() {
            Some(&before) if self.gpu(i - 1) == self.gpu(i) => before,
            _ => 0,
        };
        for expert in first..self.loads.len() {
            self.held.push(expert);
            self.fill();
            self.held.pop();
        }
    }

    fn weigh(&mut self) {
        let num_experts = self.loads.len();
        let mut counts = vec![0; num_experts];
        self.held.iter().for_each(|&expert| counts[expert] += 1);
        let goal = self.goal;
        if counts.contains(&0) {
            return;
        }
        let mut places: Vec<(usize, usize)> =
            self.held.iter().copied().zip((0..).map(|i| self.gpu(i))).collect();
        places.sort_unstable();
        places.dedup();
        let node = |gpu: usize| self.cluster.node_of_gpu()[gpu];
        for expert in 0..num_experts {
            let gpus = || places.iter().filter(|place| place.0 == expert).map(|place| place.1);
            let mut nodes: Vec<u32> = gpus().map(node).collect();
            nodes.sort_unstable();
            nodes.dedup();
            if gpus().count() < goal.min_gpus || nodes.len() < goal.min_nodes {
                return;
            }
        }
        if goal.groups == GroupRule::Whole {
            let group = |expert: usize| group_of(expert, num_experts, goal.num_groups);
            let mut homes: Vec<(usize, u32)> = places.iter().map(|&(e, gpu)| (group(e), node(gpu))).collect();
            homes.sort_unstable();
            homes.dedup();
            if homes.len() != goal.num_groups {
                return;
            }
        }
        if !self.duplicates && avoidable_duplicates(self.cluster, goal, num_experts, &places) > 0 {
            return;
        }
        let mut of_gpus = vec![0; self.cluster.num_gpus()];
        for (i, &expert) in self.held.iter().enumerate() {
            of_gpus[self.gpu(i)] += self.loads[expert] / counts[expert];
        }
        let equal = of_gpus.into_iter().max().unwrap();
        // By Hall's theorem: some set of experts needs all that its GPUs can do.
        let weighted = (1..1usize << num_experts).map(|set| {
            let load: u64 = (0..num_experts).filter(|e| set >> e & 1 == 1).map(|e| self.loads[e]).sum();
            let mut gpus: Vec<usize> = places.iter().filter(|p| set >> p.0 & 1 == 1).map(|p| p.1).collect();
            gpus.sort_unstable();
            gpus.dedup();
            load as f64 / gpus.len() as f64
        });
        let weighted = weighted.fold(0.0, f64::max);
        let best = self.best.get_or_insert(Best { equal, weighted });
        *best = Best { equal: best.equal.min(equal), weighted: best.weighted.min(weighted) };
    }
}

/// How many GPUs hold an expert twice though there is another that they could have; `places` are the (expert, GPU).
fn avoidable_duplicates(
    cluster: &Cluster,
    goal: &Goal,
    num_experts: usize,
    places: &[(usize, usize)],
) -> usize {
    let node = |gpu: usize| cluster.node_of_gpu()[gpu];
    let group = |expert: usize| group_of(expert, num_experts, goal.num_groups);
    let may_be_on = |expert: usize, gpu: usize| {
        let home = places.iter().find(|place| group(place.0) == group(expert)).map(|place| node(place.1));
        goal.groups != GroupRule::Whole || home == Some(node(gpu))
    };
    let avoidable = cluster.live_gpus().filter(|&gpu| {
        let different = (0..num_experts).filter(|&expert| places.contains(&(expert, gpu))).count();
        let mut absent = (0..num_experts).filter(|&expert| !places.contains(&(expert, gpu)));
        different > 0 && different < cluster.slots(gpu).len() && absent.any(|expert| may_be_on(expert, gpu))
    });
    avoidable.count()
}

/// Groups of consecutive experts, the first of which have one more if they do not divide.
fn group_of(expert: usize, num_experts: usize, num_groups: usize) -> usize {
    let (least, more) = (num_experts / num_groups, num_experts % num_groups);
    let ends = (0..num_groups).scan(0, |end, group| {
        *end += least + usize::from(group < more);
        Some(*end)
    });
    ends.take_while(|&end| end <= expert).count()
}

/// The load of the heaviest GPU of a placement / the mean, after checking it: an expert in each live slot, none in dead
/// ones (nor on a node without groups), all experts on enough GPUs and nodes, groups whole where they must be; and how
/// many GPUs have an expert twice though there is another that they could have.
#[allow(dead_code)] // not every file that includes this has any
pub(crate) fn imbalance_and_duplicates(
    cluster: &Cluster,
    goal: &Goal,
    loads: &[f32],
    slot_to_expert: &[u32],
) -> (f64, usize) {
    assert_eq!(slot_to_expert.len(), cluster.num_slots());
    let mut gpus_of = vec![Vec::new(); loads.len()];
    for (slot, &expert) in slot_to_expert.iter().enumerate() {
        let gpu = cluster.gpu_of_slot()[slot] as usize;
        let node_is_empty = || {
            let on_node =
                (0..cluster.num_gpus()).filter(|&g| cluster.node_of_gpu()[g] == cluster.node_of_gpu()[gpu]);
            goal.groups == GroupRule::Whole
                && on_node.flat_map(|g| cluster.slots(g)).all(|slot| slot_to_expert[slot] == u32::MAX)
        };
        let is_empty = !cluster.is_alive(gpu) || node_is_empty();
        assert_eq!(expert == u32::MAX, is_empty, "slot {slot} holds {expert}");
        if expert != u32::MAX {
            gpus_of[expert as usize].push(gpu);
        }
    }
    let mut of_gpus = vec![0.0; cluster.num_gpus()];
    let mut homes = vec![None; goal.num_groups];
    for (expert, gpus) in gpus_of.iter().enumerate() {
        for &gpu in gpus {
            of_gpus[gpu] += f64::from(loads[expert]) / gpus.len() as f64;
        }
        let mut nodes: Vec<u32> = gpus.iter().map(|&gpu| cluster.node_of_gpu()[gpu]).collect();
        let mut different = gpus.clone();
        different.dedup();
        nodes.sort_unstable();
        nodes.dedup();
        assert!(different.len() >= goal.min_gpus, "expert {expert} is on GPUs {different:?}");
        assert!(nodes.len() >= goal.min_nodes, "expert {expert} is on nodes {nodes:?}");
        if goal.groups == GroupRule::Whole {
            let home = &mut homes[group_of(expert, loads.len(), goal.num_groups)];
            assert!(nodes == [*home.get_or_insert(nodes[0])], "expert {expert} is on nodes {nodes:?}");
        }
    }
    let places =
        gpus_of.iter().enumerate().flat_map(|(expert, gpus)| gpus.iter().map(move |&gpu| (expert, gpu)));
    let duplicates = avoidable_duplicates(cluster, goal, loads.len(), &places.collect::<Vec<_>>());
    let sum: f64 = loads.iter().copied().map(f64::from).sum();
    let heaviest = of_gpus.into_iter().fold(0.0, f64::max);
    (if sum > 0.0 { heaviest / sum * cluster.num_live_gpus() as f64 } else { 1.0 }, duplicates)
}
