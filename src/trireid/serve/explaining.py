"""Why a match is one, drawn: the patches that the model kept, and the places that speak for the match.

torch is needed only where the embedder itself computes with it; an exported model cannot be looked into.
"""

from __future__ import annotations

import base64
import copy
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from trireid.embedding.items import Item
from trireid.errors import InputError
from trireid.names import MODALITIES

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from trireid.embedding.embedder import ModelInputs
    from trireid.models.reid import ReIDModel
    from trireid.types import Selection

LONGEST = 384
"""Pixels of the longer side of a map."""
MEDIA_TYPE = "image/jpeg"
SAME = 0.9999
"""Cosine from which on two features are the same."""
_HEAT = 0.6


@dataclass(frozen=True)
class Maps:
    """The maps of one item, each an encoded picture by modality; modalities that it lacks are left out.

    Attributes:
        images: as the model saw them.
        kept: with the patches that were dropped dim; empty where the model keeps all.
        counts: kept patches, and all, of each modality.
        heat: places that speak for a match; empty where none was asked for.
        without_heat: why there is none, a line; empty: there is.
    """

    images: Mapping[str, bytes]
    kept: Mapping[str, bytes]
    counts: Mapping[str, tuple[int, int]]
    heat: Mapping[str, bytes] = field(default_factory=dict)
    without_heat: str = ""


def can_explain(embedder: Any) -> bool:
    """Whether the model can be looked into."""
    return hasattr(embedder, "inputs")


class Explainer:
    """Draws maps on the CPU; the model of a GPU is copied for it, so that searches go on.

    Args:
        embedder: of which `can_explain` is true.
    """

    def __init__(self, embedder: Any) -> None:
        self._embedder = embedder
        self._copy: ReIDModel | None = None

    def kept(self, item: Item) -> Maps:
        """The kept patches of an item.

        Raises:
            TrireidError: an image cannot be read.
        """
        inputs = self._embedder.inputs([item])
        return _maps(inputs, 0, self._selection(inputs, 0), None, "")

    def pair(self, query: Item, match: Item) -> tuple[Maps, Maps]:
        """The maps of a query and a match, each with the places that raise the cosine of both.

        Features that are the same have no such places: nothing could raise their cosine.

        Raises:
            TrireidError: an image cannot be read.
        """
        import torch

        inputs = self._embedder.inputs([query, match])
        model = self._model(inputs.model)
        with torch.no_grad():
            embeddings = model(inputs.images, present=inputs.present, camera=inputs.camera).embedding
            cosine = torch.nn.functional.cosine_similarity(embeddings[0], embeddings[1], dim=0)
        if float(cosine) > SAME:
            first, second = (_maps(inputs, row, self._selection(inputs, row), None, "") for row in (0, 1))
            return first, second
        return (self._one(inputs, 0, embeddings[1]), self._one(inputs, 1, embeddings[0]))

    def _one(self, inputs: ModelInputs, row: int, reference: Tensor) -> Maps:
        from trireid.visualize.gradcam import grad_cam

        heat, line = None, ""
        try:
            heat = grad_cam(
                self._model(inputs.model),
                inputs.images[row : row + 1],
                present=inputs.present[row : row + 1],
                camera=inputs.camera[row : row + 1],
                reference=reference,
            )
        except InputError as error:  # the package for it is not installed
            line = str(error)
        return _maps(inputs, row, self._selection(inputs, row), heat, line)

    def _selection(self, inputs: ModelInputs, row: int) -> Selection | None:
        """What the last cut selected of an item, None where the model keeps all."""
        import torch

        one = slice(row, row + 1)
        with torch.no_grad():
            output = self._model(inputs.model)(
                inputs.images[one], present=inputs.present[one], camera=inputs.camera[one]
            )
        return next(reversed(output.selection.values()), None)

    def _model(self, model: ReIDModel) -> ReIDModel:
        if next(model.parameters()).device.type == "cpu":
            return model
        if self._copy is None:
            self._copy = copy.deepcopy(model).cpu()
        return self._copy


def _maps(
    inputs: ModelInputs, row: int, selection: Selection | None, heat: NDArray[np.float32] | None, line: str
) -> Maps:
    from trireid.models.selection import fused_weights
    from trireid.visualize.patches import patch_states, state_image

    images, kept, counts, heats = {}, {}, {}, {}
    pixels = inputs.pixels[row].permute(0, 2, 3, 1).numpy()  # (M, H, W, 3)
    for number, name in enumerate(MODALITIES):
        if not inputs.present[row, number]:
            continue
        image = pixels[number]
        images[name] = _encoded(image)
        if selection is not None:
            scores, mask = selection.scores[0, number], selection.mask[0, number]
            states, weights = patch_states(selection)[0, number], fused_weights(scores, mask)
            kept[name] = _encoded(state_image(image, states, weights, grid=selection.grid))
            counts[name] = int(mask.sum()), len(mask)
        if heat is not None:
            heats[name] = _encoded(_heated(image, heat[number]))
    return Maps(images, kept, counts, heats, line)


def _heated(pixels: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Grey pixels `(H, W, 3)` under the colours of a heat `(H, W)` in [0, 1]."""
    import matplotlib

    from trireid.visualize.gradcam import HEAT_COLORS

    colors = matplotlib.colormaps[HEAT_COLORS](heat)[..., :3] * 255
    grey = pixels.mean(axis=2, keepdims=True)
    mixed: NDArray[np.uint8] = ((1 - _HEAT) * grey + _HEAT * colors).round().astype(np.uint8)
    return mixed


def _encoded(pixels: NDArray[np.uint8]) -> bytes:
    """A map in whole multiples of its pixels, so that patches stay sharp."""
    image = Image.fromarray(pixels)
    factor = max(1, LONGEST // max(image.size))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    target = io.BytesIO()
    image.save(target, "JPEG", quality=88)
    return target.getvalue()


def data_uri(picture: bytes) -> str:
    """An encoded map as the address of an image of a page."""
    return f"data:{MEDIA_TYPE};base64,{base64.b64encode(picture).decode()}"


def modalities_of(maps: Sequence[Maps]) -> list[str]:
    """The modalities that any of some items has."""
    return [name for name in MODALITIES if any(name in each.images for each in maps)]
