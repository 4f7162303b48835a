//! The model on the device against the model on the host. The device is the stand-in driver, which runs the kernels'
//! own text and finds races between them.

use std::sync::Arc;

use dualpipe::ids::{Direction, Microbatch, Stage};
use dualpipe::op::{Op, Pass, StageCopy};

use super::driver::{Argument, Device, Memory};
use super::trainer::{GpuBoundary, GpuTrainer};
use crate::model::{Config, Tensors};
use crate::rank::Trainer;
use crate::text::{Batch, Text};
use crate::trainer::RankTrainer;

#[path = "../../../tests/support/standin.rs"]
pub(super) mod standin;

use standin::{Session, EAGER, LAZY};

/// Sums in another order, and another exp: a share of the largest number of a tensor.
const TOLERANCE: f32 = 1e-5;

/// Odd, so that nothing fits a block or a tile.
fn config(num_stages: usize) -> Config {
    Config {
        sequence: 7,
        num_sequences: 3,
        width: 12,
        num_heads: 3,
        num_experts: 5,
        hidden: 10,
        ..Config::small(num_stages)
    }
}

fn copies(num_stages: usize, direction: Direction) -> Vec<StageCopy> {
    (0..num_stages).map(|stage| StageCopy { direction, stage: Stage(stage as u16) }).collect()
}

fn batch(config: &Config, step: usize, num_microbatches: usize) -> Arc<Batch> {
    Arc::new(Text::own_sources().unwrap().batch(config, 1, step, num_microbatches).unwrap())
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

fn assert_close(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = largest(want);
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        // Written so that what is not a number is not close to anything.
        let is_close = (got - want).abs() <= TOLERANCE * largest;
        assert!(is_close, "{what}, number {i}: {got}, not {want}; the largest is {largest}");
    }
}

fn assert_tensors_close(what: &str, got: &Tensors, want: &Tensors) {
    for ((name, got), (_, want)) in got.groups().zip(want.groups()) {
        let [got, want] = [got, want].map(|matrix| matrix.iter().copied().collect::<Vec<f32>>());
        // No token may have chosen an expert.
        assert!(largest(&want) > 0.0 || name.starts_with("expert"), "{what}, {name} is zero");
        assert_close(&format!("{what}, {name}"), &got, &want);
    }
}

/// A model twice: all its stages at one rank of the host, and at one of the device.
struct Twice {
    config: Config,
    direction: Direction,
    host: RankTrainer,
    device: Arc<Device>,
    gpu: GpuTrainer,
}

/// A boundary tensor twice.
struct Rows {
    host: Vec<f32>,
    gpu: Memory,
}

impl Twice {
    fn new(config: Config, direction: Direction) -> Twice {
        let copies = copies(config.num_stages, direction);
        let device = Device::open(0).unwrap();
        let gpu = GpuTrainer::new(&device, config, &copies, 1).unwrap();
        let host = RankTrainer::new(config, &copies, 1, Arc::default());
        Twice { config, direction, host, device, gpu }
    }

    fn begin_step(&mut self, batch: &Arc<Batch>) {
        self.host.begin_step(Arc::clone(batch)).unwrap();
        self.gpu.begin_step(Arc::clone(batch)).unwrap();
    }

    fn rows(&self) -> Rows {
        let count = self.config.num_tokens() * self.config.width;
        let gpu = Memory::zeros(&self.device, count * 4, self.gpu.stream()).unwrap();
        Rows { host: vec![f32::NAN; count], gpu }
    }

    fn pass(&self, stage: usize, microbatch: usize) -> Pass {
        let (stage, microbatch) = (Stage(stage as u16), Microbatch(microbatch as u32));
        Pass { direction: self.direction, stage, microbatch }
    }

    fn is_close(&self, what: &str, rows: &Rows) {
        let got = self.gpu.download(&rows.gpu, rows.host.len());
        assert!(largest(&rows.host) > 0.0, "{what} is zero");
        assert_close(what, &got, &rows.host);
    }

    /// Until boundary tensors are read, and can go.
    fn wait(&self) {
        self.gpu.loss_sum().unwrap();
    }

    fn forward(&mut self, microbatch: usize) {
        let mut input: Option<Rows> = None;
        for stage in 0..self.config.num_stages {
            let pass = self.pass(stage, microbatch);
            let mut output = (stage + 1 < self.config.num_stages).then(|| self.rows());
            let tensors = GpuBoundary {
                input: input.as_ref().map(|rows| rows.gpu.address()),
                output: output.as_ref().map(|rows| rows.gpu.address()),
            };
            self.gpu.forward(pass, tensors, self.gpu.stream()).unwrap();
            let to = output.as_mut().map(|rows| &mut rows.host[..]);
            self.host.forward(pass, input.as_ref().map(|rows| &rows.host[..]), to).unwrap();
            if let Some(output) = &output {
                self.is_close(&format!("output of stage {stage}"), output);
            }
            self.wait();
            input = output;
        }
    }

