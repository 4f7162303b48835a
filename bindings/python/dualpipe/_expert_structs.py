"""The structs of expert balancing in the C API, field by field as in ``include/dualpipe/*.h``."""

from __future__ import annotations

import ctypes as c


class Cluster(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("num_gpus", c.c_uint32),
        ("num_slots", c.c_uint32),
        ("num_nodes", c.c_uint32),
        ("slots_per_gpu", c.c_void_p),
        ("node_of_gpu", c.c_void_p),
        ("is_alive", c.c_void_p),
    ]
    keep_alive: object = None
    """What the pointers point into."""


class Goal(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("num_layers", c.c_uint32),
        ("num_experts", c.c_uint32),
        ("num_groups", c.c_uint32),
        ("group_rule", c.c_uint32),
        ("split", c.c_uint32),
        ("min_gpus", c.c_uint32),
        ("min_nodes", c.c_uint32),
        ("effort", c.c_uint32),
        ("reserved", c.c_uint32),
        ("price", c.c_double),
    ]


class BalanceOptions(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("num_layers", c.c_uint32),
        ("num_experts", c.c_uint32),
        ("num_slots", c.c_uint32),
        ("num_groups", c.c_uint32),
        ("num_nodes", c.c_uint32),
        ("num_gpus", c.c_uint32),
        ("num_threads", c.c_uint32),
    ]


class LayerBalance(c.Structure):
    _fields_ = [
        ("imbalance", c.c_double),
        ("lower_bound", c.c_double),
        ("joint_bound", c.c_double),
        ("equal_bound", c.c_double),
        ("node_bound", c.c_double),
        ("away", c.c_double),
    ]


class ExpertPlanInfo(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("num_layers", c.c_uint32),
        ("num_experts", c.c_uint32),
        ("num_slots", c.c_uint32),
        ("num_gpus", c.c_uint32),
        ("num_nodes", c.c_uint32),
        ("num_groups", c.c_uint32),
        ("split", c.c_uint32),
    ]


class CurrentPlacement(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("budget", c.c_uint32),
        ("slot_to_expert", c.c_void_p),
        ("num_slots", c.c_size_t),
        ("max_moves", c.c_uint64),
        ("max_price", c.c_double),
        ("imbalance", c.c_double),
        ("same_node_price", c.c_double),
        ("other_node_price", c.c_double),
    ]


class MoveCount(c.Structure):
    _fields_ = [
        ("moves", c.c_uint32),
        ("same_node", c.c_uint32),
        ("other_node", c.c_uint32),
        ("lost", c.c_uint32),
        ("same_gpu", c.c_uint32),
    ]


class MovePoint(c.Structure):
    _fields_ = [("layer", c.c_uint32), ("moves", c.c_uint32), ("imbalance", c.c_double)]


class UnverifiedPlacement(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("reserved", c.c_uint32),
        ("slot_to_expert", c.c_void_p),
        ("num_slots", c.c_size_t),
        ("shares", c.c_void_p),
        ("expert_to_slots", c.c_void_p),
        ("num_expert_to_slots", c.c_size_t),
        ("replica_counts", c.c_void_p),
        ("loads", c.c_void_p),
        ("num_experts", c.c_size_t),
        ("imbalance_max", c.c_double),
    ]


class Finding(c.Structure):
    _fields_ = [
        ("kind", c.c_uint32),
        ("severity", c.c_uint32),
        ("layer", c.c_uint32),
        ("expert", c.c_uint32),
        ("slot", c.c_uint32),
        ("gpu", c.c_uint32),
        ("group", c.c_uint32),
        ("entry", c.c_uint32),
        ("is_avoidable", c.c_uint32),
        ("reserved", c.c_uint32),
        ("value", c.c_int64),
        ("wanted", c.c_int64),
        ("amount", c.c_double),
        ("limit", c.c_double),
    ]


class Verdict(c.Structure):
    _fields_ = [
        ("num_errors", c.c_uint64),
        ("num_warnings", c.c_uint64),
        ("counts", c.c_uint64 * 16),
    ]


class ExpertTraffic(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("num_layers", c.c_uint32),
        ("num_experts", c.c_uint32),
        ("top_k", c.c_uint32),
        ("hidden", c.c_uint32),
        ("tokens_per_rank", c.c_uint32),
        ("expert_bytes", c.c_uint64),
    ]


class ExpertMemory(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("slots_max", c.c_uint32),
        ("weight_bytes", c.c_uint64),
        ("rows_max", c.c_uint64),
        ("low_latency_bytes", c.c_uint64),
        ("low_latency_bytes_without_redundancy", c.c_uint64),
    ]


class HeatMapPanel(c.Structure):
    _fields_ = [
        ("title", c.c_char_p),
        ("cluster", c.POINTER(Cluster)),
        ("loads", c.c_void_p),
        ("num_loads", c.c_size_t),
    ]


