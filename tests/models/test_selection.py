"""Selection: pure functions against closed forms, gradcheck in float64, and error texts."""

import pytest
import torch
from torch.autograd import gradcheck

from trireid.errors import InputError
from trireid.models import selection as select


@pytest.mark.parametrize(
    ("count", "ratio", "kept"),
    [(128, 0.5, 64), (196, 0.5, 98), (10, 0.7, 7), (3, 0.5, 2), (7, 0.01, 1), (5, 1.0, 5), (1, 0.5, 1)],
)
def test_keep_count_is_ceiling_and_at_least_one(count, ratio, kept):
    assert select.keep_count(count, ratio) == kept


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01])
def test_keep_count_names_the_allowed_range(ratio):
    with pytest.raises(InputError, match=r"keep ratio is .* \(0, 1\]"):
        select.keep_count(10, ratio)


def test_select_top_breaks_ties_by_index_and_orders_by_grid():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.5, 0.5, 1.0]])
    indices, mask = select.select_top(scores, 4)
    assert indices.tolist() == [[1, 2, 3, 5]]
    assert mask.tolist() == [[False, True, True, True, False, True]]


def test_cosine_scores_match_loops():
    patches, guides = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 4)
    scores = select.cosine_scores(patches, guides)
    for b, m, g, n in [(0, 0, 0, 0), (1, 2, 0, 4), (0, 1, 2, 3)]:
        expected = torch.cosine_similarity(patches[b, m, n], guides[b, g], dim=0)
        assert torch.allclose(scores[b, m, g, n], expected, atol=1e-6)


def test_min_max_of_a_constant_row_is_zero_and_finite():
    normalised = select.min_max_normalise(torch.tensor([[2.0, 2.0], [1.0, 3.0]]))
    assert torch.allclose(normalised, torch.tensor([[0.0, 0.0], [0.0, 1.0]]))


def test_quantile_normalise_is_not_ruled_by_one_outlier():
    row = torch.linspace(0, 1, 100)
    spoiled = row.clone()
    spoiled[0] = -1000.0
    plain = select.min_max_normalise(spoiled)[1:]
    robust = select.quantile_normalise(spoiled)[10:90]
    assert plain.max() - plain.min() < 0.01
    assert robust.max() - robust.min() > 0.8


def test_guide_weights_leave_out_absent_guides_and_keep_the_sum():
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    weights = select.guide_weights(present)
    assert weights[0].tolist() == [[2.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0]]
    assert (weights[1, :, 1] == 0).all()
    assert torch.allclose(weights.sum(-1), torch.tensor(4.0))


@pytest.mark.parametrize("num_kept", [1, 3, 7])
def test_k_hot_sums_to_k(num_kept):
    relaxed = select.relax_k_hot(torch.randn(4, 7), num_kept, tau=0.3)
    assert torch.allclose(relaxed.sum(-1), torch.tensor(float(num_kept)), atol=1e-4)
    assert ((relaxed >= 0) & (relaxed <= 1)).all()


def test_k_hot_gradient_is_the_implicit_one():
    scores = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda s: select.relax_k_hot(s, 3, tau=0.5), (scores,), eps=1e-6, atol=1e-5)


def test_k_hot_jacobian_rows_sum_to_zero():
    scores = torch.randn(6, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda s: select.relax_k_hot(s, 2, tau=0.7), scores)
    assert torch.allclose(jacobian.sum(-1), torch.zeros(6, dtype=torch.float64), atol=1e-9)
    slope = (p := select.relax_k_hot(scores, 2, tau=0.7)) * (1 - p)
    closed = (torch.diag(slope) - torch.outer(slope, slope) / slope.sum()) / 0.7
    assert torch.allclose(jacobian, closed, atol=1e-9)


def test_k_hot_at_ratio_one_has_no_gradient():
    scores = torch.randn(5, requires_grad=True)
    relaxed = select.relax_k_hot(scores, 5, tau=1.0)
    relaxed.square().sum().backward()
    assert torch.allclose(relaxed, torch.ones(5))
    assert torch.isfinite(scores.grad).all()


