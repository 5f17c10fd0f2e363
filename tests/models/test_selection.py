"""Selection: pure functions against closed forms, gradcheck in float64, and error texts."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from trireid.errors import InputError
from trireid.models import selection as select


class Operators(TorchDispatchMode):
    """Names of all operators that run within."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.__name__)
        return function(*args, **(kwargs or {}))


WAITING = {"_local_scalar_dense.default", "lift_fresh.default", "_to_copy.default", "nonzero.default"}
"""Operators that read a value on the host or bring one from there, both of which wait for a GPU."""


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


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(9,), (2, 3, 9)])
@pytest.mark.parametrize("num_kept", [1, 4, 9])
def test_select_top_compiles_to_the_same_choice_without_a_sort(shape, num_kept):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    scores = torch.randint(-2, 3, shape) / 2  # many ties
    scores[..., 5] = torch.nan  # a model that is broken is to say so by its features, not by an index out of range
    indices, mask = torch.compile(select.select_top, backend=backend, dynamic=False)(scores, num_kept)
    expected = select.select_top(scores, num_kept)
    assert torch.equal(indices, expected[0])
    assert torch.equal(mask, expected[1])
    assert len(graphs) == 1
    assert not any("sort" in str(node.target) for node in graphs[0].graph.nodes)


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


@pytest.mark.parametrize("count", [1, 2, 5, 21, 128])
@pytest.mark.parametrize(("low", "high"), [(0.05, 0.95), (0.25, 1.0), (0.0, 0.5)])
def test_quantile_normalise_stretches_between_the_quantiles_of_torch(count, low, high):
    scores = torch.randn(3, 4, count, generator=torch.Generator().manual_seed(count))
    start, end = (torch.quantile(scores, share, dim=-1, keepdim=True) for share in (low, high))
    expected = ((scores - start) / (end - start + 1e-8)).clamp(0, 1)
    assert torch.allclose(select.quantile_normalise(scores, low=low, high=high), expected, atol=2e-6)


def test_quantile_normalise_brings_nothing_from_the_host():
    scores = torch.randn(2, 9)
    with Operators() as operators:
        select.quantile_normalise(scores)
    assert not WAITING & set(operators.names)


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


def bisected(scores, num_kept, tau):
    """The definition, by two hundred halvings in float64."""
    scores = scores.double()
    low, high = scores.amin(-1, keepdim=True) - 800 * tau, scores.amax(-1, keepdim=True) + 800 * tau
    for _ in range(200):
        middle = (low + high) / 2
        too_many = torch.sigmoid((scores - middle) / tau).sum(-1, keepdim=True) > num_kept
        low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
    return torch.sigmoid((scores - low) / tau)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("tau", [0.01, 0.3, 1.0, 20.0])
@pytest.mark.parametrize(("count", "num_kept"), [(2, 1), (9, 8), (128, 64), (128, 1), (196, 195)])
def test_k_hot_equals_bisection(count, num_kept, tau, dtype, tolerance):
    scores = torch.rand(6, count, generator=torch.Generator().manual_seed(count), dtype=dtype) * 2
    relaxed = select.relax_k_hot(scores, num_kept, tau=tau)
    scale = max(1.0, 1.0 / tau)  # the digits of a score are worth more where the temperature is low
    assert torch.allclose(relaxed.double(), bisected(scores, num_kept, tau), atol=tolerance * scale)
    assert torch.allclose(
        relaxed.sum(-1), torch.tensor(float(num_kept), dtype=dtype), atol=tolerance * scale * count**0.5
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [0.01, 1.0])
def test_k_hot_is_finite_and_hard_for_scores_far_apart(tau, dtype):
    scores = torch.linspace(-1e4 / tau, 1e4 / tau, 9, dtype=dtype).requires_grad_(True)
    relaxed = select.relax_k_hot(scores, 4, tau=tau)
    relaxed.square().sum().backward()
    assert torch.allclose(relaxed, (torch.arange(9) >= 5).to(dtype), atol=1e-6)
    assert torch.isfinite(scores.grad).all()


def test_k_hot_of_equal_scores_is_the_share():
    assert torch.allclose(select.relax_k_hot(torch.full((2, 8), 3.0), 3, tau=0.1), torch.tensor(0.375))


@pytest.mark.parametrize("sections", [2, 4, 32])
def test_the_threshold_does_not_depend_on_the_number_of_sections(sections):
    scaled = torch.randn(5, 33, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    threshold = select.k_hot_threshold(scaled, 11, sections=sections)
    assert torch.allclose(torch.sigmoid(scaled - threshold).sum(-1), torch.tensor(11.0).double(), atol=1e-12)
    single = select.k_hot_threshold(scaled.float(), 11, sections=sections)
    assert torch.allclose(single.double(), threshold, atol=3e-6)


def test_k_hot_is_few_operators_and_never_waits_for_a_value():
    scores = torch.randn(4, 128, requires_grad=True)
    with Operators() as operators:
        select.k_hot_threshold(scores.detach(), 64)  # as many sections as on a GPU
    assert len(operators.names) < 90
    with Operators() as whole:
        select.relax_k_hot(scores, 64, tau=1.0).square().sum().backward()
    assert not WAITING & {*operators.names, *whole.names}


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
    assert torch.equal(relaxed, torch.ones(5))
    assert torch.equal(scores.grad, torch.zeros(5))


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
