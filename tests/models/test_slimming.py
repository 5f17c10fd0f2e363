"""Slimming inside the ViT: literal scores, bookkeeping over several cuts, presence, compilation, errors."""

import itertools
import math

import pytest
import torch

from trireid.config.schema import BackboneConfig, ModelConfig, SlimmingConfig
from trireid.errors import InputError
from trireid.models import guidance as guiding
from trireid.models import slimming
from trireid.models.attention import attention_scores
from trireid.models.build import build_model
from trireid.models.slimming import RowTokens, SlimmingStage
from trireid.types import modality_subsets

SIZE = (32, 32)  # 4 x 4 patches
TINY = BackboneConfig(name="tiny", pretrained="none", width=32, depth=4, num_heads=4)
GUIDANCES = ["self", "cross", "both", "distinct", "learned", "consensus", "cls_attention", "matching", "random"]


def build(*cuts, head="none", **options):
    torch.manual_seed(0)
    stages = tuple(SlimmingConfig(after_block=b, keep_ratio=r, guidance=g) for b, r, g in cuts)
    config = ModelConfig(backbone=TINY, head=head, slimming=stages, **options)
    return build_model(config, image_size=SIZE, num_classes=5, num_cameras=2)


def images(batch=2):
    return torch.randn(batch, 3, 3, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize("guidance", GUIDANCES)
@pytest.mark.parametrize("head", ["none", "sdtps", "hdm", "hdm_atmoe"])
def test_every_guidance_with_every_head(guidance, head):
    model = build((1, 0.5, guidance), (3, 0.5, guidance), head=head).train()
    out = model(images(4))
    assert out.selection["block1"].indices.shape == (4, 3, 8)
    assert out.selection["block3"].indices.shape == (4, 3, 4)
    assert torch.isfinite(out.embedding).all()
    sum(logits.square().sum() for logits in out.logits.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_cuts_compose_and_indices_refer_to_the_original_grid():
    out = build((1, 0.75, "both"), (2, 0.5, "both"), (3, 0.5, "self"), head="sdtps").eval()(images())
    stages = [out.selection[name] for name in ("block1", "block2", "block3", "sdtps")]
    for before, after in itertools.pairwise(stages):
        assert (after.mask & ~before.mask).sum() == 0  # what was dropped never comes back
        assert torch.isinf(after.scores[~before.mask]).all()
        assert torch.isfinite(after.scores[before.mask]).all()
    for stage, kept in zip(stages, (12, 6, 3, 2), strict=True):
        assert stage.grid == (4, 4)
        assert (stage.mask.sum(-1) == kept).all()
        assert torch.equal(stage.indices, stage.indices.sort(-1).values)
        assert stage.mask.gather(-1, stage.indices).all()


def test_tokens_really_get_fewer():
    model, lengths = build((1, 0.5, "both"), (3, 0.5, "both")), []
    for block in model.backbone.vit.blocks:
        block.register_forward_hook(lambda _m, inputs, _o: lengths.append(inputs[0].shape[1]))
    model(images())
    assert lengths == [1 + 16, 1 + 8 + 1, 1 + 8 + 1, 1 + 4 + 1]


def test_ratio_one_and_guidance_none_equal_the_dense_model():
    dense = build().eval()(images()).embedding
    assert torch.allclose(build((2, 1.0, "both")).eval()(images()).embedding, dense, atol=1e-5)
    assert torch.equal(build((2, 0.5, "none")).eval()(images()).embedding, dense)


@pytest.mark.parametrize("guidance", ["self", "cross", "both"])
def test_cosine_scores_equal_loops(guidance):
    torch.manual_seed(0)
    batch, modalities, count, dim = 2, 3, 5, 4
    cls, patches = torch.randn(batch * modalities, 1, dim), torch.randn(batch * modalities, count, dim)
    tokens = RowTokens(torch.cat([cls, patches], dim=1), torch.arange(count).expand(6, -1))
    present = torch.ones(batch, modalities, dtype=torch.bool)
    stage = SlimmingStage(after_block=1, keep_ratio=0.5, guidance=guidance)
    scores = guiding.stage_scores(stage, tokens, block=None, before=None, present=present, rows=None)
    own, other = {"self": (1, 0), "cross": (0, 1), "both": (2, 1)}[guidance]
    for b in range(batch):
        for m in range(modalities):
            row, expected = b * modalities + m, torch.zeros(count)
            for g in range(modalities):
                guide = cls[b * modalities + g, 0]
                cosines = torch.stack([torch.cosine_similarity(p, guide, dim=0) for p in patches[row]])
                unit = (cosines - cosines.min()) / (cosines.max() - cosines.min() + 1e-8)
                expected += (own if g == m else other) * unit
            assert torch.allclose(scores[row], expected, atol=1e-5)


def test_cls_attention_equals_attention_by_hand():
    model = build()
    block = model.backbone.vit.blocks[1].eval()
    before = torch.randn(2, 1 + 16 + 1, 32)  # CLS, patches, fused token: all share the attention
    scores = attention_scores(block, before, num_patches=16)
    qkv = block.attn.qkv(block.norm1(before)).view(2, 18, 3, 4, 8)
    heads = [((qkv[0, 0, 0, h] * qkv[0, :, 1, h]).sum(-1) / math.sqrt(8)).softmax(0)[1:17] for h in range(4)]
    assert torch.allclose(scores[0], sum(heads) / 4, atol=1e-6)


def test_random_guidance_is_fixed_in_evaluation_and_varies_in_training():
    model = build((2, 0.5, "random"))
    quiet = [model.eval()(images()).selection["block2"].mask for _ in range(2)]
    assert torch.equal(*quiet)
    noisy = [model.train()(images()).selection["block2"].mask for _ in range(2)]
    assert not torch.equal(*noisy)


def test_the_fused_token_is_the_mass_weighted_mean_over_cuts():
    torch.manual_seed(0)
    patches = torch.randn(1, 8, 3)
    tokens = RowTokens(torch.cat([torch.randn(1, 1, 3), patches], dim=1), torch.arange(8)[None])
    stage = SlimmingStage(after_block=1, keep_ratio=0.5)
    equal = torch.tensor([[1.0, 1, 1, 1, 0, 0, 0, 0]])
    first, _ = slimming.cut(tokens, stage, scores=equal, grid=(2, 4))
    assert torch.allclose(first.fused[0, 0], patches[0, 4:].mean(0), atol=1e-6)
    second, chosen = slimming.cut(first, stage, scores=torch.tensor([[0.0, 1, 1, 0]]), grid=(2, 4))
    assert chosen.indices.tolist() == [[1, 2]]
    everything_dropped = patches[0, [0, 3, 4, 5, 6, 7]].mean(0)
    assert torch.allclose(second.fused[0, 0], everything_dropped, atol=1e-6)
    assert second.num_fused == 6


@pytest.mark.parametrize("guidance", ["self", "both", "consensus", "cls_attention"])
@pytest.mark.parametrize("subset", modality_subsets())
def test_content_of_absent_modalities_is_ignored(guidance, subset):
    model = build((2, 0.5, guidance), head="sdtps").eval()
    present = torch.zeros(2, 3, dtype=torch.bool)
    present[:, list(subset)] = True
    spoiled = images().masked_fill(~present[:, :, None, None, None], float("nan"))
    out, other = model(images(), present), model(spoiled, present)
    assert torch.isfinite(out.embedding).all()
    assert torch.allclose(out.embedding, other.embedding, atol=1e-6)
    if len(subset) == 3:
        assert torch.allclose(out.embedding, model(images()).embedding, atol=1e-6)


def test_no_stage_keeps_anything_of_an_absent_modality():
    model = build((1, 0.75, "both"), (3, 0.5, "both"), head="sdtps").eval()
    present = torch.tensor([[True, True, False], [False, False, True]])
    out = model(images(), present)
    for (name, chosen), kept in zip(out.selection.items(), (12, 6, 3), strict=True):
        assert torch.equal(chosen.mask.sum(-1), present * kept), name
        assert not chosen.indices[~present].any(), name
        assert not chosen.scores[~present].any(), name  # zeros, not -inf
        assert chosen.mask.gather(-1, chosen.indices)[present].all(), name
    alone = model(images()[:, 2:].expand(-1, 3, -1, -1, -1)[1:], torch.tensor([[False, False, True]]))
    for name, chosen in alone.selection.items():
        assert torch.equal(chosen.mask[0, 2], out.selection[name].mask[1, 2]), name
        assert torch.allclose(chosen.scores[0, 2], out.selection[name].scores[1, 2], atol=1e-5), name


def test_permuting_the_batch_permutes_the_result():
    model, order = build((2, 0.5, "both"), head="sdtps").eval(), torch.tensor([2, 0, 1])
    assert torch.allclose(model(images(3)[order]).embedding, model(images(3)).embedding[order], atol=1e-5)


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        (
            [(4, 0.5, "both")],
            r"model.slimming\[0\].after_block is 4; allowed is 1 to 3, since the backbone has 4 blocks",
        ),
        ([(2, 0.5, "both"), (2, 0.5, "both")], r"model.slimming\[1\].after_block is 2; it must be greater than .* 2"),
        ([(3, 0.5, "both"), (1, 0.5, "both")], r"model.slimming\[1\].after_block is 1"),
        ([(1, 0.01, "both"), (2, 0.5, "both")], r"model.slimming\[1\] has 1 patch to choose from"),
    ],
)
def test_cuts_that_do_not_fit_are_named(cuts, message):
    with pytest.raises(InputError, match=message):
        build(*cuts)


