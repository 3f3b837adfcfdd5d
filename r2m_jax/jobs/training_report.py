"""What a training run says of itself: the terminal, ``log.jsonl``, TensorBoard."""

from __future__ import annotations

import time
from collections import deque

from r2m_jax.evaluation.metrics import auc
from r2m_jax.progress import Advance
from r2m_jax.recipes import TrainRecipe
from r2m_jax.training import Window
from r2m_jax.training.log import RunLog
from r2m_jax.training.optimizers import build_schedule

RECENT = 2048
"""Rows whose AUC is told while training, at most."""


class TrainingReport:
    """Told of windows and validations.

    Args:
        recipe: of the run.
        steps: of the whole run.
        log: to write to; None in all processes but one.
        advance: of the progress.
    """

    def __init__(self, recipe: TrainRecipe, steps: int, log: RunLog | None, advance: Advance):
        self._log, self._advance, self._batch = log, advance, recipe.batch_size
        self._accumulate = recipe.optimizer.accumulate
        self._schedule = build_schedule(recipe.optimizer, max(1, steps // self._accumulate))
        self._recent: deque[tuple[float, int]] = deque(maxlen=RECENT)
        self._clock = time.monotonic()
        self.last_validation: dict[str, float] = {}

    def window(self, window: Window) -> None:
        """Log every step, show their mean."""
        now, count = time.monotonic(), len(window.loss)
        speed, self._clock = count * self._batch / max(now - self._clock, 1e-9), now
        self._recent.extend(zip(window.margin.ravel().tolist(), window.label.ravel().tolist(), strict=True))
        recent = auc([label for _, label in self._recent], [margin for margin, _ in self._recent])
        if self._log:
            for place in range(count):
                step = window.first + place
                self._log.add(
                    "step", step, loss=float(window.loss[place]), accuracy=float(window.accuracy[place]),
                    gradient_norm=float(window.gradient_norm[place]),
                    learning_rate=float(self._schedule((step - 1) // self._accumulate)),
                )  # fmt: skip
            self._log.add("window", window.last, recent_auc=recent, images_per_s=speed)
            self._log.flush()
        held = "".join(f", val {name} {value:.3f}" for name, value in self.last_validation.items() if "auc" in name)
        self._advance(count, note=f"loss {window.loss.mean():.4f}, AUC {recent:.3f}{held}")

    def validation(self, step: int, measured: dict[str, float]) -> None:
        """Log what was measured on val."""
        self.last_validation = measured
        if self._log:
            self._log.add("validation", step, **measured)
        self._clock = time.monotonic()