def test_softmax_relaxation_gradient():
    scores = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda s: select.relax_softmax(s, tau=0.7), (scores,))


def test_straight_through_is_hard_forward_and_soft_backward():
    scores = torch.randn(6, dtype=torch.float64, requires_grad=True)
    _, mask = select.select_top(scores.detach(), 3)
    downstream = torch.randn(6, dtype=torch.float64)
    decision = select.straight_through(mask, select.relax_softmax(scores, tau=1.0))
    assert decision.tolist() == mask.double().tolist()
    (given,) = torch.autograd.grad((decision * downstream).sum(), scores)
    (soft,) = torch.autograd.grad((select.relax_softmax(scores, tau=1.0) * downstream).sum(), scores)
    assert torch.allclose(given, soft)


def test_masked_softmax_equals_gather_and_softmax():
    logits, scores = torch.randn(2, 4, 9), torch.randn(2, 9)
    indices, mask = select.select_top(scores, 4)
    everywhere = select.masked_softmax(logits, mask.float(), mask)
    gathered = logits.gather(-1, indices.unsqueeze(1).expand(-1, 4, -1)).softmax(-1)
    assert torch.allclose(everywhere.gather(-1, indices.unsqueeze(1).expand(-1, 4, -1)), gathered, atol=1e-6)
    assert (everywhere[~mask.unsqueeze(1).expand_as(everywhere)] == 0).all()


def test_masked_softmax_tells_dropped_patches_their_worth():
    """The gradient of a dropped decision is that of switching the patch on: dW/dD = exp(l) / Z at D = 0."""
    logits = torch.tensor([[[0.0, 1.0, 0.5]]], dtype=torch.float32)
    mask = torch.tensor([[True, True, False]])
    decision = mask.float().requires_grad_(True)
    values = torch.tensor([1.0, 2.0, 10.0])
    (select.masked_softmax(logits, decision, mask) * values).sum().backward()
    weights = logits[0, 0].exp() * mask[0]
    mean = (weights * values).sum() / weights.sum()
    expected = logits[0, 0, 2].exp() / weights.sum() * (values[2] - mean)
    assert torch.allclose(decision.grad[0, 2], expected, atol=1e-5)


def test_masked_softmax_stays_finite_when_a_dropped_logit_towers():
    logits = torch.tensor([[[0.0, 0.0, 1e4]]], requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    decision = mask.float().requires_grad_(True)
    weights = select.masked_softmax(logits, decision, mask)
    (weights * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert torch.allclose(weights, torch.tensor([[[0.5, 0.5, 0.0]]]))
    assert decision.grad.abs().max() < 10


def test_fuse_dropped_is_a_softmax_mean_of_the_dropped():
    patches, scores = torch.randn(5, 3), torch.tensor([0.1, 0.9, 0.3, 0.8, 0.2])
    _, mask = select.select_top(scores, 2)
    weights = scores[[0, 2, 4]].softmax(0)
    expected = (weights[:, None] * patches[[0, 2, 4]]).sum(0)
    assert torch.allclose(select.fuse_dropped(patches, scores, mask), expected, atol=1e-6)


def test_fuse_dropped_is_defined_when_nothing_is_dropped():
    patches, scores = torch.randn(4, 3), torch.rand(4)
    fused = select.fuse_dropped(patches, scores, torch.ones(4, dtype=torch.bool))
    assert torch.allclose(fused, scores.softmax(0) @ patches, atol=1e-6)


def test_gumbel_noise_has_the_mean_and_variance_of_the_distribution():
    noise = select.gumbel_noise(torch.zeros(200_000), generator=torch.Generator().manual_seed(0))
    assert abs(float(noise.mean()) - 0.5772) < 0.02
    assert abs(float(noise.var()) - torch.pi**2 / 6) < 0.05
