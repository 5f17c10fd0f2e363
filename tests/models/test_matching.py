"""Bipartite soft matching against loops, and attention in proportion to size against attention to copies."""

import pytest
import torch
from torch.nn import functional

from trireid.errors import InputError
from trireid.models.matching import mass_bias, matching_scores, merge_matched
from trireid.models.selection import select_top
from trireid.models.slimming import SlimmingStage, check_stages

from reference import cosine


@pytest.mark.parametrize(("num_patches", "num_merged"), [(8, 4), (9, 3), (7, 3), (6, 0)])
def test_matching_merges_as_loops_do(num_patches, num_merged):
    generator = torch.Generator().manual_seed(2)
    patches = torch.randn(3, num_patches, 5, generator=generator)
    keys = torch.randn(3, num_patches, 4, generator=generator)
    mass = torch.randint(1, 4, (3, num_patches), generator=generator).float()
    indices, mask = select_top(matching_scores(keys), num_patches - num_merged)
    merged, size = merge_matched(patches, mass, keys, indices, mask)
    for row in range(3):
        edges = []
        for a in range(0, num_patches, 2):
            likeness, b = max((float(cosine(keys[row, a], keys[row, b])), b) for b in range(1, num_patches, 2))
            edges.append((likeness, a, b))
        sums = {n: (mass[row, n] * patches[row, n], float(mass[row, n])) for n in range(num_patches)}
        for _, a, b in sorted(edges, reverse=True)[:num_merged]:
            tokens, count = sums.pop(a)
            sums[b] = (sums[b][0] + tokens, sums[b][1] + count)
        assert indices[row].tolist() == sorted(sums)
        for place, n in enumerate(sorted(sums)):
            assert torch.allclose(merged[row, place], sums[n][0] / sums[n][1], atol=1e-5)
            assert size[row, place] == sums[n][1]


def test_a_merged_patch_is_attended_to_as_the_patches_that_it_stands_for():
    generator = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(1, 1, 4, 6, generator=generator) for _ in range(3))
    counts = torch.tensor([1, 3, 2])  # of the three patches after one prefix token
    bias = mass_bias(counts[None].float(), num_prefix=1, dtype=torch.float32)
    found = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    copies = torch.tensor([0, 1, 2, 2, 2, 3, 3])
    literal = functional.scaled_dot_product_attention(query, key[:, :, copies], value[:, :, copies])
    assert torch.allclose(found, literal, atol=1e-6)


def test_a_model_that_merges_attends_by_size_and_drops_nothing():
    from trireid.config.schema import BackboneConfig, ModelConfig, SlimmingConfig
    from trireid.models.build import build_model

    backbone = BackboneConfig(name="tiny", pretrained="none", width=32, depth=3, num_heads=2)
    stages = tuple(SlimmingConfig(after_block=block, keep_ratio=0.5, guidance="matching") for block in (1, 2))
    config = ModelConfig(backbone=backbone, head="none", pife=False, slimming=stages)
    model = build_model(config, image_size=(32, 32), num_classes=0, num_cameras=0).eval()
    same = torch.randn(2, 3, 3, 8, 8).repeat(1, 1, 1, 4, 4)  # all patches of an image are alike
    torch.nn.init.zeros_(model.backbone.vit.pos_embed)
    dense = build_model(config.model_copy(update={"slimming": ()}), image_size=(32, 32), num_classes=0, num_cameras=0)
    dense.load_state_dict(model.state_dict())
    merged, whole = model(same), dense.eval()(same)
    assert merged.selection["block2"].indices.shape == (2, 3, 4)
    assert torch.allclose(merged.embedding, whole.embedding, atol=1e-4)
    seen = []
    model.backbone.vit.blocks[2].register_forward_pre_hook(
        lambda _m, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    model(torch.randn(2, 3, 3, 32, 32))
    assert torch.allclose(seen[0]["attn_mask"].exp().sum(-1), torch.tensor(17.0))  # 16 patches and the class token


def test_matching_keeps_at_least_half():
    with pytest.raises(InputError, match=r"model\.slimming\[0\]\.keep_ratio is 0\.4; guidance matching merges pairs"):
        check_stages((SlimmingStage(1, 0.4, "matching"),), num_blocks=4, num_patches=16)
