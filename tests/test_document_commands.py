"""Every command of documents, `configs/` and `benchmarks/` runs as it is written, or its needs stand beside it.

Each document's commands run one after the other in a folder of their own, on tiny images and a tiny model; nothing else
is changed. A command that cannot run here is in `NEEDS`, with words that its section must contain.
"""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import trireid
import trireid.ablation
import trireid.ablation.grid
import trireid.config.load
import trireid.train.loop
import trireid.train.testing
from tiny_run import tiny_config, write_tree, write_untrained
from trireid.cli.app import app
from trireid.config.load import load_config, override_config
from trireid.data.readers import scan
from trireid.data.synthetic.writer import write_synthetic
from trireid.train.loop import train
from trireid.train.testing import evaluate_checkpoint
from trireid.upstream.configuration import load_upstream_yaml

import upstream_states

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "README.zh.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "examples/README.md")

VARIABLE = r"[A-Z]+=(?:<[^>]*>|\"[^\"]*\"|[^\s<\"]+) "
COMMAND = re.compile(rf"(?:{VARIABLE})*(?:trireid|python|bash|make|accelerate|torchrun|pip|tensorboard) \S.*")
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")

# A command, and words of its section (of a header: the whole header) that say what it needs.
NEEDS = (
    (r"<.+>", r"<.+>"),  # the command itself says what to put there
    (r"^make ", r""),  # .ci/run
    (r"^pip ", r"needs|install"),
    (r"^tensorboard ", r"shows the curves"),  # a server, which does not end
    (r"^(accelerate|torchrun) ", r"GPUs"),
    (r"--cuda-graph|--device cuda|fp8\.py|profile_step\.py|train\.compile=true", r"GPU|H[12]00"),
    (r"benchmarks/\w+\.sh", r"NAMES|name lists|GPU|CPU|H100"),
    (r"benchmarks/ranking\.py", r"CPU"),  # tests/evaluation/test_ranking_benchmark.py
    (r"benchmarks/centring\.py", r"finished runs"),  # tests/train/test_centring.py
    (r"landsat", r"landsat_places"),  # tests/test_landsat.py
    (r"tno", r"TNO"),  # tests/test_tno_scenes.py
    (r"^trireid serve ", r"until Ctrl-C"),  # tests/serve/test_running.py
    (r"benchmarks/serve_\w+\.py", r"minute"),  # tests/serve/test_running.py
    (r"benchmarks/gallery_(kills|scale)\.py", r"minutes"),  # tests/gallery/test_gallery_survives.py
    (r"benchmarks/export_speed\.py", r"minutes"),
    (r"benchmarks/(two_gpus|training_memory|fp8_accuracy|cold_compile)\.py", r"GPU"),
    (r"benchmarks/(choose_ratio|dropped_places)\.py", r"minutes"),
    (r"WEIGHTS", r"vit_small_patch14_dinov2|DINOv2"),
    (r"runs/synthetic/vit_small", r"run"),
)
UNFINISHED = re.compile(r"\.\.\.|--cells FILE")  # the rest of the command stands elsewhere
MENTION = re.compile(r"python -m trireid|trireid \w+( \w+)?( --?[\w-]+)*( --cells \S+)?")  # no whole command

GIVEN = {  # runs that an earlier page made
    "docs/pictures.md": ("runs/rgbnt201/sdtps", "runs/heads/sdtps", "runs/heads/none"),
    "benchmarks/missing.py": ("runs/grid/sdtps/seed1",),
    "benchmarks/distance_rules.py": ("runs/grid/sdtps/seed1",),
    "benchmarks/paired.py": ("runs/grid/sdtps/seed1",),
}
EARLIER = {"docs/pictures.md": "trireid import DeMobest.pth runs/demo_rgbnt201.safetensors --image-size 256x128"}
PLACEHOLDERS = {
    "RUN": "runs/demo/run",
    "FILE": "configs/trireid/rgbnt201/baseline.yaml",
    "FOLDER": "runs/grid",
}
SHRUNK = (
    "model.backbone.name=tiny",
    "model.backbone.pretrained=none",
    "model.backbone.patch_size=8",
    "model.backbone.width=16",
    "model.backbone.depth=5",  # a cut after block 4 is possible
    "model.backbone.num_heads=2",
    "data.batch_size=8",
    "data.num_instances=2",
    "data.workers=0",
    "data.augmentation.padding=2",
    "train.device=cpu",
    "train.precision=fp32",
    "train.epochs=1",
    "train.warmup_epochs=0",
    "train.dense_epochs=0",
)


@dataclass(frozen=True)
class Shown:
    """A command as it is written, and the text that surrounds it."""

    line: str
    around: str


def sections(text):
    """A Markdown text cut before each heading outside of code."""
    parts, inside = [[]], False
    for line in text.splitlines():
        inside ^= line.startswith("```")
        if line.startswith("#") and not inside:
            parts.append([])
        parts[-1].append(line)
    return ["\n".join(part) for part in parts]


