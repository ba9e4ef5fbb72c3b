"""Finds documents that are the same as an earlier one, before the corpus is split.

Each chunk's documents are hashed by themselves; the hashes of all chunks together say
which documents are repeated. A hash has 128 bits of SHA-256.
"""

import numpy as np

from data_pipeline import chunks, markers
from data_pipeline.chunks import Chunk
from tfrecords.storage import files

_HASH_BYTES = 16
_LEFT_OUT = bytes(_HASH_BYTES)


def hash_documents(chunk: Chunk) -> tuple[Chunk, str]:
    """Writes the hashes of a chunk's documents, unless that is done; returns the path.

    The file holds uint64 [documents, 2], in their order.
    """
    path = f"{chunk.path}.hashes"
    marker, item = f"{path}.json", chunk.fingerprint
    if markers.load(marker, item) is None:
        hashes = [
            _LEFT_OUT if document.skipped else document.identity[:_HASH_BYTES]
            for document in chunks.read_documents(chunk)
        ]
        files.write(path, b"".join(hashes))
        markers.save(marker, item, [path], {})
    return chunk, path


def find(paths: list[str], first: int) -> list[tuple[int, ...]]:
    """Returns, for each chunk, the numbers of its documents that are repetitions.

    Takes about 60 bytes of memory a document.

    Args:
      paths: of the hashes of all chunks.
      first: index of the chunk that the search begins with. What stands there and
        behind, the validation files, keeps what the chunks before it also hold.
    """
    order = [*range(first, len(paths)), *range(first)]
    parts = [np.frombuffer(files.read(paths[i]), "<u8").reshape(-1, 2) for i in order]
    hashes = np.concatenate(parts)
    places = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: the first stays first
    ordered = hashes[places]
    repeated = np.zeros(len(hashes), bool)
    repeated[places[1:]] = (ordered[1:] == ordered[:-1]).all(axis=1)
    repeated &= hashes.any(axis=1)  # what is left out anyway repeats nothing
    found: list[tuple[int, ...]] = [()] * len(paths)
    begin = 0
    for index, part in zip(order, parts, strict=True):
        inside = repeated[begin : begin + len(part)]
        found[index] = tuple(np.flatnonzero(inside).tolist())
        begin += len(part)
    return found
