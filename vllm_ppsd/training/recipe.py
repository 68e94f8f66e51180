"""A training recipe: everything that decides what a head becomes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    ValidationError,
)

from vllm_ppsd.config.errors import TrainingError, problems
from vllm_ppsd.exit_head.config import HeadType
from vllm_ppsd.files import read_yaml


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Generation(_Part):
    """How the target writes the training text.

    Attributes:
        temperatures: prompts take turns with these; 0 is greedy.
        max_prompt_tokens: longer prompts are left out (and counted).
        max_tokens: answer tokens per prompt at most.
        max_num_seqs: requests that vLLM decodes at once.
        prompts_per_shard: prompts between two points at which a killed run resumes.
        samples: answers per prompt.
        enforce_eager: do without vLLM's compilation, which takes longer than a
            short text.
    """

    temperatures: tuple[NonNegativeFloat, ...] = Field(default=(0.0, 0.7), min_length=1)
    max_prompt_tokens: int = Field(default=512, ge=1)
    max_tokens: int = Field(default=256, ge=1)
    max_num_seqs: int = Field(default=64, ge=1)
    prompts_per_shard: int = Field(default=256, ge=1)
    samples: int = Field(default=1, ge=1)
    enforce_eager: bool = False
    seed: int = 0


class Cache(_Part):
    """What is kept of the target's pass over the text.

    Attributes:
        top_k: most probable next tokens kept per trained position, with their
            log-probabilities.
        batch_tokens: tokens in one pass of the target.
    """

    top_k: int = Field(default=16, ge=1)
    batch_tokens: int = Field(default=4096, ge=1)


class Optimisation(_Part):
    """How the head is fitted.

    Attributes:
        epochs: passes over the training text.
        batch_tokens: tokens (prompt and answer) in one packed batch.
        learning_rate: peak of the cosine schedule.
        kl_weight: weight of the divergence from the target's top-k distribution.
        ce_weight: weight of the cross-entropy on the target's argmax.
        coupled_weight: weight of the rate of coupled drafts missed, by the distributions of head
            and target; for a later round.
        coupled_temperatures: the temperatures that it is taken at.
        validation_documents: documents held out from training.
        validate_every: steps between two validations.
        precision: ``auto`` computes in bfloat16 where the device does so natively;
            master weights are float32 always. The first round's is that of all.
    """

    epochs: float = Field(default=3, gt=0)
    batch_tokens: int = Field(default=2048, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    kl_weight: float = Field(default=1.0, ge=0)
    ce_weight: float = Field(default=0.0, ge=0)
    coupled_weight: float = Field(default=0.0, ge=0)
    coupled_temperatures: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(1.0,), min_length=1
    )
    validation_documents: int = Field(default=128, ge=1)
    validate_every: int = Field(default=100, ge=1)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = 0


class Round(_Part):
    """What a round is trained on, and how.

    Attributes:
        data: JSONL files of prompts (see ``vllm_ppsd.tools.prompts``).
        shards: of the text, how many are written and used; None for all.
        steps: draft steps that the head is trained for. Where the head that a round goes on from
            has one, the way to the others starts from ridge regression.
    """

    data: tuple[str, ...] = ()
    shards: int | None = Field(default=None, ge=1)
    steps: int = Field(default=1, ge=1, le=8)
    generation: Generation = Generation()
    cache: Cache = Cache()
    optimisation: Optimisation = Optimisation()


class Recipe(Round):
    """A head to train.

    Attributes:
        model: the target, a folder or a name on the hub.
        layers: of a ``transformer`` head.
        start_layer: the decoder layers before the target's layer that the head's first layer
            starts from, where that is further on than the exit. An input map, fitted by ridge
            regression to the states there, stands in for the layers between.
        output_map: put an affine map between the head's norm and the LM head,
            fitted by ridge regression before training.
        draft_vocab_size: tokens the head can draft, the most frequent ones in the
            first round's text; None for all.
        deeper_layers: what makes a multi-depth head: the decoder layers before the end of
            each later stage, the last of them the target's number of layers.
        from_head: folder of an exit head to go on from, of the same kind; its draft
            vocabulary and output map are kept. None starts from the target's layers.
            A multi-depth head may go on from one that reads the exit's state alone.
        rounds: what differs from the recipe in each round; a round goes on from the head of
            the round before. Without any, the recipe is one round.
    """

    model: str
    exit_layer: int = Field(ge=1)
    head: HeadType = "transformer"
    layers: int = Field(default=1, ge=1)
    start_layer: int | None = Field(default=None, ge=1)
    output_map: bool = True
    draft_vocab_size: int | None = Field(default=None, ge=1)
    deeper_layers: tuple[int, ...] = ()
    from_head: str | None = None
    rounds: tuple[Round, ...] = ()

    def each_round(self) -> list[Recipe]:
        """Return every round as a recipe of its own."""
        common = self.model_dump(exclude={"rounds"})
        return [
            Recipe.model_validate(merged(common, one.model_dump(exclude_unset=True)))
            for one in self.rounds or [Round()]
        ]

    def as_yaml(self) -> str:
        """Return the recipe with its defaults, as YAML."""
        values = self.model_dump(mode="json", exclude={"rounds"})
        values = {k: values[k] for k in sorted(values, key=Round.model_fields.__contains__)}
        if self.rounds:
            values["rounds"] = [r.model_dump(mode="json", exclude_unset=True) for r in self.rounds]
        return yaml.safe_dump(values, sort_keys=False)


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` with ``changes``; in mappings, only the keys that are named change."""
    return dict(values) | {
        key: merged(values.get(key, {}), change) if isinstance(change, Mapping) else change
        for key, change in changes.items()
    }


def read_recipe(path: Path) -> Recipe:
    """Read a YAML recipe.

    Raises:
        TrainingError: names the file and the field that is wrong.
    """
    content = read_yaml(path, TrainingError)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise TrainingError(f"{path}: {problems(error, 'recipe')}") from None
