"""SGLang's expert load balancer (EPLB) by dualpipe: a ``sglang.srt.plugins`` plug-in.

SGLang loads :func:`activate` in each of its processes. It hooks the two functions by which SGLang chooses and runs an
EPLB algorithm, so that ``--eplb-algorithm dualpipe`` is one more; all others stay SGLang's. See :class:`Algorithm` for
the names. Settings: :func:`dualpipe.serving.settings`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import logging
import sys
from dataclasses import dataclass
from typing import Any

from dualpipe import InvalidArgument, serving

__all__ = ["Algorithm", "activate", "current_maps"]

logger = logging.getLogger("dualpipe_sglang")

ALGORITHMS_MODULE = "sglang.srt.eplb.eplb_algorithms"
PARAMETERS = {
    "compute_algorithm": ["raw_algorithm", "num_groups", "num_nodes"],
    "rebalance_experts": [
        "tokens_per_expert",
        "num_physical_experts",
        "num_local_physical_experts",
        "num_groups",
        "num_nodes",
        "algorithm",
    ],
}

current_maps = serving.CurrentMaps()
"""What this process gave out last, for an SGLang that does not say where the experts are."""


def activate() -> None:
    """Makes ``--eplb-algorithm dualpipe`` known to SGLang in this process. The second time it does nothing.

    An SGLang whose EPLB is not as this package knows it stays as it is: a warning says what was expected. Raises
    :class:`dualpipe.InvalidArgument` if a setting names what this version does not have; SGLang logs it, and whoever
    asks for the algorithm is told again.
    """
    try:
        algorithms = importlib.import_module(ALGORITHMS_MODULE)
        registry: Any = importlib.import_module("sglang.srt.plugins.hook_registry")
        unexpected = _unexpected(algorithms)
        around = registry.HookType.AROUND
        register = registry.HookRegistry.register
    except Exception as error:  # noqa: BLE001, whatever another version does instead, the engine is to start
        unexpected = f"{type(error).__name__}: {error}"
    if unexpected:
        logger.warning(
            "--eplb-algorithm dualpipe is not there: SGLang %s does not have HookRegistry and %s with %s (%s)",
            _sglang_version(),
            ALGORITHMS_MODULE,
            " and ".join(f"{name}({', '.join(parameters)})" for name, parameters in PARAMETERS.items()),
            unexpected,
        )
        return
    for name, hook in (("compute_algorithm", _compute_algorithm), ("rebalance_experts", _rebalance_experts)):
        target = f"{ALGORITHMS_MODULE}.{name}"
        hooks = getattr(registry.HookRegistry, "_hooks", {}).get(target, ())
        if not any(hook in entry for entry in hooks):
            register(target, hook, around)
    serving.settings()


@dataclass(frozen=True)
class Algorithm:
    """What stands where SGLang has a member of its ``EplbAlgorithm``.

    Its names are ``dualpipe``, ``dualpipe_POLICY``, ``dualpipe_TOPOLOGY`` and ``dualpipe_POLICY_TOPOLOGY``, by
    :data:`dualpipe.serving.POLICIES` and :data:`~dualpipe.serving.TOPOLOGIES`; what a name does not say, the
    environment does.
    """

    settings: serving.Settings

    @staticmethod
    def named(raw_algorithm: str) -> Algorithm | None:
        """The algorithm of this name; None if it is not one of dualpipe's. Raises :class:`dualpipe.InvalidArgument`."""
        words = raw_algorithm.replace("-", "_").split("_")
        if words[0] != "dualpipe":
            return None
        chosen = serving.settings()
        topology = chosen.topology
        if words[-1] in serving.TOPOLOGIES:
            topology = words.pop()
        named = serving.checked("_".join(words[1:]) or chosen.policy, topology, names=("eplb_algorithm",) * 2)
        return Algorithm(chosen._replace(policy=named.policy, topology=named.topology))


