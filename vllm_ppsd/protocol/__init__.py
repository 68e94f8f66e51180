"""What is in flight, what counts, what is flushed: plain Python, no vLLM imports.

``flight`` is the scheduler's side of the protocol, ``retirement`` the scorer's
(last stage), ``drafting`` the proposer's (stage 0); ``load`` and ``costs`` decide
which requests draft when many share the stages. The adapters in ``vllm_ppsd.engine``
and ``vllm_ppsd.worker`` translate vLLM's structures into calls of these and hold no
rule of their own.
"""

from vllm_ppsd.protocol.acceptance import AcceptanceBook
from vllm_ppsd.protocol.costs import TickCosts
from vllm_ppsd.protocol.diagonal import DiagonalBook
from vllm_ppsd.protocol.drafting import DraftBook, MissingDraftError, StaleBook, TickGate, Verdict
from vllm_ppsd.protocol.flight import Flight, flush, may_enter, steps_in_flight
from vllm_ppsd.protocol.load import Admitted, Decoding, FixedDepth, LoadPolicy
from vllm_ppsd.protocol.retirement import Lane, RetirementBook

__all__ = [
    "AcceptanceBook",
    "Admitted",
    "Decoding",
    "DiagonalBook",
    "DraftBook",
    "FixedDepth",
    "Flight",
    "Lane",
    "LoadPolicy",
    "MissingDraftError",
    "RetirementBook",
    "StaleBook",
    "TickCosts",
    "TickGate",
    "Verdict",
    "flush",
    "may_enter",
    "steps_in_flight",
]
