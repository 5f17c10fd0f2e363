"""The SDTPS head: against literal loops, gradients of both presets, tiny and odd sizes, permutations, presence."""

from typing import get_args

import pytest
import torch

from trireid.errors import InputError
from trireid.models.sdtps import PRESETS, SDTPS, slot_count
from trireid.names import SlotPoolingName
from trireid.types import modality_subsets

from reference import sdtps_reference

DIM, PATCHES = 12, 10


def make(preset="reference", *, num_patches=PATCHES, dim=DIM, **options):
    torch.manual_seed(3)
    return SDTPS(dim, num_patches, **{**PRESETS[preset], "aggr_ratio": 0.4, **options})


def inputs(batch=2, num_patches=PATCHES, dim=DIM, dtype=torch.float32):
    generator = torch.Generator().manual_seed(11)
    patches = torch.randn(batch, 3, num_patches, dim, generator=generator, dtype=torch.float64)
    guides = torch.randn(batch, 3, dim, generator=generator, dtype=torch.float64)
    return patches.to(dtype), guides.to(dtype)


def literal_weights(head, modality):
    predictor, aggregation = head.predictor, head.aggregation
    return {
        "p0_w": predictor[0].weight[modality],
        "p0_b": predictor[0].bias[modality],
        "p1_w": predictor[2].weight[modality, 0],
        "p1_b": predictor[2].bias[modality, 0],
        "ln_w": aggregation[0].weight[modality],
        "ln_b": aggregation[0].bias[modality],
        "a0_w": aggregation[1].weight[modality],
        "a0_b": aggregation[1].bias[modality],
        "a1_w": aggregation[3].weight[modality],
        "scale": head.scale[modality, 0, 0],
    }


