"""Selects files by a path, a folder or a glob, on a disk or in a bucket (`gs://…`).

Nothing that a name selects is dropped: a folder that cannot be listed is an error, and
hidden files, which globs leave out by convention, are reported to the caller.
"""

import fnmatch
import glob
import os
import re
from collections.abc import Iterator, Sequence

from tfrecords.storage import gcs


def expand(name: str, hidden: set[str] | None = None) -> list[str]:
    """Returns the files that a path, a folder or a glob selects, sorted.

    Folders are searched recursively, also those that a glob selects. Globs follow
    `glob.glob`: `**` matches any number of folders, and hidden files are only selected
    by a pattern that starts with a dot.

    Args:
      name: the path, folder or glob.
      hidden: receives the hidden files and folders that are left out.

    Raises:
      OSError: a folder cannot be listed.
    """
    hidden = set() if hidden is None else hidden
    if gcs.is_remote(name):
        return _expand_remote(name, hidden)
    if os.path.isdir(name):
        return sorted(_select(name, ["**"], hidden))
    if not name or os.path.lexists(name):
        return [name] if name else []
    parts = name.split("/")
    # A slash at the end selects folders alone, which are searched.
    patterns = [part for part in parts[:-1] if part] + [parts[-1] or "**"]
    return sorted(set(_select("/" if not parts[0] else "", patterns, hidden)))


def _select(
    folder: str,
    patterns: Sequence[str],
    hidden: set[str],
    above: frozenset[str] = frozenset(),
) -> Iterator[str]:
    """Yields the files of a folder, "" for the current one, that patterns select.

    Args:
      folder: to search.
      patterns: one for each level; folders that the last one matches are searched.
      hidden: receives what is left out.
      above: real paths of the folders that lead here. A link to one of them is not
        followed: what it holds is searched already.
    """
    first, *rest = patterns
    path = os.path.join(folder, first)
    if not glob.has_magic(first):  # it may stand in a folder that cannot be listed
        if os.path.isdir(path):
            yield from _select(path, rest or ["**"], hidden, above)
        elif not rest and os.path.lexists(path):
            yield path
        return
    if first == "**" and rest:
        yield from _select(folder, rest, hidden, above)
    real_path = os.path.realpath(folder)
    if real_path in above:
        return
    try:
        with os.scandir(folder or ".") as entries:
            listed = [(entry.name, entry.is_dir()) for entry in entries]
    except FileNotFoundError:  # a run may remove an old checkpoint meanwhile
        return
    for name, is_folder in listed:
        path = os.path.join(folder, name)
        if first != "**" and not fnmatch.fnmatchcase(name, first):
            continue
        if rest and not is_folder:
            continue
        if name.startswith(".") and not first.startswith("."):
            hidden.add(path)
        elif is_folder:
            deeper = patterns if first == "**" else rest or ["**"]
            yield from _select(path, deeper, hidden, above | {real_path})
        else:
            yield path


def _expand_remote(name: str, hidden: set[str]) -> list[str]:
    """Returns the objects of a bucket; see `expand`."""
    bucket, pattern = gcs.split(name)
    prefix = re.split(r"[*?\[]", pattern)[0]
    # Not by `match_glob`: it selects hidden files, and fake-gcs-server ignores it.
    with gcs.translate_errors(name):
        listed = [b.name for b in gcs.client().list_blobs(bucket, prefix=prefix)]
    names = [n for n in listed if not n.endswith("/")]  # placeholders of folders
    if pattern in names:
        return [name]
    folder = f"{pattern.rstrip('/')}/" if pattern else ""
    if any(n.startswith(folder) for n in names):
        pattern = f"{glob.escape(folder)}**"
    patterns = pattern.split("/")
    if not patterns[-1]:  # a slash at the end selects folders alone
        patterns[-1:] = ["**", "*"]
    selected = []
    for object_name in names:
        parts = object_name.split("/")
        if _matches(parts, patterns):
            selected.append(f"gs://{bucket}/{object_name}")
        elif _matches([part.lstrip(".") for part in parts], patterns):
            hidden.add(f"gs://{bucket}/{object_name}")
    return sorted(selected)


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Returns whether patterns select a path, or a folder that it is in."""
    if not patterns:
        return not any(part.startswith(".") for part in parts)
    if patterns[0] == "**" and _matches(parts, patterns[1:]):
        return True
    if not parts or (parts[0].startswith(".") and not patterns[0].startswith(".")):
        return False
    if patterns[0] == "**":
        return _matches(parts[1:], patterns)
    is_match = fnmatch.fnmatchcase(parts[0], patterns[0])
    return is_match and _matches(parts[1:], patterns[1:])
