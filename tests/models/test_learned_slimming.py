"""What slimming inside the ViT learns and merges, against literal definitions."""

import pytest
import torch

from trireid.config.load import override_config
from trireid.config.schema import BackboneConfig, Config, ModelConfig, SDTPSConfig, SlimmingConfig
from trireid.errors import ConfigError
from trireid.losses import reid_loss
from trireid.models import guidance as guiding
from trireid.models import slimming
from trireid.models.build import build_model
from trireid.models.predictor import PatchPredictor

SIZE = (32, 32)  # 4 x 4 patches
TINY = BackboneConfig(name="tiny", pretrained="none", width=32, depth=4, num_heads=4)


def build(*cuts, head="none", dropped="fuse", **options):
    torch.manual_seed(0)
    stages = tuple(SlimmingConfig(after_block=b, keep_ratio=r, guidance=g, dropped=dropped) for b, r, g in cuts)
    config = ModelConfig(backbone=TINY, head=head, slimming=stages, **options)
    return build_model(config, image_size=SIZE, num_classes=5, num_cameras=2)


def images(batch=4):
    return torch.randn(batch, 3, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def test_predictor_equals_its_formula_and_lets_no_gradient_through():
    torch.manual_seed(0)
    predictor = PatchPredictor(8)
    patches, own, other = torch.randn(2, 5, 8, requires_grad=True), torch.randn(2, 8), torch.zeros(2, 8)
    scores = predictor(patches, own, other)
    for row in range(2):
        for place in range(5):
            normed = [torch.nn.functional.layer_norm(x, (8,)) for x in (patches[row, place], own[row], other[row])]
            hidden = predictor.patch(normed[0]) + predictor.own(normed[1]) + predictor.other(normed[2])
            expected = predictor.score(torch.nn.functional.gelu(hidden))[0]
            assert torch.allclose(scores[row, place], expected, atol=1e-5)
    scores.sum().backward()
    assert patches.grad is None


def test_the_guides_of_the_others_are_the_mean_of_their_cls_tokens():
    seen = {}

    class Listener(torch.nn.Module):
        def forward(self, patches, own, other):
            seen.update(own=own, other=other)
            return patches[..., 0].float()

    cls, patches = torch.randn(6, 1, 4), torch.randn(6, 3, 4)
    tokens = slimming.RowTokens(torch.cat([cls, patches], dim=1), torch.arange(3).expand(6, -1))
    present = torch.ones(2, 3, dtype=torch.bool)
    guiding.learned_scores(Listener(), tokens, present=present, rows=None)
    assert torch.equal(seen["own"], cls[:, 0])
    for item in range(2):
        for own in range(3):
            others = [cls[3 * item + m, 0] for m in range(3) if m != own]
            assert torch.allclose(seen["other"][3 * item + own], sum(others) / 2, atol=1e-6)


@pytest.mark.parametrize("absent", [None, 4])
def test_mean_by_place_equals_loops(absent):
    torch.manual_seed(0)
    present = torch.ones(2, 3, dtype=torch.bool)
    rows = None
    if absent is not None:
        present.view(-1)[absent] = False
        rows = present.flatten().nonzero()[:, 0]
    flat = list(range(6)) if rows is None else rows.tolist()
    positions = torch.stack([torch.randperm(8)[:5].sort().values for _ in flat])
    scores = torch.randn(len(flat), 5)
    result = guiding.mean_by_place(scores, positions, present, rows, 8)
    for row, number in enumerate(flat):
        for column in range(5):
            place = positions[row, column]
            same = [
                scores[other][positions[other] == place]
                for other, each in enumerate(flat)
                if each // 3 == number // 3 and bool((positions[other] == place).any())
            ]
            assert torch.allclose(result[row, column], torch.cat(same).mean(), atol=1e-6)


def test_cosine_with_the_mean_equals_loops():
    torch.manual_seed(0)
    patches = torch.randn(2, 5, 4)
    result = guiding.cosine_with_mean(patches)
    for row in range(2):
        unit = [patch / patch.norm() for patch in patches[row]]
        for place in range(5):
            expected = torch.cosine_similarity(unit[place], sum(unit) / 5, dim=0)
            assert torch.allclose(result[row, place], expected, atol=1e-6)


def test_merging_equals_loops_and_keeps_all_mass():
    torch.manual_seed(0)
    patches, mass = torch.randn(2, 7, 4), torch.rand(2, 7) + 0.5
    indices = torch.tensor([[0, 2, 5], [1, 3, 6]])
    mask = torch.zeros(2, 7, dtype=torch.bool).scatter_(1, indices, True)
    merged, total = slimming.merge_dropped(patches, mass, indices, mask)
    for row in range(2):
        sums = {int(k): patches[row, k] * mass[row, k] for k in indices[row]}
        weights = {int(k): mass[row, k].clone() for k in indices[row]}
        for place in (~mask[row]).nonzero()[:, 0]:
            nearest = max(sums, key=lambda k: torch.cosine_similarity(patches[row, place], patches[row, k], dim=0))
            sums[nearest] = sums[nearest] + patches[row, place] * mass[row, place]
            weights[nearest] += mass[row, place]
        for column, k in enumerate(indices[row].tolist()):
            assert torch.allclose(merged[row, column], sums[k] / weights[k], atol=1e-5)
            assert torch.allclose(total[row, column], weights[k], atol=1e-6)
    assert torch.allclose(total.sum(1), mass.sum(1), atol=1e-5)


def test_merging_patches_that_are_alike_changes_nothing():
    """Where every dropped patch has its twin among the kept ones, these stay what they are."""
    kept = torch.randn(1, 4, 8)
    patches = torch.cat([kept, kept], dim=1)
    mask = torch.arange(8)[None] < 4
    merged, mass = slimming.merge_dropped(patches, torch.ones(1, 8), torch.arange(4)[None], mask)
    assert torch.allclose(merged, kept, atol=1e-6)
    assert torch.equal(mass, torch.full((1, 4), 2.0))


@pytest.mark.parametrize("guidance", ["random", "both", "consensus"])
def test_merging_over_several_cuts_runs_with_every_modality_subset(guidance):
    model = build((1, 0.5, guidance), (2, 0.5, guidance), head="sdtps", dropped="merge").eval()
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [False, False, True]])
    out, alone = model(images(), present), model(images()[2:3], present[2:3])
    assert torch.isfinite(out.embedding).all()
    assert torch.allclose(out.embedding[2], alone.embedding[0], atol=1e-5)
    assert (out.selection["block2"].mask[0].sum(-1) == 4).all()


