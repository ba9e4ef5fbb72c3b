"""Finds documents that repeat an earlier one, before the corpus is split.

Workers hash the documents of each chunk. The hashes of all chunks together, 128 bits of
SHA-256 for each document, show which documents are repetitions.
"""

import numpy as np

from data_pipeline import finished_work
from data_pipeline.documents.chunk import Chunk
from tfrecords.storage import files

_HASH_BYTES = 16
_LEFT_OUT = bytes(_HASH_BYTES)


def hash_documents(item: tuple[Chunk, str]) -> str:
    """Writes the hashes of a chunk's documents, unless that is done.

    Args:
      item: (chunk, folder for the file).

    Returns:
      The path of a file with uint64 [num_documents, 2].
    """
    chunk, folder = item
    path = f"{folder}/{chunk.name}.hashes"

    def work() -> tuple[list[str], dict]:
        hashes = [
            _LEFT_OUT if document.skipped else document.identity[:_HASH_BYTES]
            for document in chunk.documents()
        ]
        files.write(path, b"".join(hashes))
        return [path], {}

    finished_work.do_once(f"{path}.json", chunk.fingerprint, work)
    return path


def find(paths: list[str], first: int) -> list[tuple[int, ...]]:
    """Returns, for each chunk, the numbers of its documents that are repetitions.

    Takes about 60 bytes of memory a document.

    Args:
      paths: of the hashes of all chunks.
      first: index of the chunk to begin with. The chunks from there on, those of the
        validation files, keep documents that the chunks before it have as well.
    """
    order = [*range(first, len(paths)), *range(first)]
    parts = [np.frombuffer(files.read(paths[i]), "<u8").reshape(-1, 2) for i in order]
    hashes = np.concatenate(parts)
    places = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: the first stays first
    ordered = hashes[places]
    repeated = np.zeros(len(hashes), bool)
    repeated[places[1:]] = (ordered[1:] == ordered[:-1]).all(axis=1)
    repeated &= hashes.any(axis=1)  # documents that are left out anyway
    numbers: list[tuple[int, ...]] = [()] * len(paths)
    ends = np.cumsum([len(part) for part in parts])
    for index, of_chunk in zip(order, np.split(repeated, ends[:-1]), strict=True):
        numbers[index] = tuple(np.flatnonzero(of_chunk).tolist())
    return numbers
