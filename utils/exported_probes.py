"""A probe in a folder of its own, which scores new texts: text → model → hook → (SAE →) probe.

    from utils.exported_probes import load_probe
    probe = load_probe("my_probe")
    probe.predict(["You have won a prize"])            # class names, as scikit-learn's classifiers
    probe.predict_proba(texts)                         # [n_texts, 2], calibrated
    probe.score_tokens(texts)                          # what each token adds

The folder has ``probe.json`` (what the probe is, what it reads, how it did) and
``probe.safetensors`` (``coef``, ``columns``, and the scores and labels of held-out rows, from which
thresholds and probabilities follow). It holds neither the language model nor the SAE: it names
them, with their fingerprints.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from utils.language_models import load_model, model_identity
from utils.models import LanguageModel, get_model
from utils.names import hook_name, parse_layer
from utils.paths import Paths
from utils.probes.linear import LinearProbe
from utils.runtime.devices import pick_device
from utils.runtime.errors import UserError, first_line
from utils.runtime.files import atomic_folder
from utils.saes.catalog import find_sae, open_sae, sae_fingerprint
from utils.saes.encode import latents_of
from utils.saes.encoder import Encoder

FORMAT = 1  # of the folder
DESCRIPTION, ARRAYS = "probe.json", "probe.safetensors"
NEEDED = {
    "format", "model_name", "model", "pooling", "max_seq_len", "prepend_bos", "hook_name", "sae",
    "classes", "dataset", "test_auc", "intercept", "binarize", "calibration",
}  # fmt: skip


@dataclass(frozen=True)
class HeldOut:
    """Scores [n] and labels [n] in {0, 1} of rows that the probe was not trained on."""

    scores: np.ndarray
    labels: np.ndarray

    def threshold(self, false_positive_rate: float) -> float:
        """The lowest score above which at most this share of class 0 lies.

        Raises UserError where class 0 has too few rows to show so small a rate.
        """
        negatives = np.sort(self.scores[self.labels == 0])
        allowed = int(false_positive_rate * len(negatives))
        if allowed < 1:
            raise UserError(
                f"a false-positive rate of {false_positive_rate:g} cannot be set on"
                f" {len(negatives)} held-out rows of class 0: at least {1 / len(negatives):.2g}"
            )
        return float(negatives[-allowed - 1])

    def calibration(self) -> tuple[float, float]:
        """(slope, intercept) of the logistic curve from scores to shares of class 1 (Platt)."""
        from sklearn.linear_model import LogisticRegression

        scale = float(np.abs(self.scores).max()) or 1.0
        model = LogisticRegression(C=1e6, max_iter=1000)
        model.fit(self.scores[:, None] / scale, self.labels)
        return float(model.coef_[0, 0]) / scale, float(model.intercept_[0])


class ExportedProbe:
    """A probe that reads texts.

    ``described``: the content of probe.json; ``probe``: its weights; ``held_out``: rows on which
    thresholds are set; ``classes_``: the two class names, that of label 1 last.
    """

    def __init__(
        self, described: dict[str, Any], probe: LinearProbe, held_out: HeldOut, paths: Paths
    ) -> None:
        self.described, self.probe, self.held_out = described, probe, held_out
        self.paths = paths
        self.device = "auto"
        self.classes_ = np.array(described["classes"])
        self._encoder: Encoder | None = None

    def decision_function(self, texts: Sequence[str]) -> np.ndarray:
        """Scores float64 [n_texts]; above 0 is class 1.

        Raises UserError when model or SAE are not at hand, or are others than the probe was made
        with.
        """
        given = _as_texts(texts)
        if not given:
            return np.empty(0)
        hook = self.described["hook_name"]
        return self.score_activations(self._model().pooled(given, "reading texts")[hook].numpy())

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """[n_texts, 2]: the probabilities of both classes."""
        return self.probabilities(self.decision_function(texts))

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """The class name of each text."""
        return self.classes_[(self.decision_function(texts) > 0).astype(int)]

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Calibrated on the held-out rows, [n, 2]."""
        slope, intercept = self.described["calibration"]
        positive = 1 / (1 + np.exp(-np.clip(slope * scores + intercept, -500, 500)))
        return np.stack([1 - positive, positive], axis=1)

    def score_tokens(self, texts: Sequence[str]) -> list[list[tuple[str, float]]]:
        """The (token, number) of each text. Where the last token of a text is read: the score at
        each token. Where the mean over tokens is read: how much the score falls when the token is
        left out of the mean.
        """
        scored = []
        for tokens, vectors in token_activations(self._model(), self.described, _as_texts(texts)):
            if self.described["pooling"] == "last":
                numbers = self.score_activations(vectors)
            else:
                whole, *without = self.score_activations(left_out_means(vectors))
                numbers = whole - np.array(without)
            scored.append(list(zip(tokens, numbers.tolist())))
        return scored

    def score_activations(self, activations: np.ndarray) -> np.ndarray:
        """Scores [n_rows] of model activations [n_rows, d_model] at the probe's hook."""
        read = activations
        if self.described["sae"] is not None:
            read = latents_of(self._sae(), activations)
        columns = self.probe.columns
        needed = len(self.probe.coef) if columns is None else int(columns.max()) + 1
        if read.shape[1] < needed or (columns is None and read.shape[1] != needed):
            raise UserError(
                f"the probe reads {needed} columns and is given {read.shape[1]}: its files do not"
                " belong together. Export it again"
            )
        return self.probe.scores(read)

    def save(self, folder: Path) -> None:
        """Write the folder, whole or not at all, in place of an older probe.

        Raises UserError where a folder stands there that holds something else.
        """
        from safetensors.numpy import save_file

        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if folder.is_file() or there - {DESCRIPTION, ARRAYS}:
            raise UserError(f"{folder} is there and holds other files: give --output another name")

        arrays = {
            "coef": self.probe.coef,
            "held_out_scores": self.held_out.scores,
            "held_out_labels": self.held_out.labels.astype(np.int64),
        }
        if self.probe.columns is not None:
            arrays["columns"] = self.probe.columns.astype(np.int64)
        with atomic_folder(folder) as temporary:
            temporary.mkdir()
            save_file(arrays, temporary / ARRAYS)
            content = json.dumps(self.described, indent=1, sort_keys=True)
            (temporary / DESCRIPTION).write_text(content + "\n", encoding="utf-8")

    def _model(self) -> Any:
        info = model_of(self.described, self.paths)
        hooks = (self.described["hook_name"],)
        model = load_model(info, hooks, self.paths, pick_device(self.device), "float32")
        _require_same(
            f"the model {info.name}", model_identity(info, self.paths), self.described["model"]
        )
        return model

    def _sae(self) -> Encoder:
        if self._encoder is None:
            sae, model_name = self.described["sae"], self.described["model_name"]
            release = sae.get("release")
            self._encoder = open_sae(self.paths, model_name, sae["sae_id"], release)
            folder = find_sae(self.paths.saes(model_name), sae["sae_id"])
            now = sae_fingerprint(folder) if folder else None
            _require_same(f"the SAE {sae['sae_id']}", now, sae.get("fingerprint"))
        return self._encoder


