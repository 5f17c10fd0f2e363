"""Settings: YAML files and overrides, ours and upstream's, and what the schema accepts really trained."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

from fuzz.mutations import ODD_TEXT, damaged, odd_place
from fuzz.package import command, door, settings_text, tiny_tree
from fuzz.runner import Case, Kind
from fuzz.sandbox import WrongResult
from trireid.config.load import dump_config, load_config, setting_paths
from trireid.errors import TrireidError

UPSTREAM = Path(__file__).parents[2] / "configs" / "RGBNT201" / "DeMo.yml"
# As they stand in YAML: every scalar type, its odd spellings, and values that settings of the schema take.
VALUES = (
    "", "~", "null", "yes", "off", "true", "1", "0", "-1", "1.5", "1e3", "1e400", "-1e400", ".nan", ".inf", "0x10",
    "0o17", "0b_", "0x_", "08", "1_000", "12:30:45", "1:30.5", "2024-01-01", "2024-99-99", "2024-01-01T00:00:00+99:99",
    "9" * 20, "1" + "0" * 400, "0x" + "f" * 5000, "9" * 5000, "1e-400", "[]", "{}", "[1]", "[1, 2]", "[1,2,3]",
    "[a, b]", "{a: 1}", "[[1,2],[3]]", "'", '"', "'x'", '"\\0"', '"\\ud800"', '"a\\nb"', "é", "日本",
    "!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!!binary aGVsbG8=", "!!set {a, b}",
    "!!omap [a: 1]", "!!int x", "!!int ''", "!!float ''", "!!bool x", "!!null x", "!foo bar", "!!str 5", "&a b", "*a",
    "*nope", "<<: 5", "- a", "|\n    x", "? a", "`x`", "@x", "%x", "a: b: c", "[a", "{a", "[a]]", "\t1", "a" * 100_000,
    "/dev/null", "/etc/passwd", "~/x", "~nobody_here/x", "../..", "rgb", "[rgb, rgb]", "[tir, rgb]", "none", "sdtps",
    "hdm", "hdm_atmoe", "auto", "cpu", "cuda:0", "[256, 128]", "[0, 0]", "[-8, 8]", "[8.0, 8]", "[true, 8]", "[7, 9]",
    "[8, 8]", "[1000000, 1000000]", "[16, 100000]", "[0.0, 0.0, 0.0]", "[1e300, 1e300, 1e300]", "2", "3", "5", "13",
    "64", "1000", "100000", "1000000000", "0.0", "1e-300", "1e-10", "0.5", "0.999999", "1e10", "1e300",
    "[{after_block: 1, keep_ratio: 0.5}]", "[{after_block: 99, keep_ratio: 0.5}]", "[{after_block: 1}]", "[{}]", "[5]",
    "sgd", "adamw", "sound", "parity", "tiny", "timm", "vit_tiny_patch16_224", "hf-hub:someone/model",
    "local-dir:/tmp", "resnet50", "bf16", "fp16", "disk", "memory", "random", "uniform_identity", "camera", "scene",
    "zeros", "[wandb]", "[tensorboard, mlflow]", "quantile", "k_hot", "softmax", "cls", "mean", "max", "attention",
    "project", "guided", "''", "x/y/z", "/proc/self/x", "'" + "n" * 300 + "'",
)  # fmt: skip
LINES = (
    "? [a, b]\n: c\n", "1: 2\n", "true: 1\n", "null: 1\n", "'': 1\n", "<<: {data: 5}\n", "<<: [1]\n",
    "<<: {train: {epochs: 3}}\n", "2024-01-01: 1\n", "preset: parity\n", "preset: 5\n", "preset: [a]\n",
    "preset: null\n", "DATA: {}\n", "Train: 1\n", 'output: "\\0"\n', "é: 1\n", "? !!binary aGk=\n: 1\n",
    "!!python/tuple [a]: 1\n", ".nan: 1\n.nan: 2\n", "x" * 2000 + ": 1\n", "---\n", "---\na: 1\n", "%YAML 1.1\n---\n",
    "%TAG ! x\n", "\x00", "\ufeff", "# \x07\n", "&a\n", "@\n",
)  # fmt: skip
OVERRIDES = (
    "", "=", "==", "a", "a=b", "data", "data=", "data={}", ".=1", "data..root=1", "data.root.x=1",
    "model.slimming.0.keep_ratio=0.5", "preset=parity", "preset=", "preset=[", " data.root = x", "data.root=x=y",
    "train.epochs\n=5", "\x00=1", "train.epochs=\x00", "train.epochs=\ud800", "TRAIN.EPOCHS=5", "train.epochs: 5",
    "--train.epochs=5", "é=1", "output=", "output=~", "x" * 10_000 + "=1", "output=" + "x" * 300,
    "output=a/" + "../" * 50,
)  # fmt: skip
DEMO_OPTIONS = (
    "MODEL.PRETRAIN_PATH_T",
    "SOLVER.MAX_EPOCHS",
    "INPUT.SIZE_TRAIN",
    "DATASETS.NAMES",
    "OUTPUT_DIR",
    "MODEL.HDM",
)


# Settings that say how much work there is, and values that make it too much to wait for.
WORK = ("train.epochs=", "train.compile=", "model.backbone.depth=", "model.backbone.width=", "data.image_size=")
LONG_WORK = re.compile(r"[\d_]{4}|e\d")


def prepare(folder: Path) -> None:
    """The base file and a tree to train on."""
    tiny_tree(folder / "data")
    (folder / "base.yaml").write_text(settings_text(folder / "data", "run"), encoding="utf-8")


def changed_text(random: Random, text: str) -> str | bytes:
    """A YAML file with another value, line, order, encoding or bytes."""
    lines, way = text.splitlines(), random.randrange(12)
    place = random.randrange(len(lines))
    if way < 5:
        head, colon, _ = lines[place].partition(":")
        lines[place] = f"{head}: {random.choice(VALUES)}" if colon else f"{head.split('-')[0]}- {random.choice(VALUES)}"
    elif way == 5:
        return damaged(random, text.encode())
    elif way == 6:
        lines.insert(random.randrange(len(lines)), lines[place])
    elif way == 7:
        return random.choice(("\r\n", "\r", "\x85", "\u2028", "\x0b")).join(lines)
    elif way == 8:
        return text.encode(random.choice(("utf-16", "utf-32", "utf-8-sig", "utf-16-le", "cp037")), "replace")
    elif way == 9:
        mark = random.choice((": &x", ": *x", ":", " :", "::", ": !!str", ": !!int", ": !!map", ": !!seq", "?", ": |"))
        lines[place] = lines[place].replace(":", mark, 1).replace("  ", random.choice(("  ", "\t")), 1)
    elif way == 10:
        return random.choice((random.choice(LINES) + text, text + random.choice(LINES)))
    else:
        del lines[place : place + random.randint(1, 30)]
    return "\n".join(lines) + "\n"


def deep_text(random: Random) -> str:
    """Nesting, aliases of aliases, recursion and sheer size."""
    depth, inside = random.choice((5, 9, 20, 60)), random.choice(("data:\n  root:\n", "model:\n  slimming:\n", "x:\n"))
    aliases = "".join(f"    - &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else '1'}]\n" for i in range(depth))
    merges = "data: &b0 {root: x}\n" + "".join(
        f"y{i}: &b{i} {{<<: [{', '.join([f'*b{i - 1}'] * 9)}]}}\n" for i in range(1, depth)
    )
    nest = random.choice((50, 300, 900, 1500, 20_000))
    return random.choice((
        inside + aliases,
        merges,
        "data: " + "[" * nest + "]" * nest + "\n",
        "data: " + "{a: " * nest + "1" + "}" * nest + "\n",
        "data:\n  root: " + "[" * nest,
        "? " * nest + "a\n",
        "- " * nest + "a\n",
        "data:\n  image_size: &a [*a, 3]\n",
        "data: &a\n  root: *a\n",
        "&a\ndata: *a\n",
        "? &a [*a]\n: 1\n",
        "data: &a\n  <<: *a\n  root: x\n",
        "model:\n  slimming: &a [{after_block: *a}]\n",
        "".join(f"k{i}: 1\n" for i in range(5000)),
        "data:\n  image_size: [" + "1," * 5000 + "1]\n",
        "data:\n  root: " + "1:" * 5000 + "1\n",
    ))  # fmt: skip


def read_and_write(path: Path, overrides: list[str]) -> None:
    """Read settings; what was accepted is written and read back to the same."""
    config = load_config(path, overrides)
    back = path.with_name("back.yaml")
    back.write_text(dump_config(config), encoding="utf-8")
    try:
        same = load_config(back) == config
    except TrireidError as error:
        raise WrongResult(f"what was written of accepted settings is refused: {error}") from error
    if not same and "nan" not in back.read_text(encoding="utf-8"):
        raise WrongResult("settings differ after writing and reading them")


def random_override(random: Random) -> str:
    """One override: another value of a setting, a mistake in writing it, or random marks."""
    way = random.random()
    if way < 0.15:
        return random.choice(OVERRIDES)
    marks = "[]{}:,&*!|>'\"%@`#-? \t\n0123456789abc.é\\"
    value = (
        random.choice((*VALUES, *ODD_TEXT)) if way < 0.8 else "".join(random.choices(marks, k=random.randint(1, 20)))
    )
    return f"{random.choice(list(setting_paths()))}={value}"


def _write(case: Case, text: str | bytes) -> Path:
    path = case.folder / "m.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return path


def yaml_file(case: Case) -> None:
    """Our YAML file, changed."""
    text: str | bytes = (case.base / "base.yaml").read_text(encoding="utf-8")
    for _ in range(case.random.choice((1, 1, 1, 2, 3))):
        text = changed_text(case.random, text if isinstance(text, str) else text.decode("utf-8", "replace")) or "x: 1\n"
    read_and_write(_write(case, text), [])


def override(case: Case) -> None:
    """One or two overrides of a good file."""
    given = [random_override(case.random) for _ in range(case.random.choice((1, 1, 1, 2)))]
    case.describe(given)
    path = _write(case, (case.base / "base.yaml").read_bytes())
    read_and_write(path, given)


def heavy_file(case: Case) -> None:
    """A file that is deep, recursive or large, through the commands."""
    path = _write(case, deep_text(case.random))
    if case.random.random() < 0.6:
        command("train", "--config", path)
    else:
        door("train_net.py", "--config_file", path)


def odd_file(case: Case) -> None:
    """A path that is no ordinary file, as configuration."""
    name, path = odd_place(case.random, case.folder)
    case.describe(name)
    if case.random.random() < 0.6:
        command("train", "--config", path)
    else:
        door("train_net.py", "--config_file", path)


def upstream_file(case: Case) -> None:
    """Upstream's YAML file, changed, and its options."""
    text: str | bytes = UPSTREAM.read_text(encoding="utf-8")
    if case.random.random() < 0.7:
        text = changed_text(case.random, text) or "x: 1\n"
    options = []
    if case.random.random() < 0.6:
        keys = (*re.findall(r"^  ([A-Z_]+):", UPSTREAM.read_text(encoding="utf-8"), re.MULTILINE), *DEMO_OPTIONS)
        options = [case.random.choice(keys), case.random.choice((*VALUES, *ODD_TEXT))][
            : case.random.choice((1, 2, 2, 2, 2))
        ]
    case.describe(options)
    door("test_net.py", "--config_file", _write(case, text), "TEST.WEIGHT", "absent.safetensors", *options)


def trained(case: Case) -> None:
    """Overrides that the schema accepts, in a real training."""
    path = _write(case, (case.base / "base.yaml").read_bytes())
    paths, wanted = list(setting_paths()), case.random.choice((1, 1, 1, 2))
    given: list[str] = []
    for _ in range(200):
        candidate = f"{case.random.choice(paths)}={case.random.choice(VALUES)}"
        if candidate.startswith(WORK) and (LONG_WORK.search(candidate) or "compile" in candidate):
            continue  # done as it was asked for, for hours
        try:
            load_config(path, [*given, candidate])
        except TrireidError:
            continue
        given.append(candidate)
        if len(given) == wanted:
            break
    case.describe(given)
    command("train", "--config", path, *given)


KIND = Kind(
    "settings",
    2800,
    prepare,
    {yaml_file: 38, override: 38, upstream_file: 12, heavy_file: 3, odd_file: 2, trained: 7},
    quick=frozenset({yaml_file, override}),
)
