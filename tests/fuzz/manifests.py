"""CSV manifests: cells, columns, headers, encodings and bytes; read, checked and trained on."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from random import Random

from fuzz.mutations import ODD_TEXT, damaged, odd_place
from fuzz.package import command, settings_text, tiny_tree
from fuzz.runner import Case, Kind
from trireid.data.readers import scan

HEADER = "rgb,nir,tir,id,camera,scene,split"
SPLITS = ("train", "Train", "test", "query", "gallery", "val", "training", "TEST ")
HEADERS = (
    "", "rgb", HEADER.upper(), HEADER + ",x", HEADER.replace("scene,", ""), HEADER.replace("nir", "rgb"),
    HEADER.replace(",", ";"), HEADER.replace(",", "\t"), " " + HEADER, HEADER.replace("id", " id "), "\ufeff" + HEADER,
    "split,scene,camera,id,tir,nir,rgb", f'"{HEADER}"', HEADER + "," * 1000, "\x00" + HEADER, HEADER.replace("id",
    "a\x1b[31m"),
)  # fmt: skip
Rows = list[list[str]]


def prepare(folder: Path) -> None:
    """A tree and the manifest that names its images."""
    root = tiny_tree(folder / "data")
    rows: Rows = []
    for split, name in (("train_171", "train"), ("test", "test")):
        for image in sorted((root / split / "RGB").iterdir()):
            paths = [str(root / split / folder / image.name) for folder in ("RGB", "NI", "TI")]
            rows.append([*paths, image.name[:6], image.name[10], "", name])
    (folder / "good.csv").write_text(table(rows), encoding="utf-8")
    (folder / "base.yaml").write_text(settings_text(Path("m.csv"), "run", ["data.format=csv"]), encoding="utf-8")


def table(rows: Rows, header: str = HEADER) -> str:
    """The text of a manifest."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return f"{header}\n{stream.getvalue()}"


def changed_rows(random: Random, rows: Rows) -> str | bytes:
    """Some cells, a column, a row's length, the order, or rows twice."""
    values, way = (*ODD_TEXT, *SPLITS, rows[0][0], rows[0][1], "1", "01", "1.0"), random.randrange(6)
    column = random.randrange(len(rows[0]))
    if way < 3:
        for _ in range(random.choice((1, 1, 2, 40))):
            random.choice(rows)[random.randrange(7)] = random.choice(values)
    elif way == 3:
        value = random.choice(values)
        for row in rows:
            row[column] = value
    elif way == 4:
        row = random.choice(rows)
        if random.random() < 0.5:
            row.append(random.choice(values))
        else:
            del row[random.randrange(len(row)) :]
    else:
        rows = random.choices(rows, k=random.choice((0, 1, 5, 40)))
    return table(rows).encode("utf-8", "surrogatepass")


def changed_file(random: Random, text: str) -> str | bytes:
    """Line ends, separators, encodings, quotes and lengths."""
    body = text.partition("\n")[2]
    return random.choice((
        text.replace("\n", "\r\n"), text.replace("\n", "\r"), text + text, body, HEADER, HEADER + "\n", "", "\n\n\n",
        text.replace(",", ";"), text.replace(",", "\t"), text.replace(",", "|"), text + '"', text + '"\n' * 100,
        text + "a" * 200_000, text + ",".join(["x"] * 100_000), text.encode("utf-16"), text.encode("utf-8-sig"),
        text.encode("utf-32"), b"\xff\xfe" + text.encode(), text.encode() + b"\xff", b"\x00" * 1000,
        text + '"' + "x" * 140_000 + '"', "\n".join(text.splitlines()[:2]), "\n".join(text.splitlines()[::2]),
        text.replace("/", "\\"), text.encode().replace(b"RGB", b"R\xe9B"),
    ))  # fmt: skip


def _changed(case: Case) -> Path:
    """A manifest in the folder of the case, changed in one way."""
    text = (case.base / "good.csv").read_text(encoding="utf-8")
    rows = list(csv.reader(io.StringIO(text)))[1:]
    ways: tuple[Callable[[], str | bytes], ...] = (
        lambda: changed_rows(case.random, rows),
        lambda: changed_rows(case.random, rows),
        lambda: table(rows, case.random.choice(HEADERS)),
        lambda: changed_file(case.random, text),
        lambda: damaged(case.random, text.encode()),
    )
    content = case.random.choice(ways)()
    path = case.folder / "m.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


def read(case: Case) -> None:
    """Read by the library."""
    scan("csv", _changed(case), skip_bad=case.random.random() < 0.3)


def checked(case: Case) -> None:
    """Through `trireid check-data`, which decodes every image that is named."""
    command("check-data", "--format", "csv", "--root", _changed(case))


def trained(case: Case) -> None:
    """Trained on."""
    _changed(case)
    skip = ["--skip-bad"] if case.random.random() < 0.5 else []
    command("train", "--config", case.base / "base.yaml", *skip)


def odd_root(case: Case) -> None:
    """A path that is no ordinary file, as manifest or as folder of a layout."""
    name, path = odd_place(case.random, case.folder)
    layout = case.random.choice(("csv", "csv", "rgbnt201", "rgbnt100", "msvr310", "wmveid863"))
    case.describe(layout, name)
    command("check-data", "--format", layout, "--root", path)


def odd_image(case: Case) -> None:
    """A manifest whose image is a pipe, a device or another thing that is no image file."""
    name, path = odd_place(case.random, case.folder)
    case.describe(name)
    text = (case.base / "good.csv").read_text(encoding="utf-8")
    rows = list(csv.reader(io.StringIO(text)))[1:]
    case.random.choice(rows)[case.random.randrange(3)] = str(path)
    (case.folder / "m.csv").write_bytes(table(rows).encode("utf-8", "surrogateescape"))
    if case.random.random() < 0.7:
        command("check-data", "--format", "csv", "--root", case.folder / "m.csv")
    else:
        command("train", "--config", case.base / "base.yaml", *case.random.choice(((), ("--skip-bad",))))


KIND = Kind(
    "manifests",
    1400,
    prepare,
    {read: 45, checked: 40, trained: 7, odd_root: 3, odd_image: 5},
    quick=frozenset({read}),
)
