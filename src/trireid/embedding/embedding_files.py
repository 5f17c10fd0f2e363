"""Embeddings on disk: `FILE.safetensors` holds the numbers and the model, `FILE.csv` one row per item. No torch.

The metadata of the safetensors file holds the SHA-256 of the table, so that files that do not belong together are
noticed.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from trireid.embedding.embeddings import ROWS, Embeddings, ModelIdentity
from trireid.embedding.items import Box, Item, metadata_text
from trireid.errors import DataError, InputError, RunError, printable
from trireid.files import check_regular, is_file, read_bytes, read_head, replacing
from trireid.names import MODALITIES, Centring

_log = logging.getLogger(__name__)

VECTORS_SUFFIX, TABLE_SUFFIX = ".safetensors", ".csv"
FORMAT, VERSION = "trireid_embeddings", "1"
COLUMNS = ("key", "identity", "camera", "scene", "time", *MODALITIES, "box", "quality", "metadata")
MAX_TABLE = 16 * 2**30
"""Bytes of a table that is read."""
_FIRST_LINE = f"{','.join(COLUMNS)}\n".encode()
_AGAIN = "embed the images again"
_DAMAGE = (SafetensorError, OSError, ValueError, KeyError, TypeError, csv.Error, RecursionError, OverflowError)


def file_pair(path: Path) -> tuple[Path, Path]:
    """The files of vectors and of the table, for a name with or without one of their endings."""
    name = path.name
    for suffix in (VECTORS_SUFFIX, TABLE_SUFFIX):
        name = name.removesuffix(suffix)
    if not name:
        raise InputError(f"{path} names no file: give FILE or FILE{VECTORS_SUFFIX}")
    return path.with_name(name + VECTORS_SUFFIX), path.with_name(name + TABLE_SUFFIX)


def save_embeddings(path: Path, embeddings: Embeddings) -> None:
    """See `Embeddings.save`."""
    slices = (embeddings.vectors[start : start + ROWS] for start in range(0, len(embeddings), ROWS))
    write_embeddings(path, slices, present=embeddings.present, items=embeddings.items, model=embeddings.model)


def write_embeddings(
    path: Path,
    vectors: Iterable[NDArray[np.float32]],
    *,
    present: NDArray[np.bool_],
    items: Sequence[Item],
    model: ModelIdentity,
    announced: bool = True,
) -> None:
    """Write both files from vectors that come in parts, in the order of the items.

    Args:
        path: `FILE`.
        vectors: parts `(n, D)`.
        present, items, model: as of `Embeddings`.
        announced: report older embeddings that were replaced.

    Raises:
        RunError: another kind of file has one of the names, the folder cannot be written or the disk is full.
    """
    vectors_path, table_path = check_replaceable(path)
    old = [str(each) for each in (vectors_path, table_path) if each.exists()]
    # Both are complete before the first of them takes its place.
    with replacing(table_path) as table, replacing(vectors_path) as file:
        digest = _write_table(table, items)
        metadata = {FORMAT: VERSION, "model": json.dumps(asdict(model)), "table": digest}
        with file.open("wb") as target:
            target.write(_header(len(items), model.width, metadata))
            for part in vectors:
                target.write(np.ascontiguousarray(part, dtype="<f4").data)
            target.write(np.ascontiguousarray(present).data)
    if old and announced:
        _log.warning("replaced: %s", printable(" and ".join(old)))


def check_replaceable(path: Path) -> tuple[Path, Path]:
    """The two files of `path`, if nothing but embeddings would be lost where they are written.

    Raises:
        RunError: another kind of file has one of the names.
    """
    vectors_path, table_path = file_pair(path)
    for each, kind in ((vectors_path, _has_vectors), (table_path, _has_items)):
        if is_file(each) and each.stat().st_size and not kind(each):
            raise RunError(
                f"{printable(str(each))} exists and is no file of embeddings, or a damaged one: it is not replaced; "
                "choose another name, or remove it"
            )
    return vectors_path, table_path


def _has_vectors(path: Path) -> bool:
    try:
        with safe_open(path, framework="numpy") as file:
            return FORMAT in (file.metadata() or {})
    except _DAMAGE:
        return False


def _has_items(path: Path) -> bool:
    try:
        return read_head(path, len(_FIRST_LINE)) == _FIRST_LINE
    except OSError:
        return False


def _header(count: int, width: int, metadata: Mapping[str, str]) -> bytes:
    """What a safetensors file starts with, written here because the library takes whole tensors in memory only."""
    middle = 4 * count * width
    entries = {
        "__metadata__": dict(metadata),
        "vectors": {"dtype": "F32", "shape": [count, width], "data_offsets": [0, middle]},
        "present": {
            "dtype": "BOOL",
            "shape": [count, len(MODALITIES)],
            "data_offsets": [middle, middle + len(MODALITIES) * count],
        },
    }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # the numbers start at a multiple of their size
    return len(text).to_bytes(8, "little") + text


def _write_table(path: Path, items: Iterable[Item]) -> str:
    """Write the table; its SHA-256."""
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(map(_row, items))
    return _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _row(item: Item) -> list[str]:
    def number(value: float | None) -> str:
        return "" if value is None else repr(float(value))

    return [
        *(getattr(item, name) or "" for name in COLUMNS[:4]),
        number(item.time),
        *(str(item.images.get(name, "")) for name in MODALITIES),
        "" if item.box is None else json.dumps(dict(item.box) if isinstance(item.box, Mapping) else item.box),
        number(item.quality),
        metadata_text(item.metadata) if item.metadata else "",
    ]


def load_embeddings(path: Path) -> Embeddings:
    """See `Embeddings.load`."""
    vectors_path, table_path = file_pair(path)
    with _reading(vectors_path):
        check_regular(vectors_path)
        vectors, present, metadata = _read_numbers(vectors_path)
        model = _model_of(metadata["model"])
    with _reading(table_path):
        content = read_bytes(table_path, limit=MAX_TABLE)
        if hashlib.sha256(content).hexdigest() != metadata.get("table"):
            raise DataError(
                f"{table_path} does not belong to {vectors_path}, or was changed: restore the table that was written "
                f"with it, or {_AGAIN}"
            )
        items = tuple(_read_items(io.StringIO(content.decode("utf-8", errors="surrogateescape"), newline="")))
    with _reading(vectors_path):
        return Embeddings(vectors, present, items, model)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist: embeddings are two files, FILE{VECTORS_SUFFIX} and FILE{TABLE_SUFFIX}, which "
            "`trireid embed` and Embeddings.save write"
        ) from error
    except (*_DAMAGE, InputError) as error:
        reason = printable(str(getattr(error, "strerror", None) or error), limit=150)
        raise DataError(f"{path} is damaged, or is no file of embeddings ({reason}): {_AGAIN}") from error


def _read_numbers(path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_], dict[str, str]]:
    with safe_open(path, framework="numpy") as file:  # it checks that all tensors lie within the file
        metadata = dict(file.metadata() or {})
        if metadata.get(FORMAT) != VERSION:
            raise ValueError(f"its format is {metadata.get(FORMAT, 'another one')}, this version reads {VERSION}")
        shape, kind = file.get_slice("vectors").get_shape(), file.get_slice("vectors").get_dtype()
        if kind != "F32" or len(shape) != 2:
            raise ValueError(f"its vectors are {kind} {shape}")
        present = file.get_tensor("present")
    with path.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        start = json.loads(opened.read(length))["vectors"]["data_offsets"][0]
    if not shape[0]:
        return np.zeros(shape, np.float32), present, metadata
    vectors = np.memmap(path, dtype="<f4", mode="r", offset=8 + length + start, shape=tuple(shape))
    return vectors, present, metadata


def _model_of(text: str) -> ModelIdentity:
    given = json.loads(text)
    texts = {name: given[name] for name in ("fingerprint", "feature", "description", "version")}
    if not all(isinstance(value, str) for value in texts.values()) or type(given["width"]) is not int:
        raise ValueError("its model is not described as it must be")
    blocks = tuple(tuple(map(int, block)) for block in given["blocks"])
    if not all(block and set(block) <= set(range(len(MODALITIES))) for block in blocks):
        raise ValueError("its blocks name modalities that do not exist")
    centring = given.get("centring", "none")  # which vectors of earlier versions all are
    if centring not in get_args(Centring):
        raise ValueError("its centring does not exist")
    return ModelIdentity(blocks=blocks, width=given["width"], centring=centring, **texts)


def _read_items(text: IO[str]) -> Iterator[Item]:
    rows = csv.reader(text, strict=True)
    if tuple(next(rows, ())) != COLUMNS:
        raise ValueError(f"its columns are not {','.join(COLUMNS)}")
    for cells in rows:
        row = dict(zip(COLUMNS, cells, strict=True))
        yield Item(
            images={name: row[name] for name in MODALITIES if row[name]},
            **{name: row[name] or None for name in COLUMNS[:4]},
            time=float(row["time"]) if row["time"] else None,
            box=_box(json.loads(row["box"])) if row["box"] else None,
            quality=float(row["quality"]) if row["quality"] else None,
            metadata=json.loads(row["metadata"]) if row["metadata"] else {},
        )


def _box(given: Any) -> Box | dict[str, Box]:
    if isinstance(given, dict):
        return {name: (box[0], box[1], box[2], box[3]) for name, box in given.items()}
    return (given[0], given[1], given[2], given[3])
