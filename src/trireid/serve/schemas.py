"""What requests and answers of the API hold, with examples: the description at /openapi.json is made from it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from trireid.gallery.query import Reduce, Target
from trireid.names import Exclusion, ModalityName

_BASE64 = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAQCAAAAAAO4WGhAAAAEUlEQVR42mNsYIAAJoZBwQAAURAAoGlIcOMAAAAASUVORK5CYII="
"""A small grey PNG: examples are accepted as they are."""

Key = Annotated[str, Field(min_length=1, max_length=512, description="unique text by which the gallery knows an item")]
Text = Annotated[str, Field(min_length=1, max_length=256)]
Names = Annotated[list[str], Field(max_length=1000)]
Time = Annotated[float, Field(allow_inf_nan=False, description="seconds since 1970-01-01 UTC")]
Encoding = Literal["numbers", "base64"]
Unshown = Literal["no_root", "outside_root", "no_file"]
"""Why the image of an item is not shown: the gallery has no root, or the file is not below it, or not there."""


class Strict(BaseModel):
    """Fields that are not known are refused, so that no spelling mistake is passed over."""

    model_config = ConfigDict(extra="forbid")


class ItemFields(Strict):
    """An object at one moment: its images, and what is known about it."""

    images: dict[ModalityName, str] = Field(
        default_factory=dict,
        description="by modality, any non-empty subset: the file in base64. In a form: files named rgb, nir, tir",
    )
    key: Key | None = None
    identity: Text | None = None
    camera: Text | None = None
    scene: Text | None = None
    time: Time | None = None
    box: tuple[float, float, float, float] | dict[ModalityName, tuple[float, float, float, float]] | None = Field(
        default=None, description="(left, top, right, bottom) in pixels of the image; none: the whole image"
    )
    metadata: dict[str, JsonValue] = Field(default_factory=dict, description="any further facts")


class WithItems(Strict):
    """A request about items with images."""

    items: list[ItemFields] = Field(default_factory=list)

    def with_items(self, count: int) -> Self:
        """The same with at least so many items: those of a form may have images only."""
        missing = count - len(self.items)
        return self if missing <= 0 else self.model_copy(update={"items": [*self.items, *[ItemFields()] * missing]})


class EmbedRequest(WithItems):
    """Images to embed."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"items": [{"images": {"rgb": _BASE64, "tir": _BASE64}}]}]}
    )
    encoding: Encoding = Field(
        default="numbers", description="base64: each vector as little-endian float32, which is smaller and quicker"
    )


class FilterFields(Strict):
    """Items that fulfil all given conditions."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"cameras": ["gate"], "after": 1.7e9}]})
    cameras: Names | None = None
    not_cameras: Names | None = None
    scenes: Names | None = None
    identities: Names | None = None
    keys: Names | None = None
    presence: Names | None = Field(default=None, description="exactly these modalities, such as 'rgb,nir'")
    after: Time | None = None
    before: Time | None = None


class SearchRequest(WithItems):
    """Images, or keys of items of the gallery, to find the nearest items or identities of."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "items": [{"images": {"rgb": _BASE64}, "camera": "gate"}],
                    "by": "identity",
                    "top": 5,
                    "exclude": "cross_camera",
                },
                {"keys": ["gate-17"], "top": 10},
            ]
        },
    )
    keys: list[Key] = Field(default_factory=list, description="items of the gallery as queries, instead of images")
    top: int = Field(default=10, ge=1, description="matches of each query")
    by: Target = Field(default="item", description="rank items or identities")
    reduce: Reduce = Field(default="best", description="of an identity's items, with by=identity")
    where: FilterFields | None = Field(default=None, description="which items of the gallery are searched")
    exclude: Exclusion = Field(default="none", description="which items a query must not see")
    threshold: float | None = Field(
        default=None, ge=0, le=2, allow_inf_nan=False, description="distance above which nothing is known"
    )
    fmr: float | None = Field(
        default=None, gt=0, lt=1, description="false match rate that sets the threshold; needs a calibration"
    )


