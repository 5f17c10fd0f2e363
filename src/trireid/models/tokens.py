"""The tokens of a ViT: how they are made before its first block, and read after its last.

A sequence holds the class token where there is one, register tokens, the patches, and after a cut the fused token.
Shapes: R rows (images), P tokens before the patches, N patches, D channels.
"""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from trireid.models.vit_parts import ViT
from trireid.names import SieTokens


def embed_tokens(vit: ViT, images: Tensor, *, added: Tensor | None, sie_tokens: SieTokens) -> Tensor:
    """Tokens `(R, P + N, D)` before the first block, of images `(R, 3, H, W)`.

    Args:
        vit: of timm, see `vit_parts.check_vit`.
        images: of the size that it was made for.
        added: `(R, 1, D)`, the camera embedding; None: not used.
        sie_tokens: what it is added to: `cls`, for a ViT with a class token, or `all`.
    """
    patches = vit.patch_embed.norm(embed_patches(images, vit.patch_embed.proj))  # (R, N, D)
    first = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
    prefix = [token.expand(patches.shape[0], -1, -1) for token in first]
    if added is not None and sie_tokens == "cls":
        prefix[0] = prefix[0] + added
    prefix = [token.to(patches.dtype) for token in prefix]
    table = vit.pos_embed
    if table is not None and table.shape[1] == patches.shape[1]:  # the tokens before the patches have no position
        tokens = torch.cat([*prefix, patches + table], dim=1)
    else:
        tokens = torch.cat([*prefix, patches], dim=1)  # (R, P + N, D)
        tokens = tokens if table is None else tokens + table
    if added is not None and sie_tokens == "all":
        tokens = tokens + added
    return vit.norm_pre(vit.pos_drop(tokens))  # type: ignore[no-any-return]


def embed_patches(images: Tensor, projection: nn.Conv2d) -> Tensor:
    """Patches `(R, N, D)` in grid order of images `(R, 3, H, W)` that its kernel tiles: the convolution as a product.

    A convolution whose stride is its kernel is a linear map of each patch, and a matrix product is several times
    faster there: convolutions change the memory layout on a GPU, and their libraries are made for small kernels.
    """
    height, width = projection.kernel_size
    tiles = images.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # (R, 3, rows, height, columns, width)
    flat = tiles.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (R, N, 3 * height * width)
    return nn.functional.linear(flat, projection.weight.flatten(1), projection.bias)


def read_tokens(vit: ViT, sequence: Tensor) -> Tensor:
    """Tokens after the last block `(R, P + N (+ 1), D)`, normalised: the summary, then patches: `(R, 1 + N (+ 1), D)`.

    The summary of an image is what the attention pooling of the ViT makes of all tokens, where it has one (SigLIP);
    else its class token; else the mean of the patches and the fused token. Register tokens end here.
    """
    # One of the two norms is the identity: a ViT that classifies by the mean of its patches has its last norm in
    # fc_norm. head is the identity unless it is CLIP's projection, which upstream applies to all tokens.
    normed = vit.norm(sequence)
    read: Tensor = vit.head(vit.fc_norm(normed))
    pool: nn.Module | None = vit.attn_pool
    num_prefix: int = vit.num_prefix_tokens
    if pool is None and vit.cls_token is not None:
        return read if num_prefix == 1 else torch.cat([read[:, :1], read[:, num_prefix:]], dim=1)
    if pool is None:
        summary = normed[:, num_prefix:].mean(dim=1)  # (R, D)
    else:
        # timm's two classes differ: EVA pools all tokens, the plain ViT leaves out those before the patches.
        skips = isinstance(vit, VisionTransformer) and not vit.pool_include_prefix
        summary = pool(normed[:, num_prefix:] if skips else normed)
    summary = vit.head(vit.fc_norm(summary))
    return torch.cat([summary.unsqueeze(1), read[:, num_prefix:]], dim=1)
