"""The composed model: shapes by head, every presence subset, batch permutations, gradients, errors."""

import itertools
from typing import get_args

import pytest
import torch

from trireid.config.schema import BackboneConfig, ModelConfig, SDTPSConfig, SlimmingConfig
from trireid.errors import ConfigError, InputError
from trireid.losses import reid_loss
from trireid.models.backbone import Backbone, create_vit, projects_features
from trireid.models.build import build_model
from trireid.models.camera import CameraEmbedding
from trireid.models.reid import ReIDModel
from trireid.models.sdtps import PRESETS, Scoring
from trireid.names import SlotPoolingName
from trireid.types import ReIDOutput, modality_subsets

SIZE = (32, 16)
TINY = BackboneConfig(name="tiny", pretrained="none", width=32, depth=2, num_heads=4)
HEADS = ["none", "sdtps", "hdm", "hdm_atmoe"]


def build(head="sdtps", **options):
    torch.manual_seed(0)
    config = ModelConfig(**{"backbone": TINY, "head": head, **options})
    return build_model(config, image_size=SIZE, num_classes=5, num_cameras=2)


def images(batch=3):
    return torch.randn(batch, 3, 3, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("classifier", ["joint", "separate"])
def test_outputs_by_name(head, classifier):
    model = build(head, global_classifier=classifier)
    out = model.train()(images(), camera=torch.tensor([0, 1, -1]))
    assert isinstance(out, ReIDOutput)
    width = {"none": 0, "sdtps": 96, "hdm": 224, "hdm_atmoe": 224}[head]
    assert out.embedding.shape == (3, 96 + width)
    assert torch.equal(out.features["global"], torch.cat([out.features[m] for m in ("rgb", "nir", "tir")], dim=1))
    names = {"global"} if classifier == "joint" else {"rgb", "nir", "tir"}
    assert set(out.logits) == names | ({"head"} if width else set())
    assert all(logits.shape == (3, 5) for logits in out.logits.values())
    assert set(out.selection) == ({"sdtps"} if head == "sdtps" else set())
    quiet = model.eval()(images())
    assert isinstance(quiet, ReIDOutput)
    assert quiet.logits == {}


@pytest.mark.parametrize(
    ("preset", "given", "kept"), [("reference", None, 4), ("sound", None, 8), ("reference", 1.0, 8), ("sound", 0.25, 2)]
)
def test_the_share_that_the_head_keeps_is_the_presets_where_none_is_given(preset, given, kept):
    model = build(sdtps=SDTPSConfig(preset=preset, sparse_ratio=given)).eval()
    assert model.backbone.num_patches == 8
    assert model(images()).selection["sdtps"].indices.shape[-1] == kept


@pytest.mark.parametrize("subset", modality_subsets())
@pytest.mark.parametrize("head", HEADS)
def test_content_of_absent_modalities_is_ignored(head, subset):
    model = build(head).eval()
    present = torch.zeros(2, 3, dtype=torch.bool)
    present[:, list(subset)] = True
    clean = images(2)
    spoiled = clean.masked_fill(~present[:, :, None, None, None], float("nan"))
    out, other = model(clean, present), model(spoiled, present)
    for name, feature in out.features.items():
        assert torch.isfinite(feature).all(), name
        assert torch.allclose(feature, other.features[name], atol=1e-6), name


@pytest.mark.parametrize("head", HEADS)
def test_mixed_presence_equals_one_by_one(head):
    model = build(head).eval()
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    together = model(images(), present).embedding
    for row in range(3):
        alone = model(images()[row : row + 1], present[row : row + 1]).embedding
        assert torch.allclose(together[row], alone[0], atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_permuting_the_batch_permutes_the_result(head):
    model = build(head).eval()
    order = torch.tensor([2, 0, 1])
    assert torch.allclose(model(images()[order]).embedding, model(images()).embedding[order], atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_every_trainable_parameter_is_in_one_group_and_gets_a_gradient(head):
    model = build(head).train()
    groups = model.parameter_groups()
    assert set(groups) == {"backbone", "camera", "classifier", "other"}
    grouped = [name for members in groups.values() for name, _ in members]
    assert sorted(grouped) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    out = model(images(8), camera=torch.arange(8) % 2)
    sum(torch.nn.functional.cross_entropy(x, torch.arange(8) % 5) for x in out.logits.values()).backward()
    for name in grouped:
        gradient = model.get_parameter(name).grad
        assert gradient is not None, name
        assert torch.isfinite(gradient).all(), name


def without_gradient(model, *, present=None):
    """Names of the trainable parameters that one training step does not reach: a parallel run refuses them."""
    out = model.train()(images(8), present, camera=torch.arange(8) % 2)
    reid_loss(out, torch.arange(8) // 2)["total"].backward()
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]


SDTPS_CHOICES = itertools.product(
    enumerate(PRESETS), enumerate(get_args(SlotPoolingName)), enumerate([False, True]), enumerate(get_args(Scoring)),
    enumerate([False, True]),
)  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "reader", "use_gumbel", "scoring", "learned_guides"),
    [
        # Every pair of choices is among the fast ones.
        pytest.param(*(value for _, value in each), marks=[pytest.mark.slow] * (sum(n for n, _ in each) % 3 > 0))
        for each in SDTPS_CHOICES
    ],
)
def test_a_training_step_reaches_every_parameter_of_sdtps(preset, reader, use_gumbel, scoring, learned_guides):
    settings = SDTPSConfig(
        preset=preset, reader=reader, use_gumbel=use_gumbel, scoring=scoring, learned_guides=learned_guides
    )
    cuts = (SlimmingConfig(after_block=1, keep_ratio=0.5),) if scoring == "cut" else ()
    assert without_gradient(build(sdtps=settings, slimming=cuts)) == []


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pife", [False, True])
@pytest.mark.parametrize("classifier", ["joint", "separate"])
@pytest.mark.parametrize("cuts", [(), ((1, 0.5),)])
def test_a_training_step_reaches_every_parameter_of_every_model(head, pife, classifier, cuts):
    stages = tuple(SlimmingConfig(after_block=after, keep_ratio=ratio) for after, ratio in cuts)
    options = {"pife": pife, "global_classifier": classifier, "slimming": stages}
    assert without_gradient(build(head, **options)) == []
    one = torch.zeros(8, 3, dtype=torch.bool)
    one[:, 0] = True  # a modality that the whole batch lacks
    assert without_gradient(build(head, **options), present=one) == []


def test_three_modalities_go_through_the_backbone_as_one_batch():
    model, seen = build(), []
    model.backbone.vit.blocks[0].register_forward_hook(lambda _m, inputs, _o: seen.append(tuple(inputs[0].shape)))
    model(images(4))
    present = torch.ones(4, 3, dtype=torch.bool)
    present[1:, 1:] = False
    model(images(4), present)
    assert seen == [(12, 9, 32), (6, 9, 32)]  # absent modalities are not computed


@pytest.mark.parametrize("standardise", [True, False])
def test_standardised_images_make_gain_and_offset_of_each_modality_irrelevant(standardise):
    model = build(backbone=TINY.model_copy(update={"standardise": standardise})).eval()
    present = torch.tensor([[True, True, False]])
    gain, offset = torch.tensor([0.5, 2.0, 1.0]).view(3, 1, 1, 1), torch.tensor([0.3, -1.0, 0.0]).view(3, 1, 1, 1)
    one, other = (model(given, present).embedding for given in (images(1), images(1) * gain + offset))
    assert torch.allclose(one, other, atol=1e-4) == standardise
    even = model(torch.full((1, 3, 3, *SIZE), 0.7)).embedding
    assert bool(even.isfinite().all())


def test_unknown_cameras_get_the_mean_of_the_known():
    embedding = CameraEmbedding(3, 4)
    vectors = embedding(torch.tensor([0, -1, 2]), 3)
    assert torch.equal(vectors[0], embedding.weight[0])
    assert torch.allclose(vectors[1], embedding.weight.mean(0))
    assert torch.allclose(embedding(None, 2), embedding.weight.mean(0).expand(2, -1))


def test_camera_changes_the_feature_only_through_the_coefficient():
    model = build().eval()
    first, second = (model(images(1), camera=torch.tensor([c])).embedding for c in (0, 1))
    assert not torch.allclose(first, second)
    assert build(sie_coefficient=0.0).backbone.camera_embedding is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: m(torch.zeros(2, 2, 3, *SIZE)),
            r"images have shape \(2, 2, 3, 32, 16\); they must be \(B, 3, 3, H, W\)",
        ),
        (lambda m: m(torch.zeros(2, 3, 3, 64, 32)), "images are 64 x 32 pixels, the model was built for 32 x 16"),
        (lambda m: m(images(), torch.ones(3, 2).bool()), r"present has shape \(3, 2\); it must be \(3, 3\)"),
        (lambda m: m(images(), torch.zeros(3, 3).bool()), r"items \[0, 1, 2\] have no modality present"),
        (lambda m: m(images(), camera=torch.zeros(2).long()), r"of shape \(2,\); it must be int64 of shape \(3,\)"),
        (lambda m: m(images(), camera=torch.zeros(3)), r"camera is torch.float32 of shape \(3,\); it must be int64"),
        (lambda m: m(images().double()), "images are torch.float64 on cpu, the model torch.float32"),
        (lambda m: m(images().to("meta")), "images are torch.float32 on meta, the model torch.float32 on cpu"),
        (lambda m: m(images(), present=torch.ones(3, 3).bool().to("meta")), "lie on different devices"),
        (lambda m: m(images(), camera=torch.tensor([0, 2, -1])), r"camera holds -1 to 2; the model knows 0 to 1"),
        (lambda m: m(images(), camera=torch.tensor([0, 1, -2])), r"camera holds -2 to 1; the model knows 0 to 1"),
        (lambda m: m(images(), camera=[0, 1, 1]), "camera is a list; it must be a tensor"),
        (lambda m: m(images(), [[True] * 3] * 3), "present is a list; it must be a tensor"),
        (lambda m: m(None), "images is a NoneType; it must be a tensor"),
        (lambda m: m(images().byte()), "images are of type torch.uint8; they must be normalised floats"),
    ],
)
def test_bad_inputs_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call(build())


