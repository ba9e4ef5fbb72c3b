"""A document, and the rules for bytes that are unusual in text.

Whatever is wrong with the bytes is an error, or is repaired and counted, as
`config.data.encoding_errors` says.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Set

from configs.errors import DataError
from configs.schema import DataConfig

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# The manifest counts documents with these: repaired, kept as they are, or left out.
BYTE_ORDER_MARK, INVALID_UTF8 = "byte_order_mark", "invalid_utf8"
CRLF, NUL = "crlf", "nul"
REPAIRED, KEPT = {BYTE_ORDER_MARK, INVALID_UTF8}, {CRLF, NUL}
# Occurrences, not documents, of "<|endoftext|>" and the like that are kept as text.
SPECIAL_TOKEN_AS_TEXT = "special_token_as_text"
# Occurrences of unknown tokens; documents that do not decode to themselves.
LOSSES = ("unknown_token", "text_changed_by_tokenizer")
EMPTY, DUPLICATE, NULL = "empty", "duplicate", "null"

NO_ODDITIES: Set[str] = frozenset()
_INTEGER = re.compile(r"[+-]?[0-9]{1,10}")
_STARTS_WITH_WORD = re.compile(rb"\s*[!-~]")


@dataclasses.dataclass(slots=True)
class Document:
    """One document.

    Attributes:
      parts: the text, UTF-8, in one part. A large text comes in several, cut at line
        ends.
      file_hash: SHA-256 of the file, if the file is one document.
      label: of labelled data: an integer in decimal digits, or a name; otherwise "".
      num_prompt_bytes: of completion data: how many bytes of the text are the prompt.
      oddities: names in REPAIRED and KEPT; complete after all parts were read.
      skipped: why the document must be left out, or "".
    """

    parts: tuple[bytes] | Iterator[bytes]
    file_hash: bytes = b""
    label: str = ""
    oddities: Set[str] = NO_ODDITIES
    skipped: str = ""
    num_prompt_bytes: int = 0

    @property
    def identity(self) -> bytes:
        """SHA-256 of the text: two documents with the same text are the same."""
        if self.file_hash:
            return self.file_hash
        (text,) = self.parts
        return hashlib.sha256(text).digest()


def make(
    text: bytes,
    config: DataConfig,
    *,
    label: str = "",
    end: bytes = b"",
    oddities: Set[str] = NO_ODDITIES,
) -> Document:
    """Makes a document of one part, and notes what is odd or empty about it.

    Args:
      text: valid UTF-8.
      config: `encoding_errors` decides whether repaired text is left out.
      label: of labelled data.
      end: line end to remove from the end of the text; CRLF counts as LF.
      oddities: known already.
    """
    if b"\r" in text and b"\r\n" in text:  # the first test is much faster
        oddities |= {CRLF}
        if end and text.endswith(b"\r\n"):
            end = b"\r\n"
    if b"\0" in text:
        oddities |= {NUL}
    text = text.removesuffix(end)
    skipped = EMPTY if is_blank(text) else ""
    if INVALID_UTF8 in oddities and config.encoding_errors == "skip":
        skipped = INVALID_UTF8
    return Document((text,), b"", label, oddities, skipped)


def is_integer(label: str) -> bool:
    """Returns whether a label is an integer of 32 bits."""
    return bool(_INTEGER.fullmatch(label)) and -(1 << 31) <= int(label) < 1 << 31


def is_clean(text: bytes) -> bool:
    """Returns whether `make` would find no oddity in any line of the text."""
    return b"\r" not in text and b"\0" not in text


def is_blank(text: bytes) -> bool:
    """Returns whether a text is only white space, as Unicode defines it."""
    if _STARTS_WITH_WORD.match(text):
        return False
    return not text.strip() or text.decode().isspace()


def repair_utf8(
    data: bytes, path: str, offset: int, config: DataConfig
) -> tuple[bytes, Set[str]]:
    """Makes bytes of a file valid UTF-8.

    Args:
      data: bytes of the file.
      path: of the file, for the message.
      offset: of the bytes in the decompressed file.
      config: `encoding_errors` decides about invalid bytes.

    Returns:
      The bytes without a byte order mark and invalid UTF-8, and the names of both
      oddities if they were there.

    Raises:
      DataError: the bytes are invalid, and `encoding_errors` is "stop".
    """
    oddities = NO_ODDITIES
    if offset == 0 and data.startswith(_BYTE_ORDER_MARK):
        data = data.removeprefix(_BYTE_ORDER_MARK)
        offset = len(_BYTE_ORDER_MARK)
        oddities |= {BYTE_ORDER_MARK}
    try:
        data.decode()
    except UnicodeDecodeError as error:
        if config.encoding_errors == "stop":
            raise DataError(
                f"{path} must be UTF-8. Byte {offset + error.start} is not: "
                f"{error.reason}. Convert the file (iconv -f … -t UTF-8), or set "
                "`--config.data.encoding_errors` to replace or skip."
            ) from error
        data = data.decode("utf-8", "replace").encode()
        oddities |= {INVALID_UTF8}
    return data, oddities
