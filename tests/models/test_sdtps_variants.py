"""Variants of the SDTPS head against literal loops: terms of the score, soft choice, cells, weights of spectra."""

import math

import pytest
import torch
from torch.nn import functional

from trireid.config.schema import BackboneConfig, Config, ModelConfig, SDTPSConfig, SlimmingConfig
from trireid.errors import ConfigError, InputError
from trireid.models.build import build_model, check_model
from trireid.models.cells import cell_of_place, cell_softmax
from trireid.models.contrast import apart_from_mean, finish_slots, slot_values
from trireid.models.sdtps import PRESETS, SDTPS
from trireid.models.spectrum_weight import SpectrumWeight, spectrum_statistics, weigh_blocks
from trireid.train.scanning import check_blinding
from trireid.types import MODALITIES, modality_subsets

from reference import cosine, min_max

DIM, PATCHES = 12, 12


def make(**options):
    torch.manual_seed(3)
    return SDTPS(DIM, PATCHES, **{**PRESETS["reference"], "grid": (3, 4), **options})


def inputs(batch=2):
    generator = torch.Generator().manual_seed(11)
    patches = torch.randn(batch, 3, PATCHES, DIM, generator=generator)
    return patches, torch.randn(batch, 3, DIM, generator=generator)


@pytest.mark.parametrize("scores", [("own",), ("tir",), ("own", "rgb", "nir", "tir"), ("predicted", "rgb", "tir")])
def test_scores_are_the_sum_of_the_named_terms(scores):
    head, (patches, guides) = make(scores=scores).eval(), inputs()
    found = head.score(patches, guides)
    assert (head.predictor is None) == ("predicted" not in scores)
    for b in range(2):
        for m in range(3):
            terms = [(2.0, m)] if "own" in scores else []
            terms += [(1.0, g) for g in range(3) if g != m and MODALITIES[g] in scores]
            total = torch.zeros(PATCHES)
            for weight, g in terms:
                values = min_max([float(cosine(patches[b, m, n], guides[b, g])) for n in range(PATCHES)])
                total += torch.tensor(values) * weight * 4 / sum(w for w, _ in terms)
            literal = 0.25 * total
            if head.predictor is not None:
                literal += 0.5 * torch.sigmoid(head.predictor(patches)[b, m, :, 0])
            assert torch.allclose(found[b, m], literal, atol=1e-5)


def test_a_soft_choice_weighs_every_patch_and_keeps_all():
    head, (patches, guides) = make(choice="soft", tau=0.1, sparse_ratio=0.5).train(), inputs()
    out, scores = head(patches, guides), head.score(patches, guides).detach()
    assert out.selection.mask.all()
    assert torch.equal(out.feature, head.eval()(patches, guides).feature)
    logits = head._aggregation_logits(patches)
    for b in range(2):
        for m in range(3):
            low, high = -10.0, 10.0
            for _ in range(60):  # bisection for the threshold at which the weights sum to K = 6
                middle = (low + high) / 2
                total = sum(1 / (1 + math.exp(-(float(s) - middle) / 0.1)) for s in scores[b, m])
                low, high = (middle, high) if total > 6 else (low, middle)
            weight = torch.sigmoid((scores[b, m] - low) / 0.1)
            raw = weight * logits[b, m].exp()  # (A, N)
            literal = raw / raw.sum(-1, keepdim=True) @ patches[b, m]
            assert torch.allclose(out.slots[b, m, :-1], literal, atol=1e-5)


def test_a_soft_choice_teaches_guides_and_patches_where_they_may_learn():
    for allowed in (False, True):
        patches, guides = inputs()
        guides.requires_grad_()
        head = make(choice="soft", tau=0.1, guide_gradient=allowed, scores=("own", "rgb", "nir", "tir")).train()
        head(patches, guides, global_features=guides.detach()).feature.square().sum().backward()
        assert (guides.grad is not None and bool(guides.grad.abs().max() > 0)) == allowed


