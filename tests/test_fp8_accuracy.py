"""benchmarks/fp8_accuracy.py: the choices of one model beside those of another, and imposed on it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from trireid.config.schema import BackboneConfig, ModelConfig, SlimmingConfig
from trireid.models.build import build_model


def test_choices_are_compared_and_imposed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    from fp8_accuracy import Choices, changed_choices, compare_choices

    torch.manual_seed(0)
    stages = (SlimmingConfig(after_block=1, keep_ratio=0.5), SlimmingConfig(after_block=2, keep_ratio=0.5))
    tiny = BackboneConfig(name="tiny", pretrained="none", width=32, depth=3, num_heads=2)
    settings = ModelConfig(backbone=tiny, head="none", slimming=stages)
    model = build_model(settings, image_size=(32, 32), num_classes=4, num_cameras=0).eval()
    other, images = copy.deepcopy(model), torch.randn(3, 3, 3, 32, 32)
    with torch.no_grad():  # the score alone: where choices are imposed, only the weights of the fused token differ
        other.backbone.predictors["block1"].score.weight.neg_()
    fp32, same, changed = compare_choices(model, {"same": model, "other": other}, images)
    assert fp32["cosine_given"] > 0.999
    assert same["changed"] == [0.0, 0.0]
    assert same["cosine"] == pytest.approx(1.0)
    assert same["same_items"] == 1.0
    assert changed["changed"][0] > 0.5
    assert changed["same_items"] == 0.0
    assert changed["cosine"] < changed["cosine_given"]

    present = torch.ones(3, 3, dtype=torch.bool)
    present[1, 2] = False
    with torch.inference_mode(), Choices(model) as noted, Choices(other, noted) as imposed, Choices(other) as free:
        for batch, shown in ((images, present), (images[:2], present[:2])):
            noted.of(lambda batch=batch, shown=shown: model(batch, shown), shown)
        for choices in (imposed, free):
            other.backbone._cut = choices._cut
            for batch, shown in ((images, present), (images[:2], present[:2])):
                choices.of(lambda batch=batch, shown=shown: other(batch, shown), shown)
    shares, agree = changed_choices(imposed, noted, 5)
    assert shares == [0.0, 0.0]
    assert agree.all()
    shares, agree = changed_choices(free, noted, 4)
    first, other_first = noted.kept[0][0], free.kept[0][0]
    assert not first[1, 2].any()
    differing = sum(int((mine & ~yours).sum()) for mine, yours in zip(other_first, first, strict=True))
    last, other_last = noted.kept[1][0][:1], free.kept[1][0][:1]
    differing += int((other_last & ~last).sum())
    assert shares[0] == pytest.approx(differing / int(first.sum() + last.sum()))
    assert agree.tolist() == [False] * 4
