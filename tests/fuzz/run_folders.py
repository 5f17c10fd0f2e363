"""Run folders: JSON, features, settings and states changed; then reported, shown, compared, tested and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml

import trireid.train.loop
from fuzz.checkpoints import PICKLES, Runs, changed_tensors
from fuzz.mutations import changed_data, damaged, make_odd_file
from fuzz.package import QUICK, command, settings_text, tiny_tree
from fuzz.runner import Case, Kind
from tiny_run import tiny_config

PLAIN = ("metrics.json", "records.json", "environment.json", "metrics.jsonl", "config.yaml")
FILES = (*PLAIN, "features.safetensors", "last.safetensors", "best.safetensors", "state/state.pt")
GARBAGE = (
    b"", b"\0" * 50, b"hello\n", b"[" * 100_000, b"null", b"[]", b"5", b"{}", b"\xff\xfe\xe9",
    b'{"a":' * 900 + b"1" + b"}" * 900, b"a: \0", b"!!python/object/apply:os.system ['true']\n",
    b"<script>alert(1)</script>\n", b'{"epoch": ' + b"9" * 5000 + b"}",
)  # fmt: skip
LINES = (
    '{"epoch": 4, "lo', "\n\n", '{"epoch": 1}\n', '{"epoch": 99}\n', '{"epoch": -1}\n', '{"epoch": true}\n',
    '{"epoch": "x"}\n', '{"epoch": 4, "loss": {"total": NaN}}\n', '{"epoch": 4, "loss": {"total": Infinity}}\n',
    '{"epoch": ' + "9" * 300 + "}\n", '{"epoch": 4, "loss": {"total": 1e400, "x": ' + "9" * 400 + "}}\n",
    '{"epoch": 4, "x": "\u2028"}\n', '{"epoch": 4}\n' * 5000,
    '{"epoch": 4, "a": ' + '{"a":' * 5000 + "1" + "}" * 5000 + "}\n",
)  # fmt: skip


def prepare(folder: Path) -> None:
    """A finished run, another beside it, and one as it stands when it is ended after two of three epochs."""
    root = tiny_tree(folder / "data")
    three = (*QUICK[1:], "train.epochs=3")
    trireid.train.loop.train(tiny_config(root, folder / "done", *three), progress=False)
    trireid.train.loop.train(tiny_config(root, folder / "other", *three, "train.seed=2"), progress=False)
    shutil.copytree(folder / "done", folder / "half")
    for name in ("metrics.json", "features.safetensors", "records.json"):
        (folder / "half" / name).unlink()
    (folder / "base.yaml").write_text(settings_text(root, "run", three), encoding="utf-8")


def _copy(case: Case, *, half: bool = False) -> Path:
    return Path(shutil.copytree(case.base / ("half" if half else "done"), case.folder / "run"))


def _use(case: Case, *, with_test: bool = False) -> None:
    """One of the commands that read a run folder."""
    run, way = case.folder / "run", case.random.random()
    if way < 0.4:
        command("report", run)
    elif way < 0.6:
        command("show", "ranks", run, "--n", "1", "--top", "3")
    elif way < 0.75:
        command("compare", run, case.base / "other", "--out", "page.html")
    elif way < 0.83:
        command("show", "tsne", run, "--method", "pca")
    elif way < 0.88:
        command("show", "patches", run, "--n", "1")
    elif way < 0.92 and with_test:
        command("test", run)
    else:
        command("show", "gradcam", run, "--n", "1")


def _resume(case: Case) -> None:
    command("train", "--config", case.base / "base.yaml", "--resume")


def plain_data(case: Case) -> None:
    """Another value somewhere in a JSON or YAML file."""
    run = _copy(case)
    name = case.random.choice((*PLAIN, "metrics.json", "records.json", "records.json"))
    _change_plain(case, run / name)
    case.describe(name)
    _use(case)


def _change_plain(case: Case, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        changed = yaml.safe_dump(changed_data(case.random, yaml.safe_load(text)))
    elif path.suffix == ".jsonl":
        lines: list[Any] = [json.loads(line) for line in text.splitlines()]
        changed = "".join(json.dumps(line) + "\n" for line in (changed_data(case.random, lines) or []))
        if case.random.random() < 0.3:
            changed = text + case.random.choice(LINES)
    else:
        changed = json.dumps(changed_data(case.random, json.loads(text)))
    path.write_text(changed, encoding="utf-8", errors="surrogatepass")


def whole_file(case: Case) -> None:
    """A file that is garbage, gone, cut, a folder, a pipe or a link."""
    resume = case.random.random() < 0.35
    run = _copy(case, half=resume)
    name = case.random.choice([name for name in FILES if (run / name).exists()])
    path, way = run / name, case.random.randrange(5)
    case.describe(name, way)
    if way < 2:
        path.write_bytes(case.random.choice(GARBAGE))
    elif way == 2:
        path.unlink()
    elif way == 3:
        path.write_bytes(damaged(case.random, path.read_bytes()))
    else:
        path.unlink()
        make_odd_file(path, case.random.choice(("pipe", "dangling", "loop", "zeros", "folder", "link to a folder")))
    if resume:
        _resume(case)
    else:
        _use(case, with_test=True)


def features(case: Case) -> None:
    """Other tensors among the saved features."""
    run = _copy(case)
    path = run / "features.safetensors"
    state = safetensors.torch.load_file(path)
    if case.random.random() < 0.3:
        name = case.random.choice(sorted(state))
        changed = {
            **state,
            name: case.random.choice(
                (state[name][:-1], state[name][:0], state[name][..., None], torch.full_like(state[name], -5))
            ),
        }
        case.describe(name, tuple(changed[name].shape))
    else:
        changed = changed_tensors(case.random, state, case.describe)
    safetensors.torch.save_file({name: value.contiguous() for name, value in changed.items()}, path)
    _use(case)


def odd_image(case: Case) -> None:
    """Records whose images are elsewhere: pipes, devices, folders, odd columns."""
    run = _copy(case)
    records = json.loads((run / "records.json").read_text(encoding="utf-8"))
    make_odd_file(case.folder / "pipe", "pipe")
    changes = (
        {"path": "/dev/zero"}, {"path": "/dev/urandom"}, {"path": str(case.folder / "pipe")}, {"path": "/etc/passwd"},
        {"path": "/"}, {"path": "a\0b"}, {"path": "\udcff"}, {"path": 5}, {"path": "/proc/self/mem"}, {"path": ""},
        {"path": "http://127.0.0.1:9/x.jpg"}, {"columns": [-5, -1]}, {"columns": [0, 10**12]}, {"columns": [10, 2]},
        {"columns": "ab"}, {"columns": [0.5, 3.5]}, {"columns": [1]}, {"columns": [0, 200_000]}, {"columns": [None, 3]},
    )  # fmt: skip
    change = case.random.choice(changes)
    case.describe(change)
    for entry in records["query"]:
        entry["images"][0] |= change
    (run / "records.json").write_text(json.dumps(records), encoding="utf-8")
    _use(case)


def state(case: Case) -> None:
    """The state that a run goes on from, changed as data or as bytes."""
    run = _copy(case, half=True)
    path = run / "state" / "state.pt"
    way = case.random.random()
    if way < 0.3:
        path.write_bytes(damaged(case.random, path.read_bytes()))
    elif way < 0.35:
        path.write_bytes(case.random.choice(PICKLES))
    elif way < 0.4:
        torch.save({"format": 1, "model": Runs()}, path)
    else:
        content = torch.load(path, weights_only=True)
        if way < 0.55:
            content["model"] = changed_tensors(case.random, content["model"], case.describe)
        else:
            content = changed_data(case.random, content)
        torch.save(content, path)
    _resume(case)


def half_run(case: Case) -> None:
    """Another value in a plain file of a run that is to go on."""
    run = _copy(case, half=True)
    name = case.random.choice(("environment.json", "metrics.jsonl", "config.yaml"))
    case.describe(name)
    _change_plain(case, run / name)
    _resume(case)


KIND = Kind(
    "run_folders", 650, prepare, {plain_data: 40, whole_file: 18, features: 14, odd_image: 10, state: 12, half_run: 6}
)
