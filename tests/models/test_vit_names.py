"""Every ViT name of timm is either built with the features that timm gives, or refused in one line."""

from collections import Counter

import pytest
import timm
import torch

from trireid.benchmark import model_macs
from trireid.errors import InputError
from trireid.models.backbone import Backbone, create_vit
from trireid.models.slimming import SlimmingStage
from trireid.models.vit_parts import ALIASES, FAMILIES, backbone_names

ALL_NAMES = [name for name in backbone_names() if name not in ("tiny", *ALIASES)]
BUILT = (
    "vit_base_patch16_clip_quickgelu_224",  # norm_pre and a projection
    "vit_small_patch16_18x2_224",  # parallel blocks
    "beit3_base_patch16_224",  # its last norm is fc_norm; norms inside attention and MLP
    "vit_base_patch16_rpn_224",  # no class token, the mean of patches, norms after attention and MLP
    "vit_base_patch14_reg4_dinov2",  # registers, layer scale, no position of the class token
    "vit_base_patch16_siglip_224",  # no class token, attention pooling
    "vit_huge_plus_patch16_dinov3_qkvb",  # rotary positions alone, SwiGLU
    "eva02_base_patch16_clip_224",  # both kinds of positions, norms inside, a projection with a bias
    "eva02_enormous_patch14_clip_224",  # norms after attention and MLP
    "vit_small_patch16_rope_mixed_ape_224",  # rotary positions of each block and head
    "vit_pe_core_base_patch16_224",  # attention pooling that sees the class token
)
CUTS = ("cls_attention", "consensus", "both")


def small(name, guidance=(), *, depth=2, **options):
    """A backbone of this name with narrow blocks of random weights; two cuts of a half where two are named."""
    torch.manual_seed(0)
    sizes = {"width": 48, "depth": depth, "num_heads": 2}
    if "sapiens2" in name:  # heads share their keys in some blocks: numbers of blocks and heads belong together
        heads = {"base": 12, "large": 16, "huge": 16, "giant": 24, "5b": 32}[name.split("_")[1]]
        sizes = {"width": 8 * heads, "num_heads": heads}
    vit = create_vit(name, image_size=(32, 16), patch_size=8, **sizes)
    for parameter in vit.parameters():  # norms and scales of fresh weights would hide that they are left out
        torch.nn.init.normal_(parameter, std=min(0.3, 3 * parameter.shape[-1] ** -0.5))
    stages = tuple(SlimmingStage(after, 0.5, each) for after, each in enumerate(guidance, start=1))
    return Backbone(vit, stages=stages, **options).eval()


def expected_of(vit, images):
    """What timm gives: the summary of each image, and the patches."""
    features = vit.forward_features(images)
    tokens = vit.head(vit.fc_norm(features))
    patches = tokens[:, vit.num_prefix_tokens :]
    if vit.cls_token is not None and vit.attn_pool is None:
        return tokens[:, 0], patches
    return vit.head(vit.forward_head(features, pre_logits=True)), patches


@torch.no_grad()
def fate(name):
    """`built` where all features are those of timm and every cut gives finite ones, else the refusal."""
    images = torch.randn(2, 3, 3, 32, 16, generator=torch.Generator().manual_seed(1))
    backbone = small(name)
    out = backbone(images)
    for given, expected in zip((out.cls, out.patches), expected_of(backbone.vit, images.flatten(0, 1)), strict=True):
        torch.testing.assert_close(given.flatten(0, 1), expected, atol=1e-5, rtol=1e-5)
    refused = {}
    for guidance in CUTS:
        try:
            cut = Backbone(backbone.vit, stages=(SlimmingStage(1, 0.5, guidance),)).eval()
            assert torch.isfinite(cut(images).patches).all()
        except InputError as error:
            refused[guidance] = str(error)
    assert set(refused) in (set(), {"cls_attention", "consensus"})
    return next(iter(refused.values()), "built")


@pytest.mark.parametrize("name", BUILT)
def test_features_are_those_of_timm(name):
    assert fate(name) == "built"


@pytest.mark.parametrize(
    "name", ["resnet50", "vit_base_r50_s16_224", "naflexvit_base_patch16_siglip", "beit_base_patch16_224"]
)
def test_what_is_no_such_vit_is_refused_in_one_line(name):
    with pytest.raises(InputError, match=f"nor a ViT of timm of the families {FAMILIES}") as caught:
        small(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pos_embed": "none"}, "must have positions, learned or rotary: .*DINOv3"),
        ({"global_pool": "prr"}, "has pooling by AttentionPoolPrr, which would go without use here: .*DINOv3"),
        ({"patch_drop_rate": 0.5}, "has random dropping of patches"),
    ],
)
def test_parts_without_use_are_refused(options, message):
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 0}
    with pytest.raises(InputError, match=message):
        Backbone(timm.models.VisionTransformer(**sizes, **options))


def test_a_camera_embedding_needs_a_token_to_be_added_to():
    with pytest.raises(InputError, match=r"sie_tokens is cls, and the backbone has no class token .* set model"):
        small("vit_base_patch16_siglip_224", num_cameras=2)
    images, camera = torch.randn(1, 3, 3, 32, 16), torch.tensor([1])
    backbone = small("vit_base_patch16_siglip_224", num_cameras=2, sie_tokens="all")
    assert not torch.allclose(backbone(images, camera=camera).cls, backbone(images).cls)


def test_multiply_adds_are_counted_where_a_layer_is_called_with_a_parameter():
    backbone = small("vit_base_patch16_siglip_224")
    assert model_macs(backbone, image_size=(32, 16)) > 0
    assert backbone.vit.attn_pool.latent.requires_grad


def attention_in_blocks(backbone):
    """The list that attention of every block is put into, `(R, H, T, T)`, when the backbone runs."""
    seen = []
    for block in backbone.vit.blocks:
        for each in [branch.attn for branch in getattr(block, "attns", ())] or [block.attn]:
            each.fused_attn = False
            each.attn_drop.register_forward_hook(lambda _module, _input, weights: seen.append(weights))
    return seen


def test_a_parallel_block_gives_the_mean_of_its_attentions():
    backbone = small("vit_small_patch16_18x2_224", ("cls_attention",), depth=2)
    seen = attention_in_blocks(backbone)
    scores = backbone(torch.randn(1, 3, 3, 32, 16)).selection["block1"].scores
    expected = torch.stack(seen[:2])[..., 0, 1:].mean(dim=(0, 2))  # over the branches and heads, of the CLS token
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
    assert fates["built"] > 200, fates
    assert fates.total() == len(ALL_NAMES)
    assert not [fate for fate in fates if "\n" in fate]
