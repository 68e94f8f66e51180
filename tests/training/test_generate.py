"""Generating text: which prompts are asked, and what an engine kept full gives back."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.tiny import make_tiny_model

from vllm_ppsd.config.errors import TrainingError
from vllm_ppsd.tools.prompts import Prompt
from vllm_ppsd.training.generate import answer, generate
from vllm_ppsd.training.recipe import Generation, Recipe


class ReversingEngine:
    """Answers the newest request first, with its prompt reversed."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, list[int]]] = []
        self.fewest_before_a_step: list[int] = []

    def add_request(self, request_id: str, prompt: dict[str, list[int]], _: Any) -> None:
        self.requests.append((request_id, prompt["prompt_token_ids"]))

    def get_num_unfinished_requests(self) -> int:
        return len(self.requests)

    def has_unfinished_requests(self) -> bool:
        return bool(self.requests)

    def step(self) -> list[Any]:
        self.fewest_before_a_step.append(len(self.requests))
        request_id, tokens = self.requests.pop()
        completion = SimpleNamespace(token_ids=tokens[::-1])
        return [SimpleNamespace(request_id=request_id, outputs=[completion])]


class Tokenizer:
    chat_template = None

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]


def llm() -> Any:
    return SimpleNamespace(
        llm_engine=ReversingEngine(),
        renderer=SimpleNamespace(render_cmpl=list),
        get_tokenizer=Tokenizer,
    )


def prompts(*texts: str) -> list[tuple[Prompt, float]]:
    return [(Prompt(text, "set"), 0.0) for text in texts]


def test_every_shard_gets_its_own_answers_in_the_order_asked():
    jobs = {3: prompts("ab", "cd"), 5: prompts("ef"), 6: prompts("gh", "ij", "kl")}
    shards = {shard.index: shard for shard in answer(llm(), jobs, 4, 8, 8)}
    assert sorted(shards) == [3, 5, 6]
    for index, shard in shards.items():
        asked = [[ord(c) for c in prompt.text] for prompt, _ in jobs[index]]
        assert [d.prompt for d in shard.documents] == asked
        assert [d.output for d in shard.documents] == [tokens[::-1] for tokens in asked]


def test_the_engine_is_kept_full_while_prompts_are_left():
    engine = llm()
    jobs = {index: prompts("ab", "cd") for index in range(5)}
    assert len(list(answer(engine, jobs, 4, 8, 8))) == 5
    assert min(engine.llm_engine.fewest_before_a_step[:-4]) >= 4


def test_a_shard_of_too_long_prompts_alone_is_empty_and_counted():
    (shard,) = answer(llm(), {0: prompts("much too long", "as long as that")}, 4, 8, 3)
    assert (shard.documents, shard.left_out) == ([], 2)


def test_answers_longer_than_the_model_sees_are_refused(tmp_path: Path):
    model = make_tiny_model(tmp_path, "mistral")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 16}))
    recipe = Recipe(model=str(model), exit_layer=1, generation=Generation(max_tokens=16))
    with pytest.raises(TrainingError, match="positions of 16"):
        generate(recipe, tmp_path / "work", torch.device("cpu"))
