"""Megatron's forward-backward function, run by the library's executor."""

from __future__ import annotations

import contextlib
import copy
import itertools
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import schedules
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.utils import get_model_config

from ..errors import Error, InvalidArgument
from ..executor import TIMEOUT_MAX
from ..schedule import OpTuple
from ..timeline import Timeline
from ..torch.engine import Engine
from .placement import OnlyThisRank, tied_weight
from .plan import Plan, ScheduleLike
from .refuse import check_arguments, check_model
from .results import hand_over
from .step import Call, MegatronCompute


class ForwardBackward:
    """What :func:`forward_backward_func` gives; for one thread of each rank, in the same order of calls on all ranks of
    the pipeline."""

    def __init__(self, schedule: ScheduleLike = "dualpipe_v", *, timeout: float = 60.0) -> None:
        self._plan = Plan(schedule)
        if not 0 < timeout <= TIMEOUT_MAX:
            raise InvalidArgument(f"timeout is {timeout}, must be more than 0 and at most {TIMEOUT_MAX:g} seconds")
        self._timeout = timeout
        self._compute = MegatronCompute()
        self._engines: dict[tuple[Any, ...], tuple[Engine, list[OpTuple]]] = {}
        self._checked: weakref.WeakKeyDictionary[Any, set[tuple[int, int]]] = weakref.WeakKeyDictionary()
        self._last: Engine | None = None

    def __call__(
        self,
        *,
        forward_step_func: Any,
        data_iterator: Any,
        model: Any,
        num_microbatches: int,
        seq_length: int,
        micro_batch_size: int,
        decoder_seq_length: int | None = None,
        forward_only: bool = False,
        collect_non_loss_data: bool = False,
        first_val_step: bool | None = None,
        adjust_tensor_shapes_fn: Any = None,
        p2p_communicator: Any = None,
        pg_collection: Any = None,
        force_all_reduce: bool | None = False,
    ) -> list[Any]:
        """One step, or with ``forward_only`` an evaluation. The arguments are those of Megatron's own functions.

        ``model``: the rank's chunks, as :func:`build_model_chunks` makes them, wrapped or not. ``data_iterator``: one
        for each chunk, in a list; or one for all, from which every chunk then gets all items. ``p2p_communicator`` is
        not used. Returns on the last pipeline rank what the loss function gave for each micro-batch, in order, and []
        on all others.

        Raises :class:`~dualpipe.InvalidArgument`, on all ranks of the pipeline and before anything has run, for what
        cannot work; what the forward step or the model raised; :class:`~dualpipe.PeerFailed`,
        :class:`~dualpipe.Timeout` and their like if another rank failed. After a failed step gradients are partial.
        """
        arguments = {
            "num_microbatches": num_microbatches,
            "seq_length": seq_length,
            "micro_batch_size": micro_batch_size,
            "adjust_tensor_shapes_fn": adjust_tensor_shapes_fn,
            "p2p_communicator": p2p_communicator,
            "pg_collection": pg_collection,
        }
        check_arguments(arguments)
        groups = _groups() if pg_collection is None else pg_collection
        rank, ranks = groups.pp.rank(), groups.pp.size()
        where = self._plan.rank_of(ranks)
        schedule = self._plan.schedule(ranks, num_microbatches, forward_only)
        chunks = list(model) if isinstance(model, (list, tuple)) else [model]
        config = get_model_config(chunks[0])
        shapes = schedules.get_tensor_shapes(
            seq_length=seq_length,
            micro_batch_size=micro_batch_size,
            decoder_seq_length=decoder_seq_length,
            config=config,
            tp_group=groups.tp,
            cp_group=groups.cp,
        )
        boundary = config.pipeline_dtype, tuple(shapes[0])
        stages = self._plan.stages_on(rank, ranks)
        device = next((one.device for chunk in chunks for one in chunk.parameters()), torch.device("cpu"))
        self._check(chunks, stages, where, groups.pp, data_iterator)
        key = id(schedule), rank, groups.pp, boundary, device
        if key not in self._engines:
            engine = Engine(
                schedule, rank, self._compute, group=groups.pp, device=device, tensors=[boundary], timeout=self._timeout
            )
            self._engines[key] = engine, schedule.order(rank)
        self._last, order = self._engines[key]
        call = Call(
            config=config,
            chunks=chunks,
            stages=stages,
            num_stages=len(where),
            data_iterators=_iterators(data_iterator, len(chunks)),
            forward_step_func=forward_step_func,
            num_microbatches=num_microbatches,
            forward_only=forward_only,
            collect_non_loss_data=collect_non_loss_data,
            first_val_step=first_val_step,
            cp_size=groups.cp.size(),
            order=order,
            boundary=boundary,
            device=device,
        )
        with _timed(config):
            collected, num_tokens = self._step(self._last, call, where, groups.pp)
            if config.finalize_model_grads_func is not None and not forward_only:
                is_folded = where[0] == where[-1] and len(where) > 1
                config.finalize_model_grads_func(
                    chunks,
                    num_tokens if config.calculate_per_token_loss else None,
                    pg_collection=_without_embedding_groups(groups) if is_folded else groups,
                    force_all_reduce=force_all_reduce,
                )
                if is_folded and rank == where[0]:
                    add_tied_grads(chunks)
        return collected

    def timeline(self) -> Timeline:
        """This rank's timeline of its last step. RuntimeError if there was none."""
        if self._last is None:
            raise RuntimeError("there was no step, or the last one failed")
        return self._last.timeline()

    def close(self) -> None:
        """Frees what steps have left behind; the next call makes it anew. All ranks do it at the same point."""
        self._forget()

    def _step(self, engine: Engine, call: Call, where: Sequence[int], group: Any) -> tuple[list[Any], torch.Tensor]:
        """Runs the step: what it has collected, and its number of tokens, where Megatron looks for them."""
        loss, last = where[-1], group.size() - 1
        try:
            with self._compute.step(call) as step:
                engine.step()
            collected = step.collected()
            if loss != last and group.rank() in (loss, last):
                collected = hand_over(collected, step.num_tokens, loss, last, group, self._timeout)
            return collected, step.num_tokens
        except BaseException:
            self._forget()
            raise

    def _check(
        self, chunks: Sequence[Any], stages: Sequence[int], where: Sequence[int], group: Any, data_iterator: Any
    ) -> None:
        """Looks at chunks that come for the first time. What one rank refuses all refuse, in its words."""
        places = [(stage, len(where)) for stage in stages]
        if len(chunks) == len(places) and all(
            place in self._checked.get(chunk, ()) for chunk, place in zip(chunks, places)
        ):
            return
        refused: str | None = None
        try:
            check_model(chunks, stages, where)
            _iterators(data_iterator, len(chunks))
        except InvalidArgument as error:
            refused = str(error)
        answers: list[Any] = [refused]
        if group.size() > 1:
            answers = [None] * group.size()
            dist.all_gather_object(answers, refused, group=group)
        words = [f"pipeline rank {who}: {answer}" for who, answer in enumerate(answers) if answer is not None]
        if words:
            raise InvalidArgument("; ".join(words))
        for chunk, place in zip(chunks, places):
            self._checked.setdefault(chunk, set()).add(place)

    def _forget(self) -> None:
        engines, self._engines, self._last = list(self._engines.values()), {}, None
        for engine, _ in engines:
            with contextlib.suppress(Error):
                engine.close()


