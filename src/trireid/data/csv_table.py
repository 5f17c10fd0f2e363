"""Read a table from a text file: its encoding, its separator and the names of its columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trireid.errors import DataError
from trireid.files import DEFAULT_LIMIT, read_bytes

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
_WIDE_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x00\x00\xfe\xff": "UTF-32"}
_SAVE = "save it as UTF-8 (spreadsheets call it `CSV UTF-8`)"
_NO_FILE: dict[type[Exception], str] = {FileNotFoundError: "no such file", IsADirectoryError: "is a folder"}


class TableError(DataError):
    """A file that is not a table with the required columns; the message does not name the file."""


@dataclass(frozen=True)
class Table:
    """The header and rows of a file.

    Attributes:
        header: the column names in the order of the file; those that were looked for in lower case.
        rows: (line number, cells without surrounding blanks); rows with only empty cells are left out.
        notes: what was read in an unusual way, one line each.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[int, list[str]], ...]
    notes: tuple[str, ...]


def read_table(path: Path, columns: Sequence[str]) -> Table:
    """Read a CSV file that has the given columns, in any order, in upper or lower case; it may have others.

    The separator is a comma, or a semicolon, tab or vertical bar if only that fits the header.

    Raises:
        TableError: the file cannot be read, is not in UTF-8, lacks a column, or has one twice or without a name.
    """
    text = _read_text(path)
    lines = [line for line in text.splitlines() if line.strip()][:2]
    found = {separator: [_cells(line, separator) for line in lines] for separator in SEPARATORS}
    fitting = [separator for separator, first in found.items() if _fits(first, columns, separator)]
    if len(fitting) != 1:
        headers = {separator: first[0] if first else [] for separator, first in found.items()}
        raise TableError(f"{_wrong_header(headers, columns)}; it must have {','.join(columns)}, each once")
    separator = fitting[0]
    header = found[separator][0]
    notes = [f"its cells are separated by a {SEPARATORS[separator]}"] if separator != "," else []
    renamed = [name for name in header if name.lower() != name and name.lower() in columns]
    if renamed:
        notes.append(f"the columns {', '.join(renamed)} are read as {', '.join(map(str.lower, renamed))}")
    known = tuple(name.lower() if name.lower() in columns else name for name in header)
    return Table(known, tuple(_rows(text, separator)[1:]), tuple(notes))


def read_open_table(path: Path, columns: Sequence[str], *, limit: int = DEFAULT_LIMIT) -> Table:
    """Read a CSV file that has at least one of the given columns, and any others.

    The given columns are found in upper or lower case; the names of all others stay as they are.

    Args:
        path: the file.
        columns: in lower case.
        limit: bytes that are read at most.

    Raises:
        TableError: the file cannot be read, is not in UTF-8, has none of the columns, a column twice, or a row with
            another number of cells than the header.
    """
    text = _read_text(path, advice="give the CSV file itself", limit=limit)
    first = next((line for line in text.splitlines() if line.strip()), "")
    headers = {separator: _cells(first, separator) for separator in SEPARATORS}
    fitting = [each for each, names in headers.items() if {name.lower() for name in names} & {*columns}]
    if not fitting:
        raise TableError(f"{_wrong_header(headers, columns)}; it must have at least one of {', '.join(columns)}")
    separator = max(fitting, key=lambda each: len(headers[each]))
    header = tuple(name.lower() if name.lower() in columns else name for name in headers[separator])
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise TableError(f"the header has the column {twice} twice; keep one of them")
    rows = _rows(text, separator)[1:]
    odd = next(((line, cells) for line, cells in rows if len(cells) != len(header)), None)
    if odd is not None:
        raise TableError(f"line {odd[0]}: {len(odd[1])} cells, but the header has {len(header)}; correct the row")
    return Table(header, tuple(rows), (f"its cells are separated by a {SEPARATORS[separator]}",) * (separator != ","))


def _rows(text: str, separator: str) -> list[tuple[int, list[str]]]:
    """(line number, cells) of all rows that are not empty, the header first."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        return [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise TableError(f"cannot be read as a CSV file in UTF-8 (line {reader.line_num}: {error})") from error


def _read_text(path: Path, *, advice: str = "set data.root to the CSV file itself", limit: int = DEFAULT_LIMIT) -> str:
    """The text without its byte order mark."""
    try:
        data = read_bytes(path, limit=limit)
    except (OSError, ValueError) as error:  # a NUL in the path is a ValueError
        reason = getattr(error, "strerror", None) or error
        what = _NO_FILE.get(type(error), f"cannot be read as a CSV file in UTF-8 ({reason})")
        raise TableError(f"{what}; {advice}") from error
    for mark, name in _WIDE_MARKS.items():
        if data.startswith(mark):
            raise TableError(f"cannot be read as a CSV file in UTF-8: it is written in {name}; {_SAVE}")
    if b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise TableError(f"cannot be read as a CSV file in UTF-8: line {line} holds a NUL byte; {_SAVE}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = data[: error.start].count(b"\n") + 1, data[error.start]
        raise TableError(
            f"cannot be read as a CSV file in UTF-8: byte 0x{byte:02x} in line {line} is not UTF-8 (the file may "
            f"be in Latin-1 or a Windows code page); {_SAVE}"
        ) from error


def _cells(line: str, separator: str) -> list[str]:
    """The cells of one line; empty if it is not valid CSV with this separator."""
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=separator, strict=True), [])]
    except csv.Error:
        return []


def _fits(lines: Sequence[Sequence[str]], columns: Sequence[str], separator: str) -> bool:
    """Whether the header has the columns; for separators other than a comma, the first row must have as many cells."""
    if not lines or not _has(lines[0], columns):
        return False
    return separator == "," or len(lines) == 1 or len(lines[1]) == len(columns)


def _has(header: Sequence[str], columns: Sequence[str]) -> bool:
    """Whether a header has the columns, and every name once."""
    names = [name.lower() for name in header]
    return {*columns} <= {*names} and len({*names}) == len(names) and all(names)


def _wrong_header(headers: Mapping[str, Sequence[str]], columns: Sequence[str]) -> str:
    """Describe what is wrong with the header, and name the columns concerned.

    Args:
        headers: the header split by each separator; the split with the most required columns is taken as meant.
        columns: the required columns.
    """

    def quality(separator: str) -> tuple[int, int]:
        return len({*headers[separator]} & {*columns}), len({*map(str.lower, headers[separator])} & {*columns})

    commas = headers[","]
    if not any(commas):
        return "the header is empty" if commas else "the file is empty"
    if any(_has(headers[each], columns) for each in headers if each != ","):
        # The rows have another separator than the header, so neither can be trusted.
        return f"the header has the columns {commas[0]}, without a comma between them"
    separator = max(headers, key=lambda each: (*quality(each), each == ","))
    header = headers[separator]
    found = f"the header has the columns {','.join(header)}"
    if len(header) == 1:
        return f"{found}, without a comma between them"
    if separator != ",":
        found += f" (a {SEPARATORS[separator]} between them)"
    lacking = [name for name in columns if name not in header]
    unknown = [name for name in header if name not in columns]
    parts = [f"{what} {', '.join(each)}" for what, each in (("without", lacking), ("unknown are", unknown)) if each]
    return f"{found} ({'; '.join(parts)})" if lacking else f"{found}, one of them twice or without a name"
