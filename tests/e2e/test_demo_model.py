"""The demo model: shipped head, and the synthetic drafter at several acceptance rates."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import engine as e
from support.reference import Reference
from vllm.sampling_params import StructuredOutputsParams

from vllm_ppsd.drafter.recorded import write_record
from vllm_ppsd.tools.prompts import chat_tokens

pytestmark = pytest.mark.e2e

TEXTS = ["Why is the sky blue?", "Write a haiku about rivers.", "What is 17 times 23?"]
TOKENS = 40
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"type": "string"}, "number": {"type": "integer"}},
    "required": ["colour", "number"],
}
GRAMMARS = [
    StructuredOutputsParams(json=SCHEMA),
    StructuredOutputsParams(regex=r"[A-Z][a-z]{3,9}, \d{2}"),
    StructuredOutputsParams(choice=["blue", "because of the air", "nobody knows"]),
    StructuredOutputsParams(grammar='root ::= "the " ("sky" | "sea") " is " [a-z]+'),
]


def prompts(llm) -> list[list[int]]:
    return [chat_tokens(llm.get_tokenizer(), text) for text in TEXTS]


def structured(llm, prompt: list[int]) -> list[e.Output]:
    return [e.generate(llm, prompt, e.params(TOKENS, structured_outputs=g)) for g in GRAMMARS]


def test_output_is_bit_identical_at_any_acceptance_rate(demo_model: Path, tmp_path: Path):
    record = tmp_path / "record.jsonl"
    sampling = e.params(TOKENS)
    options = {"kv_cache_memory_bytes": 2**27}
    with e.engine(demo_model, ppsd=e.PLAIN, **options) as plain:
        asked = prompts(plain)
        expected = [e.generate(plain, prompt, sampling) for prompt in asked]
        by_grammar = structured(plain, asked[0])
    write_record(record, [(p, o.tokens) for p, o in zip(asked, expected, strict=True)])
    drafter = {"record": str(record), "acceptance": 0.7}
    # With a head named as well, the head runs and the record replaces its drafts.
    ppsd = {"model": "ppsd", "synthetic_drafter": drafter, "exact": True}
    with e.engine(demo_model, ppsd=ppsd, **options) as llm:
        assert [e.generate(llm, prompt, sampling) for prompt in asked] == expected
        e.assert_drafted(llm)
        assert structured(llm, asked[0]) == by_grammar
        for acceptance in (0.0, 1.0):
            before = e.counts(llm)
            llm.collective_rpc("set_synthetic_acceptance", args=(acceptance,))
            assert [e.generate(llm, prompt, sampling) for prompt in asked] == expected
            after = e.counts(llm)
            drafts, hits = after[0] - before[0], after[1] - before[1]
            assert (drafts, hits) == (TOKENS * len(asked), acceptance * drafts)


@pytest.mark.parametrize("stages", [1, 2])
def test_by_default_it_answers_as_the_target_alone(demo_model: Path, stages: int):
    reference = Reference(demo_model)
    options = {"dtype": "float32", "kv_cache_memory_bytes": 2**28}
    with e.engine(demo_model, stages=stages, ppsd={"model": "ppsd"}, **options) as llm:
        asked = prompts(llm)
        outputs = [e.generate(llm, prompt, e.params(TOKENS)).tokens for prompt in asked]
        e.assert_drafted(llm)
        assert e.accepted_by_position(llm)[1] > 0, "no burst was accepted beyond its first token"
    assert outputs == [reference.greedy(prompt, TOKENS) for prompt in asked]
