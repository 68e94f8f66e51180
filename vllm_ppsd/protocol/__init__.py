"""What is in flight, what counts, what is flushed: plain Python, no vLLM imports.

``tick`` holds the values that travel. ``flight`` and ``numbering`` are the scheduler's side of the
protocol, ``drafting`` is stage 0's, ``pruning`` that of every stage before the last, ``retirement``
the scorer's (last stage); on all of them ``places`` says where lanes stand, and ``slots`` where the
entries of siblings are; ``load`` and ``costs`` decide which requests draft when many share the
stages; ``burst_policy`` chooses how long lanes are and how many follow, by what ``plan_search``
finds with ``burst_value``. The adapters in ``vllm_ppsd.engine`` and ``vllm_ppsd.worker`` translate
vLLM's structures into calls of these and hold no rule of their own.
"""

from vllm_ppsd.protocol.acceptance import AcceptanceBook, Rates, StepBook
from vllm_ppsd.protocol.burst_policy import BurstPolicy
from vllm_ppsd.protocol.bursts import PLAIN, BurstPlan, StageTimes
from vllm_ppsd.protocol.costs import PartCosts, TickCosts
from vllm_ppsd.protocol.diagonal import DiagonalBook
from vllm_ppsd.protocol.drafting import DraftBook, MissingDraftError
from vllm_ppsd.protocol.flight import (
    Flight,
    flush,
    may_enter,
    steps_in_flight,
    without_replaced,
)
from vllm_ppsd.protocol.load import Admitted, Admitting, Decoding, FixedDepth, LoadPolicy
from vllm_ppsd.protocol.numbering import TickBook
from vllm_ppsd.protocol.places import PlaceBook
from vllm_ppsd.protocol.planned import FixedPlan, PlannedLoad
from vllm_ppsd.protocol.pruning import OrderError, StaleBook, TickGate
from vllm_ppsd.protocol.retirement import RetirementBook
from vllm_ppsd.protocol.slots import SlotBook, SlotError, slot_blocks
from vllm_ppsd.protocol.tick import (
    ON_DEVICE,
    Candidate,
    Copy,
    Draft,
    Drafts,
    Lane,
    Outcome,
    PartTimes,
    Retired,
    Shape,
    StagePass,
    Tick,
    Verdict,
)

__all__ = [
    "ON_DEVICE",
    "PLAIN",
    "AcceptanceBook",
    "Admitted",
    "Admitting",
    "BurstPlan",
    "BurstPolicy",
    "Candidate",
    "Copy",
    "Decoding",
    "DiagonalBook",
    "Draft",
    "DraftBook",
    "Drafts",
    "FixedDepth",
    "FixedPlan",
    "Flight",
    "Lane",
    "LoadPolicy",
    "MissingDraftError",
    "OrderError",
    "Outcome",
    "PartCosts",
    "PartTimes",
    "PlaceBook",
    "PlannedLoad",
    "Rates",
    "Retired",
    "RetirementBook",
    "Shape",
    "SlotBook",
    "SlotError",
    "StagePass",
    "StageTimes",
    "StaleBook",
    "StepBook",
    "Tick",
    "TickBook",
    "TickCosts",
    "TickGate",
    "Verdict",
    "flush",
    "may_enter",
    "slot_blocks",
    "steps_in_flight",
    "without_replaced",
]
