//! The gradients against finite differences, in f64, over a model of one and of two stages.

use super::tensors::Tensors;
use super::{Config, StageModel};

fn tiny(num_stages: usize) -> Config {
    Config {
        vocabulary: 11,
        sequence: 5,
        num_sequences: 2,
        width: 8,
        num_heads: 2,
        num_experts: 4,
        hidden: 6,
        num_stages,
    }
}

const TOKENS: [u8; 10] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3];
const TARGETS: [u8; 10] = [1, 4, 1, 5, 9, 2, 6, 5, 3, 10];

fn stages(num_stages: usize) -> Vec<StageModel<f64>> {
    let config = tiny(num_stages);
    (0..num_stages).map(|stage| StageModel::new(&config, stage, 1)).collect()
}

fn loss(stages: &[StageModel<f64>]) -> f64 {
    let mut activation = None;
    let mut sum = 0.0;
    for stage in stages {
        let input = activation.as_ref().map(|a: &ndarray::Array2<f64>| a.view());
        let (output, saved) = stage.forward(&TOKENS, &TARGETS, input).unwrap();
        sum += saved.balance_loss() + saved.loss.unwrap_or(0.0);
        activation = output;
    }
    sum
}

fn gradients(stages: &[StageModel<f64>]) -> Vec<Tensors<f64>> {
    let mut activation = None;
    let mut all_saved = Vec::new();
    for stage in stages {
        let input = activation.as_ref().map(|a: &ndarray::Array2<f64>| a.view());
        let (output, saved) = stage.forward(&TOKENS, &TARGETS, input).unwrap();
        all_saved.push(saved);
        activation = output;
    }
    let mut gradient = None;
    let mut all_pending = Vec::new();
    for (stage, saved) in stages.iter().zip(all_saved).rev() {
        let output_grad = gradient.as_ref().map(|g: &ndarray::Array2<f64>| g.view());
        let (input_grad, pending) = stage.backward_input(saved, output_grad).unwrap();
        all_pending.push(pending);
        gradient = input_grad;
    }
    all_pending.reverse();
    let with_pending = stages.iter().zip(all_pending);
    with_pending
        .map(|(stage, pending)| {
            let mut grads = stage.params.zeros_like();
            stage.backward_weight(pending, &mut grads);
            grads
        })
        .collect()
}

#[test]
fn every_parameter_has_the_gradient_of_finite_differences() {
    // Central differences are off by the third derivative times step^2 / 6, and by rounding, 1e-16 / step.
    const STEP: f64 = 1e-5;
    for num_stages in [1, 2] {
        let mut stages = stages(num_stages);
        let grads = gradients(&stages);
        for (stage, grads) in grads.iter().enumerate() {
            let mut index = 0;
            for (name, grad) in grads.groups() {
                let largest = grad.fold(0.0, |a: f64, g| a.max(g.abs()));
                assert!(largest > 1e-7, "stage {stage} of {num_stages}: {name} is unused");
                for &grad in grad {
                    let mut loss_at = |offset| {
                        *stages[stage].params.iter_mut().nth(index).unwrap() += offset;
                        let loss = loss(&stages);
                        *stages[stage].params.iter_mut().nth(index).unwrap() -= offset;
                        loss
                    };
                    let slope = (loss_at(STEP) - loss_at(-STEP)) / (2.0 * STEP);
                    assert!(
                        (slope - grad).abs() < 1e-9 + 1e-6 * largest,
                        "stage {stage} of {num_stages}: {name}: {grad} but the slope is {slope}"
                    );
                    index += 1;
                }
            }
        }
    }
}

#[test]
fn putting_w_off_changes_no_bit() {
    let stage = &stages(1)[0];
    let saved_of = |tokens: &[u8]| stage.forward(tokens, &TARGETS, None).unwrap().1;
    let reversed: Vec<u8> = TOKENS.into_iter().rev().collect();
    let microbatches = [&TOKENS[..], &reversed];

    let mut at_once = stage.params.zeros_like();
    for tokens in microbatches {
        let (_, pending) = stage.backward_input(saved_of(tokens), None).unwrap();
        stage.backward_weight(pending, &mut at_once);
    }

    let mut put_off = stage.params.zeros_like();
    let pending = microbatches.map(|tokens| stage.backward_input(saved_of(tokens), None).unwrap().1);
    assert!(put_off.iter().all(|&g| g == 0.0), "I must not touch the gradients");
    for pending in pending {
        stage.backward_weight(pending, &mut put_off);
    }

    assert!(at_once.iter().eq(put_off.iter()));
}

#[test]
fn a_seed_draws_the_same_stage_again_and_stages_differ() {
    let draw = |stage, seed| StageModel::<f32>::new(&tiny(3), stage, seed).params;
    assert!(draw(1, 7).iter().eq(draw(1, 7).iter()));
    assert!(draw(1, 7).iter().ne(draw(1, 8).iter()));
    assert!(draw(1, 7).iter().ne(draw(2, 7).iter()));
}

#[test]
fn every_token_visits_two_experts() {
    let stage = &stages(1)[0];
    let (_, saved) = stage.forward(&TOKENS, &TARGETS, None).unwrap();
    let loads: Vec<u64> = saved.expert_loads().collect();
    assert_eq!(loads.len(), 4);
    assert_eq!(loads.iter().sum::<u64>(), 20);
}

#[test]
fn a_stage_refuses_what_does_not_belong_to_it() {
    let stages = stages(2);
    let activation = ndarray::Array2::zeros((10, 8));
    let refused = |stage: &StageModel<f64>, input| {
        let result = stage.forward(&TOKENS, &TARGETS, input);
        result.err().unwrap_or_default()
    };
    assert_eq!(refused(&stages[0], Some(activation.view())), "stage 0 has no input activation");
    assert_eq!(refused(&stages[1], None), "the input activation is missing");
}
