"""The requirements of docs/sdtps.md, one test per row, S1 to S18. Alone: pytest tests/test_sdtps_requirements.py"""

import logging
import math
import re
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import trireid.models.sdtps as sdtps_module
from trireid.benchmark import model_macs
from trireid.config.schema import BackboneConfig, ModelConfig
from trireid.errors import InputError
from trireid.models import selection as select
from trireid.models.backbone import Backbone, create_vit
from trireid.models.build import build_model
from trireid.models.reid import ReIDModel
from trireid.models.sdtps import PRESETS, SDTPS
from trireid.upstream.configuration import load_upstream_yaml

from reference import sdtps_reference

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = dict(PRESETS["reference"])


def tiny_model(size=(32, 16), *, head="sdtps", **backbone):
    torch.manual_seed(0)
    settings = BackboneConfig(
        **{"name": "tiny", "pretrained": "none", "width": 32, "depth": 2, "num_heads": 4, **backbone}
    )
    return build_model(ModelConfig(backbone=settings, head=head), image_size=size, num_classes=4, num_cameras=2)


def head_and_inputs(dim=16, num_patches=20, **options):
    torch.manual_seed(0)
    head = SDTPS(dim, num_patches, **{**REFERENCE, **options})
    return head, torch.randn(2, 3, num_patches, dim), torch.randn(2, 3, dim)


def test_s01_only_sdtps_is_taken_from_seps():
    """No relevance-aware selection loss or text branch of SEPS is anywhere in the package."""
    words = re.compile(r"\bHRPA\b|relevance.aware|text_encoder|tokenizer|word_embedding", re.IGNORECASE)
    hits = [path for path in (ROOT / "src").rglob("*.py") if words.search(path.read_text())]
    assert hits == [], hits


def test_s02_guides_are_the_globals_after_pife(monkeypatch):
    model, seen = tiny_model().eval(), {}
    model.pife.register_forward_hook(lambda _m, _i, out: seen.update(pife=out))
    model.head.register_forward_pre_hook(lambda _m, args: seen.update(patches=args[0], guides=args[1]))
    model(torch.randn(2, 3, 3, 32, 16))
    assert torch.equal(seen["guides"], seen["pife"])
    assert seen["patches"].shape == (2, 3, 8, 32)
    assert seen["guides"].shape == (2, 3, 32)


def test_s03_predictor_shape_and_guided_scores_without_parameters_or_gradient():
    head, patches, guides = head_and_inputs()
    assert head.predictor[0].weight.shape == (3, 4, 16)  # D -> D / 4
    assert head.predictor[2].weight.shape == (3, 1, 4)  # -> 1
    assert isinstance(head.predictor[1], torch.nn.GELU)
    guides.requires_grad_(True)
    assert torch.autograd.grad(head.score(patches, guides).sum(), guides, allow_unused=True) == (None,)
    assert head.guide_map is None
    cosines = select.min_max_normalise(select.cosine_scores(patches, guides))
    assert torch.allclose(cosines.amin(-1), torch.zeros(()), atol=1e-6)
    assert torch.allclose(cosines.amax(-1), torch.ones(()), atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.25, 0.5])
def test_s04_combination_of_the_four_scores(beta):
    head, patches, guides = head_and_inputs(beta=beta)
    predicted = torch.sigmoid(head.predictor(patches)[..., 0])
    unit = select.min_max_normalise(select.cosine_scores(patches, guides))
    for m, (a, b) in enumerate([(1, 2), (0, 2), (0, 1)]):
        guided = unit[:, m, a] + unit[:, m, b] + 2 * unit[:, m, m]
        expected = (1 - 2 * beta) * predicted[:, m] + beta * guided
        assert torch.allclose(head.score(patches, guides)[:, m], expected, atol=1e-6)


@pytest.mark.parametrize(("num_patches", "ratio"), [(20, 0.5), (7, 0.5), (20, 0.01), (20, 1.0)])
def test_s05_keeps_the_ceiling_of_the_ratio_by_noise_free_score(num_patches, ratio):
    head, patches, guides = head_and_inputs(num_patches=num_patches, sparse_ratio=ratio, use_gumbel=True)
    chosen = head.train()(patches, guides).selection
    count = max(1, math.ceil(num_patches * ratio))
    assert chosen.indices.shape[-1] == count
    best = head.score(patches, guides).topk(count).indices.sort().values
    assert torch.equal(chosen.indices, best)