def without_remark(line):
    """A command without the comment, the optional parts and the remark in parentheses that follow it."""
    line = re.split(r"\s+#|\s{2,}\(|\s\((?=writes)", line)[0]
    return re.sub(r"\s\[[^\]]*\]", "", line).strip()


def commands_of_markdown(path):
    found = []
    for section in sections(path.read_text(encoding="utf-8")):
        for line in section.replace("\\\n", " ").splitlines():
            code = [line.strip()] if COMMAND.fullmatch(line.strip()) else INLINE.findall(line)
            whole = [
                part for part in code if COMMAND.fullmatch(part) and (len(part.split()) > 2 or part == line.strip())
            ]
            found += [Shown(without_remark(part), section) for part in whole]
    return found


def commands_of_header(path):
    """Of a configuration's comments, or of a script's docstring."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        header = text.split('"""')[1].replace("\\\n", " ")
        lines = [line.strip() for line in header.splitlines()]
    else:
        header = "\n".join(line for line in text.splitlines() if line.startswith("#"))
        lines = [line[1:].rpartition(": ")[2].strip() for line in header.splitlines() if "train.compile" not in line]
    return [Shown(without_remark(line), header) for line in lines if COMMAND.fullmatch(line)]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


MARKDOWN = [*(ROOT / name for name in PAGES), *sorted((ROOT / "docs").rglob("*.md"))]
HEADERS = [*sorted((ROOT / "configs").rglob("*.y*ml")), *sorted((ROOT / "benchmarks").glob("*.py"))]
SHOWN = {name_of(path): commands_of_markdown(path) for path in MARKDOWN}
SHOWN |= {name_of(path): commands_of_header(path) for path in HEADERS}
SHOWN = {name: shown for name, shown in SHOWN.items() if shown}


def need_of(line):
    return next((words for pattern, words in NEEDS if re.search(pattern, line)), None)


def runnable(name):
    shown = [entry.line for entry in SHOWN[name]]
    lines = [line for line in dict.fromkeys(shown) if need_of(line) is None and not UNFINISHED.search(line)]
    whole = [
        line
        for line in lines
        if not re.fullmatch(r"python -m trireid|trireid \w+( \w+)?( --?[\w-]+)*( --cells \S+)?", line)
    ]
    if name == "README.zh.md":  # its code is that of README.md (tests/test_documents.py)
        return []
    return sorted(whole, key=lambda line: not line.startswith("trireid synth"))


RUNNABLE = {name: runnable(name) for name in SHOWN if runnable(name)}


def test_the_commands_were_found():
    assert sum(map(len, SHOWN.values())) > 90
    assert sum(map(len, RUNNABLE.values())) > 45


@pytest.mark.parametrize("name", SHOWN)
def test_what_a_command_needs_stands_beside_it(name):
    for entry in SHOWN[name]:
        words = None if UNFINISHED.search(entry.line) else need_of(entry.line)
        assert words is None or re.search(words, entry.around), f"{name}: nothing says what `{entry.line}` needs"


def test_every_exception_is_one():
    lines = [entry.line for shown in SHOWN.values() for entry in shown]
    assert [pattern for pattern, _ in NEEDS if not any(re.search(pattern, line) for line in lines)] == []


def shrunk(config):
    """The same run on a tiny model and tiny images."""
    height, width = config.data.image_size
    size = "[32, 16]" if height > width else "[16, 32]" if width > height else "[16, 16]"
    return override_config(config, [*SHRUNK, f"data.image_size={size}"])