def load_probe(folder: str | Path, paths: Paths | None = None) -> ExportedProbe:
    """The probe that export_probe.py wrote.

    Raises UserError when the folder holds none, or one of another version.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = Path(folder)
    try:
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if not isinstance(described, dict):
            raise ValueError("probe.json describes no probe")
        if described.get("format") != FORMAT:
            raise ValueError(f"its format is {described.get('format')!r}, {FORMAT} is read here")
        missing = sorted(NEEDED - set(described))
        if missing:
            raise ValueError(f"probe.json lacks {', '.join(missing)}")
        arrays = load_file(folder / ARRAYS)
        probe = LinearProbe(
            arrays["coef"], described["intercept"], arrays.get("columns"), described["binarize"]
        )
        held_out = HeldOut(arrays["held_out_scores"], arrays["held_out_labels"])
        n_columns = len(probe.coef) if probe.columns is None else len(probe.columns)
        finite = all(np.isfinite(a).all() for a in (probe.coef, held_out.scores, probe.intercept))
        if probe.coef.shape != (n_columns,) or not finite:
            raise ValueError("its arrays do not fit together")
        check_description(described)
        columns = probe.columns if probe.columns is not None else np.zeros(1, dtype=np.int64)
        if columns.dtype.kind not in "iu" or columns.min(initial=0) < 0:
            raise ValueError("its columns are no columns")
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise UserError(
            f"{folder} holds no probe ({first_line(error)}): write one with export_probe.py"
        ) from error
    return ExportedProbe(described, probe, held_out, paths or Paths())


def check_description(described: dict[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError where probe.json says what cannot be."""
    if hook_name(parse_layer(described["hook_name"])) != described["hook_name"]:
        raise ValueError(f"hook_name {described['hook_name']!r} is none")
    if described["pooling"] not in ("last", "mean"):
        raise ValueError(f"pooling {described['pooling']!r} is not known")
    if not all(isinstance(described[name], bool) for name in ("prepend_bos", "binarize")):
        raise ValueError("prepend_bos and binarize are true or false")
    if not isinstance(described["max_seq_len"], int) or described["max_seq_len"] < 1:
        raise ValueError("max_seq_len is no number of tokens")
    if len(described["classes"]) != 2 or not all(isinstance(c, str) for c in described["classes"]):
        raise ValueError("it has not two classes")
    slope, intercept = described["calibration"]
    if not np.isfinite([slope, intercept]).all():
        raise ValueError("its calibration is no curve")
    sae = described["sae"]
    if sae is not None and not (isinstance(sae, dict) and isinstance(sae.get("sae_id"), str)):
        raise ValueError("its sae is not described")


