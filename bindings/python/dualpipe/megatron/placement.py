"""Megatron's model chunks as the stages of a schedule.

Megatron's own layouts cannot put the loss on the rank that has the embedding, as a V does. So a chunk is built as a
stage of a plain pipeline without virtual stages that has as many ranks as the model has stages: its own copy of the
config says so, and so does its ``pg_collection.pp``, which gives a stage where Megatron looks for a rank.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import inspect
from collections.abc import Iterator
from typing import Any, Callable

import torch
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.utils import get_attr_wrapped_model

from ..errors import InvalidArgument
from .plan import Plan, ScheduleLike


class StageGroup:
    """Stands for the pipeline's process group in a chunk: its rank is the chunk's stage. There is nobody to talk to."""

    def __init__(self, stage: int, stages: int) -> None:
        self._stage, self._stages = stage, stages

    def rank(self) -> int:
        """The stage, 0 to stages - 1."""
        return self._stage

    def size(self) -> int:
        """Stages of the model."""
        return self._stages


class OnlyThisRank:
    """Stands for a process group with one rank: Megatron then has nothing to reduce."""

    def rank(self) -> int:
        """0."""
        return 0

    def size(self) -> int:
        """1."""
        return 1


def build_model_chunks(
    model_provider_func: Callable[..., Any],
    config: Any,
    schedule: ScheduleLike = "dualpipe_v",
    *,
    pg_collection: Any = None,
) -> list[torch.nn.Module]:
    """This pipeline rank's model chunks, one for each of its stages: two for ``"dualpipe_v"``.

    ``model_provider_func(pre_process=, post_process=, vp_stage=None, config=, pg_collection=)`` gives a chunk, as in
    Megatron; it must build it from the config and pass on the ``pg_collection`` that it is given. Arguments that its
    signature does not have are left out. ``config``: a TransformerConfig; each chunk gets a copy in which
    ``pipeline_model_parallel_size`` is the number of stages, so ``num_layers`` must be divisible by that, and
    ``num_layers_in_first_pipeline_stage`` and the like count for stages. ``pg_collection``: Megatron's process groups,
    by default those of ``parallel_state``, which must be initialised.

    Tied embeddings: where the first and the last stage are on one rank, each has its own copy of the weight, equal at
    first, marked as Megatron marks them; :func:`forward_backward_func` keeps their gradients equal. Wrap the chunks as
    usual (Float16Module, DistributedDataParallel).

    Raises :class:`~dualpipe.InvalidArgument`, before anything is built, for what cannot be placed.
    """
    provide = place_chunks(model_provider_func, schedule, config=config)
    groups = ProcessGroupCollection.use_mpu_process_groups() if pg_collection is None else pg_collection
    stages = Plan(schedule).stages_on(groups.pp.rank(), groups.pp.size())
    return [provide(vp_stage=k, pg_collection=groups) for k in range(len(stages))]


def place_chunks(
    model_provider_func: Callable[..., Any], schedule: ScheduleLike = "dualpipe_v", *, config: Any = None
) -> Callable[..., Any]:
    """``model_provider_func`` for Megatron's ``get_model`` and ``pretrain``, with virtual pipeline size 2 for a V.

    What it gives is called as ``(pre_process, post_process, vp_stage, config, pg_collection)``, once for each chunk, in
    order; all but ``vp_stage`` (None is 0) are replaced by what belongs to the stage. ``config``: a TransformerConfig,
    or a function that makes one, for callers that pass none. The rest is as in :func:`build_model_chunks`.
    """
    plan = Plan(schedule)
    embeddings: dict[int, Any] = {}

    def provide(
        pre_process: bool = True,
        post_process: bool = True,
        vp_stage: int | None = None,
        config: Any = None,
        pg_collection: Any = None,
    ) -> Any:
        wanted = config if config is not None else default_config() if callable(default_config) else default_config
        if wanted is None:
            raise InvalidArgument("config is None, must be given to the call or to place_chunks")
        groups = ProcessGroupCollection.use_mpu_process_groups() if pg_collection is None else pg_collection
        where = plan.rank_of(groups.pp.size())
        on_this_rank = plan.stages_on(groups.pp.rank(), groups.pp.size())
        k = 0 if vp_stage is None else vp_stage
        if k >= len(on_this_rank):
            raise InvalidArgument(f"vp_stage is {k}, must be less than {len(on_this_rank)}, the stages on a rank")
        stage, stages = on_this_rank[k], len(where)
        is_folded = where[0] == where[-1] and stages > 1
        arguments = {
            "pre_process": stage == 0,
            "post_process": stage == stages - 1,
            "vp_stage": None,
            "config": stage_config(wanted, stages, len(on_this_rank)),
            "pg_collection": _stage_groups(groups, stage, stages, is_folded),
        }
        with as_stage(None, stage, stages):
            chunk = model_provider_func(**_accepted(model_provider_func, arguments))
        if is_folded and stage == 0:
            embeddings[0] = tied_weight(chunk)
        if is_folded and stage == stages - 1 and embeddings.get(0) is not None:
            weight = tied_weight(chunk)
            if weight is not None and weight is not embeddings[0]:
                with torch.no_grad():
                    weight.copy_(embeddings[0])
        return chunk

    default_config = config
    return provide


def stage_config(config: Any, stages: int, chunks: int) -> Any:
    """A copy of ``config`` for chunks that are stages of a plain pipeline of ``stages`` ranks."""
    if getattr(config, "pipeline_model_parallel_layout", None) is not None and chunks > 1:
        raise InvalidArgument(
            "config.pipeline_model_parallel_layout is set, must be None: a layout of Megatron's cannot say where the "
            "stages of this schedule are (it wants the loss on the last rank)"
        )
    if getattr(config, "mtp_num_layers", None) and chunks > 1:
        raise InvalidArgument(
            "config.mtp_num_layers is set, must be None: Megatron places multi-token prediction by pipeline rank, not by "
            "stage"
        )
    uneven = ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage")
    accounted = ("account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split")
    is_even = all(getattr(config, name, None) is None for name in uneven)
    layers = config.num_layers + sum(bool(getattr(config, name, False)) for name in accounted)
    if is_even and layers % stages:
        raise InvalidArgument(f"config.num_layers is {config.num_layers}, must be divisible by {stages}, the stages")
    own = copy.copy(config)
    own.pipeline_model_parallel_size = stages
    own.virtual_pipeline_model_parallel_size = None
    if chunks > 1 and importlib.util.find_spec("transformer_engine") is not None:
        # After __post_init__, which allows it with its own MoE overlap only. It makes TE's linears put off their W.
        own.delay_wgrad_compute = True
    return own


def tied_weight(chunk: Any) -> Any:
    """The weight that a chunk with the embedding, or with the output layer, shares with the other; None if untied."""
    try:
        module = get_attr_wrapped_model(chunk, "share_embeddings_and_output_weights", return_model_obj=True)
    except RuntimeError:
        return None
    return module.shared_embedding_or_output_weight() if module.share_embeddings_and_output_weights else None


def layers_of(chunk: Any) -> list[Any]:
    """A chunk's wrappers, from the outside, and at the end its model."""
    found = []
    while chunk is not None:
        found.append(chunk)
        chunk = getattr(chunk, "module", None)
    return found


