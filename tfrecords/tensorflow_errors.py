"""Extracts the useful line of TensorFlow's errors."""

import re

# Lines that locate an error in a graph or in Python code.
_LOCATION_PREFIXES = (
    "[[",
    "Detected at",
    "Graph execution error",
    "File ",
    "<stack",
    "(",
)


# What the system says of a file, also of one below a relative path; or a full path.
_FILE = re.compile(
    r"No such file or directory|Permission denied|(?<![\w./:])(/|\w+://)[^\s/]"
)


def root_cause(error: Exception) -> str:
    """Returns the line of a TensorFlow error that states what happened.

    The other lines name nodes of the graph and stack frames.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (_statements(lines) or lines or [type(error).__name__])[-1]


def is_about_file(error: Exception) -> bool:
    """Returns whether an error is about a file or a folder, which it names.

    TensorFlow raises NotFoundError and others of its kind also about parts of itself,
    such as a compiler that a wheel does not have.
    """
    lines = [line.strip() for line in str(error).splitlines()]
    return any(_FILE.search(line) for line in _statements(lines))


def _statements(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith(_LOCATION_PREFIXES)]
