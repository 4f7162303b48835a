//! The mixture of experts: a router sends each token to the two experts it scores highest.
//!
//! ```text
//! scores  = x w                    [tokens, experts]
//! weights = softmax of the two highest scores of a token; the same as their share of a softmax over all
//! y       = sum of weight * expert(x) over the two
//! ```
//!
//! Which experts are the highest has no gradient; the weights have. So that the router does not settle on a few
//! experts, each stage adds a balance loss to the model's (arXiv 2101.03961, section 2.2), which grows when the
//! experts with many visits also have the highest scores.

use ndarray::{Array1, Array2, ArrayView1, Axis};

use super::expert::{Expert, SavedExpert};
use super::layer::{softmax, Layer, Linear, Product};
use super::tensors::{Builder, Tensors};
use super::{Config, Real, EXPERTS_PER_TOKEN};

/// What the balance loss is multiplied by; equal loads make it 1.
pub(crate) const BALANCE_WEIGHT: f64 = 0.001;

/// Router and experts of a stage.
pub(crate) struct Moe {
    router: Linear,
    experts: Vec<Expert>,
}

/// A token at one of its experts.
#[derive(Clone, Copy)]
struct Visit<R> {
    /// The token's row.
    row: usize,
    /// Whether the expert is the token's first or second.
    choice: usize,
    /// How much the expert counts for the token.
    weight: R,
}

/// What [`Moe`] saves.
pub(crate) struct SavedMoe<R> {
    router_input: Array2<R>,
    /// `[tokens, experts]`: the softmax of the scores.
    probabilities: Array2<R>,
    /// By row: the experts chosen, and their weights.
    choices: Vec<[(usize, R); EXPERTS_PER_TOKEN]>,
    /// By expert.
    queues: Vec<Queue<R>>,
}

impl<R: Real> SavedMoe<R> {
    /// By expert, what the balance loss multiplies with the expert's probability of each token.
    fn balance_factors(&self) -> Array1<R> {
        let num_tokens = self.choices.len() as f64;
        let num_experts = self.queues.len() as f64;
        let shares = self.loads().map(|load| load as f64 / (num_tokens * EXPERTS_PER_TOKEN as f64));
        let factors = shares.map(|share| R::of(BALANCE_WEIGHT * num_experts * share / num_tokens));
        factors.collect()
    }

    /// The micro-batch's balance loss, of which training needs the gradient only.
    #[cfg(test)]
    pub(crate) fn balance_loss(&self) -> R {
        self.probabilities.dot(&self.balance_factors()).sum()
    }
}

/// The tokens of one expert, a row each in `answer` and `saved`.
struct Queue<R> {
    visits: Vec<Visit<R>>,
    /// What the expert made of them.
    answer: Array2<R>,
    saved: SavedExpert<R>,
}

impl<R> SavedMoe<R> {
    /// Tokens sent to each expert.
    pub(crate) fn loads(&self) -> impl Iterator<Item = u64> + '_ {
        self.queues.iter().map(|queue| queue.visits.len() as u64)
    }
}

/// What the I of a [`Moe`] leaves for its W.
pub(crate) struct PendingMoe<R> {
    router: Product<R>,
    experts: Vec<[Product<R>; 2]>,
}

impl Moe {
    pub(crate) fn new<R: Real>(builder: &mut Builder<R>, config: &Config, gain: f64) -> Moe {
        let router_shape = (config.width, config.num_experts);
        Moe {
            router: Linear::new(builder, "router", router_shape, 1.0),
            experts: (0..config.num_experts).map(|i| Expert::new(builder, i, config, gain)).collect(),
        }
    }
}

impl<R: Real> Layer<R> for Moe {
    type Saved = SavedMoe<R>;
    type Pending = PendingMoe<R>;

