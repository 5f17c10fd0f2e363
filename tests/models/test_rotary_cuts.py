"""Cuts of ViTs with registers, rotary positions or no class token, against literal dense attention."""

import pytest
import torch
from tests.models.test_vit_names import attention_in_blocks, small

NAMES = (
    "vit_base_patch14_reg4_dinov2",
    "vit_base_patch16_siglip_224",
    "vit_small_patch16_dinov3",
    "eva02_base_patch16_clip_224",
    "vit_small_patch16_rope_mixed_ape_224",
)


def images(batch=2):
    return torch.randn(batch, 3, 3, 32, 16, generator=torch.Generator().manual_seed(1))


def literal(backbone, flat, positions, fused):
    """Final tokens `(R, P + 8 + 1, D)` of dense blocks whose attention leaves out what was dropped after block 1.

    Args:
        positions: `(R, K)` kept after block 1; fused: `(R, D)`, the fused token as it is before block 2.
    """
    vit, rows = backbone.vit, torch.arange(len(flat))[:, None]
    num_prefix = vit.num_prefix_tokens
    sequence = torch.cat([backbone.embed(flat), torch.zeros_like(fused)[:, None]], dim=1)
    seen = torch.ones(sequence.shape[:2], dtype=torch.bool)
    seen[:, -1] = False  # the fused token is not there in block 1
    for number, block in enumerate(vit.blocks):
        options = {}
        if getattr(vit, "rope", None) is not None:
            table = vit.rope.get_embed()
            table = table[number] if table.dim() == 4 else table
            unturned = torch.cat([torch.zeros(table.shape[-1] // 2), torch.ones(table.shape[-1] // 2)])
            options["rope"] = torch.cat([table, unturned.expand(*table.shape[:-2], 1, -1)], dim=-2)
        sequence = block(sequence, attn_mask=seen[:, None, None].expand(-1, -1, sequence.shape[1], -1), **options)
        if number == 0:
            sequence[:, -1] = fused
            seen[:, num_prefix:] = False
            seen[rows, num_prefix + positions] = True
            seen[:, -1] = True
    kept = torch.cat([torch.arange(num_prefix).expand(len(flat), -1), num_prefix + positions], dim=1)
    return torch.cat([sequence[rows, kept], sequence[:, -1:]], dim=1)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_what_a_cut_keeps_is_what_masked_attention_gives(name):
    backbone, before = small(name, ("cls_attention",), depth=3), []
    vit, flat = backbone.vit, images().flatten(0, 1)
    vit.blocks[1].register_forward_pre_hook(lambda _block, inputs: before.append(inputs[0]))
    out = backbone(images())
    tokens = vit.norm(literal(backbone, flat, out.selection["block1"].indices.flatten(0, 1), before[0][:, -1]))
    read = vit.head(vit.fc_norm(tokens))
    ours = torch.cat([out.patches, out.fused], dim=2).flatten(0, 1)
    torch.testing.assert_close(ours, read[:, vit.num_prefix_tokens :], atol=1e-5, rtol=1e-5)
    cls = read[:, 0] if vit.attn_pool is None else vit.attn_pool(tokens)
    torch.testing.assert_close(out.cls.flatten(0, 1), cls, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_scores_are_the_attention_of_the_block_also_after_a_cut(name):
    backbone = small(name, ("cls_attention", "cls_attention"), depth=3)
    vit, seen = backbone.vit, attention_in_blocks(backbone)
    selection = backbone(images()).selection
    left = torch.arange(8).expand(6, -1)
    for number, attention in enumerate(seen[:2], start=1):
        patches = slice(vit.num_prefix_tokens, vit.num_prefix_tokens + left.shape[1])
        asking = attention[:, :, :1] if vit.cls_token is not None else attention[:, :, patches]
        chosen = selection[f"block{number}"]
        scores = chosen.scores.flatten(0, 1).gather(1, left)
        torch.testing.assert_close(scores, asking.mean(dim=(1, 2))[:, patches], atol=1e-6, rtol=1e-5)
        left = chosen.indices.flatten(0, 1)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_neither_batch_nor_absent_modalities_change_an_item(name):
    backbone = small(name, ("consensus", "both"), depth=3)
    whole = backbone(images(3))
    turned, alone = backbone(images(3).flip(0)), backbone(images(3)[1:2])
    present = torch.tensor([[True, True, True], [False, True, False], [True, False, True]])
    some, one = backbone(images(3), present=present), backbone(images(3)[1:2], present=present[1:2])
    for kind in ("cls", "patches", "fused"):
        tokens = getattr(whole, kind)
        torch.testing.assert_close(getattr(turned, kind).flip(0), tokens, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(getattr(alone, kind), tokens[1:2], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(getattr(some, kind)[:1], tokens[:1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(getattr(some, kind)[1:2], getattr(one, kind), atol=1e-5, rtol=1e-5)
        assert not getattr(some, kind)[~present].any()


@pytest.mark.parametrize("name", [*NAMES, "vit_base_patch16_sapiens2"])
def test_training_reaches_every_weight_and_moves_no_position(name):
    backbone = small(name, ("consensus",), depth=3)
    quiet = backbone(images()).patches  # timm would move the positions of sapiens2 in training
    out = backbone.train()(images())
    torch.testing.assert_close(out.patches, quiet, atol=1e-5, rtol=1e-5)
    total = out.cls.square().sum() + out.patches.square().sum() + sum(out.auxiliary.values())
    total.backward()
    assert not [key for key, value in backbone.named_parameters() if value.requires_grad and value.grad is None]
