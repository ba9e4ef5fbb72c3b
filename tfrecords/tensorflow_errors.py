"""Extracts the useful line of TensorFlow's errors."""

# Lines that locate an error in a graph or in Python code.
_LOCATION_PREFIXES = (
    "[[",
    "Detected at",
    "Graph execution error",
    "File ",
    "<stack",
    "(",
)


def root_cause(error: Exception) -> str:
    """Returns the line of a TensorFlow error that states what happened.

    The other lines name nodes of the graph and stack frames.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    statements = [line for line in lines if not line.startswith(_LOCATION_PREFIXES)]
    return (statements or lines or [type(error).__name__])[-1]
