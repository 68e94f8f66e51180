"""What is in flight, what counts, what is flushed: plain Python, no vLLM imports.

``tick`` holds the values that travel. ``flight`` and ``numbering`` are the scheduler's side of the
protocol, ``drafting`` is stage 0's, ``pruning`` that of every stage before the last, ``retirement``
the scorer's (last stage); ``slots`` says on all of them where the entries of siblings are;
``load`` and ``costs`` decide which requests draft when many share the stages; ``bursts`` says how
long a request's lanes are. The adapters in
``vllm_ppsd.engine`` and ``vllm_ppsd.worker`` translate vLLM's structures into calls of these and
hold no rule of their own.
"""

from vllm_ppsd.protocol.acceptance import AcceptanceBook
from vllm_ppsd.protocol.bursts import BurstPlan
from vllm_ppsd.protocol.costs import TickCosts
from vllm_ppsd.protocol.diagonal import DiagonalBook
from vllm_ppsd.protocol.drafting import DraftBook, MissingDraftError
from vllm_ppsd.protocol.flight import Flight, flush, may_enter, steps_in_flight
from vllm_ppsd.protocol.load import Admitted, Decoding, FixedDepth, LoadPolicy
from vllm_ppsd.protocol.numbering import TickBook
from vllm_ppsd.protocol.pruning import OrderError, StaleBook, TickGate
from vllm_ppsd.protocol.retirement import RetirementBook
from vllm_ppsd.protocol.slots import SlotBook, SlotError, slot_blocks
from vllm_ppsd.protocol.tick import (
    Candidate,
    Copy,
    Draft,
    Drafts,
    Lane,
    Outcome,
    Retired,
    Shape,
    Tick,
    Verdict,
)

__all__ = [
    "AcceptanceBook",
    "Admitted",
    "BurstPlan",
    "Candidate",
    "Copy",
    "Decoding",
    "DiagonalBook",
    "Draft",
    "DraftBook",
    "Drafts",
    "FixedDepth",
    "Flight",
    "Lane",
    "LoadPolicy",
    "MissingDraftError",
    "OrderError",
    "Outcome",
    "Retired",
    "RetirementBook",
    "Shape",
    "SlotBook",
    "SlotError",
    "StaleBook",
    "Tick",
    "TickBook",
    "TickCosts",
    "TickGate",
    "Verdict",
    "flush",
    "may_enter",
    "slot_blocks",
    "steps_in_flight",
]