def _compute_algorithm(original: Any, raw_algorithm: str, *args: Any, **kwargs: Any) -> Any:
    """Around SGLang's function of this name: an :class:`Algorithm` for our names, SGLang's answer for the others."""
    return Algorithm.named(raw_algorithm) or original(raw_algorithm, *args, **kwargs)


def _rebalance_experts(original: Any, *args: Any, **kwargs: Any) -> Any:
    """Around SGLang's function of this name: (phy2log [layers, slots], log2phy [layers, experts, most replicas], -1
    behind the last, counts [layers, experts]), int64 on the CPU, as SGLang's algorithms give them."""
    arguments = inspect.signature(original).bind(*args, **kwargs).arguments
    if not isinstance(arguments["algorithm"], Algorithm):
        return original(*args, **kwargs)
    return _place(**arguments)


def _place(
    tokens_per_expert: Any,
    num_physical_experts: int,
    num_local_physical_experts: int,
    num_groups: int | None,
    num_nodes: int,
    algorithm: Algorithm,
) -> Any:
    import torch

    if not isinstance(tokens_per_expert, torch.Tensor):
        raise TypeError(f"tokens_per_expert is {type(tokens_per_expert).__name__}, must be a torch.Tensor")
    if tokens_per_expert.dim() != 3:
        raise InvalidArgument(
            f"tokens_per_expert has shape {list(tokens_per_expert.shape)}, must be [steps, layers, experts]"
        )
    if num_local_physical_experts < 1 or num_physical_experts % num_local_physical_experts:
        raise InvalidArgument(
            f"num_physical_experts is {num_physical_experts}, must be a multiple of num_local_physical_experts, "
            f"{num_local_physical_experts}"
        )
    num_gpus = num_physical_experts // num_local_physical_experts
    loads = tokens_per_expert.detach().sum(dim=0).float().cpu().numpy()
    chosen = algorithm.settings
    if num_groups is None:
        if chosen.topology == "hierarchical":
            raise InvalidArgument("num_groups is None: this model has no groups of experts, its topology is flat")
        num_groups, chosen = 1, chosen._replace(topology="flat")
    sizes = serving.Sizes(num_physical_experts, num_groups, num_nodes, num_gpus)
    # Numbers as SGLang's own algorithms give them: "exact" leaves the slots where DeepSeek has them.
    shape = (*loads.shape, num_physical_experts, num_gpus)
    current = None if chosen.policy == "exact" else _current_map(*shape)
    placement = serving.place(loads, sizes, chosen, current)
    current_maps.keep(placement.phy2log, *shape)
    serving.log_placement(logger, placement, num_gpus, current)
    return tuple(torch.from_numpy(each) for each in (placement.phy2log, placement.log2phy, placement.logcnt))


def _current_map(*shape: int) -> Any:
    """Where the experts are by what SGLang itself keeps, which is right also if it carried out only a part of the last
    plan; from an SGLang that does not say, the last map that this process gave out."""
    locations = sys.modules.get("sglang.srt.eplb.expert_location")
    try:
        metadata = locations.get_global_expert_location_metadata()  # type: ignore[union-attr]
        current = None if metadata is None else metadata.physical_to_logical_map_cpu.numpy()
    except Exception:  # noqa: BLE001, no part of SGLang's interface for plug-ins: its absence is no failure
        return current_maps.find(*shape)
    layers, _, slots, _ = shape
    return current if current is not None and current.shape == (layers, slots) else None


def _unexpected(algorithms: Any) -> str:
    """In which way SGLang's functions are not what the hooks are for; empty if in none."""
    for name, parameters in PARAMETERS.items():
        found = list(inspect.signature(getattr(algorithms, name)).parameters)
        if found != parameters:
            return f"{name} has the parameters {', '.join(found)}"
    return ""


def _sglang_version() -> str:
    try:
        return importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        return "(of no known version)"