@contextlib.contextmanager
def as_stage(chunk: Any, stage: int, stages: int) -> Iterator[None]:
    """Has Megatron's ``parallel_state`` say, to what runs inside, that this is rank ``stage`` of a plain pipeline of
    ``stages`` ranks: model providers and forward steps ask there whether they have the first or the last stage."""
    before = parallel_state.get_virtual_pipeline_model_parallel_world_size()
    before_rank = parallel_state._MPU_PIPELINE_MODEL_PARALLEL_RANK
    before_size = parallel_state._MPU_PIPELINE_MODEL_PARALLEL_WORLD_SIZE
    told = [(one, one.vp_stage) for one in layers_of(chunk) if getattr(one, "vp_stage", None) is not None]
    parallel_state.set_virtual_pipeline_model_parallel_world_size(None)
    parallel_state.set_pipeline_model_parallel_rank(stage)
    parallel_state.set_pipeline_model_parallel_world_size(stages)
    for one, _ in told:  # get_model has numbered them
        one.vp_stage = None
    try:
        yield
    finally:
        parallel_state.set_virtual_pipeline_model_parallel_world_size(before)
        parallel_state.set_pipeline_model_parallel_rank(before_rank)
        parallel_state.set_pipeline_model_parallel_world_size(before_size)
        for one, vp_stage in told:
            one.vp_stage = vp_stage


def _stage_groups(groups: Any, stage: int, stages: int, is_folded: bool) -> Any:
    own = copy.copy(groups)
    own.pp = StageGroup(stage, stages)
    if is_folded:
        own.embd = None  # both copies of a tied weight are on this rank
    return own


def _accepted(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Those arguments that the function takes. :class:`~dualpipe.InvalidArgument` if it cannot be told its stage."""
    parameters = inspect.signature(function).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return arguments
    missing = [name for name in ("pre_process", "post_process", "config", "pg_collection") if name not in parameters]
    if missing:
        raise InvalidArgument(
            f"model_provider_func does not take {', '.join(missing)}: a chunk is told by them which stage it is"
        )
    return {name: value for name, value in arguments.items() if name in parameters}
