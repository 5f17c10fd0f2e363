"""Items embedded by an exported file in ONNX Runtime, with the interface of `Embedder`. No torch."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trireid.data.formats import quiet_decoders
from trireid.data.spelling import find_label, label_positions
from trireid.embedding.embeddings import Embeddings, ModelIdentity
from trireid.embedding.items import Item
from trireid.embedding.onnx_metadata import OnnxDescription, read_description
from trireid.embedding.onnx_runtime import open_session, run_session
from trireid.embedding.reading import cut_box, levels_of, values_of
from trireid.embedding.resizing import resize_pixels
from trireid.embedding.streaming import BadItem, EmbeddedBatch, EmbeddingCounts, bad_item, embed_all, name_of, refused
from trireid.errors import InputError, TrireidError, printable
from trireid.files import is_file
from trireid.names import MODALITIES, UNKNOWN

BATCH_SIZE = 32


@dataclass(frozen=True)
class _Prepared:
    """One item as the file takes it.

    Attributes:
        number: of the item in the call.
        item: itself.
        images: `(m, 3, H, W)` float32.
        present: `(M,)` bool.
        camera: index, or -1.
        num_cut: boxes that reached beyond their image.
        shallow: modalities whose image has 8 bits, though there is a range for deeper ones.
        seconds: of reading it.
    """

    number: int
    item: Item
    images: NDArray[np.float32]
    present: NDArray[np.bool_]
    camera: int
    num_cut: int
    shallow: tuple[str, ...]
    seconds: float


class OnnxEmbedder:
    """Embeds items by a file of `export_onnx`; needs onnxruntime, numpy and Pillow, not torch.

    Images are prepared as `Embedder` prepares them, value for value. The vectors belong to the same model: those of
    both can lie in one gallery. They agree to 1e-5 of their length, those of a file in half precision to 5e-3.

    Args:
        file: an ONNX file that trireid wrote.
        feature: `global`, `head` or `joint`.
        batch_size: items that go through the model together.
        providers: execution providers of ONNX Runtime; None: CUDA where it has it, else the CPU.
        threads: of the CPU; None: as many as there are cores.

    Attributes:
        model: what the vectors are made by.
        modalities: that the model reads; images of others are not opened.
        description: what the file says about itself.
        device: `cpu`, `cuda`, or the provider of ONNX Runtime that computes.
        precision: of the file.

    Raises:
        CheckpointError: the file is missing or damaged, or trireid did not write it.
        InputError: it has no such feature, or onnxruntime is missing or has no such provider.
    """

    def __init__(
        self,
        file: Path | str,
        *,
        feature: str = "joint",
        batch_size: int = BATCH_SIZE,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> None:
        for name, number in (("batch_size", batch_size), ("threads", threads)):
            if number is not None and number < 1:
                raise InputError(f"{name} is {number}: give at least 1")
        file = Path(file)
        if not is_file(file):
            raise InputError(f"{printable(str(file))} does not exist: give a file that `trireid export` wrote")
        self._session = open_session(file, providers=providers, threads=threads)
        self.description = about = read_description(
            self._session.get_modelmeta().custom_metadata_map, source=printable(str(file))
        )
        if feature not in about.features:
            known = ", ".join(about.features)
            raise InputError(f"{file} has no feature {printable(feature, limit=40)!r}: choose {known}")
        layout = about.features[feature]
        self.model = ModelIdentity(
            about.fingerprint, feature, layout.blocks, layout.width, about.description, about.version, about.centring
        )
        self.modalities: tuple[str, ...] = tuple(about.reads)
        self.batch_size, self.feature, self.precision = batch_size, feature, str(about.precision)
        provider = str(self._session.get_providers()[0])
        self.device = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda"}.get(provider, provider)
        self._preparer = _Preparer(about)

    def embed(
        self, items: Iterable[Item | Mapping[str, Any]], *, progress: bool = False, skip_bad: bool = False
    ) -> Embeddings:
        """Embed items, in their order; the next batch is read while the model computes one.

        Args:
            items: a mapping `{"rgb": path_or_array, ...}` is an item about which nothing else is known.
            progress: show a bar.
            skip_bad: leave out items that cannot be read, with a warning that names them; False: an error.

        Raises:
            InputError: an item cannot be read, has no image that the model reads or not all that the file is fixed to,
                a feature is not finite, or two items have the same key.
        """
        return embed_all(self, items, progress=progress, skip_bad=skip_bad)

    def stream(
        self, items: Iterable[Item], *, counts: EmbeddingCounts, total: int | None = None, skip_bad: bool = False
    ) -> Iterator[EmbeddedBatch]:
        """Embed items batch by batch, while the next ones are read; arguments and errors as `embed`.

        Args:
            items: any number of them.
            counts: filled while the batches come.
            total: number of items, if known; not used here.
            skip_bad: as in `embed`.
        """
        started, numbered = time.perf_counter(), enumerate(items)
        with quiet_decoders(), ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decoding") as pool:
            ahead = [pool.submit(self._prepare, *each) for each in islice(numbered, self.batch_size)]
            while ahead:
                done = [each.result() for each in ahead]
                ahead = [pool.submit(self._prepare, *each) for each in islice(numbered, self.batch_size)]
                bad = [each for each in done if isinstance(each, BadItem)]
                if bad and not skip_bad:
                    for waiting in ahead:
                        waiting.cancel()
                    raise refused(bad[0])
                counts.bad += bad
                batch = [each for each in done if isinstance(each, _Prepared)]
                self._count(batch, counts)
                began = time.perf_counter()
                vectors = self._run(batch) if batch else np.zeros((0, self.model.width), np.float32)
                counts.model += time.perf_counter() - began
                counts.seconds = time.perf_counter() - started
                present = np.array([each.present for each in batch], np.bool_).reshape(-1, len(MODALITIES))
                yield EmbeddedBatch([each.number for each in batch], vectors, present, len(done))

    def _count(self, batch: Sequence[_Prepared], counts: EmbeddingCounts) -> None:
        for each in batch:
            counts.num_cut += each.num_cut
            counts.shallow.update(each.shallow)
            counts.decoding += each.seconds
            if self.description.cameras is not None and each.item.camera is not None:
                (counts.strange if each.camera == UNKNOWN else counts.known).add(each.item.camera)

    def _prepare(self, number: int, item: Item) -> _Prepared | BadItem:
        """An item for the model, or why it cannot be read."""
        try:
            return self._preparer.prepare(number, item)
        except TrireidError as error:
            return bad_item(number, item, error)

    def _run(self, batch: Sequence[_Prepared]) -> NDArray[np.float32]:
        inputs: dict[str, NDArray[Any]] = {"images": np.stack([each.images for each in batch])}
        if self.description.has_present:
            inputs["present"] = np.stack([each.present for each in batch])
        if self.description.cameras is not None:
            inputs["camera"] = np.array([each.camera for each in batch], dtype=np.int64)
        found: NDArray[np.float32] = run_session(self._session, inputs, [self.feature])[self.feature]
        broken = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if len(broken):
            first = batch[broken[0]]
            raise InputError(
                f"the feature of {name_of(first.number, first.item)} is NaN or infinite; "
                "check its images, or export the model in full precision"
            )
        return found


class _Preparer:
    """From an item to the input of a file."""

    def __init__(self, about: OnnxDescription) -> None:
        self._about = about
        self._cameras = label_positions(about.cameras or ())
        self._mean, self._std = (np.array(each, dtype=np.float32)[:, None, None] for each in (about.mean, about.std))

    def prepare(self, number: int, item: Item) -> _Prepared:
        """The input of one item.

        Raises:
            InputError: it lacks an image that is needed, or a box lies outside of its image.
            ImageError: an image cannot be read.
        """
        about, started = self._about, time.perf_counter()
        given = [name for name in about.reads if name in item.images]
        needed = len(about.modalities) if not about.has_present else about.fewest
        if len(given) < needed:
            has = f"only {', '.join(item.images)}" if item.images else "no image"
            which = ", ".join(about.reads)
            raise InputError(f"it has {has}; the model {'reads' if needed == 1 else f'needs {needed} of'} {which}")
        images = np.zeros((len(about.modalities), 3, *about.image_size), dtype=np.float32)
        num_cut, shallow = 0, []
        for name in given:
            pixels, cut, is_shallow = self._pixels(item, name)
            images[about.modalities.index(name)] = (pixels.astype(np.float32) / 255 - self._mean) / self._std
            num_cut += cut
            shallow += [name] if is_shallow else []
        present = np.array([name in given for name in MODALITIES])
        camera = UNKNOWN if item.camera is None else find_label(self._cameras, item.camera)
        seconds = time.perf_counter() - started
        return _Prepared(number, item, images, present, camera, num_cut, tuple(shallow), seconds)

    def _pixels(self, item: Item, name: str) -> tuple[NDArray[np.uint8], bool, bool]:
        """Resized pixels `(3, H, W)`, or `(1, H, W)` of a grey image; whether a box was cut; whether it is shallow."""
        given = item.images[name]
        source = os.fspath(given) if isinstance(given, str | os.PathLike) else f"the {name} image"
        values, cut = cut_box(values_of(given, source), item.box_of(name), source)
        value_range = self._about.ranges.get(name)
        levels = levels_of(given, values, value_range, source, name)
        resized = resize_pixels(levels, self._about.image_size, self._about.interpolation)
        is_shallow = values.dtype.name == "uint8" and value_range is not None
        return resized[None] if resized.ndim == 2 else resized.transpose(2, 0, 1), cut, is_shallow
