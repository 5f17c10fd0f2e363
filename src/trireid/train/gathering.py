"""Several processes as one: the rows of a batch, batch statistics and features are brought together.

Why a run of n processes equals that of one. Each process holds B / n rows of every batch. The forward pass treats the
rows independently, except for batch normalisation and the loss. Both are computed on the gathered rows, all B of them,
in the order of the one process. So every process r has the same loss L_r = L. The backward pass of a gather adds up
what all processes send back: process r gets the gradient of L_1 + ... + L_n = n L with respect to its own copy of the
weights, that is, n times what its own rows add to the gradient. The mean of that over the processes,
(1 / n) * sum over r of n * (share of r), is the gradient of one process, up to the rounding of sums in another order.

The last gather, before the classifiers and the loss, needs no sum: all processes compute the same from the same rows,
so that what they would send back is equal, and n times the own is their sum. A step then sends one message there, and
none on the way back. The mean of the classifiers' gradients, which are equal, is what each of them has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trireid.errors import ConfigError, RunError, TrireidError
from trireid.evaluation.features import FeatureSet, join_features
from trireid.models.bnneck import BNNeckClassifier
from trireid.models.reid import ReIDModel
from trireid.types import Blocks, ReIDOutput


def check_batch_size(batch_size: int, num_processes: int) -> None:
    """Refuse a batch that cannot be divided equally among the processes.

    Raises:
        ConfigError: `batch_size` is not a multiple of `num_processes`.
    """
    if batch_size % num_processes:
        raise ConfigError(
            f"data.batch_size {batch_size} is not a multiple of the {num_processes} processes, which share each batch "
            "in equal parts: set another data.batch_size or start another number of processes"
        )


def check_same(given: Mapping[str, Any], *, num_processes: int, advice: str) -> None:
    """Refuse processes of one run that have different settings or data; all of them must call it.

    Args:
        given: small plain data, by the name that messages use.
        num_processes: number of processes; with one, nothing is compared.
        advice: what to do, for the message.

    Raises:
        ConfigError: They differ; raised in every process, with the first difference.
    """
    if num_processes == 1:
        return
    first, *others = _gather_objects(dict(given))
    for number, other in enumerate(others, start=1):
        name = next((name for name in first | other if first.get(name) != other.get(name)), None)
        if name is not None:
            raise ConfigError(
                f"the processes of this run differ: {name} is {first.get(name)!r} in process 0 and "
                f"{other.get(name)!r} in process {number}; {advice}"
            )


def lost_process(error: RuntimeError) -> bool:
    """Whether an error says that another process is gone; gloo raises no class of its own."""
    return isinstance(error, distributed.DistError) or "gloo/transport" in str(error)


def gather_rows(rows: Tensor) -> Tensor:
    """Rows `(b, ...)` of every process, `(n * b, ...)` in the order of the processes, with their gradient.

    All processes must call it with the same shape and, with a gradient, all must go back through it.
    """
    return cast(Tensor, _GatherRows.apply(rows))


def gather_for_loss(*tables: Tensor) -> tuple[Tensor, ...]:
    """Rows of every process as `gather_rows`, of several tables `(b, ...)` in one message, for a loss of them.

    Every process must compute the same from the result; the gradient is then right without a message.
    """
    return cast(tuple[Tensor, ...], _GatherForLoss.apply(*tables))


def gather_output(
    output: ReIDOutput, label: Tensor, *, model: ReIDModel, complete: bool = False
) -> tuple[ReIDOutput, Tensor]:
    """What the losses read, and the labels, of the rows of all processes.

    Features `(b, F)` become `(n * b, F)`, and their logits are computed from these; features without a classifier and
    selections are left out. Auxiliary losses are means over the rows of a process, and become the mean of all processes
    (which is the mean over all rows where the processes have equally many; a loss over present modalities alone weighs
    each process the same).

    Args:
        output: without logits.
        label: `(b,)` int64.
        model: has the classifiers; not wrapped.
        complete: every triplet has all modalities; see `make_gradients`.
    """
    trained = {name: output.features[name] for name in model.classifiers}
    auxiliary = {name: value.expand(len(label)) for name, value in output.auxiliary.items()}
    sent = {**trained, **auxiliary, _PRESENT: output.present, _LABEL: label}
    arrived = dict(zip(sent, gather_for_loss(*sent.values()), strict=True))
    features, present = {name: arrived[name] for name in trained}, arrived[_PRESENT]
    gathered = replace(
        output,
        features=features,
        logits=model.classify(features, None if complete else present),
        present=present,
        auxiliary={name: arrived[name].mean() for name in auxiliary},
        selection={},
    )
    return gathered, arrived[_LABEL]


def synchronise_statistics(model: nn.Module) -> None:
    """Let every batch normalisation before the classifiers see the rows of all processes in training.

    A hook gathers the rows before the module, another one takes the own rows of its result. So the module itself
    computes what it would in one process, and its running statistics are the same in all processes. A
    `BNNeckClassifier` is left alone: `gather_output` gives it all rows. torch's SyncBatchNorm would run on CUDA only.
    The rows are few and the modules small (one vector an item), so that every process can afford to compute them all.
    """
    necks = [module for module in model.modules() if isinstance(module, BNNeckClassifier)]
    inside = {part for neck in necks for part in neck.modules()}
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module not in inside:
            module.register_forward_pre_hook(_gather_inputs)
            module.register_forward_hook(_take_own_rows)


def gather_features(extract: Callable[[], FeatureSet | None], *, device: torch.device) -> FeatureSet | None:
    """Features of a set of which every process extracts a part.

    Args:
        extract: gives the features of the part of this process, of any size; None: no items. It is called here, so
            that an error in one process is known to all, and none waits forever.
        device: one that the processes can send tensors from.

    Returns:
        All features by item on the main process, None on the others.

    Raises:
        TrireidError: The error of the part of this process.
        RunError: The part of another process had an error.
        InputError: An item was extracted more than once.
    """
    own, fault = None, None
    try:
        own = extract()
    except TrireidError as error:
        fault = error
    tables = {} if own is None else {**own.features, _PRESENT: own.present, _ITEM: own.item}
    described = _Part(
        fault=None if fault is None else str(fault),
        size=0 if own is None else len(own),
        layout={name: (tuple(table.shape[1:]), table.dtype) for name, table in tables.items()},
        blocks={} if own is None else own.blocks,
    )
    others: list[_Part] = _gather_objects(described)
    if fault is not None:
        raise fault
    faults = [each.fault for each in others if each.fault is not None]
    if faults:
        raise RunError(f"the evaluation failed in another process: {faults[0]}")
    sizes = [each.size for each in others]
    layout: _Layout = next((each.layout for each in others if each.size), {})
    blocks: dict[str, Blocks] = next((each.blocks for each in others if each.blocks), {})
    is_main = distributed.get_rank() == 0
    parts: list[dict[str, Tensor]] = [{} for _ in sizes] if is_main else []
    for name, (shape, dtype) in layout.items():
        gathered = _gather_table(tables.get(name), shape=shape, dtype=dtype, sizes=sizes, device=device)
        for part, table in zip(parts, gathered, strict=True):
            part[name] = table
    if not is_main:
        return None
    if not layout:  # withholding left nothing of any item
        return FeatureSet.of_nothing()
    return join_features([FeatureSet(part, part.pop(_PRESENT), part.pop(_ITEM), blocks) for part in parts])


_PRESENT, _ITEM, _LABEL = "(present)", "(item)", "(label)"  # no names of features

_Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]


class _Part(NamedTuple):
    """What the processes must know of each other's features before they are sent."""

    fault: str | None
    size: int
    layout: _Layout
    blocks: dict[str, Blocks]


