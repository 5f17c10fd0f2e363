"""Trees of the four layouts: odd names, odd files and odd folders; and lists of names that `trireid synth` is given."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random

from fuzz.mutations import ODD_FILES, ODD_TEXT, damaged, make_odd_file, odd_place
from fuzz.package import command, settings_text
from fuzz.runner import Case, Kind
from fuzz.sandbox import WrongResult
from trireid.data.synthetic import write_synthetic

LAYOUTS = ("rgbnt201", "rgbnt100", "msvr310", "wmveid863")
LISTED = {
    "rgbnt201": ["000001_cam1_0_00.jpg", "000001_cam2_0_00.jpg", "000002_cam1_0_00.jpg", "000002_cam2_0_00.jpg"],
    "rgbnt100": ["0001_c0001_000.jpg", "0001_c0002_000.jpg", "0002_c0001_000.jpg"],
    "msvr310": ["0001_s001_v0_000.jpg", "0001_s002_v0_000.jpg", "0002_s001_v0_000.jpg"],
    "wmveid863": ["0001/v1_n0_s001_0000.jpg", "0001/v2_n0_s002_0001.jpg", "0002/v1_n0_s001_0000.jpg"],
}
NAMES: tuple[str | bytes, ...] = (
    "a\nb.jpg", "-rf.jpg", "--help.jpg", " .jpg", ".jpg", "..jpg", "x" * 250 + ".jpg", "\x1b[31mred.jpg",
    "\u202egpj.jpg", "\x01.jpg", b"\xff\xfe.jpg", b"000001_cam1_0_0\xff.jpg", "000001_cam1_0_99.JPG",
    "000001_cam1_0_99.png", "Thumbs.db", "000001_cam1_0_99.jpg.jpg", "000001_cam1_0_99.tif", "000001_cam1_0_99",
    "000001_cam\uff11_0_99.jpg", ".DS_Store", "000001_CAM1_0_99.jpg", "000001_cam1_0_99\n.jpg", "0_cam1_0_99.jpg",
    "9" * 24 + "_cam1_0_99.jpg", "<script>.jpg", "000001_cam0_0_99.jpg", "000001_cam" + "9" * 20 + "_0_99.jpg",
    "-00001_cam1_0_99.jpg", "'\".jpg", "%s%n.jpg", "{0}.jpg", "e\u0301.jpg", "0001_c0001_999.jpg",
    "0001_s001_v0_999.jpg", "v1_n0_s001_9999.jpg", "$x^2$.jpg", "v1_n0_s001_9999\u0661.jpg",
    "0001_c0001_\u0661\u0661\u0661.jpg", "000001_cam1_0_\u2028.jpg",
)  # fmt: skip
BEFORE = (
    "",
    "../",
    "../../../",
    "./",
    "sub/",
    "a//b/",
    "..\\",
    "~/",
    "\u2025/",
    " ",
    "\ufeff",
    "\0",
    "\x1b[31m",
    "C:/",
    "/",
)
AFTER = (
    "", "\n", "\r", " ", ".png", ".exe", "\0", "/../../x.jpg", "#", "\u202e", "\u0661", "x" * 300, "/", "/.", "\x85",
    "\u2028000009_cam1_0_00.jpg",
)  # fmt: skip


def prepare(folder: Path) -> None:
    """A small synthetic set of each layout, with settings that train on it."""
    for layout in LAYOUTS:
        size = None if layout == "rgbnt100" else (32, 16)
        write_synthetic(folder / layout, layout=layout, num_ids=3, num_cameras=2, per_camera=2, image_size=size)
        settings = settings_text(Path("data"), "run", [f"data.format={layout}"])
        (folder / f"{layout}.yaml").write_text(settings, encoding="utf-8")


def _tree(case: Case) -> tuple[str, Path]:
    layout = case.random.choice(LAYOUTS)
    return layout, Path(shutil.copytree(case.base / layout, case.folder / "data"))


def _use(case: Case, layout: str) -> None:
    way = case.random.random()
    skip = ["--skip-bad"] if case.random.random() < 0.5 else []
    if way < 0.75:
        command("check-data", "--format", layout, "--root", "data", *skip)
    else:
        command("train", "--config", case.base / f"{layout}.yaml", *skip)


def odd_name(case: Case) -> None:
    """A few more files, with odd names."""
    layout, root = _tree(case)
    image = case.random.choice(sorted(root.rglob("*.jpg")))
    for name in case.random.sample(NAMES, case.random.choice((1, 1, 3))):
        case.describe(layout, repr(name))
        shutil.copyfile(image, image.with_name(os.fsdecode(name)))
    _use(case, layout)


def odd_file(case: Case) -> None:
    """An image that is no ordinary file."""
    layout, root = _tree(case)
    image, what = case.random.choice(sorted(root.rglob("*.jpg"))), case.random.choice(ODD_FILES)
    case.describe(layout, what, image.relative_to(root))
    image.unlink()
    make_odd_file(image, what)
    _use(case, layout)


def odd_folder(case: Case) -> None:
    """A folder that is empty, missing, a file, a link to itself or holds itself."""
    layout, root = _tree(case)
    folder = case.random.choice(sorted({path.parent for path in root.rglob("*.jpg")} | {root}))
    way = case.random.choice(
        ("loop inside", "file", "dangling", "itself", "pipe", "empty", "many", "deep", "bytes", "moved")
    )
    case.describe(layout, way, folder.relative_to(root))
    if way == "loop inside":
        (folder / "loop").symlink_to(folder)
    elif way == "many":
        for number in range(500):
            (folder / f"junk{number}.jpg").touch()
    elif way == "deep":
        (folder / "/".join(["a"] * 60)).mkdir(parents=True)
    elif way == "bytes":
        name = case.random.choice((b"\xff\xfe", b"1\n2", b"\xd9\xa1\xd9\xa2", b"\x1b[31m"))
        folder.with_name(os.fsdecode(name)).mkdir()
    elif way == "moved":
        folder.rename(folder.with_name("moved"))
    else:
        shutil.rmtree(folder)
        made = {"file": "empty", "itself": "loop", "empty": "folder"}.get(way, way)
        make_odd_file(folder, made)
    _use(case, layout)


def listed(case: Case) -> None:
    """A list of names for `trireid synth`: refused or written, nothing outside, nothing left of what was refused."""
    layout = case.random.choice(LAYOUTS)
    content = _list(case.random, layout)
    case.describe(layout, repr(content[:300]))
    names = case.folder / f"l_{case.random.choice(('train', 'train', 'test'))}.txt"
    names.write_bytes(content)
    size = () if layout == "rgbnt100" else ("--size", "32x16")
    code: object = 0
    try:
        command("synth", "--out", case.folder / "inner" / "set", "--layout", layout, "--names", names, *size)
    except SystemExit as end:
        code = end.code
    kept = [path for path in case.folder.rglob("*") if path.is_file() and path != names]
    stray = [path for path in kept if case.folder / "inner" / "set" not in path.parents]
    if stray or (code and kept):
        raise WrongResult(f"left after exit code {code}: {(stray or kept)[0]}")
    raise SystemExit(code)


def _list(random: Random, layout: str) -> bytes:
    names, way = list(LISTED[layout]), random.randrange(4)
    text = "\n".join(names)
    if way < 2:
        place = random.randrange(len(names))
        names[place] = random.choice(BEFORE) + names[place] + random.choice(AFTER)
        return "\n".join(names).encode("utf-8", "surrogatepass")
    if way == 2:
        return damaged(random, text.encode())
    return random.choice((
        b"", b"   \n\n", text.encode("utf-16"), b"\xff\n", b"\0" * 100, b"x" * 100_000, f"{text}\n{text}".encode(),
        text.replace("\n", "\r\n").encode(), b"\xef\xbb\xbf" + text.encode(), text.replace("1", "9" * 30).encode(),
        "\n".join(LISTED[random.choice(LAYOUTS)]).encode(), text.replace(".jpg", ".JPG").encode(),
        "\n".join([text, text.replace(".jpg", ".png")]).encode(), random.choice(ODD_TEXT).encode("utf-8",
        "surrogatepass"),
    ))  # fmt: skip


def synth_option(case: Case) -> None:
    """Options of `trireid synth` out of range."""
    name, path = odd_place(case.random, case.folder)
    values = ("0", "-1", "1", "999999999", "9" * 40, "x", "1.5", "", "nan")
    options: dict[str, tuple[object, ...]] = {
        "--ids": values, "--cameras": values, "--per-camera": values, "--seed": values, "--difficulty": ("x", "hard"),
        "--layout": ("x", "csv", ""), "--workers": ("-1", "1"), "--names": (path,),
        "--size": ("0x0", "1x1", "16x16", "99999999x99999999", "x", "64", "32x16x3", "-8x8"),
        "--out": ("", "/dev/null", "/proc/x", "a\0b", "x" * 300, ".", path),
    }  # fmt: skip
    given = {"--out": "set", "--ids": "2", "--per-camera": "1", "--size": "32x16"}
    for option in case.random.sample(sorted(options), case.random.choice((1, 1, 2))):
        given[option] = str(case.random.choice(options[option]))
    case.describe(name, given)
    command("synth", *(word for pair in given.items() for word in pair))


KIND = Kind("trees", 800, prepare, {odd_name: 22, odd_file: 20, odd_folder: 20, listed: 30, synth_option: 8})
