"""What cannot work, found before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.utils import get_model_config, get_model_type

from ..errors import InvalidArgument
from .placement import layers_of
from .weight_grads import check_delayed, ddp_of

_SETTINGS: tuple[tuple[str, Any, str], ...] = (
    (
        "virtual_pipeline_model_parallel_size",
        None,
        "the schedule says which stages a rank has; give the chunks the config that build_model_chunks makes",
    ),
    ("variable_seq_lengths", False, "what crosses the boundaries has one shape, agreed before the step"),
    ("overlap_moe_expert_parallel_comm", False, "it brings its own order of forward and backward"),
    ("ep_overlap_early_attn_memory_release", False, "it belongs to overlap_moe_expert_parallel_comm"),
    ("hybrid_context_parallel", False, "it brings its own order of micro-batches"),
    ("fine_grained_activation_offloading", False, "it offloads in the order of Megatron's own schedules"),
    ("cpu_offloading", False, "Megatron has it without pipeline parallelism only"),
    ("defer_embedding_wgrad_compute", False, "the schedule says when weight gradients are computed"),
    ("cuda_graph_impl", "none", "graphs are captured in the order of Megatron's own schedules"),
    (
        "num_microbatches_with_partial_activation_checkpoints",
        None,
        "it counts micro-batches in flight as 1F1B has them; recompute all or none",
    ),
)
"""Settings of the config, the one value that works, and why."""


def check_arguments(arguments: dict[str, Any]) -> None:
    """Arguments of a call. :class:`~dualpipe.InvalidArgument`."""
    if arguments["adjust_tensor_shapes_fn"] is not None:
        raise InvalidArgument(
            "adjust_tensor_shapes_fn is set, must be None: it gives ranks boundaries of different shapes, and all "
            "boundaries of a schedule here have one"
        )
    if arguments["p2p_communicator"] is not None and arguments["pg_collection"] is None:
        raise InvalidArgument("p2p_communicator is given and pg_collection is not: give both, or pg_collection alone")
    for name in ("num_microbatches", "seq_length", "micro_batch_size"):
        value = arguments[name]
        if not isinstance(value, int) or value < 1:
            raise InvalidArgument(f"{name} is {value!r}, must be an integer of at least 1")


def check_model(chunks: Sequence[Any], on_this_rank: Sequence[int], rank_of: Sequence[int]) -> None:
    """That the chunks are the stages of this rank, and that their settings work. :class:`~dualpipe.InvalidArgument`.

    ``rank_of``: of each stage."""
    stages = len(rank_of)
    if len(chunks) != len(on_this_rank):
        raise InvalidArgument(
            f"model has {len(chunks)} chunks, must have {len(on_this_rank)}, the stages of this rank: see "
            "build_model_chunks"
        )
    _check_settings(get_model_config(chunks[0]), len(chunks))
    ends = rank_of[0], rank_of[-1]
    if ends[0] != ends[1] and ends != (0, max(rank_of)):
        for chunk in chunks:
            if getattr(layers_of(chunk)[-1], "share_embeddings_and_output_weights", False):
                raise InvalidArgument(
                    f"share_embeddings_and_output_weights is True, must be False: the ends of the model are on ranks "
                    f"{ends}, neither one rank nor the first and the last"
                )
    for k, (chunk, stage) in enumerate(zip(chunks, on_this_rank)):
        _check_chunk(f"model[{k}]", chunk, stage, stages)
        check_delayed(chunk)


def _check_settings(config: Any, chunks: int) -> None:
    for name, works, why in _SETTINGS:
        value = getattr(config, name, works)
        if value != works and value is not works:
            raise InvalidArgument(f"config.{name} is {value!r}, must be {works!r}: {why}")
    if config.pipeline_dtype is None:
        raise InvalidArgument("config.pipeline_dtype is None, must be the dtype of the activations between stages")
    if chunks > 1:
        for name in ("mtp_num_layers", "pipeline_model_parallel_layout"):
            if getattr(config, name, None):
                raise InvalidArgument(f"config.{name} is set, must be None: Megatron places it by rank, not by stage")
    for name in ("no_sync_func", "grad_sync_func", "param_sync_func"):
        value = getattr(config, name)
        count = None if value is None else len(value) if isinstance(value, (list, tuple)) else 1
        if count not in (None, chunks):
            raise InvalidArgument(
                f"config.{name} is {count} function(s), must be one for each of {chunks} model chunks"
            )


def _check_chunk(name: str, chunk: Any, stage: int, stages: int) -> None:
    for one in layers_of(chunk):
        kind = type(one).__name__
        if isinstance(one, torch.nn.parallel.DistributedDataParallel):
            why = "it counts on one backward after each forward"
        elif "FSDP" in kind or "FullySharded" in kind:
            why = "it frees weights that the F or the W of another micro-batch still reads"
        else:
            continue
        raise InvalidArgument(f"{name} is a {kind}, must be plain or in Megatron's DistributedDataParallel: {why}")
    ddp = ddp_of(chunk)
    if ddp is not None and getattr(ddp.ddp_config, "use_megatron_fsdp", False):
        raise InvalidArgument(f"ddp_config.use_megatron_fsdp of {name} is True, must be False")
    model_type = getattr(get_model_type(chunk), "name", None)  # Megatron has two enums of that name
    if model_type != "encoder_or_decoder":
        raise InvalidArgument(
            f"model_type of {name} is {model_type}, must be encoder_or_decoder: one tensor goes along"
        )
    module = layers_of(chunk)[-1]
    config = module.config
    hint = "build the chunks with build_model_chunks, or place_chunks in get_model"
    if config.pipeline_model_parallel_size != stages:
        raise InvalidArgument(
            f"{name} was built for {config.pipeline_model_parallel_size} pipeline stages, must be for {stages}: {hint}"
        )
    group = getattr(module, "pp_group", None)
    if group is not None and (group.rank(), group.size()) != (stage, stages):
        raise InvalidArgument(
            f"{name} was built as stage {group.rank()} of {group.size()}, must be {stage} of {stages}: {hint}"
        )
    for attribute, wanted in (("pre_process", stage == 0), ("post_process", stage == stages - 1)):
        value = getattr(module, attribute, wanted)
        if bool(value) != wanted:
            raise InvalidArgument(f"{attribute} of {name} is {value}, must be {wanted} for stage {stage}: {hint}")
    if config.virtual_pipeline_model_parallel_size is not None:
        size = config.virtual_pipeline_model_parallel_size
        raise InvalidArgument(f"virtual_pipeline_model_parallel_size of {name} is {size}, must be None: {hint}")
