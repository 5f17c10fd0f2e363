"""Optimiser with named parameter groups, and the learning rate as a pure function of the epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn
from torch.optim import Optimizer

from trireid.errors import InputError
from trireid.models.towers import count_blocks
from trireid.names import OptimizerName, RateReference

ParameterGroups = Mapping[str, Sequence[tuple[str, nn.Parameter]]]


class ParameterGroup(TypedDict):
    """One group of a torch optimiser.

    Attributes:
        name: key of the model, with `_bias` for its biases.
        params: the parameters.
        lr: learning rate now.
        base_lr: the rate that the schedule scales.
    """

    name: str
    params: list[nn.Parameter]
    lr: float
    base_lr: float


_VIT = "backbone.vit."
_BLOCKS = f"{_VIT}blocks."
GROUP_KEYS = ("backbone", "camera", "classifier", "other")
NOISE_SEED, NOISE_LIMIT = 42, 0.67  # hard-coded upstream


def lr_factor(
    epoch: int,
    *,
    epochs: int,
    warmup_epochs: int,
    warmup_factor: float,
    final_lr_factor: float,
    cosine_under_warmup: bool = False,
) -> float:
    """Share of its own learning rate that a parameter group has in one epoch.

    Linear from `warmup_factor` in epoch 1 to 1 in epoch `warmup_epochs + 1`, then a half cosine that
    reaches `final_lr_factor` in the last epoch. With `epochs <= warmup_epochs` the warm-up is cut off.

    With `cosine_under_warmup` both count from an epoch 0 that is not trained, as timm's scheduler does where it is
    stepped at the start of epochs 1, 2, ...: epoch 1 is one step above `warmup_factor`, and the cosine, which has run
    beneath the warm-up, takes over in epoch `warmup_epochs`, below 1.

    Args:
        epoch: counted from 1 to `epochs`.
        epochs: length of the run.
        warmup_epochs: 0 leaves the warm-up out.
        warmup_factor: where the warm-up starts; above 1 it leads down.
        final_lr_factor: where the cosine ends; above 1 it leads up.
        cosine_under_warmup: count the cosine from epoch 0 and not from the end of the warm-up.

    Raises:
        InputError: The epoch lies outside `1 .. epochs`.

    Source: shape of the DeMo schedule (public code, per epoch). Its description says that the cosine and the warm-up
        are stepped once an epoch, not with which number the first is; 1 is what the public code it descends from uses
        (damo-cv/TransReID, `scheduler.step(epoch)` with epochs counted from 1).
    Deviation: unless `cosine_under_warmup`, the cosine starts after the warm-up, which leaves no jump where they meet.
    """
    if not 1 <= epoch <= epochs:
        raise InputError(f"epoch {epoch} lies outside 1 .. {epochs}: count epochs from 1")
    if cosine_under_warmup:
        if epoch < warmup_epochs:
            return warmup_factor + (1.0 - warmup_factor) * epoch / warmup_epochs
        return _half_cosine(epoch / epochs, final_lr_factor)
    if epoch <= warmup_epochs:
        return warmup_factor + (1.0 - warmup_factor) * (epoch - 1) / warmup_epochs
    first, last = warmup_epochs + 1, epochs
    return _half_cosine((epoch - first) / (last - first) if last > first else 0.0, final_lr_factor)


def _half_cosine(progress: float, final: float) -> float:
    """From 1 at progress 0 to `final` at progress 1."""
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def group_lr_factor(
    epoch: int,
    own_lr: float,
    *,
    base_lr: float,
    epochs: int,
    warmup_factor: float,
    final_lr_factor: float,
    warmup_from: RateReference = "own",
    final_lr_from: RateReference = "own",
    lr_noise: bool = False,
    **shape: Any,
) -> float:
    """As `lr_factor`, for a group whose warm-up or end may be a share of the base rate, and with upstream's noise.

    Args:
        epoch, epochs, shape: as in `lr_factor`.
        own_lr: learning rate of the group, above 0 where something refers to the base rate.
        base_lr: learning rate of the run.
        warmup_factor: share at which the warm-up starts.
        warmup_from: of what it is a share. With `base` a group whose own rate is less than that warms down.
        final_lr_factor: share at which the cosine ends.
        final_lr_from: of what it is a share.
        lr_noise: multiply by `noise_factor`.

    Raises:
        InputError: The epoch lies outside `1 .. epochs`.

    Source: DeMo (public code): both shares are of the base rate, and the noise is on.
    Deviation: by default both are of the group's own rate, and there is no noise.
    """
    factor = lr_factor(
        epoch,
        epochs=epochs,
        warmup_factor=warmup_factor * (base_lr / own_lr if warmup_from == "base" else 1.0),
        final_lr_factor=final_lr_factor * (base_lr / own_lr if final_lr_from == "base" else 1.0),
        **shape,
    )
    return factor * noise_factor(epoch, epochs=epochs) if lr_noise else factor


def noise_factor(epoch: int, *, epochs: int) -> float:
    """Upstream's noise on the learning rates of one epoch, in (0.33, 1.67) and the same in every run; 1 in the last.

    1 plus a standard normal draw of seed 42 + epoch, drawn again until it lies within +-0.67. timm draws it here, on a
    rate of 1 that its schedule leaves alone.

    Source: DeMo (public code), where timm's scheduler has `noise_range_t`. Its description does not say of which
        epochs; the range (0, epochs) of public code of its family leaves out the last, whose rate is the smallest.
    """
    rate = torch.optim.SGD([nn.Parameter(torch.empty(0))], lr=1.0)
    constant = CosineLRScheduler(
        rate, epochs + 1, lr_min=1.0, noise_range_t=(0, epochs), noise_pct=NOISE_LIMIT, noise_seed=NOISE_SEED
    )
    constant.step(epoch)
    return float(rate.param_groups[0]["lr"])


def parameter_groups(
    groups: ParameterGroups,
    *,
    lr: float,
    backbone_lr: float,
    bias_lr_factor: float,
    classifier_lr_factor: float,
    backbone_bias_lr_factor: float | None = None,
    camera_lr: float | None = None,
    layer_decay: float = 1.0,
) -> list[ParameterGroup]:
    """Groups for a torch optimiser: one a key of the model, with its biases apart.

    With `layer_decay` the ViT has one a layer. Each has `name` (`"backbone"`, `"backbone_bias"`, ...), `base_lr` (what
    the schedule scales) and `lr`. Frozen parameters are left out, and so are groups that would be empty.

    Args:
        groups: `(name, parameter)` pairs by key, from `model.parameter_groups()`.
        lr: of every key but `backbone`.
        backbone_lr: of `backbone`.
        bias_lr_factor: multiplies the rate of every parameter whose name ends in `bias`, in every group.
        classifier_lr_factor: multiplies the rate of `classifier`.
        backbone_bias_lr_factor: the factor of the biases of `backbone`; None: `bias_lr_factor`. Upstream sets the whole
            tower to one rate after it has doubled the biases: 1.
        camera_lr: of `camera`; None: `lr`.
        layer_decay: what follows the last block of the ViT has the rate of `backbone`, each layer before it this share
            of the next one's; the patch and position embedding are the first layer. 1: one rate.

    Raises:
        InputError: A key that has no rate, a parameter in two groups, or nothing to train.
    """
    rates = {
        "backbone": backbone_lr,
        "camera": lr if camera_lr is None else camera_lr,
        "classifier": lr * classifier_lr_factor,
        "other": lr,
    }
    own_factor = {} if backbone_bias_lr_factor is None else {"backbone": backbone_bias_lr_factor}
    unknown = sorted(set(groups) - set(rates))
    if unknown:
        raise InputError(f"parameter groups {unknown} have no learning rate: allowed are {list(GROUP_KEYS)}")
    if layer_decay < 1.0:
        groups, own = _by_layer(groups, rate=backbone_lr, layer_decay=layer_decay)
        rates |= own
        own_factor |= dict.fromkeys(own, own_factor["backbone"]) if own_factor else {}
    result: list[ParameterGroup] = []
    for key in groups:
        trained = [(name, parameter) for name, parameter in groups[key] if parameter.requires_grad]
        biases = [parameter for name, parameter in trained if name.endswith("bias")]
        weights = [parameter for name, parameter in trained if not name.endswith("bias")]
        of_biases = own_factor.get(key, bias_lr_factor)
        for name, parameters, factor in ((key, weights, 1.0), (f"{key}_bias", biases, of_biases)):
            if parameters:
                rate = rates[key] * factor
                result.append({"name": name, "params": parameters, "lr": rate, "base_lr": rate})
    _check_partition(result)
    return result


def _by_layer(groups: ParameterGroups, *, rate: float, layer_decay: float) -> tuple[ParameterGroups, dict[str, float]]:
    """`backbone` as one group a layer, `backbone/0` to `backbone/L + 1` of L blocks, and the rate of each."""
    layers: dict[int, list[tuple[str, nn.Parameter]]] = {}
    depth = count_blocks((name for name, _ in groups.get("backbone", ())), _BLOCKS)
    for name, parameter in groups.get("backbone", ()):
        layers.setdefault(_layer(name, depth), []).append((name, parameter))
    by_layer = {f"backbone/{layer}": layers[layer] for layer in sorted(layers)}
    rates = {f"backbone/{layer}": rate * layer_decay ** (depth + 1 - layer) for layer in layers}
    return {**by_layer, **{key: value for key, value in groups.items() if key != "backbone"}}, rates


def _layer(name: str, depth: int) -> int:
    """The layer of a parameter of the ViT: 0 before the first block, then one a block, and one after the last."""
    if name.startswith(_BLOCKS):
        return int(name.removeprefix(_BLOCKS).split(".")[0]) + 1
    is_early = name.removeprefix(_VIT).startswith(("patch_embed.", "pos_embed", "cls_token", "reg_token", "norm_pre."))
    return 0 if is_early else depth + 1


def build_optimizer(
    groups: Sequence[ParameterGroup],
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
    plain = [dict(group) for group in groups]
    if name == "adam":
        return torch.optim.Adam(plain, lr=0.0, weight_decay=weight_decay, fused=fused)
    if name == "adamw":
        return torch.optim.AdamW(plain, lr=0.0, weight_decay=weight_decay, fused=fused)
    if name == "sgd":
        return torch.optim.SGD(plain, lr=0.0, momentum=momentum, weight_decay=weight_decay, fused=fused)
    raise InputError(f"optimizer {name!r} is not known: allowed are adam, adamw and sgd")


def set_lr(optimizer: Optimizer, factor: float | Callable[[float], float]) -> dict[str, float]:
    """Set every group to a share of its own base rate.

    Args:
        optimizer: over groups of `parameter_groups`.
        factor: the share, or a function that gives it for a base rate.

    Returns:
        The rate of each group by name, for the log.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * (factor(group["base_lr"]) if callable(factor) else factor)
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


def _check_partition(groups: Sequence[ParameterGroup]) -> None:
    """Refuse an empty set of parameters, and one that stands in two groups."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    if not parameters:
        raise InputError("the model has no parameter to train: unfreeze some of it")
    if len({id(parameter) for parameter in parameters}) != len(parameters):
        raise InputError("a parameter stands in two groups: give each to one of " + ", ".join(GROUP_KEYS))
