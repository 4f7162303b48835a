//! Flow from nodes with a surplus to nodes with a lack, along shortest paths.
//!
//! Sources: Dinic's blocking flows, and the primal-dual method for the least cost (Ahuja, Magnanti, Orlin, Network
//! Flows, 9.8), which is Dinic's within each cost. A path's length is its cost, then the number of its arcs: the arcs
//! on shortest paths form no cycle, a blocking flow on them can be found without marks, and each makes the shortest
//! path longer. If no cycle of negative cost had room before, none has after.
//!
//! One blocking flow: label correcting from a queue, `O(V A)` at worst and `O(A)` where nothing costs; then a search
//! from the nodes with a surplus that visits no dead end twice. Their number is at most V for each cost a path can
//! have.

/// A network of nodes and edges, with room on each edge in both directions, and its room to work in.
pub(super) struct Network {
    /// `[nodes + 1]`: the arcs `first_arc[v] .. first_arc[v + 1]` leave node v.
    first_arc: Vec<u32>,
    /// `[arcs]`: where each leads to, the arc back, what it can still carry, how long it is.
    to: Vec<u32>,
    back: Vec<u32>,
    room: Vec<i64>,
    length: Vec<i64>,
    /// `[edges]`: the arc along each edge.
    along: Vec<u32>,
    /// `[nodes]`: what a node has too much of, to be carried away; negative, what it can take.
    pub(super) surplus: Vec<i64>,

    /// `[nodes]`: from the nodes with a surplus.
    distance: Vec<i64>,
    /// `[nodes]`: the arc to try next.
    next: Vec<u32>,
    /// A ring of nodes whose arcs are to be relaxed; no node is in it twice.
    queue: Vec<u32>,
    is_queued: Vec<bool>,
    /// The arcs from a node with a surplus to where the search is.
    path: Vec<u32>,
}

/// An edge; against its direction it costs the negative.
#[derive(Clone, Copy)]
pub(super) struct Edge {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) cost: i32,
}

/// Room on an edge that has no limit.
pub(super) const NO_LIMIT: i64 = 1 << 60;
const UNREACHED: i64 = i64::MAX;
/// More than any path has arcs: below 2^22 nodes.
const COST: i64 = 1 << 23;

impl Network {
    pub(super) fn new() -> Network {
        Network {
            first_arc: Vec::new(),
            to: Vec::new(),
            back: Vec::new(),
            room: Vec::new(),
            length: Vec::new(),
            along: Vec::new(),
            surplus: Vec::new(),
            distance: Vec::new(),
            next: Vec::new(),
            queue: Vec::new(),
            is_queued: Vec::new(),
            path: Vec::new(),
        }
    }

    /// Becomes the network of `edges`, with no room on them and no surplus.
    pub(super) fn connect(&mut self, num_nodes: usize, edges: &[Edge]) {
        let num_arcs = 2 * edges.len();
        self.first_arc.clear();
        self.first_arc.resize(num_nodes + 1, 0);
        for edge in edges {
            self.first_arc[edge.from as usize + 1] += 1;
            self.first_arc[edge.to as usize + 1] += 1;
        }
        for node in 0..num_nodes {
            self.first_arc[node + 1] += self.first_arc[node];
        }
        self.next.clear();
        self.next.extend_from_slice(&self.first_arc[..num_nodes]);
        for arcs in [&mut self.to, &mut self.back] {
            arcs.clear();
            arcs.resize(num_arcs, 0);
        }
        for arcs in [&mut self.room, &mut self.length] {
            arcs.clear();
            arcs.resize(num_arcs, 0);
        }
        self.along.clear();
        for edge in edges {
            let mut arc_from = |node: u32| {
                let next = &mut self.next[node as usize];
                *next += 1;
                *next - 1
            };
            let (arc, back) = (arc_from(edge.from), arc_from(edge.to));
            let length = i64::from(edge.cost) * COST;
            for (arc, back, to, length) in [(arc, back, edge.to, length), (back, arc, edge.from, -length)] {
                self.to[arc as usize] = to;
                self.back[arc as usize] = back;
                self.length[arc as usize] = length + 1;
            }
            self.along.push(arc);
        }
        self.surplus.clear();
        self.surplus.resize(num_nodes, 0);
        self.distance.clear();
        self.distance.resize(num_nodes, UNREACHED);
        self.queue.clear();
        self.queue.resize(num_nodes, 0);
        self.is_queued.clear();
        self.is_queued.resize(num_nodes, false);
        self.path.clear();
        self.path.reserve(num_nodes);
    }

