"""The halves of an F&B pair under one another on a CUDA device: communication of the one while the other computes."""

from __future__ import annotations

from collections.abc import Callable

from ._library import Closing, PartFunction, create, lib, uint32
from .errors import CallbackFailed
from .task import Task

PARTS = (
    "attention_f",
    "dispatch_f",
    "mlp_f",
    "combine_f",
    "combine_b",
    "mlp_b",
    "mlp_w",
    "dispatch_b",
    "attention_b",
    "attention_w",
)
"""``dualpipe_part``: what a block of attention and experts (MLP) consists of, forward and backward."""


class Overlap(Closing):
    """Enqueues tasks part by part on two streams of device ``device``, with the waits that the parts need between them.

    In the order of DeepSeek's published trace. One thread at a time: another gets :class:`~dualpipe.errors.Busy`.
    """

    def __init__(self, device: int = 0) -> None:
        number = uint32("device", device)
        self._handle = create("dualpipe_overlap_create", "dualpipe_overlap_free", number)

    def run(self, task: Task, forward: int, backward: int, enqueue: Callable[[str, int, int], object]) -> None:
        """Has ``enqueue(part, block, stream)`` enqueue every part of ``forward`` forward blocks and ``backward``
        backward blocks, each 0 to 4096, from within ``task``, whose executor needs a communication stream.

        ``part`` is one of :data:`PARTS`, ``block`` its number in the order of the model, ``stream`` the number of the
        stream to enqueue it on. What a part reads from the part before it in its half is there in the stream's order.
        What ``enqueue`` raises, this raises.
        """
        raised: list[BaseException] = []

        def call(_: object, part: int, block: int, stream: int | None) -> int:
            try:
                enqueue(PARTS[part], block, stream or 0)
            except BaseException as error:  # noqa: BLE001, the call that it stops raises it
                raised.append(error)
                return 1
            return 0

        function = PartFunction(call)
        numbers = uint32("forward", forward), uint32("backward", backward)
        try:
            lib.dualpipe_overlap_run(
                self._handle, task.compute_stream, task.comm_stream, *numbers, function, None
            )
        except CallbackFailed:
            if raised:
                raise raised[0] from None
            raise
