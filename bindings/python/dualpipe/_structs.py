"""The structs of the C API, field by field as in ``include/dualpipe/*.h``."""

from __future__ import annotations

import ctypes as c

from ._expert_structs import EXPERT_STRUCTS
from ._front_structs import FRONT_STRUCTS

NONE = 0xFFFF_FFFF
"""DUALPIPE_NONE: there is none, in a field that is a number."""


class ScheduleOptions(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("kind", c.c_uint32),
        ("num_ranks", c.c_uint32),
        ("num_microbatches", c.c_uint32),
        ("forward_only", c.c_uint32),
        ("stages_per_rank", c.c_uint32),
    ]


class ScheduleInfo(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("kind", c.c_uint32),
        ("num_ranks", c.c_uint32),
        ("num_stages", c.c_uint32),
        ("num_directions", c.c_uint32),
        ("num_microbatches", c.c_uint32),
        ("forward_only", c.c_uint32),
    ]


class Pass(c.Structure):
    _fields_ = [
        ("direction", c.c_uint32),
        ("stage", c.c_uint32),
        ("microbatch", c.c_uint32),
        ("copy", c.c_uint32),
    ]


class Op(c.Structure):
    _fields_ = [("kind", c.c_uint32), ("forward", Pass), ("backward", Pass)]


class Order(c.Structure):
    _fields_ = [("ops", c.POINTER(Op)), ("num_ops", c.c_size_t)]


class ScheduleOrders(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("num_ranks", c.c_uint32),
        ("num_stages", c.c_uint32),
        ("num_directions", c.c_uint32),
        ("num_microbatches", c.c_uint32),
        ("forward_only", c.c_uint32),
        ("rank_of", c.POINTER(c.c_uint32)),
        ("orders", c.POINTER(Order)),
        ("name", c.c_char_p),
    ]


class Message(c.Structure):
    _fields_ = [("kind", c.c_uint32), ("to_stage", c.c_uint32), ("pass", Pass)]


class StageCosts(c.Structure):
    _fields_ = [
        ("forward_ns", c.c_uint64),
        ("input_ns", c.c_uint64),
        ("weight_ns", c.c_uint64),
        ("overlapped_ns", c.c_uint64),
        ("output_bytes", c.c_uint64),
        ("activation_bytes", c.c_uint64),
        ("parameter_bytes", c.c_uint64),
    ]


class PairCosts(c.Structure):
    _fields_ = [("forward_stage", c.c_uint32), ("backward_stage", c.c_uint32), ("overlapped_ns", c.c_uint64)]


class Costs(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("reserved", c.c_uint32),
        ("stages", c.POINTER(StageCosts)),
        ("num_stages", c.c_size_t),
        ("p2p_latency_ns", c.c_uint64),
        ("p2p_bytes_per_second", c.c_uint64),
        ("pairs", c.POINTER(PairCosts)),
        ("num_pairs", c.c_size_t),
    ]


class TimelineSummary(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("source", c.c_uint32),
        ("num_ranks", c.c_uint64),
        ("num_spans", c.c_uint64),
        ("num_messages", c.c_uint64),
        ("makespan_ns", c.c_uint64),
        ("lower_bound_ns", c.c_uint64),
        ("bubble_share", c.c_double),
    ]


class TimelineRank(c.Structure):
    _fields_ = [
        ("busy_ns", c.c_uint64),
        ("idle_ns", c.c_uint64),
        ("peak_memory_bytes", c.c_uint64),
        ("num_spans", c.c_uint64),
    ]


class Span(c.Structure):
    _fields_ = [("rank", c.c_uint32), ("op", Op), ("start_ns", c.c_uint64), ("end_ns", c.c_uint64)]


class MessageSpan(c.Structure):
    _fields_ = [
        ("message", Message),
        ("from", c.c_uint32),
        ("to", c.c_uint32),
        ("start_ns", c.c_uint64),
        ("end_ns", c.c_uint64),
    ]


