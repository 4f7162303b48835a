//! The assignment problem: of each row one column, each column once, of the least sum of costs.
//!
//! Shortest augmenting paths (R. Jonker, A. Volgenant: A shortest augmenting path algorithm for dense and sparse linear
//! assignment problems, Computing 38, 1987), without their heuristics for a good start. Row by row, a Dijkstra search
//! over reduced costs finds the cheapest chain of rows that move on to another column. In integers, hence exact and
//! alike everywhere; of equal sums always the same one. `O(n^3)`.

/// Room for problems of any size.
#[derive(Default)]
pub(super) struct Assignment {
    row_price: Vec<i64>,
    column_price: Vec<i64>,
    /// The row of each column; column 0 is where a search begins. Rows and columns count from 1, 0 is none.
    row_of: Vec<usize>,
    reached_from: Vec<usize>,
    distance: Vec<i64>,
    is_done: Vec<bool>,
}

impl Assignment {
    /// The least sum, and in `column_of` the column of each row. `costs` is `[n, n]`, each within ±2^40.
    pub(super) fn solve(&mut self, n: usize, costs: &[i64], column_of: &mut Vec<usize>) -> i64 {
        for prices in [&mut self.row_price, &mut self.column_price] {
            prices.clear();
            prices.resize(n + 1, 0);
        }
        self.row_of.clear();
        self.row_of.resize(n + 1, 0);
        self.reached_from.resize(n + 1, 0);
        for row in 1..=n {
            self.augment(n, costs, row);
        }
        column_of.clear();
        column_of.resize(n, 0);
        for column in 1..=n {
            column_of[self.row_of[column] - 1] = column - 1;
        }
        column_of.iter().enumerate().map(|(row, &column)| costs[row * n + column]).sum()
    }

    fn augment(&mut self, n: usize, costs: &[i64], start: usize) {
        self.distance.clear();
        self.distance.resize(n + 1, i64::MAX);
        self.is_done.clear();
        self.is_done.resize(n + 1, false);
        self.row_of[0] = start;
        let mut column = 0;
        while self.row_of[column] != 0 {
            self.is_done[column] = true;
            let row = self.row_of[column];
            let costs = &costs[(row - 1) * n..row * n];
            let (mut nearest, mut step) = (0, i64::MAX);
            for next in 1..=n {
                if self.is_done[next] {
                    continue;
                }
                let through = costs[next - 1] - self.row_price[row] - self.column_price[next];
                if through < self.distance[next] {
                    self.distance[next] = through;
                    self.reached_from[next] = column;
                }
                if self.distance[next] < step {
                    (nearest, step) = (next, self.distance[next]);
                }
            }
            for next in 0..=n {
                if self.is_done[next] {
                    self.row_price[self.row_of[next]] += step;
                    self.column_price[next] -= step;
                } else if self.distance[next] != i64::MAX {
                    self.distance[next] -= step;
                }
            }
            column = nearest;
        }
        while column != 0 {
            let before = self.reached_from[column];
            self.row_of[column] = self.row_of[before];
            column = before;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best_by_trying_all(n: usize, costs: &[i64], row: usize, taken: u32) -> i64 {
        if row == n {
            return 0;
        }
        let free = (0..n).filter(|column| taken >> column & 1 == 0);
        let sums = free.map(|c| costs[row * n + c] + best_by_trying_all(n, costs, row + 1, taken | 1 << c));
        sums.min().unwrap()
    }

    #[test]
    fn all_permutations_by_hand() {
        assert_eq!(best_by_trying_all(2, &[1, 5, 2, 9], 0, 0), 7);
        assert_eq!(best_by_trying_all(3, &[0, 1, 9, 9, 0, 1, 1, 9, 0], 0, 0), 0);
    }

    #[test]
    fn no_permutation_costs_less() {
        let mut assignment = Assignment::default();
        let mut column_of = Vec::new();
        for seed in 0..500 {
            let mut random = fastrand::Rng::with_seed(seed);
            let n = random.usize(1..7);
            let most = [2, 10, 1 << 40][random.usize(0..3)];
            let costs: Vec<i64> = (0..n * n).map(|_| random.i64(-most..=most)).collect();
            let sum = assignment.solve(n, &costs, &mut column_of);
            assert_eq!(sum, best_by_trying_all(n, &costs, 0, 0), "{costs:?}");
            let mut columns = column_of.clone();
            columns.sort_unstable();
            assert_eq!(columns, (0..n).collect::<Vec<_>>());
        }
    }
}