def write_table(tree, table):
    """A CSV manifest of a tree."""
    index = scan("rgbnt201", tree)
    rows = ["rgb,nir,tir,id,camera,scene,split"]
    for split, records in (("train", index.train), ("test", index.gallery)):
        for record in records:
            paths = ",".join(str(source.path) for source in record.images)
            rows.append(f"{paths},{record.identity},{record.camera},,{split}")
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_calibration(run):
    """Thresholds as the demo leaves them, of random vectors: the tiny data set has too few identities."""
    model, random = trireid.Embedder(run, device="cpu").model, np.random.default_rng(0)
    items = tuple(trireid.Item({}, key=str(number), identity=str(number // 2)) for number in range(160))
    vectors = random.standard_normal((160, model.width), dtype=np.float32)
    made = trireid.calibrate(trireid.Embeddings(vectors, np.ones((160, 3), dtype=bool), items, model))
    made.save(run / "calibration.json")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """What the documents take for granted: a clone, the run of the demo, data sets, a table, checkpoints."""
    folder = tmp_path_factory.mktemp("workshop")
    for name in ("configs", "benchmarks", "examples", "train_net.py", "test_net.py"):
        (folder / name).symlink_to(ROOT / name)
    tree = write_tree(folder / "path/to/RGBNT201", identities=4)
    for path in sorted(tree.glob("test/*/000100_*")):  # the person whose picture is in the README
        renamed = path.name.replace("000100", "000039").replace("cam2_0_01", "cam2_0_04")
        path.rename(path.with_name(renamed))
    for layout in ("rgbnt100", "msvr310", "wmveid863"):
        place = folder / "path/to" / {"wmveid863": "WMVeID863"}.get(layout, layout.upper())
        size = None if layout == "rgbnt100" else (16, 32)  # its strips have one size
        write_synthetic(place, layout=layout, num_ids=4, num_cameras=2, per_camera=2, image_size=size)
    (folder / "data").mkdir()
    for name in ("synthetic_hard", "RGBNT201"):
        (folder / "data" / name).symlink_to(tree)
    write_table(tree, folder / "my_data.csv")
    (folder / "RGBNT201_test.txt").write_text("\n".join(path.name for path in sorted((tree / "test/RGB").iterdir())))
    train(tiny_config(tree, folder / "runs/demo/run", "model.head=sdtps"), progress=False)
    write_calibration(folder / "runs/demo/run")
    file = ROOT / "configs/RGBNT201/DeMo_SDTPS.yml"
    settings = load_upstream_yaml(
        file, ["DATASETS.ROOT_DIR", str(folder / "path/to"), "OUTPUT_DIR", str(folder / "to")]
    )
    made = write_untrained(shrunk(settings.config))
    shutil.copy(made / "last.safetensors", folder / "path/to/last.safetensors")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(upstream_states, "PATCH", 16)
        torch.save(upstream_states.upstream_state(positions=128), folder / "DeMobest.pth")
    return folder


@pytest.fixture
def here(workshop, tmp_path, monkeypatch):
    """A copy of the workshop as working folder, in which only sizes are smaller than documented."""
    folder = tmp_path / "workshop"
    shutil.copytree(workshop, folder, symlinks=True)
    monkeypatch.chdir(folder)

    def train_shrunk(config, **arguments):
        return train(shrunk(config), **arguments)

    def run_jobs(jobs, *, config_path, overrides, **_):
        for job in jobs:
            train_shrunk(load_config(config_path, trireid.ablation.job_settings(job, overrides)), progress=False)
        return []

    def evaluate_shrunk(path, *, config, **arguments):
        return evaluate_checkpoint(path, config=shrunk(config), **arguments)

    monkeypatch.setattr(trireid.train.loop, "train", train_shrunk)
    monkeypatch.setattr(trireid.ablation, "run_jobs", run_jobs)
    for layout in ("RGBNT201", "RGBNT100", "MSVR310"):  # DeMo's files look for them beside the clone
        (tmp_path / layout).symlink_to(folder / "path/to" / layout)
    for module in (trireid.config.load, trireid.ablation.grid):
        monkeypatch.setattr(module, "load_config", lambda *given: shrunk(load_config(*given)))
    return folder, evaluate_shrunk


def more(words):
    """Settings that make a command small where only its own arguments can."""
    if words[:2] == ["trireid", "bench"]:
        return [*SHRUNK, "data.image_size=[32, 16]"]
    return ["--size", "32x16"] if words[:2] == ["trireid", "synth"] else []


def answers_until_it_is_told_to_end(words):
    """A server as a process of its own: it answers, and ends well; on a free port, since others run here."""
    command = [sys.executable, "-m", "trireid", *words[1:], "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            said = ""
            while not (address := re.search(r" at (http://\S+)", said)):
                line = process.stdout.readline()
                assert line, said
                said += line
            with urllib.request.urlopen(f"{address[1]}/health", timeout=10) as answer:
                assert answer.status == 200
        finally:
            process.terminate()
            assert process.wait(timeout=20) == 0


def execute(line, monkeypatch):
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line)]
    if words[:2] == ["trireid", "serve"]:
        answers_until_it_is_told_to_end(words)
        return
    if words[0] == "trireid":
        result = CliRunner().invoke(app, [*words[1:], *more(words)])
        assert result.exit_code == 0, f"{line}\n{result.output[-2000:]}"
        return
    assert words[0] == "python", line
    monkeypatch.setattr(sys, "argv", words[1:])
    monkeypatch.syspath_prepend(str(Path(words[1]).resolve().parent))  # as Python does for a script
    try:
        runpy.run_path(words[1], run_name="__main__")
    except SystemExit as end:
        if end.code:
            pytest.fail(f"{line}\n{end.code}")


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNNABLE)
def test_every_command_runs_as_it_is_written(name, here, monkeypatch):
    folder, evaluate_shrunk = here
    for run in GIVEN.get(name, ()):
        shutil.copytree(folder / "runs/demo/run", folder / run)
    if name in EARLIER:
        execute(EARLIER[name], monkeypatch)
    for line in RUNNABLE[name]:
        tested = evaluate_shrunk if line.startswith("python test_net.py") else evaluate_checkpoint
        monkeypatch.setattr(trireid.train.testing, "evaluate_checkpoint", tested)
        execute(line, monkeypatch)
