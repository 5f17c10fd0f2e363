"""What the documents say is so: paths exist, commands parse, settings load, the Python code runs."""

import functools
import re
import shlex
from pathlib import Path

import pytest
import torch
import typer.main
import yaml
from PIL import Image
from typer.testing import CliRunner

import trireid
from test_architecture import LEVELS
from tiny_run import tiny_config, write_tree
from trireid.cli.app import app
from trireid.cli.demo import read_recipe
from trireid.config.load import load_config, setting_paths, validate
from trireid.config.presets import PRESETS
from trireid.train.loop import train
from trireid.upstream.configuration import load_upstream_yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "README.zh.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "examples/README.md")
DOCUMENTS = [*(ROOT / name for name in PAGES), *sorted((ROOT / "docs").rglob("*.md"))]
OURS, UPSTREAM = sorted((ROOT / "configs").rglob("*.yaml")), sorted((ROOT / "configs").rglob("*.yml"))
COMMANDS = typer.main.get_command(app).commands

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"[\w.-]+(?:/[\w.-]+)*\.(?:py|md|yaml|yml|toml|txt|png)")
IN_A_TREE = re.compile(r"(?:configs|docs|tests|src)/[\w./-]+")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def value_of(config, name):
    return functools.reduce(getattr, name.split("."), config)


def blocks(path, language):
    return [text for name, text in FENCE.findall(path.read_text(encoding="utf-8")) if name == language]


def prose(path):
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def slug(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def is_there(path, name):
    """A file as named from the root, from its document, from the package, or (bare names) anywhere in the package."""
    places = (ROOT, path.parent, ROOT / "src" / "trireid")
    return any((place / name).exists() for place in places) or ("/" not in name and any(ROOT.glob(f"src/**/{name}")))


def joined(text):
    """The lines of a block; a command may go on after a backslash."""
    return text.replace("\\\n", " ").splitlines()


def command_lines(path):
    """The lines of all shell blocks, without comments."""
    lines = [line.partition(" #")[0].strip() for text in blocks(path, "sh") for line in joined(text)]
    return [line for line in lines if line]


def command_only(text):
    """Code without its comments, which each language has its own of."""
    return [line.partition("  #")[0].rstrip() for line in text.splitlines()]


def command_of(words):
    """The command that a line names, inside a group where there is one, and the words that follow."""
    command, rest = COMMANDS[words[1]], words[2:]
    if hasattr(command, "commands") and rest:
        return command.commands[rest[0]], rest[1:]
    return command, rest


SHELL_LINES = [(path, line) for path in DOCUMENTS for line in command_lines(path)]
INLINE = sorted(
    {
        code
        for path in DOCUMENTS
        for code in CODE.findall(prose(path))
        if code.startswith("trireid ") and not re.search(r"[|.]{2,}|\|", code)
    }
)


def test_the_readme_is_short_enough_to_be_read():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) < 1000
    (code,) = blocks(ROOT / "README.md", "python")
    assert len([line for line in code.splitlines() if line]) <= 10


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.name != "README.zh.md"], ids=name_of)
def test_lines_of_prose_are_short(path):
    lines = prose(path).splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith(("|", "![", "    "))] == []