class Instruction(c.Structure):
    _fields_ = [
        ("kind", c.c_uint32),
        ("peer", c.c_uint32),
        ("buffer", c.c_uint32),
        ("message", Message),
        ("op", Op),
    ]


class Action(c.Structure):
    _fields_ = [("kind", c.c_uint32), ("peer", c.c_uint32), ("message", Message), ("op", Op)]


class ActionOrder(c.Structure):
    _fields_ = [("actions", c.POINTER(Action)), ("num_actions", c.c_size_t)]


class ScheduleVerifyOptions(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("transports", c.c_uint32),
        ("orders", c.POINTER(ActionOrder)),
        ("num_orders", c.c_size_t),
        ("costs", c.POINTER(Costs)),
        ("cap_activations", c.POINTER(c.c_uint64)),
        ("num_cap_activations", c.c_size_t),
        ("cap_bytes", c.POINTER(c.c_uint64)),
        ("num_cap_bytes", c.c_size_t),
        ("no_counterexamples", c.c_uint32),
        ("reserved", c.c_uint32),
    ]


class VerificationInfo(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("is_valid", c.c_uint32),
        ("num_ranks", c.c_uint32),
        ("num_findings", c.c_uint32),
        ("transports", c.c_uint32),
        ("holds_for", c.c_uint32),
        ("has_bytes", c.c_uint32),
        ("reserved", c.c_uint32),
        ("num_omitted", c.c_uint64),
    ]


class VerificationRank(c.Structure):
    _fields_ = [("peak_live", c.c_uint64), ("peak_bytes", c.c_uint64)]


class ScheduleFinding(c.Structure):
    _fields_ = [
        ("kind", c.c_uint32),
        ("transports", c.c_uint32),
        ("receives", c.c_uint32),
        ("has_counterexample", c.c_uint32),
        ("is_smallest", c.c_uint32),
    ]


class VerificationTrial(c.Structure):
    _fields_ = [("receives", c.c_uint32), ("transport", c.c_uint32), ("kind", c.c_uint32)]


class ProgramBuffer(c.Structure):
    _fields_ = [("kind", c.c_uint32), ("direction", c.c_uint32), ("stage", c.c_uint32)]


class DLDevice(c.Structure):
    _fields_ = [("device_type", c.c_int32), ("device_id", c.c_int32)]


class DLDataType(c.Structure):
    _fields_ = [("code", c.c_uint8), ("bits", c.c_uint8), ("lanes", c.c_uint16)]


class DLTensor(c.Structure):
    _fields_ = [
        ("data", c.c_void_p),
        ("device", DLDevice),
        ("ndim", c.c_int32),
        ("dtype", DLDataType),
        ("shape", c.POINTER(c.c_int64)),
        ("strides", c.POINTER(c.c_int64)),
        ("byte_offset", c.c_uint64),
    ]


class Tensor(c.Structure):
    _fields_ = [("dl", DLTensor), ("owner", c.c_void_p), ("is_present", c.c_uint32), ("reserved", c.c_uint32)]


class TaskPass(c.Structure):
    _fields_ = [
        ("pass", Pass),
        ("num_inputs", c.c_uint32),
        ("num_outputs", c.c_uint32),
        ("num_output_grads", c.c_uint32),
        ("num_input_grads", c.c_uint32),
        ("inputs", c.POINTER(Tensor)),
        ("outputs", c.POINTER(Tensor)),
        ("output_grads", c.POINTER(Tensor)),
        ("input_grads", c.POINTER(Tensor)),
    ]


class Task(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("reduce_peer", c.c_uint32),
        ("op", Op),
        ("reserved", c.c_uint32),
        ("forward", c.POINTER(TaskPass)),
        ("backward", c.POINTER(TaskPass)),
        ("compute_stream", c.c_void_p),
        ("comm_stream", c.c_void_p),
    ]


class TensorSpec(c.Structure):
    _fields_ = [("dtype", DLDataType), ("ndim", c.c_uint32), ("shape", c.c_int64 * 8)]


