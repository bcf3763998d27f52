"""Probes on all tokens of a text: pooled SAE latents, concatenated principal components, and an
attention probe.

Source: the paper's section on multi-token probes. The first token of a text is left out (its
activations are an outlier in most models).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_array, vstack

from utils.probes.baselines import logreg
from utils.probes.scores import roc_auc, score_test_rows, validation_folds
from utils.readers.sparse_files import SparseRows
from utils.settings import TrainTest

if TYPE_CHECKING:
    import torch

N_COMPONENTS, N_POSITIONS = 20, 255
ATTENTION_RATES = (1e-3, 1e-2)  # Adam's; the one with the best validation AUC is kept
ATTENTION_EPOCHS, ATTENTION_PATIENCE, ATTENTION_BATCH = 100, 10, 64
CHUNK_TOKENS = 8192  # encoded or projected at a time

Encode = Callable[[np.ndarray], SparseRows]


@dataclass(frozen=True)
class Tokens:
    """Token activations of texts, one after another: ``values`` float16 [n_tokens, d_model]; text i
    has the tokens from ``starts[i]`` to ``starts[i + 1]``.
    """

    values: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def chunks(self) -> Iterator[tuple[int, int]]:
        """(first text, one past the last) of runs of whole texts of about CHUNK_TOKENS tokens."""
        first = 0
        while first < len(self):
            last = max(
                first + 1,
                int(np.searchsorted(self.starts, self.starts[first] + CHUNK_TOKENS, side="right"))
                - 1,
            )
            yield first, min(last, len(self))
            first = last

    def of(self, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(token indices, the place in ``texts`` that each belongs to)."""
        lengths = self.starts[texts + 1] - self.starts[texts]
        owner = np.repeat(np.arange(len(texts)), lengths)
        offset = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return np.repeat(self.starts[texts], lengths) + offset, owner


