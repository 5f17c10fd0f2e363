"""Losses against slow double loops, closed forms and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trireid.errors import InputError
from trireid.losses import batch_hard_triplet, hardest_pairs, id_loss, reid_loss
from trireid.types import ReIDOutput


def slow_triplet(feature: Tensor, label: Tensor, margin: float | None) -> float:
    """The definition, item by item, in Python numbers."""
    rows, labels = feature.tolist(), label.tolist()
    values = []
    for i, anchor in enumerate(rows):
        positives = [math.dist(anchor, row) for j, row in enumerate(rows) if labels[j] == labels[i]]
        negatives = [math.dist(anchor, row) for j, row in enumerate(rows) if labels[j] != labels[i]]
        if negatives:
            gap = max(positives) - min(negatives)
            values.append(math.log1p(math.exp(gap)) if margin is None else max(0.0, gap + margin))
    return sum(values) / len(values) if values else 0.0


def slow_cross_entropy(logits: Tensor, label: Tensor, smoothing: float) -> float:
    total = 0.0
    for row, truth in zip(logits.tolist(), label.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(value) for value in row))
        for index, value in enumerate(row):
            target = (1 - smoothing) * (index == truth) + smoothing / len(row)
            total -= target * (value - log_sum)
    return total / len(logits)


def random_batch(seed: int, size: int = 12, dim: int = 5, identities: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    feature = torch.randn(size, dim, generator=generator, dtype=torch.float64)
    return feature, torch.randint(identities, (size,), generator=generator)


@pytest.mark.parametrize("margin", [None, 0.0, 0.3, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_triplet_equals_the_slow_loop(seed: int, margin: float | None) -> None:
    feature, label = random_batch(seed)
    assert batch_hard_triplet(feature, label, margin=margin).item() == pytest.approx(
        slow_triplet(feature, label, margin), rel=1e-12
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_id_loss_equals_the_slow_loop(smoothing: float) -> None:
    logits, label = random_batch(3, dim=6, identities=6)
    got = id_loss(logits, label, label_smoothing=smoothing).item()
    assert got == pytest.approx(slow_cross_entropy(logits, label, smoothing), rel=1e-12)


@pytest.mark.parametrize("margin", [None, 0.3])
def test_triplet_gradient_equals_finite_differences(margin: float | None) -> None:
    feature, label = random_batch(1, size=8, dim=3, identities=3)
    feature.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: batch_hard_triplet(x, label, margin=margin), (feature,))


def test_soft_margin_of_four_points_in_closed_form() -> None:
    # On a line: identity 0 at 0 and 1, identity 1 at 3 and 7.
    feature = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    gaps = [1 - 3, 1 - 2, 4 - 2, 4 - 6]
    expected = sum(math.log1p(math.exp(gap)) for gap in gaps) / 4
    assert batch_hard_triplet(feature, torch.tensor([0, 0, 1, 1])).item() == pytest.approx(expected, rel=1e-6)


def test_triplet_does_not_depend_on_the_order_of_the_batch() -> None:
    feature, label = random_batch(2)
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(0))
    assert batch_hard_triplet(feature[order], label[order]).item() == pytest.approx(
        batch_hard_triplet(feature, label).item(), rel=1e-12
    )


def test_one_identity_has_loss_and_gradient_zero() -> None:
    feature = torch.randn(4, 3, requires_grad=True)
    loss = batch_hard_triplet(feature, torch.zeros(4, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(feature.grad, torch.zeros(4, 3))


def test_single_images_pair_with_themselves() -> None:
    feature = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    loss = batch_hard_triplet(feature, torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log1p(math.exp(-5.0)), rel=1e-5)
    assert torch.isfinite(feature.grad).all()
    assert feature.grad.abs().sum() > 0


def test_equal_features_have_a_finite_gradient() -> None:
    feature = torch.ones(6, 4, requires_grad=True)
    loss = batch_hard_triplet(feature, torch.tensor([0, 0, 1, 1, 2, 2]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2.0))
    assert torch.equal(feature.grad, torch.zeros(6, 4))


def test_batch_of_one_is_finite() -> None:
    feature = torch.randn(1, 3, requires_grad=True)
    loss = batch_hard_triplet(feature, torch.tensor([0]))
    loss.backward()
    assert loss.item() == 0.0


def test_mining_survives_a_large_common_offset() -> None:
    # The offset is 1e4 times the differences: without centring, float32 loses them.
    feature, label = random_batch(4, size=16, dim=8)
    shifted = (feature + 1e4).float()
    true_pairs = hardest_pairs(shifted.double(), label)
    got_pairs = hardest_pairs(shifted, label)
    assert torch.equal(got_pairs[0], true_pairs[0])
    assert torch.equal(got_pairs[1], true_pairs[1])


def test_half_precision_is_computed_in_float32_under_autocast() -> None:
    feature, label = random_batch(5)
    half = feature.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = batch_hard_triplet(half, label)
        logits = id_loss(half, label % 5)
    assert loss.dtype == torch.float32
    assert logits.dtype == torch.float32
    assert loss.item() == pytest.approx(slow_triplet(half.double(), label, None), rel=1e-5)


def two_pairs() -> tuple[ReIDOutput, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = {name: torch.randn(6, 4, generator=generator, requires_grad=True) for name in ("global", "head", "rgb")}
    logits = {name: torch.randn(6, 3, generator=generator, requires_grad=True) for name in ("global", "head")}
    output = ReIDOutput(features=features, present=torch.ones(6, 3, dtype=torch.bool), logits=logits)
    return output, torch.tensor([0, 0, 1, 1, 2, 2])


def test_reid_loss_sums_the_pairs_with_equal_weight() -> None:
    output, label = two_pairs()
    terms = reid_loss(output, label, id_weight=0.25, triplet_weight=2.0, label_smoothing=0.1, margin=0.3)
    expected = 0.0
    for name in ("global", "head"):
        expected += 0.25 * slow_cross_entropy(output.logits[name], label, 0.1)
        expected += 2.0 * slow_triplet(output.features[name], label, 0.3)
        assert terms[f"{name}/id"].item() == pytest.approx(
            slow_cross_entropy(output.logits[name], label, 0.1), rel=1e-5
        )
        assert terms[f"{name}/triplet"].item() == pytest.approx(
            slow_triplet(output.features[name], label, 0.3), rel=1e-5
        )
    assert terms["total"].item() == pytest.approx(expected, rel=1e-5)
    assert set(terms) == {"total", "global/id", "global/triplet", "head/id", "head/triplet"}
    assert [name for name, value in terms.items() if value.requires_grad] == ["total"]


def test_reid_loss_reaches_every_pair_and_nothing_else() -> None:
    output, label = two_pairs()
    reid_loss(output, label)["total"].backward()
    for name in ("global", "head"):
        assert output.features[name].grad.abs().sum() > 0
        assert output.logits[name].grad.abs().sum() > 0
    assert output.features["rgb"].grad is None


def test_reid_loss_without_logits_says_what_to_do() -> None:
    output, label = two_pairs()
    with pytest.raises(InputError, match=r"model\.train\(\)"):
        reid_loss(ReIDOutput(features=output.features, present=output.present), label)


def test_reid_loss_names_logits_without_a_feature() -> None:
    output, label = two_pairs()
    broken = ReIDOutput(features={"head": output.features["head"]}, present=output.present, logits=output.logits)
    with pytest.raises(InputError, match="'global'"):
        reid_loss(broken, label)


def test_items_without_a_modality_are_left_out_of_its_pair():
    torch.manual_seed(0)
    label = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1])
    present = torch.ones(8, 3, dtype=torch.bool)
    present[[1, 5], 2] = False
    feature, logits = torch.randn(8, 4), torch.randn(8, 3)
    feature[[1, 5]] = 0.0
    seen = present[:, 2]
    output = ReIDOutput(features={"tir": feature}, present=present, logits={"tir": logits})
    terms = reid_loss(output, label)
    assert torch.allclose(terms["tir/id"], id_loss(logits[seen], label[seen]), atol=1e-6)
    # Identity 2 has one image left, which pairs with itself, as in the small batch.
    assert torch.allclose(terms["tir/triplet"], batch_hard_triplet(feature[seen], label[seen]), atol=1e-6)
    nobody = ReIDOutput(features={"tir": feature}, present=torch.zeros(8, 3).bool(), logits={"tir": logits})
    assert float(reid_loss(nobody, label)["total"]) == 0.0
