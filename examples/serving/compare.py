"""What vLLM's and SGLang's own expert balancing gives, and what dualpipe's plug-ins give instead: see README.md."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np
from dualpipe import serving
from dualpipe.relabel import moves

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "python"))
import wheels

Place = Callable[[Any, Any], Any]
"""From a window's loads [layers, experts] and the current map, or None, to the next map [layers, slots]; numpy's."""


class Contender(NamedTuple):
    """One row of the table."""

    name: str
    place: Place


def main() -> None:
    """Parses the options, has every contender place the same windows, prints the table."""
    options = parse()
    sizes = serving.Sizes(options.slots, options.groups, options.nodes, options.gpus)
    windows, what = read(options) if options.loads else generate(options)
    _, num_layers, num_experts = windows.shape
    print(f"{len(windows)} windows of loads, {num_layers} layers, {num_experts} experts: {what}")
    grouped = options.groups % options.nodes == 0
    kind = f"{options.groups} groups of experts, each stays on a node" if grouped else "any expert on any of them"
    print(f"{options.slots} slots on {options.gpus} GPUs of {options.nodes} nodes, {kind}\n")
    with contextlib.ExitStack() as stack:
        sources = (engine_vllm, engine_sglang, alone)
        contenders = [each for source in sources for each in stack.enter_context(source(sizes, options.download))]
        print(f"{'':34}  {'imbalance':>9}  {'a window':>9}  {'slots with an expert from':>26}")
        print(f"{'policy':34}  {'planned':>9}  {'later':>9}  {'another GPU':>13}{'another node':>13}  {'ms':>7}")
        for contender in contenders:
            print(row(contender, windows, sizes), flush=True)
    print("\nMeans over layers and windows; the first window has nothing to keep and is not counted.")
    print("Imbalance is the fullest GPU's load / the mean; a later window is balanced by the map of the one before.")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", type=Path, help=".csv [layers, experts] or .npy, also [windows, layers, experts]")
    parser.add_argument("--layers", type=int, default=58, help="of generated loads (58, DeepSeek-V3's)")
    parser.add_argument("--experts", type=int, default=256, help="of generated loads (256)")
    parser.add_argument("--windows", type=int, default=4, help="how many, at least 3 (4)")
    parser.add_argument("--noise", type=float, default=0.02, help="from window to window, relative (0.02)")
    parser.add_argument("--slots", type=int, default=288, help="on all GPUs together (288)")
    parser.add_argument("--gpus", type=int, default=32, help="(32)")
    parser.add_argument("--nodes", type=int, default=4, help="(4)")
    parser.add_argument("--groups", type=int, default=8, help="of experts; 1: none (8)")
    parser.add_argument("--download", action="store_true", help="have pip fetch the engines' wheels (336 MB and 39 MB)")
    options = parser.parse_args()
    if options.windows < 3:
        parser.error(f"--windows is {options.windows}, must be at least 3")
    return options


def generate(options: argparse.Namespace) -> tuple[Any, str]:
    """Loads of the shape that published histograms of DeepSeek-V3's routing have: lognormal, sigma 0.65."""
    first = np.random.default_rng(1).lognormal(12, 0.65, (options.layers, options.experts))
    return vary(first, options), f"generated, {options.noise:.0%} noise from window to window"


def read(options: argparse.Namespace) -> tuple[Any, str]:
    """Recorded loads; with noise if there is one window of them only."""
    path = options.loads
    loads = np.load(path) if path.suffix == ".npy" else np.loadtxt(path, delimiter=",", ndmin=2)
    if loads.ndim == 3:
        if len(loads) < 3:
            raise SystemExit(f"{path} has {len(loads)} windows, must be at least 3")
        return loads.astype(np.float32), str(path)
    return vary(loads, options), f"{path}, {options.noise:.0%} noise from window to window"


def vary(loads: Any, options: argparse.Namespace) -> Any:
    """Windows of the same loads, each with noise of its own; float32, of which an engine's policy makes the same."""
    noise = np.random.default_rng(2).lognormal(0, options.noise, (options.windows, *loads.shape))
    return (loads * noise).astype(np.float32)


def row(contender: Contender, windows: Any, sizes: serving.Sizes) -> str:
    """The line of one contender: it places every window but the last, knowing where the experts are."""
    planned, later, gpu_moves, node_moves, seconds = [], [], [], [], []
    current = None
    for window, following in zip(windows, windows[1:]):
        start = time.perf_counter()
        placed = contender.place(window, current)
        took = time.perf_counter() - start
        if current is not None:
            planned.append(imbalance(window, placed, sizes.num_gpus))
            later.append(imbalance(following, placed, sizes.num_gpus))
            gpu_moves.append(moves(placed, current, sizes.num_gpus).mean())
            nodes = sizes.num_nodes if sizes.num_gpus % sizes.num_nodes == 0 else 1
            node_moves.append(moves(placed, current, nodes).mean())
            seconds.append(took)
        current = placed
    values = [np.mean(each) for each in (planned, later, gpu_moves, node_moves)]
    cells = f"{values[0]:9.4f}  {values[1]:9.4f}  {values[2]:13.1f}{values[3]:13.1f}"
    return f"{contender.name:34}  {cells}  {1e3 * np.median(seconds):7.1f}"


