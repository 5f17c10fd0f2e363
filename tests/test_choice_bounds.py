"""The bounds of choosing patches: oracles and choices against loops, and the whole script on a tiny tree."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from data.trees import write_image
from trireid.errors import InputError
from trireid.types import Labels

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("choice_bounds")


def test_margins_and_kept_halves_are_those_of_loops(script):
    patches = torch.randn(6, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    identity, camera = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 1, 1, 0, 1, 0])
    identity, camera = torch.cat([identity, identity[-1:]]), torch.cat([camera, torch.tensor([1])])
    patches = torch.cat([patches, patches[:1] + 0.1])
    labels = Labels(identity, camera, torch.full((7,), -1), item=torch.arange(7))
    margins = script.margins(patches, labels)
    alike = functional.cosine_similarity(patches[:, None], patches[None], dim=-1)  # (7, 7, M, N)
    for query in range(7):
        true = [one for one in range(7) if identity[one] == identity[query] and camera[one] != camera[query]]
        strange = [one for one in range(7) if identity[one] != identity[query]]
        literal = alike[query, true].mean(0) - alike[query, strange].mean(0)
        assert torch.allclose(margins[query], literal, atol=1e-5)
    features = script.kept_features(patches, margins, 2, together=True)  # (7, M, 4 * 8)
    for item in range(7):
        kept = set(margins[item].flatten().topk(24).indices.tolist())
        for spectrum in range(3):
            own = [place for place in range(16) if spectrum * 16 + place in kept]
            cells = [[place for place in own if (place // 8, place % 4 // 2) == (row, column)]
                     for row in range(2) for column in range(2)]  # fmt: skip
            slots = [patches[item, spectrum, cell].mean(0) if cell else torch.zeros(8) for cell in cells]
            literal = functional.normalize(torch.cat(slots), dim=0) * len(own) / 16
            assert torch.allclose(features[item, spectrum], literal, atol=1e-4)


def test_the_best_of_each_group_and_veils(script):
    precision = [np.array([[0.1, 0.3, 0.9, 0.5]]), np.array([[0.4, 0.2, 0.1, 0.6]])]
    identity, scene = np.array(["1", "1", "2", "2"]), np.array(["a", "a", "a", "a"])
    cells = [script.Cell(str(each), values, identity, scene) for each, values in enumerate(precision)]
    assert script.best(cells, None, "scene") == pytest.approx(45.0)  # 1.8 of 4 against 1.3
    assert script.best(cells, None, "identity") == pytest.approx(50.0)  # 0.6 and 1.4
    images = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    for kind in ("smoke", "night"):
        found = script.veiled(images, kind, torch.Generator().manual_seed(2))
        assert found.shape == images.shape
        assert float(found.amin()) >= 0.0
        assert float(found.amax()) <= 1.0
        assert torch.equal(found, script.veiled(images, kind, torch.Generator().manual_seed(2)))
    smoke = script.veiled(images, "smoke", torch.Generator().manual_seed(2))
    assert float(smoke.flatten(1).std(dim=1).mean()) < 0.6 * float(images.flatten(1).std(dim=1).mean())


@pytest.mark.slow
def test_the_script_writes_every_table(script, tmp_path, monkeypatch, capsys):
    for split, numbers in (("train", (38, 39, 180, 181)), ("test", (1, 2, 144, 145))):
        for number in numbers:
            for camera in (1, 2):
                for folder in ("RGB", "NI", "TI"):
                    path = tmp_path / split / folder / f"{number:06d}_cam{camera}_0_00.png"
                    write_image(path, height=16, width=16)
    out = tmp_path / "bounds.json"
    arguments = ["--root", str(tmp_path), "--quick", "--cells", "2", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["choice_bounds.py", *arguments])
    script.main()
    found = json.loads(out.read_text())
    assert list(found) == ["test", "train", *(f"train, {veil}" for veil in script.VEILS)]
    rows = found["test"]["2 x 2"]["camera"]
    assert list(rows["weighted"]) == ["all", "Kaptein_1654", "Marne_15"]
    single = [values["Marne_15"] for name, values in rows.items() if name.startswith("spectra")]
    assert len(single) == 7
    assert rows["best spectra of each scene"]["Marne_15"] == max(single)
    low, high = rows["weighted - all patches"]["all"][1:]
    assert low <= rows["weighted"]["all"] - rows["all patches"]["all"] <= high
    shown = capsys.readouterr().out
    assert "| random half of 2, mean |" in shown
    assert "These numbers are no results: the weights are random" in shown
    monkeypatch.setattr("sys.argv", ["choice_bounds.py", "--quick", "--cells", "0"])
    with pytest.raises(InputError, match=r"the patches form 4 x 4: give from 1 to 4"):
        script.main()
    monkeypatch.setattr("sys.argv", ["choice_bounds.py"])
    with pytest.raises(SystemExit):
        script.main()
    assert "--weights is missing" in capsys.readouterr().err