    /// Lets an edge carry `flow`, of at most `limit`.
    pub(super) fn set_flow(&mut self, edge: usize, flow: i64, limit: i64) {
        let arc = self.along[edge] as usize;
        self.room[arc] = limit - flow;
        self.room[self.back[arc] as usize] = flow;
    }

    /// What an edge carries.
    pub(super) fn flow(&self, edge: usize) -> i64 {
        self.room[self.back[self.along[edge] as usize] as usize]
    }

    /// Whether there is a path with room from a surplus to this node, after a [`Network::carry`].
    pub(super) fn is_reached(&self, node: usize) -> bool {
        self.distance[node] != UNREACHED
    }

    /// Carries as much surplus as can be to where it is lacking, at the least cost. True if none is left.
    pub(super) fn carry(&mut self) -> bool {
        loop {
            if !self.surplus.iter().any(|&surplus| surplus > 0) {
                return true;
            }
            let Some(shortest) = self.measure() else {
                return false;
            };
            self.block(shortest);
        }
    }

    /// Measures the distances from nodes with a surplus; returns that to the nearest with a lack.
    fn measure(&mut self) -> Option<i64> {
        let num_nodes = self.surplus.len();
        let (mut head, mut len) = (0, 0);
        for (node, &surplus) in self.surplus.iter().enumerate() {
            self.distance[node] = if surplus > 0 { 0 } else { UNREACHED };
            if surplus > 0 {
                self.queue[len] = node as u32;
                self.is_queued[node] = true;
                len += 1;
            }
        }
        while len > 0 {
            let node = self.queue[head] as usize;
            head = if head + 1 == num_nodes { 0 } else { head + 1 };
            len -= 1;
            self.is_queued[node] = false;
            let distance = self.distance[node];
            for arc in self.first_arc[node] as usize..self.first_arc[node + 1] as usize {
                let to = self.to[arc] as usize;
                let beyond = distance + self.length[arc];
                if self.room[arc] > 0 && beyond < self.distance[to] {
                    self.distance[to] = beyond;
                    if !self.is_queued[to] {
                        let tail = head + len;
                        self.queue[if tail >= num_nodes { tail - num_nodes } else { tail }] = to as u32;
                        self.is_queued[to] = true;
                        len += 1;
                    }
                }
            }
        }
        let lacks = self.surplus.iter().zip(&self.distance).filter(|&(&surplus, _)| surplus < 0);
        lacks.map(|(_, &distance)| distance).min().filter(|&distance| distance != UNREACHED)
    }

    /// Fills the paths of the length `shortest` until each has an arc without room.
    fn block(&mut self, shortest: i64) {
        let num_nodes = self.surplus.len();
        self.next.copy_from_slice(&self.first_arc[..num_nodes]);
        for source in 0..num_nodes {
            if self.distance[source] != 0 {
                continue;
            }
            while self.surplus[source] > 0 && self.walk(source, shortest) {
                let end = self.path.last().map_or(source, |&arc| self.to[arc as usize] as usize);
                let room = self.path.iter().map(|&arc| self.room[arc as usize]);
                let amount = room.fold(self.surplus[source].min(-self.surplus[end]), i64::min);
                for &arc in &self.path {
                    self.room[arc as usize] -= amount;
                    self.room[self.back[arc as usize] as usize] += amount;
                }
                self.surplus[source] -= amount;
                self.surplus[end] += amount;
            }
        }
    }

    /// Finds a shortest path from `source` to a lack, if there is one left.
    fn walk(&mut self, source: usize, shortest: i64) -> bool {
        self.path.clear();
        let mut node = source;
        loop {
            if self.distance[node] == shortest && self.surplus[node] < 0 {
                return true;
            }
            let distance = self.distance[node];
            let arcs = self.next[node]..self.first_arc[node + 1];
            let is_on_shortest = |&arc: &u32| {
                let arc = arc as usize;
                self.room[arc] > 0 && self.distance[self.to[arc] as usize] == distance + self.length[arc]
            };
            if let Some(arc) = arcs.clone().find(is_on_shortest) {
                self.next[node] = arc;
                self.path.push(arc);
                node = self.to[arc as usize] as usize;
                continue;
            }
            // A dead end: nothing leaves this node any more.
            self.next[node] = arcs.end;
            let Some(arc) = self.path.pop() else {
                return false;
            };
            node = self.to[self.back[arc as usize] as usize] as usize;
            self.next[node] = arc + 1;
        }
    }
}
