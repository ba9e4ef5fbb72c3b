"""Counts words, separated by white space, as fast as text is tokenized."""

import numpy as np


def count(text: bytes) -> int:
    """Returns `len(text.decode().split())`, several times faster."""
    kinds = np.frombuffer(text.translate(_KINDS), np.uint8)
    is_space = kinds == _SPACE
    candidates = np.flatnonzero(kinds == _MAY_BEGIN_SPACE)
    if len(candidates):
        codes = np.frombuffer(text + b"\0\0", np.uint8)
        characters = np.zeros(len(candidates), np.uint32)
        for size in (1, 2, 3):
            characters = characters << np.uint32(8) | codes[candidates + size - 1]
            for place in range(size):
                matches = np.isin(characters, _WIDE_SPACES)
                is_space[candidates[matches] + place] = True
    starts = np.count_nonzero(is_space[:-1] > is_space[1:])
    return int(starts) + int(len(is_space) > 0 and not is_space[0])


def _byte_kinds() -> tuple[bytes, np.ndarray]:
    """Returns the kind of each byte, and the UTF-8 codes of white space above ASCII."""
    spaces = [c.encode() for c in map(chr, range(0xD800)) if c.isspace()]
    kinds = bytearray(256)
    for space in spaces:
        kinds[space[0]] = _SPACE if len(space) == 1 else _MAY_BEGIN_SPACE
    wide = [int.from_bytes(space, "big") for space in spaces if len(space) > 1]
    return bytes(kinds), np.array(wide, np.uint32)


_SPACE, _MAY_BEGIN_SPACE = 1, 2
_KINDS, _WIDE_SPACES = _byte_kinds()
