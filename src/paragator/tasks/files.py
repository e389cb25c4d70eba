"""Rows of data files: JSON lines, JSON arrays, CSV and TSV, each also as .gz, and Parquet where pyarrow is installed."""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import json
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from paragator.core.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
CELL_CHARS = 2**24
"""Longest cell of a CSV file."""
Row = tuple[int, dict[str, Any]]
"""A row and its line, or in a file without lines its place."""


def is_data_file(name: str) -> bool:
    """Whether a name is that of a file with rows, by its ending."""
    return name.lower().removesuffix(".gz").endswith(SUFFIXES)


def rows_of(path: Path) -> Iterator[Row]:
    """The rows of a file; DataError, with the line where there is one, for what cannot be read or is no text."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".parquet"):
        return parquet_rows(path)
    data = content(path)
    if name.endswith((".csv", ".tsv")):
        return csv_rows(path, text_of(path, data), "\t" if name.endswith(".tsv") else ",")
    start = data[:1000].removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"[") or (name.endswith(".json") and one_object(data)):
        return array_rows(path, text_of(path, data))
    return (whole(path, number, row) for number, row in json_lines(path, data))


def count_rows(path: Path) -> int:
    """How many rows a file has, as far as it can be read."""
    return sum(1 for _ in rows_of(path))


def content(path: Path) -> bytes:
    """A file's bytes, unzipped where they are zipped."""
    data = path.read_bytes()
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: a broken .gz file ({error}); make it again") from None


def text_of(path: Path, data: bytes) -> str:
    """The text of a whole file; DataError names the line of the first byte that is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, data[: error.start].count(b"\n") + 1, data[error.start]) from None


def not_utf8(path: Path, line: int, byte: int) -> DataError:
    return DataError(f"{path}:{line}: not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8")


def json_lines(path: Path, data: bytes) -> Iterator[Row]:
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise not_utf8(path, number, line[error.start]) from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not a JSON object ({error}); remove or fix the line") from None
        yield number, row


def one_object(data: bytes) -> bool:
    """Whether a file is one JSON value over several lines, not a line a value."""
    try:
        json.loads(data.lstrip().partition(b"\n")[0])
    except (ValueError, RecursionError):
        return True
    return b"\n" not in data.strip()


def array_rows(path: Path, text: str) -> Iterator[Row]:
    """Rows of a JSON array, or of an object whose only list of objects is the rows; numbered by place."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON array ({error}); write one object a line, or fix the array") from None
    if isinstance(found, dict):
        lists = [value for value in found.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
        found = lists[0] if len(lists) == 1 and not {"problem", "question", "prompt"} & found.keys() else [found]
    return (whole(path, place, row) for place, row in enumerate(found, 1))


def csv_rows(path: Path, text: str, delimiter: str) -> Iterator[Row]:
    """Rows of a CSV file whose first line names the fields; empty cells are left out."""
    csv.field_size_limit(CELL_CHARS)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DataError(f"{path}:{reader.line_num}: other columns than the first line names; fix the line")
            yield whole(path, reader.line_num, {name: cell for name, cell in row.items() if cell != ""})
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV ({error}); fix the line") from None


def parquet_rows(path: Path) -> Iterator[Row]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs pyarrow: pip install 'paragator[data]'") from None
    try:
        rows = parquet.read_table(path).to_pylist()
    except Exception as error:  # the library may raise anything
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(f"{path}: not a Parquet file ({what}); make it again") from error
    return (whole(path, place, row) for place, row in enumerate(rows, 1))


def whole(path: Path, number: int, row: Any) -> Row:
    """A row, numbered; DataError for one that is no object, or holds half of a character."""
    if not isinstance(row, dict):
        raise DataError(f"{path}:{number}: not a JSON object; remove or fix the line")
    if (text := halved(row)) is not None:
        raise DataError(
            f"{path}:{number}: half of a surrogate pair, which is no character, in {text}; fix or remove the line"
        )
    return number, row


def halved(value: Any, depth: int = 20) -> str | None:
    """The surroundings of a lone surrogate in a value, as ASCII; None without one."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return ascii(value[max(0, error.start - 20) : error.start + 20])
    if isinstance(value, dict | list) and depth:
        parts = chain(value.keys(), value.values()) if isinstance(value, dict) else iter(value)
        return next((found for part in parts if (found := halved(part, depth - 1))), None)
    return None
