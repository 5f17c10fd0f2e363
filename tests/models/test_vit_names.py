"""Every ViT name of timm is either built with the features that timm gives, or refused in one line."""

from collections import Counter

import pytest
import timm
import torch

from trireid.errors import InputError
from trireid.models.backbone import Backbone, create_vit
from trireid.models.slimming import SlimmingStage

ALL_NAMES = timm.list_models(module="vision_transformer")
BUILT = (
    "vit_small_patch16_224",
    "vit_base_patch16_clip_quickgelu_224",  # norm_pre and a projection
    "vit_small_patch14_dinov2",  # layer scale
    "vit_small_patch16_18x2_224",  # parallel blocks
    "eva_large_patch14_196",  # its last norm is fc_norm
    "beit3_base_patch16_224",  # the same, with norms inside attention and MLP
)
REFUSED = ("vit_base_patch16_rpn_224", "vit_base_patch14_reg4_dinov2", "vit_base_patch16_siglip_224")
CUTS = ((), ("cls_attention",), ("consensus",), ("both",))


def small(name, guidance=()):
    """A backbone of this name with two narrow blocks of random weights."""
    torch.manual_seed(0)
    patch = 8
    vit = create_vit(name, image_size=(4 * patch, 2 * patch), patch_size=patch, width=48, depth=2, num_heads=2)
    for parameter in vit.parameters():  # norms and scales of fresh weights would hide that they are left out
        torch.nn.init.normal_(parameter, std=0.3)
    return Backbone(vit, stages=tuple(SlimmingStage(1, 0.5, each) for each in guidance)).eval()


@torch.no_grad()
def fate(name):
    """`built` where all features are those of timm and every cut gives finite ones, else the refusal."""
    images = torch.randn(2, 3, 3, 32, 16, generator=torch.Generator().manual_seed(1))
    try:
        backbone = small(name)
    except InputError as error:
        return str(error).replace(name, "NAME")
    vit, flat = backbone.vit, images.flatten(0, 1)
    expected = vit.head(vit.fc_norm(vit.forward_features(flat))).unflatten(0, (2, 3))
    out = backbone(images)
    torch.testing.assert_close(torch.cat([out.cls.unsqueeze(2), out.patches], dim=2), expected, atol=1e-4, rtol=1e-4)
    for guidance in CUTS[1:]:
        assert torch.isfinite(small(name, guidance)(images).patches).all()
    return "built"


@pytest.mark.parametrize("name", BUILT)
def test_features_are_those_of_timm(name):
    assert fate(name) == "built"


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_used_and_not_there_is_refused_in_one_line(name):
    assert "must have a CLS token" in fate(name)


def test_a_parallel_block_gives_the_mean_of_its_attentions():
    backbone = small("vit_small_patch16_18x2_224", ("cls_attention",))
    images = torch.randn(1, 3, 3, 32, 16)
    seen = []
    for branch in backbone.vit.blocks[0].attns:
        branch.attn.fused_attn = False
        branch.attn.attn_drop.register_forward_hook(lambda _module, _input, weights: seen.append(weights))
    scores = backbone(images).selection["block1"].scores
    expected = torch.stack(seen)[..., 0, 1:].mean(dim=(0, 2))  # over the branches and heads, of the CLS token
    torch.testing.assert_close(scores.flatten(0, 1), expected)


def test_a_cut_by_attention_needs_blocks_that_show_it():
    vit = small("vit_small_patch16_224").vit
    vit.blocks[1] = torch.nn.Linear(48, 48)
    Backbone(vit, stages=(SlimmingStage(1, 0.5, "both"),))
    for guidance in ("cls_attention", "learned", "consensus"):
        with pytest.raises(InputError, match=r"blocks of the backbone \(Linear\) do not show their attention"):
            Backbone(vit, stages=(SlimmingStage(1, 0.5, guidance),))


@pytest.mark.slow
def test_every_name_of_timm():
    fates = Counter(map(fate, ALL_NAMES))
    assert fates["built"] > 60, fates
    assert fates.total() == len(ALL_NAMES)
    assert not [fate for fate in fates if "\n" in fate]