class CudaInfo(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("num_devices", c.c_uint32),
        ("driver_version", c.c_uint32),
        ("reserved", c.c_uint32),
    ]


class CudaOptions(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("device", c.c_uint32),
        ("compute_stream", c.c_void_p),
        ("comm_stream", c.c_void_p),
        ("has_comm_stream", c.c_uint32),
        ("is_timed", c.c_uint32),
        ("is_stream_ordered", c.c_uint32),
        ("uses_graph", c.c_uint32),
        ("exchanges_shapes", c.c_uint32),
        ("reserved", c.c_uint32),
    ]


class NcclOptions(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("max_ctas", c.c_uint32),
        ("unique_id", c.c_void_p),
        ("unique_id_length", c.c_uint64),
        ("zero_cta", c.c_uint32),
        ("reserved", c.c_uint32),
    ]


class Transfer(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("peer", c.c_uint32),
        ("channel", c.c_uint32),
        ("tensor", c.c_uint32),
        ("tag", c.c_uint64),
        ("data", c.c_void_p),
        ("num_bytes", c.c_uint64),
        ("stream", c.c_void_p),
        ("device", c.c_uint32),
        ("step", c.c_uint32),
        ("message", Message),
    ]


PostFunction = c.CFUNCTYPE(c.c_uint32, c.c_void_p, c.POINTER(Transfer), c.POINTER(c.c_uint64))
TestFunction = c.CFUNCTYPE(c.c_uint32, c.c_void_p, c.c_uint64, c.POINTER(c.c_uint32), c.POINTER(c.c_uint64))
WaitFunction = c.CFUNCTYPE(None, c.c_void_p, c.c_uint64)
PollFunction = c.CFUNCTYPE(c.c_uint32, c.c_void_p, c.POINTER(c.c_uint32), c.c_void_p, c.c_size_t)
AbortFunction = c.CFUNCTYPE(None, c.c_void_p, c.c_uint32, c.c_char_p)
DoneFunction = c.CFUNCTYPE(None, c.c_void_p)
ErrorFunction = c.CFUNCTYPE(None, c.c_void_p, c.c_void_p, c.c_size_t)


class Transport(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("reserved", c.c_uint32),
        ("user_data", c.c_void_p),
        ("send", PostFunction),
        ("receive", PostFunction),
        ("test", TestFunction),
        ("wait", WaitFunction),
        ("poll_abort", PollFunction),
        ("abort", AbortFunction),
        ("withdraw", DoneFunction),
        ("last_error", ErrorFunction),
        ("destroy", DoneFunction),
    ]


AllocateFunction = c.CFUNCTYPE(c.c_int32, c.c_void_p, c.c_uint64, c.POINTER(c.c_void_p), c.POINTER(c.c_void_p))
ReleaseFunction = c.CFUNCTYPE(None, c.c_void_p, c.c_void_p, c.c_void_p)


class Memory(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("reserved", c.c_uint32),
        ("user_data", c.c_void_p),
        ("allocate", AllocateFunction),
        ("release", ReleaseFunction),
    ]


class ExecutorOptions(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("num_tensors", c.c_uint32),
        ("tensors", c.POINTER(TensorSpec)),
        ("timeout_ns", c.c_uint64),
        ("inproc", c.c_void_p),
        ("transport", c.POINTER(Transport)),
        ("memory", c.POINTER(Memory)),
        ("cuda", c.POINTER(CudaOptions)),
        ("nccl", c.POINTER(NcclOptions)),
    ]


class Fault(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("has_failed", c.c_uint32),
        ("rank", c.c_uint32),
        ("peer", c.c_uint32),
        ("instruction", c.c_uint64),
        ("status", c.c_uint32),
        ("reserved", c.c_uint32),
    ]


