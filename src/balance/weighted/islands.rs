//! GPUs that shared experts connect: load can flow within such an island, and nowhere else.

use super::super::route::links::Links;

/// The islands of a placement.
pub(super) struct Islands {
    /// `[num_gpus]`: an earlier GPU of the same island, or the GPU itself.
    of: Vec<u32>,
    /// `[num_gpus]`: by an island's first GPU, its GPUs.
    sizes: Vec<u32>,
    /// `[num_gpus]`: by an island's first GPU, the load of its experts.
    loads: Vec<u64>,
}

impl Islands {
    pub(super) fn new(num_gpus: usize) -> Islands {
        Islands { of: vec![0; num_gpus], sizes: vec![0; num_gpus], loads: vec![0; num_gpus] }
    }

    /// Finds them. `O(links)`, nearly.
    pub(super) fn read(&mut self, links: &Links, loads: &[u64]) {
        self.of.iter_mut().enumerate().for_each(|(gpu, of)| *of = gpu as u32);
        self.sizes.fill(0);
        self.loads.fill(0);
        for expert in 0..links.num_experts() {
            let of = links.of(expert);
            for link in of.clone().skip(1) {
                let (a, b) = (self.first(links.gpu(of.start)), self.first(links.gpu(link)));
                self.of[a.max(b)] = a.min(b) as u32;
            }
        }
        for gpu in 0..self.of.len() {
            self.of[gpu] = self.of[self.of[gpu] as usize];
            self.sizes[self.of[gpu] as usize] += 1;
        }
        for (expert, &load) in loads.iter().enumerate() {
            if let Some(link) = links.of(expert).next() {
                self.loads[self.of[links.gpu(link)] as usize] += load;
            }
        }
    }

    /// The first GPU of the island that a GPU is on.
    fn first(&mut self, mut gpu: usize) -> usize {
        while self.of[gpu] as usize != gpu {
            self.of[gpu] = self.of[self.of[gpu] as usize];
            gpu = self.of[gpu] as usize;
        }
        gpu
    }

    /// The island of a GPU, named by its first.
    pub(super) fn of(&self, gpu: usize) -> usize {
        self.of[gpu] as usize
    }

    /// How many GPUs an island has, and the load of its experts.
    pub(super) fn size_and_load(&self, island: usize) -> (u64, u64) {
        (u64::from(self.sizes[island]), self.loads[island])
    }
}
