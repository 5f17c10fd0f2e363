"""Matrix products of a ViT's blocks in 8-bit floating point (e4m3), for inference.

A GPU that multiplies e4m3 does so at twice its rate of bf16. That is worth something only if 8-bit inputs cost nothing:
one scale per product is fixed by a calibration, so that scaling, clamping and casting are pointwise, and become part of
the norm or activation before the product when the blocks are compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from trireid.errors import InputError
from trireid.models.rounding import cast, round_weight, scale_of

HEADROOM = 2.0
"""How far inputs may grow over the largest of the calibration before they are clamped.

It costs no accuracy: e4m3 is equally exact, relative to a value, from 448 down to 1/64.
"""
PRODUCTS: tuple[str, ...] = ("qkv", "proj", "fc1", "fc2")
"""The four products of a block, by their names in timm."""
WORTHWHILE: tuple[str, ...] = ("qkv", "fc1", "fc2")
"""Those that gain. Before `proj` is attention, which no cast can be fused into, and it is a twelfth of the work."""
CAPABILITY = (8, 9)
"""CUDA devices multiply e4m3 from this compute capability on (Ada, Hopper)."""
_MULTIPLE = 16  # of which the widths of an 8-bit product must be


class InputRecord:
    """What a calibration keeps of the inputs of one product.

    Attributes:
        largest: absolute value, a float32 scalar; None before the first input.
        products: `(K, K)` float32, the sum of `x x^T` over all inputs `x`.
        count: of the inputs.
    """

    def __init__(self) -> None:
        self.largest: Tensor | None = None
        self.products: Tensor | None = None
        self.count = 0

    def add(self, inputs: Tensor) -> None:
        """Take account of inputs `(..., K)`."""
        rows = inputs.detach().flatten(0, -2).float()
        with torch.autocast(rows.device.type, enabled=False):
            products, largest = rows.T @ rows, rows.abs().amax()
        self.products = products if self.products is None else self.products + products
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        self.count += len(rows)


class Float8Linear(nn.Linear):
    """`y = x W^T + b` with both factors in e4m3 and one fixed scale for each; the output is bf16.

    It keeps the weight and bias of the layer it replaces: the scores of some cuts read them, and so do checkpoints.

    Args:
        linear: the layer that it replaces.
        record: of that layer's inputs.
    """

    weight8: Tensor
    bias16: Tensor
    input_scale: Tensor
    weight_scale: Tensor
    to_unit: Tensor

    def __init__(self, linear: nn.Linear, record: InputRecord) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.train(linear.training)
        weight = linear.weight.detach().float()
        assert record.largest is not None  # `use_float8` sees to it
        assert record.products is not None
        input_scale, weight_scale = scale_of(HEADROOM * record.largest), scale_of(weight.abs().amax())
        bias = weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
        values = {
            "weight8": round_weight(weight, weight_scale, record.products),
            "bias16": bias.to(torch.bfloat16),
            "input_scale": input_scale,
            "weight_scale": weight_scale,
            "to_unit": 1 / input_scale,
        }
        for name, value in values.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """`(..., K)` to `(..., N)` in bf16."""
        rows = input.flatten(0, -2)
        product = torch._scaled_mm(
            cast(rows.float() * self.to_unit),
            self.weight8.T,
            scale_a=self.input_scale,
            scale_b=self.weight_scale,
            bias=self.bias16,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        output: Tensor = product.unflatten(0, input.shape[:-1])
        return output


def check_float8(device: torch.device) -> None:
    """Refuse a device that does not multiply e4m3.

    Raises:
        InputError: it does not.
    """
    found = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if found is None or found < CAPABILITY:
        what = "no CUDA device" if found is None else f"of compute capability {found[0]}.{found[1]}"
        raise InputError(
            f"precision fp8 needs a CUDA device of compute capability {CAPABILITY[0]}.{CAPABILITY[1]} or higher (Ada, "
            f"Hopper or later), and {device} is {what}: use bf16 or fp32"
        )


def is_float8(vit: nn.Module) -> bool:
    """Whether products of this ViT are in e4m3 already."""
    return any(isinstance(part, Float8Linear) for part in vit.modules())


def use_float8(
    vit: nn.Module,
    calibrate: Callable[[], object],
    *,
    products: Sequence[str] = WORTHWHILE,
    blocks: Sequence[int] | None = None,
) -> int:
    """Put products of the blocks of a ViT into e4m3, for good, with scales and rounding by one calibration.

    Args:
        vit: of timm, in evaluation mode, its blocks not compiled yet.
        calibrate: runs the model on typical images, some thousand tokens or more.
        products: of `PRODUCTS`, by name.
        blocks: numbers of the blocks, from 0; None: all.

    Returns:
        the number of products in e4m3.

    Raises:
        InputError: a block has no such product, or its widths are not multiples of 16.
    """
    every: nn.ModuleList = vit.blocks  # type: ignore[assignment]
    places = [
        place
        for number in (range(len(every)) if blocks is None else blocks)
        for place in _linear_layers(every[number], products)
    ]
    records = [InputRecord() for _ in places]
    hooks = [
        getattr(parent, name).register_forward_pre_hook(lambda _, inputs, record=record: record.add(inputs[0]))
        for (parent, name), record in zip(places, records, strict=True)
    ]
    try:
        with torch.inference_mode():
            calibrate()
    finally:
        for hook in hooks:
            hook.remove()
    if not all(record.count for record in records):
        raise InputError(
            "a product of the backbone had no input in the calibration: its blocks do not call it as a layer, so that "
            "it cannot be put into precision fp8; use bf16"
        )
    with torch.no_grad():
        for (parent, name), record in zip(places, records, strict=True):
            setattr(parent, name, Float8Linear(getattr(parent, name), record))
            record.products = None  # as large as the weights, and not used any more
    return len(places)


def _linear_layers(block: nn.Module, products: Sequence[str]) -> list[tuple[nn.Module, str]]:
    """Where these products stand in a block."""
    found = []
    for product in products:
        parent = getattr(block, "attn" if product in ("qkv", "proj") else "mlp", None)
        linear = getattr(parent, product, None)
        if parent is None or not isinstance(linear, nn.Linear):
            raise InputError(
                f"a block of the backbone ({type(block).__name__}) has no product {product!r} for precision fp8: "
                f"allowed are {', '.join(PRODUCTS)} in blocks with attn and mlp; use bf16"
            )
        if linear.in_features % _MULTIPLE or linear.out_features % _MULTIPLE:
            raise InputError(
                f"precision fp8 needs widths that are multiples of {_MULTIPLE}, and {product} of the backbone is "
                f"{linear.in_features} x {linear.out_features}: use bf16"
            )
        found.append((parent, product))
    return found
