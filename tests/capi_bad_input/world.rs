//! The objects that good input is made of.

use std::ptr::null_mut;

use dualpipe::capi::balance::*;
use dualpipe::capi::cost::{dualpipe_costs, dualpipe_stage_costs};
use dualpipe::capi::executor::*;
use dualpipe::capi::program::{dualpipe_program_create, dualpipe_program_free};
use dualpipe::capi::schedule::*;
use dualpipe::capi::status::dualpipe_status::DUALPIPE_OK;
use dualpipe::capi::task::dualpipe_task;
use dualpipe::capi::tensor::DLDataType;
use dualpipe::capi::timeline::*;
use dualpipe::capi::transport::*;

/// Live objects of every type: DualPipe of 2 ranks and 2 micro-batches, its timeline, rank 1's program; an executor of
/// the one rank of a DualPipeV with 1 micro-batch; an expert plan of 2 layers.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) schedule: usize,
    pub(crate) timeline: usize,
    pub(crate) program: usize,
    pub(crate) inproc: usize,
    pub(crate) executor: usize,
    pub(crate) plan: usize,
    /// The costs of its 2 stages, and one stage too many.
    pub(crate) stages: [dualpipe_stage_costs; 3],
    /// One freed handle of each type.
    pub(crate) freed: Vec<usize>,
}

impl World {
    pub(crate) fn new() -> World {
        let stage = dualpipe_stage_costs {
            forward_ns: 1000,
            input_ns: 1000,
            weight_ns: 1000,
            overlapped_ns: 2500,
            output_bytes: 1 << 20,
            activation_bytes: 1,
            parameter_bytes: 1,
        };
        let stages = [stage; 3];
        let schedule = schedule();
        let freed = [self::schedule(), timeline(schedule, &stages[..2]), program(schedule)];
        let freed = [&freed[..], &[inproc(1), executor(), plan()]].concat();
        // SAFETY: handles.
        unsafe {
            assert_eq!(dualpipe_schedule_free(freed[0] as _), DUALPIPE_OK);
            assert_eq!(dualpipe_timeline_free(freed[1] as _), DUALPIPE_OK);
            assert_eq!(dualpipe_program_free(freed[2] as _), DUALPIPE_OK);
            assert_eq!(dualpipe_inproc_free(freed[3] as _), DUALPIPE_OK);
            assert_eq!(dualpipe_executor_free(freed[4] as _), DUALPIPE_OK);
            assert_eq!(dualpipe_expert_plan_free(freed[5] as _), DUALPIPE_OK);
        }
        World {
            schedule,
            timeline: timeline(schedule, &stages[..2]),
            program: program(schedule),
            inproc: inproc(2),
            executor: executor(),
            plan: plan(),
            stages,
            freed,
        }
    }

    /// The same objects, but for the one that only one thread may use at a time.
    pub(crate) fn of_another_thread(&self) -> World {
        World { executor: executor(), ..self.clone() }
    }

    pub(crate) fn live(&self) -> [usize; 6] {
        [self.schedule, self.timeline, self.program, self.inproc, self.executor, self.plan]
    }
}

pub(crate) fn inproc(num_ranks: u32) -> usize {
    let mut inproc = null_mut();
    // SAFETY: a local.
    assert_eq!(unsafe { dualpipe_inproc_create(num_ranks, &mut inproc) }, DUALPIPE_OK);
    inproc as usize
}

/// One tensor of 3 floats at each boundary.
pub(crate) static SPEC: dualpipe_tensor_spec = dualpipe_tensor_spec {
    dtype: DLDataType { code: 2, bits: 32, lanes: 1 },
    ndim: 1,
    shape: [3, -1, 0, 0, 0, 0, 0, 0],
};

