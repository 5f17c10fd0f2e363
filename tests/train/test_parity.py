"""The `parity` preset in training; its learning rates by epoch and group against tables worked out by the description.

The description of upstream: base rate 3.5e-4, biases twice that, the whole CLIP tower 5e-6, camera embedding at the
base rate; a cosine an epoch to 1e-3 of the base rate; the first warm-up epochs linear from 0.1 of the BASE rate for
every group; a factor for every rate of an epoch, of seed 42 + epoch.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn

from tiny_run import tiny_config
from trireid.config.load import load_config, override_config
from trireid.config.schema import TrainConfig
from trireid.data.sampler import IdentitySampler, UniformIdentitySampler
from trireid.models.backbone import create_vit
from trireid.models.build import build_model
from trireid.train import loop
from trireid.train.inputs import open_inputs
from trireid.train.loop import _factor, _make_optimizer, train
from trireid.train.optim import lr_factor, noise_factor, set_lr
from trireid.train.runs import read_epochs
from trireid.train.testing import evaluate_checkpoint as evaluate
from trireid.upstream.checkpoint import read_upstream
from trireid.upstream.configuration import load_upstream_yaml
from trireid.upstream.state_dict import resize_positions, upstream_rules

from reference_upstream import learning_rate
from upstream_states import IMAGE, upstream_state

CONFIGS = Path(__file__).parents[2] / "configs"
OURS = CONFIGS / "trireid"
OWN = {
    "backbone": 5e-6,
    "backbone_bias": 5e-6,
    "camera": 3.5e-4,
    "classifier": 3.5e-4,
    "other": 3.5e-4,
    "other_bias": 7e-4,
}
START, FLOOR = 3.5e-5, 3.5e-7
# Without noise, RGBNT201 (50 epochs, 10 of warm-up): the tower warms down, the heads up; both meet in the last epoch.
TOWER = {1: 3.2e-5, 2: 2.9e-5, 5: 2.0e-5, 9: 8.0e-6, 25: 2.675e-6, 50: 3.5e-7}
HEADS = {1: 6.65e-5, 2: 9.8e-5, 5: 1.925e-4, 9: 3.185e-4, 25: 1.75175e-4, 50: 3.5e-7}
HEAD_BIAS = {1: 1.015e-4, 2: 1.68e-4, 5: 3.675e-4, 9: 6.335e-4, 25: 3.50175e-4, 50: 3.5e-7}
RUNS = {"rgbnt201/sdtps.yaml": (50, 10), "rgbnt100/sdtps.yaml": (30, 5), "msvr310/sdtps.yaml": (50, 10)}


def table(own: float, *, epochs: int, warmup: int) -> list[float]:
    """Rates of epochs 1, 2, ... without noise."""
    rates = []
    for epoch in range(1, epochs + 1):
        if epoch < warmup:
            rates.append(START + epoch * (own - START) / warmup)
        else:
            rates.append(FLOOR + (own - FLOOR) * (1 + math.cos(math.pi * epoch / epochs)) / 2)
    return rates


def noise(epoch: int) -> float:
    """1 plus the first of the normal draws of seed 42 + epoch that lies within +-0.67."""
    generator = torch.Generator().manual_seed(42 + epoch)
    draws = torch.stack([torch.randn(1, generator=generator) for _ in range(100)])
    return 1 + draws[draws.abs() < 0.67][0].item()


def groups() -> dict[str, list[tuple[str, nn.Parameter]]]:
    def pair() -> list[tuple[str, nn.Parameter]]:
        return [("weight", nn.Parameter(torch.ones(1))), ("bias", nn.Parameter(torch.ones(1)))]

    return {"backbone": pair(), "camera": pair()[:1], "classifier": pair()[:1], "other": pair()}


def rates_by_epoch(settings: TrainConfig) -> list[dict[str, float]]:
    """What the optimiser of these settings has in each epoch, set as the loop sets it."""
    optimizer = _make_optimizer(groups(), settings)
    found = []
    for epoch in range(1, settings.epochs + 1):
        set_lr(optimizer, lambda own, epoch=epoch: _factor(epoch, settings, own))
        found.append({group["name"]: group["lr"] for group in optimizer.param_groups})
    return found


@pytest.mark.parametrize("with_noise", [True, False])
@pytest.mark.parametrize("file", RUNS)
def test_rates_by_epoch_and_group(file: str, with_noise: bool) -> None:
    epochs, warmup = RUNS[file]
    config = load_config(OURS / file, ["preset=parity", f"train.lr_noise={str(with_noise).lower()}"])
    found = rates_by_epoch(config.train)
    factors = [noise(epoch) if with_noise and epoch < epochs else 1.0 for epoch in range(1, epochs + 1)]
    assert len(found) == epochs
    for name, own in OWN.items():
        rates = [rate * factor for rate, factor in zip(table(own, epochs=epochs, warmup=warmup), factors, strict=True)]
        assert [each[name] for each in found] == pytest.approx(rates, rel=1e-6), name


def test_rates_in_figures() -> None:
    settings = load_config(OURS / "rgbnt201/hdm_atmoe.yaml", ["preset=parity", "train.lr_noise=false"]).train
    found = rates_by_epoch(settings)
    for name, figures in (("backbone", TOWER), ("camera", HEADS), ("other", HEADS), ("other_bias", HEAD_BIAS)):
        assert {epoch: found[epoch - 1][name] for epoch in figures} == pytest.approx(figures, rel=1e-9), name
    tower = [each["backbone"] for each in found]
    assert tower == sorted(tower, reverse=True)  # down from the first epoch to the last


def test_rates_are_those_of_timms_own_scheduler() -> None:
    settings = load_config(OURS / "rgbnt201/sdtps.yaml", ["preset=parity"]).train
    optimizer = _make_optimizer(groups(), settings)
    scheduler = CosineLRScheduler(
        optimizer, 50, lr_min=FLOOR, warmup_t=10, warmup_lr_init=START, noise_range_t=(0, 50), noise_seed=42
    )
    for epoch, rates in enumerate(rates_by_epoch(settings), start=1):
        scheduler.step(epoch)
        assert rates == pytest.approx({group["name"]: group["lr"] for group in optimizer.param_groups}, rel=1e-9)


def test_the_noise_is_bounded_fixed_and_spares_the_last_epoch() -> None:
    factors = [noise_factor(epoch, epochs=50) for epoch in range(1, 51)]
    assert factors[:-1] == pytest.approx([noise(epoch) for epoch in range(1, 50)], rel=1e-6)
    assert factors[-1] == 1.0
    assert 0.33 < min(factors) < 0.4
    assert 1.6 < max(factors) < 1.67
    assert noise_factor(7, epochs=30) == factors[6]


@pytest.mark.parametrize("tower", ["clip", "imagenet"])
@pytest.mark.parametrize("direct", [1, 0])
def test_every_parameter_has_the_rate_that_its_name_has_upstream(tower: str, direct: int, tmp_path: Path) -> None:
    state = upstream_state(tower=tower, direct=direct, heads=2)
    torch.save(state, tmp_path / "DeMobest.pth")
    imported = read_upstream(tmp_path / "DeMobest.pth", image_size=IMAGE)
    sources = {rule.target: rule.sources for rule in upstream_rules(imported.facts)}
    file = CONFIGS / "RGBNT201/DeMo.yml"
    chosen = ["SOLVER.BASE_LR", "0.001"]
    chosen += ["MODEL.TRANSFORMER_TYPE", "vit_base_patch16_224"] if tower == "imagenet" else []
    own = ["model.backbone.name=vit_b16", "train.backbone_lr=8e-4", "model.backbone.drop_path=0"]
    preset = load_config(None, ["preset=parity", "train.lr=1e-3", *(own if tower == "imagenet" else [])])
    names = {id(parameter): name for name, parameter in imported.model.named_parameters()}
    for settings in (preset.train, load_upstream_yaml(file, chosen).config.train):
        found = {}
        for group in _make_optimizer(imported.model.parameter_groups(), settings).param_groups:
            for parameter in group["params"]:
                found |= dict.fromkeys(sources[names[id(parameter)]], group["base_lr"])
        frozen = {key for key in state if re.fullmatch(r"bottleneck\w*\.bias", key)}
        trained = {key for key in state if "running_" not in key and "num_batches" not in key} - frozen
        assert found == {key: pytest.approx(learning_rate(key, clip=tower == "clip", lr=1e-3)) for key in trained}


BY_DEFAULT = {"epochs": 50, "warmup_epochs": 10, "warmup_factor": 0.1, "final_lr_factor": 1e-3}


@pytest.mark.parametrize(
    ("switch", "changed"),
    [
        ("train.warmup_from=base", {1: {"backbone": START, "backbone_bias": START, "other_bias": START}}),
        ("train.final_lr_from=base", {50: {"backbone": FLOOR, "backbone_bias": FLOOR, "other_bias": FLOOR}}),
        ("train.cosine_under_warmup=true", {1: {"backbone": 9.5e-7}, 25: {"other": 1.75175e-4}}),
        ("train.lr_noise=true", {1: {"backbone": 5e-7 * noise(1), "other": START * noise(1)}}),
    ],
)
def test_each_switch_changes_what_it_says(switch: str, changed: dict[int, dict[str, float]]) -> None:
    settings = load_config(OURS / "rgbnt201/sdtps.yaml", [switch]).train
    found = rates_by_epoch(settings)
    for epoch, rates in changed.items():
        assert {name: found[epoch - 1][name] for name in rates} == pytest.approx(rates, rel=1e-6)
    by_default = rates_by_epoch(load_config(OURS / "rgbnt201/sdtps.yaml").train)
    if "from" in switch:  # groups at the base rate stay as they were, and so does the other end
        assert [each["other"] for each in found] == [each["other"] for each in by_default]
        other_end = 49 if "warmup" in switch else 0
        assert found[other_end] == by_default[other_end]


def test_without_a_switch_each_group_has_one_share_of_its_own_rate() -> None:
    for epoch, rates in enumerate(rates_by_epoch(load_config(OURS / "rgbnt201/sdtps.yaml").train), start=1):
        share = lr_factor(epoch, **BY_DEFAULT)
        assert rates == {name: own * share for name, own in {**OWN, "backbone_bias": 1e-5}.items()}


@pytest.mark.parametrize("warmup", [0, 1])
def test_a_warmup_that_ends_at_once_leaves_the_cosine(warmup: int) -> None:
    shape: dict[str, Any] = {"warmup_factor": 7.0, "final_lr_factor": 0.0, "cosine_under_warmup": True}
    assert lr_factor(1, epochs=2, warmup_epochs=warmup, **shape) == pytest.approx(0.5)
    assert lr_factor(2, epochs=2, warmup_epochs=warmup, **shape) == pytest.approx(0.0)


def parity_config(tree: Path, output: Path) -> Any:
    """A tiny run whose schedule, sampler, augmentation and evaluation are those of the preset, in fp32 for the CPU."""
    path = output.with_suffix(".yaml")
    tiny = tiny_config(tree, output).model_dump(mode="json")
    sections = {name: tiny[name] for name in ("data", "model")}
    for name in ("sampler", "augmentation", "interpolation"):
        sections["data"].pop(name)
    sections["model"]["backbone"].pop("position_interpolation")
    path.write_text(str({"preset": "parity", **sections, "output": str(output)}).replace("None", "null"))
    return load_config(path, ["train.epochs=4", "train.warmup_epochs=2", "train.precision=fp32", "train.device=cpu"])


def test_the_run_draws_its_batches_and_images_as_asked(tree: Path, tmp_path: Path) -> None:
    inputs = open_inputs(parity_config(tree, tmp_path / "run"))
    assert type(inputs.loader.batch_sampler) is UniformIdentitySampler
    assert not inputs.transform.shared_geometry
    assert type(open_inputs(tiny_config(tree, tmp_path / "run")).loader.batch_sampler) is IdentitySampler


def test_start_weights_are_resized_as_asked(tree: Path, tmp_path: Path) -> None:
    config = parity_config(tree, tmp_path / "run")
    start = create_vit("tiny", image_size=(32, 32), patch_size=8, width=16, depth=1, num_heads=2)
    nn.init.normal_(start.pos_embed)
    save_file(start.state_dict(), tmp_path / "start.safetensors")
    given = [f"model.backbone.pretrained={tmp_path / 'start.safetensors'}"]
    config = override_config(config, [*given, "model.backbone.pretrained_image_size=[32, 32]"])
    model = build_model(config.model, image_size=(32, 16), num_classes=2, num_cameras=2)
    expected = resize_positions(start.pos_embed, (4, 4), (4, 2))
    assert torch.allclose(model.backbone.vit.pos_embed, expected, atol=1e-6)


@pytest.mark.slow
def test_a_run_has_these_rates_and_resumes(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = override_config(parity_config(tree, tmp_path / "run"), ["train.checkpoint_every=1"])
    assert (config.data.sampler, config.data.augmentation.shared_geometry) == ("uniform_identity", False)
    whole = train(config, progress=False)
    entries = read_epochs(config.output)
    for epoch, entry in enumerate(entries, start=1):
        expected = {
            name: table(own, epochs=4, warmup=2)[epoch - 1] * (noise(epoch) if epoch < 4 else 1.0)
            for name, own in OWN.items()
        }
        assert entry["lr"] == pytest.approx({name: expected[name] for name in entry["lr"]}, rel=1e-6)
        assert {"backbone", "backbone_bias", "camera", "classifier", "other", "other_bias"} == entry["lr"].keys()

    plain = override_config(config, ["evaluate.missing=[nir, tir]", "evaluate.missing_as=absent"])
    zeros = override_config(plain, ["evaluate.missing_as=zeros"])
    absent, seen = (evaluate(config.output, config=each, progress=False)["feature"] for each in (plain, zeros))
    assert absent != seen

    cut = override_config(config, [f"output={tmp_path / 'cut'}"])
    run_epoch, calls = loop.train_epoch, []

    def stop_in_the_third(*arguments: Any, **named: Any) -> Any:
        calls.append(named["epoch"])
        if named["epoch"] == 3:
            raise KeyboardInterrupt
        return run_epoch(*arguments, **named)

    monkeypatch.setattr(loop, "train_epoch", stop_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        train(cut, progress=False)
    monkeypatch.setattr(loop, "train_epoch", run_epoch)
    assert train(cut, resume=True, progress=False)["feature"] == whole["feature"]
    assert [entry["lr"] for entry in read_epochs(cut.output)] == [entry["lr"] for entry in entries]
