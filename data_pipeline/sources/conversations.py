"""Conversations: rows with a list of messages."""

import json
from collections.abc import Callable

from configs.errors import DataError

ASSISTANT = "assistant"


def to_text(messages: object, name_row: Callable[[], str], field: str) -> str:
    """Returns the messages of a row's field as JSON.

    Raises:
      DataError: they are not a list of {"role": …, "content": …} with an assistant.
    """
    items = messages if isinstance(messages, list) else []
    roles, contents = (
        [item.get(key) if isinstance(item, dict) else None for item in items]
        for key in ("role", "content")
    )
    is_text = all(isinstance(value, str) for value in roles + contents)
    if not is_text or ASSISTANT not in roles:
        raise DataError(
            f"{name_row()}: the field {field!r} must be a list of objects, each with "
            f'"role" and "content" that are strings, one with the role {ASSISTANT!r}. '
            f"Received: {messages!r:.200}. Correct the row, or set "
            "`--config.data.messages_field`; `--config.data.null_text=skip` leaves out "
            "rows where it is null."
        )
    # A template prints other values, such as a date of a table, as texts.
    return json.dumps(messages, ensure_ascii=False, default=str)