def test_choosing_in_training_only_keeps_all_in_the_test():
    head, (patches, guides) = make(keep_all_in_test=True, scoring="random"), inputs()
    assert head.train()(patches, guides).selection.mask.sum() == 2 * 3 * 6
    out = head.eval()(patches, guides)
    assert out.selection.mask.all()
    literal = head._aggregation_logits(patches).softmax(-1) @ patches
    assert torch.allclose(out.slots[:, :, :-1], literal, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_cells_are_weighted_means_of_their_kept_patches(training):
    head, (patches, guides) = make(cells=(2, 2), reader="concat").train(training), inputs()
    out = head(patches, guides)
    assert cell_of_place((3, 4), (2, 2)).tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3]
    logits = head._aggregation_logits(patches)[:, :, 0]
    for b in range(2):
        for m in range(3):
            kept = out.selection.indices[b, m].tolist()
            for cell, members in enumerate([(0, 1, 4, 5), (2, 3, 6, 7), (8, 9), (10, 11)]):
                inside = [n for n in members if n in kept]
                share = logits[b, m, inside].exp()
                literal = (share / share.sum()) @ patches[b, m, inside] if inside else torch.zeros(DIM)
                assert torch.allclose(out.slots[b, m, cell], literal, atol=1e-6)
    assert out.feature.shape == (2, 3 * 5 * DIM)
    assert torch.equal(out.feature.view(2, 3, 5, DIM), out.slots)
    # Patches that a cut left stand elsewhere: the same patches at other places are in other cells.
    places = torch.arange(PATCHES - 1, -1, -1).expand(2, 3, PATCHES)
    moved = head(patches, guides, places=places)
    assert torch.allclose(moved.slots[:, :, :4].flip(2).sum(2), moved.slots[:, :, :4].sum(2))
    assert not torch.allclose(moved.slots, out.slots)


def test_the_gradient_of_a_cell_reaches_dropped_patches_and_survives_empty_cells():
    logits = torch.randn(1, 6, dtype=torch.float64, requires_grad=True)
    decision = torch.tensor([[1.0, 1.0, 0.0, 1.0, 0.0, 0.0]], requires_grad=True)
    cell = torch.tensor([[0, 0, 0, 1, 2, 2]])
    weights = cell_softmax(logits, decision, cell, 3)
    assert torch.allclose(weights.sum(-1), torch.tensor([1.0, 1.0, 0.0]))
    (weights * torch.arange(18).view(3, 6)).sum().backward()
    assert torch.isfinite(decision.grad).all()
    assert torch.isfinite(logits.grad).all()
    assert decision.grad[0, 2] != 0


def test_statistics_of_a_spectrum_are_those_of_loops():
    patches, guides = inputs()
    present = torch.tensor([[True, True, True], [True, False, True]])
    cosines = torch.tensor(
        [[[[float(cosine(patches[b, m, n], guides[b, g])) for n in range(PATCHES)] for g in range(3)]
          for m in range(3)] for b in range(2)]
    )  # fmt: skip
    found = spectrum_statistics(patches, cosines, present)
    for b in range(2):
        for m in range(3):
            pairs = [float(cosine(patches[b, m, i], patches[b, m, j])) for i in range(PATCHES) for j in range(PATCHES)]
            others = [g for g in range(3) if g != m and bool(present[b, g])]
            level, seen = max(float(cosines[b, m, g].mean()) for g in others), cosines[b, m, others].mean(0)
            literal = [1 - sum(pairs) / len(pairs), cosines[b, m, m].mean(), cosines[b, m, m].std(correction=0)]
            literal += [level, seen.std(correction=0)]
            assert torch.allclose(found[b, m], torch.tensor([float(value) for value in literal]), atol=1e-5)


@pytest.mark.parametrize("name", ["spread", "agreement", "learned"])
def test_a_blinded_spectrum_counts_less(name):
    weigh, generator = SpectrumWeight(name, num_modalities=3).train(), torch.Generator().manual_seed(0)
    scene = torch.randn(64, 1, PATCHES, DIM, generator=generator) + torch.randn(64, 1, 1, DIM, generator=generator)
    patches = scene + 0.3 * torch.randn(64, 3, PATCHES, DIM, generator=generator)
    patches[0, 1] = torch.randn(DIM, generator=generator)  # all alike, and unlike the others
    guides = patches.mean(2)
    cosines = torch.nn.functional.cosine_similarity(patches[:, :, None], guides[:, None, :, None], dim=-1)
    weights = weigh(patches, cosines)
    assert torch.allclose(weights.sum(-1), torch.tensor(3.0))
    assert bool(weights[0, 1] < 0.5) == (name != "learned")
    assert torch.equal(weights, torch.ones(64, 3)) == (name == "learned")  # starts without an opinion
    for subset in modality_subsets():
        present = torch.zeros(64, 3, dtype=torch.bool)
        present[:, list(subset)] = True
        partial = weigh.eval()(patches, cosines, present=present)
        assert torch.allclose(partial.sum(-1), torch.tensor(float(len(subset))))
        assert not partial[~present].any()


