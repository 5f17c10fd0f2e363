"""Run by test_gathering.py in two gloo processes: what is gathered is what one process would compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, distributed, nn

from trireid.errors import InputError, RunError
from trireid.evaluation.features import FeatureSet
from trireid.models.bnneck import BNNeckClassifier
from trireid.train.gathering import gather_features, gather_output, gather_rows, synchronise_statistics
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


def check_output() -> None:
    """Only what the losses read; an auxiliary loss becomes the mean, and keeps its own gradient."""
    generator = torch.Generator().manual_seed(0)
    feature, logits = torch.randn(4, 6, generator=generator), torch.randn(4, 3, generator=generator)
    auxiliary = torch.tensor(1.0 + distributed.get_rank(), requires_grad=True)
    output = ReIDOutput(
        features={"global": own(feature), "rgb": own(feature)},
        present=own(torch.tensor([[True] * 3, [False, True, True]] * 2)),
        logits={"global": own(logits)},
        auxiliary={"cut": auxiliary},
    )
    gathered = gather_output(output)
    assert set(gathered.features) == {"global"}
    torch.testing.assert_close(gathered.features["global"], feature)
    torch.testing.assert_close(gathered.logits["global"], logits)
    assert gathered.present.tolist() == [[True] * 3, [False, True, True]] * 2
    assert gathered.auxiliary["cut"].item() == 1.5
    gathered.auxiliary["cut"].backward()
    assert auxiliary.grad is not None
    assert auxiliary.grad.item() == 1  # and the mean over the processes makes it 1 / 2 of each


def check_statistics(present: list[bool] | None) -> None:
    """A neck and a plain normalisation on shares: output, gradient and running statistics of the whole batch."""
    torch.manual_seed(0)
    whole = torch.randn(4, 6, dtype=torch.float64)
    weight = torch.randn(4, 3, dtype=torch.float64)
    shown = None if present is None else torch.tensor(present)
    modules = [nn.ModuleList([nn.BatchNorm1d(6), BNNeckClassifier(6, 3)]).double() for _ in range(2)]
    modules[1].load_state_dict(modules[0].state_dict())
    synchronise_statistics(modules[1])
    results = []
    for module, take in zip(modules, (lambda rows: rows, own), strict=True):
        rows = take(whole).clone().requires_grad_()
        logits = module[1](module[0](rows), present=None if shown is None else take(shown))
        (logits * take(weight)).sum().backward()
        module.eval()
        results.append((logits, rows.grad, module[1](module[0](rows))))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(own(one), two)
    for name, value in modules[0].state_dict().items():
        torch.testing.assert_close(value, modules[1].state_dict()[name])


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
    check_output()
    # All; uneven shares; none in the second process; one alone, which has no variance; nobody.
    for present in (
        None,
        [True, True, True, False],
        [True, True, False, False],
        [False, False, True, False],
        [False] * 4,
    ):
        check_statistics(present)
    check_features()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
