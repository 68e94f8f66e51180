"""The values that travel: a tick through the stages, drafts along with it, a verdict back.

The scheduler makes a ``Tick``, stage 0 its ``Drafts``, the last stage its ``Verdict``. Each is
made once and passed whole: what it decides is decided nowhere else.

A request has one lane in a tick, or several *siblings*, which stand at the same position and
embed different candidates for it; together they are the request's *level* in that tick. A lane
carries one token, or a *burst* of several. One lane of one token per request is plain
verify-while-draft.
"""

from __future__ import annotations

import msgspec

LaneId = tuple[int, int]
"""Tick and rank of a lane: with the request, its identity."""


class Lane(msgspec.Struct, frozen=True):
    """Some consecutive tokens of one request in a tick.

    Attributes:
        request_id: the engine's id of the request.
        tick: number of the tick.
        position: position of the lane's first token in the sequence.
        length: number of its tokens: 1 to 8 in decoding, more in a prompt.
        drafted: how many of its tokens, the last ones, are drafts: the scheduler does not
            know them.
        samples: how many of its rows, the last ones, sample a token; 0 in a prompt's chunks
            before the last.
        behind: number of the tick behind which stage 0 drafted the lane's tokens, all of which
            are drafts then; None for a *root*, which starts with a known token.
        rank: which of the candidates drafted there it embeds; its place among its siblings.
        parent: rank of the lane in tick ``behind`` that it goes on from. Stage 0 fills it in
            where there are several.
        after: of a re-entry burst, number of the tick whose outcome retired its first token, and
            whose final state stage 0 drafts the others from.
    """

    request_id: str
    tick: int
    position: int
    length: int = 1
    drafted: int = 0
    samples: int = 1
    behind: int | None = None
    rank: int = 0
    parent: int = 0
    after: int | None = None

    @property
    def id(self) -> LaneId:
        """Its tick and rank."""
        return self.tick, self.rank

    @property
    def end(self) -> int:
        """Position of the token that the lane's last row samples."""
        return self.position + self.length

    @property
    def is_root(self) -> bool:
        """Whether it starts with a known token, so that it counts whatever was drafted."""
        return self.behind is None


class Shape(msgspec.Struct, frozen=True):
    """How many lanes a request's next level has, and how many tokens, all drafts, each carries."""

    width: int = 1
    length: int = 1


ONE_TOKEN = Shape()
"""One lane of one token: plain verify-while-draft."""


class Retired(msgspec.Struct, frozen=True):
    """The newest outcome of a request that the scheduler knew when it made a tick.

    Attributes:
        tick: number of the tick that the outcome is of.
        rank: of the lane that counted.
        end: the entries of that lane and of its ancestors are final up to here.
        continues: rank of the lane of the request's next level that goes on; None if none does.
    """

    tick: int
    rank: int
    end: int
    continues: int | None = None


class Copy(msgspec.Struct, frozen=True):
    """Copy a request's key/value entries from one slot to another before a tick's lanes run.

    Attributes:
        request_id: the engine's id of the request.
        source: slot to read; 0 is the request's main blocks.
        target: slot to write.
        start: first position.
        stop: position behind the last one.
    """

    request_id: str
    source: int
    target: int
    start: int
    stop: int


class Tick(msgspec.Struct, frozen=True):
    """What the scheduler decides for one engine step.

    Attributes:
        number: ticks are numbered in the order in which the scheduler makes them.
        lanes: siblings stand together, by rank.
        no_draft_req_ids: requests that will not be sent on before this tick's result is back:
            a draft behind their lanes would be for nothing.
        seeds: seeds of new requests, where PPSD's noise samples.
        left: requests that have left the engine since the tick before.
        shapes: of the next levels of this tick's requests, where it is not one lane of one token.
            Stage 0 drafts a level before the scheduler sends it, so its shape goes ahead of it.
        retired: by request, its newest outcome, where siblings may be in flight.
        reentry_req_ids: requests that may go on with a re-entry burst if no lane continues this
            tick's: stage 0 is sent the final state that their last token was sampled from.
        depth: drafted ticks that may be unverified when it starts, if fewer than the pipeline
            allows.
        read: number of the newest tick whose verdict the scheduler has read, so that it was sent
            to every stage.
    """

    number: int
    lanes: tuple[Lane, ...]
    no_draft_req_ids: frozenset[str] = frozenset()
    seeds: dict[str, int] = {}
    left: tuple[str, ...] = ()
    shapes: dict[str, Shape] = {}
    retired: dict[str, Retired] = {}
    reentry_req_ids: frozenset[str] = frozenset()
    depth: int | None = None
    read: int = -1

    def shape(self, request_id: str) -> Shape:
        """Return which candidates stage 0 drafts behind this tick's lanes of a request."""
        if request_id in self.no_draft_req_ids:
            return Shape(0, 0)
        return self.shapes.get(request_id, ONE_TOKEN)

    @property
    def is_timed(self) -> bool:
        """Whether what it takes is a measure: it carries nothing of a prompt."""
        return all(lane.length == lane.samples for lane in self.lanes)

    @property
    def rows(self) -> int:
        """Tokens of all lanes."""
        return sum(lane.length for lane in self.lanes)

    def runs_alone(self, stage: int) -> bool:
        """Whether no other stage works while one runs it: a root of the one request that decodes.

        Where lanes follow before the verdict, stage 0 runs the next one while later stages run it.
        """
        lone = self.depth is not None and self.lanes[0].is_root
        return lone and (stage == 0 or not self.depth)

    @property
    def reentries(self) -> list[Lane]:
        """The lanes that are re-entry bursts."""
        return [lane for lane in self.lanes if lane.is_root and lane.drafted]


