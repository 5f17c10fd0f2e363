"""The mean of the gradients of several processes, for steps that are recorded.

DistributedDataParallel does the same, and is used where steps are not recorded. It keeps its place in a step, and how
long steps take, on the host: a recording of it must be made on its own stream at a certain step, and one that fails
leaves it in the middle of a step. Here a step leaves nothing behind but the gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor, distributed, nn

BUCKET_BYTES = 25 * 2**20
"""Gradients that are sent as one message: large enough for the full rate, small enough to leave while others come."""


@dataclass(frozen=True)
class _Sent:
    """A message under way: gradients of these parameters, one after the other."""

    parameters: Sequence[nn.Parameter]
    values: Tensor
    work: distributed.Work


class GradientMean:
    """A context around a backward pass, after which every process has the mean of all gradients.

    They are sent in buckets while the backward pass goes on, in the order in which they came in the first one. That
    first order is of the first process, so that all send the same messages. A parameter without a gradient counts
    as zeros where another process has one or its bucket has others.

    Args:
        model: gets the weights and statistics of the first process in all of them; every backward pass through it
            then belongs into this context.
        bucket_bytes: at most, of a message with more than one gradient.
    """

    def __init__(self, model: nn.Module, *, bucket_bytes: int = BUCKET_BYTES) -> None:
        for value in model.state_dict().values():
            distributed.broadcast(value, 0)
        self._parameters = [each for each in model.parameters() if each.requires_grad]
        self._bucket_bytes = bucket_bytes
        self._number_of = {each: number for number, each in enumerate(self._parameters)}
        self._buckets: list[list[nn.Parameter]] = []
        self._bucket_of: dict[nn.Parameter, int] = {}
        for each in self._parameters:
            each.register_post_accumulate_grad_hook(self._arrive)
        self._begin()

    def __enter__(self) -> GradientMean:
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Send what is left, wait for all, and put the means in place of the gradients; nothing after an error."""
        if kind is not None:
            self._begin()
            return
        if not self._buckets:
            self._buckets = self._fill_buckets(self._order())
            self._bucket_of = {each: number for number, bucket in enumerate(self._buckets) for each in bucket}
        for bucket in self._buckets[len(self._sent) :]:
            self._sent.append(_send(bucket))
        for sent in self._sent:
            sent.work.wait()
            sizes = [each.numel() for each in sent.parameters]
            for parameter, mean in zip(sent.parameters, sent.values.split(sizes), strict=True):
                parameter.grad = mean.view_as(parameter)
        self._begin()

    def _begin(self) -> None:
        self._arrived: list[nn.Parameter] = []
        self._missing = [len(bucket) for bucket in self._buckets]
        self._sent: list[_Sent] = []

    def _arrive(self, parameter: Tensor) -> None:
        """A gradient is complete: send the next buckets in order, as far as they are full."""
        assert isinstance(parameter, nn.Parameter)
        if not self._buckets:
            self._arrived.append(parameter)
            return
        self._missing[self._bucket_of[parameter]] -= 1
        while len(self._sent) < len(self._buckets) and self._missing[len(self._sent)] == 0:
            self._sent.append(_send(self._buckets[len(self._sent)]))

    def _order(self) -> list[nn.Parameter]:
        """All parameters, first those that had a gradient in the first process, as they came."""
        came = dict.fromkeys(self._arrived)
        order = [self._number_of[each] for each in (*came, *(each for each in self._parameters if each not in came))]
        numbers = torch.tensor(order, device=self._parameters[0].device)
        distributed.broadcast(numbers, 0)
        return [self._parameters[number] for number in numbers.tolist()]

    def _fill_buckets(self, order: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
        buckets: list[list[nn.Parameter]] = []
        held = 0
        for parameter in order:
            size = parameter.numel() * parameter.element_size()
            if not buckets or held + size > self._bucket_bytes or parameter.dtype != buckets[-1][0].dtype:
                buckets.append([])
                held = 0
            buckets[-1].append(parameter)
            held += size
        return buckets


def _send(bucket: Sequence[nn.Parameter]) -> _Sent:
    """Start the sum of the n-th parts of these gradients over the n processes."""
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in bucket]
    values = torch.cat([each.flatten() for each in gradients]).div_(distributed.get_world_size())
    work = distributed.all_reduce(values, async_op=True)
    assert work is not None
    return _Sent(bucket, values, work)
