"""Tiny models of every kind, with weights that make the choice of patches matter."""

import torch

from trireid.config.load import override_config
from trireid.config.schema import Config
from trireid.models.build import build_model

SETTINGS = (
    "data.image_size=[32, 16]", "model.backbone.name=tiny", "model.backbone.pretrained=none",
    "model.backbone.patch_size=8", "model.backbone.width=16", "model.backbone.depth=3", "model.backbone.num_heads=2",
)  # fmt: skip


def cuts(guidance, dropped="fuse"):
    """The setting of two cuts."""
    stages = [f"{{after_block: {n}, keep_ratio: 0.6, guidance: {guidance}, dropped: {dropped}}}" for n in (1, 2)]
    return f"model.slimming=[{', '.join(stages)}]"


KINDS = {
    "no head": ["model.head=none"],
    "no head, no PIFE": ["model.head=none", "model.pife=false"],
    "HDM": ["model.head=hdm"],
    "HDM + ATMoE": ["model.head=hdm_atmoe"],
    "SDTPS reference": ["model.sdtps.preset=reference"],
    "SDTPS sound": ["model.sdtps.preset=sound", "model.sdtps.sparse_ratio=0.5", "model.sdtps.learned_guides=true"],
    "SDTPS by HDM": ["model.sdtps.reader=hdm", "model.sdtps.guide=mean_patch"],
    "SDTPS random": [
        "model.sdtps.scoring=random",
        "model.sdtps.reader=max",
        "model.sdtps.sparse_ratio=0.5",
        "model.sdtps.contrast=weighted",
    ],
    "SDTPS after cuts": [cuts("consensus"), "model.sdtps.preset=sound", "model.sdtps.sparse_ratio=0.6"],
    "both": ["model.head=hdm", cuts("both")],
    "cross": ["model.head=hdm", cuts("cross", "merge")],
    "self": ["model.head=none", cuts("self")],
    "distinct": ["model.head=none", cuts("distinct", "merge")],
    "learned": ["model.head=hdm_atmoe", cuts("learned")],
    "consensus": ["model.head=hdm", cuts("consensus", "merge")],
    "attention": ["model.head=none", cuts("cls_attention", "merge"), "model.sie_tokens=all"],
    "random": ["model.head=none", cuts("random")],
    "control": ["model.head=none", cuts("none")],
    "CLIP": ["model.backbone.name=clip_vit_b16", "model.backbone.projection=8", "model.head=hdm"],
    "DINOv2": [
        "model.backbone.name=dinov2_vit_s14", "model.backbone.patch_size=8", "model.sdtps.preset=sound",
        cuts("consensus"),
    ],
    "DINOv3": [
        "model.backbone.name=vit_small_plus_patch16_dinov3", "model.sdtps.preset=sound", "model.sdtps.sparse_ratio=0.6",
        cuts("consensus", "merge"),
    ],
    "EVA-02": ["model.backbone.name=eva02_base_patch16_clip_224", "model.head=none", cuts("cls_attention")],
    "RoPE of each block": ["model.backbone.name=vit_small_patch16_rope_mixed_ape_224", "model.head=none", cuts("both")],
    "SigLIP": [
        "model.backbone.name=vit_base_patch16_siglip_224", "model.head=none", "model.sie_tokens=all", cuts("consensus"),
    ],
}  # fmt: skip


def tiny_model(kind="SDTPS sound", *overrides, num_cameras=2):
    """A model of a kind in evaluation, its weights drawn wide so that features differ much between images."""
    config = override_config(Config(), [*SETTINGS, *KINDS[kind], *overrides])
    torch.manual_seed(0)
    model = build_model(
        config.model, image_size=config.data.image_size, num_classes=3, num_cameras=num_cameras, load_pretrained=False
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def inputs(batch, *, least=1, seed=0):
    """Images, presence and cameras of items with at least so many modalities; absent images are NaN."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, 3, 32, 16, generator=generator)
    order = torch.rand(batch, 3, generator=generator).argsort(dim=1)
    present = order < torch.randint(least, 4, (batch, 1), generator=generator)
    camera = torch.randint(-1, 2, (batch,), generator=generator)
    return images.masked_fill(~present[:, :, None, None, None], float("nan")), present, camera
