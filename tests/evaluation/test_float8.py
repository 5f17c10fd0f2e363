"""Precision fp8 in a test, an embedding and a benchmark; the CPU, which has the operator, stands in for a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import trireid
from tiny_run import untrained_run, write_tree
from trireid.cli.bench import measure
from trireid.config.load import override_config
from trireid.embedding.splits import split_items
from trireid.errors import ConfigError, InputError
from trireid.models.low_precision import check_float8
from trireid.train.checkpoint import load_checkpoint
from trireid.train.device import resolve_inference_precision
from trireid.train.testing import evaluate_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("float8")
    return untrained_run(write_tree(folder / "tree", identities=3), folder / "run", "evaluate.batch_size=5")


def test_features_stay_close(run, monkeypatch, caplog):
    caplog.set_level("INFO", logger="trireid")
    with pytest.raises(InputError, match="precision fp8 needs a CUDA device of compute capability 8.9 or higher"):
        trireid.Embedder(run, device="cpu", precision="fp8")
    with pytest.raises(InputError, match="cpu is no CUDA device: use bf16 or fp32"):
        evaluate_checkpoint(run, precision="fp8", progress=False)
    monkeypatch.setattr("trireid.train.device.check_float8", lambda device: None)
    items = split_items(run, "test", []).items
    embedders = [trireid.Embedder(run, device="cpu", precision=name) for name in ("bf16", "fp8")]
    plain, small = (embedder.embed(items).vectors for embedder in embedders)
    assert embedders[1].precision == "fp8"
    cosine = (plain * small).sum(axis=1) / np.linalg.norm(plain, axis=1) / np.linalg.norm(small, axis=1)
    assert cosine.min() > 0.995
    assert not np.array_equal(plain, small)
    assert np.array_equal(embedders[1].embed(items).vectors, small)  # calibrated once
    [line] = [entry for entry in caplog.records if "precision fp8" in entry.getMessage()]
    assert line.levelname == "WARNING"
    assert line.getMessage().endswith("from the first 5 items, which are few: 16 or more give closer features")
    again = trireid.Embedder(run, device="cpu", precision="fp8")
    again.calibrate(items[:5])
    assert np.array_equal(again.embed(items[5:]).vectors, small[5:])
    tested = evaluate_checkpoint(run, precision="fp8", progress=False)
    assert tested["feature"]["global"]["mAP"] > 0.0


def test_a_benchmark_compares_precisions(run, monkeypatch):
    config = override_config(load_checkpoint(run).config, ["evaluate.batch_size=2"])
    named = {"a, bf16": config, "a, fp8": config}
    with pytest.raises(InputError, match="precision fp8 needs"):
        measure(named, modes=["inference"], repeats=1, warmup=0, precisions={"a, fp8": "fp8"})
    monkeypatch.setattr("trireid.train.device.check_float8", lambda device: None)
    rows = measure(named, modes=["inference"], repeats=1, warmup=0, precisions={"a, bf16": "bf16", "a, fp8": "fp8"})
    assert [row["name"] for row in rows] == ["a, bf16", "a, fp8"]
    assert rows[0]["parameters"] == rows[1]["parameters"]


def test_devices_without_it_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match="precision is 'fp9': allowed are auto, fp32, bf16, fp16, fp8"):
        resolve_inference_precision("fp9", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(InputError, match="8.9 or higher .* cuda is of compute capability 8.6: use bf16"):
        check_float8(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert resolve_inference_precision("fp8", torch.device("cuda")) == "fp8"
    assert resolve_inference_precision("fp32", torch.device("cuda")) == "fp32"
