"""Tensors of a TorchScript archive, such as OpenAI's CLIP files, without running the code or any pickle of it."""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trireid.errors import CheckpointError
from trireid.models.untrusted import DAMAGE, DTYPES, check_memo, one_line

_MAX_MODULES, _MAX_NAME = 100_000, 10_000


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip file that holds constants beside its data."""
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except DAMAGE:
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers by dotted name.

    The description of the module is read by an unpickler that knows tensors, containers and plain attributes and
    refuses every other name; the archive's code is not read.

    Raises:
        CheckpointError: if the archive is damaged, or asks for anything else than tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (description,) = [
                name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")
            ]
            content = archive.read(_member(archive, description))
            check_memo(content)
            module = _TensorUnpickler(content, archive, prefix=description.removesuffix("data.pkl")).load()
        tensors = _collect(module)
    except DAMAGE as error:
        raise CheckpointError(
            f"weight file {path} is a TorchScript archive that cannot be read ({one_line(error)}): it is damaged, or "
            "holds more than tensors; fetch it again or give a plain state_dict"
        ) from error
    if not tensors:
        raise CheckpointError(f"weight file {path} is a TorchScript archive without any tensor")
    return tensors


class _Attributes:
    """What stands for a module of the archive: its attributes, no behaviour."""


class _TensorUnpickler(pickle.Unpickler):
    """Rebuilds tensors from the archive's own storages. Its objects are its own: a file changes nothing else.

    Args:
        content: the pickled description, see `check_memo`.
        archive: where the storages are.
        prefix: folder of the archive, with a slash.
    """

    def __init__(self, content: bytes, archive: zipfile.ZipFile, *, prefix: str) -> None:
        super().__init__(io.BytesIO(content))
        self._archive, self._prefix = archive, prefix
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Stand-ins for the few names that a module of tensors needs."""
        if module.split(".")[0] == "__torch__":
            return type("Module", (_Attributes,), {})
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: _view(storage, offset, tuple(size), tuple(stride))
        if (module, name) == ("collections", "OrderedDict"):
            return lambda *items: dict(*items)
        if module == "torch.jit._pickle" and name.startswith(("build_", "restore_type_tag")):
            return lambda value, *_: value
        if module == "torch" and name in DTYPES:
            return type(name, (_Attributes,), {"dtype": DTYPES[name]})
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not opened")

    def persistent_load(self, pid: Any) -> Tensor:
        """A storage as a flat tensor."""
        kind, storage_type, key, _device, count = pid
        if kind != "storage" or not isinstance(key, str):
            raise pickle.UnpicklingError("it refers to something that is no storage")
        if key not in self._storages:
            member = _member(self._archive, f"{self._prefix}data/{key}")
            dtype: torch.dtype = storage_type.dtype
            if member.file_size != count * dtype.itemsize:
                raise ValueError(f"storage {key} has {member.file_size} bytes for {count} values")
            content = np.frombuffer(self._archive.read(member), dtype=np.uint8).copy()  # torch wants to own it
            self._storages[key] = torch.from_numpy(content).view(dtype) if count else torch.empty(0, dtype=dtype)
        return self._storages[key]


def _member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """An entry as the writer leaves it, not compressed: its size is bounded by that of the file."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    return info


def _view(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    if math.prod(size) > storage.numel():
        raise ValueError(f"a tensor {size} is larger than its storage")
    return storage.as_strided(size, stride, offset)


def _collect(module: Any) -> dict[str, Tensor]:
    """Tensors by dotted name, module by module.

    Raises:
        ValueError: there are too many modules: they hold each other.
    """
    tensors: dict[str, Tensor] = {}
    waiting, seen = [("", module)], 0
    while waiting:
        prefix, holder = waiting.pop()
        seen += 1
        if seen > _MAX_MODULES or len(prefix) > _MAX_NAME:
            raise ValueError("its modules hold each other without end")
        for key, child in vars(holder).items() if isinstance(holder, _Attributes) else ():
            if not isinstance(key, str):
                raise TypeError("an attribute has no name")
            if isinstance(child, Tensor):
                tensors[f"{prefix}{key}"] = child
            elif isinstance(child, _Attributes):
                waiting.append((f"{prefix}{key}.", child))
    return tensors
