"""HDM, ATMoE and PIFE against literal attention by hand and experts by loops."""

import pytest
import torch

from trireid.config.schema import BackboneConfig, ModelConfig
from trireid.errors import ConfigError, InputError
from trireid.models.atmoe import ATMoE
from trireid.models.build import build_model
from trireid.models.hdm import HDM
from trireid.models.pife import PIFE
from trireid.models.reid import HDMHead
from trireid.types import modality_subsets

from reference import attention, batch_norm_eval, quick_gelu

DIM = 8


def test_subset_order_is_r_n_t_rn_rt_nt_rnt():
    assert modality_subsets() == ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))


def test_hdm_equals_attention_by_hand():
    torch.manual_seed(0)
    hdm = HDM(DIM, num_heads=4).eval()
    torch.nn.init.normal_(hdm.in_bias)
    torch.nn.init.normal_(hdm.out_bias)
    globals_, patches = torch.randn(2, 3, DIM), torch.randn(2, 3, 5, DIM)
    out = hdm(globals_, patches)
    with torch.no_grad():
        for e, subset in enumerate(modality_subsets()):
            tokens = torch.cat([torch.cat([globals_[1, m][None], patches[1, m]]) for m in subset])
            expected = attention(
                hdm.query[e], tokens, hdm.in_weight[e], hdm.in_bias[e], hdm.out_weight[e], hdm.out_bias[e], 4
            )
            assert torch.allclose(out[1, e], expected, atol=1e-5)


@pytest.mark.parametrize("subset", modality_subsets())
def test_hdm_does_not_see_absent_modalities(subset):
    torch.manual_seed(0)
    hdm = HDM(DIM, num_heads=2).eval()
    globals_, patches = torch.randn(1, 3, DIM), torch.randn(1, 3, 4, DIM)
    present = torch.zeros(1, 3, dtype=torch.bool)
    present[:, list(subset)] = True
    spoiled = hdm(
        globals_.masked_fill(~present[..., None], 1e4),
        patches.masked_fill(~present[..., None, None], 1e4),
        present=present,
    )
    assert torch.allclose(hdm(globals_, patches, present=present), spoiled, atol=1e-6)
    seen = [bool(set(subset) & set(other)) for other in modality_subsets()]
    assert [bool(row.abs().sum() > 0) for row in spoiled[0]] == seen
    full = [set(other) <= set(subset) for other in modality_subsets()]
    assert torch.allclose(spoiled[0, full], hdm(globals_, patches)[0, full], atol=1e-6)


def test_atmoe_equals_experts_by_loops():
    torch.manual_seed(0)
    heads, experts, width = 2, 7, DIM // 2
    moe = ATMoE(DIM, num_heads=heads).eval()
    for norm in (moe.gate_reduce[2], moe.expert_norm):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, experts, DIM)
    out = moe(x)
    with torch.no_grad():
        for b in range(2):
            reduced = batch_norm_eval(quick_gelu(moe.gate_reduce[0](x[b].flatten())), moe.gate_reduce[2])
            query, keys = moe.gate_query.weight @ reduced, x[b] @ moe.gate_key.weight.T
            per_head = []
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                gates = torch.softmax(keys[:, part] @ query[part] / width**0.5, dim=0)
                outs = []
                for e in range(experts):
                    y = quick_gelu(moe.expert_weight[e, h] @ x[b, e, part] + moe.expert_bias[e, h])
                    channel = slice(e * DIM + h * width, e * DIM + (h + 1) * width)
                    norm = moe.expert_norm
                    y = (y - norm.running_mean[channel]) / torch.sqrt(norm.running_var[channel] + norm.eps)
                    outs.append((y * norm.weight[channel] + norm.bias[channel]) * gates[e])
                per_head.append(torch.stack(outs))  # (7, d)
            expected = torch.cat(per_head, dim=-1).flatten()  # heads on the last axis, then (7, 512) flattened
            assert torch.allclose(out[b], expected, atol=1e-5)


def test_atmoe_gates_absent_experts_out():
    torch.manual_seed(0)
    moe = ATMoE(DIM, num_heads=2).eval()
    subset_present = torch.ones(1, 7, dtype=torch.bool)
    subset_present[0, [1, 4]] = False
    gates = moe.gate(torch.randn(1, 7, DIM), subset_present=subset_present)
    assert (gates[0, [1, 4]] == 0).all()
    assert torch.allclose(gates.sum(1), torch.ones(1, 2))