def test_weights_scale_the_blocks_of_the_feature():
    patches, guides = inputs(batch=8)
    plain = make().eval()(patches, guides)
    out = make(spectrum_weight="spread").eval()(patches, guides)
    assert torch.allclose(out.feature.view(8, 3, DIM), plain.feature.view(8, 3, DIM) * out.modality_weights[..., None])
    weights, blocks = torch.tensor([[0.5, 0.0, 2.5]]), modality_subsets()
    present = torch.tensor([[True, False, True]])
    scaled = weigh_blocks(torch.ones(1, 7), weights, blocks, present)
    assert scaled.tolist() == [[0.5, 0.0, 2.5, 0.5, 1.5, 2.5, 1.5]]


@pytest.mark.parametrize("contrast", ["centred", "weighted"])
def test_contrast_sums_what_patches_show_beyond_their_image(contrast):
    head, (patches, guides) = make(contrast=contrast, cells=(1, 2), reader="concat", sparse_ratio=0.5).eval(), inputs()
    patches[1, 2] = patches[1, 2, :1]  # an image that shows nothing
    out, plain = head(patches, guides), make(cells=(1, 2), reader="concat", sparse_ratio=0.5).eval()(patches, guides)
    assert torch.equal(out.selection.mask, plain.selection.mask)  # what is kept does not change
    everywhere = torch.zeros(2, 3, 2, PATCHES).scatter_(
        -1, out.selection.indices.unsqueeze(2).expand_as(out.selection.weights), out.selection.weights
    )
    for b in range(2):
        for m in range(3):
            mean = patches[b, m].mean(0)
            for slot in range(2):
                literal, total = torch.zeros(DIM), 0.0
                for n in range(PATCHES):
                    apart = 1.0 - float(cosine(patches[b, m, n], mean)) if contrast == "weighted" else 1.0
                    literal += everywhere[b, m, slot, n] * apart * (patches[b, m, n] - mean)
                    total += float(everywhere[b, m, slot, n]) * apart
                if contrast == "weighted" and literal.norm() > 1e-6:
                    literal *= DIM**0.5 * total / literal.norm()
                assert torch.allclose(out.slots[b, m, slot], literal, atol=1e-5)
    assert out.slots[1, 2].abs().max() < 1e-5 < plain.slots[1, 2].abs().max()


@pytest.mark.parametrize("mask", ["log", "masked_softmax"])
def test_contrast_serves_learned_slots_and_low_precision(mask):
    head, (patches, guides) = make(contrast="weighted", mask=mask), inputs()
    for mode in (head.train(), head.eval()):
        found = mode.aggregate(patches, *mode.decide(mode.score(patches, guides)))[0]
        make(mask=mask).load_state_dict(head.state_dict())  # no parameters of its own
        assert found.isfinite().all()
    assert slot_values(patches.bfloat16(), "weighted").dtype == torch.bfloat16
    flat = slot_values(torch.full((1, 1, 4, 8), 3.3, dtype=torch.float16), "weighted")
    assert finish_slots(flat, "weighted").eq(0).all()


def test_patches_that_cancel_have_no_mean_that_weighs_them():
    generator = torch.Generator().manual_seed(0)
    away = torch.randn(1, 3, PATCHES, DIM, generator=generator)
    away, towards = away - away.mean(2, keepdim=True), torch.randn(1, 3, 1, DIM, generator=generator)
    slopes = []
    for share in (1.0, 0.1, 1e-4, 1e-8, 0.0):  # from ordinary images to a mean that is chance
        patches = (away + share * towards).requires_grad_()
        mean = patches.mean(dim=2, keepdim=True)
        apart = apart_from_mean(patches, mean)
        plain = 1.0 - functional.cosine_similarity(patches, mean, dim=-1)
        if share >= 0.1:
            assert torch.allclose(apart, plain, atol=1e-6)
        else:
            assert bool(((apart - 1).abs() < (plain - 1).abs()).all())
        (slope,) = torch.autograd.grad(finish_slots(slot_values(patches, "weighted"), "weighted").sum(), patches)
        slopes.append(float(slope.norm()))
    assert max(slopes[2:]) < 30 * slopes[1]
    assert apart_from_mean(torch.zeros(1, 2, 3), torch.zeros(1, 1, 3)).eq(1).all()
    alike = 1e-3 * away + towards  # as of smoke: a cosine near 1 would have lost in float32 what it differs by
    exact = 1.0 - functional.cosine_similarity(alike.double(), alike.double().mean(2, keepdim=True), dim=-1)
    assert torch.allclose(apart_from_mean(alike, alike.mean(2, keepdim=True)).double(), exact, rtol=2e-3, atol=0.0)