def model_of(described: dict[str, Any], paths: Paths) -> LanguageModel:
    """The language model as the probe's texts were read."""
    info = get_model(described["model_name"], paths)
    return replace(
        info,
        pooling=described["pooling"],
        max_seq_len=described["max_seq_len"],
        prepend_bos=described["prepend_bos"],
    )


def token_activations(
    model: Any, described: dict[str, Any], texts: list[str]
) -> list[tuple[list[str], np.ndarray]]:
    """(tokens, float32 [n_tokens, d_model]) of each text at the hook."""
    hook = described["hook_name"]
    ids = model.tokenize(texts)
    made: list[tuple[list[str], np.ndarray]] = [([], np.empty((0, 0)))] * len(texts)
    for rows, captured, kept in model.run(ids, "reading tokens"):
        for i, row in enumerate(rows):
            states = captured[hook][i][kept[i]].cpu().numpy()
            made[row] = (shown_tokens(model.tokenizer, ids[row]), states)
    return made


def shown_tokens(tokenizer: Any, ids: list[int]) -> list[str]:
    """Each token as it stands in the text, a space before a new word included."""
    texts = [tokenizer.decode(ids[: i + 1]) for i in range(len(ids))]
    starts = ["", *texts[:-1]]
    return [
        text[len(before) :] if text.startswith(before) else tokenizer.decode([token])
        for before, text, token in zip(starts, texts, ids)
    ]


def left_out_means(vectors: np.ndarray) -> np.ndarray:
    """[1 + n_tokens, d_model]: the mean of a text's tokens [n_tokens, d_model], then the mean
    without each of them (of a single token: itself).
    """
    n = len(vectors)
    total = vectors.sum(axis=0, dtype=np.float64)
    without = (total - vectors) / max(n - 1, 1) if n > 1 else vectors
    return np.concatenate([total[None] / n, without]).astype(np.float32)


def _as_texts(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise UserError("give a list of texts, not one string")
    given = list(texts)
    for i, text in enumerate(given):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"text {i} is empty or no text: {text!r}")
    return given


def _require_same(what: str, now: str | None, then: str | None) -> None:
    """Raise UserError where a part is another than the probe was made with; what is not known
    cannot be compared.
    """
    if now is not None and then is not None and now != then:
        raise UserError(
            f"{what} is another than this probe was made with: its scores would mean nothing."
            " Export the probe again"
        )
