"""Embeddings of any number of items, written part by part: a broken run goes on, and processes share the work.

Each part holds the vectors of `PART` items and stands in `FILE.parts/` under a name that is a hash of the model, of
how it computes and of the items. A part that is there is whole, and is not computed again. The main process puts the
parts together; of all vectors it holds no more than one part in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from trireid.embedding.aggregate import aggregate, check_labels
from trireid.embedding.embedding_files import VECTORS_SUFFIX, check_replaceable, file_pair, write_embeddings
from trireid.embedding.embeddings import Embeddings
from trireid.embedding.items import Item
from trireid.embedding.streaming import BadItem, EmbeddedBatch, EmbeddingCounts, StreamingEmbedder
from trireid.errors import InputError, RunError
from trireid.files import check_writable, remove_leftovers, replacing

PART = 4096
"""Items of one part, if the batch size divides it."""
SECONDS_BETWEEN_LOOKS = 0.2
_KEYS = ("vectors", "present", "numbers")


@dataclass(frozen=True)
class Part:
    """Items that are written together: the positions `[start, end)` of all, and the file."""

    start: int
    end: int
    path: Path


def embed_to_files(
    embedder: StreamingEmbedder,
    items: Sequence[Item],
    out: Path,
    *,
    share: tuple[int, int] = (0, 1),
    aggregate_by: str | None = None,
    resume: bool = False,
    skip_bad: bool = False,
    advance: Callable[[int], None] | None = None,
) -> EmbeddingCounts | None:
    """Embed items and write `FILE.safetensors` and `FILE.csv`.

    Args:
        embedder: embeds the items of this process.
        items: with a key each.
        out: `FILE`, with or without one of the endings; all processes must see its folder.
        share: (number of this process, number of processes).
        aggregate_by: write one vector for all items with the same label, see `aggregate`.
        resume: go on with the parts of a broken run.
        skip_bad: leave out items that cannot be read.
        advance: called with the number of items that were done.

    Returns:
        What happened in this process; None on all processes but the main one.

    Raises:
        RunError: parts of a broken run are there and `resume` is false, or the folder cannot be written.
        ImageError, InputError: an item cannot be embedded, see `Embedder.embed`.
    """
    if aggregate_by is not None:
        check_labels(items, aggregate_by)
    folder = parts_folder(out)
    parts = _prepare(embedder, items, out, num_processes=share[1], resume=resume)
    counts = EmbeddingCounts()
    own = [part for part in parts[share[0] :: share[1]] if not _is_whole(part.path)]
    if advance is not None:
        advance(sum(part.end - part.start for part in parts[share[0] :: share[1]] if part not in own))
    _embed_parts(embedder, items, own, counts, skip_bad=skip_bad, advance=advance)
    if share[0]:
        return None
    _wait_for(parts)
    whole = out if aggregate_by is None else folder / "whole"
    counts.bad = _join(embedder, items, parts, whole)
    if aggregate_by is not None:
        aggregate(Embeddings.load(whole), aggregate_by).save(out)
    shutil.rmtree(folder)
    return counts


def _prepare(
    embedder: StreamingEmbedder, items: Sequence[Item], out: Path, *, num_processes: int, resume: bool
) -> list[Part]:
    """The parts, after all checks that can be made before the work."""
    _check_keys(items)
    folder = parts_folder(out)
    for path in check_replaceable(out):
        check_writable(path)
    left = sorted(folder.glob(f"*{VECTORS_SUFFIX}")) if folder.is_dir() else []
    parts = list(_plan(embedder, items, folder, num_processes=num_processes))
    if num_processes > 1:
        _check_same(embedder, parts, num_processes)
    if left and not resume:
        raise RunError(
            f"{folder} holds {len(left)} parts of a run that was broken off: go on with --resume, or remove the folder"
        )
    return parts


def _check_same(embedder: StreamingEmbedder, parts: Sequence[Part], num_processes: int) -> None:
    from trireid.train.gathering import check_same  # torch, which one process with an exported file does without

    given = {
        "the model": embedder.model.fingerprint,
        "the feature": embedder.model.feature,
        "the items": hashlib.sha256("".join(part.path.name for part in parts).encode()).hexdigest(),
    }
    check_same(given, num_processes=num_processes, advice="start all of them with the same command and images")


def parts_folder(out: Path) -> Path:
    """Where the parts of a file stand until it is whole."""
    vectors, _ = file_pair(out)
    return vectors.with_suffix(".parts")


def _check_keys(items: Sequence[Item]) -> None:
    if not items:
        raise InputError("there are no items to embed: give at least one")
    seen: set[str | None] = set()
    for item in items:
        if item.key is None or item.key in seen:
            raise InputError(f"{item.name} is there twice, or has no key: give each item a key of its own")
        seen.add(item.key)


def _plan(embedder: StreamingEmbedder, items: Sequence[Item], folder: Path, *, num_processes: int) -> Iterator[Part]:
    """The parts of all items; each but the last holds whole batches, so that no batch depends on the parts."""
    batch = embedder.batch_size
    fair = -(-len(items) // num_processes)
    size = batch * max(1, min(PART, fair) // batch)
    how = (
        f"{type(embedder).__name__} {embedder.model.fingerprint} {embedder.model.feature} {embedder.precision} {batch}"
    )
    if embedder.precision == "fp8":  # every vector depends on the items that the scales come from
        how += "".join(map(_described, items[:batch]))
    for start in range(0, len(items), size):
        end = min(start + size, len(items))
        digest = hashlib.sha256(how.encode(errors="surrogatepass"))
        for item in items[start:end]:
            digest.update(_described(item).encode(errors="surrogatepass"))
        yield Part(start, end, folder / f"{digest.hexdigest()[:40]}{VECTORS_SUFFIX}")


def _described(item: Item) -> str:
    """All that an item's vector depends on, with size and time of its files."""
    states = []
    for name, path in sorted(item.images.items()):
        try:
            state = os.stat(path)  # noqa: PTH116 - a million times
            states.append((name, os.path.abspath(path), state.st_size, state.st_mtime_ns))  # noqa: PTH100
        except (OSError, ValueError):  # said where it is read
            states.append((name, str(path), -1, -1))
    return repr((item.key, states, item.box, item.camera))