def test_the_chinese_readme_has_the_same_code_pictures_and_numbers():
    english, chinese = (ROOT / name for name in ("README.md", "README.zh.md"))
    for language in ("python", "sh"):
        assert [command_only(text) for text in blocks(english, language)] == [
            command_only(text) for text in blocks(chinese, language)
        ]
    numbers, links = (
        [sorted(pattern.findall(prose(path))) for path in (english, chinese)]
        for pattern in (re.compile(r"\d+\.\d+"), re.compile(r"\]\(((?:docs|LICENSE|CIT|ARCH|CHANGE|https)[^)\s]*)\)"))
    )
    assert numbers[0] == numbers[1]
    assert links[0] == links[1]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_link_leads_somewhere(path):
    for link in LINK.findall(path.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = path if not file else path.parent / file
        assert target.exists(), f"{name_of(path)} links to {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{name_of(path)} links to {link}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_file_named_is_there(path):
    named = {code for code in CODE.findall(prose(path)) if FILE.fullmatch(code)} - {"config.yaml"}  # of a run folder
    named |= {match.rstrip(".") for match in IN_A_TREE.findall(path.read_text(encoding="utf-8"))}
    missing = sorted(name for name in named if not is_there(path, name))
    assert not missing, f"{name_of(path)} names {missing}"


@pytest.mark.parametrize(("path", "line"), SHELL_LINES, ids=lambda value: value if isinstance(value, str) else "")
def test_every_command_shown_parses(path, line):
    words = shlex.split(line)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    elif words[0] == "trireid":
        command, rest = command_of(words)
        context = command.make_context(words[1], rest)
        if words[1] == "train":
            load_config(ROOT / context.params["config"], context.params["settings"] or [])
    else:
        door = next((index for index, word in enumerate(words) if word in ("train_net.py", "test_net.py")), None)
        assert door is not None, f"{line}: no test knows this command"
        assert (ROOT / words[door]).exists()
        assert words[door + 1] == "--config_file"
        overrides = [word for word in words[door + 3 :] if word != "--parity"]
        load_upstream_yaml(ROOT / words[door + 2], overrides, parity="--parity" in words)


@pytest.mark.parametrize("code", INLINE)
def test_every_command_named_in_a_sentence_exists(code):
    words = code.split()
    if words[1] == "--version":
        return
    command, _ = command_of(words)
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= options | {"--help"}


def test_commands_were_found_in_the_documents():
    assert len(SHELL_LINES) >= 10
    assert len(INLINE) >= 4


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_our_settings_load(path):
    load_config(path)


@pytest.mark.parametrize("path", UPSTREAM, ids=name_of)
def test_upstreams_settings_load(path):
    load_upstream_yaml(path)


def test_the_settings_of_the_demo_load():
    recipe = read_recipe()
    validate(recipe["run"])
    assert recipe["floors"]["joint_map"] >= 0.60
    assert recipe["floors"]["untrained_map"] <= 0.30


def test_every_switch_of_the_parity_preset_is_in_the_table_of_differences():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text.partition("## Differences to upstream")[2].partition("\n## ")[0]
    parity, default = load_config(None, ["preset=parity"]), load_config(None)
    switches = [name for name in setting_paths() if value_of(parity, name) != value_of(default, name)]
    assert len(switches) >= 9
    assert [name for name in switches if f"`{name}`" not in table] == []


def test_the_page_of_the_parity_preset_lists_its_settings_and_values():
    text = (ROOT / "docs" / "upstream.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\*\*)?`([a-z_.]+)`(?:\*\*)? \| `([^`]+)` \|", text, re.MULTILINE)
    shown = {name: yaml.safe_load(value) for _, name, value in rows}
    preset = {name: list(value) if isinstance(value, tuple) else value for name, value in PRESETS["parity"].items()}
    assert {name: float(value) if name == "train.backbone_lr" else value for name, value in shown.items()} == preset
    bold = {name for mark, name, _ in rows if mark}
    assert bold == {name for name, value in PRESETS["parity"].items() if value != value_of(load_config(None), name)}


def drawn_tree():
    """The parts that ARCHITECTURE.md draws, and the modules that stand below each."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    (drawing,) = [block for block in blocks(ROOT / "ARCHITECTURE.md", "") if block.startswith("src/trireid/")]
    assert drawing in text.partition("## The parts")[2].partition("\n## ")[0]
    parts, part = {}, ""
    for line in drawing.splitlines()[1:]:
        if line.startswith("    "):
            parts[part] += re.split(r",\s*", line.partition(":")[2].strip())
        else:
            part = line.split()[0]
            assert part not in parts, f"{part} is drawn twice"
            parts[part] = []
    return parts


def test_the_drawing_of_the_parts_agrees_with_the_tree():
    """A part or module that is added, moved or renamed is drawn in ARCHITECTURE.md, once and with what it is for."""
    package = ROOT / "src" / "trireid"
    found = []
    for path in (each for each in package.iterdir() if each.name != "__pycache__"):
        part = path.name + "/" * path.is_dir()
        inside = [child for child in path.iterdir() if child.stem[0] != "_"] if path.is_dir() else []
        modules = [child.stem for child in inside if child.suffix == ".py" or (child / "__init__.py").is_file()]
        found += [part, *(f"{part}{module}" for module in modules)]
    drawn = [name for part, modules in drawn_tree().items() for name in (part, *(f"{part}{each}" for each in modules))]
    assert len(drawn) == len(set(drawn))
    assert sorted(set(found) - set(drawn)) == [], "draw these under `The parts` in ARCHITECTURE.md"
    assert sorted(set(drawn) - set(found)) == [], (
        "ARCHITECTURE.md draws these under `The parts`, and they are not there"
    )


def test_the_drawing_of_the_imports_agrees_with_the_levels():
    (drawing,) = [block for block in blocks(ROOT / "ARCHITECTURE.md", "") if "types, errors" in block]
    drawn = [{name.strip() for name in level.split(",")} for level in " ".join(drawing.split()).split("<-")]
    parts = {part: level for part, level in LEVELS.items() if not part.startswith("__")}
    assert drawn == [{part for part in parts if parts[part] == level} for level in sorted(set(parts.values()))]


def test_functions_are_where_the_architecture_says():
    text = " ".join((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split())
    named = re.findall(r"`([\w.]+)` (?:in|of) \[[^\]]+\]\((src/[^)]+\.py)\)", text)
    assert len(named) >= 25
    for name, module in (each for each in named if each[0] not in setting_paths()):
        source = (ROOT / module).read_text(encoding="utf-8")
        for part in name.split("."):
            definition = rf"^\s*(?:class|def) {part}\b|^{part}\b.*="
            assert re.search(definition, source, re.MULTILINE), f"{module} has no {name}"


def test_the_reference_shows_every_public_name_once():
    shown = [
        line.removeprefix("::: ").strip()
        for page in sorted((ROOT / "docs" / "reference").glob("*.md"))
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("::: ")
    ]
    assert len(shown) == len(set(shown))
    for name in set(trireid.__all__) - {"__version__"}:
        full = f"trireid.{trireid._HOMES[name]}.{name}"
        places = [each for each in shown if full == each or full.startswith(f"{each}.")]
        assert len(places) == 1, f"docs/reference shows {full} {len(places)} times: {places}"


@pytest.mark.parametrize("path", [*OURS, *UPSTREAM], ids=name_of)
def test_the_header_of_a_configuration_names_a_command_that_runs_it(path):
    header = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    words = " ".join(header).partition("Command: ")[2].split()
    scripts = [ROOT / word for word in words if (ROOT / word).is_file() and (ROOT / word) != path]
    named = name_of(path) in words or any(name_of(path) in script.read_text(encoding="utf-8") for script in scripts)
    assert named, f"{name_of(path)} has no line `# Command:` with a command, or a script, that names it"


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A folder in which `runs/demo/run` is a tiny finished run, as after `make demo`."""
    folder = tmp_path_factory.mktemp("documents")
    train(tiny_config(write_tree(folder / "images"), folder / "runs" / "demo" / "run"), progress=False)
    return folder


def test_the_python_code_of_the_documents_runs(finished_run, monkeypatch, capsys):
    (short,) = blocks(ROOT / "README.md", "python")
    (text,) = blocks(ROOT / "docs" / "quick-start.md", "python")
    monkeypatch.chdir(finished_run)
    for name in ("rgb/17", "nir/17", "tir/17", "tir/18"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 32)).save(f"{name}.jpg")
    exec(compile(short, "README.md", "exec"), names := {})
    assert names["seen"].present.tolist() == [[True, True, True], [False, False, True]]
    assert Path("seen.safetensors").is_file()
    names = {}
    exec(compile(text, "docs/quick-start.md", "exec"), names)
    shown = capsys.readouterr().out
    assert shown.startswith("tensor([0.0")  # the first item is nearest to itself
    assert shown.endswith("tensor(0.5000)\n")
    assert names["out"].embedding.shape[0] == len(names["records"]) == 8
    assert names["nearest"].index[:, 0].tolist() == [0, 1]
    names["present"][3] = torch.tensor([True, False, True])
    (more,) = blocks(ROOT / "docs" / "missing.md", "python")
    exec(compile(more, "docs/missing.md", "exec"), names)
    for page in ("search.md", "contributing.md", "embed.md"):
        for text in blocks(ROOT / "docs" / page, "python"):
            exec(compile(text, page, "exec"), {})
    assert names["nearest"].index[:, 0].tolist() == [0, 1]


