"""The loss log and one training epoch of a model whose every step can be worked out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from trireid.config.schema import TrainConfig
from trireid.errors import RunError
from trireid.losses import reid_loss
from trireid.train.device import make_accelerator
from trireid.train.epoch import LossLog, make_gradients, train_epoch
from trireid.train.progress import progress_bar
from trireid.types import Batch, ReIDOutput


class Scaled(nn.Module):
    """One weight a channel: feature = weight x mean of the images, logits = feature."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, images: Tensor, present: Tensor | None = None, camera: Tensor | None = None) -> ReIDOutput:
        feature = images.mean(dim=(1, 3, 4)) * self.weight
        return ReIDOutput(features={"global": feature}, present=torch.ones(1), logits={"global": feature})


def batch(seed: int, scale: float = 1.0) -> Batch:
    images = torch.randn(6, 3, 3, 2, 2, generator=torch.Generator().manual_seed(seed)) * scale
    label = torch.tensor([0, 0, 1, 1, 2, 2])
    return Batch(
        images, torch.ones(6, 3, dtype=torch.bool), label, torch.zeros(6, dtype=torch.int64), *[torch.arange(6)] * 2
    )


@pytest.fixture
def accelerator() -> Accelerator:
    return make_accelerator(device=torch.device("cpu"), precision="fp32")


def run(model: nn.Module, batches: list[Batch], accelerator: Accelerator, **settings: object) -> dict[str, object]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with progress_bar("epoch", enabled=False) as bar:
        prepared, chosen = accelerator.prepare_model(model), TrainConfig(**settings)  # type: ignore[arg-type]
        gradients = partial(
            make_gradients,
            model=prepared,
            accelerator=accelerator,
            settings=chosen,
            transform=lambda images, seed, present: images,
        )
        return train_epoch(
            prepared,
            batches,  # type: ignore[arg-type]
            accelerator.prepare_optimizer(optimizer),
            gradients=gradients,
            accelerator=accelerator,
            settings=chosen,
            epoch=7,
            bar=bar,
        )


def slow_steps(batches: list[Batch], clip: float) -> tuple[Tensor, list[float]]:
    """The same steps by hand."""
    model, totals = Scaled(), []
    for one in batches:
        total = reid_loss(model(one.images), one.label)["total"]
        (gradient,) = torch.autograd.grad(total, model.weight)
        if clip and gradient.norm() > clip:
            gradient = gradient * clip / gradient.norm()
        with torch.no_grad():
            model.weight -= 0.1 * gradient
        totals.append(total.item())
    return model.weight.detach(), totals


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("log_every", [1, 2, 100])
def test_an_epoch_takes_the_steps_worked_out_by_hand(accelerator: Accelerator, clip: float, log_every: int) -> None:
    batches = [batch(seed) for seed in range(5)]
    model = Scaled()
    entry = run(model, batches, accelerator, clip_grad_norm=clip, log_every=log_every)
    weight, totals = slow_steps(batches, clip)
    assert torch.allclose(model.weight, weight, atol=1e-5)
    assert entry["loss"]["total"] == pytest.approx(sum(totals) / 5, rel=1e-5)
    assert (entry["num_steps"], entry["num_triplets"]) == (5, 30)
    assert entry["data_seconds"] >= 0
    assert entry["step_seconds"] > 0


def test_time_spent_waiting_for_data_is_not_counted_as_step_time(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("trireid.train.epoch.perf_counter", lambda: clock[0])

    class Slow(list[Batch]):
        def __iter__(self) -> Iterator[Batch]:
            for one in super().__iter__():
                clock[0] += 3.0  # the loader takes 3 seconds a batch
                yield one
                clock[0] += 3.0  # and some more before it can say that there is none left

    class Working(Scaled):
        def forward(self, *args: Tensor, **kwargs: Tensor) -> ReIDOutput:
            clock[0] += 0.5
            return super().forward(*args, **kwargs)

    entry = run(Working(), Slow([batch(0), batch(1)]), accelerator)
    assert entry["data_seconds"] == pytest.approx(3 + 6 + 3)
    assert entry["step_seconds"] == pytest.approx(2 * 0.5)


def test_a_loss_that_is_not_finite_names_epoch_step_and_terms(accelerator: Accelerator) -> None:
    broken = batch(2)
    broken.images[0] = torch.nan
    with pytest.raises(RunError, match=r"epoch 7, step 3 \(total nan, global/id nan, global/triplet nan\).*train\.lr"):
        run(Scaled(), [batch(0), batch(1), broken, batch(3)], accelerator, log_every=10)


def test_the_step_is_found_in_every_window_of_looks() -> None:
    log = LossLog(2)
    log.add({"total": torch.tensor(1.0), "head/id": torch.tensor(2.0)})
    log.read()
    log.add({"total": torch.tensor(3.0), "head/id": torch.tensor(4.0)})
    log.add({"total": torch.tensor(torch.inf), "head/id": torch.tensor(4.0)})
    with pytest.raises(RunError, match=r"epoch 2, step 3 \(total inf, head/id 4\)"):
        log.read()


def test_means_of_all_looks() -> None:
    log = LossLog(1)
    for value in (1.0, 2.0, 6.0):
        log.add({"total": torch.tensor(value)})
        log.read()
        log.read()
    assert log.means() == {"total": 3.0}


def test_no_batch_is_an_error(accelerator: Accelerator) -> None:
    with pytest.raises(RunError, match="no batch"):
        run(Scaled(), [], accelerator)