def test_hdm_and_atmoe_read_the_slots():
    head, (patches, guides) = make(reader="hdm_atmoe").eval(), inputs()
    out = head(patches, guides)
    assert torch.equal(out.feature, head.reader.atmoe(head.reader.hdm(guides, out.slots)))
    assert head.blocks == modality_subsets()


def test_scores_of_a_cut_are_taken_on():
    head, (patches, guides) = make(scoring="cut").eval(), inputs()
    given = torch.randn(2, 3, PATCHES)
    chosen = head(patches, guides, cut_scores=given).selection
    assert torch.equal(chosen.indices, given.topk(6).indices.sort().values)
    with pytest.raises(InputError, match=r"none was given: use model\.slimming"):
        head(patches, guides)


def test_a_model_hands_the_scores_and_places_of_its_cut_to_the_head():
    def build(**options):
        settings = SDTPSConfig(
            scoring="cut", cells=(2, 2), reader="concat", choice="soft", gumbel_tau=0.2, contrast="weighted"
        )
        backbone = BackboneConfig(name="tiny", pretrained="none", width=32, depth=3, num_heads=2)
        config = ModelConfig(backbone=backbone, head="sdtps", sdtps=settings, **options)
        return build_model(config, image_size=(32, 32), num_classes=4, num_cameras=0)

    model, images = build(slimming=(SlimmingConfig(after_block=1, keep_ratio=0.5),)), torch.randn(4, 3, 3, 32, 32)
    out = model.eval()(images)
    assert model.head.contrast == "weighted"
    cut, head = out.selection["block1"], out.selection["sdtps"]
    assert torch.equal(head.mask, cut.mask)
    spread = model.head.cell[cut.indices].unsqueeze(2) == torch.arange(4)[:, None]  # (B, M, A, K)
    assert not head.weights[~spread].any()
    raised = cut.scores.gather(-1, cut.indices)
    order = (head.scores.gather(-1, cut.indices) - raised).argsort(-1)
    assert order.shape == raised.shape
    with pytest.raises(ConfigError, match=r"scoring=cut takes the scores of a cut: give model\.slimming"):
        build()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": ()}, r"scores are \[\]; give one or more of predicted, own, rgb"),
        ({"scores": ("own", "own")}, "each once"),
        ({"choice": "firm"}, "choice is 'firm'; allowed are hard, soft"),
        ({"contrast": "high"}, "contrast is 'high'; allowed are none, centred, weighted"),
        ({"spectrum_weight": "mean"}, "spectrum_weight is 'mean'; allowed are none, spread"),
        (
            {"cells": (4, 4)},
            r"4 x 4 cells do not fit a grid of 3 x 4 patches: model\.sdtps\.cells may be at most \[3, 4\]",
        ),
    ],
)
def test_bad_settings_of_variants_are_named(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


def test_settings_without_an_effect_are_refused_before_training_and_not_on_loading():
    backbone = BackboneConfig(name="tiny", pretrained="none", width=32, depth=1, num_heads=2)
    kept = {"keep_all_in_test": True}
    for options, message in (
        ({"preset": "sound", **kept}, "keep_all_in_test=true has no effect .*below 1"),
        ({"choice": "soft", **kept}, "keep_all_in_test=true has no effect .*choice=soft, which drops nothing"),
        ({"choice": "soft", "sparse_ratio": 1.0}, "choice=soft has no effect with sparse_ratio 1, .*below 1"),
        ({"choice": "soft", "preset": "sound"}, r"choice=soft has no effect .* \(that of preset sound\), .*below 1"),
    ):
        model = ModelConfig(backbone=backbone, sdtps=SDTPSConfig(**options))
        with pytest.raises(ConfigError, match=message):
            check_model(model, image_size=(16, 16))
        build_model(model, image_size=(16, 16), num_classes=0, num_cameras=0)
    for preset in ("reference", "sound"):  # a choice that keeps all patches by itself is allowed
        allowed = SDTPSConfig(preset=preset, sparse_ratio=1.0)
        check_model(ModelConfig(backbone=backbone, sdtps=allowed), image_size=(16, 16))
    blinded = {"data": {"augmentation": {"blinding": 0.5}, "modalities": ["nir"]}}
    with pytest.raises(ConfigError, match=r"blinding=0.5 has no effect with one modality \(data.modalities: nir\)"):
        check_blinding(Config.model_validate(blinded))
    check_blinding(Config.model_validate({"data": {"augmentation": {"blinding": 0.5}}}))
