"""Writes continuations to files of text, several to a file."""

from collections.abc import Sequence

from tfrecords.storage import files

# Stands behind each sample, as gpt-2-simple's users expect.
DELIMITER = "=" * 20


def write(folder: str, texts: Sequence[Sequence[str]], num_files: int) -> list[str]:
    """Writes samples-00000.txt and so on; returns their paths.

    Args:
      folder: where to; local or gs://….
      texts: the continuations of each prompt. Each file has as many of every prompt.
      num_files: divides the number of a prompt's continuations.
    """
    paths = []
    for number in range(num_files):
        samples = [text for row in texts for text in row[number::num_files]]
        content = "".join(f"{text}\n{DELIMITER}\n" for text in samples)
        paths.append(files.join(folder, f"samples-{number:05d}.txt"))
        files.write(paths[-1], content.encode())
    return paths
