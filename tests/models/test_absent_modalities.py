"""What an absent modality holds cannot matter: features, losses and gradients, and the images that are computed."""

import pytest
import torch

from trireid.config.schema import BackboneConfig, ModelConfig, SDTPSConfig, SlimmingConfig
from trireid.errors import InputError
from trireid.losses import reid_loss
from trireid.models.build import build_model
from trireid.types import filled_blocks

SIZE = (32, 32)
TINY = BackboneConfig(name="tiny", pretrained="none", width=32, depth=4, num_heads=4)
PRESENT = torch.tensor(
    [[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1]], dtype=torch.bool
)
PAIRS = torch.tensor([[1, 1, 0], [0, 1, 1]] * 4, dtype=torch.bool)  # for guidance by another modality, one is too few
HEADS = {
    "none": {"head": "none"},
    "reference": {"sdtps": SDTPSConfig(preset="reference", use_gumbel=True)},
    "sound": {"sdtps": SDTPSConfig(preset="sound", use_gumbel=True)},
    "slots": {"sdtps": SDTPSConfig(preset="sound", reader="hdm")},
    "hdm": {"head": "hdm"},
    "hdm_atmoe": {"head": "hdm_atmoe"},
}
GUIDANCES = ["self", "cross", "both", "distinct", "learned", "consensus", "cls_attention", "matching", "random", "none"]


def build(head, guidance=None, **options):
    torch.manual_seed(0)
    stages = [SlimmingConfig(after_block=2, keep_ratio=0.5, guidance=guidance)] if guidance else []
    config = ModelConfig(backbone=TINY, slimming=tuple(stages), **HEADS[head], **options)
    return build_model(config, image_size=SIZE, num_classes=4, num_cameras=2)


def images(count=8):
    return torch.randn(count, 3, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def step(model, pixels, present):
    """One training step: features, loss and gradients."""
    model.train().zero_grad()
    torch.manual_seed(3)  # dropout, noise and random choices
    output = model(pixels, present, camera=torch.arange(8) % 2)
    loss = reid_loss(output, torch.arange(8) // 2)["total"]
    loss.backward()
    return output, loss, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "content", [float("nan"), *(pytest.param(each, marks=pytest.mark.slow) for each in (float("inf"), 1e30)), 7.0]
)
@pytest.mark.parametrize("classifier", ["joint", "separate"])
@pytest.mark.parametrize("head", HEADS)
def test_training_does_not_see_absent_images(head, classifier, content):
    check(build(head, global_classifier=classifier), PRESENT, content)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["none", "sound", "hdm_atmoe"])
@pytest.mark.parametrize("guidance", GUIDANCES)
def test_training_with_cuts_does_not_see_absent_images(head, guidance):
    check(build(head, guidance), PAIRS if guidance == "cross" else PRESENT, float("nan"))


def check(model, present, content):
    spoiled = images().masked_fill(~present[:, :, None, None, None], content)
    output, loss, gradients = step(model, images(), present)
    other, other_loss, other_gradients = step(model, spoiled, present)
    assert torch.equal(loss, other_loss)
    for name, feature in output.features.items():
        assert torch.isfinite(feature).all(), name
        assert torch.equal(feature, other.features[name]), name
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert torch.isfinite(gradient).all(), name
        assert torch.equal(gradient, other_gradients[name]), name


@pytest.mark.parametrize("head", HEADS)
def test_blocks_say_what_is_empty(head):
    output = build(head).eval()(images(), PRESENT)
    for name, blocks in output.blocks.items():
        values = output.features[name].unflatten(1, (len(blocks), -1))
        assert torch.equal(values.ne(0).any(dim=-1), filled_blocks(blocks, PRESENT)), name
    assert set(output.blocks) == {"global", "head"} & set(output.features)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("guidance", [None, "consensus"])
def test_the_backbone_runs_on_present_images_alone(head, guidance):
    model, seen = build(head, guidance).eval(), []
    for block in model.backbone.vit.blocks:
        block.attn.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    model(images(), PRESENT)
    assert seen == [int(PRESENT.sum())] * 4


@pytest.mark.parametrize(
    ("pixels", "present", "message"),
    [
        (images(), torch.zeros(8, 3).bool(), r"items \[0, 1, 2, 3, 4\] have no modality present: every item needs"),
        (images(), PRESENT[:, :2], r"present has shape \(8, 2\); it must be \(8, 3\)"),
        (images(), PRESENT.float(), r"present is of type torch.float32; it must be torch.bool"),
        (images()[:, :2], PRESENT, r"where a modality has no image give zeros, and say so in present"),
    ],
)
def test_wrong_presence_is_named(pixels, present, message):
    with pytest.raises(InputError, match=message):
        build("none")(pixels, present)