def _embed_parts(
    embedder: StreamingEmbedder,
    items: Sequence[Item],
    parts: Sequence[Part],
    counts: EmbeddingCounts,
    *,
    skip_bad: bool,
    advance: Callable[[int], None] | None,
) -> None:
    """Compute parts in one stream, so that decoding and model never wait at their ends; write each when it is done."""
    total = sum(part.end - part.start for part in parts)
    rest = iter(parts)
    batches: list[EmbeddedBatch] = []
    part, done, before, bad = next(rest, None), 0, 0, 0
    positions = [position for each in parts for position in range(each.start, each.end)]
    stream = (items[position] for position in positions)
    for batch in embedder.stream(stream, counts=counts, total=total, skip_bad=skip_bad):
        batches.append(batch)
        done += batch.num_read
        if advance is not None:
            advance(batch.num_read)
        assert part is not None
        if done - before == part.end - part.start:
            numbers = [positions[number] for each in batches for number in each.numbers]
            _write_part(part, batches, numbers, counts.bad[bad:], positions)
            part, before, bad, batches = next(rest, None), done, len(counts.bad), []


def _write_part(
    part: Part, batches: Sequence[EmbeddedBatch], numbers: Sequence[int], bad: Sequence[BadItem], positions: list[int]
) -> None:
    tables = {
        "vectors": np.concatenate([batch.vectors for batch in batches]),
        "present": np.concatenate([batch.present for batch in batches]),
        "numbers": np.array(numbers, np.int64),
    }
    listed = [astuple(BadItem(positions[each.number], each.name, each.reason)) for each in bad]
    with replacing(part.path) as temporary:
        save_file(tables, temporary, metadata={"bad": json.dumps(listed)})


def _is_whole(path: Path) -> bool:
    """Whether a part is there; the head of the file says how long it must be."""
    try:
        with safe_open(path, framework="numpy") as file:
            return set(file.keys()) == set(_KEYS) and "bad" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _wait_for(parts: Sequence[Part]) -> None:
    """Wait for the parts of other processes; where one of them fails, the launcher ends this one, too."""
    for part in parts:
        while not _is_whole(part.path):
            time.sleep(SECONDS_BETWEEN_LOOKS)


def _join(embedder: StreamingEmbedder, items: Sequence[Item], parts: Sequence[Part], out: Path) -> list[BadItem]:
    """Write the result from the parts; the items that were left out."""
    present: list[NDArray[np.bool_]] = []
    kept: list[Item] = []
    bad: list[BadItem] = []
    for part in parts:
        remove_leftovers(part.path)
        with safe_open(part.path, framework="numpy") as file:
            present.append(file.get_tensor("present"))
            numbers = file.get_tensor("numbers").tolist()
            bad += [BadItem(*each) for each in json.loads((file.metadata() or {})["bad"])]
        kept += [items[number].without_pixels(str(items[number].key)) for number in numbers]
    if not kept:
        shutil.rmtree(parts[0].path.parent)
        raise InputError(f"none of the {len(items)} items can be read, the first is {bad[0]}")
    write_embeddings(
        out,
        (_vectors_of(part) for part in parts),
        present=np.concatenate(present),
        items=kept,
        model=embedder.model,
    )
    return bad


def _vectors_of(part: Part) -> NDArray[np.float32]:
    with safe_open(part.path, framework="numpy") as file:
        vectors: NDArray[np.float32] = file.get_tensor("vectors")
        return vectors