    /// I of all stages, and W, if it is not put off.
    fn backward(&mut self, microbatch: usize, is_whole: bool) {
        let mut output_grad: Option<Rows> = None;
        for stage in (0..self.config.num_stages).rev() {
            let pass = self.pass(stage, microbatch);
            let mut input_grad = (stage > 0).then(|| self.rows());
            let tensors = GpuBoundary {
                input: output_grad.as_ref().map(|rows| rows.gpu.address()),
                output: input_grad.as_ref().map(|rows| rows.gpu.address()),
            };
            let op = if is_whole { Op::B(pass) } else { Op::I(pass) };
            self.gpu.run(op, GpuBoundary::default(), tensors, self.gpu.stream()).unwrap();
            let to = input_grad.as_mut().map(|rows| &mut rows.host[..]);
            self.host.backward_input(pass, output_grad.as_ref().map(|rows| &rows.host[..]), to).unwrap();
            if is_whole {
                self.host.backward_weight(pass).unwrap();
            }
            if let Some(input_grad) = &input_grad {
                self.is_close(&format!("input gradient of stage {stage}"), input_grad);
            }
            self.wait();
            output_grad = input_grad;
        }
    }

    fn backward_weight(&mut self, microbatch: usize) {
        for stage in 0..self.config.num_stages {
            let pass = self.pass(stage, microbatch);
            self.gpu.backward_weight(pass, self.gpu.stream()).unwrap();
            self.host.backward_weight(pass).unwrap();
        }
    }

    /// Three micro-batches, as a zero-bubble schedule might run them.
    fn step(&mut self, step: usize) {
        let batch = batch(&self.config, step, 3);
        self.begin_step(&batch);
        self.forward(0);
        self.forward(1);
        self.backward(0, false);
        self.forward(2);
        self.backward(1, true);
        self.backward(2, false);
        self.backward_weight(2);
        self.backward_weight(0);
    }

    fn check(&self, what: &str) {
        let (got, want) = (self.gpu.loss_sum().unwrap(), self.host.loss_sum().unwrap());
        assert!((got - want).abs() < 1e-5 * want, "{what}: loss {got}, not {want}");
        for (copy, host) in self.host.copies() {
            let what = format!("{what}, stage {}", copy.stage);
            assert_tensors_close(&what, &self.gpu.grads(*copy).unwrap(), &host.grads);
            assert_eq!(self.gpu.expert_loads(*copy).unwrap(), host.expert_loads, "{what}");
        }
    }

    /// Moves both, by the same gradients: where they are next to nothing, the smallest difference turns the optimizer.
    fn update(&mut self, what: &str) {
        for copy in copies(self.config.num_stages, self.direction) {
            self.host.copy_mut(copy).unwrap().grads = self.gpu.grads(copy).unwrap();
        }
        self.host.update().unwrap();
        self.gpu.update().unwrap();
        for (copy, host) in self.host.copies() {
            let what = format!("{what}, parameters of stage {}", copy.stage);
            assert_tensors_close(&what, &self.gpu.params(*copy).unwrap(), &host.model.params);
        }
    }
}

#[test]
fn stages_compute_on_the_device_what_they_compute_on_the_host() {
    let session = Session::new(1, EAGER, 1, 0);
    for (config, direction) in [
        (config(1), Direction::Down),
        (config(3), Direction::Up),
        (Config { sequence: 1, num_experts: 2, ..config(2) }, Direction::Down),
        (Config::small(2), Direction::Down),
    ] {
        let mut twice = Twice::new(config, direction);
        for step in 0..2 {
            let what = format!("{config:?}, step {step}");
            twice.step(step);
            twice.check(&what);
            twice.update(&what);
        }
    }
    session.assert_clean("stages");
}

#[test]
fn a_step_after_the_first_allocates_nothing() {
    let session = Session::new(1, EAGER, 1, 0);
    let mut twice = Twice::new(config(1), Direction::Down);
    let mut allocations = Vec::new();
    for step in 0..3 {
        twice.step(step);
        twice.gpu.update().unwrap();
        allocations.push(session.num_calls("cuMemAlloc"));
    }
    assert_eq!(allocations, [allocations[0]; 3]);
}

#[test]
fn passes_out_of_order_are_refused() {
    let _session = Session::new(1, EAGER, 1, 0);
    let mut twice = Twice::new(config(1), Direction::Down);
    twice.begin_step(&batch(&twice.config, 0, 1));
    let pass = |stage, microbatch| twice.pass(stage, microbatch);
    let passes = [pass(0, 0), pass(0, 1), pass(1, 0)];
    let stream = twice.gpu.stream();
    let mut error = |op| {
        let result = twice.gpu.run(op, GpuBoundary::default(), GpuBoundary::default(), stream);
        result.and_then(|()| twice.gpu.update()).err()
    };
    for (op, expected) in [
        (Op::I(passes[0]), Some("its forward has not run")),
        (Op::F(passes[1]), Some("there is no micro-batch 1, the step has 1")),
        (Op::F(passes[2]), Some("this rank does not hold stage 1 of direction 0")),
        (Op::F(passes[0]), Some("stage 0 of direction 0 still has to run 1 I and 0 W")),
        (Op::W(passes[0]), Some("its backward for the input has not run")),
        (Op::I(passes[0]), Some("stage 0 of direction 0 still has to run 0 I and 1 W")),
        (Op::W(passes[0]), None),
        (Op::B(passes[0]), Some("its forward has not run")),
    ] {
        assert_eq!(error(op).as_deref(), expected, "{op}");
    }
}