class AddRequest(WithItems):
    """Items to add. Each needs a key; an item whose key the gallery has is replaced."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {
                            "key": "gate-17",
                            "images": {"rgb": _BASE64, "nir": _BASE64, "tir": _BASE64},
                            "identity": "0007",
                            "camera": "gate",
                            "time": 1764151200.0,
                            "metadata": {"operator": "day shift"},
                        }
                    ]
                }
            ]
        },
    )


class LabelRequest(Strict):
    """Which object some items are."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"keys": ["gate-17", "yard-3"], "identity": "0007"}]}
    )
    keys: list[Key] = Field(min_length=1, max_length=1000)
    identity: Text | None = Field(description="null: not known any more")


class OneLabel(Strict):
    """Which object an item is."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"identity": "0007"}]})
    identity: Text | None = Field(description="null: not known any more")


class EmbeddedItem(BaseModel):
    """The feature of one item."""

    key: str = Field(description="of the request, or the number of the item in it")
    present: dict[str, bool]
    vector: list[float] | str


class ModelAnswer(BaseModel):
    """What vectors are made by."""

    fingerprint: str
    feature: str
    width: int
    blocks: list[list[int]]
    modalities: list[str]
    description: str
    version: str


class EmbedAnswer(BaseModel):
    """Features, not normalised, in the order of the request."""

    model: ModelAnswer
    items: list[EmbeddedItem]


class ItemAnswer(BaseModel):
    """An item of the gallery."""

    key: str
    identity: str | None
    camera: str | None
    scene: str | None
    time: float | None
    images: dict[str, str] = Field(description="addresses of its images by modality, below that of the service")
    images_not_shown: dict[str, Unshown] = Field(
        description="why other images of it are not shown: only files below the root of the gallery are"
    )
    metadata: dict[str, Any]


class MatchAnswer(ItemAnswer):
    """An item or identity near a query."""

    distance: float = Field(description="in [0, 2]; the smaller the nearer")
    similarity: float | None = Field(description="cosine over what both have; null: they have nothing in common")
    accepted: bool | None = Field(
        description="whether it is within the threshold; null: without one, or not calibrated"
    )
    compared: list[str] = Field(description="the modalities that both have")
    false_match_rate: float | None = Field(
        description="share of pairs of different objects that are this near; null where not calibrated"
    )
    rate_is_bound: bool = Field(description="whether the rate is at most false_match_rate, how much lower is not known")


class QueryAnswer(BaseModel):
    """The nearest items or identities of one query."""

    query: str | None = Field(description="key of the query, or its number in the request")
    known: bool | None = Field(description="false: nothing is near enough; null: without a threshold, or undecided")
    threshold: float | None
    matches: list[MatchAnswer]


class SearchAnswer(BaseModel):
    """One result for each query, in the order of the request."""

    results: list[QueryAnswer]
    notes: list[str] = Field(description="what the reader of the results should know")


class AddAnswer(BaseModel):
    """What was added; it is on the disk."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"added": 1, "replaced": 0, "keys": ["gate-17"]}]})
    added: int
    replaced: int
    keys: list[str]


class CountAnswer(BaseModel):
    """How many items were changed; it is on the disk."""

    changed: int


class PageAnswer(BaseModel):
    """One page of a list."""

    items: list[ItemAnswer]
    next: str | None = Field(description="cursor of the next page; null: this is the last one")


class HealthAnswer(BaseModel):
    """Whether the service can answer."""

    status: Literal["ready", "live"]


class GalleryAnswer(BaseModel):
    """What is searched."""

    about: dict[str, Any]


class ThresholdAnswer(BaseModel):
    """One threshold of the cosine over what both items have."""

    fmr: float = Field(description="false match rate that it is for")
    cosine: float
    false_match_rate: float
    false_non_match_rate: float


class PairAnswer(BaseModel):
    """Error rates between items of two presences."""

    first: str = Field(description="modalities by their letters, such as rnt")
    second: str
    pairs_of_one_identity: int
    pairs_of_two_identities: int
    lowest_fmr: float = Field(description="the lowest false match rate that the number of identities supports")
    thresholds: list[ThresholdAnswer]


class CalibrationAnswer(BaseModel):
    """The error rates of the model's distances."""

    calibrated: bool
    about: dict[str, Any] | None = Field(description="of which model, data and items, and by which rule")
    pairs: list[PairAnswer]
