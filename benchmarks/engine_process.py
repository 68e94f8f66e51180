"""An engine in a process of its own, of any checkout of the project.

Run as a script, this is that process: it starts an engine and answers lines of JSON. It
imports nothing of the project, whose older versions have other modules, and drives the
engine by vLLM's own ``LLM`` and ``collective_rpc``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

EXTENSION = "vllm_ppsd.tools.worker_extension.ToolsWorkerExtension"


class Run(NamedTuple):
    """One generated request.

    Attributes:
        tokens: output token ids.
        ms_per_token: of those behind the first.
        drafts: retired drafts.
        hits: among them.
    """

    tokens: list[int]
    ms_per_token: float
    drafts: int
    hits: int


class EngineProcess:
    """The parent's side."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def generate(
        self,
        prompt: Sequence[int],
        tokens: int,
        acceptance: float | None = None,
        temperature: float = 0.0,
    ) -> Run:
        """Generate exactly ``tokens`` tokens for one request, with seed 0.

        Args:
            prompt: token ids.
            tokens: output tokens.
            acceptance: of the synthetic drafter, if it is to change.
            temperature: of the answer.
        """
        request = {
            "prompt": list(prompt),
            "tokens": tokens,
            "acceptance": acceptance,
            "temperature": temperature,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Run(**self.receive())

    def receive(self) -> dict[str, Any]:
        """Return the next message of the process.

        Raises:
            RuntimeError: it has ended instead.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("an engine's process has ended; its log above says why")
        message: dict[str, Any] = json.loads(line)
        return message


@contextmanager
def engine_process(
    checkout: Path, variables: Mapping[str, str], **options: Any
) -> Iterator[EngineProcess]:
    """Start an engine of a checkout, and stop it at the end.

    Args:
        checkout: folder that holds the package ``vllm_ppsd``.
        variables: environment variables, over this process's.
        options: of ``vllm.LLM``.

    Raises:
        ValueError: ``checkout`` holds no such package.
        RuntimeError: the engine does not start.
    """
    package = checkout.resolve() / "vllm_ppsd" / "__init__.py"
    if not package.is_file():
        raise ValueError(f"{checkout} is no checkout of the project: it has no vllm_ppsd")
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | dict(variables) | {"PYTHONPATH": str(package.parent.parent)},
    )
    engine = EngineProcess(process)
    try:
        used = engine.receive()["package"]
        if Path(used) != package:
            raise RuntimeError(f"the engine runs {used}, not {package}")
        yield engine
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def _serve(options: dict[str, Any]) -> None:
    """Answer requests until the input ends."""
    # What vLLM prints goes elsewhere than the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    from vllm import LLM, SamplingParams

    import vllm_ppsd

    if "speculative_config" in options:
        options["per_request_spec_decode_metrics"] = "summary"
        # Before this module there was, the workers had its methods themselves.
        # (Not by the import system: an editable install would find another checkout's.)
        if Path(vllm_ppsd.__file__).with_name("tools").joinpath("worker_extension.py").is_file():
            options["worker_extension_cls"] = EXTENSION
    llm: Any = LLM(**options)

    def send(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    send({"package": vllm_ppsd.__file__})
    for line in sys.stdin:
        request = json.loads(line)
        if request["acceptance"] is not None:
            llm.collective_rpc("set_synthetic_acceptance", args=(request["acceptance"],))
        params = SamplingParams(
            temperature=request["temperature"],
            seed=0,
            ignore_eos=True,
            max_tokens=request["tokens"],
        )
        prompt = {"prompt_token_ids": request["prompt"]}
        (output,) = llm.generate([prompt], params, use_tqdm=False)
        seconds = output.metrics.last_token_ts - output.metrics.first_token_ts
        completion = output.outputs[0]
        metrics = completion.spec_decode_metrics
        histogram = metrics.histogram if metrics else []
        send(
            Run(
                list(completion.token_ids),
                1000 * seconds / (request["tokens"] - 1),
                metrics.num_draft_tokens if metrics else 0,
                sum(accepted * steps for accepted, steps in enumerate(histogram)),
            )._asdict()
        )
    llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