def forward_backward_func(schedule: ScheduleLike = "dualpipe_v", *, timeout: float = 60.0) -> ForwardBackward:
    """A function to call where Megatron has ``get_forward_backward_func()``'s: same keyword arguments, same result.

    ``schedule``: ``"dualpipe_v"``, two stages on each pipeline rank, for at least 2 * ranks - 1 micro-batches;
    ``"1f1b"``, one stage on each; or a :class:`dualpipe.Schedule` of one direction, for its ranks and its micro-batches.
    ``timeout``: seconds that a single wait for a peer may last, at most a day.

    Raises :class:`~dualpipe.InvalidArgument` for a schedule with two directions: Megatron keeps one copy of each
    parameter.
    """
    return ForwardBackward(schedule, timeout=timeout)


def add_tied_grads(chunks: Sequence[Any]) -> None:
    """Gives both copies of a tied embedding, on the rank of a V that has them, the sum of their gradients.

    The function does it after ``config.finalize_model_grads_func``, in place of Megatron's all-reduce between the first
    and the last rank. To be called, once for each step, only by who finalises gradients without that. Chunks without
    tied embeddings are left alone.
    """
    first, last = tied_weight(chunks[0]), tied_weight(chunks[-1])
    if first is None or last is None or first is last:
        return
    name = "main_grad" if getattr(first, "main_grad", None) is not None else "grad"
    grads = [one for one in (getattr(first, name), getattr(last, name)) if one is not None]
    if not grads:
        return
    with torch.no_grad():
        total = grads[0] if len(grads) == 1 else grads[0] + grads[1]
        for weight in (first, last):
            if getattr(weight, name) is None:
                setattr(weight, name, total.clone())
            else:
                getattr(weight, name).copy_(total)


@contextlib.contextmanager
def _timed(config: Any) -> Iterator[None]:
    """Megatron's timer of a step; if that fails, those that run within it are stopped too."""
    timers = config.timers
    if timers is None:
        yield
        return
    timers("forward-backward", log_level=1).start(barrier=config.barrier_with_L1_time)
    try:
        yield
    except BaseException:
        for name in ("forward-compute", "backward-compute"):
            timer = timers(name, log_level=2)
            if getattr(timer, "_started", False):
                timer.stop()
        raise
    finally:
        timers("forward-backward").stop()


def _iterators(data_iterator: Any, chunks: int) -> Sequence[Any]:
    if isinstance(data_iterator, (list, tuple)):
        if len(data_iterator) != chunks:
            raise InvalidArgument(
                f"data_iterator has {len(data_iterator)} iterators, must have {chunks}, one per chunk"
            )
        return data_iterator
    if data_iterator is None or chunks == 1:
        return [data_iterator] * chunks
    return itertools.tee(data_iterator, chunks)


def _groups() -> Any:
    """Megatron's process groups, as its own schedules take them."""
    groups = ProcessGroupCollection()
    groups.tp = parallel_state.get_tensor_model_parallel_group()
    groups.pp = parallel_state.get_pipeline_model_parallel_group()
    groups.embd = parallel_state.get_embedding_group(check_initialized=False)
    groups.pos_embd = parallel_state.get_position_embedding_group(check_initialized=False)
    groups.cp = parallel_state.get_context_parallel_group()
    groups.dp_cp = parallel_state.get_data_parallel_group(with_context_parallel=True, partial_data_parallel=False)
    return groups


def _without_embedding_groups(groups: Any) -> Any:
    """For a V: both ends of the model are on one rank, so there is no embedding gradient to reduce between ranks."""
    own = copy.copy(groups)
    own.embd = own.pos_embd = OnlyThisRank()
    return own
