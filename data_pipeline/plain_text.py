"""Plain text and the text inside Python: pieces -> documents."""

import ast
import hashlib
import io
import itertools
import os
from collections.abc import Iterator

from configs.schema import DataConfig
from data_pipeline import documents
from data_pipeline.documents import Document
from data_pipeline.sources import Piece


def blocks(piece: Piece, config: DataConfig) -> Iterator[Document]:
    """A line, or the lines between blank ones, is a document."""
    if config.document == "line":
        yield from _line_documents(piece, config)
        return
    block: list[bytes] = []
    start, size = piece.start, 0
    for offset, line in documents.lines(piece):
        if line.strip():
            start = start if block else offset
            size = size + len(line) if block else len(line)
            documents.check_size(size, piece.file)
            block.append(line)
        elif block:
            yield _text_block(b"".join(block), start, piece, config)
            block = []
    if block:
        yield _text_block(b"".join(block), start, piece, config)


def _line_documents(piece: Piece, config: DataConfig) -> Iterator[Document]:
    for offset, group in documents.line_groups(piece):
        text, noticed = documents.valid_utf8(group, piece, offset, config)
        if not noticed and documents.is_clean(text):  # almost always, and much faster
            for line in text.removesuffix(b"\n").split(b"\n"):
                yield Document(
                    (line,), skipped=documents.EMPTY if documents.is_blank(line) else ""
                )
            continue
        for line in io.BytesIO(group):
            yield _text_block(line, offset, piece, config)
            offset += len(line)


def _text_block(data: bytes, offset: int, piece: Piece, config: DataConfig) -> Document:
    text, noticed = documents.valid_utf8(data, piece, offset, config)
    return documents.make(text, config, end=b"\n", noticed=noticed)


def whole_file(piece: Piece, config: DataConfig) -> Iterator[Document]:
    """The file is one document, read in groups of lines."""
    file_hash, is_utf8 = bytes.fromhex(piece.file.sha256), True
    if piece.file.compression or config.encoding_errors == "skip":
        file_hash, is_utf8 = _scan(piece)
    document = Document((b"",), file_hash)
    if not is_utf8 and config.encoding_errors == "skip":
        document.skipped = documents.INVALID_UTF8
        yield document
        return

    def parts() -> Iterator[bytes]:
        for offset, group in documents.line_groups(piece):
            text, noticed = documents.valid_utf8(group, piece, offset, config)
            part = documents.make(text, config, noticed=noticed)
            document.noticed |= part.noticed
            yield from part.parts

    text = parts()
    blank = []  # what stands before the first word
    for part in text:
        blank.append(part)
        if not documents.is_blank(part):
            document.parts = itertools.chain(blank, text)
            yield document
            return
    document.skipped = documents.EMPTY
    yield document


def _scan(piece: Piece) -> tuple[bytes, bool]:
    """Returns a file's hash and whether it is UTF-8, by reading it once more."""
    digest, is_utf8 = hashlib.sha256(), True
    for _, group in documents.line_groups(piece):
        digest.update(group)
        try:
            group.decode()
        except UnicodeDecodeError:
            is_utf8 = False
    return digest.digest(), is_utf8


def python_documentation(path: str) -> list[str]:
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
