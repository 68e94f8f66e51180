"""The user's turn in the rows of usual data sets: nothing of it is lost without a word."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_ppsd.tools.prompt_rows import user_turn


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def of(role: str, content: Any) -> dict[str, Any]:
    return {"from": role, "value": content}


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"turns": ["one", "two"]}, "one"),
        ({"prompt": "one"}, "one"),
        ({"instruction": "one", "input": "", "output": "x"}, "one"),
        ({"instruction": "one", "input": "two", "output": "x"}, "one\n\ntwo"),
        ({"instruction": "one", "context": "two", "response": "x"}, "one\n\ntwo"),
        ({"prompt": "one", "input": "two"}, "one\n\ntwo"),
        ({"system": "be brief", "prompt": "one"}, "be brief\n\none"),
        ({"system_prompt": " ", "instruction": "one"}, "one"),
        ({"messages": [said("user", "one"), said("assistant", "x"), said("user", "two")]}, "one"),
        ({"messages": [said("system", "be brief"), said("user", "one")]}, "be brief\n\none"),
        ({"messages": [said("user", [{"type": "text", "text": "one"}])]}, "one"),
        ({"prompt": [said("user", "one")], "completion": [said("assistant", "x")]}, "one"),
        ({"conversations": [of("human", "one"), of("gpt", "x")]}, "one"),
        ({"conversations": [of("system", "be brief"), of("human", "one")]}, "be brief\n\none"),
        ({"prompt": "", "instruction": "one"}, "one"),
    ],
)
def test_the_whole_turn_is_read(row: dict[str, Any], text: str):
    assert user_turn(row) == text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "no JSON object"),
        ({}, "one of the fields turns, prompt, instruction, messages, conversations"),
        ({"text": "one"}, "one of the fields"),
        ({"turns": [{"q": "one"}]}, "turns holds dict, not text"),
        ({"turns": [["one"]]}, "turns holds list, not text"),
        ({"prompt": False}, "prompt holds bool, not text"),
        ({"prompt": ["one", "two"]}, "message 1 of prompt is no JSON object"),
        ({"prompt": "  "}, "prompt is blank"),
        ({"instruction": "one", "input": {"a": 1}}, "input holds dict, not text"),
        ({"system": 3, "prompt": "one"}, "system holds int, not text"),
        ({"messages": "one"}, "messages holds str, not messages"),
        ({"messages": {"role": "user"}}, "messages holds dict"),
        ({"messages": [said("assistant", "hello"), said("user", "one")]}, "role 'assistant'"),
        ({"messages": [said("system", "be brief")]}, "no message of the user"),
        ({"messages": [said("user", [{"type": "image_url"}])]}, "message 1 of messages holds list"),
        ({"messages": [{"user": "one"}]}, "message 1 of messages"),
        ({"prompt": "\ud83d"}, "surrogate"),
    ],
)
def test_what_cannot_be_told_whole_is_refused(row: Any, message: str):
    with pytest.raises(ValueError, match=message):
        user_turn(row)
