"""What a random pipeline does, and the scheduler's view of its requests."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.language import entries, oracle

from vllm_ppsd.protocol import Flight


@dataclass(frozen=True)
class Settings:
    """What a pipeline does.

    Attributes:
        stages: 2 and more.
        depth: drafted ticks that may be unverified.
        acceptance: how often a draft is the true token.
        slots: of every request.
        width: most lanes of a level.
        burst: most tokens of a lane.
        reentry: most drafts behind a root's known tokens.
        redraft: share of the lanes of several tokens of whose drafts some are replaced.
        vary: whether shapes are drawn at random up to those, or always the largest.
        chunked: whether prompts enter in pieces.
        cut: share of the lanes that a tick has less room for than they could carry.
        hold: share of the ticks that a decoding request is kept out of, as a policy may.
        no_draft: share of the lanes of decoding requests behind which nothing is drafted.
        preempt: how often a move is a preemption.
        reset: how often a move resets the prefix cache, and with it all running requests.
        abort: how often a move is an abort; half of the names are in use again at once.
        block_size: of the key/value cache.
        lags: of the stages whose states stage 0 reads.
    """

    stages: int = 2
    depth: int = 1
    acceptance: float = 0.7
    slots: int = 1
    width: int = 1
    burst: int = 1
    reentry: int = 0
    redraft: float = 0.0
    vary: bool = True
    chunked: bool = True
    cut: float = 0.0
    hold: float = 0.0
    no_draft: float = 0.0
    preempt: float = 0.0
    reset: float = 0.0
    abort: float = 0.0
    block_size: int = 4
    lags: tuple[int, ...] = ()


@dataclass(eq=False)
class Request:
    """The scheduler's view of a request.

    Attributes:
        path: the true entries of its tokens.
        drops: whether what stale lanes deliver is dropped: the request has entered again already.
    """

    id: str
    prompt: list[int]
    length: int
    output: list[int] = field(default_factory=list)
    flight: Flight = field(default_factory=lambda: Flight(0, 0, 0))
    blocks: bool = False
    preempted: bool = False
    drops: bool = False
    drafted: bool = True
    cached: int = 0

    def __post_init__(self) -> None:
        self.path = entries([], self.prompt)
        self.truth = oracle(self.prompt, self.length)

    @property
    def done(self) -> bool:
        return len(self.output) >= self.length

    def append(self, tokens: tuple[int, ...]) -> None:
        kept = list(tokens[: self.length - len(self.output)])
        assert kept == self.truth[len(self.output) :][: len(kept)], "not the model's tokens"
        self.output += kept
        self.path = entries(self.path, kept)
