"""Run by test_gathering.py in two gloo processes: what is gathered is what one process would compute."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, distributed, nn

from trireid.errors import InputError, RunError
from trireid.evaluation.features import FeatureSet
from trireid.losses import reid_loss
from trireid.models.bnneck import BNNeckClassifier
from trireid.train.gathering import gather_features, gather_output, gather_rows, synchronise_statistics
from trireid.train.gradient_mean import GradientMean
from trireid.types import ReIDOutput

CPU = torch.device("cpu")


def own(rows: Tensor) -> Tensor:
    """The part of this process."""
    return rows.chunk(2)[distributed.get_rank()]


def check_rows() -> None:
    """Order, types, and the gradient: a sum over the processes."""
    whole = torch.arange(24.0, dtype=torch.float64).view(4, 6)
    for dtype in (torch.float64, torch.bfloat16, torch.bool, torch.int64):
        torch.testing.assert_close(gather_rows(own(whole.to(dtype))), whole.to(dtype))
    part = own(whole).T.contiguous().T.requires_grad_()  # columns first in memory
    (gather_rows(part) * whole * (1 + distributed.get_rank())).sum().backward()
    torch.testing.assert_close(part.grad, own(whole) * 3)  # 1 + 2


class Classifiers(nn.Module):
    """The part of a model that `gather_output` uses."""

    def __init__(self) -> None:
        super().__init__()
        self.classifiers = nn.ModuleDict({"rgb": BNNeckClassifier(6, 3)})

    def classify(self, features: dict[str, Tensor], present: Tensor | None) -> dict[str, Tensor]:
        shown = None if present is None else present[:, 0]
        return {name: neck(features[name], present=shown) for name, neck in self.classifiers.items()}


def check_output(shown: list[bool], *, complete: bool) -> None:
    """Only what the losses read; an auxiliary loss becomes the mean, and keeps its own gradient.

    Loss, gradients of features, mean gradients of the classifiers and their statistics are those of the whole batch.
    """
    torch.manual_seed(0)
    feature, label = torch.randn(4, 6, dtype=torch.float64), torch.tensor([0, 0, 1, 2])
    present = torch.tensor([[one, True, True] for one in shown])
    models = [Classifiers().double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    whole = feature.clone().requires_grad_()
    features = {"rgb": whole}
    logits = models[0].classify(features, None if complete else present)
    loss = reid_loss(ReIDOutput(features, present, logits), label)["total"]
    loss.backward()

    part = own(feature).clone().requires_grad_()
    auxiliary = torch.tensor(1.0 + distributed.get_rank(), requires_grad=True)
    output = ReIDOutput({"rgb": part, "nir": part}, own(present), auxiliary={"cut": auxiliary})
    gathered, labels = gather_output(output, own(label), model=models[1], complete=complete)
    assert set(gathered.features) == {"rgb"}
    assert gathered.present.tolist() == present.tolist()
    assert labels.tolist() == label.tolist()
    assert gathered.auxiliary["cut"].item() == 1.5
    total = reid_loss(gathered, labels)["total"]
    torch.testing.assert_close(total, loss + 1.5)
    total.backward()
    assert auxiliary.grad is not None
    assert auxiliary.grad.item() == 1  # and the mean over the processes makes it 1 / 2 of each
    torch.testing.assert_close(part.grad, own(whole.grad) * 2)  # and the mean makes it that of the whole batch
    for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)  # equal in all processes, and so is their mean
    for name, value in models[0].state_dict().items():
        torch.testing.assert_close(value, models[1].state_dict()[name])


def check_statistics() -> None:
    """A normalisation before the classifiers, on shares: output, gradient and running statistics of the whole batch."""
    torch.manual_seed(0)
    whole = torch.randn(4, 6, dtype=torch.float64)
    weight = torch.randn(4, 6, dtype=torch.float64)
    modules = [nn.Sequential(nn.BatchNorm1d(6)).double() for _ in range(2)]
    modules[1].load_state_dict(modules[0].state_dict())
    synchronise_statistics(modules[1])
    results = []
    for module, take in zip(modules, (lambda rows: rows, own), strict=True):
        rows = take(whole).clone().requires_grad_()
        normalised = module(rows)
        (normalised * take(weight)).sum().backward()
        module.eval()
        results.append((normalised, rows.grad, module(rows)))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(own(one), two)
    for name, value in modules[0].state_dict().items():
        torch.testing.assert_close(value, modules[1].state_dict()[name])


def check_mean(bucket_bytes: int) -> None:
    """Means of gradients in one message or many, the same steps as with DistributedDataParallel, unused weights too."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4) for _ in range(3)]
    models = [nn.Sequential(*map(copy.deepcopy, layers)) for _ in range(2)]
    wrapped = nn.parallel.DistributedDataParallel(models[0])
    models[1].unused = nn.Parameter(torch.zeros(3))  # a name that nn.Sequential does not run
    with torch.no_grad():
        models[1][0].weight += distributed.get_rank()
    mean = GradientMean(models[1], bucket_bytes=bucket_bytes)
    for step in range(3):
        rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(2 * step + distributed.get_rank()))
        wrapped(rows).square().sum().backward()
        with mean:
            models[1](rows).square().sum().backward()
        assert not models[1].unused.grad.any()
        models[1].unused.grad = None
        for one, two in zip(models[0].parameters(), models[1][:3].parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad)
            one.grad = two.grad = None
        with pytest.raises(InputError), mean:  # a step that fails leaves nothing behind
            raise InputError("no loss")


def part_of(items: list[int]) -> FeatureSet | None:
    """Features that are the number of their item."""
    if not items:
        return None
    item = torch.tensor(items)
    feature = {"global": item.float()[:, None].expand(-1, 2), "head": item.float()[:, None]}
    return FeatureSet(feature, torch.ones(len(item), 3, dtype=torch.bool), item)


def check_features() -> None:
    """Parts of any size, in any order; an error of one process is everybody's."""
    rank = distributed.get_rank()
    for parts in ([[0, 2, 4], [1, 3]], [[], [0, 1]], [[1, 0], []]):
        gathered = gather_features(lambda parts=parts: part_of(parts[rank]), device=CPU)
        assert (gathered is None) == (rank == 1)
        if gathered is not None:
            expected = torch.arange(sum(map(len, parts)))
            assert torch.equal(gathered.item, expected)
            assert torch.equal(gathered.features["global"], expected.float()[:, None].expand(-1, 2))
            assert torch.equal(gathered.features["head"], expected.float()[:, None])
            assert gathered.present.dtype == torch.bool
            assert gathered.present.all()

    def broken() -> FeatureSet | None:
        if rank == 1:
            raise InputError("item 7 is NaN")
        return part_of([0])

    expected = (RunError, "the evaluation failed in another process: item 7 is NaN")
    kind, message = (InputError, "item 7 is NaN") if rank == 1 else expected
    with pytest.raises(kind, match=message):
        gather_features(broken, device=CPU)


def main() -> None:
    """All checks."""
    distributed.init_process_group("gloo")
    check_rows()
    check_statistics()
    # All; uneven shares; none in the second process; one alone, which has no variance; nobody.
    check_output([True] * 4, complete=True)
    for shown in ([True] * 4, [True, True, True, False], [True, True, False, False], [False, False, True, False]):
        check_output(shown, complete=False)
    check_output([False] * 4, complete=False)
    for bucket_bytes in (1, 100, 2**20):
        check_mean(bucket_bytes)
    check_features()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