/// One micro-batch in each direction through a model of one stage, at two ranks that sum their gradients. Then what the
/// stand-in found wrong, and both ranks' gradients.
fn reduced(seed: u64, num_devices: u32, is_wait_skipped: bool) -> (String, [Tensors; 2]) {
    let session = Session::new(seed, LAZY, num_devices, 0);
    let config = config(1);
    let batch = batch(&config, 0, 2);
    let mut ranks = Vec::new();
    for (rank, direction) in [Direction::Down, Direction::Up].into_iter().enumerate() {
        session.set_rank(rank);
        let device = Device::open(rank % num_devices as usize).unwrap();
        let mut trainer = GpuTrainer::new(&device, config, &copies(1, direction), 1).unwrap();
        trainer.begin_step(Arc::clone(&batch)).unwrap();
        ranks.push(trainer);
    }
    let mut given = Vec::new();
    for trainer in &mut ranks {
        let copy = trainer.copies().next().unwrap();
        let pass = Pass { direction: copy.direction, stage: copy.stage, microbatch: Microbatch(0) };
        let stream = trainer.stream();
        trainer.run(Op::F(pass), GpuBoundary::default(), GpuBoundary::default(), stream).unwrap();
        trainer.run(Op::B(pass), GpuBoundary::default(), GpuBoundary::default(), stream).unwrap();
        given.push((copy, trainer.give_gradients(copy).unwrap()));
    }
    if is_wait_skipped {
        session.skip_wait(1, 0);
    }
    for (trainer, (twin, copy)) in ranks.iter_mut().zip([(1, 0), (0, 1)]) {
        trainer.reduce(given[copy].0, &given[twin].1).unwrap();
    }
    let grads = [0, 1].map(|rank| ranks[rank].grads(given[rank].0).unwrap());
    drop((ranks, given));
    (session.report(), grads)
}

#[test]
fn two_copies_of_a_stage_get_the_same_sum() {
    let config = config(1);
    let mut host = RankTrainer::new(config, &copies(1, Direction::Down), 1, Arc::default());
    host.begin_step(batch(&config, 0, 2)).unwrap();
    for microbatch in 0..2 {
        let pass = Pass { direction: Direction::Down, stage: Stage(0), microbatch: Microbatch(microbatch) };
        host.forward(pass, None, None).unwrap();
        host.backward_input(pass, None, None).unwrap();
        host.backward_weight(pass).unwrap();
    }
    for seed in 0..8 {
        for num_devices in [1, 2] {
            let what = format!("seed {seed}, {num_devices} devices");
            let (report, [down, up]) = reduced(seed, num_devices, false);
            assert_eq!(report, "", "{what}");
            assert!(down.iter().eq(up.iter()), "{what}");
            assert_tensors_close(&what, &down, &host.copies()[0].1.grads);
        }
    }
}

#[test]
fn without_its_wait_a_copy_reads_gradients_too_early() {
    for num_devices in [1, 2] {
        let (report, _) = reduced(0, num_devices, true);
        assert!(report.contains("race: "), "{num_devices} devices: {report}");
    }
}

#[test]
fn a_launch_with_the_wrong_arguments_is_refused() {
    let _session = Session::new(1, EAGER, 1, 0);
    let device = Device::open(0).unwrap();
    let launch = |name: &str, arguments: &[Argument]| {
        device.launch(std::ptr::null_mut(), name, (1, 1, 1), (1, 1, 1), arguments).unwrap_err()
    };
    assert_eq!(launch("no_such", &[]), "there is no kernel no_such");
    for arguments in [&[Argument::U64(0); 3][..], &[Argument::U64(0); 5], &[Argument::U32(0); 4]] {
        assert!(launch("add_f32", arguments).starts_with("add_f32 takes [U64, U64, U64, U64], not"));
    }
}

#[test]
fn the_driver_is_quoted() {
    let session = Session::new(1, EAGER, 1, 0);
    session.fail_call("cuMemAlloc", 0, 2);
    let device = Device::open(0).unwrap();
    let error = GpuTrainer::new(&device, config(1), &copies(1, Direction::Down), 1).err().unwrap();
    assert_eq!(error, "cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY, out of memory");
    assert!(Device::open(1).err().unwrap().starts_with("cuDeviceGet: CUDA_ERROR_INVALID_DEVICE"));
}
