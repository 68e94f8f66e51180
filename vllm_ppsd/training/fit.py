"""Step 3: fit a head to cached states."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator

from vllm_ppsd.config.errors import TrainingError
from vllm_ppsd.files import read_json_lines, reading, write_whole
from vllm_ppsd.tools.progress import Bar, progress
from vllm_ppsd.training.acceptance import Validation, validate
from vllm_ppsd.training.chains import chains_of
from vllm_ppsd.training.dataset import Batch, StateSet
from vllm_ppsd.training.head import TrainableHead
from vllm_ppsd.training.loss import DraftVocabulary, loss_by_steps
from vllm_ppsd.training.packing import pack
from vllm_ppsd.training.recipe import Optimisation

LAST, BEST, LOG = "last.pt", "best.pt", "log.jsonl"
LOG_EVERY = 20
"""Steps between two lines of the log."""

WARMUP = 0.03
"""Share of the steps with a rising learning rate."""

KNOWN = 0.5
"""Share of the chains that go on from the target's final state, as behind a known token; the
others go on from the head's own prediction."""

WEIGHT_DECAY, CLIP = 0.01, 1.0
DEEPER_RATE = 0.2
"""Share of the learning rate for the projections of deeper states, which start close to where
they end."""


@dataclass
class Progress:
    """Where a run stands; kept in the last checkpoint.

    Attributes:
        score: of the best weights so far, see ``Fit``.
        best: their acceptance.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    score: float = -math.inf
    best: float = 0.0
    loss: list[float] = field(default_factory=list)


class Fit:
    """One training run over the documents of a ``StateSet``.

    The weights that are kept are those of the most tokens a burst on held-out text (the highest
    acceptance, where the head has one step); where coupled drafts are trained for, those of the
    least loss, which is then the rate of misses.

    Args:
        head: with its starting weights.
        states: the documents.
        vocabulary: what the head can draft.
        settings: the recipe's optimisation.
        folder: for checkpoints and the log.
        accelerator: decides device, precision and processes.
    """

    def __init__(
        self,
        head: TrainableHead,
        states: StateSet,
        vocabulary: DraftVocabulary,
        settings: Optimisation,
        folder: Path,
        accelerator: Accelerator,
    ) -> None:
        self._states, self._vocabulary, self._settings = states, vocabulary, settings
        self._folder, self._accelerator = folder, accelerator
        self._steps_trained = head.config.steps
        self._training, self._held_out = states.split(settings.validation_documents, settings.seed)
        self._steps = self._count_steps()
        optimiser = torch.optim.AdamW(
            _groups(head, settings.learning_rate), lr=settings.learning_rate, betas=(0.9, 0.95)
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self._rate)
        self._head, self._optimiser = accelerator.prepare(head, optimiser)
        self._at = Progress()

    @property
    def _bare(self) -> TrainableHead:
        head: TrainableHead = self._accelerator.unwrap_model(self._head)
        return head

    def run(self) -> Validation:
        """Train to the end, from the last checkpoint if there is one.

        Returns:
            The validation of the best weights, which the head then holds.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._resume()
        self._head.train()
        if self._at.step == 0:
            self._validate()
        with progress("training steps") as bar:
            started = time.monotonic() - self._at.seconds
            for batch in self._batches():
                self._step(batch)
                self._at.seconds = time.monotonic() - started
                if self._accelerator.is_main_process:
                    self._show(bar)
                last = self._at.step == self._steps
                if self._at.step % self._settings.validate_every == 0 or last:
                    self._validate()
                    self._save()
        best = _load(self._folder / BEST)
        self._bare.load_state_dict(best)
        return self._validation()

    def _step(self, batch: Batch) -> None:
        chains = None
        if self._steps_trained > 1:
            chains = chains_of(batch, self._steps_trained, KNOWN, seed=self._at.step)
        with self._accelerator.autocast():
            logits = self._head(batch.states, batch.lengths, batch.rows, batch.deeper, chains)
        loss = loss_by_steps(logits, batch, chains, self._vocabulary, self._settings)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at step {self._at.step}; lower the learning rate"
            )
        self._accelerator.backward(loss)
        self._accelerator.clip_grad_norm_(self._head.parameters(), CLIP)
        self._optimiser.step()
        self._schedule.step()
        self._optimiser.zero_grad()
        self._at.step += 1
        self._at.tokens += sum(batch.lengths) * self._accelerator.num_processes
        self._at.loss = [*self._at.loss[-99:], loss.item()]
        if self._at.step % LOG_EVERY == 0:
            self._log({"loss": sum(self._at.loss[-LOG_EVERY:]) / LOG_EVERY})

    def _batches(self) -> Iterator[Batch]:
        """Yield this process's batches from the current step on."""
        done = 0
        rank, size = self._accelerator.process_index, self._accelerator.num_processes
        for epoch in range(math.ceil(self._settings.epochs)):
            packs = self._epoch(epoch)
            for first in range(0, len(packs) - size + 1, size):
                done += 1
                if done <= self._at.step:
                    continue
                if done > self._steps:
                    return
                batch = self._states.batch(packs[first + rank], final=self._steps_trained > 1)
                yield batch.to(self._accelerator.device)

    def _epoch(self, epoch: int) -> list[Any]:
        rng = random.Random(self._settings.seed * 1000 + epoch)
        return list(pack(self._training, self._settings.batch_tokens, rng))

    def _count_steps(self) -> int:
        size = self._accelerator.num_processes
        whole = math.ceil(self._settings.epochs)
        per_epoch = [len(self._epoch(epoch)) // size for epoch in range(whole)]
        return max(1, int(sum(per_epoch) * self._settings.epochs / whole))

    def _rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to a tenth."""
        warmup = max(1, int(WARMUP * self._steps))
        if step < warmup:
            return (step + 1) / warmup
        share = (step - warmup) / max(1, self._steps - warmup)
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    def _validation(self) -> Validation:
        device = self._accelerator.device
        batches = (
            self._states.batch(places).to(device)
            for places in pack(self._held_out, self._settings.batch_tokens)
        )
        return validate(self._bare, batches, self._vocabulary, self._settings)

    def _validate(self) -> None:
        """Validate, log, and keep the weights if they are the best so far."""
        validation = self._validation()
        self._log({"validation": asdict(validation)})
        score = -validation.loss if self._settings.coupled_weight else validation.tokens
        if score >= self._at.score:
            self._at.score, self._at.best = score, validation.acceptance
            weights = {name: tensor.cpu() for name, tensor in self._bare.state_dict().items()}
            self._write(BEST, weights)

    def _show(self, bar: Bar) -> None:
        at = self._at
        bar.to(
            at.step,
            self._steps,
            f"loss {sum(at.loss) / len(at.loss):.3f} · acceptance {at.best:.3f} · "
            f"{at.tokens / max(at.seconds, 1e-9):.0f} tokens/s",
        )

    def _log(self, figures: dict[str, Any]) -> None:
        if not self._accelerator.is_main_process:
            return
        line = {
            "step": self._at.step,
            "steps": self._steps,
            "tokens": self._at.tokens,
            "seconds": round(self._at.seconds, 1),
            "learning_rate": self._schedule.get_last_lr()[0],
            **figures,
        }
        with (self._folder / LOG).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _save(self) -> None:
        state = {
            "head": self._bare.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
            "at": asdict(self._at),
        }
        self._write(LAST, state)

    def _write(self, name: str, state: Any) -> None:
        if self._accelerator.is_main_process:
            write_whole(self._folder / name, lambda path: torch.save(state, path))

    def _resume(self) -> None:
        last = self._folder / LAST
        if not last.is_file():
            (self._folder / LOG).unlink(missing_ok=True)
            return
        state = _load(last, self._accelerator.device)
        self._bare.load_state_dict(state["head"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
        self._at = Progress(**state["at"])
        _cut_log(self._folder / LOG, self._at.step)


def _load(path: Path, device: torch.device | None = None) -> Any:
    """Return a checkpoint.

    Raises:
        TrainingError: it is damaged.
    """
    with reading(path, TrainingError):
        try:
            return torch.load(path, weights_only=True, map_location=device)
        except (RuntimeError, EOFError, UnpicklingError) as error:
            raise TrainingError(
                f"the checkpoint {path} is damaged ({error}); remove {path.parent} to train anew"
            ) from error


def _groups(head: TrainableHead, rate: float) -> list[dict[str, Any]]:
    """Return parameter groups: no weight decay on norms and biases, deeper states slowly."""
    named = [(name, p) for name, p in head.named_parameters() if p.requires_grad]
    deeper = [p for name, p in named if name.startswith("deeper_")]
    trained = [p for name, p in named if not name.startswith("deeper_")]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": WEIGHT_DECAY, "lr": rate},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0, "lr": rate},
        {"params": deeper, "weight_decay": WEIGHT_DECAY, "lr": rate * DEEPER_RATE},
    ]
    return [group for group in groups if group["params"]]


def _cut_log(path: Path, step: int) -> None:
    """Forget lines of steps that the last checkpoint does not hold, and one that was cut off."""
    lines = [line for _, line in read_json_lines(path, TrainingError, ended=True)]
    kept = "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= step)
    write_whole(path, lambda file: file.write_text(kept))