def pool_latents(tokens: Tokens, encode: Encode, d_sae: int) -> tuple[csr_array, csr_array]:
    """(maximum, mean) over its tokens of each text's latents: sparse [n_texts, d_sae], made without
    keeping any token's.
    """
    maxima, means = [], []
    for first, last in tokens.chunks():
        latents = encode(
            tokens.values[tokens.starts[first] : tokens.starts[last]].astype(np.float32)
        )
        lengths = np.diff(tokens.starts[first : last + 1])
        text = np.repeat(np.repeat(np.arange(last - first), lengths), np.diff(latents.indptr))
        keys, where = np.unique(
            text.astype(np.int64) * d_sae + latents.columns, return_inverse=True
        )
        largest = np.full(len(keys), -np.inf, dtype=np.float32)
        np.maximum.at(largest, where, latents.values)
        total = np.bincount(where, weights=latents.values, minlength=len(keys))
        place = (keys // d_sae, keys % d_sae)
        maxima.append(csr_array((largest, place), shape=(last - first, d_sae)))
        means.append(
            csr_array(
                ((total / lengths[place[0]]).astype(np.float32), place), shape=(last - first, d_sae)
            )
        )
    return csr_array(vstack(maxima)), csr_array(vstack(means))


def last_token(tokens: Tokens) -> np.ndarray:
    """float32 [n_texts, d_model]: the last token of each text."""
    return tokens.values[tokens.starts[1:] - 1].astype(np.float32)


def mean_token(tokens: Tokens) -> np.ndarray:
    """float32 [n_texts, d_model]: the mean over each text's tokens."""
    made = np.empty((len(tokens), tokens.values.shape[1]), dtype=np.float32)
    for first, last in tokens.chunks():
        chunk = tokens.values[tokens.starts[first] : tokens.starts[last]].astype(np.float32)
        starts = tokens.starts[first : last + 1] - tokens.starts[first]
        made[first:last] = np.add.reduceat(chunk, starts[:-1]) / np.diff(starts)[:, None]
    return made


def concatenated_components(tokens: Tokens, train: np.ndarray) -> np.ndarray:
    """float32 [n_texts, n_positions * 20]: each token in the first principal components of the
    training texts' tokens.

    A text's last token stands at the last of up to 255 positions; positions before its first are
    zero.
    """
    d_model = tokens.values.shape[1]
    n_components = min(N_COMPONENTS, d_model)
    count, total, square = 0, np.zeros(d_model), np.zeros((d_model, d_model))
    chosen, _ = tokens.of(np.sort(train))
    for start in range(0, len(chosen), CHUNK_TOKENS):
        x = tokens.values[chosen[start : start + CHUNK_TOKENS]].astype(np.float64)
        count, total, square = count + len(x), total + x.sum(axis=0), square + x.T @ x
    mean = total / max(count, 1)
    basis = np.linalg.eigh(square / max(count, 1) - np.outer(mean, mean))[1][:, ::-1][
        :, :n_components
    ]
    lengths = np.diff(tokens.starts)
    n_positions = int(min(N_POSITIONS, lengths.max(initial=1)))
    out = np.zeros((len(tokens), n_positions, n_components), dtype=np.float32)
    for first, last in tokens.chunks():
        begin, end = tokens.starts[first], tokens.starts[last]
        projected = (
            tokens.values[begin:end].astype(np.float32) - mean.astype(np.float32)
        ) @ basis.astype(np.float32)
        text = np.repeat(np.arange(first, last), lengths[first:last])
        position = n_positions - (tokens.starts[text + 1] - np.arange(begin, end))  # from the end
        kept = position >= 0
        out[text[kept], position[kept]] = projected[kept]
    return out.reshape(len(tokens), -1)


def components_probe(
    tokens: Tokens,
    y: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    seed: int,
    fresh: np.ndarray | None = None,
) -> dict:
    """Logistic regression on ``concatenated_components``: val_auc and the scores of the test
    rows. ``fresh``: of ``TrainTest``.
    """
    from threadpoolctl import threadpool_limits

    X = concatenated_components(tokens, train)
    with threadpool_limits(1):  # thousands of small products, which threads only slow down
        return logreg(TrainTest(X[train], y[train], X[test], y[test], fresh), seed)


def attention_logits(
    parameters: Sequence[torch.Tensor], x: torch.Tensor, owner: torch.Tensor, n_texts: int
) -> torch.Tensor:
    """logit [n_texts] = sum_t softmax_t(x_t . query) (x_t . output) + bias, from tokens ``x``
    [n_tokens, d_model], each of the text ``owner`` [n_tokens].
    """
    import torch

    query, output, bias = parameters
    score = x @ query
    highest = torch.full((n_texts,), -1e30, device=x.device)
    highest = highest.scatter_reduce(0, owner, score.detach(), "amax")
    weight = (score - highest[owner]).exp()
    sums = torch.zeros(n_texts, 2, device=x.device).index_add(
        0, owner, torch.stack([weight, weight * (x @ output)], dim=1)
    )
    return sums[:, 1] / sums[:, 0].clamp(min=1e-30) + bias


def attention_probe(
    tokens: Tokens,
    y: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    seed: int,
    fresh: np.ndarray | None = None,
    device: str = "cpu",
) -> dict:
    """One query vector weighs a text's tokens, one output vector reads their weighted mean
    (``attention_logits``): val_auc, test_auc, test_f1, test_acc.

    Trained by Adam on the cross-entropy and stopped early by the AUC of the last validation fold.
    """
    import torch

    folds = validation_folds(y[train], seed)
    fit_rows, val_rows = (train[folds[-1][0]], train[folds[-1][1]]) if folds else (train, train)
    sample = tokens.values[tokens.of(fit_rows)[0]].astype(np.float32)
    # a common shift changes neither the softmax nor, with the bias, the output
    scale = float(sample.std(axis=0).mean()) or 1.0
    mean = torch.from_numpy(sample.mean(axis=0)).to(device)
    del sample

    def logits(parameters: list, rows: np.ndarray) -> torch.Tensor:
        positions, owner = tokens.of(rows)
        values = torch.from_numpy(tokens.values[positions].astype(np.float32)).to(device)
        place = torch.from_numpy(owner).to(device)
        return attention_logits(parameters, (values - mean) / scale, place, len(rows))

    def scores(parameters: list, rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            parts = [logits(parameters, rows[i : i + 256]) for i in range(0, len(rows), 256)]
        return torch.cat(parts).cpu().numpy().astype(np.float64)

    best: tuple[float, list] = (-1.0, [])
    for rate in ATTENTION_RATES:
        generator = torch.Generator().manual_seed(seed)
        d_model = tokens.values.shape[1]
        start = [torch.randn(d_model, generator=generator) * d_model**-0.5 for _ in range(2)]
        parameters = [
            *(vector.to(device).requires_grad_() for vector in start),
            torch.zeros(1, device=device, requires_grad=True),
        ]
        optimizer = torch.optim.Adam(parameters, lr=rate, weight_decay=1e-4)
        waited, reached = 0, -1.0
        for _ in range(ATTENTION_EPOCHS):
            order = torch.randperm(len(fit_rows), generator=generator).numpy()
            for i in range(0, len(order), ATTENTION_BATCH):
                rows = fit_rows[order[i : i + ATTENTION_BATCH]]
                target = torch.from_numpy(y[rows].astype(np.float32)).to(device)
                loss = torch.nn.functional.binary_cross_entropy_with_logits(
                    logits(parameters, rows), target
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            auc = roc_auc(y[val_rows], scores(parameters, val_rows))
            if auc > best[0]:
                best = (auc, [parameter.detach().clone() for parameter in parameters])
            waited, reached = (0, auc) if auc > reached else (waited + 1, reached)
            if waited >= ATTENTION_PATIENCE:
                break
    test_scores = scores(best[1], test)
    return {
        **score_test_rows(y[test], (test_scores > 0).astype(np.int64), test_scores, fresh),
        "val_auc": best[0],
    }