def test_s06_gumbel_is_hard_forward_soft_backward_and_never_selects():
    head, patches, guides = head_and_inputs(use_gumbel=True)
    scores = head.score(patches, guides).detach().requires_grad_(True)
    quiet = head.eval().decide(scores)[1]
    torch.manual_seed(5)
    _, mask, decision = head.train().decide(scores)
    assert torch.equal(mask, quiet)
    assert torch.equal(decision.detach(), mask.float())
    downstream = torch.randn_like(decision)
    (given,) = torch.autograd.grad((decision * downstream).sum(), scores)
    torch.manual_seed(5)
    soft = torch.softmax((scores + select.gumbel_noise(scores)) / head.tau, dim=-1)
    (expected,) = torch.autograd.grad((soft * downstream).sum(), scores)
    assert torch.allclose(given, expected, atol=1e-6)
    assert not head.eval().decide(scores)[2].requires_grad


def test_s07_the_decision_masks_the_logits_before_the_softmax():
    logits = torch.randn(2, 5, 8)
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[:, [1, 4, 6]] = True
    subtracted = (logits - (1 - mask.float()).unsqueeze(1) * 1e10).softmax(-1)
    assert torch.allclose(select.masked_softmax(logits, mask.float(), mask), subtracted, atol=1e-6)
    gathered = select.log_masked_softmax(logits[:, :, [1, 4, 6]], torch.ones(2, 3))
    assert torch.allclose(gathered, subtracted[:, :, [1, 4, 6]], atol=1e-6)


def test_s08_aggregation_shapes_and_formula():
    head, patches, guides = head_and_inputs(dim=20)
    assert head.num_slots == int(20 * 0.4 * 0.5)
    assert head.aggregation[1].weight.shape == (3, 4, 20)  # D -> floor(0.2 D)
    assert head.aggregation[3].weight.shape == (3, 4, 4)  # -> A
    out = head.eval()(patches, guides)
    kept = select.gather_patches(patches, out.selection.indices)
    weights = (head.aggregation(kept) * head.scale).transpose(-1, -2).softmax(-1)
    assert torch.allclose(out.slots[:, :, :-1], weights @ kept, atol=1e-5)


def test_s09_dropped_patches_become_one_token_after_the_aggregation():
    head, patches, guides = head_and_inputs()
    out = head.eval()(patches, guides)
    for b, m in [(0, 0), (1, 2)]:
        dropped = ~out.selection.mask[b, m]
        weights = out.selection.scores[b, m, dropped].softmax(0)
        assert torch.allclose(out.slots[b, m, -1], weights @ patches[b, m, dropped], atol=1e-5)
    assert out.slots.shape[2] == head.num_slots + 1


@pytest.mark.parametrize(
    ("num_patches", "sparse_ratio", "aggr_ratio", "expected"),
    [(128, 0.5, 0.4, (64, 26)), (196, 0.5, 0.4, (98, 40)), (128, 0.7, 0.2, (90, 18)), (36, 1.0, 1.0, (36, 37))],
)
def test_s10_counts_follow_the_ratios(num_patches, sparse_ratio, aggr_ratio, expected):
    head = SDTPS(8, num_patches, sparse_ratio=sparse_ratio, aggr_ratio=aggr_ratio, **REFERENCE)
    out = head.eval()(torch.randn(1, 3, num_patches, 8), torch.randn(1, 3, 8))
    assert (out.selection.indices.shape[-1], out.slots.shape[2]) == expected