class _GatherRows(torch.autograd.Function):
    """See `gather_rows`; the backward pass is the adjoint, a sum over the processes of what concerns the own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        ctx.num_rows, ctx.dtype = len(rows), rows.dtype
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # A copy, because it is summed in place; in half precision the sum would lose digits.
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        total = gradient.to(dtype, copy=True, memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total[_own(ctx.num_rows)].to(ctx.dtype)


class _GatherForLoss(torch.autograd.Function):
    """See `gather_for_loss`. A row of the message holds the bytes of a row of every table."""

    @staticmethod
    def forward(ctx: Any, *tables: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.num_rows = len(tables[0])
        rows = [table.contiguous().view(ctx.num_rows, -1).view(torch.uint8) for table in tables]  # (b, bytes)
        message = torch.cat(rows, dim=1)
        arrived = message.new_empty(distributed.get_world_size() * ctx.num_rows, message.shape[1])
        distributed.all_gather_into_tensor(arrived, message)
        parts = arrived.split([part.shape[1] for part in rows], dim=1)
        gathered = tuple(
            part.contiguous().view(table.dtype).view(-1, *table.shape[1:])
            for part, table in zip(parts, tables, strict=True)
        )
        ctx.mark_non_differentiable(*(each for each in gathered if not each.is_floating_point()))
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        own, number = _own(ctx.num_rows), distributed.get_world_size()
        return tuple(None if each is None else each[own] * number for each in gradients)


def _own(num_rows: int) -> slice:
    """Where the own rows are among those of all processes."""
    first = distributed.get_rank() * num_rows
    return slice(first, first + num_rows)


def _gather_inputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(map(gather_rows, inputs)) if module.training else inputs


def _take_own_rows(module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output[_own(len(output) // distributed.get_world_size())] if module.training else output


def _gather_objects(value: Any) -> list[Any]:
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def _gather_table(
    own: Tensor | None, *, shape: tuple[int, ...], dtype: torch.dtype, sizes: list[int], device: torch.device
) -> list[Tensor]:
    """Tables `(size, *shape)` of all processes, on the CPU of the main process; none on the others."""
    # Messages must be of one size: shorter tables are filled up, and cut again where they arrive.
    filled = torch.zeros(max(sizes), *shape, dtype=dtype, device=device)
    if own is not None:
        filled[: len(own)] = own.to(device)
    arrived = [torch.empty_like(filled) for _ in sizes] if distributed.get_rank() == 0 else None
    distributed.gather(filled, arrived)
    return [] if arrived is None else [table[:size].cpu() for table, size in zip(arrived, sizes, strict=True)]
