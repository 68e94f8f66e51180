"""A vLLM that was not asked for PPSD is left alone, even where PPSD does not fit."""

from __future__ import annotations

import subprocess
import sys

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams

from vllm_ppsd.contract.entries import Kind
from vllm_ppsd.plugin import register


def test_register_is_reentrant():
    register()
    register()


def test_without_ppsd_the_hooked_functions_behave_as_stock():
    register()
    assert EngineArgs("x").create_speculative_config(None, None) is None
    params = SamplingParams(min_p=0.5)
    params._validate_spec_decode(None)

    class Ngram:
        method = "ngram"

    with pytest.raises(VLLMValidationError, match="min_p"):
        params._validate_spec_decode(Ngram())


def test_with_ppsd_no_sampling_parameter_is_refused():
    register()

    class PPSD:
        method = "ppsd"
        is_pipelined = True

    SamplingParams(min_p=0.5, logit_bias={1: 1.0})._validate_spec_decode(PPSD())


MISFIT = """
import vllm_ppsd.contract.check as check
from dataclasses import replace
stated = check.contract_for(check.installed_vllm()[1])
changed = [e for e in stated.entries if e.kind == KIND][0]
entries = [replace(e, digest="0" * 12) if e == changed else e for e in stated.entries]
check.contract_for = lambda _: replace(stated, files="", entries=tuple(entries))
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.config.vllm import VllmConfig
stock = VllmConfig.__dict__["max_concurrent_batches"]
from vllm_ppsd.plugin import register
register(); register()
assert VllmConfig.__dict__["max_concurrent_batches"] is stock
assert EngineArgs("x").create_speculative_config(None, None) is None
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
given = EngineArgs.from_cli_args(parser.parse_args(["--model", "x", "--speculative-model", "ppsd"]))
try:
    given.create_speculative_config(None, None)
except ValueError as error:
    assert "does not fit this vLLM" in str(error) and "doctor" in str(error), error
    assert changed.target in str(error), error
    print("refused")
"""


@pytest.mark.parametrize("kind", ["hook", "override"])
def test_where_anything_does_not_fit_only_ppsd_is_refused(kind: Kind):
    result = subprocess.run(
        [sys.executable, "-c", MISFIT.replace("KIND", repr(kind))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "refused" in result.stdout, result.stderr