@pytest.mark.parametrize("size", [(32, 16), (16, 32), (24, 24), (64, 32)])
def test_s11_one_shape_for_all_modalities_and_a_checked_patch_count(size):
    model = tiny_model(size).eval()
    out = model(torch.randn(2, 3, 3, *size))
    chosen = out.selection["sdtps"]
    assert chosen.grid == (size[0] // 8, size[1] // 8)
    assert chosen.mask.shape == (2, 3, size[0] * size[1] // 64)
    assert (chosen.mask.sum(-1) == model.head.num_kept).all()
    with pytest.raises(InputError, match="patches"):  # at run time
        model.head(torch.randn(1, 3, 3, 32), torch.randn(1, 3, 32))
    backbone = Backbone(create_vit("tiny", image_size=size))
    with pytest.raises(InputError, match="SDTPS is for 5 patches, the backbone gives"):  # at build time
        ReIDModel(backbone, pife=None, head=SDTPS(backbone.dim, 5), classifiers={})


def test_s12_slots_are_mean_pooled_and_concatenated_with_their_own_classifier():
    model = tiny_model()
    patches, guides = torch.randn(2, 3, 8, 32), torch.randn(2, 3, 32)
    out = model.head.eval()(patches, guides)
    assert torch.allclose(out.feature, out.slots.mean(2).flatten(1), atol=1e-6)
    assert out.feature.shape == (2, 3 * 32)
    assert model.classifiers["head"].classifier.weight.shape == (4, 3 * 32)
    assert not model.classifiers["head"].bottleneck.bias.requires_grad
    assert model.classifiers["head"].classifier.bias is None


def test_s13_pairs_in_training_and_three_patterns_in_inference():
    model, images = tiny_model(), torch.randn(3, 3, 3, 32, 16)
    trained = model.train()(images)
    assert set(trained.logits) == {"global", "head"}
    assert set(trained.logits) <= set(trained.features)
    out = model.eval()(images)
    assert out.features["global"].shape == (3, 96)
    assert out.features["head"].shape == (3, 96)
    assert torch.equal(out.embedding, torch.cat([out.features["global"], out.features["head"]], dim=1))


def test_s14_the_users_yaml_and_overrides_reach_the_settings():
    path = ROOT / "configs/RGBNT201/DeMo_SDTPS.yml"
    config = load_upstream_yaml(path, []).config
    assert config.model.head == "sdtps"
    assert config.model.sdtps.use_gumbel
    pairs = ["MODEL.SDTPS_USE_GUMBEL", "False", "MODEL.SDTPS_SPARSE_RATIO", "0.7", "MODEL.SDTPS_AGGR_RATIO", "0.3"]
    pairs += ["MODEL.SDTPS_BETA", "0.1", "MODEL.SDTPS_GUMBEL_TAU", "5.0"]
    changed = load_upstream_yaml(path, pairs).config
    settings = changed.model.sdtps
    assert (settings.use_gumbel, settings.sparse_ratio, settings.aggr_ratio) == (False, 0.7, 0.3)
    assert (settings.beta, settings.gumbel_tau, settings.preset) == (0.1, 5.0, "reference")
    without = load_upstream_yaml(path, ["MODEL.USE_SDTPS", "False"]).config
    assert without.model.head == "none"


def test_s15_constructors_print_nothing(capsys, caplog):
    with caplog.at_level(logging.DEBUG):
        SDTPS(16, 20, use_gumbel=True, **REFERENCE)
    assert capsys.readouterr() == ("", "")
    assert caplog.records == []


class OperatorNames(TorchDispatchMode):
    """Collects the packets of every operator that runs."""

    def __init__(self):
        super().__init__()
        self.packets = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.packets.add(func._overloadpacket)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("head", ["none", "sdtps", "hdm", "hdm_atmoe"])
def test_s16_every_operator_that_multiplies_is_counted(head):
    model = tiny_model(head=head).eval()
    names = OperatorNames()
    with names, torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(torch.randn(1, 3, 3, 32, 16))
    multiplying = {p for p in names.packets if re.search(r"mm|conv|attention|linear|matmul|mv|dot|einsum", str(p))}
    assert multiplying
    assert multiplying <= set(flop_registry), multiplying - set(flop_registry)
    if head == "none":
        tokens, width, patch, grid = 9, 32, 8, 8
        block = tokens * 12 * width**2 + 2 * tokens**2 * width
        embed = grid * 3 * patch**2 * width
        assert model_macs(model, image_size=(32, 16)) == 3 * (embed + 2 * block) + 3 * 2 * width * width


def test_s17_the_documented_checks_exist_for_every_row():
    """Shapes, counts, unit checks and the whole integration: the documented command names files that hold them all."""
    command = "pytest tests/test_sdtps_requirements.py tests/models/test_sdtps.py"
    assert command in (ROOT / "docs/sdtps.md").read_text()
    assert all((ROOT / file).is_file() for file in command.split()[1:])
    rows = {int(name[6:8]) for name in globals() if re.match(r"test_s\d\d_", name)}
    assert rows == set(range(1, 19))


def test_s17_reference_forward_equals_a_literal_loop():
    head, patches, guides = head_and_inputs()
    head, patches, guides = head.double().eval(), patches.double(), guides.double()
    weights = [
        {
            "p0_w": head.predictor[0].weight[m],
            "p0_b": head.predictor[0].bias[m],
            "p1_w": head.predictor[2].weight[m, 0],
            "p1_b": head.predictor[2].bias[m],
            "ln_w": head.aggregation[0].weight[m],
            "ln_b": head.aggregation[0].bias[m],
            "a0_w": head.aggregation[1].weight[m],
            "a0_b": head.aggregation[1].bias[m],
            "a1_w": head.aggregation[3].weight[m],
            "scale": head.scale[m, 0, 0],
        }
        for m in range(3)
    ]
    with torch.no_grad():
        expected = sdtps_reference(patches[0], guides[0], weights, sparse_ratio=0.5, aggr_ratio=0.4, beta=0.25)[0]
    assert torch.allclose(head(patches, guides).feature[0], expected, atol=1e-5)


def test_s18_the_documentation_has_every_part():
    text = (ROOT / "docs/sdtps.md").read_text()
    for part in ["196 -> 98 -> 39", "128 -> 64 -> 25", "hard", "soft", "all ones", "no predictor", "Gumbel", "S18"]:
        assert part in text, part
    assert all(f"| S{row} |" in text for row in range(1, 19))
    assert sdtps_module.__doc__ is not None
    assert "docs/sdtps.md" in sdtps_module.__doc__
