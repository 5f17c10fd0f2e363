"""Optimiser with named parameter groups, and the learning rate as a pure function of the epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from trireid.errors import InputError

ParameterGroups = Mapping[str, Sequence[tuple[str, nn.Parameter]]]
OptimizerName = Literal["adam", "adamw", "sgd"]

GROUP_KEYS = ("backbone", "camera", "classifier", "other")


def lr_factor(epoch: int, *, epochs: int, warmup_epochs: int, warmup_factor: float, final_lr_factor: float) -> float:
    """Share of its own learning rate that every parameter group has in one epoch.

    Linear from `warmup_factor` in epoch 1 to 1 in epoch `warmup_epochs + 1`, then a half cosine that
    reaches `final_lr_factor` in the last epoch. With `epochs <= warmup_epochs` the warm-up is cut off.

    Args:
        epoch: counted from 1 to `epochs`.
        epochs: length of the run.
        warmup_epochs: 0 starts at 1 at once.
        warmup_factor: in `(0, 1]`.
        final_lr_factor: in `[0, 1]`.

    Raises:
        InputError: The epoch lies outside `1 .. epochs`.

    Source: shape of the DeMo schedule (public code, per epoch).
    Deviation: every group warms up from a share of its OWN rate (upstream starts all of them from a share
        of the base rate, so that the tower warms down); the cosine starts after the warm-up instead of
        running beneath it, which left a jump where they met; no hidden noise on the rate.
    """
    if not 1 <= epoch <= epochs:
        raise InputError(f"epoch {epoch} lies outside 1 .. {epochs}: count epochs from 1")
    if epoch <= warmup_epochs:
        return warmup_factor + (1.0 - warmup_factor) * (epoch - 1) / warmup_epochs
    first, last = warmup_epochs + 1, epochs
    progress = (epoch - first) / (last - first) if last > first else 0.0
    return final_lr_factor + (1.0 - final_lr_factor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def parameter_groups(
    groups: ParameterGroups,
    *,
    lr: float,
    backbone_lr: float,
    bias_lr_factor: float,
    classifier_lr_factor: float,
) -> list[dict[str, Any]]:
    """Groups for a torch optimiser: one a key of the model, its biases apart.

    Each has `name` (`"backbone"`, `"backbone_bias"`, ...), `base_lr` (what the schedule scales) and `lr`.
    Frozen parameters are left out, and so are groups that would be empty.

    Args:
        groups: `(name, parameter)` pairs by key, from `model.parameter_groups()`.
        lr: of every key but `backbone`.
        backbone_lr: of `backbone`.
        bias_lr_factor: multiplies the rate of every parameter whose name ends in `bias`, in every group.
        classifier_lr_factor: multiplies the rate of `classifier`.

    Raises:
        InputError: A key that has no rate, a parameter in two groups, or nothing to train.
    """
    rates = {"backbone": backbone_lr, "camera": lr, "classifier": lr * classifier_lr_factor, "other": lr}
    unknown = sorted(set(groups) - set(rates))
    if unknown:
        raise InputError(f"parameter groups {unknown} have no learning rate: allowed are {list(GROUP_KEYS)}")
    result = []
    for key in groups:
        trained = [(name, parameter) for name, parameter in groups[key] if parameter.requires_grad]
        biases = [parameter for name, parameter in trained if name.endswith("bias")]
        weights = [parameter for name, parameter in trained if not name.endswith("bias")]
        for name, parameters, factor in ((key, weights, 1.0), (f"{key}_bias", biases, bias_lr_factor)):
            if parameters:
                rate = rates[key] * factor
                result.append({"name": name, "params": parameters, "lr": rate, "base_lr": rate})
    _check_partition(result)
    return result


def build_optimizer(
    groups: Sequence[dict[str, Any]],
    *,
    name: OptimizerName = "adam",
    weight_decay: float = 1e-4,
    momentum: float = 0.9,
) -> Optimizer:
    """The optimiser over ready groups, with the fused kernels of its device where torch has them.

    Args:
        groups: from `parameter_groups`.
        name: `"adam"` couples the weight decay to the gradient, as upstream; `"adamw"` decouples it.
        weight_decay: on every parameter, biases too.
        momentum: of `"sgd"` only.

    Raises:
        InputError: An unknown name.
    """
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    shared: dict[str, Any] = {"weight_decay": weight_decay, "fused": fused}
    if name == "adam":
        return torch.optim.Adam(list(groups), lr=0.0, **shared)
    if name == "adamw":
        return torch.optim.AdamW(list(groups), lr=0.0, **shared)
    if name == "sgd":
        return torch.optim.SGD(list(groups), lr=0.0, momentum=momentum, **shared)
    raise InputError(f"optimizer {name!r} is not known: allowed are adam, adamw and sgd")


def set_lr(optimizer: Optimizer, factor: float) -> dict[str, float]:
    """Set every group to `factor` of its own base rate.

    Returns:
        The rate of each group by name, for the log.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


def _check_partition(groups: Sequence[dict[str, Any]]) -> None:
    """Refuse an empty set of parameters, and one that stands in two groups."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    if not parameters:
        raise InputError("the model has no parameter to train: unfreeze some of it")
    if len({id(parameter) for parameter in parameters}) != len(parameters):
        raise InputError("a parameter stands in two groups: give each to one of " + ", ".join(GROUP_KEYS))
