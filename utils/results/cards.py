"""Latent cards: what each latent of a probe says, where it fires, and where it is wrong.

A card is a row of ``results/latents_{model}.parquet``. All numbers but ``weight``, ``train_auc``
and ``chosen`` are of held-out test rows, on which nothing was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import csr_array

from utils.probes.k_sparse import rank_latents
from utils.probes.linear import LinearProbe, dense_columns
from utils.probes.scores import roc_auc, score_test_rows
from utils.runtime.errors import UserError, first_line
from utils.runtime.files import atomic_path
from utils.saes.decode import SAME
from utils.settings import TrainTest

NEURONPEDIA = "https://www.neuronpedia.org/"
N_BOOTSTRAPS = 20
N_BINS = 8
N_TOP, N_WRONG = 3, 2  # texts that a card shows: the strongest, and of each kind of mistake
MOST_CHARACTERS = 300
TOKENS_BEFORE, TOKENS_AFTER = 24, 12  # shown around the token that carries most
TOP, FALSE_ALARM, MISS = KINDS = ("top", "false alarm", "miss")


@dataclass(frozen=True)
class Example:
    """A test row that a card shows.

    ``kind``: "top", the rows where the latent is largest; "false alarm", beyond these, the
    largest of the class that it speaks against; "miss", rows of its own class where it is smallest,
    those first that the probe gets most wrong. ``row``: of the dataset; ``score``: the probe's.
    ``tokens`` and ``token_values``: what each token gives the latent; empty where the model was not
    run.
    """

    kind: str
    row: int
    label: int
    activation: float
    score: float
    text: str
    tokens: list[str] = field(default_factory=list)
    token_values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Card:
    """One latent of one probe.

    ``rank``: 1 for the latent that was chosen first; ``weight``: of the probe, on the latent as it
    is on disk; ``share``: of the variance of the probe's score that goes through it, signed, 1 over
    all latents; ``speaks_for``: the class in whose training rows its mean is larger; ``train_auc``
    and ``test_auc``: of the latent alone, for that class, on the rows that chose it and on rows
    that did not; ``test_auc_fresh``: on test rows whose text is in no training row, NaN with fewer
    than 30; ``fires``: share of test rows of class 0 and of class 1 on which it is not zero;
    ``edges`` [n_bins + 1] and ``counts`` [2][n_bins]: of its values above zero; ``chosen``: how
    often it is among the first k when the training rows are drawn again; ``chosen_by_seeds``: in
    which share of the SAEs that differ in their seed alone the first k have a latent of its
    direction, NaN where there are none; ``explanation``: what it reads in words, where somebody has
    published that.
    """

    rank: int
    latent: int
    weight: float
    share: float
    speaks_for: int
    train_auc: float
    test_auc: float
    test_auc_fresh: float
    fires: list[float]
    edges: list[float]
    counts: list[list[int]]
    chosen: float
    examples: list[Example]
    chosen_by_seeds: float = float("nan")
    explanation: str = ""


@dataclass(frozen=True)
class ProbeCards:
    """The cards of one probe, with what it is.

    ``neuronpedia``: the address of the SAE's latents, to which "/{latent}" is added; "" for none;
    ``other_seeds``: the SAEs that differ from its own in their seed alone, each with what its
    latents were made from.
    """

    dataset: str
    sae_id: str
    k: int
    protocol: str
    seed: int
    hook_name: str
    classes: list[str]
    probe_test_auc: float
    probe_val_auc: float
    n_test: int
    release: str
    neuronpedia: str
    made_from: str
    other_seeds: list[str]
    cards: list[Card]

    @property
    def key(self) -> tuple[str, str]:
        return self.dataset, self.sae_id


def make_cards(
    rows: TrainTest, probe: LinearProbe, text_of: Callable[[int], tuple[int, str]], seed: int
) -> list[Card]:
    """A card for each latent of a probe on latents.

    ``rows``: sparse [n, d_sae]; ``text_of``: from the place of a test row to its row in the dataset
    and its text; ``seed``: of the bootstraps.
    """
    if probe.columns is None:
        raise ValueError("the probe reads all columns: cards are of chosen latents")
    train = dense_columns(rows.X_train, probe.columns)
    test = dense_columns(rows.X_test, probe.columns)
    read = (test > 1).astype(np.float64) if probe.binarize else test
    scores = (read * probe.coef).sum(axis=1) + probe.intercept
    chosen = selection_rate(rows.X_train, rows.y_train, probe.columns, seed)
    shares = shares_of_score(read, probe.coef)
    cards = []
    for i, latent in enumerate(probe.columns):
        class_means = [train[rows.y_train == label, i].mean() for label in (0, 1)]
        speaks_for = int(class_means[1] >= class_means[0])
        toward = 1 if speaks_for else -1
        edges, counts = histogram(test[:, i], rows.y_test)
        cards.append(
            Card(
                rank=i + 1,
                latent=int(latent),
                weight=float(probe.coef[i]),
                share=float(shares[i]),
                speaks_for=speaks_for,
                train_auc=roc_auc(rows.y_train, toward * train[:, i]),
                test_auc=roc_auc(rows.y_test, toward * test[:, i]),
                test_auc_fresh=_fresh_auc(rows, toward * test[:, i]),
                fires=[float((test[rows.y_test == label, i] > 0).mean()) for label in (0, 1)],
                edges=edges,
                counts=counts,
                chosen=float(chosen[i]),
                examples=choose_examples(test[:, i], rows.y_test, scores, speaks_for, text_of),
            )
        )
    return cards


def shares_of_score(columns: np.ndarray, coef: np.ndarray) -> np.ndarray:
    """Of the variance of the score over rows [n, k], what goes through each column, [k]: the
    covariance of its part with the score over the score's variance. They sum to 1; 0 where the
    score is the same for all rows.
    """
    parts = columns * coef
    parts = parts - parts.mean(axis=0)
    score = parts.sum(axis=1)
    variance = float(score @ score)
    return parts.T @ score / variance if variance > 0 else np.zeros(len(coef))


def selection_rate(
    X: csr_array, y: np.ndarray, columns: np.ndarray, seed: int, n: int = N_BOOTSTRAPS
) -> np.ndarray:
    """How often each column is among the first k = len(columns) when the rows of each class are
    drawn again with replacement, [k].
    """
    rng = np.random.default_rng(seed)
    of_class = [np.flatnonzero(y == label) for label in (0, 1)]
    times = np.zeros(len(columns))
    for _ in range(n):
        drawn = np.sort(np.concatenate([rng.choice(part, len(part)) for part in of_class]))
        times += np.isin(columns, rank_latents(X[drawn], y[drawn], n_keep=len(columns)).latents)
    return times / n


def choice_over_seeds(directions: np.ndarray, of_others: Sequence[np.ndarray]) -> np.ndarray:
    """In which share of other SAEs the chosen latents' directions ([k, d_model] each) have one that
    is the same as each of ``directions`` [k, d_model]: [k]; NaN where there are no others.
    """
    found = [(directions @ others.T >= SAME).any(axis=1) for others in of_others]
    return np.mean(found, axis=0) if found else np.full(len(directions), np.nan)


def histogram(values: np.ndarray, y: np.ndarray) -> tuple[list[float], list[list[int]]]:
    """(edges, counts of each class) of the values above zero; ([], [[], []]) where there are
    none.
    """
    firing = values > 0
    if not firing.any():
        return [], [[], []]
    edges = np.linspace(0.0, float(values.max()), N_BINS + 1)
    counts = [np.histogram(values[firing & (y == label)], edges)[0].tolist() for label in (0, 1)]
    return edges.tolist(), counts


def choose_examples(
    values: np.ndarray,
    y: np.ndarray,
    scores: np.ndarray,
    speaks_for: int,
    text_of: Callable[[int], tuple[int, str]],
) -> list[Example]:
    """The test rows that a card shows, each text once."""
    toward = scores if speaks_for else -scores
    firing = np.flatnonzero(values > 0)
    largest = firing[np.argsort(-values[firing], kind="stable")]
    own = np.flatnonzero(y == speaks_for)
    wrongest = own[np.lexsort((toward[own], values[own]))]
    chosen: list[Example] = []
    seen: set[str] = set()
    wanted = (
        (TOP, largest, N_TOP),
        (FALSE_ALARM, largest[y[largest] != speaks_for], N_WRONG),
        (MISS, wrongest[toward[wrongest] < 0], N_WRONG),
    )
    for kind, places, most in wanted:
        left = most
        for place in places:
            if not left:
                break
            row, text = text_of(int(place))
            if text in seen:
                continue
            seen.add(text)
            left -= 1
            numbers = (float(values[place]), float(scores[place]))
            chosen.append(Example(kind, row, int(y[place]), *numbers, shortened(text)))
    return chosen


def shortened(text: str) -> str:
    """The start of a text."""
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"


def with_tokens(example: Example, tokens: Sequence[str], values: np.ndarray) -> Example:
    """An example with what each token gives the latent, those around the largest."""
    if not len(tokens):
        return example
    peak = int(np.argmax(values))
    start = max(peak - TOKENS_BEFORE, 0)
    stop = min(peak + TOKENS_AFTER + 1, len(tokens))
    shown = [float(f"{value:.4g}") for value in values[start:stop]]
    return replace(example, tokens=list(tokens[start:stop]), token_values=shown)


def _fresh_auc(rows: TrainTest, values: np.ndarray) -> float:
    """By the rule of result tables."""
    said = score_test_rows(rows.y_test, values > 0, values, rows.fresh)
    return said.get("test_auc_fresh", float("nan"))


EXAMPLE = pa.struct(
    [
        ("kind", pa.string()),
        ("row", pa.int32()),
        ("label", pa.int8()),
        ("activation", pa.float64()),
        ("score", pa.float64()),
        ("text", pa.string()),
        ("tokens", pa.list_(pa.string())),
        ("token_values", pa.list_(pa.float64())),
    ]
)
OF_PROBE = {
    "dataset": pa.string(),
    "sae_id": pa.string(),
    "k": pa.int32(),
    "protocol": pa.string(),
    "seed": pa.int64(),
    "hook_name": pa.string(),
    "classes": pa.list_(pa.string()),
    "probe_test_auc": pa.float64(),
    "probe_val_auc": pa.float64(),
    "n_test": pa.int32(),
    "release": pa.string(),
    "neuronpedia": pa.string(),
    "made_from": pa.string(),
    "other_seeds": pa.list_(pa.string()),
}
OF_CARD = {
    "rank": pa.int32(),
    "latent": pa.int32(),
    "weight": pa.float64(),
    "share": pa.float64(),
    "speaks_for": pa.int8(),
    "train_auc": pa.float64(),
    "test_auc": pa.float64(),
    "test_auc_fresh": pa.float64(),
    "fires": pa.list_(pa.float64()),
    "edges": pa.list_(pa.float64()),
    "counts": pa.list_(pa.list_(pa.int32())),
    "chosen": pa.float64(),
    "examples": pa.list_(EXAMPLE),
    "chosen_by_seeds": pa.float64(),
    "explanation": pa.string(),
}
SCHEMA = pa.schema([*OF_PROBE.items(), *OF_CARD.items()])
# columns that files of older versions lack, and what stands for them
OF_OLDER: dict[str, Any] = {"explanation": "", "chosen_by_seeds": float("nan"), "other_seeds": []}


def write_cards(path: Path, probes: Iterable[ProbeCards]) -> None:
    """A row a latent, sorted by dataset, SAE and rank."""
    rows = []
    for probe in sorted(probes, key=lambda one: one.key):
        about = {name: getattr(probe, name) for name in OF_PROBE}
        rows += [{**about, **asdict(card)} for card in probe.cards]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary, compression="zstd")


def read_cards(path: Path) -> list[ProbeCards]:
    """The cards of a file; [] where there is none.

    Raises UserError when it cannot be read, or is of another version.
    """
    if not path.is_file():
        return []
    try:
        table = pq.read_table(path)
        for name, none in OF_OLDER.items():
            if name not in table.column_names:
                column = pa.array([none] * len(table), SCHEMA.field(name).type)
                table = table.append_column(name, column)
        missing = sorted(set(SCHEMA.names) - set(table.column_names))
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        by_probe: dict[tuple, list[dict[str, Any]]] = {}
        for row in table.select(SCHEMA.names).cast(SCHEMA).to_pylist():
            by_probe.setdefault((row["dataset"], row["sae_id"]), []).append(row)
        probes = [_probe_cards(rows) for rows in by_probe.values()]
        if any(p.neuronpedia and not p.neuronpedia.startswith(NEURONPEDIA) for p in probes):
            raise ValueError("an address that is not Neuronpedia's")
        return probes
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise UserError(
            f"{path} cannot be read ({first_line(error)}): delete it, and run explain_probes.py"
            " again"
        ) from error


def _probe_cards(rows: list[dict[str, Any]]) -> ProbeCards:
    examples = {f.name for f in fields(Example)}
    cards = [
        Card(
            **{name: row[name] for name in OF_CARD if name != "examples"},
            examples=[Example(**{n: e[n] for n in examples}) for e in row["examples"]],
        )
        for row in rows
    ]
    return ProbeCards(**{name: rows[0][name] for name in OF_PROBE}, cards=cards)