def test_the_pictures_of_the_readme_are_there_and_small():
    pictures = [ROOT / link for link in LINK.findall((ROOT / "README.md").read_text()) if link.endswith(".png")]
    assert len(pictures) == 1
    for picture in pictures:
        assert picture.stat().st_size <= 400_000
        with Image.open(picture) as image:
            assert image.width >= 500


@pytest.mark.slow
def test_the_pictures_of_the_readme_are_drawn_by_the_commands_named(finished_run, tmp_path):
    """As docs/pictures.md shows them, with a query of the tiny run."""
    lines = [line for line in command_lines(ROOT / "docs" / "pictures.md") if line.endswith("--out docs/images")]
    (name,) = {shlex.split(line)[shlex.split(line).index("--ids") + 1] for line in lines}
    places = {
        name: "000101_cam1_0_01",
        "docs/images": tmp_path,
        "runs/demo/run": finished_run / "runs" / "demo" / "run",
    }
    for line in lines:
        result = CliRunner().invoke(app, [str(places.get(word, word)) for word in shlex.split(line)[1:]])
        assert result.exit_code == 0, result.output
    drawn = {path.name.replace("000101_cam1_0_01", name) for path in tmp_path.iterdir()}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {Path(link).name for link in LINK.findall(readme) if link.endswith(".png")} <= drawn
