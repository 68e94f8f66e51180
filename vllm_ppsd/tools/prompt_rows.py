"""The user's turn in a row of the usual data sets: all that the user says, or an error.

- ``turns``: the first of them, as of MT-Bench;
- ``prompt``, or ``instruction`` as of Alpaca; it goes on with ``input`` or ``context``;
- ``messages``, ``conversations`` or a ``prompt`` of messages, each with ``role`` and
  ``content`` or ``from`` and ``value``: the user's first. Later ones answer what another model
  wrote.

A system prompt, in ``system``, ``system_prompt`` or a message of that role, stands before it.
"""

from __future__ import annotations

from typing import Any

FIELDS = ("turns", "prompt", "instruction", "messages", "conversations")
MORE = ("input", "context")
SYSTEM = ("system", "system_prompt")
USERS = ("user", "human", "prompter")


def user_turn(row: Any) -> str:
    """Return the user's turn in a row.

    Raises:
        ValueError: there is none, or not all of it can be told; says why.
    """
    if not isinstance(row, dict):
        raise ValueError("the line is no JSON object")
    field = next((field for field in FIELDS if row.get(field) not in (None, "", [])), None)
    if field is None:
        raise ValueError(f"one of the fields {', '.join(FIELDS)} must hold it")
    value = row[field]
    if field == "turns":
        parts = [_text(value[0] if isinstance(value, list) else value, field)]
    elif isinstance(value, list):
        parts = _conversation(value, field)
    else:
        parts = [_text(value, field), *_texts(row, MORE)]
    turn = "\n\n".join([*_texts(row, SYSTEM), *parts])
    try:
        turn.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{field} holds half of a surrogate pair, which is no text") from None
    return turn


def _texts(row: dict[str, Any], fields: tuple[str, ...]) -> list[str]:
    """Return the texts of those of the fields that hold anything."""
    given = {field: row.get(field) for field in fields}
    return [
        _text(value, field)
        for field, value in given.items()
        if value is not None and not (isinstance(value, str) and not value.strip())
    ]


def _conversation(messages: list[Any], field: str) -> list[str]:
    """Return the system's messages at the beginning, and the user's first."""
    parts: list[str] = []
    for number, message in enumerate(messages, start=1):
        place = f"message {number} of {field}"
        if not isinstance(message, dict):
            raise ValueError(f"{place} is no JSON object")
        role = message.get("role", message.get("from"))
        content = _text(message.get("content", message.get("value")), place)
        if role in USERS:
            return [*parts, content]
        if role != "system":
            raise ValueError(
                f"{place} is of the role {role!r}; a conversation must begin with the user, or "
                "with the system"
            )
        parts.append(content)
    raise ValueError(f"{field} holds no message of the user")


def _text(value: Any, place: str) -> str:
    """Return a text that is not blank, or that of a list of parts as chat interfaces take it."""
    if isinstance(value, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in value
    ):
        value = "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise ValueError(f"{place} holds {type(value).__name__}, not text")
    if not value.strip():
        raise ValueError(f"{place} is blank")
    return value
