"""The layout of the house: imports run one way, no printing in the library, files and functions of bounded length."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import trireid

ROOT = Path(trireid.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MAX_FILE, MAX_FUNCTION, MAX_FORWARD = 400, 60, 40

# A part may import itself and the parts of lower levels.
LEVELS = {
    "types": 0,
    "errors": 0,
    "names": 0,
    "lazy": 0,
    "files": 1,
    "typed_json": 2,
    "config": 1,
    "data": 2,
    "models": 2,
    "losses": 2,
    "train": 3,
    "evaluation": 3,
    "upstream": 4,
    "embedding": 4,
    "gallery": 5,
    "export": 5,
    "visualize": 5,
    "report": 6,
    "serve": 6,
    "benchmark": 6,
    "ablation": 6,
    "cli": 7,
    "__main__": 8,
    "__init__": 8,
}
# Parts of one level that may use each other, user -> used: the order of the modalities is a list of names, training
# evaluates, and settings are read from files.
BESIDE = {("types", "names"), ("train", "evaluation"), ("config", "files")}
TENSORS_ONLY = {"torch", "timm", "numpy"}
# Only these may know the configuration, of all that models, losses and evaluation hold.
KNOW_CONFIG = {"models/build.py"}
NO_FILES_OR_PLOTS = {"matplotlib", "tensorboard", "pandas", "typer", "rich", "jinja2", "yaml", "accelerate"}


def module_of(path):
    return path.relative_to(ROOT).as_posix()


@cache
def nodes_of(path):
    """The nodes of the syntax of a file, which several tests look at."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def part_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def imports_of(path):
    """Dotted names of all modules that a file imports, also inside functions and for type checking."""
    names = []
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.append(node.module)
            if node.module == "trireid":
                names += [f"trireid.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_run_one_way(path):
    part = part_of(path)
    for name in imports_of(path):
        if not name.startswith("trireid."):
            continue
        used = name.split(".")[1]
        allowed = used == part or LEVELS[used] < LEVELS[part] or (part, used) in BESIDE
        assert allowed, f"{module_of(path)} imports {name}, which does not lie below it"


@pytest.mark.parametrize("path", [p for p in FILES if part_of(p) in ("models", "losses", "evaluation")], ids=module_of)
def test_models_losses_and_evaluation_know_no_config_and_plot_nothing(path):
    names = set(imports_of(path))
    if module_of(path) not in KNOW_CONFIG:
        assert not [name for name in names if name.startswith("trireid.config")]
    assert not {name.split(".")[0] for name in names} & NO_FILES_OR_PLOTS


@pytest.mark.parametrize(
    "path",
    [ROOT / "losses.py", ROOT / "evaluation" / "metrics.py", ROOT / "models" / "sdtps.py", ROOT / "models" / "hdm.py"],
    ids=module_of,
)
def test_the_core_needs_tensors_only(path):
    import sys

    tops = {name.split(".")[0] for name in imports_of(path)} - {"trireid", "__future__"} - sys.stdlib_module_names
    assert tops <= TENSORS_ONLY


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_printing_and_no_catching_of_everything(path):
    for node in nodes_of(path):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            assert part_of(path) == "cli", f"{module_of(path)}:{node.lineno} prints"
        if isinstance(node, ast.ExceptHandler):
            bare = node.type is None or (
                isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            )
            assert not bare, f"{module_of(path)}:{node.lineno} catches everything"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_call_hides_a_partial_load_or_loses_a_batch_of_one(path):
    for node in nodes_of(path):
        if not isinstance(node, ast.Call):
            continue
        for keyword in node.keywords:
            hides = keyword.arg == "strict" and isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            assert not (hides and name == "load_state_dict"), f"{module_of(path)}:{node.lineno} has strict=False"
        if isinstance(node.func, ast.Attribute) and node.func.attr == "squeeze":
            assert node.args or node.keywords, f"{module_of(path)}:{node.lineno} has a bare squeeze"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_and_functions_are_of_bounded_length(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE, f"{module_of(path)} is too long"
    for node in nodes_of(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            limit = MAX_FORWARD if node.name == "forward" else MAX_FUNCTION
            documented = docstring_length(node) if node.name == "forward" else 0
            length = node.end_lineno - node.lineno + 1 - documented
            assert length <= limit, f"{module_of(path)}:{node.lineno} {node.name} has {length} lines of {limit}"


def docstring_length(node):
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return first.end_lineno - first.lineno + 1
    return 0


def test_every_part_has_a_level():
    assert {part_of(path) for path in FILES} <= set(LEVELS)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_what_is_written_to_a_terminal_is_made_printable(path):
    writes = re.findall(r"(?:stdout|stderr)\.write\((.*)", path.read_text(encoding="utf-8"))
    assert [line for line in writes if "printable" not in line] == []


def test_the_values_of_a_named_option_are_written_once():
    places = {}
    for path in FILES:
        for node in nodes_of(path):
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
                names = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
                values = frozenset(name.value for name in names if isinstance(name, ast.Constant))
                if len(values) > 1:
                    places.setdefault(values, []).append(f"{module_of(path)}:{node.lineno}")
    assert [found for found in places.values() if len(found) > 1] == []


def test_every_format_exclusion_and_preset_that_settings_allow_is_one_that_exists():
    from typing import get_args

    from trireid import names
    from trireid.data.readers import EXCLUSIONS, FORMATS
    from trireid.models.sdtps import PRESETS

    assert set(FORMATS) == set(get_args(names.DataFormat))
    assert set(EXCLUSIONS) == set(get_args(names.Exclusion))
    assert set(PRESETS) == set(get_args(names.PresetName))


def test_benchmarks_end_a_mistake_of_the_user_in_one_line():
    for path in (Path(__file__).parents[1] / "benchmarks").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "argparse" in text or "typer.run" in text:
            assert "with guarded():" in text or "except TrireidError" in text, path.name