    fn forward(&self, params: &Tensors<R>, input: Array2<R>) -> (Array2<R>, Self::Saved) {
        let (scores, router_input) = self.router.forward(params, input);
        let choices: Vec<_> = scores.rows().into_iter().map(two_highest).collect();
        let mut all_visits: Vec<Vec<Visit<R>>> = vec![Vec::new(); self.experts.len()];
        for (row, chosen) in choices.iter().enumerate() {
            for (choice, &(expert, weight)) in chosen.iter().enumerate() {
                all_visits[expert].push(Visit { row, choice, weight });
            }
        }
        let mut output = Array2::zeros(router_input.dim());
        let mut queues = Vec::with_capacity(self.experts.len());
        for (expert, visits) in self.experts.iter().zip(all_visits) {
            let rows: Vec<usize> = visits.iter().map(|visit| visit.row).collect();
            let (answer, saved) = expert.forward(params, router_input.select(Axis(0), &rows));
            for (visit, answer) in visits.iter().zip(answer.rows()) {
                output.row_mut(visit.row).scaled_add(visit.weight, &answer);
            }
            queues.push(Queue { visits, answer, saved });
        }
        let mut probabilities = scores;
        probabilities.rows_mut().into_iter().for_each(softmax);
        let saved = SavedMoe { router_input, probabilities, choices, queues };
        (output, saved)
    }

    fn backward_input(
        &self,
        params: &Tensors<R>,
        saved: Self::Saved,
        output_grad: Array2<R>,
    ) -> (Array2<R>, Self::Pending) {
        // Through the softmax: dz = p (dp - sum(p dp)).
        let factors = saved.balance_factors();
        let means = saved.probabilities.dot(&factors).insert_axis(Axis(1));
        let mut score_grads = saved.probabilities * (&factors - &means);

        let num_rows = output_grad.nrows();
        let mut input_grad = Array2::zeros(output_grad.dim());
        let mut weight_grads = vec![[R::zero(); EXPERTS_PER_TOKEN]; num_rows];
        let mut pending = Vec::with_capacity(self.experts.len());
        for (expert, queue) in self.experts.iter().zip(saved.queues) {
            let Queue { visits, answer, saved } = queue;
            let mut answer_grad = Array2::zeros(answer.dim());
            for (i, visit) in visits.iter().enumerate() {
                let grad = output_grad.row(visit.row);
                weight_grads[visit.row][visit.choice] = grad.dot(&answer.row(i));
                answer_grad.row_mut(i).scaled_add(visit.weight, &grad);
            }
            let (grad, expert_pending) = expert.backward_input(params, saved, answer_grad);
            for (visit, grad) in visits.iter().zip(grad.rows()) {
                let mut sum = input_grad.row_mut(visit.row);
                sum += &grad;
            }
            pending.push(expert_pending);
        }
        for (row, (chosen, [first_grad, second_grad])) in saved.choices.iter().zip(weight_grads).enumerate() {
            let [(first, weight), (second, other)] = *chosen;
            let grad = weight * other * (first_grad - second_grad);
            score_grads[[row, first]] += grad;
            score_grads[[row, second]] -= grad;
        }
        let (grad, router) = self.router.backward_input(params, saved.router_input, score_grads);
        input_grad += &grad;
        let pending = PendingMoe { router, experts: pending };
        (input_grad, pending)
    }

    fn backward_weight(&self, pending: Self::Pending, grads: &mut Tensors<R>) {
        self.router.backward_weight(pending.router, grads);
        for (expert, pending) in self.experts.iter().zip(pending.experts) {
            expert.backward_weight(pending, grads);
        }
    }
}

/// The two highest of a token's scores (the lower index first among equals), with their softmax.
fn two_highest<R: Real>(scores: ArrayView1<'_, R>) -> [(usize, R); EXPERTS_PER_TOKEN] {
    let highest_but = |taken: Option<usize>| {
        let candidates = (0..scores.len()).filter(|&i| Some(i) != taken);
        candidates.reduce(|best, i| if scores[i] > scores[best] { i } else { best })
    };
    let first = highest_but(None).unwrap_or(0);
    let second = highest_but(Some(first)).unwrap_or(0);
    let weight = ((scores[second] - scores[first]).exp() + R::one()).recip();
    [(first, weight), (second, R::one() - weight)]
}