def test_image_size_must_be_a_multiple_of_the_patch():
    with pytest.raises(InputError, match="image size 30 x 16 is no multiple of the patch size 8 x 8"):
        create_vit("tiny", image_size=(30, 16))


def test_unknown_backbone_names_the_nearest():
    for name, message in (
        ("vit_base_patch16_22", "near: vit_base_patch16_224"),
        ("dinov3", "near: vit_7b_patch16_dinov3"),
        ("CLIP_VIT-B/16", "near: clip_vit_b16"),
        ("swin_tiny_patch4_window7_224", "AIMv2; trireid.backbone_names\\(\\) in Python lists all"),
        ("vit_small_patch16_dinov3.nosuch", "no weights of vit_small_patch16_dinov3 by the tag 'nosuch'; .*lvd1689m"),
    ):
        with pytest.raises(InputError, match=message):
            create_vit(name, image_size=(32, 16))


def test_atmoe_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match="model.atmoe_heads is 5; it must divide the feature width 32"):
        build("hdm_atmoe", atmoe_heads=5)


@pytest.mark.parametrize("guide", ["reduced", "cls", "mean_patch"])
def test_the_guide_of_sdtps_is_the_one_chosen(guide):
    model, seen = build("sdtps", sdtps=SDTPSConfig(guide=guide)).eval(), {}
    model.head.register_forward_pre_hook(lambda _m, args: seen.update(patches=args[0], guides=args[1]))
    model(images())
    tokens = model.backbone(images())
    expected = {
        "reduced": model.pife(tokens.cls, tokens.patches),
        "cls": tokens.cls,
        "mean_patch": tokens.patches.mean(2),
    }
    assert torch.equal(seen["guides"], expected[guide])


def test_an_unknown_guide_is_named():
    backbone = Backbone(create_vit("tiny", image_size=SIZE))
    with pytest.raises(InputError, match="guide is 'text'; allowed are reduced, cls, mean_patch"):
        ReIDModel(backbone, pife=None, head=None, classifiers={}, guide="text")


@pytest.mark.parametrize("name", ["vit_base_patch16_clip_224", "vit_base_patch16_clip_224.openai_ft_in12k_in1k"])
def test_a_classifier_of_a_fine_tuned_tower_is_no_projection(name):
    assert not projects_features(name)
    assert projects_features("vit_base_patch16_clip_quickgelu_224.openai")
