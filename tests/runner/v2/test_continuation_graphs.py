"""Continuation steps in graphs: drafts and key/value entries are those without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import runners, tape
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.forward_context import get_forward_context
from vllm.v1.worker.gpu import buffer_utils, cudagraph_utils
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.utils import AttentionGroup

from vllm_ppsd.drafter.drafted import Drafted
from vllm_ppsd.drafter.head import HeadDrafter
from vllm_ppsd.drafter.interface import Promising, Wanted
from vllm_ppsd.exit_head.module import Guess
from vllm_ppsd.runner.v2 import graphs as module
from vllm_ppsd.runner.v2.graphs import ContinuationGraphs
from vllm_ppsd.runner.v2.port import V2Port

LAYER = "head.attention"
HIDDEN, VOCABULARY = 8, 50
BLOCK, BLOCKS, NULL = 4, 64, 0
REQUESTS, LENGTH = 6, 32
SIZES = [1, 2, 4]
CPU = torch.device("cpu")


class Builder:
    """Keeps lengths in memory of its own from build to build, as backends do."""

    supports_update_block_table = False

    def __init__(self) -> None:
        self._lengths = torch.zeros(REQUESTS, dtype=torch.int32)

    def build(self, common_prefix_len: int, common: Any) -> Any:
        self._lengths[: common.num_reqs] = common.seq_lens
        return SimpleNamespace(
            blocks=common.block_table_tensor, lengths=self._lengths[: common.num_reqs]
        )

    def build_for_cudagraph_capture(self, common: Any) -> Any:
        return self.build(0, common)

    def build_for_drafting(self, common: Any, draft_index: int) -> Any:
        return self.build(0, common)


def groups() -> list[list[AttentionGroup]]:
    group: Any = AttentionGroup(None, [LAYER], None, 0)  # type: ignore[arg-type]
    group.metadata_builders = [Builder()]
    return [[group]]


class Head:
    """One layer that attends to all entries of a request, those before its own included."""

    attention_layers = frozenset({LAYER})
    token_ids = torch.arange(VOCABULARY)

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)
        self._embedding = torch.randn(VOCABULARY, HIDDEN, generator=random).double()
        self._lm_head = torch.randn(HIDDEN, VOCABULARY, generator=random).double()
        # The last one stands for nowhere.
        self.entries = torch.randn(BLOCKS * BLOCK + 1, HIDDEN, generator=random).double()

    def __call__(self, positions: torch.Tensor, final: torch.Tensor, tokens: torch.Tensor) -> Guess:
        context: Any = get_forward_context()
        attention, slots = context.attn_metadata[LAYER], context.slot_mapping[LAYER]
        state = torch.tanh(final + self._embedding[tokens] + positions[:, None] / LENGTH)
        nowhere = len(self.entries) - 1
        self.entries.index_copy_(0, torch.where(slots < 0, nowhere, slots), state)
        places = attention.blocks.to(torch.int64)[:, :, None] * BLOCK + torch.arange(BLOCK)
        places = places.flatten(1)
        seen = torch.arange(places.shape[1]) < attention.lengths[:, None]
        zero = torch.zeros((), dtype=torch.float64)
        attended = torch.where(seen[:, :, None], self.entries[places], zero).sum(1)
        made = torch.tanh(state + attended)
        logits = made @ self._lm_head
        probabilities, drafts = logits.softmax(-1).max(-1)
        return Guess(drafts, probabilities, logits, made)


def runner() -> Any:
    """Eight slots of V2's, each request in one of them with blocks of its own."""
    config = VllmConfig()
    config.compilation_config.cudagraph_capture_sizes = SIZES
    config.compilation_config.max_cudagraph_capture_size = max(SIZES)
    config.scheduler_config.max_num_seqs = REQUESTS
    tables = BlockTables([BLOCK], REQUESTS, 64, [LENGTH // BLOCK], CPU)
    blocks = torch.randperm(BLOCKS - 1, generator=torch.Generator().manual_seed(1)) + 1
    names = {chr(ord("a") + i): (i * 5 + 2) % REQUESTS for i in range(REQUESTS)}
    for slot, mine in enumerate(blocks[: REQUESTS * LENGTH // BLOCK].view(REQUESTS, -1).tolist()):
        tables.append_block_ids(slot, (mine,), overwrite=True)
    tables.apply_staged_writes()
    state: Any = SimpleNamespace(max_model_len=LENGTH, supports_mm_inputs=False)
    state.prepare_attn = partial(DefaultModelState.prepare_attn, state)
    return SimpleNamespace(
        vllm_config=config,
        device=CPU,
        model_config=SimpleNamespace(get_hidden_size=lambda: HIDDEN, dtype=torch.float64),
        model_state=state,
        attn_groups=groups(),
        block_tables=tables,
        kv_cache_config=SimpleNamespace(kv_cache_groups=[SimpleNamespace(layer_names=[LAYER])]),
        req_states=SimpleNamespace(req_id_to_index=names, max_num_reqs=REQUESTS),
    )


class Bench:
    """A drafter over V2's port, whose requests are all those of the batch."""

    def __init__(self, draw: Any = None) -> None:
        self.head, self.runner = Head(), runner()
        self.port: Any = V2Port(self.runner)
        self.drafter = HeadDrafter(self.head, self.head, self.port, draw, True)  # type: ignore[arg-type]
        self.graphs: ContinuationGraphs = self.port.graphs
        names = list(self.runner.req_states.req_id_to_index)
        self.port.lay_out(names)
        sampling = SamplingParams(temperature=1.0 if draw is not None else 0.0)
        new = [SimpleNamespace(req_id=name, sampling_params=sampling) for name in names]
        self.port.remember(SimpleNamespace(scheduled_new_reqs=new), [])

    def capture(self, mode: CUDAGraphMode = CUDAGraphMode.FULL_AND_PIECEWISE) -> Bench:
        before = self.head.entries.clone()
        self.graphs.init_cudagraph_manager(mode)
        self.graphs.capture()
        assert torch.equal(before[:-1], self.head.entries[:-1]), "captured rows write nothing"
        self.spoil()
        return self

    def spoil(self) -> None:
        """Leave something else in all that the graphs read but weights and entries."""
        graphs, tables = self.graphs, self.runner.block_tables
        if graphs._manager is None:
            return
        buffers = (graphs._buffers.positions, graphs._buffers.seq_lens, graphs._tokens)
        for buffer in (*buffers, graphs._buffers.query_start_loc, *tables.input_block_tables):
            buffer.fill_(1)
        tables.slot_mappings.fill_(NULL * BLOCK + 2)
        graphs._final.fill_(torch.nan)
        assert graphs._outputs is not None
        for buffer in graphs._outputs:
            buffer.fill_(torch.nan if buffer.is_floating_point() else 1)

    def go_on(
        self,
        lengths: Sequence[int],
        number: int = 0,
        promising: Promising | None = None,
        first: int = 0,
    ) -> Drafted:
        names = list(self.runner.req_states.req_id_to_index)
        wanted = [
            Wanted(first + i, names[first + i], 3 * (i + number) + 2, length=length)
            for i, length in enumerate(lengths)
        ]
        final = torch.linspace(-1, 1, len(lengths) * HIDDEN).view(-1, HIDDEN).double()
        tokens = [(7 * i + 3 * number) % VOCABULARY for i in range(len(lengths))]
        return self.drafter.go_on(final, tokens, wanted, promising)

    def replays(self) -> dict[int, int]:
        """Return by number of rows how often a graph was replayed."""
        assert self.graphs._manager is not None
        captured: dict[Any, Any] = self.graphs._manager.graphs
        return {desc.num_tokens: t.replayed for desc, t in captured.items() if t.replayed}


@pytest.fixture(autouse=True)
def tapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    runners.use(monkeypatch, "V2")
    tape.install(monkeypatch)
    monkeypatch.setattr(buffer_utils, "is_uva_available", lambda: False)
    one = SimpleNamespace(is_first_rank=True, is_last_rank=True)
    monkeypatch.setattr(cudagraph_utils, "get_pp_group", lambda: one)

    def own_groups(*_: Any, active_layer_names: set[str]) -> Any:
        assert active_layer_names == {LAYER}
        return groups(), None, None

    monkeypatch.setattr(module, "init_attn_backend", own_groups)
    with torch.inference_mode():
        yield


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    for way in ("info", "info_once"):
        monkeypatch.setattr(module.logger, way, lambda line, *args: lines.append(line % args))
    return lines


def check_same(graphed: Bench, eager: Bench, ours: Drafted, theirs: Drafted) -> None:
    """Assert the same drafts and entries; what graphs read next is made something else."""
    graphed.spoil()
    for mine, other in zip(ours.candidates(), theirs.candidates(), strict=True):
        assert [(d.token, d.step) for d in mine.drafts] == [(d.token, d.step) for d in other.drafts]
        assert [d.probability for d in mine.drafts] == pytest.approx(
            [d.probability for d in other.drafts]
        )
    # The last one is nowhere.
    torch.testing.assert_close(graphed.head.entries[:-1], eager.head.entries[:-1])


@pytest.mark.parametrize(("rows", "graph"), [(1, 1), (2, 2), (3, 4), (4, 4)])
def test_drafts_are_those_without_graphs(rows: int, graph: int):
    graphed, eager = Bench().capture(), Bench()
    for number in range(3):
        lengths = [4] * rows
        first = number % (REQUESTS - rows + 1)
        ours, theirs = (b.go_on(lengths, number, first=first) for b in (graphed, eager))
        check_same(graphed, eager, ours, theirs)
    assert graphed.replays() == {graph: 12}
    assert len({tuple(one.drafts) for one in theirs.candidates()}) == rows


def test_requests_that_stop_amid_a_burst_leave_smaller_graphs():
    graphed, eager = Bench().capture(), Bench()
    lengths = [2, 5, 1, 3]
    check_same(graphed, eager, graphed.go_on(lengths), eager.go_on(lengths))
    # Four rows make one step, three the next, one those behind the third.
    assert graphed.replays() == {4: 2, 2: 1, 1: 2}


def test_a_request_stops_behind_a_doubtful_draft():
    graphed, eager = Bench().capture(), Bench()

    def promising(one: Wanted, right: float) -> bool:
        return one.request_id != "b"

    ours, theirs = (b.go_on([4, 4, 4], promising=promising) for b in (graphed, eager))
    assert [len(one.drafts) for one in ours.candidates()] == [4, 1, 4]
    check_same(graphed, eager, ours, theirs)
    assert graphed.replays() == {4: 1, 2: 3}


def test_draws_are_made_outside_the_graph_from_what_it_left():
    drawn: list[torch.Tensor] = []

    def draw(shaped: torch.Tensor, *_: Any) -> torch.Tensor:
        drawn.append(shaped.clone())
        return shaped.argsort(-1)[:, -2]

    graphed, eager = Bench(draw).capture(), Bench(draw)
    check_same(graphed, eager, graphed.go_on([3, 3, 3]), eager.go_on([3, 3, 3]))
    for mine, other in zip(drawn[:3], drawn[3:], strict=True):
        torch.testing.assert_close(mine, other)
    assert graphed.replays() == {4: 3}


def test_a_later_step_changes_no_earlier_drafts():
    graphed = Bench().capture()
    graph = graphed.graphs.dispatch(2)
    assert graph is not None
    steps = graphed.graphs.steps(graph, [2, 0], [5, 9], 2)
    final = torch.zeros(2, HIDDEN, dtype=torch.float64)
    first = next(steps)(final, torch.tensor([1, 2]))
    before = first.drafts.clone(), first.probabilities.clone()
    next(steps)(first.final, first.drafts)
    graphed.spoil()
    assert torch.equal(first.drafts, before[0])
    assert torch.equal(first.probabilities, before[1])


def test_rows_that_nobody_asked_for_have_no_slot_and_attend_to_nothing():
    graphed = Bench().capture()
    graph = graphed.graphs.dispatch(3)
    assert graph is not None and graph.num_tokens == 4
    next(graphed.graphs.steps(graph, [4, 1, 3], [5, 9, 0], 1))
    buffers, tables = graphed.graphs._buffers, graphed.runner.block_tables
    assert tables.slot_mappings[0, 3:].unique().tolist() == [-1]
    assert buffers.seq_lens.tolist() == [6, 10, 1, 0, 0, 0]
    assert buffers.query_start_loc[:5].tolist() == [0, 1, 2, 3, 3]


def test_more_requests_than_the_largest_graph_run_without(logged: list[str]):
    graphed, eager = Bench().capture(), Bench()
    for _ in range(2):
        check_same(graphed, eager, graphed.go_on([2] * 5), eager.go_on([2] * 5))
    assert graphed.replays() == {}
    assert set(logged) == {
        "PPSD: the exit head goes on without a CUDA graph where more than 4 requests do at once"
    }


@pytest.mark.parametrize(
    ("mode", "lines"),
    [
        (CUDAGraphMode.NONE, []),
        (
            CUDAGraphMode.PIECEWISE,
            ["PPSD: the exit head goes on without CUDA graphs: cudagraph_mode is PIECEWISE"],
        ),
    ],
)
def test_nothing_is_captured_where_decoding_has_no_full_graphs(
    mode: CUDAGraphMode, lines: list[str], logged: list[str]
):
    graphed, eager = Bench().capture(mode), Bench()
    check_same(graphed, eager, graphed.go_on([2, 2]), eager.go_on([2, 2]))
    assert (graphed.graphs._manager, graphed.graphs.attn_groups) == (None, [])
    assert logged == lines


@pytest.mark.parametrize("mode", [CUDAGraphMode.FULL, CUDAGraphMode.FULL_DECODE_ONLY])
def test_other_modes_with_full_graphs(mode: CUDAGraphMode):
    graphed = Bench().capture(mode)
    graphed.go_on([1])
    assert graphed.replays() == {1: 1}


def test_before_vllm_captures_steps_run_without(logged: list[str]):
    graphed, eager = Bench(), Bench()
    graphed.graphs.init_cudagraph_manager(CUDAGraphMode.FULL)
    ours, theirs = graphed.go_on([2, 2]), eager.go_on([2, 2])
    assert ours.candidates() == theirs.candidates()
    assert logged == []