@pytest.mark.parametrize("ratio", [0.0, 1.2])
def test_ratios_outside_the_range_are_named(ratio):
    with pytest.raises(InputError, match=r"keep_ratio is .*; it must lie in \(0, 1\]"):
        slimming.check_stages((SlimmingStage(1, ratio),), num_blocks=4, num_patches=16)


def test_an_unknown_guidance_is_named():
    with pytest.raises(InputError, match="guidance is 'text'; allowed are self, cross"):
        slimming.check_stages((SlimmingStage(1, 0.5, "text"),), num_blocks=4, num_patches=16)


def test_cross_guidance_without_another_modality_is_an_error():
    present = torch.tensor([[True, True, True], [True, False, False]])
    with pytest.raises(InputError, match=r"guidance is cross, and an item has one modality only.*both or self"):
        build((2, 0.5, "cross"))(images(), present)


@pytest.mark.slow
def test_compilation_does_not_recompile_each_step():
    import torch._dynamo as dynamo

    dynamo.reset()
    dynamo.utils.counters.clear()
    model = build((1, 0.5, "both"), (3, 0.5, "both"), head="sdtps").eval()
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        for seed in range(4):
            torch.manual_seed(seed)
            batch = torch.randn(2, 3, 3, *SIZE)
            assert torch.allclose(compiled(batch).embedding, model(batch).embedding, atol=1e-5)
    assert dynamo.utils.counters["stats"]["unique_graphs"] <= 3
    assert not dynamo.utils.counters["recompiles"]