def test_foresight_is_the_divergence_and_zero_where_perfect():
    positions, reached = torch.tensor([[0, 2, 3, 5]]), torch.tensor([[2, 5]])
    attention = torch.tensor([[0.3, 0.1]])
    scores = torch.tensor([[9.0, 1.0, 9.0, 0.0]], requires_grad=True)
    wanted = torch.tensor([0.75, 0.25])
    foreseen = torch.tensor([1.0, 0.0]).softmax(0)
    loss = guiding.foresight_loss(scores, positions, attention, reached)
    assert torch.allclose(loss, (wanted * (wanted / foreseen).log()).sum(), atol=1e-6)
    perfect = torch.tensor([[9.0, 0.75, 9.0, 0.25]]).log()
    assert abs(float(guiding.foresight_loss(perfect, positions, attention, reached))) < 1e-6
    loss.backward()
    assert torch.equal(scores.grad[0, [0, 2]], torch.zeros(2))  # what did not get there is not judged


@pytest.mark.parametrize("guidance", ["learned", "consensus"])
@pytest.mark.parametrize("dense", [False, True])
def test_the_predictor_learns_and_the_loss_says_so(guidance, dense):
    model = build((1, 0.5, guidance), (2, 0.5, guidance)).train()
    model.backbone.cuts_in_training = not dense
    output = model(images())
    assert set(output.auxiliary) == {"block1/foresight", "block2/foresight"}
    assert bool(output.selection) is not dense
    terms = reid_loss(output, torch.tensor([0, 0, 1, 1]))
    assert torch.allclose(
        terms["total"] - sum(output.auxiliary.values()),
        sum(w * v for k, v in terms.items() for n, w in (("/id", 0.25), ("/triplet", 1.0)) if k.endswith(n)),
        atol=1e-5,
    )
    terms["total"].backward()
    for name, parameter in model.backbone.predictors.named_parameters():
        assert parameter.grad is not None, name
        # Adding a constant to all scores changes no softmax: this one gradient is 0 by nature.
        assert float(parameter.grad.abs().max()) > 0 or name.endswith("score.bias"), name


