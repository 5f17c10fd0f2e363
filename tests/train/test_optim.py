"""Learning rate by epoch and group, against tables worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trireid.errors import InputError
from trireid.train.optim import build_optimizer, lr_factor, parameter_groups, set_lr

SCHEDULE = {"epochs": 8, "warmup_epochs": 3, "warmup_factor": 0.1, "final_lr_factor": 0.01}
# Warm-up in thirds of 0.9 from 0.1, then 0.01 + 0.99 * (1 + cos(pi * k / 4)) / 2 for k = 0 .. 4.
TABLE = {
    1: 0.1,
    2: 0.4,
    3: 0.7,
    4: 1.0,
    5: 0.01 + 0.99 * (2 + math.sqrt(2)) / 4,
    6: 0.505,
    7: 0.01 + 0.99 * (2 - math.sqrt(2)) / 4,
    8: 0.01,
}
RATES = {"lr": 0.02, "backbone_lr": 0.001, "bias_lr_factor": 2.0, "classifier_lr_factor": 5.0}


def parameter(*, frozen: bool = False) -> nn.Parameter:
    return nn.Parameter(torch.ones(2), requires_grad=not frozen)


def example_groups() -> dict[str, list[tuple[str, nn.Parameter]]]:
    return {
        "backbone": [("blocks.0.weight", parameter()), ("blocks.0.attn.in_proj_bias", parameter())],
        "camera": [("camera_embedding", parameter())],
        "classifier": [("classifiers.global.weight", parameter())],
        "other": [
            ("pife.weight", parameter()),
            ("pife.bias", parameter()),
            ("neck.bias", parameter(frozen=True)),
        ],
    }


@pytest.mark.parametrize("epoch", TABLE)
def test_factor_by_epoch(epoch: int) -> None:
    assert lr_factor(epoch, **SCHEDULE) == pytest.approx(TABLE[epoch], rel=1e-12)


@pytest.mark.parametrize("epoch", TABLE)
def test_lr_by_epoch_and_group(epoch: int) -> None:
    optimizer = build_optimizer(parameter_groups(example_groups(), **RATES))
    base = {
        "backbone": 0.001,
        "backbone_bias": 0.002,
        "camera": 0.02,
        "classifier": 0.1,
        "other": 0.02,
        "other_bias": 0.04,
    }
    assert set_lr(optimizer, lr_factor(epoch, **SCHEDULE)) == pytest.approx(
        {name: rate * TABLE[epoch] for name, rate in base.items()}, rel=1e-12
    )


def test_without_warmup_the_first_epoch_has_the_full_rate() -> None:
    assert lr_factor(1, epochs=5, warmup_epochs=0, warmup_factor=0.1, final_lr_factor=0.0) == 1.0
    assert lr_factor(5, epochs=5, warmup_epochs=0, warmup_factor=0.1, final_lr_factor=0.0) == pytest.approx(0.0)


def test_one_epoch_has_the_full_rate() -> None:
    assert lr_factor(1, epochs=1, warmup_epochs=0, warmup_factor=0.1, final_lr_factor=0.0) == 1.0


def test_a_warmup_longer_than_the_run_is_cut_off() -> None:
    assert lr_factor(2, epochs=2, warmup_epochs=10, warmup_factor=0.1, final_lr_factor=0.0) == pytest.approx(0.19)


@pytest.mark.parametrize("epoch", [0, 9])
def test_an_epoch_outside_the_run_is_an_error(epoch: int) -> None:
    with pytest.raises(InputError, match=r"1 \.\. 8"):
        lr_factor(epoch, **SCHEDULE)


def test_every_trained_parameter_stands_in_one_group_and_frozen_ones_in_none() -> None:
    groups = example_groups()
    built = parameter_groups(groups, **RATES)
    got = [id(p) for group in built for p in group["params"]]
    expected = [id(p) for pairs in groups.values() for _, p in pairs if p.requires_grad]
    assert sorted(got) == sorted(expected)
    assert len(set(got)) == len(got)


def test_empty_groups_are_left_out() -> None:
    groups = {"backbone": [], "camera": [], "classifier": [], "other": [("a.weight", parameter())]}
    assert [group["name"] for group in parameter_groups(groups, **RATES)] == ["other"]


def test_unknown_key_is_an_error() -> None:
    with pytest.raises(InputError, match="'neck'"):
        parameter_groups({"neck": [("weight", parameter())]}, **RATES)


def test_a_parameter_in_two_groups_is_an_error() -> None:
    twice = parameter()
    with pytest.raises(InputError, match="two groups"):
        parameter_groups({"backbone": [("a", twice)], "other": [("a", twice)]}, **RATES)


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(InputError, match="unfreeze"):
        parameter_groups({"other": [("a", parameter(frozen=True))]}, **RATES)


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_optimizers_by_name(name: str, kind: type) -> None:
    optimizer = build_optimizer(parameter_groups(example_groups(), **RATES), name=name, weight_decay=0.3)
    assert type(optimizer) is kind
    assert all(group["weight_decay"] == 0.3 for group in optimizer.param_groups)


def test_unknown_optimizer_is_an_error() -> None:
    with pytest.raises(InputError, match="adamw"):
        build_optimizer(parameter_groups(example_groups(), **RATES), name="lion")  # type: ignore[arg-type]


def test_first_sgd_step_in_closed_form() -> None:
    # lr 0.02 x factor 0.1, gradient 3 + weight decay 0.5 x 1: 1 - 0.002 * 3.5
    weight = parameter()
    groups = parameter_groups({"other": [("weight", weight)]}, **RATES)
    optimizer = build_optimizer(groups, name="sgd", weight_decay=0.5)
    set_lr(optimizer, lr_factor(1, **SCHEDULE))
    weight.grad = torch.full((2,), 3.0)
    optimizer.step()
    assert torch.allclose(weight, torch.full((2,), 1 - 0.002 * 3.5))


def test_a_camera_group_at_the_base_rate_moves_by_its_own_rate() -> None:
    # The first Adam step is the learning rate itself: each group must move by its own.
    groups = example_groups()
    optimizer = build_optimizer(parameter_groups(groups, **RATES), name="adam", weight_decay=0.0)
    set_lr(optimizer, 0.5)
    for pairs in groups.values():
        for _, p in pairs:
            p.grad = torch.ones_like(p)
    optimizer.step()
    moved = {name: (1 - p[0]).item() for pairs in groups.values() for name, p in pairs}
    assert moved == pytest.approx(
        {
            "blocks.0.weight": 0.0005,
            "blocks.0.attn.in_proj_bias": 0.001,
            "camera_embedding": 0.01,
            "classifiers.global.weight": 0.05,
            "pife.weight": 0.01,
            "pife.bias": 0.02,
            "neck.bias": 0.0,
        },
        rel=1e-3,
    )


def test_layer_decay_gives_every_layer_of_the_vit_its_share_of_the_next_ones_rate() -> None:
    names = ["cls_token", "patch_embed.proj.weight", "blocks.0.mlp.weight", "blocks.1.mlp.weight", "norm.bias"]
    groups = {
        "backbone": [(f"backbone.vit.{name}", parameter()) for name in names],
        "other": [("pife.weight", parameter())],
    }
    built = {group["name"]: group for group in parameter_groups(groups, layer_decay=0.5, **RATES)}
    rates = {name: group["lr"] for name, group in built.items()}
    expected = {
        "backbone/0": 0.001 / 8,
        "backbone/1": 0.001 / 4,
        "backbone/2": 0.001 / 2,
        "backbone/3_bias": 0.002,
        "other": 0.02,
    }
    assert rates == pytest.approx(expected, rel=1e-12)
    assert [id(each) for each in built["backbone/0"]["params"]] == [id(each) for _, each in groups["backbone"][:2]]
    own = parameter_groups(groups, layer_decay=0.5, backbone_bias_lr_factor=1.0, **RATES)
    assert next(group["lr"] for group in own if group["name"] == "backbone/3_bias") == 0.001