class PlanOptions(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("placement", c.c_uint32),
        ("num_ranks", c.c_uint32),
        ("num_microbatches", c.c_uint32),
        ("stages_per_rank", c.c_uint32),
        ("num_stages", c.c_uint32),
        ("num_directions", c.c_uint32),
        ("num_threads", c.c_uint32),
        ("rank_of", c.POINTER(c.c_uint32)),
        ("cap_activations", c.POINTER(c.c_uint64)),
        ("num_cap_activations", c.c_size_t),
        ("cap_bytes", c.POINTER(c.c_uint64)),
        ("num_cap_bytes", c.c_size_t),
        ("iterations", c.c_uint64),
        ("time_limit_ns", c.c_uint64),
        ("seed", c.c_uint64),
    ]


class PlanInfo(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("num_ranks", c.c_uint32),
        ("stop", c.c_uint32),
        ("objective", c.c_uint32),
        ("makespan_ns", c.c_uint64),
        ("lower_bound_ns", c.c_uint64),
        ("start_makespan_ns", c.c_uint64),
        ("iterations", c.c_uint64),
        ("gap", c.c_double),
    ]


class PlanPeak(c.Structure):
    _fields_ = [("live", c.c_uint64), ("memory_bytes", c.c_uint64)]


class Spread(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("samples", c.c_uint32),
        ("op_jitter", c.c_double),
        ("expert_imbalance", c.c_double),
        ("seed", c.c_uint64),
    ]


class Sampled(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("reserved", c.c_uint32),
        ("nominal_ns", c.c_uint64),
        ("mean_ns", c.c_uint64),
        ("p95_ns", c.c_uint64),
        ("min_ns", c.c_uint64),
        ("max_ns", c.c_uint64),
        ("held_out_mean_ns", c.c_uint64),
        ("held_out_p95_ns", c.c_uint64),
        ("held_out_min_ns", c.c_uint64),
        ("held_out_max_ns", c.c_uint64),
    ]


STRUCTS: dict[str, type[c.Structure]] = {
    "dualpipe_schedule_options": ScheduleOptions,
    "dualpipe_schedule_info": ScheduleInfo,
    "dualpipe_pass": Pass,
    "dualpipe_op": Op,
    "dualpipe_order": Order,
    "dualpipe_schedule_orders": ScheduleOrders,
    "dualpipe_message": Message,
    "dualpipe_stage_costs": StageCosts,
    "dualpipe_pair_costs": PairCosts,
    "dualpipe_costs": Costs,
    "dualpipe_plan_options": PlanOptions,
    "dualpipe_plan_info": PlanInfo,
    "dualpipe_plan_peak": PlanPeak,
    "dualpipe_spread": Spread,
    "dualpipe_sampled": Sampled,
    "dualpipe_timeline_summary": TimelineSummary,
    "dualpipe_timeline_rank": TimelineRank,
    "dualpipe_span": Span,
    "dualpipe_message_span": MessageSpan,
    "dualpipe_instruction": Instruction,
    "dualpipe_action": Action,
    "dualpipe_action_order": ActionOrder,
    "dualpipe_schedule_verify_options": ScheduleVerifyOptions,
    "dualpipe_verification_info": VerificationInfo,
    "dualpipe_verification_rank": VerificationRank,
    "dualpipe_schedule_finding": ScheduleFinding,
    "dualpipe_verification_trial": VerificationTrial,
    "dualpipe_program_buffer": ProgramBuffer,
    "DLDevice": DLDevice,
    "DLDataType": DLDataType,
    "DLTensor": DLTensor,
    "dualpipe_tensor": Tensor,
    "dualpipe_task_pass": TaskPass,
    "dualpipe_task": Task,
    "dualpipe_tensor_spec": TensorSpec,
    "dualpipe_cuda_info": CudaInfo,
    "dualpipe_cuda_options": CudaOptions,
    "dualpipe_nccl_options": NcclOptions,
    "dualpipe_transfer": Transfer,
    "dualpipe_transport": Transport,
    "dualpipe_memory": Memory,
    "dualpipe_executor_options": ExecutorOptions,
    "dualpipe_fault": Fault,
    **EXPERT_STRUCTS,
    **FRONT_STRUCTS,
}
"""Every struct by its C name."""
