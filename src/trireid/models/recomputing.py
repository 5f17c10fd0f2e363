"""Blocks that are computed a second time in the backward pass, so that less is kept from the forward pass."""

from __future__ import annotations

from functools import partial

from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trireid.models.compiling import SharedDropPath


def run_again(block: nn.Module, sequence: Tensor, **named: Tensor | None) -> Tensor:
    """The output of a block, of which only the inputs, such as tokens `(R, N, D)`, are kept for the backward pass.

    The backward pass runs the block again, with the same random numbers, and gives the same gradients.
    """
    # To keep the state of random numbers is not possible while a step is recorded: it is done where it is needed.
    run = partial(block, **named)
    output: Tensor = checkpoint(run, sequence, use_reentrant=False, preserve_rng_state=draws_numbers(block))
    return output


def draws_numbers(block: nn.Module) -> bool:
    """Whether any layer of a block draws random numbers in training."""
    return any(
        (isinstance(layer, nn.Dropout) and layer.p > 0)
        or (isinstance(layer, DropPath) and layer.drop_prob > 0)
        or isinstance(layer, SharedDropPath)
        for layer in block.modules()
    )
