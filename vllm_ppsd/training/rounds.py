"""The rounds of a recipe: what each is trained on, and where its files lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_ppsd.config.errors import TrainingError
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder
from vllm_ppsd.files import read_json_object, read_text, write_whole
from vllm_ppsd.training.recipe import Recipe

RECIPE, ORIGIN = "recipe.yaml", "origin.json"


@dataclass(frozen=True)
class RoundRun:
    """One round in a work folder.

    Attributes:
        recipe: the round's own, which goes on from the head of the round before.
        work: folder of its text and states; rounds that learn from the same share it.
        folder: of its checkpoints, its log and, in the end, its head.
    """

    recipe: Recipe
    work: Path
    folder: Path

    @property
    def head(self) -> Path:
        """The head that the round ends with."""
        return self.folder / "head"

    @property
    def origin(self) -> dict[str, Any]:
        """What the round's head was made of, once it is there."""
        return read_json_object(self.folder / ORIGIN, TrainingError)

    def begin(self) -> bool:
        """Record the recipe; return whether anything is left to do.

        Raises:
            TrainingError: the folder holds a run of another recipe, or from another head.
        """
        start = self.recipe.from_head and ExitHeadFolder.open(self.recipe.from_head).digest()
        record = self.recipe.model_copy(update={"from_head": start}).as_yaml()
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / RECIPE
        if not file.is_file():
            write_whole(file, lambda path: path.write_text(record))
        elif read_text(file, TrainingError) != record:
            raise TrainingError(
                f"{self.folder} holds a run of another recipe, or from another head; remove it "
                "or name another output folder"
            )
        return not self.head.is_dir()


def rounds_of(recipe: Recipe, work: Path, name: str = "") -> list[RoundRun]:
    """Return the rounds of a recipe, first to last.

    Args:
        work: the work folder.
        name: of the run, where one is begun.
    """
    rounds: list[RoundRun] = []
    for number, one in enumerate(recipe.each_round(), start=1):
        if rounds:
            one = one.model_copy(update={"from_head": str(rounds[-1].head)})
        same_text = (r.work for r in rounds if _text(r.recipe) == _text(one))
        place = next(same_text, work / f"round-{number}" if rounds else work)
        rounds.append(RoundRun(one, place, work / "runs" / name / f"round-{number}"))
    return rounds


def _text(recipe: Recipe) -> tuple[Any, ...]:
    """Return what text and states depend on, but for the number of shards."""
    return recipe.data, recipe.generation, recipe.cache
