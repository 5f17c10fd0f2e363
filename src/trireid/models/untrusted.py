"""What a weight file may hold: plain tensors under plain names, no more of them than the file is large.

No code of a file is run; every file that `weights.read_state` reads passes these checks before a tensor is used.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trireid.errors import CheckpointError, printable

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
"""The element types that are read, by the names of their storages in pickles."""

DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    NotImplementedError,
    OSError,
    EOFError,
    RuntimeError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    MemoryError,
    OverflowError,
    ArithmeticError,
    AssertionError,
)
"""What readers of pickles and archives raise at a damaged or hostile file; torch's own lets all of them through."""

_MAX_NAME = 1000  # characters
_MAX_UNPACKING = 10  # times the size of the file; torch does not compress, people who pack files again may
_MAX_SHARING = 8  # times the size of the file, for tensors that share their storage
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")


def one_line(error: BaseException, *, limit: int = 300) -> str:
    """The first line of an error, which may quote a file, without characters that a terminal would obey."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, KeyError) and error.args:  # its text is only the key
        text = f"{type(error).__name__} {text}"
    return printable(text, limit=limit)


def check_memo(content: bytes) -> None:
    """Refuse a pickle whose memo is numbered far beyond its parts: the reader would make room for all numbers.

    Raises:
        ValueError: it is, or the pickle is damaged.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name in _PUTS and int(argument or 0) > count:
            raise ValueError(f"its description has a part of number {argument} after {count} steps")


def unpacked_size(path: Path) -> int:
    """Bytes that a file holds, unpacked where it is a zip archive.

    Raises:
        CheckpointError: an archive unpacks to many times its size.
    """
    size = path.stat().st_size
    if not zipfile.is_zipfile(path):
        return size
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > _MAX_UNPACKING * size:
        raise CheckpointError(
            f"weight file {path} of {size:,} bytes unpacks to {unpacked:,}, more than {_MAX_UNPACKING} times as many: "
            "weights do not pack like that; it was not opened"
        )
    return max(size, unpacked)


def checked_table(table: Mapping[Any, Tensor], *, path: Path, space: int) -> dict[str, Tensor]:
    """The table, if all of it is plain tensors under plain names.

    Args:
        table: what the file holds.
        path: for messages.
        space: bytes that the file can hold, see `unpacked_size`.

    Raises:
        CheckpointError: a key is no short text of printable characters; a value is no dense tensor in memory, of one of
            `DTYPES`, within its storage; or all of them are far larger than the file.
    """
    held: dict[int, int] = {}
    shown = 0
    for key, value in table.items():
        if not isinstance(key, str) or len(key) > _MAX_NAME or not key.isprintable():
            what = f"the key {key[:60]!a}" if isinstance(key, str) else f"a key of type {type(key).__name__}"
            raise CheckpointError(
                f"weight file {path} has {what}: keys must be texts of printable characters, {_MAX_NAME} at most"
            )
        fault = _tensor_fault(value)
        if fault:
            raise CheckpointError(
                f"weight file {path} cannot be used: {key} {fault}; give a file of dense tensors of plain numbers, "
                "each stored whole"
            )
        storage = value.untyped_storage()
        held[storage.data_ptr()] = max(storage.nbytes(), held.get(storage.data_ptr(), 0))
        shown += value.numel() * value.element_size()
    if sum(held.values()) > space or shown > _MAX_SHARING * space:
        raise CheckpointError(
            f"weight file {path} claims tensors of {shown:,} bytes and holds {space:,}: it is damaged; fetch it again "
            "or give another"
        )
    return dict(table)


def value_fault(name: str, value: Tensor) -> str | None:
    """What makes the values of a tensor useless as weights, None where nothing does.

    Args:
        name: its key; a `running_var` has no negative values, a `num_batches_tracked` is a count.
        value: any dense tensor.
    """
    kind = name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        count = value.double()
        return "is no count" if bool(((count < 0) | (count != count.round())).any()) else None
    if not value.is_floating_point():
        return f"is of {str(value.dtype).removeprefix('torch.')}, not of real numbers"
    num_bad = value.numel() - int(torch.isfinite(value).sum())
    if num_bad:
        return f"has {num_bad} of {value.numel()} values that are not finite"
    if kind == "running_var" and bool((value < 0).any()):
        return "has negative values, which a variance cannot have"
    return None


def _tensor_fault(value: Tensor) -> str | None:
    if type(value) not in (Tensor, nn.Parameter):
        return f"is a tensor of the special type {type(value).__name__}"
    if value.is_nested or value.layout != torch.strided:
        return f"is {'nested' if value.is_nested else str(value.layout).removeprefix('torch.')}, not dense"
    if value.device.type != "cpu":
        return f"has no values in memory (device {value.device.type})"
    if value.dtype not in DTYPES.values():
        return f"is of {str(value.dtype).removeprefix('torch.')}"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"is {tuple(value.shape)}, more values than its storage holds"
    return None
