"""A recorded evaluation gives the features of a plain one, and goes on plain where nothing can be recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tiny_run import tiny_config
from trireid.evaluation import recorded_run
from trireid.evaluation.features import extract_features
from trireid.evaluation.recorded_run import RecordedRun
from trireid.models.build import build_model
from trireid.models.reid import ReIDModel
from trireid.types import Batch, ReIDOutput


def batches(sizes: tuple[int, ...] = (4, 4, 4, 2)) -> list[Batch]:
    """Batches of which the last is smaller, and the third lacks an image."""
    made, start = [], 0
    for size in sizes:
        item = torch.arange(start, start + size)
        present = torch.ones(size, 3, dtype=torch.bool)
        present[0, 1] = start != 8
        images = torch.randn(size, 3, 3, 32, 16, generator=torch.Generator().manual_seed(start))
        made.append(Batch(images, present, label=item, camera=item % 2, item=item, seed=item))
        start += size
    return made


def tiny_model(tmp_path: Path, head: str) -> ReIDModel:
    config = tiny_config(tmp_path, tmp_path / "run", f"model.head={head}")
    return build_model(config.model, image_size=(32, 16), num_classes=4, num_cameras=2, load_pretrained=False)


class Replays:
    """In place of `RecordedModel`: notes the sizes of its batches, and fails at a call."""

    def __init__(self, model: ReIDModel, *, dtype: object, fails_at: int) -> None:
        self.model, self.fails_at, self.sizes = model, fails_at, []

    def __call__(self, images: Tensor, camera: Tensor) -> ReIDOutput:
        self.sizes.append(len(images))
        if len(self.sizes) == self.fails_at:
            raise RuntimeError("an operator waits\nlong text")
        return self.model(images, camera=camera)


@pytest.mark.parametrize(("fails_at", "replayed"), [(9, [4, 4]), (2, [4, 4]), (1, [4])])
def test_only_full_and_complete_batches_are_replayed_until_one_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fails_at: int,
    replayed: list[int],
) -> None:
    model, made = tiny_model(tmp_path, "none"), []

    def replays(model: ReIDModel, **given: Any) -> Replays:
        made.append(Replays(model, **given, fails_at=fails_at))
        return made[0]

    monkeypatch.setattr(recorded_run, "RecordedModel", replays)
    loader, presence = batches(), torch.cat([batch.present for batch in batches()])
    run = RecordedRun(model, batch_size=4, dtype=None)
    expected, found = (extract_features(model, loader, device="cpu", run=each) for each in (None, run))
    assert made[0].sizes == replayed
    assert torch.equal(found.present, presence)
    assert all(torch.equal(found.features[name], value) for name, value in expected.features.items())
    warned = "evaluations cannot be recorded here (RuntimeError: an operator waits): they run without" in caplog.text
    assert warned == (fails_at < 9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("head", ["sdtps", "hdm_atmoe"])
def test_replays_follow_the_weights(tmp_path: Path, head: str) -> None:
    model = tiny_model(tmp_path, head).cuda()
    run = RecordedRun(model, batch_size=4, dtype=torch.bfloat16)
    for _ in range(2):
        given: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
        expected, found = (extract_features(model, batches(), **given, run=each) for each in (None, run))
        for name, value in expected.features.items():
            torch.testing.assert_close(found.features[name], value, atol=2e-2, rtol=2e-2)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
