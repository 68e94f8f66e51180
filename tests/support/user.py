"""A user's own process with an ``LLM``, of which stage 0 hangs amid a request.

Run as a script, with the target's folder.
"""

from __future__ import annotations

import sys

from vllm import LLM, SamplingParams

from support.breakable import BREAKABLE

if __name__ == "__main__":
    llm = LLM(
        sys.argv[1],
        pipeline_parallel_size=2,
        speculative_config={"method": "ppsd"},
        enforce_eager=True,
        max_model_len=256,
        kv_cache_memory_bytes=2**26,
        worker_extension_cls=BREAKABLE,
    )
    llm.collective_rpc("hang_stage", args=(0,))
    print("ready", flush=True)
    llm.generate("t5 t6 t7", SamplingParams(max_tokens=8))
