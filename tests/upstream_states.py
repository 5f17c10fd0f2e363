"""Random state_dicts with upstream's key names and (small) shapes, for the tests of importing."""

from __future__ import annotations

import torch

WIDTH, DEPTH, PATCH, DIM, IMAGE = 192, 2, 4, 64, (16, 8)  # heads of 64 channels: 3 in the towers, 1 in CLIP's HDM
NUM_PATCHES, CAMERAS, CLASSES, SLOTS = 8, 3, 5, 2


class Draw:
    """Collects random tensors by name."""

    def __init__(self, seed=0):
        self.state, self.generator = {}, torch.Generator().manual_seed(seed)

    def normal(self, name, *shape, scale=None):
        scale = shape[-1] ** -0.5 if scale is None else scale
        self.state[name] = torch.randn(shape, generator=self.generator) * scale

    def linear(self, name, out, inner, *, bias=True):
        self.normal(f"{name}.weight", out, inner)
        if bias:
            self.normal(f"{name}.bias", out, scale=0.1)

    def norm(self, name, dim, *, batch=False):
        self.state[f"{name}.weight"] = 1 + 0.2 * torch.randn(dim, generator=self.generator)
        self.normal(f"{name}.bias", dim, scale=0.1)
        if batch:
            self.normal(f"{name}.running_mean", dim, scale=0.1)
            self.state[f"{name}.running_var"] = 0.5 + torch.rand(dim, generator=self.generator)
            self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def clip_visual(draw, prefix="BACKBONE.base.", *, positions=NUM_PATCHES):
    width, depth, dim, patch = WIDTH, DEPTH, DIM, PATCH
    draw.normal(f"{prefix}class_embedding", width, scale=0.5)
    draw.normal(f"{prefix}positional_embedding", positions + 1, width, scale=0.5)
    draw.normal(f"{prefix}proj", width, dim, scale=width**-0.5)
    draw.normal(f"{prefix}conv1.weight", width, 3, patch, patch, scale=0.2)
    draw.norm(f"{prefix}ln_pre", width)
    draw.norm(f"{prefix}ln_post", width)
    for index in range(depth):
        block = f"{prefix}transformer.resblocks.{index}."
        draw.normal(f"{block}attn.in_proj_weight", 3 * width, width)
        draw.normal(f"{block}attn.in_proj_bias", 3 * width, scale=0.1)
        draw.linear(f"{block}attn.out_proj", width, width)
        draw.norm(f"{block}ln_1", width)
        draw.linear(f"{block}mlp.c_fc", 4 * width, width)
        draw.linear(f"{block}mlp.c_proj", width, 4 * width)
        draw.norm(f"{block}ln_2", width)


def imagenet_vit(draw, *, width=WIDTH, depth=DEPTH):
    base = "BACKBONE.base."
    draw.normal(f"{base}cls_token", 1, 1, width, scale=0.5)
    draw.normal(f"{base}pos_embed", 1, NUM_PATCHES + 1, width, scale=0.5)
    draw.normal(f"{base}patch_embed.proj.weight", width, 3, PATCH, PATCH, scale=0.2)
    draw.normal(f"{base}patch_embed.proj.bias", width, scale=0.1)
    draw.norm(f"{base}norm", width)
    for index in range(depth):
        block = f"{base}blocks.{index}."
        draw.norm(f"{block}norm1", width)
        draw.norm(f"{block}norm2", width)
        draw.linear(f"{block}attn.qkv", 3 * width, width)
        draw.linear(f"{block}attn.proj", width, width)
        draw.linear(f"{block}mlp.fc1", 4 * width, width)
        draw.linear(f"{block}mlp.fc2", width, 4 * width)


def upstream_state(head="hdm_atmoe", *, direct=1, heads=4, tower="clip", positions=NUM_PATCHES, seed=0):
    """A whole random checkpoint of upstream."""
    draw = Draw(seed)
    dim = DIM if tower == "clip" else WIDTH
    if tower == "clip":
        clip_visual(draw, positions=positions)
    else:
        imagenet_vit(draw)
    draw.normal("BACKBONE.cv_embed" if tower == "clip" else "BACKBONE.base.sie_embed", CAMERAS, 1, WIDTH, scale=0.5)
    for name in ("rgb", "nir", "tir"):
        draw.norm(f"{name}_reduce.0", 2 * dim)
        draw.linear(f"{name}_reduce.1", dim, 2 * dim)
    pairs = [("", 3 * dim)] if direct else [(letter, dim) for letter in "rnt"]
    if head == "sdtps":
        pairs.append(("sdtps", 3 * dim))
        _sdtps(draw, dim)
    elif head != "none":
        pairs.append(("moe", 7 * dim))
        _hdm(draw, dim)
    if head == "hdm_atmoe":
        _atmoe(draw, dim, heads)
    for name, width in pairs:
        suffix = f"_{name}" if name else ""
        draw.linear(f"classifier{suffix}", CLASSES, width, bias=False)
        draw.norm(f"bottleneck{suffix}", width, batch=True)
    return draw.state


def _hdm(draw, dim):
    for subset in ("r", "n", "t", "rn", "rt", "nt", "rnt"):
        draw.normal(f"generalFusion.{subset}_token", 1, 1, dim, scale=1.0)
        draw.normal(f"generalFusion.{subset}.in_proj_weight", 3 * dim, dim)
        draw.normal(f"generalFusion.{subset}.in_proj_bias", 3 * dim, scale=0.1)
        draw.linear(f"generalFusion.{subset}.out_proj", dim, dim)


def _atmoe(draw, dim, heads):
    small, gate = dim // heads, "generalFusion.moe.gating_network.gate."
    for h in range(heads):
        for e in range(7):
            mlp = f"generalFusion.moe.experts.{h}.expertHead.{e}.mlp."
            draw.linear(f"{mlp}0", small, small)
            draw.norm(f"{mlp}2", small, batch=True)
    draw.linear(f"{gate}linear_re.0", dim, 7 * dim)
    draw.norm(f"{gate}linear_re.2", dim, batch=True)
    draw.normal(f"{gate}q_.weight", dim, dim, scale=0.5)
    draw.normal(f"{gate}k_.weight", dim, dim, scale=0.5)


def _sdtps(draw, dim):
    for name in ("rgb", "nir", "tir"):
        draw.linear(f"sdtps.{name}_sparse.score_predictor.0", dim // 4, dim)
        draw.linear(f"sdtps.{name}_sparse.score_predictor.2", 1, dim // 4)
        draw.state[f"sdtps.{name}_aggr.scale"] = 1 + torch.rand(1, 1, 1, generator=draw.generator)
        draw.norm(f"sdtps.{name}_aggr.weight.0", dim)
        draw.linear(f"sdtps.{name}_aggr.weight.1", int(0.2 * dim), dim)
        draw.linear(f"sdtps.{name}_aggr.weight.3", SLOTS, int(0.2 * dim))