class ReplayOptions(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("window", c.c_uint32),
        ("every", c.c_uint32),
        ("with_bounds", c.c_uint32),
        ("num_threads", c.c_uint32),
        ("reserved", c.c_uint32),
        ("initial", c.c_void_p),
        ("num_slots", c.c_size_t),
        ("expert_bytes", c.c_uint64),
    ]


class PolicyPast(c.Structure):
    _fields_ = [
        ("loads", c.POINTER(c.c_float)),
        ("slot_to_expert", c.POINTER(c.c_int64)),
        ("shares", c.POINTER(c.c_double)),
        ("num_slots", c.c_size_t),
        ("num_steps", c.c_uint32),
        ("window", c.c_uint32),
        ("num_layers", c.c_uint32),
        ("num_experts", c.c_uint32),
    ]


class Policy(c.Structure):
    _fields_ = [
        ("kind", c.c_uint32),
        ("budget", c.c_uint32),
        ("name", c.c_char_p),
        ("plan", c.c_void_p),
        ("user_data", c.c_void_p),
        ("max_moves", c.c_uint64),
        ("max_price", c.c_double),
        ("imbalance", c.c_double),
        ("same_node_price", c.c_double),
        ("other_node_price", c.c_double),
    ]


class ReplayMoves(c.Structure):
    _fields_ = [
        ("same_gpu", c.c_uint64),
        ("same_node", c.c_uint64),
        ("other_node", c.c_uint64),
        ("same_node_bytes", c.c_uint64),
        ("other_node_bytes", c.c_uint64),
    ]


class ReplayRun(c.Structure):
    _fields_ = [
        ("imbalance", c.c_double),
        ("worst_imbalance", c.c_double),
        ("lower_bound", c.c_double),
        ("away", c.c_double),
        ("num_windows", c.c_uint64),
        ("num_new", c.c_uint64),
        ("moves", ReplayMoves),
    ]


class ReplayWindow(c.Structure):
    _fields_ = [
        ("step", c.c_uint32),
        ("num_steps", c.c_uint32),
        ("is_new", c.c_uint32),
        ("reserved", c.c_uint32),
        ("imbalance", c.c_double),
        ("worst_imbalance", c.c_double),
        ("lower_bound", c.c_double),
        ("away", c.c_double),
        ("moves", ReplayMoves),
    ]


class ReplayLayer(c.Structure):
    _fields_ = [
        ("imbalance", c.c_double),
        ("lower_bound", c.c_double),
    ]


class RouterInfo(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("num_layers", c.c_uint32),
        ("num_experts", c.c_uint32),
        ("num_slots", c.c_uint32),
        ("num_gpus", c.c_uint32),
        ("num_nodes", c.c_uint32),
    ]


class RouteOptions(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("tile", c.c_uint32),
        ("gpu_price", c.c_uint32),
        ("node_price", c.c_uint32),
        ("ignore_senders", c.c_uint32),
    ]


class Routing(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("num_bottleneck_gpus", c.c_uint32),
        ("heaviest", c.c_uint64),
        ("bound", c.c_double),
        ("bottleneck_load", c.c_uint64),
        ("tokens_on_gpu", c.c_uint64),
        ("tokens_on_node", c.c_uint64),
    ]


class ExpertTransferOptions(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("sends_per_gpu", c.c_uint32),
        ("receives_per_gpu", c.c_uint32),
        ("copies_per_node_link", c.c_uint32),
        ("staging_per_gpu", c.c_uint32),
        ("num_tensors", c.c_uint32),
        ("num_gains", c.c_uint32),
        ("reserved", c.c_uint32),
        ("tensor_bytes", c.c_void_p),
        ("gains", c.c_void_p),
    ]


class ExpertTransfersInfo(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("num_layers", c.c_uint32),
        ("num_gpus", c.c_uint32),
        ("num_slots", c.c_uint32),
        ("num_rounds", c.c_uint64),
        ("least_rounds", c.c_uint64),
        ("num_copies", c.c_uint64),
        ("num_lost", c.c_uint64),
        ("num_staging", c.c_uint64),
        ("bytes_per_expert", c.c_uint64),
        ("same_gpu_bytes", c.c_uint64),
        ("same_node_bytes", c.c_uint64),
        ("other_node_bytes", c.c_uint64),
    ]


class ExpertLayerTransfers(c.Structure):
    _fields_ = [
        ("layer", c.c_uint32),
        ("num_rounds", c.c_uint32),
        ("least_rounds", c.c_uint32),
        ("num_copies", c.c_uint32),
        ("same_gpu", c.c_uint32),
        ("same_node", c.c_uint32),
        ("other_node", c.c_uint32),
        ("num_lost", c.c_uint32),
        ("first_copy", c.c_uint64),
    ]


class ExpertCopy(c.Structure):
    _fields_ = [
        ("layer", c.c_uint32),
        ("round", c.c_uint32),
        ("expert", c.c_uint32),
        ("from_gpu", c.c_uint32),
        ("from", c.c_uint32),
        ("to_gpu", c.c_uint32),
        ("to", c.c_uint32),
        ("link", c.c_uint32),
    ]


