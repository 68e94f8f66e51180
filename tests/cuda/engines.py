"""``python -m tests.cuda.engines NAME MODEL TOKENS FILE``: one engine, in a process of its own.

Writes to the file what it has made, as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_ppsd.tools.engines import engine, generate
from vllm_ppsd.tools.prompts import chat_tokens

PROMPTS = (
    "Write a Python function that returns the n-th Fibonacci number.",
    "A baker sells 12 loaves in the morning and twice as many in the afternoon. How many is that?",
    "Write a short letter to a friend about a week in the mountains.",
)
SAMPLED = {"temperature": 0.8, "top_p": 0.95, "seed": 7}


@dataclass(frozen=True)
class Engine:
    """How an engine is started.

    Attributes:
        stages: of its pipeline.
        speculation: its speculative config, if any.
    """

    stages: int
    speculation: Mapping[str, Any] | None = None


PPSD = {"method": "ppsd"}
ENGINES = {
    "one device, plain": Engine(1, PPSD | {"num_speculative_tokens": 0}),
    "one device, n-gram": Engine(
        1, {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}
    ),
    "one device, PPSD": Engine(1, PPSD),
    "pipeline of two, plain": Engine(2, PPSD | {"num_speculative_tokens": 0}),
    "pipeline of two, PPSD, exact": Engine(2, PPSD | {"exact": True}),
    "pipeline of two, PPSD": Engine(2, PPSD),
}
"""By the name that the table shows."""


def main() -> None:
    """Run an engine over all prompts, greedily and sampled."""
    name, model, tokens, file = sys.argv[1:]
    how = ENGINES[name]
    with engine(
        model,
        stages=how.stages,
        speculative_config=dict(how.speculation) if how.speculation else None,
        max_model_len=1024,
        per_request_spec_decode_metrics="summary",
    ) as llm:
        tokenizer = llm.get_tokenizer()
        asked = [chat_tokens(tokenizer, text) for text in PROMPTS]
        generate(llm, asked[0], 8)
        print("timed from here", file=sys.stderr, flush=True)
        runs = [
            generate(llm, prompt, int(tokens), **sampling)
            for sampling in ({}, SAMPLED)
            for prompt in asked
        ]
    Path(file).write_text(
        json.dumps(
            {
                "answers": [run.tokens for run in runs],
                "ms_per_token": [run.ms_per_token for run in runs],
                "drafts": sum(run.drafts for run in runs),
                "hits": sum(run.hits for run in runs),
            }
        )
    )


if __name__ == "__main__":
    main()