ON_DEVICE = -1
"""In the place of a draft's token: only stage 0's device knows it."""


class Draft(msgspec.Struct, frozen=True):
    """A token that the exit head proposes.

    Attributes:
        token: in the target's vocabulary.
        step: 1 if it was drafted from a fresh exit state, 2 and more if the head went on from
            its own prediction.
        probability: the head's, where somebody reads it.
    """

    token: int
    step: int = 1
    probability: float | None = None


class Candidate(msgspec.Struct, frozen=True):
    """What one lane of a request's next tick may embed.

    Attributes:
        drafts: one per token of that lane.
        parent: rank of the lane that it was drafted behind.
        replaces: how many drafts at the end of that lane it takes the place of. When a lane has
            run, stage 0 has the exit states before its drafts and drafts these positions again;
            at the first that comes out otherwise the candidate begins. Only a level of one lane
            may replace drafts: its lane overwrites their entries.
    """

    drafts: tuple[Draft, ...]
    parent: int = 0
    replaces: int = 0


class PartTimes(msgspec.Struct, frozen=True):
    """Seconds that the parts of a tick took stage 0.

    Attributes:
        layers: its decoder layers.
        first_step: the head's step 1, from fresh exit states; 0 if nothing was drafted so.
        continuation: one continuation, the mean of the tick's; 0 if there was none.
    """

    layers: float
    first_step: float = 0.0
    continuation: float = 0.0


class StagePass(msgspec.Struct, frozen=True):
    """What a tick took a stage behind stage 0.

    Attributes:
        stage: its number.
        rows: of the tick.
        alone: as ``Tick.runs_alone``.
        seconds: its layers, and on the last stage LM head and sampling.
    """

    stage: int
    rows: int
    alone: bool
    seconds: float


class Drafts(msgspec.Struct, frozen=True):
    """What stage 0 drafted in a tick.

    Attributes:
        tick: number of the tick.
        candidates: by request, best first; a lane of the next tick embeds the one of its rank.
        entered: by request, the drafts behind a root's known tokens in this very tick: a
            *re-entry burst*.
        seconds: what the tick took stage 0, where it was measured.
    """

    tick: int
    candidates: dict[str, tuple[Candidate, ...]] = {}
    entered: dict[str, tuple[Draft, ...]] = {}
    seconds: PartTimes | None = None


class Outcome(msgspec.Struct, frozen=True):
    """What the last stage decided about a request's lanes in a tick: one lane counted.

    Attributes:
        request_id: the engine's id of the request.
        rank: of the lane that counted.
        tokens: the tokens retired.
        compared: how many of ``tokens``, the first ones, were compared with a draft. All are,
            unless nothing was drafted for the request's next level.
        accepted: how many of those, the first ones, equal their draft.
        continues: rank of the lane of the request's next tick that goes on; None if none does.
        redrafted: of the lane's rows that sample, the one that the candidates stand behind, from 0;
            None if nothing was drafted there.
    """

    request_id: str
    tokens: tuple[int, ...]
    compared: int
    accepted: int
    continues: int | None = None
    rank: int = 0
    redrafted: int | None = None

    @property
    def missed(self) -> bool:
        """Whether a draft was wrong, so that all that is in flight of the request is stale."""
        return self.accepted < self.compared

    @property
    def overwritten(self) -> int:
        """How many retired tokens lose their entries: the lane behind, which is stale, took the
        place of drafts that were right. These positions enter once more, before the newest token.
        """
        if self.redrafted is None or self.continues is not None:
            return 0
        return max(0, len(self.tokens) - 1 - self.redrafted)


class Verdict(msgspec.Struct, frozen=True):
    """What the last stage decided in a tick. Only lanes that count and sample have an outcome.

    Attributes:
        tick: number of the tick.
        outcomes: by request.
        final: requests whose final states follow the message to stage 0, one each.
        seconds: what the tick took stage 0, where it was measured.
        passes: of the other stages that were measured since the verdict before; for the
            scheduler alone.
    """

    tick: int
    outcomes: dict[str, Outcome] = {}
    final: tuple[str, ...] = ()
    seconds: PartTimes | None = None
    passes: tuple[StagePass, ...] = ()