class LostExpert(c.Structure):
    _fields_ = [
        ("layer", c.c_uint32),
        ("expert", c.c_uint32),
        ("slot", c.c_uint32),
    ]


class LoadMonitorOptions(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("num_layers", c.c_uint32),
        ("num_experts", c.c_uint32),
        ("window", c.c_uint32),
        ("num_ranks", c.c_uint32),
        ("reserved", c.c_uint32),
        ("half_life", c.c_double),
    ]


class LoadMonitorInfo(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("num_layers", c.c_uint32),
        ("num_experts", c.c_uint32),
        ("window", c.c_uint32),
        ("num_ranks", c.c_uint32),
        ("num_steps", c.c_uint32),
        ("num_complete_steps", c.c_uint32),
        ("num_counters", c.c_uint32),
        ("newest_step", c.c_uint64),
        ("half_life", c.c_double),
    ]


class LoadHistoryOptions(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("num_layers", c.c_uint32),
        ("num_experts", c.c_uint32),
        ("num_ranks", c.c_uint32),
        ("num_groups", c.c_uint32),
        ("num_nodes", c.c_uint32),
        ("model", c.c_char_p),
    ]


class LoadHistoryInfo(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("num_layers", c.c_uint32),
        ("num_experts", c.c_uint32),
        ("num_ranks", c.c_uint32),
        ("num_groups", c.c_uint32),
        ("num_nodes", c.c_uint32),
        ("num_steps", c.c_uint64),
    ]


class RebalanceProposal(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("num_layers", c.c_uint32),
        ("num_experts", c.c_uint32),
        ("plan_saw_counts", c.c_uint32),
        ("counts", c.c_void_p),
        ("num_counts", c.c_size_t),
        ("current", c.c_void_p),
        ("current_shares", c.c_void_p),
        ("planned", c.c_void_p),
        ("planned_shares", c.c_void_p),
        ("num_slots", c.c_size_t),
        ("horizon", c.c_uint64),
        ("expert_seconds", c.c_double),
        ("price_seconds", c.c_double),
        ("bytes_per_expert", c.c_double),
        ("bytes_per_second", c.c_double),
        ("standard_errors", c.c_double),
    ]


class RebalanceDecision(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("rebalance", c.c_uint32),
        ("reason", c.c_uint32),
        ("reserved", c.c_uint32),
        ("moved_replicas", c.c_uint64),
        ("current_imbalance", c.c_double),
        ("planned_imbalance", c.c_double),
        ("noise_floor", c.c_double),
        ("gain_seconds", c.c_double),
        ("gain_error_seconds", c.c_double),
        ("cost_seconds", c.c_double),
    ]


EXPERT_STRUCTS: dict[str, type[c.Structure]] = {
    "dualpipe_cluster": Cluster,
    "dualpipe_goal": Goal,
    "dualpipe_balance_options": BalanceOptions,
    "dualpipe_layer_balance": LayerBalance,
    "dualpipe_expert_plan_info": ExpertPlanInfo,
    "dualpipe_current_placement": CurrentPlacement,
    "dualpipe_move_count": MoveCount,
    "dualpipe_move_point": MovePoint,
    "dualpipe_unverified_placement": UnverifiedPlacement,
    "dualpipe_finding": Finding,
    "dualpipe_verdict": Verdict,
    "dualpipe_expert_traffic": ExpertTraffic,
    "dualpipe_expert_memory": ExpertMemory,
    "dualpipe_heat_map_panel": HeatMapPanel,
    "dualpipe_replay_options": ReplayOptions,
    "dualpipe_policy_past": PolicyPast,
    "dualpipe_policy": Policy,
    "dualpipe_replay_moves": ReplayMoves,
    "dualpipe_replay_run": ReplayRun,
    "dualpipe_replay_window": ReplayWindow,
    "dualpipe_replay_layer": ReplayLayer,
    "dualpipe_router_info": RouterInfo,
    "dualpipe_route_options": RouteOptions,
    "dualpipe_routing": Routing,
    "dualpipe_expert_transfer_options": ExpertTransferOptions,
    "dualpipe_expert_transfers_info": ExpertTransfersInfo,
    "dualpipe_expert_layer_transfers": ExpertLayerTransfers,
    "dualpipe_expert_copy": ExpertCopy,
    "dualpipe_lost_expert": LostExpert,
    "dualpipe_load_monitor_options": LoadMonitorOptions,
    "dualpipe_load_monitor_info": LoadMonitorInfo,
    "dualpipe_load_history_options": LoadHistoryOptions,
    "dualpipe_load_history_info": LoadHistoryInfo,
    "dualpipe_rebalance_proposal": RebalanceProposal,
    "dualpipe_rebalance_decision": RebalanceDecision,
}
"""Every one of them by its C name."""