@pytest.mark.parametrize("dense", [False, True])
def test_foresight_moves_the_predictors_alone(dense):
    model = build((1, 0.5, "consensus"), (2, 0.5, "learned")).train()
    model.backbone.cuts_in_training = not dense
    sum(model(images()).auxiliary.values()).backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert moved == {f"backbone.predictors.{name}" for name, _ in model.backbone.predictors.named_parameters()}


def test_learning_to_foresee_lowers_the_loss():
    model = build((1, 0.5, "consensus")).train()
    model.backbone.cuts_in_training = False
    optimizer = torch.optim.Adam(model.backbone.predictors.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss = model(images()).auxiliary["block1/foresight"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("options", [{}, {"cells": (2, 2), "reader": "concat"}])
def test_an_sdtps_head_keeps_the_same_share_during_a_dense_start(options):
    model = build((2, 0.5, "consensus"), head="sdtps", sdtps=SDTPSConfig(**options)).train()
    slots = []
    for cuts, kept in ((False, 8), (True, 4)):
        model.backbone.cuts_in_training = cuts
        out = model(images())
        assert out.selection["sdtps"].indices.shape[-1] == kept
        assert out.selection["sdtps"].grid == (4, 4)
        slots.append(out.selection["sdtps"].weights.shape[2])
    assert slots[0] == slots[1]


def test_evaluation_cuts_also_while_training_is_dense():
    model = build((2, 0.5, "consensus"))
    model.backbone.cuts_in_training = False
    assert model.eval()(images()).selection["block2"].indices.shape[-1] == 8
    assert not model.eval()(images()).auxiliary


def test_predictors_are_trained_at_the_rate_of_fresh_parts():
    groups = build((2, 0.5, "learned")).parameter_groups()
    assert any(name.startswith("backbone.predictors.block2.") for name, _ in groups["other"])
    assert all(name.startswith("backbone.vit.") for name, _ in groups["backbone"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.epochs=5", "train.dense_epochs=5"], "train.dense_epochs=5 leaves no epoch of train.epochs=5"),
        (
            ["train.dense_epochs=2", "model.sdtps.scoring=cut", "model.slimming=[{after_block: 2, keep_ratio: 0.5}]"],
            "but model.sdtps.scoring=cut needs its scores: use train.dense_epochs=0",
        ),
    ],
)
def test_a_dense_start_that_cannot_be_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        override_config(Config(), settings)


@pytest.mark.slow
def test_compiled_blocks_give_what_plain_ones_give():
    plain, compiled = build((1, 0.5, "consensus"), dropped="merge"), build((1, 0.5, "consensus"), dropped="merge")
    for block in compiled.backbone.vit.blocks:
        block.compile(backend="aot_eager", dynamic=False)
    for training in (True, False):
        outputs = [model.train(training)(images()).embedding for model in (plain, compiled)]
        assert torch.allclose(*outputs, atol=1e-5)
