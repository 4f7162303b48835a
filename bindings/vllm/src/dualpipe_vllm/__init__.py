"""vLLM's expert load balancer (EPLB) by dualpipe: a ``vllm.general_plugins`` plug-in.

vLLM loads :func:`activate` in the engine's and every worker's process. It puts :func:`policy` in the place of vLLM's
only EPLB policy, ``default``, since vLLM has no list that a plug-in could add to, and its asynchronous mode takes no
other name. Settings: :func:`dualpipe.serving.settings`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import logging
from typing import Any

from dualpipe import InvalidArgument, serving

__all__ = ["activate", "policy"]

logger = logging.getLogger("vllm.plugins.dualpipe")
"""Below vLLM's own logger, so that its lines come out like vLLM's."""

POLICIES_MODULE = "vllm.distributed.eplb.policy"
PARAMETERS = ["weight", "num_replicas", "num_groups", "num_nodes", "num_ranks", "old_global_expert_indices"]


def activate() -> None:
    """Has vLLM's EPLB place experts by dualpipe, from now on in this process. The second time it does nothing.

    A vLLM whose EPLB is not as this package knows it stays as it is: a warning says what was expected. Raises
    :class:`dualpipe.InvalidArgument` if a setting names what this version does not have.
    """
    chosen = serving.settings()
    try:
        module: Any = importlib.import_module(POLICIES_MODULE)
        policies = module.EPLB_POLICIES
        replaced = policies["default"]
        if getattr(replaced, "dualpipe_settings", None) == chosen:
            return
        replaced = getattr(replaced, "dualpipe_replaced", replaced)
        unexpected = _unexpected(module.AbstractEplbPolicy, replaced)
    except Exception as error:  # noqa: BLE001, whatever another version does instead, the engine is to start
        unexpected = f"{type(error).__name__}: {error}"
    if unexpected:
        logger.warning(
            "dualpipe does not balance the experts, vLLM's own policy does: vLLM %s does not have "
            "%s.EPLB_POLICIES['default'] with rebalance_experts(%s) -> torch.Tensor (%s)",
            _vllm_version(),
            POLICIES_MODULE,
            ", ".join(PARAMETERS),
            unexpected,
        )
        return
    policies["default"] = policy(replaced, chosen)
    logger.info("EPLB's default policy is dualpipe's: policy %s, topology %s", chosen.policy, chosen.topology)


def policy(replaced: type, chosen: serving.Settings) -> type:
    """A class like ``replaced``, one of vLLM's EPLB policies, whose ``rebalance_experts`` is dualpipe's by the settings
    ``chosen``.

    It derives from ``replaced``, so whatever else vLLM asks of a policy is still there.
    """

    class DualpipeEplbPolicy(replaced):  # type: ignore[misc]
        """vLLM's interface, dualpipe's placement."""

        dualpipe_settings = chosen
        dualpipe_replaced = replaced

        @classmethod
        def rebalance_experts(
            cls,
            weight: Any,
            num_replicas: int,
            num_groups: int,
            num_nodes: int,
            num_ranks: int,
            old_global_expert_indices: Any = None,
        ) -> Any:
            """Tensor [layers, num_replicas], int64, on the CPU: the expert in each slot.

            ``weight``: tensor [layers, experts], loads, on any device. ``old_global_expert_indices``: tensor [layers,
            num_replicas], the expert in each slot now, -1 where there is none. Safe on any thread. Raises
            :class:`dualpipe.InvalidArgument`.
            """
            return _rebalance(chosen, weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices)

    return DualpipeEplbPolicy


def _rebalance(
    chosen: serving.Settings,
    weight: Any,
    num_replicas: int,
    num_groups: int,
    num_nodes: int,
    num_ranks: int,
    old_global_expert_indices: Any,
) -> Any:
    import torch

    for name, value, tensor_or_none in (
        ("weight", weight, False),
        ("old_global_expert_indices", old_global_expert_indices, True),
    ):
        if not isinstance(value, torch.Tensor) and not (tensor_or_none and value is None):
            raise TypeError(f"{name} is {type(value).__name__}, must be a torch.Tensor")
    if num_ranks < 1 or num_replicas % num_ranks:
        raise InvalidArgument(f"num_replicas is {num_replicas}, must be a multiple of num_ranks, {num_ranks}")
    loads = weight.detach().float().cpu().numpy()
    current = None if old_global_expert_indices is None else old_global_expert_indices.cpu().numpy()
    sizes = serving.Sizes(num_replicas, num_groups, num_nodes, num_ranks)
    placement = serving.place(loads, sizes, chosen, current)
    serving.log_placement(logger, placement, num_ranks, current)
    return torch.from_numpy(placement.phy2log)


def _unexpected(interface: Any, default: Any) -> str:
    """In which way vLLM's policies are not what :func:`policy` derives from; empty if in none."""
    for kind in (interface, default):
        signature = inspect.signature(kind.rebalance_experts)
        if list(signature.parameters) != PARAMETERS:
            return f"{kind.__name__}.rebalance_experts has the parameters {', '.join(signature.parameters)}"
        returned = signature.return_annotation
        if getattr(returned, "__name__", returned) not in ("Tensor", "torch.Tensor"):
            return f"{kind.__name__}.rebalance_experts returns {returned}"
    more = sorted(set(interface.__abstractmethods__) - {"rebalance_experts"})
    return f"{interface.__name__} also asks for {', '.join(more)}" if more else ""


def _vllm_version() -> str:
    try:
        return importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return "(of no known version)"
