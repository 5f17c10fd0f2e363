"""What the benchmarks of the service share: a model of random weights, a gallery, a server process and its requests."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from trireid.config.load import override_config
from trireid.config.schema import Config
from trireid.data.labels import LabelMap
from trireid.embedding.embeddings import Embeddings, ModelIdentity
from trireid.embedding.items import Item
from trireid.gallery.gallery import Gallery
from trireid.models.build import build_model
from trireid.train.checkpoint import save_checkpoint
from trireid.types import MODALITIES

BOUNDARY = "----trireid-benchmark"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
SIZES = {"tiny": (64, 32), "clip_vit_b16": (256, 128)}
"""Backbone -> (height, width) of the images."""


def write_model(path: Path, backbone: str) -> Path:
    """A checkpoint of random weights, with an SDTPS head."""
    height, width = SIZES[backbone]
    settings = [
        f"model.backbone.name={backbone}",
        "model.backbone.pretrained=none",
        "model.head=sdtps",
        f"data.image_size=[{height}, {width}]",
    ]
    config = override_config(Config(), settings)
    torch.manual_seed(0)
    model = build_model(config.model, image_size=config.data.image_size, num_classes=1, num_cameras=0)
    save_checkpoint(path, model, config=config, label_map=LabelMap(("0",), ()), epoch=0)
    return path


def fill(location: str, model: ModelIdentity, num_items: int, *, name: str = "gallery") -> None:
    """A gallery of random features: four items of each identity, two cameras."""
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((num_items, model.width)).astype(np.float32)
    items = tuple(
        Item(images={}, key=f"filled{number:07d}", identity=f"{number // 4:06d}", camera=f"cam{number % 2}")
        for number in range(num_items)
    )
    with Gallery.create(location, model, name=name) as gallery:
        for start in range(0, num_items, 1000):
            part = slice(start, start + 1000)
            present = np.ones((len(items[part]), len(MODALITIES)), dtype=bool)
            gallery.add(Embeddings(vectors[part], present, items[part], model))


def encoded(seed: int, size: tuple[int, int]) -> bytes:
    """A JPEG image of smooth random colours."""
    values = np.random.default_rng(seed).integers(0, 256, (8, 4, 3), dtype=np.uint8)
    target = io.BytesIO()
    Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.BICUBIC).save(target, "JPEG", quality=90)
    return target.getvalue()


def form(fields: dict[str, Any], images: dict[str, bytes]) -> bytes:
    """The body of a form with images as files and all else as JSON."""
    parts = [(b'form-data; name="request"', json.dumps(fields).encode())]
    parts += [(f'form-data; name="{name}"; filename="{name}.jpg"'.encode(), each) for name, each in images.items()]
    edge = f"--{BOUNDARY}".encode()
    lines = [edge + b"\r\nContent-Disposition: " + head + b"\r\n\r\n" + content + b"\r\n" for head, content in parts]
    return b"".join([*lines, edge + b"--\r\n"])


class Server:
    """`trireid serve` in a process of its own, on a free port of this machine.

    Args:
        run: a run folder or checkpoint.
        gallery: its place.
        options: further ones of the command.
        log: file for its output.
    """

    def __init__(self, run: Path, gallery: str, *options: str, log: Path) -> None:
        command = [sys.executable, "-m", "trireid", "serve", str(run), "--gallery", gallery, "--port", "0", *options]
        self.log = log
        with log.open("w", encoding="utf-8") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        self.port = self._port()

    def _port(self) -> int:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            for line in self.log.read_text(encoding="utf-8").splitlines():
                if line.startswith("serving"):
                    return int(line.rpartition(":")[2])
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise SystemExit(f"the server did not start:\n{self.log.read_text(encoding='utf-8')}")

    def connect(self, timeout: float = 60.0) -> http.client.HTTPConnection:
        """A connection to it."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def get(self, path: str) -> Any:
        """The JSON at an address."""
        connection = self.connect()
        connection.request("GET", path)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return json.loads(content) if answer.headers["Content-Type"] == "application/json" else content.decode()

    def memory(self) -> int:
        """Bytes of memory of the process, with those of its children."""
        import psutil

        whole = psutil.Process(self.process.pid)
        return sum(each.memory_info().rss for each in (whole, *whole.children(recursive=True)))

    def end(self, number: signal.Signals = signal.SIGTERM) -> float:
        """End it by a signal; the seconds until it had ended."""
        started = time.monotonic()
        if number == signal.SIGKILL:  # with what it has started
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        self.process.wait(timeout=60)
        return time.monotonic() - started