def imbalance(loads: Any, phy2log: Any, num_gpus: int) -> float:
    """Mean over layers of the fullest GPU's load / the mean, if replicas share their expert's load evenly."""
    shares = [layer / np.bincount(slots, minlength=len(layer)) for layer, slots in zip(loads, phy2log)]
    gpus = np.take_along_axis(np.array(shares), phy2log, axis=1).reshape(len(phy2log), num_gpus, -1).sum(axis=2)
    return float((gpus.max(axis=1) / gpus.mean(axis=1)).mean())


@contextlib.contextmanager
def engine_vllm(sizes: serving.Sizes, download: bool) -> Iterator[list[Contender]]:
    """vLLM's policy, and dualpipe's where vLLM's plug-in loader put it."""
    with contextlib.ExitStack() as stack:
        if not enter(stack, "vllm", wheels.vllm, download):
            yield []
            return
        import torch

        policy: Any = importlib.import_module("vllm.distributed.eplb.policy")
        plugins: Any = importlib.import_module("vllm.plugins")

        def placed_by(which: Any) -> Place:
            def place(loads: Any, current: Any) -> Any:
                known = None if current is None else torch.from_numpy(current)
                return which.rebalance_experts(torch.from_numpy(loads), *sizes, known).numpy()

            return place

        version = importlib.metadata.version("vllm")
        contenders = [Contender(f"vLLM {version}: default", placed_by(policy.EPLB_POLICIES["default"]))]
        for name in serving.POLICIES:
            os.environ["DUALPIPE_EPLB_POLICY"] = name
            plugins.plugins_loaded = False
            plugins.load_general_plugins()
            contenders.append(Contender(f"vLLM: dualpipe, {name}", placed_by(policy.EPLB_POLICIES["default"])))
        yield contenders


@contextlib.contextmanager
def engine_sglang(sizes: serving.Sizes, download: bool) -> Iterator[list[Contender]]:
    """SGLang's algorithm, and dualpipe's through the hooks that SGLang's plug-in loader applied."""
    with contextlib.ExitStack() as stack:
        if not enter(stack, "sglang", wheels.sglang, download):
            yield []
            return
        import torch

        plugins: Any = importlib.import_module("sglang.srt.plugins")
        algorithms: Any = importlib.import_module("sglang.srt.eplb.eplb_algorithms")
        plugins.load_plugins()
        current_maps: Any = importlib.import_module("dualpipe_sglang").current_maps

        def placed_by(name: str) -> Place:
            def place(loads: Any, current: Any) -> Any:
                # It is not told where the experts are: the plug-in remembers what it gave out.
                if current is None:
                    current_maps.clear()
                algorithm = algorithms.compute_algorithm(name, sizes.num_groups, sizes.num_nodes)
                args = (sizes.num_replicas, sizes.num_replicas // sizes.num_gpus, sizes.num_groups, sizes.num_nodes)
                return algorithms.rebalance_experts(torch.from_numpy(loads)[None], *args, algorithm)[0].numpy()

            return place

        version = importlib.metadata.version("sglang")
        yield [
            Contender(f"SGLang {version}: auto", placed_by("auto")),
            *(Contender(f"SGLang: dualpipe_{name}", placed_by(f"dualpipe_{name}")) for name in serving.POLICIES),
        ]


@contextlib.contextmanager
def alone(sizes: serving.Sizes, _: bool) -> Iterator[list[Contender]]:
    """dualpipe's policies as a program calls them that is neither engine."""
    yield [
        Contender(
            f"dualpipe.serving: {name}",
            lambda loads, current, name=name: serving.place(loads, sizes, serving.Settings(name), current).phy2log,
        )
        for name in serving.POLICIES
    ]


def enter(stack: contextlib.ExitStack, engine: str, files: Any, download: bool) -> bool:
    """Makes an engine and its plug-in importable until ``stack`` closes: as they are installed, else the engine's
    policy files out of its wheel and the plug-in of this checkout. If that cannot be, says why."""
    try:
        importlib.import_module("torch")
        if not installed(engine):
            stack.enter_context(files(download))
        if not installed(f"dualpipe-{engine}"):
            stack.enter_context(wheels.importable(wheels.plugins(), f"dualpipe_{engine}"))
    except (ImportError, wheels.Unavailable) as why:
        print(f"{engine} is left out: {why}" + ("" if download else "; --download has pip fetch it") + "\n")
        return False
    return True


def installed(distribution: str) -> bool:
    """Whether it is in this environment."""
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
