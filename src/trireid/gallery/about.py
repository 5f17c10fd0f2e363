"""What a gallery says of itself: its model, its settings and when it was made. Stored as one JSON text."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from trireid.embedding.embeddings import ModelIdentity
from trireid.errors import InputError, RunError, printable
from trireid.files import real_path
from trireid.gallery.layout import Layout
from trireid.gallery.results import GalleryInfo
from trireid.names import Centring
from trireid.typed_json import parse_object

if TYPE_CHECKING:
    from trireid.embedding.embeddings import Embeddings
    from trireid.evaluation.calibration import Calibration

SCHEMA = 1
"""Of the stored columns; galleries of another number are refused."""


class About(BaseModel):
    """The description of a gallery.

    Attributes:
        schema_version: see `SCHEMA`.
        name: of the gallery.
        fingerprint, feature, blocks, width, description, version, centring: of its model, see `ModelIdentity`.
        partial: whether parts of items are stored, see `layout.Layout`.
        root: folder that the paths of images are relative to.
        created: time in ISO 8601, UTC.
        created_by: version of trireid.
        unrelated: cosine of unrelated items; None: not measured yet, 0 is used.
        unrelated_from: number of items that it was measured on.
        calibration: name of the stored calibration; None: none.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int
    name: str
    fingerprint: str
    feature: str
    blocks: tuple[tuple[int, ...], ...]
    width: int
    description: str
    version: str
    centring: Centring = "none"
    partial: bool
    root: str | None
    created: str
    created_by: str
    unrelated: float | None = None
    unrelated_from: int = 0
    calibration: str | None = None

    @property
    def model(self) -> ModelIdentity:
        """What made the vectors."""
        return ModelIdentity(
            fingerprint=self.fingerprint,
            feature=self.feature,
            blocks=self.blocks,
            width=self.width,
            description=self.description,
            version=self.version,
            centring=self.centring,
        )

    @property
    def layout(self) -> Layout:
        """How a feature is stored."""
        return Layout(self.blocks, self.width, self.partial)

    def info(self, location: str, by_presence: Mapping[str, int]) -> GalleryInfo:
        """The gallery in numbers: where it is, and how many items have each presence."""
        return GalleryInfo(
            name=self.name,
            location=location,
            items=sum(by_presence.values()),
            by_presence=by_presence,
            model=self.model,
            partial=self.partial,
            root=self.root,
            created=self.created,
            created_by=self.created_by,
            unrelated=self.unrelated,
            unrelated_from=self.unrelated_from,
            calibrated=self.calibration is not None,
        )

    def changed(self, **entries: object) -> About:
        """The same with other entries."""
        return self.model_copy(update=entries)

    def check_calibration(self, calibration: Calibration) -> None:
        """Raise InputError unless a calibration is of the model of the gallery, and the gallery can use one."""
        if self.centring == "camera":
            raise InputError(
                "the gallery is centred by camera, so its distances depend on its items and have no rates of others: "
                "give a threshold, or use centring train"
            )
        calibration.check_model(self.fingerprint, self.feature)

    def check_model(self, embeddings: Embeddings) -> None:
        """Raise InputError unless embeddings were made by the model of the gallery."""
        other, own = embeddings.model, self.model
        if own.centring == "camera" and other.centring != "none":
            raise InputError(
                f"these vectors have centring {other.centring}, and the gallery centres by camera itself: embed the "
                "images with --centring none"
            )
        if (other.fingerprint, other.feature, other.width) != (own.fingerprint, own.feature, own.width):
            if other.centring != own.centring:
                raise InputError(
                    f"these vectors have centring {other.centring}, those of the gallery {own.centring}: embed the "
                    f"images with --centring {own.centring}, or build the gallery again (trireid gallery rebuild)"
                )
            raise InputError(
                f"these vectors are of another model ({_named(other)}) than the gallery's ({_named(own)}): embed the "
                "images again with its model, or build the gallery again with the other one (trireid gallery rebuild)"
            )
        if other.blocks != own.blocks:
            raise InputError(
                f"these vectors are compared by {len(other.blocks)} blocks and those of the gallery by "
                f"{len(own.blocks)}, as versions {printable(other.version)} and {printable(own.version)} of trireid "
                "compare this feature: embed the images again, or build the gallery again (trireid gallery rebuild)"
            )


def new_about(model: ModelIdentity, *, name: str, root: str | Path | None, partial: bool, by_camera: bool) -> About:
    """The description of a new gallery; arguments as of `Gallery.create`."""
    if model.centring == "camera" or (by_camera and model.centring != "none"):
        raise InputError(
            f"a gallery that centres by camera is made for vectors that are not centred, and these have centring "
            f"{model.centring}: embed the images with --centring none, and give the gallery --centring camera"
        )
    return About(
        schema_version=SCHEMA,
        name=name,
        fingerprint=model.fingerprint,
        feature=model.feature,
        blocks=model.blocks,
        width=model.width,
        description=model.description,
        version=model.version,
        centring="camera" if by_camera else model.centring,
        partial=partial,
        root=None if root is None else str(real_path(Path(root))),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        created_by=version("trireid"),
    )


def _named(model: ModelIdentity) -> str:
    about = f"{model.description}, " if model.description else ""
    return printable(f"{about}feature {model.feature}, width {model.width}, {model.fingerprint[:12]}", limit=160)


def read_about(text: str, place: str) -> About:
    """The description of a gallery from its JSON.

    Args:
        text: the JSON.
        place: of the gallery, for messages.

    Raises:
        RunError: it was made by another version, or is damaged.
    """
    try:
        content = parse_object(text)
        found = content.get("schema_version")
        if found != SCHEMA:
            raise RunError(
                f"the gallery {printable(place)} has schema version {printable(repr(found), limit=40)}, this trireid "
                f"reads {SCHEMA}: use the version that made it ({printable(str(content.get('created_by')), limit=40)})"
                ", or create it again from its images or embeddings"
            )
        return About.model_validate(content)
    except ValueError as error:
        raise RunError(
            f"the description of the gallery {printable(place)} is damaged ({printable(str(error), limit=120)}): "
            "create the gallery again, or restore it from a copy"
        ) from None