@pytest.mark.parametrize(("sparse_ratio", "beta"), [(0.5, 0.25), (0.3, 0.0), (0.7, 0.5)])
def test_reference_forward_equals_literal_loops(sparse_ratio, beta):
    head = make(sparse_ratio=sparse_ratio, beta=beta).double().eval()
    with torch.no_grad():
        head.scale.copy_(torch.tensor([1.3, 0.7, 2.0]).view(3, 1, 1))
        for parameter in (head.aggregation[0].weight, head.aggregation[0].bias):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    patches, guides = inputs(dtype=torch.float64)
    out = head(patches, guides)
    for b in range(2):
        with torch.no_grad():
            feature, kept, slots = sdtps_reference(
                patches[b],
                guides[b],
                [literal_weights(head, m) for m in range(3)],
                sparse_ratio=sparse_ratio,
                aggr_ratio=0.4,
                beta=beta,
            )
        assert out.selection.indices[b].tolist() == kept
        # The fast code keeps scores and softmax in float32.
        assert torch.allclose(out.slots[b], slots, atol=1e-5)
        assert torch.allclose(out.feature[b], feature, atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("use_gumbel", [False, True])
@pytest.mark.parametrize("reader", get_args(SlotPoolingName))
def test_every_parameter_receives_a_finite_nonzero_gradient(preset, use_gumbel, reader):
    head = make(preset, use_gumbel=use_gumbel, reader=reader).train()
    patches, guides = inputs(batch=4)
    head(patches, guides).feature.square().sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def gradient_norms(head, dtype):
    """Norms at the predictor (score path) and at the aggregation (token path: the scores do not pass through it)."""
    patches, guides = inputs(batch=4)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        loss = head(patches, guides).feature.float().square().sum()
    loss.backward()
    score_path = torch.stack([p.grad.norm() for p in head.predictor.parameters()]).norm()
    return score_path, torch.stack([p.grad.norm() for p in head.aggregation.parameters()]).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("preset", PRESETS)
def test_score_path_gradient_stays_within_1e3_of_the_token_path(preset, dtype):
    score, token = gradient_norms(make(preset, use_gumbel=True).train(), dtype)
    assert 0 < score < 1e3 * token


def test_the_literal_mask_would_fail_the_gradient_bound(monkeypatch):
    """The subtraction of 1e10 has the same forward pass and an exploding gradient: the bound above can fail."""

    def literal(logits, decision):
        return (logits.float() - (1.0 - decision.float()).unsqueeze(-2) * 1e10).softmax(dim=-1)

    patches, guides = inputs()
    torch.manual_seed(0)
    bounded = make(use_gumbel=True).train()(patches, guides).feature
    monkeypatch.setattr("trireid.models.selection.log_masked_softmax", literal)
    torch.manual_seed(0)
    head = make(use_gumbel=True).train()
    assert torch.allclose(head(patches, guides).feature, bounded, atol=1e-6)
    score, token = gradient_norms(head, torch.float32)
    assert score > 1e3 * token


@pytest.mark.parametrize("preset", PRESETS)
def test_training_forward_equals_evaluation_forward_without_noise(preset):
    head = make(preset)
    patches, guides = inputs()
    assert torch.allclose(head.train()(patches, guides).feature, head.eval()(patches, guides).feature, atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("num_patches", "sparse_ratio"), [(1, 0.5), (2, 0.5), (7, 0.5), (10, 1.0), (13, 0.05)])
def test_tiny_odd_and_full_sizes(preset, num_patches, sparse_ratio):
    head = make(preset, num_patches=num_patches, sparse_ratio=sparse_ratio).train()
    out = head(*inputs(batch=1, num_patches=num_patches))
    assert out.slots.shape == (1, 3, head.num_slots + 1, DIM)
    assert head.num_slots >= 1
    assert torch.isfinite(out.feature).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_permuting_the_batch_permutes_the_result(preset):
    head = make(preset).eval()
    patches, guides = inputs(batch=4)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(head(patches[order], guides[order]).feature, head(patches, guides).feature[order], atol=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_permuting_the_patches_leaves_the_feature(preset):
    head = make(preset).eval()
    patches, guides = inputs()
    order = torch.randperm(PATCHES, generator=torch.Generator().manual_seed(5))
    permuted = head(patches[:, :, order], guides)
    plain = head(patches, guides)
    assert torch.allclose(permuted.feature, plain.feature, atol=1e-5)
    assert torch.equal(permuted.selection.mask, plain.selection.mask[:, :, order])


@pytest.mark.parametrize("subset", modality_subsets())
@pytest.mark.parametrize("preset", PRESETS)
def test_absent_modalities_neither_guide_nor_speak(preset, subset):
    head = make(preset).eval()
    patches, guides = inputs()
    present = torch.zeros(2, 3, dtype=torch.bool)
    present[:, list(subset)] = True
    clean = head(patches, guides, present=present)
    absent = ~present
    spoiled_patches = patches.masked_fill(absent[:, :, None, None], 1e6)
    spoiled = head(spoiled_patches, guides.masked_fill(absent[:, :, None], -1e6), present=present)
    assert torch.allclose(spoiled.feature, clean.feature, atol=1e-6)
    assert (clean.feature.view(2, 3, DIM)[absent] == 0).all()


def test_gumbel_of_the_reference_does_not_change_what_is_kept():
    head = make("reference", use_gumbel=True)
    patches, guides = inputs()
    assert torch.equal(head.train()(patches, guides).selection.mask, head.eval()(patches, guides).selection.mask)


def test_shared_noise_changes_what_is_kept_in_training_only():
    head = make("sound", use_gumbel=True)
    patches, guides = inputs(batch=8)
    torch.manual_seed(0)
    noisy = head.train()(patches, guides).selection.mask
    quiet = head.eval()(patches, guides).selection.mask
    assert not torch.equal(noisy, quiet)
    assert (noisy.sum(-1) == head.num_kept).all()


def test_selection_weights_reproduce_the_slots():
    head = make("sound").train()
    patches, guides = inputs()
    out = head(patches, guides)
    kept = patches.gather(2, out.selection.indices.unsqueeze(-1).expand(-1, -1, -1, DIM))
    assert torch.allclose(out.selection.weights @ kept, out.slots[:, :, :-1], atol=1e-5)


@pytest.mark.parametrize("subset", modality_subsets())
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_of_an_absent_modality_is_reported_as_kept(preset, training, subset):
    head = make(preset).train(training)
    present = torch.zeros(2, 3, dtype=torch.bool)
    present[0, list(subset)] = True
    present[1] = True
    chosen = head(*inputs(), present=present).selection
    assert torch.equal(chosen.mask.sum(-1), present * head.num_kept)
    for reported in (chosen.indices, chosen.scores, chosen.weights):
        assert not reported[~present].any()
        assert reported[present].any()
    assert torch.equal(chosen.mask[present].nonzero()[:, 1].view(-1, head.num_kept), chosen.indices[present])


def test_random_scoring_is_fixed_in_evaluation_and_varies_in_training():
    head = make(scoring="random")
    patches, guides = inputs()
    first, second = (head.eval()(patches, guides).selection.mask for _ in range(2))
    assert torch.equal(first, second)
    draws = {str(head.train()(patches, guides).selection.mask.tolist()) for _ in range(4)}
    assert len(draws) > 1


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("use_gumbel", [False, True])
def test_random_scoring_has_no_parameter_without_a_use(preset, use_gumbel):
    head = make(preset, scoring="random", use_gumbel=use_gumbel, learned_guides=True).train()
    assert head.predictor is None
    assert head.guide_map is None
    head(*inputs(batch=4)).feature.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in head.parameters())


@pytest.mark.parametrize(("count", "slots"), [(128, 25), (196, 39), (1, 1)])
def test_slot_count(count, slots):
    assert slot_count(count, sparse_ratio=0.5, aggr_ratio=0.4) == slots


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparse_ratio": 0.0}, r"keep ratio is 0.0"),
        ({"aggr_ratio": 1.5}, r"aggr_ratio is 1.5; it must lie in \(0, 1\]"),
        ({"beta": 0.6}, r"beta is 0.6; it must lie in \[0, 0.5\]"),
        ({"tau": 0.0}, r"tau is 0.0; it must be greater than 0"),
        ({"reader": "median"}, r"slot reader is 'median'; allowed are mean, max"),
        ({"mask": "hard"}, r"mask is 'hard'"),
        ({"grid": (3, 3)}, r"grid \(3, 3\) has 9 cells for 10 patches"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


def test_a_wrong_patch_count_is_named_at_run_time():
    with pytest.raises(InputError, match="built for 10 patches and got 9"):
        make()(*inputs(num_patches=9))


def test_slots_are_handed_over_to_hdm_in_place_of_patches():
    head = make("sound", reader="hdm").eval()
    patches, guides = inputs()
    out = head(patches, guides)
    assert out.feature.shape == (2, 7 * DIM)
    assert torch.equal(out.feature, head.reader.hdm(guides, out.slots).flatten(1))


def test_noise_none_draws_none():
    patches, guides = inputs()
    gradients = []
    for seed in (0, 1):
        head = make("reference", use_gumbel=True, noise="none").train()
        torch.manual_seed(seed)
        head(patches, guides).feature.square().sum().backward()
        gradients.append(head.predictor[0].weight.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("name", ["relaxation", "noise", "normalisation", "scoring"])
def test_unknown_choices_are_named(name):
    with pytest.raises(InputError, match=f"{name} is 'khot'; allowed are"):
        make(**{name: "khot"})


def test_scores_do_not_depend_on_autocast():
    head, (patches, guides) = make("reference").eval(), inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = head.score(patches, guides)
    assert torch.equal(half, head.score(patches, guides))
