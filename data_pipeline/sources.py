"""From what the user names to documents: files, globs, JSONL, built-in text.

Large files are cut at document boundaries into pieces of about the same size, whatever
the number of workers; every piece is read by itself. UTF-8 is required.
"""

import ast
import dataclasses
import glob
import hashlib
import itertools
import json
import os
import sysconfig
from collections.abc import Iterator
from typing import BinaryIO

from configs.schema import DataConfig

PYTHON_DOCS = "builtin:python_docs"
_NOT_DOCUMENTATION = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "__pycache__",
    "_bundled",
}


class InputError(ValueError):
    """Input that cannot be read; the message names the file and what to change."""

    exit_code = 2


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A file, how to read it ("text", "jsonl", "python"), and what is in it."""

    path: str
    format: str
    num_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Piece:
    """Bytes [start, end) of a file; both are document boundaries."""

    file: InputFile
    start: int
    end: int


def find_files(names: str, flag: str) -> list[InputFile]:
    """Finds what a comma-separated list of files, folders and globs names.

    Returns:
      The files sorted by path, each once: the order of the list does not matter.

    Raises:
      InputError: a name matches nothing, or all files are empty.
    """
    found: dict[str, str] = {}  # path -> format
    for name in filter(None, (part.strip() for part in names.split(","))):
        paths = _expand(name)
        if not paths:
            raise InputError(
                f"`--{flag}` must name files that exist. Received: {name!r}, which "
                "matches none. Correct the path, or quote the glob."
            )
        found.update(paths)
    if not found:
        raise InputError(
            f"`--{flag}` must name the text: files, folders or globs, separated by "
            f"commas, or {PYTHON_DOCS}. Received: nothing."
        )
    files = [_describe(path, found[path]) for path in sorted(found)]
    if not any(file.num_bytes for file in files):
        raise InputError(f"All files of the input are empty. Received: {names}.")
    return files


def cut(file: InputFile, config: DataConfig, piece_bytes: int) -> list[Piece]:
    """Cuts a file into pieces of about `piece_bytes`, at document boundaries."""
    if file.num_bytes <= piece_bytes or not _is_divisible(file, config):
        return [Piece(file, 0, file.num_bytes)]
    boundaries = [0]
    with open(file.path, "rb") as stream:
        while (target := boundaries[-1] + piece_bytes) < file.num_bytes:
            stream.seek(target)
            stream.readline()  # what is left of a line that began before
            if file.format == "text" and config.document == "paragraph":
                _skip_paragraph(stream)
            boundaries.append(stream.tell())
    boundaries = [b for b in boundaries if b < file.num_bytes] + [file.num_bytes]
    return [Piece(file, start, end) for start, end in itertools.pairwise(boundaries)]


def read_documents(piece: Piece, config: DataConfig) -> Iterator[str]:
    """Yields the documents of a piece that hold more than white space.

    Raises:
      InputError: text that is not UTF-8, or a line that is not the JSON expected.
    """
    if piece.file.format == "jsonl":
        documents = _jsonl_documents(piece, config.text_field)
    elif piece.file.format == "python":
        documents = iter(_python_documentation(piece.file.path))
    elif config.document == "line":
        documents = (_decode(line, piece, at) for at, line in _lines(piece))
    elif config.document == "paragraph":
        documents = _paragraphs(piece)
    else:
        with open(piece.file.path, "rb") as stream:
            documents = iter([_decode(stream.read(), piece, 0)])
    return (document for document in documents if document.strip())


def _expand(name: str) -> dict[str, str]:
    """Returns the files that one name stands for, with their formats."""
    if name == PYTHON_DOCS:
        return dict.fromkeys(_python_files(), "python")
    if os.path.isdir(name):
        name = os.path.join(glob.escape(name), "**")
    paths = filter(os.path.isfile, glob.glob(name, recursive=True))
    return {path: "jsonl" if path.endswith(".jsonl") else "text" for path in paths}


def _describe(path: str, file_format: str) -> InputFile:
    with open(path, "rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
        return InputFile(path, file_format, stream.tell(), digest.hexdigest())


def _is_divisible(file: InputFile, config: DataConfig) -> bool:
    return file.format == "jsonl" or (
        file.format == "text" and config.document != "file"
    )


def _skip_paragraph(stream: BinaryIO) -> None:
    """Moves on to behind the next blank line."""
    while (line := stream.readline()) and line.strip():
        pass


def _lines(piece: Piece) -> Iterator[tuple[int, bytes]]:
    """Yields (offset in the file, line without its end)."""
    with open(piece.file.path, "rb") as stream:
        stream.seek(piece.start)
        offset = piece.start
        while offset < piece.end:
            line = stream.readline()
            if not line:
                return
            yield offset, line.rstrip(b"\r\n")
            offset += len(line)


def _paragraphs(piece: Piece) -> Iterator[str]:
    lines: list[str] = []
    for offset, line in _lines(piece):
        if line.strip():
            lines.append(_decode(line, piece, offset))
        elif lines:
            yield "\n".join(lines)
            lines = []
    if lines:
        yield "\n".join(lines)


def _jsonl_documents(piece: Piece, text_field: str) -> Iterator[str]:
    for offset, line in _lines(piece):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[text_field]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{piece.file.path}:{_line_number(piece, offset)}: each line must be "
                f"a JSON object with the field {text_field!r}. Received: {error!r}. "
                "Mend the line, or set `--config.data.text_field`."
            ) from error
        if not isinstance(text, str):
            raise InputError(
                f"{piece.file.path}:{_line_number(piece, offset)}: the field "
                f"{text_field!r} must be a string. Received: {type(text).__name__}."
            )
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"{piece.file.path}:{_line_number(piece, offset)}: the field "
                f"{text_field!r} must be Unicode text. It holds half of a surrogate "
                f"pair at character {error.start}. Mend the line or leave it out."
            ) from error
        yield text


def _line_number(piece: Piece, offset: int) -> int:
    with open(piece.file.path, "rb") as stream:
        return stream.read(offset).count(b"\n") + 1


def _decode(data: bytes, piece: Piece, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{piece.file.path} must be UTF-8. Byte {offset + error.start} is not: "
            f"{error.reason}. Convert the file (iconv -f … -t UTF-8) or leave it out."
        ) from error


def _python_files() -> list[str]:
    """The standard library's modules, and pydoc's topics, without tests."""
    root = sysconfig.get_paths()["stdlib"]
    paths = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _NOT_DOCUMENTATION]
        paths += [os.path.join(folder, name) for name in names if name.endswith(".py")]
    return paths


def _python_documentation(path: str) -> list[str]:
    """Returns pydoc's topics, a document each, or the docstrings of one module."""
    with open(path, encoding="utf-8") as stream:
        tree = ast.parse(stream.read())
    if path.endswith(os.path.join("pydoc_data", "topics.py")):
        assignments = [node for node in tree.body if isinstance(node, ast.Assign)]
        return list(ast.literal_eval(assignments[0].value).values())
    return ["\n\n\n".join(_docstrings(tree, ""))]


def _docstrings(node: ast.AST, prefix: str) -> Iterator[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if isinstance(node, documented) and (docstring := ast.get_docstring(node)):
        yield f"{prefix}\n\n{docstring}" if prefix else docstring
    for child in ast.iter_child_nodes(node):
        if isinstance(child, documented):
            name = getattr(child, "name", "")
            yield from _docstrings(child, f"{prefix}.{name}" if prefix else name)