/// For a rank that has a place of its own.
pub(crate) fn executor_options(num_ranks: u32) -> dualpipe_executor_options {
    dualpipe_executor_options {
        size: size_of::<dualpipe_executor_options>() as u32,
        num_tensors: 1,
        tensors: &SPEC,
        timeout_ns: 10_000_000_000,
        inproc: inproc(num_ranks) as _,
        transport: std::ptr::null(),
        memory: std::ptr::null(),
        cuda: std::ptr::null(),
        nccl: std::ptr::null(),
    }
}

/// An executor whose steps need no other rank.
pub(crate) fn executor() -> usize {
    let kind = dualpipe_schedule_kind::DUALPIPE_KIND_DUALPIPE_V as u32;
    let options = dualpipe_schedule_options { kind, num_ranks: 1, num_microbatches: 1, ..schedule_options() };
    let (mut schedule, mut program, mut executor) = (null_mut(), null_mut(), null_mut());
    // SAFETY: locals.
    unsafe {
        assert_eq!(dualpipe_schedule_create(&options, &mut schedule), DUALPIPE_OK);
        assert_eq!(dualpipe_program_create(schedule, 0, &mut program), DUALPIPE_OK);
        assert_eq!(dualpipe_executor_create(program, &executor_options(1), &mut executor), DUALPIPE_OK);
    }
    executor as usize
}

pub(crate) unsafe extern "C-unwind" fn does_nothing(
    _: *mut std::ffi::c_void,
    _: *const dualpipe_task,
) -> i32 {
    0
}

pub(crate) fn balance_options() -> dualpipe_balance_options {
    dualpipe_balance_options {
        size: size_of::<dualpipe_balance_options>() as u32,
        num_layers: 2,
        num_experts: 4,
        num_slots: 6,
        num_groups: 2,
        num_nodes: 1,
        num_gpus: 2,
        num_threads: 1,
    }
}

pub(crate) fn plan() -> usize {
    let mut plan = null_mut();
    let loads = [1.0, 2.0, 3.0, 4.0, 4.0, 3.0, 2.0, 1.0];
    // SAFETY: locals.
    let status = unsafe { dualpipe_expert_plan_create(&balance_options(), loads.as_ptr(), 8, &mut plan) };
    assert_eq!(status, DUALPIPE_OK);
    plan as usize
}

pub(crate) fn schedule_options() -> dualpipe_schedule_options {
    let kind = dualpipe_schedule_kind::DUALPIPE_KIND_DUALPIPE as u32;
    let (size, forward_only, stages_per_rank) = (size_of::<dualpipe_schedule_options>() as u32, 0, 0);
    dualpipe_schedule_options { size, kind, num_ranks: 2, num_microbatches: 2, forward_only, stages_per_rank }
}

pub(crate) fn schedule() -> usize {
    let mut schedule = null_mut();
    // SAFETY: locals.
    assert_eq!(unsafe { dualpipe_schedule_create(&schedule_options(), &mut schedule) }, DUALPIPE_OK);
    schedule as usize
}

pub(crate) fn costs(stages: &[dualpipe_stage_costs]) -> dualpipe_costs {
    dualpipe_costs {
        size: size_of::<dualpipe_costs>() as u32,
        reserved: 0,
        stages: stages.as_ptr(),
        num_stages: stages.len(),
        p2p_latency_ns: 1,
        p2p_bytes_per_second: 1_000_000_000,
        pairs: std::ptr::null(),
        num_pairs: 0,
    }
}

pub(crate) fn timeline(schedule: usize, stages: &[dualpipe_stage_costs]) -> usize {
    let mut timeline = null_mut();
    // SAFETY: locals.
    assert_eq!(unsafe { dualpipe_simulate(schedule as _, &costs(stages), &mut timeline) }, DUALPIPE_OK);
    timeline as usize
}

pub(crate) fn program(schedule: usize) -> usize {
    let mut program = null_mut();
    // SAFETY: locals.
    assert_eq!(unsafe { dualpipe_program_create(schedule as _, 1, &mut program) }, DUALPIPE_OK);
    program as usize
}
