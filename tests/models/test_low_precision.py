"""Products in 8-bit floating point: rounding beside a literal definition, one layer, and a whole model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from compiling import DEVICES
from trireid.config.schema import BackboneConfig, ModelConfig, SlimmingConfig
from trireid.errors import InputError
from trireid.models.build import build_model
from trireid.models.compiling import room_to_compile
from trireid.models.low_precision import Float8Linear, InputRecord, check_float8, use_float8
from trireid.models.reid import ReIDModel
from trireid.models.rounding import DAMPING, cast, round_weight, scale_of


def literal_rounding(weight: Tensor, scale: Tensor, products: Tensor) -> Tensor:
    """One weight after the other; after each, the best values for those left, by the inverse of what is left."""
    damped = products.double() + DAMPING * products.diagonal().mean() * torch.eye(len(products))
    left = products.diagonal().argsort(descending=True, stable=True).tolist()
    values, rounded = (weight / scale).double(), torch.zeros_like(weight)
    while left:
        inverse = damped[left][:, left].inverse()
        column = left[0]
        rounded[:, column] = cast(values[:, column].float()).float()
        error = (values[:, column] - rounded[:, column]) / inverse[0, 0]
        values[:, left] -= error[:, None] * inverse[0]
        left = left[1:]
    return rounded


def test_rounding_is_the_literal_one_and_helps() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 160, generator=generator)  # more columns than are updated together
    inputs = torch.randn(400, 20, generator=generator) @ torch.randn(20, 160, generator=generator)
    inputs += torch.randn(400, 160, generator=generator)
    scale, products = scale_of(weight.abs().amax()), inputs.T @ inputs
    found, nearest = round_weight(weight, scale, products).float(), cast(weight / scale).float()
    literal = literal_rounding(weight, scale, products)
    assert (found == literal).double().mean() > 0.99  # a tie may fall the other way and move what follows
    error, other, plain = ((inputs @ (each * scale - weight).T).norm() for each in (found, literal, nearest))
    torch.testing.assert_close(error, other, rtol=1e-2, atol=0.0)
    assert error < 0.6 * plain
    independent = torch.diag(products.diagonal())
    assert torch.equal(round_weight(weight, scale, independent).float(), nearest)
    assert torch.equal(round_weight(weight, scale, torch.zeros_like(products)).float(), nearest)
    assert cast(torch.tensor([1e6, -1e6])).float().tolist() == [448.0, -448.0]


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_its_rounded_factors(bias: bool) -> None:
    torch.manual_seed(0)
    linear, record, inputs = nn.Linear(32, 48, bias=bias), InputRecord(), torch.randn(2, 5, 32)
    record.add(inputs[:1])
    record.add(inputs[1:])
    assert record.count == 10
    layer = Float8Linear(linear, record)
    assert layer.weight is linear.weight
    assert layer.state_dict().keys() == linear.state_dict().keys()
    assert float(layer.input_scale) == pytest.approx(2 * float(inputs.abs().max()) / 448)
    shown = torch.cat([inputs, 100 * inputs[:1]])  # the last are clamped
    small = cast(shown / layer.input_scale).float() * layer.input_scale
    expected = small @ (layer.weight8.float() * layer.weight_scale).T + (linear.bias if bias else 0.0)
    found = layer(shown)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)


def tiny_model(*, width: int = 32, stages: tuple[SlimmingConfig, ...] = ()) -> ReIDModel:
    tiny = BackboneConfig(name="tiny", pretrained="none", width=width, depth=3, num_heads=2)
    torch.manual_seed(0)
    config = ModelConfig(backbone=tiny, head="none", slimming=stages)
    return build_model(config, image_size=(32, 32), num_classes=4, num_cameras=0).eval()


def test_a_model_keeps_its_features_and_weights() -> None:
    model = tiny_model(stages=(SlimmingConfig(after_block=1, keep_ratio=0.5, guidance="cls_attention"),))
    changed, images = copy.deepcopy(model), torch.randn(4, 3, 3, 32, 32)
    present = torch.ones(4, 3, dtype=torch.bool)
    present[0, 1] = False
    assert use_float8(changed.backbone.vit, lambda: changed(images)) == 9
    kinds = {name: type(part) for name, part in changed.named_modules() if isinstance(part, nn.Linear)}
    assert {name.split(".")[-1] for name, kind in kinds.items() if kind is Float8Linear} == {"qkv", "fc1", "fc2"}
    assert changed.state_dict().keys() == model.state_dict().keys()
    for shown in (None, present):
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            expected, found = model(images, shown).embedding, changed(images, shown).embedding
        assert not torch.equal(expected, found)
        assert nn.functional.cosine_similarity(expected.float(), found.float()).min() > 0.99
    part = tiny_model()
    assert use_float8(part.backbone.vit, lambda: part(images), products=["fc1"], blocks=[1, 2]) == 2
    assert not isinstance(part.backbone.vit.blocks[0].mlp.fc1, Float8Linear)


def test_what_is_not_possible_is_refused() -> None:
    narrow = tiny_model(width=24)
    with pytest.raises(InputError, match=r"multiples of 16, and qkv of the backbone is 24 x 72: use bf16"):
        use_float8(narrow.backbone.vit, lambda: None)
    with pytest.raises(InputError, match=r"no product 'head' for precision fp8: allowed are qkv, proj, fc1, fc2"):
        use_float8(narrow.backbone.vit, lambda: None, products=["head"])
    with pytest.raises(InputError, match=r"compute capability 8.9 or higher .* cpu is no CUDA device: use bf16"):
        check_float8(torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_compiled_blocks_give_the_same(device: str) -> None:
    if device == "cuda":
        try:
            check_float8(torch.device(device))
        except InputError as error:
            pytest.skip(str(error))
    model = tiny_model(stages=(SlimmingConfig(after_block=1, keep_ratio=0.5),)).to(device)
    images = torch.randn(4, 3, 3, 32, 32, device=device)
    use_float8(model.backbone.vit, lambda: model(images))
    compiled = copy.deepcopy(model)
    compiled.backbone.compile_blocks(cuts=True)
    with room_to_compile(), torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16):
        for batch in (2, 4):
            expected, found = model(images[:batch]).embedding, compiled(images[:batch]).embedding
            agreement = nn.functional.cosine_similarity(expected.float(), found.float())
            assert agreement.min() > 0.99  # sums in another order round to another e4m3 here and there
