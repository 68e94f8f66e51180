"""The random pipelines see faults: with any one rule of the protocol broken, they fail."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from protocol import pipeline
from protocol.trees import run_trees

from vllm_ppsd.protocol import (
    DraftBook,
    MissingDraftError,
    OrderError,
    RetirementBook,
    Shape,
    SlotBook,
    SlotError,
    StaleBook,
    TickBook,
    TickGate,
    flush,
)

PIPELINES = 600
FAULTS = (AssertionError, MissingDraftError, OrderError, SlotError, LookupError, ValueError)

LANES = "other lanes run than those that may count"
COUNTS = "not the lane that counts"
OUTPUT = "not the model's tokens"
ENTRIES = "stale entries"

Patch = Callable[[pytest.MonkeyPatch], None]
MUTATIONS: dict[str, tuple[Patch, str]] = {}


def mutation(symptom: str) -> Callable[[Patch], Patch]:
    def register(patch: Patch) -> Patch:
        MUTATIONS[patch.__name__] = patch, symptom
        return patch

    return register


def changed(struct, **fields):
    return msgspec.structs.replace(struct, **fields)


# Drafting and pruning ------------------------------------------------------------


@mutation(LANES)
def stage_0_takes_every_lane_for_a_child_of_rank_0(monkeypatch):
    monkeypatch.setattr(DraftBook, "arrive", StaleBook.arrive)


@mutation(LANES)
def the_verdict_of_an_earlier_flight_is_not_ignored(monkeypatch):
    def rule_out(self, request_id, tick, continues):
        if flight := self._flights.get(request_id):
            flight.judged, flight.continues = tick, continues

    monkeypatch.setattr(StaleBook, "_rule_out", rule_out)


@mutation(LANES)
def nothing_is_pruned(monkeypatch):
    monkeypatch.setattr(StaleBook, "is_stale", lambda self, lane: False)


@mutation(LANES)
def only_children_of_the_lane_that_counted_are_pruned_not_their_children(monkeypatch):
    def is_stale(self, lane):
        flight = self._flights.get(lane.request_id)
        if lane.is_root or flight is None or flight.judged != lane.behind:
            return False
        return lane.rank != flight.continues

    monkeypatch.setattr(StaleBook, "is_stale", is_stale)


@mutation(LANES)
def a_lane_goes_on_by_the_rank_of_its_parent(monkeypatch):
    is_stale = StaleBook.is_stale
    monkeypatch.setattr(
        StaleBook, "is_stale", lambda self, lane: is_stale(self, changed(lane, rank=lane.parent))
    )


@mutation("other verdicts than it must")
def the_gate_lets_a_tick_too_many_pass(monkeypatch):
    init = TickGate.__init__
    monkeypatch.setattr(TickGate, "__init__", lambda self, depth, book: init(self, depth + 1, book))


@mutation("other verdicts than it must")
def the_gate_waits_for_flights_that_are_over(monkeypatch):
    def start(self, tick):
        alive = {lane.request_id for lane in tick.lanes if not self._book.is_stale(lane)}
        self._unjudged.append((tick.number, alive))
        return True

    monkeypatch.setattr(TickGate, "start", start)


# Retirement ------------------------------------------------------------------------


@mutation(OUTPUT)
def a_row_of_a_burst_counts_behind_a_wrong_draft(monkeypatch):
    retire = RetirementBook.retire

    def patched(self, lane, sampled, *drafts):
        outcome = retire(self, lane, sampled, *drafts)
        return changed(outcome, tokens=tuple(sampled[: len(outcome.tokens) + 1]))

    monkeypatch.setattr(RetirementBook, "retire", patched)


@mutation(OUTPUT)
def the_drafts_of_a_re_entry_burst_are_off_by_one(monkeypatch):
    retire = RetirementBook.retire

    def patched(self, lane, sampled, candidates, entered):
        return retire(self, lane, sampled, candidates, (*entered[1:], *entered[:1]))

    monkeypatch.setattr(RetirementBook, "retire", patched)


@mutation(COUNTS)
def the_child_of_another_lane_goes_on(monkeypatch):
    following = RetirementBook._next

    def patched(self, lane, token, candidates, replaces):
        candidates = [changed(c, parent=lane.rank) for c in candidates]
        return following(self, lane, token, candidates, replaces)

    monkeypatch.setattr(RetirementBook, "_next", patched)


@mutation("a stage has not run a lane that counts")
def the_outcome_names_the_sibling_of_the_next_rank(monkeypatch):
    following = RetirementBook._next

    def patched(self, lane, token, candidates, replaces):
        rank = following(self, lane, token, candidates, replaces)
        return rank if rank is None else (rank + 1) % len(candidates)

    monkeypatch.setattr(RetirementBook, "_next", patched)


@mutation(COUNTS)
def the_sibling_of_the_next_rank_goes_on(monkeypatch):
    counts = RetirementBook.counts
    monkeypatch.setattr(
        RetirementBook, "counts", lambda self, lane: counts(self, changed(lane, rank=lane.rank + 1))
    )


@mutation(COUNTS)
def a_lane_counts_by_its_rank_alone(monkeypatch):
    def counts(self, lane):
        newest = self._continues.get(lane.request_id)
        return lane.is_root or (newest is not None and newest[1] == lane.rank)

    monkeypatch.setattr(RetirementBook, "counts", counts)


# The scheduler -----------------------------------------------------------------------


@mutation("a lane that counts is lost")
def a_flush_forgets_what_is_in_flight(monkeypatch):
    monkeypatch.setattr(pipeline, "flush", lambda flight: pipeline.replace(flush(flight), stale=0))


@mutation("does not come to rest")
def a_flush_re_enters_a_position_too_late(monkeypatch):
    def patched(flight):
        flushed = flush(flight)
        return pipeline.replace(flushed, computed=flushed.computed + 1)

    monkeypatch.setattr(pipeline, "flush", patched)


@mutation("no free slot")
def levels_are_wider_than_the_slots_allow(monkeypatch):
    monkeypatch.setattr(TickBook, "_bounded", lambda self, sent, wanted: wanted)


@mutation("no free slot")
def a_tick_does_not_tell_of_outcomes(monkeypatch):
    tick = TickBook.tick
    monkeypatch.setattr(
        TickBook, "tick", lambda self, *args, **more: changed(tick(self, *args, **more), retired={})
    )


@mutation("no draft for position")
def the_shape_of_a_level_comes_late(monkeypatch):
    tick = TickBook.tick

    def patched(self, *args, **more):
        made = tick(self, *args, **more)
        return changed(made, shapes={name: Shape() for name in made.shapes})

    monkeypatch.setattr(TickBook, "tick", patched)


@mutation(ENTRIES)
def a_preemption_leaves_levels_in_flight(monkeypatch):
    monkeypatch.setattr(TickBook, "restart", lambda self, request_id: None)


@mutation("main blocks are not final")
def the_prefix_cache_hashes_what_is_not_promoted(monkeypatch):
    monkeypatch.setattr(TickBook, "cacheable", lambda self, request_id, final: final)


# Slots ---------------------------------------------------------------------------------


@mutation(ENTRIES)
def a_copy_is_a_token_short(monkeypatch):
    fill = SlotBook._fill

    def patched(self, *args):
        return [changed(c, stop=c.stop - 1) for c in fill(self, *args)]

    monkeypatch.setattr(SlotBook, "_fill", patched)


@mutation(ENTRIES)
def a_copy_starts_a_token_late(monkeypatch):
    fill = SlotBook._fill

    def patched(self, *args):
        return [changed(c, start=c.start + 1) for c in fill(self, *args)]

    monkeypatch.setattr(SlotBook, "_fill", patched)


@mutation(ENTRIES)
def promotion_is_forgotten(monkeypatch):
    promote = SlotBook._promote
    monkeypatch.setattr(SlotBook, "_promote", lambda self, *args: promote(self, *args)[:0])


@mutation(ENTRIES)
def two_children_go_on_in_the_slot_of_their_parent(monkeypatch):
    def place(self, lane):
        tails = self._tails[lane.request_id]
        slot = tails.slots.get((lane.behind, lane.parent))
        if slot is not None:
            tails.writers[slot] = self._extended(tails, tails.writers[slot], lane)
            tails.slots[lane.tick, lane.rank] = slot
        return []

    monkeypatch.setattr(SlotBook, "_place", place)


@mutation(ENTRIES)
def the_slot_of_a_lane_without_children_is_free_at_once(monkeypatch):
    def free(self, tails):
        newest = max(lane[0] for lane in tails.slots)
        older = {lane[0] for lane in tails.slots} - {newest}
        busy = {
            slot for lane, slot in tails.slots.items() if lane[0] in (newest, max(older, default=0))
        }
        return [slot for slot in range(self._slots) if slot not in busy]

    monkeypatch.setattr(SlotBook, "_free", free)


@mutation(ENTRIES)
def the_boundary_is_a_block_too_far(monkeypatch):
    share = SlotBook._share
    monkeypatch.setattr(
        SlotBook,
        "_share",
        lambda self, tails, promoted: share(self, tails, promoted + self._block_size - 1),
    )


@mutation(ENTRIES)
def scratch_blocks_are_taken_to_survive_a_preemption(monkeypatch):
    place = SlotBook._place_root

    def patched(self, lane, keep):
        tails = self._tails.get(lane.request_id)
        boundary = lane.position // self._block_size * self._block_size
        place(self, lane, keep or (tails is not None and tails.boundary == boundary))

    monkeypatch.setattr(SlotBook, "_place_root", patched)


def test_the_protocol_as_it_is_passes():
    run_trees(range(PIPELINES))


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_rule_is_seen(name: str, monkeypatch: pytest.MonkeyPatch):
    """By its own symptom; others may come before it."""
    patch, symptom = MUTATIONS[name]
    patch(monkeypatch)
    for seed in range(PIPELINES):
        try:
            run_trees(range(seed, seed + 1))
        except FAULTS as fault:
            if symptom in str(fault):
                return
    pytest.fail(f"no pipeline of {PIPELINES} says {symptom!r}")
