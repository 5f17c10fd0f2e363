"""What an exported file says about itself: how its images are prepared, and what its features are. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trireid.errors import CheckpointError, printable
from trireid.names import Centring, Interpolation, ModalityName

METADATA_KEY = "trireid"
"""Under this name the description stands in the metadata of the file, as JSON."""
Precision = Literal["fp32", "fp16", "int8"]
Real = Annotated[float, Field(allow_inf_nan=False)]
Index = Annotated[int, Field(ge=0, le=2)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FeatureDescription(_Part):
    """One feature of the file: the modalities of each of its blocks, and its width."""

    blocks: Annotated[tuple[tuple[Index, ...], ...], Field(min_length=1)]
    width: Annotated[int, Field(ge=1)]


class OnnxDescription(_Part):
    """The description of an exported file.

    Attributes:
        format: of this description.
        version: of trireid, which wrote the file.
        fingerprint: of the model, see `ModelIdentity`.
        description: a line for people.
        centring: what was subtracted from the features, see `ModelIdentity`.
        features: by name.
        modalities: of the images that the file takes, in the order of its input.
        has_present: it also takes which modalities each item has; else every item needs all of `modalities`.
        reads: modalities that the model was trained with; images of others are left out.
        fewest: modalities that every item needs at least.
        cameras: that the model knows, in the order of their indices; None: it has no input `camera`.
        image_size: (height, width).
        mean, std: of each channel, in units of the pixel range [0, 1].
        interpolation: of the resizing.
        antialias: of the resizing.
        ranges: by modality, which values of deep images become black and white; None: not known.
        opset: of ONNX; None: the file is a program of torch.
        precision: of the weights and the computation.
    """

    format: Literal[1] = 1
    version: str
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    description: str
    centring: Centring = "none"
    features: Annotated[dict[str, FeatureDescription], Field(min_length=1)]
    modalities: Annotated[tuple[ModalityName, ...], Field(min_length=1)]
    has_present: bool
    reads: Annotated[tuple[ModalityName, ...], Field(min_length=1)]
    fewest: Annotated[int, Field(ge=1, le=3)] = 1
    cameras: tuple[str, ...] | None = None
    image_size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    mean: tuple[Real, Real, Real]
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
    interpolation: Interpolation
    antialias: Literal[True] = True
    ranges: dict[str, tuple[Real, Real] | Literal["file"] | None]
    opset: int | None
    precision: Precision


def read_description(metadata: Mapping[str, str], *, source: object) -> OnnxDescription:
    """The description in the metadata of a file.

    Raises:
        CheckpointError: there is none, or it is damaged or of another version.
    """
    if METADATA_KEY not in metadata:
        raise CheckpointError(
            f"{source} does not describe its images and features, so trireid did not write it: make one with "
            "`trireid export RUN --to onnx --out FILE`"
        )
    try:
        return OnnxDescription.model_validate_json(metadata[METADATA_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise CheckpointError(
            f"the description inside {source} cannot be read ({printable(place, limit=60)}: "
            f"{printable(first['msg'], limit=120)}): it is damaged, or of another version of trireid; export it again"
        ) from error