def test_heads_must_divide_the_width():
    with pytest.raises(InputError, match="HDM has 3 heads; the width 8"):
        HDM(8, num_heads=3)
    with pytest.raises(InputError, match="ATMoE has 3 heads; the width 8"):
        ATMoE(8, num_heads=3)


def test_pife_is_its_formula_for_each_modality():
    torch.manual_seed(0)
    pife = PIFE(4)
    torch.nn.init.normal_(pife.norm.weight)
    torch.nn.init.normal_(pife.norm.bias)
    cls, patches = torch.randn(2, 3, 4), torch.randn(2, 3, 5, 4)
    out = pife(cls, patches)
    for m in range(3):
        joined = torch.cat([cls[0, m], patches[0, m].mean(0)])
        normed = (joined - joined.mean()) / torch.sqrt(joined.var(unbiased=False) + 1e-5)
        normed = normed * pife.norm.weight[m] + pife.norm.bias[m]
        expected = quick_gelu(pife.reduce.weight[m] @ normed + pife.reduce.bias[m])
        assert torch.allclose(out[0, m], expected, atol=1e-5)


@pytest.mark.parametrize(("width", "chosen", "num_heads"), [(768, None, 8), (768, 64, 12), (512, 64, 8), (32, 64, 1)])
def test_heads_are_those_of_earlier_checkpoints_unless_their_width_is_given(width, chosen, num_heads):
    config = ModelConfig(
        backbone=BackboneConfig(name="tiny", width=width, depth=1, num_heads=4, pretrained="none"),
        head="hdm",
        hdm_head_width=chosen,
    )
    with torch.device("meta"):
        model = build_model(config, image_size=(16, 16), num_classes=2, num_cameras=2)
    assert model.head.hdm.num_heads == num_heads
    assert model.backbone.sie_tokens == "cls"


def test_a_head_width_that_leaves_a_rest_is_refused():
    config = ModelConfig(
        backbone=BackboneConfig(name="tiny", width=96, depth=1, pretrained="none"), head="hdm", hdm_head_width=13
    )
    with pytest.raises(ConfigError, match=r"hdm_head_width is 13, which makes 7 heads of the feature width 96"):
        build_model(config, image_size=(16, 16), num_classes=2, num_cameras=2)


def test_batch_norm_alone_centres_and_scales_every_channel_of_hdm_and_keeps_absent_subsets_at_zero():
    torch.manual_seed(0)
    head = HDMHead(HDM(DIM, num_heads=4, dropout=0.0), batch_norm=True)
    patches, globals_ = torch.randn(6, 3, 5, DIM), torch.randn(6, 3, DIM)
    assert not list(head.norm.parameters())
    trained = head(patches, globals_)
    plain = head.hdm(globals_, patches).flatten(1)
    literal = (plain - plain.mean(0)) / (plain.var(0, unbiased=False) + head.norm.eps).sqrt()
    assert torch.allclose(trained, literal, atol=1e-4)
    head.eval()
    alone = torch.tensor([[True, False, False]]).expand(6, 3)
    parts = head(patches, globals_, present=alone).unflatten(1, (7, DIM))
    own = head.hdm(globals_, patches, present=alone).flatten(1)
    expected = ((own - head.norm.running_mean) / (head.norm.running_var + head.norm.eps).sqrt()).unflatten(1, (7, DIM))
    has_rgb = torch.tensor([0 in subset for subset in modality_subsets()])
    assert torch.allclose(parts[:, has_rgb], expected[:, has_rgb], atol=1e-5)
    assert bool((parts[:, ~has_rgb] == 0).all())
    backbone = BackboneConfig(name="tiny", pretrained="none", width=32, depth=1, num_heads=2)
    config = ModelConfig(backbone=backbone, head="hdm_atmoe", hdm_batch_norm=True)
    with pytest.raises(ConfigError, match="hdm_batch_norm is for model.head=hdm"):
        build_model(config, image_size=(16, 16), num_classes=2, num_cameras=1)
