"""Counts words, between white space, at the speed at which text is tokenized."""

import numpy as np


def count(text: bytes) -> int:
    """Returns `len(text.decode().split())`, several times faster."""
    kinds = np.frombuffer(text.translate(_KINDS), np.uint8)
    space = kinds == _SPACE
    maybe = np.flatnonzero(kinds == _MAY_BEGIN_SPACE)
    if len(maybe):
        codes = np.frombuffer(text + b"\0\0", np.uint8)
        found = np.zeros(len(maybe), np.uint32)
        for size in (1, 2, 3):
            found = found << np.uint32(8) | codes[maybe + size - 1]
            for place in range(size):
                space[maybe[np.isin(found, _WIDE_SPACES)] + place] = True
    starts = np.count_nonzero(space[:-1] > space[1:])
    return int(starts) + int(len(space) > 0 and not space[0])


def _byte_kinds() -> tuple[bytes, np.ndarray]:
    """What `count` looks up: a kind for each byte, and white space in UTF-8."""
    spaces = [c.encode() for c in map(chr, range(0xD800)) if c.isspace()]
    kinds = bytearray(256)
    for space in spaces:
        kinds[space[0]] = _SPACE if len(space) == 1 else _MAY_BEGIN_SPACE
    wide = [int.from_bytes(space, "big") for space in spaces if len(space) > 1]
    return bytes(kinds), np.array(wide, np.uint32)


_SPACE, _MAY_BEGIN_SPACE = 1, 2
_KINDS, _WIDE_SPACES = _byte_kinds()
