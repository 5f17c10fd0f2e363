"""`trireid.Gallery`: items, their features and who they are, in a folder or on a Milvus server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from trireid.embedding.items import Item
from trireid.errors import InputError, RunError, printable
from trireid.gallery.about import About, new_about, read_about
from trireid.gallery.camera_means import STORED_AS, CameraMeans, check_changes, make_room, read_means, takes_items
from trireid.gallery.copying import copy_rows
from trireid.gallery.engine import Engine
from trireid.gallery.filters import Filter, expression, presence_in
from trireid.gallery.layout import CODES, names_of
from trireid.gallery.location import check_name, gallery_exists, made_folder, new_engine, opened_folder, place_of
from trireid.gallery.lookup import checked_label, existing, removable
from trireid.gallery.query import Choices, Reduce, Target, answer
from trireid.gallery.results import Added, GalleryInfo, QueryResult
from trireid.gallery.rows import check_vectors, checked_text, item_of, rows_of, write_rows
from trireid.gallery.thresholds import calibration_text, read_calibration_text
from trireid.gallery.unrelated import measured

if TYPE_CHECKING:
    from trireid.embedding.embeddings import Embeddings, ModelIdentity
    from trireid.evaluation.calibration import Calibration
    from trireid.names import Exclusion

ENOUGH = 100
"""Items from which on `unrelated` is measured by itself."""
Progress = Callable[[int, int], None]
Items = list[Item]
Results = list[QueryResult]
_log = logging.getLogger(__name__)


class Gallery:
    """Items that queries are compared with. Made by `Gallery.create`, opened by `Gallery.open`; a context manager.

    Distances are those of `docs/missing.md`, also between items of unlike modalities.

    Example:
        >>> from trireid.embedding.embeddings import Embeddings, ModelIdentity
        >>> model = ModelIdentity(fingerprint="0" * 64, feature="global", blocks=((0,), (1,), (2,)), width=3)
        >>> items = tuple(Item(images={}, key=key, identity=key[0]) for key in ("a1", "a2", "b1"))
        >>> vectors = np.array([[1, 1, 1], [1, 1, 2], [-1, 1, 0.5]], dtype=np.float32)
        >>> found = Embeddings(vectors, np.ones((3, 3), dtype=bool), items, model)
        >>> with Gallery.create("gallery", model) as gallery:
        ...     gallery.add(found)
        ...     [match.key for match in gallery.query("a1", top=2)[0].matches]
        Added(added=3, replaced=0, unrelated=None)
        ['a2', 'b1']
    """

    def __init__(self, engine: Engine, about: About) -> None:
        self._engine, self._about = engine, about
        self._layout = about.layout
        self._calibration_read: tuple[str, Calibration] | None = None

    # Open and close

    @classmethod
    def create(
        cls,
        location: str | Path,
        model: ModelIdentity,
        *,
        name: str = "gallery",
        root: str | Path | None = None,
        partial: bool = False,
        by_camera: bool = False,
    ) -> Gallery:
        """Make an empty gallery.

        Args:
            location: a folder that does not exist or is empty, or the address of a server, `http://host:port`.
            model: what its vectors are made by, `Embeddings.model` or `Embedder.model`.
            name: letters, digits and `_`; a server holds several galleries.
            root: folder that paths of images are stored relative to; None: they are stored whole.
            by_camera: subtract the mean of each camera's items from them and from queries; filled by a single `add`.
            partial: also store the parts of items by which queries with fewer modalities are compared. Such queries
                become fast, and the gallery takes four times the memory. Answers are the same.

        Raises:
            InputError: the name or the model's feature cannot be used.
            RunError: there is something at that place already, or it cannot be written.
        """
        check_name(name)
        about = new_about(model, name=name, root=root, partial=partial, by_camera=by_camera)
        with made_folder(location) as lock, ExitStack() as opening:
            engine = new_engine(location, name, about, opening, lock)
            opening.pop_all()
        return cls(engine, about)

    @classmethod
    def open(cls, location: str | Path, *, name: str = "gallery") -> Gallery:
        """Open a gallery; a folder can be open in one process at a time.

        Raises:
            RunError: there is none, it is open elsewhere, or it is of another version.
        """
        check_name(name)
        opened_folder(location)
        engine = Engine(location, name)
        with ExitStack() as opening:
            opening.callback(engine.close)
            if not engine.exists():
                others = ", ".join(engine.names()) or "none"
                raise RunError(f"there is no gallery {place_of(location, name)} (there: {others}); make it with create")
            engine.load()
            text = engine.read_text("about")
            if text is None:
                raise RunError(f"the gallery {place_of(location, name)} was not created to its end; create it again")
            about = read_about(text, place_of(location, name))
            opening.pop_all()
        return cls(engine, about)

    @classmethod
    def exists(cls, location: str | Path, *, name: str = "gallery") -> bool:
        """Whether there is a gallery."""
        return gallery_exists(location, name)

    def close(self) -> None:
        """Let go of the folder or the server; everything that was reported as done is kept."""
        self._engine.close()

    def __enter__(self) -> Gallery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # Change

    def add(self, embeddings: Embeddings, *, progress: Progress | None = None) -> Added:
        """Add items; one whose key is there already is replaced. Everything is checked before the first is written.

        Args:
            embeddings: features of the gallery's model, with a key for each item.
            progress: is called with the number of items that were written, and of all.

        Raises:
            InputError: another model, NaN, a key twice, no items, or a field that cannot be stored; the gallery is
                centred by camera and has its items already.
            RunError: on a server, an earlier filling of such a gallery that did not end left other items.
        """
        self._about.check_model(embeddings)
        check_changes(self._engine, self._about, first=True)
        check_vectors(embeddings, self._layout)
        means = CameraMeans.of(embeddings) if self._about.centring == "camera" else None
        embeddings = embeddings if means is None else means.subtract(embeddings)
        rows = rows_of(embeddings, self._layout, self._root)
        make_room(self._engine, self._about, {row["key"] for row in rows})
        replaced = len(self._engine.fetch([row["key"] for row in rows]))
        write_rows(self._engine, self._layout, rows, embeddings.vectors, progress)
        if means is not None:
            self._engine.write_text(STORED_AS, means.text())
        return Added(len(rows) - replaced, replaced, self._measure_first())

    def label(self, keys: str | Iterable[str], identity: str) -> int:
        """Give items an identity. Returns how many there are.

        Raises:
            InputError: a key is not there, or the identity is no text; nothing was changed.
        """
        return self._relabel(keys, checked_label(identity))

    def unlabel(self, keys: str | Iterable[str]) -> int:
        """Take the identity of items away. Returns how many there are.

        Raises:
            InputError: a key is not there; nothing was changed.
        """
        return self._relabel(keys, "")

    def _relabel(self, keys: str | Iterable[str], identity: str) -> int:
        names = list(existing(self._engine, keys))
        step = self._engine.page_size(self._layout.row_width)
        for start in range(0, len(names), step):
            rows = self._engine.fetch(names[start : start + step], width=self._layout.row_width).values()
            vectors = np.stack([row.pop("vector") for row in rows])
            self._engine.upsert([{**row, "identity": identity} for row in rows], vectors, flush=False)
        self._engine.flush()
        return len(names)

    def remove(self, where: Filter) -> int:
        """Remove the items that fulfil a filter. Returns how many there were.

        Raises:
            InputError: the filter is empty, which would remove all, or one of its keys is not there; nothing was
                changed.
        """
        check_changes(self._engine, self._about)
        keys = removable(self._engine, where)
        self._engine.delete(keys)
        return len(keys)

    # Read

    def query(
        self,
        embeddings: Embeddings | str | Sequence[str],
        *,
        top: int = 10,
        by: Target = "item",
        reduce: Reduce = "best",
        where: Filter | None = None,
        exclude: Exclusion = "none",
        threshold: float | None = None,
        fmr: float | None = None,
    ) -> Results:
        """The nearest items or identities of each query.

        Args:
            embeddings: features of the gallery's model; or keys of items of the gallery, which do not find themselves.
            top: how many matches.
            by: `item`, or `identity`: each identity once; items without one are left out.
            reduce: of an identity's items, the nearest counts (`best`) or the `mean` of their distances.
            where: only items that fulfil it.
            exclude: as `trireid.Protocol`: what a query must not see.
            threshold: largest distance of a match that counts as known.
            fmr: instead, the false match rate that the gallery's calibration promises.

        Returns:
            One result for each query, in order.

        Raises:
            InputError: an argument that cannot be used; a key that is not there; `fmr` without a calibration, or
                lower than it allows for any pair of modalities.
        """
        choices = Choices(top, by, reduce, expression(where), exclude, threshold, fmr)
        self._refresh()
        return answer(self._engine, self._about, self.calibration, embeddings, choices, self.camera_means)

    def get(self, keys: str | Iterable[str]) -> Items:
        """Items by key, in the given order.

        Raises:
            InputError: a key is not there.
        """
        return [item_of(row, self._root) for row in existing(self._engine, keys).values()]

    def list(self, where: Filter | None = None, *, after: str | None = None, limit: int = 100) -> Items:
        """Items in the order of their keys.

        Args:
            where: only items that fulfil it.
            after: only keys that come after this one, the last of the page before.
            limit: of the page, 1 to 1000.
        """
        if not isinstance(limit, int) or not 1 <= limit <= 1000:
            raise InputError(f"limit must be a whole number from 1 to 1000, given {printable(repr(limit))}")
        if after is not None:
            checked_text(after, "key", "after")
        return [item_of(row, self._root) for row in self._engine.page(expression(where), after, limit)]

    def count(self, where: Filter | None = None) -> int:
        """How many items fulfil a filter."""
        return self._engine.count(expression(where))

    def __len__(self) -> int:
        return self.count()

    @property
    def takes_items(self) -> bool:
        """Whether items can be added: a gallery that is centred by camera is filled once."""
        return takes_items(self._engine, self._about)

    @property
    def model(self) -> ModelIdentity:
        """What made its vectors."""
        return self._about.model

    def info(self) -> GalleryInfo:
        """The gallery in numbers."""
        counts = {code: self._engine.count(presence_in([code])) for code in CODES}
        return self._about.info(
            self._engine.location, {",".join(names_of(code)): count for code, count in counts.items() if count}
        )

    # What distances depend on

    def measure_unrelated(self) -> float:
        """Measure the cosine of unrelated items again, on a sample: all distances between unlike presences change.

        Raises:
            InputError: the gallery has fewer than two items.
        """
        value, count = measured(self._engine, self._layout)
        before = self._about.unrelated
        self._write(self._about.changed(unrelated=value, unrelated_from=count))
        _log.info(
            "the cosine of unrelated items is %.4f, measured on %d items (before: %s)",
            value,
            count,
            "not measured, 0 was used" if before is None else f"{before:.4f}",
        )
        return value

    def _measure_first(self) -> float | None:
        if self._about.unrelated is not None or self.count() < ENOUGH:
            return None
        return self.measure_unrelated()

    def set_calibration(self, calibration: Calibration) -> None:
        """Store a calibration of the gallery's model: then `fmr` can be used, and matches have false match rates.

        It holds cosines, so that it stays valid when `unrelated` is measured again.

        Raises:
            InputError: it is of another model or feature.
        """
        self._about.check_calibration(calibration)
        text = calibration_text(calibration)
        self._engine.write_text("calibration", text)
        self._write(self._about.changed(calibration=sha256(text.encode()).hexdigest()))
        self._calibration_read = None

    @property
    def calibration(self) -> Calibration | None:
        """The stored calibration, read once."""
        name = self._about.calibration
        if name is None:
            return None
        if self._calibration_read is None or self._calibration_read[0] != name:
            text = self._engine.read_text("calibration")
            if text is None:
                raise RunError("the calibration of the gallery is missing: add it again (trireid gallery calibrate)")
            self._calibration_read = (name, read_calibration_text(text))
        return self._calibration_read[1]

    @cached_property
    def camera_means(self) -> CameraMeans | None:
        """The means that are subtracted from queries where the gallery is centred by camera."""
        return read_means(self._engine, self._about)

    def copy(
        self,
        location: str | Path,
        *,
        name: str = "gallery",
        partial: bool | None = None,
        progress: Progress | None = None,
    ) -> str:
        """Copy everything into a new gallery, read it back and compare.

        Args:
            location, name: of the new gallery, as for `create`.
            partial: as for `create`; None: as this one.
            progress: is called with the number of items that were copied, and of all.

        Returns:
            SHA-256 of the items of the copy, in the order of their keys; with the same `partial`, of both.

        Raises:
            RunError: there is something at that place already, or the copy differs; nothing is left of it.
        """
        self._refresh()
        check_name(name)
        means = self.camera_means  # first: a gallery that lacks them is not copied
        about = self._about.changed(name=name, partial=self._about.partial if partial is None else partial)
        with ExitStack() as ending, made_folder(location) as lock, ExitStack() as opening:
            target = new_engine(location, name, about, opening, lock)
            ending.callback(target.close)  # when the folder is marked as complete
            opening.callback(target.drop)
            found = copy_rows(self._engine, target, self._layout, about.layout, progress)
            if self.calibration is not None:
                target.write_text("calibration", calibration_text(self.calibration))
            if means is not None:
                target.write_text(STORED_AS, means.text())
            opening.pop_all()
        return found

    def _refresh(self) -> None:
        """Read the description again where another process may have changed it."""
        if not self._engine.embedded:
            text = self._engine.read_text("about")
            self._about = (
                self._about if text is None else read_about(text, place_of(self._engine.location, self._about.name))
            )

    def _write(self, about: About) -> None:
        self._engine.write_text("about", about.model_dump_json())
        self._about = about

    # Parts

    @property
    def _root(self) -> Path | None:
        return None if self._about.root is None else Path(self._about.root)
