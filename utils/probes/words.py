"""What the words of a text tell without any model: TF-IDF and logistic regression, a contender like
the probes on activations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_array

from utils.activations import ModelRows
from utils.datasets import load_dataset, load_ood, text_codes
from utils.paths import Paths
from utils.probes.baselines import Baseline, logreg
from utils.settings import SEED, TrainTest

TEXT_ONLY = "text_only"  # the method in result tables
WORD_RULES = 1  # raised when the same texts come out otherwise
# words of one letter or digit count too: some datasets are sums
WORDS = {"token_pattern": r"(?u)\b\w+\b", "ngram_range": (1, 2)}
CHARACTERS = {"analyzer": "char_wb", "ngram_range": (2, 5)}


@dataclass(frozen=True)
class Counts:
    """How often each text has each n-gram: sparse [n_texts, n_grams] of words and, where they may
    be chosen, of characters. Rows are taken as of an array.
    """

    words: csr_array
    characters: csr_array | None = None

    def __len__(self) -> int:
        return self.words.shape[0]

    def __getitem__(self, rows: np.ndarray) -> Counts:
        characters = None if self.characters is None else self.characters[rows]
        return Counts(self.words[rows], characters)

    def kinds(self) -> list[csr_array]:
        return [kind for kind in (self.words, self.characters) if kind is not None]


def text_rows(paths: Paths, dataset: str, n_rows: int, ood: bool) -> ModelRows:
    """The counts of a dataset's first ``n_rows`` texts in the place of activations, with ``ood``
    those of its OOD file too. Characters are counted for OOD alone, where words may be other words.

    Raises UserError as ``load_dataset`` and ``load_ood`` do.
    """
    loaded = load_dataset(paths, dataset)
    shifted = load_ood(paths, dataset) if ood else None
    texts, labels = loaded.texts[:n_rows], loaded.labels[:n_rows]
    n_texts = len(texts)
    counts = _count([*texts, *(shifted.texts if shifted else [])], characters=ood)
    codes = text_codes(paths, dataset, ood)
    known = replace(codes, rows=codes.rows[:n_texts])
    if shifted is None:
        return ModelRows(counts, labels, texts=known)
    inside, outside = (np.arange(n_texts), np.arange(n_texts, len(counts)))
    return ModelRows(counts[inside], labels, counts[outside], shifted.labels, known)


def _count(texts: list[str], characters: bool) -> Counts:
    from sklearn.feature_extraction.text import CountVectorizer

    kinds = [WORDS, CHARACTERS] if characters else [WORDS]
    made = []
    for kind in kinds:
        try:
            made.append(csr_array(CountVectorizer(**kind).fit_transform(texts)))
        except ValueError:  # no text has a word
            made.append(csr_array((len(texts), 1), dtype=np.int64))
    return Counts(*made)


def text_only(rows: TrainTest, seed: int = SEED) -> dict:
    """L2 logistic regression on TF-IDF of words and word pairs, C chosen on validation rows; of
    words and characters the better by val_auc. rows: ``Counts``.

    Vocabulary and document frequencies are of the training rows.
    """
    fits = []
    for train, test in zip(rows.X_train.kinds(), rows.X_test.kinds()):
        X_train, X_test = _in_row_span(*_tf_idf(train, test))
        fits.append(logreg(replace(rows, X_train=X_train, X_test=X_test), seed))
    return max(fits, key=lambda fit: (fit["val_auc"] == fit["val_auc"], fit["val_auc"]))


def _tf_idf(train: csr_array, test: csr_array) -> tuple[csr_array, csr_array]:
    """Both [n, n_grams of the training rows], each row of length 1, or 0 where none of its n-grams
    is known.
    """
    from sklearn.feature_extraction.text import TfidfTransformer

    known = np.unique(train.indices)
    if not len(known):  # training texts without a word tell nothing
        return csr_array((train.shape[0], 1)), csr_array((test.shape[0], 1))
    model = TfidfTransformer(sublinear_tf=True)
    return csr_array(model.fit_transform(train[:, known])), csr_array(
        model.transform(test[:, known])
    )


def _in_row_span(train: csr_array, test: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Dense [n, rank] with the same inner products: an L2 fit has its weights in the span of the
    training rows, and so is the same fit.
    """
    products = (train @ train.T).toarray()
    values, vectors = np.linalg.eigh(products)
    kept = values > values.max(initial=0.0) * 1e-12
    if not kept.any():
        return np.zeros((train.shape[0], 1)), np.zeros((test.shape[0], 1))
    basis = vectors[:, kept] / np.sqrt(values[kept])
    return products @ basis, (test @ train.T).toarray() @ basis


PROBE = Baseline(TEXT_ONLY, text_only, of_paper=False)
