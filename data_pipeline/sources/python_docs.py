"""The text inside Python: docstrings of the standard library, and pydoc's topics."""

import ast
import os
import sysconfig
from collections.abc import Iterator

from configs.schema import DataConfig
from data_pipeline.documents import document
from data_pipeline.documents.document import Document
from data_pipeline.sources.input_files import Piece

_OTHER_FOLDERS = {
    *("site-packages", "dist-packages", "test", "tests", "idle_test"),
    *("__pycache__", "_bundled"),
}


def list_files(name: str, config: DataConfig) -> list[str]:
    """Returns the modules of the standard library, without tests."""
    del name, config
    paths = []
    for folder, subfolders, names in os.walk(sysconfig.get_paths()["stdlib"]):
        subfolders[:] = [name for name in subfolders if name not in _OTHER_FOLDERS]
        paths += [os.path.join(folder, name) for name in names if name.endswith(".py")]
    return paths


def read(piece: Piece, config: DataConfig) -> Iterator[Document]:
    """Yields pydoc's topics, a document each, or the docstrings of one module."""
    path = piece.file.path
    with open(path, encoding="utf-8") as stream:
        tree = ast.parse(stream.read())
    if path.endswith(os.path.join("pydoc_data", "topics.py")):
        assignments = [node for node in tree.body if isinstance(node, ast.Assign)]
        texts = list(ast.literal_eval(assignments[0].value).values())
    else:
        texts = ["\n\n\n".join(_docstrings(tree, ""))]
    for text in texts:
        yield document.make(text.encode(), config)


def _docstrings(node: ast.AST, prefix: str) -> Iterator[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if isinstance(node, documented) and (docstring := ast.get_docstring(node)):
        yield f"{prefix}\n\n{docstring}" if prefix else docstring
    for child in ast.iter_child_nodes(node):
        if isinstance(child, documented):
            name = getattr(child, "name", "")
            yield from _docstrings(child, f"{prefix}.{name}" if prefix else name)
