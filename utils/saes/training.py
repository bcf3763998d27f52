"""Training of a small SAE by SAELens, with one progress bar that fits a terminal, and what is said
of it beside its weights.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FACTS = "training.json"  # beside the weights of an SAE that train_saes.py made
N_WARM_UP = 20  # steps
DEAD_AFTER = 100  # steps in which a latent did not fire


@dataclass(frozen=True)
class Schedule:
    """``n_decay``: the last steps, in which the learning rate falls to a tenth."""

    n_steps: int
    batch_size: int
    learning_rate: float
    n_decay: int
    device: str = "cpu"


def training_facts(folder: Path) -> dict[str, Any]:
    """What an SAE's folder says of its training; {} where it says nothing that can be read."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def train(sae: Any, batches: Iterator[torch.Tensor], schedule: Schedule) -> Any:
    """A training SAE of SAELens trained on batches [batch_size, d_in]."""
    from sae_lens import SAETrainer
    from sae_lens.config import SAETrainerConfig

    class Trainer(SAETrainer):
        """SAELens writes its losses into the bar, which leaves no room for it on a terminal."""

        def _update_pbar(self, step_output: Any, pbar: Any, update_interval: int = 100) -> None:
            if not sys.stderr.isatty():
                pbar.mininterval = 10
            pbar.update(schedule.batch_size)

    how = SAETrainerConfig(
        total_training_samples=schedule.n_steps * schedule.batch_size,
        train_batch_size_samples=schedule.batch_size,
        lr=schedule.learning_rate,
        lr_end=schedule.learning_rate / 10,
        lr_warm_up_steps=N_WARM_UP,
        lr_decay_steps=schedule.n_decay,
        device=schedule.device,
        dead_feature_window=DEAD_AFTER,
    )
    return Trainer(how, sae, batches).fit()
