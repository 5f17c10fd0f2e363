"""`trireid serve`: the API and the pages of a trained model and a gallery."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trireid.cli.console import note, progress, say
from trireid.errors import InputError, RunError, printable

if TYPE_CHECKING:
    from trireid.embedding.interface import ItemEmbedder
    from trireid.gallery.gallery import Gallery
    from trireid.serve.limits import Limits

_MINUTE = 60.0


def serve(
    run: Annotated[Path, typer.Argument(help="A run folder, a .safetensors checkpoint, or an exported .onnx file.")],
    gallery: Annotated[str, typer.Option(help="Folder of the gallery, or http://host:port of a Milvus server.")],
    name: Annotated[str, typer.Option(help="Name of the gallery.")] = "gallery",
    host: Annotated[str, typer.Option(help="Address to listen on; one that other machines reach needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free port.")] = 8000,
    token_file: Annotated[Path | None, typer.Option(help="File with the token that every request must send.")] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A further host name of the service, e.g. of a proxy; repeat as needed.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="calibration.json to store in the gallery; default: the one that it has.")
    ] = None,
    media: Annotated[Path | None, typer.Option(help="Folder for thumbnails; default: beside the gallery.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    max_megabytes: Annotated[float | None, typer.Option(help="Largest request, in MiB; default 32.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Most pixels of one image; default 8388608.")] = None,
    max_items: Annotated[int | None, typer.Option(help="Most items of one request; default 64.")] = None,
    max_in_flight: Annotated[int | None, typer.Option(help="Most requests at once; default 64.")] = None,
    max_batch: Annotated[int | None, typer.Option(help="Most items embedded in one batch; default 32.")] = None,
    max_wait: Annotated[
        float | None, typer.Option(help="Longest wait for a batch to fill, in milliseconds; default 3.")
    ] = None,
) -> None:
    """Serve an HTTP API and web pages to search, extend and correct a gallery."""
    _run(
        run,
        gallery=gallery,
        name=name,
        host=host,
        port=port,
        token_file=token_file,
        calibration=calibration,
        media=media,
        allowed_hosts=allow_host or [],
        device=device,
        limits={
            "megabytes": max_megabytes,
            "pixels": max_pixels,
            "items": max_items,
            "in-flight": max_in_flight,
            "batch": max_batch,
            "wait": max_wait,
        },
    )


def _run(
    model: Path,
    *,
    gallery: str,
    name: str,
    host: str,
    port: int,
    token_file: Path | None,
    calibration: Path | None,
    media: Path | None,
    allowed_hosts: list[str],
    device: str,
    limits: dict[str, Any],
) -> None:
    """Answer requests until the process is told to end.

    Args:
        model, gallery: where they are.
        name: of the gallery.
        host: address to listen on.
        port: to listen on; 0: any that is free.
        token_file: file with the token that every request needs.
        calibration: file to give to the gallery first.
        media: folder for thumbnails; None: beside the gallery, which must then be a folder.
        allowed_hosts: further names by which the service may be called.
        device: that the model computes on.
        limits: changes of `Limits`; those that are None stay as they are.

    Raises:
        TrireidError: a file, an address or a limit is wrong, or model and gallery do not belong together.
    """
    _check_packages()
    from trireid.data.formats import quiet_decoders
    from trireid.serve.app import create_app
    from trireid.serve.limits import Limits
    from trireid.serve.running import end_now, listen, serve
    from trireid.serve.security import check_exposure, read_token

    token = None if token_file is None else read_token(token_file)
    check_exposure(host, token)
    allowed = _limits(Limits(), limits)
    folder = _media_folder(gallery, name, media)
    listening = listen(host, port)
    opened, embedder = _open(model, gallery, name, device)
    _calibrate(opened, calibration)
    root = opened.info().root
    app = create_app(
        embedder,
        opened,
        media=folder,
        root=None if root is None else Path(root),
        limits=allowed,
        token=token,
        hosts=_hosts(host, token, allowed_hosts),
        run=model if model.is_dir() else model.parent,
    )
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    with quiet_decoders(), _seldom(), _products_in_one_thread():
        serve(app, listening, limits=allowed, started=lambda: say(f"serving {opened.count()} items at {address}"))
    end_now()


def _check_packages() -> None:
    for name in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        if find_spec(name) is None:
            raise RunError(f"the service needs the package {name}: pip install 'trireid[serve,gallery]'")


def _limits(limits: Limits, changes: dict[str, Any]) -> Limits:
    given = {name: value for name, value in changes.items() if value is not None}
    for name, value in given.items():
        if not 0 < value < math.inf:
            raise InputError(f"--max-{name} is {value}; give a number above 0")
    pixels = given.get("pixels", limits.image_pixels)
    body = math.ceil(given["megabytes"] * 2**20) if "megabytes" in given else limits.body_bytes
    return replace(
        limits,
        body_bytes=body,
        buffered_bytes=max(limits.buffered_bytes, 4 * body),
        image_pixels=pixels,
        decoded_pixels=max(limits.decoded_pixels, 4 * pixels),
        items=given.get("items", limits.items),
        in_flight=given.get("in-flight", limits.in_flight),
        batch_items=given.get("batch", limits.batch_items),
        batch_seconds=given["wait"] / 1000 if "wait" in given else limits.batch_seconds,
    )


def _media_folder(gallery: str, name: str, media: Path | None) -> Path:
    if media is not None:
        return media
    if "://" in gallery:
        raise InputError("a gallery on a server has no folder for thumbnails: give one with --media FOLDER")
    return Path(f"{gallery.rstrip('/')}.media") / name


def _open(model: Path, gallery: str, name: str, device: str) -> tuple[Gallery, ItemEmbedder]:
    """The gallery and the model that made its vectors."""
    from trireid.embedding.opening import is_exported, open_embedder
    from trireid.gallery.camera_means import described
    from trireid.gallery.gallery import Gallery

    with progress("loading the model and the gallery", counted=False):
        opened = Gallery.open(gallery, name=name)
        own = opened.model
        # The same for queries; a gallery that centres by camera does it itself.
        centring = None if is_exported(model) else "none" if own.centring == "camera" else own.centring
        embedder = open_embedder(model, device=device, feature=own.feature, centring=centring)
        if embedder.model.fingerprint != own.fingerprint:
            opened.close()
            raise InputError(
                f"the gallery {printable(gallery)} was made by another model ({own.fingerprint[:12]}, "
                f"{printable(own.description, limit=80)}) than {model} ({embedder.model.fingerprint[:12]}): serve it "
                "with its own model, or build the gallery again with this one"
            )
    if opened.camera_means is not None:
        note(f"{described(opened.camera_means)}; a query needs the camera that saw it, and no items can be added")
    return opened, embedder


def _calibrate(gallery: Gallery, path: Path | None) -> None:
    from trireid.evaluation.calibration import Calibration

    if path is not None:
        gallery.set_calibration(Calibration.load(path))
    elif gallery.calibration is None and gallery.camera_means is None:
        note("the gallery has no calibration, so results have no error rates: see trireid calibrate")


def _hosts(host: str, token: str | None, further: list[str]) -> list[str] | None:
    """Names that the service answers to; None: any, for an address that others reach and a token protects."""
    from trireid.serve.security import LOCAL_NAMES, is_loopback

    if not is_loopback(host) and not further:
        return None
    return [*LOCAL_NAMES, host, *further]


class _Seldom(logging.Filter):
    """Passes each kind of message once a minute: what holds for one request holds for thousands after it."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message is written."""
        place, now = (record.pathname, record.lineno), time.monotonic()
        if record.levelno < logging.ERROR and now - self._last.get(place, -_MINUTE) < _MINUTE:
            return False
        self._last[place] = now
        return True


@contextmanager
def _products_in_one_thread() -> Iterator[None]:
    """Let each product of numpy use one thread: Milvus Lite searches with them, in several threads at once.

    On a machine with 16 cores the threads of OpenBLAS then stood in each other's way: 32 clients got twice the searches
    without them (`benchmarks/serve_load.py`). The model has threads of its own.
    """
    from threadpoolctl import ThreadpoolController

    with ThreadpoolController().select(internal_api="openblas").limit(limits=1):
        yield


@contextmanager
def _seldom() -> Iterator[None]:
    """Let the log of the library pass no message more often than once a minute."""
    handlers, each = logging.getLogger("trireid").handlers, _Seldom()
    for handler in handlers:
        handler.addFilter(each)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(each)
