"""Two nodes over a link with a delay: the target's own text, at the usual depth and deeper."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.reference import Reference
from support.server import OPTIONS, Tiny

from benchmarks.servers import serving_two_nodes
from benchmarks.slow_link import SlowLink

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

TOKENS = 40


@pytest.mark.parametrize("depth", [1, 4])
def test_text_is_the_targets(tiny_llama: Path, tmp_path: Path, depth: int):
    options = [*OPTIONS, "--dtype", "float32", "--spec-tokens", str(depth)]
    with (
        SlowLink(0.005) as link,
        link.inside(0),
        serving_two_nodes(
            tiny_llama, tmp_path / "server.log", link, *options, cores=["0", "1"]
        ) as up,
    ):
        server = Tiny(up.port, up.process, up.log)
        answer = server.ask(TOKENS).choices[0]
        drafts = server.metric("spec_decode_num_draft_tokens_total")
        hits = server.metric("spec_decode_num_accepted_tokens_total")
    assert 0 < hits < drafts
    assert answer.token_ids == Reference(tiny_llama).greedy(answer.prompt_token_ids, TOKENS)
