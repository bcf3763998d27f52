"""The paper's claims one by one: what its published tables say, and what our own runs say.

    python -m checks.claims
    python -m checks.claims --document --published FOLDER \\
        --results_dir data/full_run/results --data_dir data/full_run/data
    python -m checks.claims --render

Reads the published tables (`make fetch-published-results`; --published names another folder that
has their results/ and data/) and the tables of a run of ours (`make demo`, or `make
benchmark-full-run` for all 113 datasets). Writes results/claims.json, the numbers, and
results/claims.md, a row a claim. --document writes those of docs/ in their place; without a run of
ours they keep the one that they have. --render writes the page of docs/ again from its numbers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from utils import cli
from utils.datasets import paper_datasets
from utils.models import get_model
from utils.paths import Paths
from utils.results import side_experiments
from utils.results.comparison import (
    ALL,
    PROBES,
    WORDS_SUFFICE,
    Comparisons,
    Picked,
    Picks,
    compare,
    compare_all,
    on_fresh_rows,
)
from utils.results.csv_files import read_table
from utils.results.multi_token import ATTENTION, load_multi_token
from utils.results.statistics import LEVEL
from utils.results.tidy import BASELINE, SAE, load_results
from utils.runtime.errors import UserError
from utils.runtime.files import ROOT, atomic_path, write_json
from utils.settings import NORMAL, SETTINGS

GEMMA, LLAMA, SMALL_GEMMA = "gemma-2-9b", "llama-3.1-8b", "gemma-2-2b"
WITH_SAE, LOGREG = "quiver_with_sae", "logreg"
NUMBERS, PAGE = ROOT / "docs" / "claims.json", ROOT / "docs" / "claims.md"
EXPLAINED = "top_1_latent_results_layer_20_width_131k_average_l0_114_with_explanations.csv"
RELABELLED = "87_glue_cola_investigate.csv"
SAME, OTHER, UNSURE = "yes", "no", "not sure"


@dataclass(frozen=True)
class Measured:
    """A number as it is shown, and whether it agrees with a claim: SAME, OTHER, UNSURE, or "" where
    there is nothing to agree with. ``difference``: from the best baseline, where it is that.
    """

    shown: str
    agrees: str = ""
    why: str = ""
    difference: float | None = None


@dataclass(frozen=True)
class Row:
    """A claim as the page shows it."""

    section: str
    claim: str
    published: Measured | None
    ours: Measured | None


class Published:
    """The paper's tables; each is read once."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self._tidy: dict[str, pd.DataFrame] = {}
        self._compared: dict[str, pd.DataFrame] = {}

    def tidy(self, model: str) -> pd.DataFrame:
        if model not in self._tidy:
            tidy = load_results(self.paths, model, tuple(SETTINGS)).tidy
            for kind, what in ((BASELINE, "baselines"), (SAE, "SAE probes")):
                if not (tidy["kind"] == kind).any():
                    raise UserError(
                        f"{self.paths.results_dir} has no {what} of {model}: `make"
                        " fetch-published-results` puts them there"
                    )
            self._tidy[model] = tidy
        return self._tidy[model]

    def compared(self, model: str) -> pd.DataFrame:
        if model not in self._compared:
            self._compared[model] = compare(Picks(self.tidy(model)))
        return self._compared[model]

    def table(self, path: Path) -> pd.DataFrame:
        if not path.is_file():
            raise UserError(f"{path} is not there: make fetch-published-results")
        return read_table(path)


@dataclass(frozen=True)
class Ours:
    """The comparisons of our own run."""

    model: str
    tables: Comparisons
    tidy: pd.DataFrame


@dataclass(frozen=True)
class Claim:
    """A claim of the paper in our words. ``published`` and ``ours`` measure it; None where it
    cannot be.
    """

    section: str
    claim: str
    published: Callable[[Published], Measured | None] | None = None
    ours: Callable[[Ours], Measured | None] | None = None


# what is claimed of a difference
AHEAD, BEHIND, NOT_AHEAD = "ahead", "behind", "not ahead"
TOLD = ("ci_low", "ci_high", "mean_difference", "p_wilcoxon")  # of a difference


def agrees(claimed: str, low: float, high: float, difference: float, p: float = 0.0) -> str:
    """Whether a difference with its 95 % interval, and ``p`` of the rank test, agrees with what is
    claimed of it: which side is ahead is sure where both say so.
    """
    if claimed != NOT_AHEAD and not p < LEVEL:
        return UNSURE
    if claimed == AHEAD:
        return SAME if low > 0 else OTHER if high < 0 else UNSURE
    if claimed == BEHIND:
        return SAME if high < 0 else OTHER if low > 0 else UNSURE
    return OTHER if low > 0 else SAME if high < 0 or difference <= 0 else UNSURE


def of_comparison(
    rows: pd.DataFrame, setting: str, contender: str, claimed: str
) -> Measured | None:
    """The difference of a contender from the best baseline in a setting."""
    mine = rows[
        (rows["setting"] == setting) & (rows["contender"] == contender) & (rows["condition"] == ALL)
    ]
    if not len(mine):
        return None
    row = mine.iloc[0]
    shown = (
        f"{row['mean_difference']:+.3f} AUC ({row['ci_low']:+.3f} to {row['ci_high']:+.3f}),"
        f" ahead on {row['wins']:.0f}, behind on {row['losses']:.0f} of {row['n_datasets']:.0f}"
    )
    agreed = agrees(claimed, *(row[name] for name in TOLD))
    return Measured(shown, agreed, difference=round(float(row["mean_difference"]), 4))


def published_difference(
    model: str, setting: str, contender: str, claimed: str
) -> Callable[[Published], Measured | None]:
    return lambda source: of_comparison(source.compared(model), setting, contender, claimed)


def our_difference(setting: str, contender: str, claimed: str) -> Callable[[Ours], Measured | None]:
    """On fresh test rows where they are known, which the paper does not tell apart."""

    def measure(ours: Ours) -> Measured | None:
        return of_comparison(ours.tables.best_known(), setting, contender, claimed)

    return measure


def our_control(setting: str, control: str, claimed: str) -> Callable[[Ours], Measured | None]:
    """SAE probes against a control of ours."""

    def measure(ours: Ours) -> Measured | None:
        rows = ours.tables.against
        if not len(rows):
            return None
        mine = rows[(rows["setting"] == setting) & (rows["control"] == control)]
        if not len(mine):
            return None
        row = mine.iloc[0]
        shown = f"{row['mean_difference']:+.3f} AUC ({row['ci_low']:+.3f} to {row['ci_high']:+.3f})"
        return Measured(shown, agrees(claimed, *(row[name] for name in TOLD)))

    return measure


def n_datasets(source: Published) -> Measured | None:
    n = len(paper_datasets(source.paths)[0])
    return Measured(f"{n} in its table of datasets", SAME if n == 113 else OTHER)


def our_datasets(ours: Ours) -> Measured | None:
    n = ours.tidy["dataset"].nunique()
    return Measured(f"{n} of them, on {ours.model}")


def methods_of(source: Published) -> Measured | None:
    rows = source.tidy(GEMMA)
    names = sorted(rows.loc[rows["kind"] == BASELINE, "method"].dropna().unique())
    expected = ["knn", "logreg", "mlp", "pca", "xgboost"]
    return Measured(", ".join(names), SAME if names == expected else OTHER)


def conditions_of(setting: str) -> Callable[[Published], Measured | None]:
    def measure(source: Published) -> Measured | None:
        rows = source.tidy(GEMMA)
        there = rows.loc[rows["setting"] == setting, "condition"].unique()
        n = len(there)
        if not n:
            return None
        numbers = sorted(float(value) for value in there)
        shown = f"{n} values, {numbers[0]:g} to {numbers[-1]:,g}"
        return Measured(shown, SAME if n == len(SETTINGS[setting].values) else OTHER)

    return measure


def best_layer(source: Published) -> Measured | None:
    """Of the layers of Gemma 2 9B that were probed, where logistic regression does best."""
    rows = source.tidy(GEMMA)
    normal = rows[(rows["setting"] == NORMAL.name) & (rows["method"] == "logreg")]
    means = normal.groupby("layer", observed=True)["test_auc"].mean().sort_values(ascending=False)
    if not len(means):
        return None
    shown = ", ".join(f"{layer}: {value:.3f}" for layer, value in means.items())
    return Measured(f"logreg by layer: {shown}", SAME if str(means.index[0]) == "20" else OTHER)


def one_baseline_suffices(model: str, setting: str) -> Callable[[Published], Measured | None]:
    """Whether picking the best of five by validation is better than logistic regression alone."""

    def measure(source: Published) -> Measured | None:
        found = of_comparison(source.compared(model), setting, LOGREG, AHEAD)
        return found and replace(found, shown=f"logreg alone: {found.shown}")

    return measure


def at_fewest_rows(model: str, at_most: int) -> Callable[[Published], Measured | None]:
    """The SAE probe against the best baseline on at most so many training rows."""

    def measure(source: Published) -> Measured | None:
        rows = source.tidy(model)
        scarce = rows[rows["setting"] == "scarcity"]
        few = scarce[scarce["condition"].astype(float) <= at_most]
        return of_comparison(compare(Picks(few)), "scarcity", PROBES, NOT_AHEAD)

    return measure


def ood_is_in_distribution(source: Published) -> Measured | None:
    """The published OOD table of the 9B model against its in-distribution numbers."""
    table = source.table(source.paths.sae_probe_table(GEMMA, "OOD"))
    mean = float(table["test_auc"].mean())
    shown = (
        f"its OOD_setting table has a mean test AUC of {mean:.3f}: it is of in-distribution rows"
    )
    return Measured(shown, OTHER, "the table is left out here; the OOD numbers of `ood/` are used")


def wide_saes(source: Published) -> Measured | None:
    """The widest SAE of Gemma 2 9B against the narrowest, in scarcity."""
    rows = source.tidy(GEMMA)
    mine = rows[(rows["setting"] == "scarcity") & (rows["kind"] == SAE)]
    best = mine.sort_values("val_auc", kind="stable").drop_duplicates(
        ["sae_id", "dataset", "condition"], keep="last"
    )
    means = best.groupby("sae_id", observed=True)["test_auc"].mean().sort_values(ascending=False)
    shown = ", ".join(f"{name.split('/')[1]}: {value:.3f}" for name, value in means.items())
    widest = next((name for name in means.index if "width_1m" in name), None)
    if widest is None:
        return None
    return Measured(shown, OTHER if means.index[0] == widest else SAME)


def cola_probes(run: int, kind: str, claimed: str) -> Callable[[Published], Measured | None]:
    """CoLA with original labels (run 0), an ensemble's (1), and where these differ (2): a probe on
    latents less the baseline.
    """

    def measure(source: Published) -> Measured | None:
        table = side_experiments.relabelling(source.paths, GEMMA)
        if table is None:
            return None
        of_run = table[table["run_num"] == run].set_index("run_type")["test_auc"]
        value, base = float(of_run[kind]), float(of_run["baseline"])
        ahead = value > base
        return Measured(
            f"{value:.3f} against {base:.3f}", SAME if ahead == (claimed == AHEAD) else OTHER
        )

    return measure


def cola_disagreement(source: Published) -> Measured | None:
    """Share of CoLA's examined labels that the ensemble of three models denies."""
    table = source.table(source.paths.relabelling().with_name(RELABELLED))
    known = table.dropna(subset=["ensemble"])
    share = float((known["ensemble"] != known["original_target"]).mean())
    return Measured(f"{share:.1%} of {len(known)} sentences", SAME if share > 0.05 else OTHER)


def pruned_latents(source: Published) -> Measured | None:
    """Out of distribution: the best pruned set of latents against all eight."""
    tables = side_experiments.pruned(source.paths, GEMMA)
    if not tables:
        return None
    parts, gains = [], []
    for name, table in tables.items():
        every = table.sort_values("k").iloc[-1]["ood_auc_llm"]
        few = table.sort_values("k").iloc[:-1]["ood_auc_llm"].max()
        parts.append(f"{name}: {few:.3f} at best, {every:.3f} with all")
        gains.append(few - every)
    why = "the best k is seen on the OOD rows themselves, so this is its upper end"
    n_better = sum(gain > 0 for gain in gains)
    shown = f"on {n_better} of {len(gains)}: {'; '.join(parts)}"
    return Measured(shown, SAME if n_better == len(gains) else UNSURE, why)


def pruned_by_humans(source: Published) -> Measured | None:
    """Latents ranked by people against latents ranked by a language model, mean over k."""
    tables = side_experiments.pruned(source.paths, GEMMA)
    if not tables:
        return None
    both = pd.concat(tables.values())
    human, model = float(both["ood_auc_human"].mean()), float(both["ood_auc_llm"].mean())
    return Measured(
        f"{human:.3f} by people, {model:.3f} by a model",
        SAME if abs(human - model) < 0.02 else OTHER,
    )


def pruned_against_baseline(source: Published) -> Measured | None:
    """Even the best pruned set against logistic regression out of distribution."""
    table = source.table(source.paths.baseline_table(GEMMA, "OOD")).set_index("dataset")
    behind = []
    tables = side_experiments.pruned(source.paths, GEMMA)
    for name, pruned in tables.items():
        if name not in table.index:
            continue
        behind.append(float(pruned["ood_auc_llm"].max() - table.loc[name, "test_auc_baseline"]))
    if not behind:
        return None
    shown = f"{np.mean(behind):+.3f} AUC on {len(behind)} datasets, each at its best k"
    return Measured(shown, SAME if np.mean(behind) < 0 else OTHER)


def single_latents(source: Published) -> Measured | None:
    """Probes on one latent of a wide SAE."""
    table = source.table(source.paths.sae_probe_table(GEMMA, NORMAL.name).with_name(EXPLAINED))
    aucs = table["test_auc"]
    high = int((aucs >= 0.9).sum())
    shown = f"mean test AUC {aucs.mean():.3f}; at least 0.9 on {high} of {len(aucs)} datasets"
    return Measured(shown, SAME if high > len(aucs) / 10 else OTHER)


def explanations(source: Published) -> Measured | None:
    table = source.table(source.paths.sae_probe_table(GEMMA, NORMAL.name).with_name(EXPLAINED))
    n = int(table["explanation"].notna().sum())
    return Measured(
        f"{n} of {len(table)} best latents have one", SAME if n > 0.9 * len(table) else OTHER
    )


def tokens_won(source: Published, with_attention: bool) -> tuple[int, int, float] | None:
    """(datasets on which the best SAE probe on all tokens beats the best probe without an SAE, all
    datasets, mean difference); the latter on last tokens and on components of each token, and
    attention probes where asked for.
    """
    rows, _ = load_multi_token(source.paths, GEMMA)
    rows = rows[~rows["method"].str.contains("ours")].dropna(subset=["test_auc"])
    if not len(rows):
        return None
    latents, others = rows[rows["sae_id"].notna()], rows[rows["sae_id"].isna()]
    if not with_attention:
        others = others[others["method"] != ATTENTION]
    last = source.tidy(GEMMA)
    last = last[
        (last["setting"] == NORMAL.name)
        & (last["kind"] == BASELINE)
        & (last["layer"].astype(str) == "20")
    ]
    columns = ["dataset", "val_auc", "test_auc"]
    others = pd.concat([others[columns], last[columns]])
    both = pd.concat({"sae": _picked(latents), "other": _picked(others)}, axis=1).dropna()
    difference = (both["sae"] - both["other"]).to_numpy()
    return int((difference > 0).sum()), len(both), float(difference.mean())


def without_attention(source: Published) -> Measured | None:
    won = tokens_won(source, with_attention=False)
    return won and Measured(f"they win on {won[0]} of {won[1]} datasets, {won[2]:+.4f} AUC")


def with_attention(source: Published) -> Measured | None:
    won, before = tokens_won(source, True), tokens_won(source, False)
    if won is None or before is None:
        return None
    shown = f"they win on {won[0]} of {won[1]} datasets, {won[2]:+.4f} AUC"
    return Measured(shown, SAME if won[0] < before[0] else OTHER)


def _picked(rows: pd.DataFrame) -> pd.Series:
    """Test AUC of each dataset's probe with the best val_auc."""
    ordered = rows.sort_values("val_auc", kind="stable")
    return ordered.drop_duplicates("dataset", keep="last").set_index("dataset")["test_auc"]


OLD = "ReLU (orig.)", "ReLU (new)"


def newer_architectures(k: str) -> Callable[[Published], Measured | None]:
    """How often newer architectures beat the two with ReLU, mean over pairs."""

    def measure(source: Published) -> Measured | None:
        tables = side_experiments.win_rates(source.paths, SMALL_GEMMA)
        if k not in tables:
            return None
        table = tables[k]
        mine = table[~table["sae1"].isin(OLD) & table["sae2"].isin(OLD)]
        rate = float(mine["win_rate"].mean())
        return Measured(f"they win {rate:.1%}", SAME if rate <= 0.55 else OTHER)

    return measure


def best_architecture(source: Published) -> Measured | None:
    tables = side_experiments.win_rates(source.paths, SMALL_GEMMA)
    if "normal, k = 16" not in tables:
        return None
    means = tables["normal, k = 16"].groupby("sae1", observed=True)["win_rate"].mean().sort_values()
    last, best = means.index[0], means.index[-1]
    shown = f"best {best} ({means[best]:.0%}), last {last} ({means[last]:.0%})"
    return Measured(shown, SAME if means.iloc[-1] < 0.65 else OTHER)


def words_alone(_: Published) -> Measured | None:
    """From docs/words.json: `make words`."""
    words = json.loads((ROOT / "docs" / "words.json").read_text(encoding="utf-8"))
    return Measured(
        f"words suffice on {words['n_suffice']} of {words['n_compared']} datasets of {GEMMA}"
    )


def our_words(ours: Ours) -> Measured | None:
    marks = ours.tables.datasets
    normal = marks.loc[marks["setting"] == NORMAL.name, "words"].dropna() if len(marks) else marks
    return Measured(
        f"words suffice on {int((normal == WORDS_SUFFICE).sum())} of {len(normal)} datasets"
    )


def _setting_claims(setting: str, name: str) -> list[Claim]:
    """What the abstract says of each regime, on both models."""
    return [
        Claim(
            name,
            f"{GEMMA}: SAE probes alone are behind the best baseline",
            published_difference(GEMMA, setting, PROBES, BEHIND),
            our_difference(setting, PROBES, BEHIND),
        ),
        Claim(
            name,
            f"{GEMMA}: adding SAE probes to the baselines does not improve the pick",
            published_difference(GEMMA, setting, WITH_SAE, NOT_AHEAD),
            our_difference(setting, WITH_SAE, NOT_AHEAD),
        ),
        Claim(
            name,
            f"{LLAMA}: SAE probes alone are behind the best baseline",
            published_difference(LLAMA, setting, PROBES, BEHIND),
        ),
        Claim(
            name,
            f"{LLAMA}: adding SAE probes to the baselines does not improve the pick",
            published_difference(LLAMA, setting, WITH_SAE, NOT_AHEAD),
        ),
    ]


CLAIMS: tuple[Claim, ...] = (
    Claim("set-up", "There are 113 binary datasets", n_datasets, our_datasets),
    Claim("set-up", "Five baselines compete, the best by validation AUC is taken", methods_of),
    Claim("set-up", "Layer 20 of Gemma 2 9B is the best of those probed", best_layer),
    Claim("data scarcity", "Training rows: 20 sizes from 2 to 1,024", conditions_of("scarcity")),
    Claim(
        "class imbalance", "19 shares of the positive class, 0.05 to 0.95",
        conditions_of("class_imbalance"),
    ),
    Claim("label noise", "11 shares of flipped labels, 0 to 0.5", conditions_of("label_noise")),
    Claim(
        "all data", f"{LLAMA}: SAE probes alone are behind the best baseline",
        published_difference(LLAMA, NORMAL.name, PROBES, BEHIND),
        our_difference(NORMAL.name, PROBES, BEHIND),
    ),
    Claim(
        "all data", f"{LLAMA}: adding SAE probes to the baselines does not improve the pick",
        published_difference(LLAMA, NORMAL.name, WITH_SAE, NOT_AHEAD),
        our_difference(NORMAL.name, WITH_SAE, NOT_AHEAD),
    ),
    *_setting_claims("scarcity", "data scarcity"),
    Claim(
        "data scarcity", f"{GEMMA}: also on at most 20 training rows SAE probes are not ahead",
        at_fewest_rows(GEMMA, 20),
    ),
    Claim(
        "data scarcity", f"{LLAMA}: also on at most 20 training rows SAE probes are not ahead",
        at_fewest_rows(LLAMA, 20),
    ),
    Claim("data scarcity", "A wider SAE does not probe better by being wide", wide_saes),
    *_setting_claims("class_imbalance", "class imbalance"),
    *_setting_claims("label_noise", "label noise"),
    Claim(
        "covariate shift", f"{GEMMA}: SAE probes are behind logistic regression on OOD texts",
        published_difference(GEMMA, "OOD", PROBES, BEHIND),
        our_difference("OOD", PROBES, BEHIND),
    ),
    Claim(
        "covariate shift", f"{SMALL_GEMMA}: the best of its SAEs is behind logistic regression",
        published_difference(SMALL_GEMMA, "OOD", PROBES, BEHIND),
    ),
    Claim(
        "covariate shift", f"{GEMMA}: the published table OOD_setting is out of distribution",
        ood_is_in_distribution,
    ),
    Claim(
        "pruning", "Dropping the latents judged irrelevant helps out of distribution",
        pruned_latents,
    ),
    Claim("pruning", "A language model ranks latents as well as people do", pruned_by_humans),
    Claim(
        "pruning", "Even then logistic regression is ahead out of distribution",
        pruned_against_baseline,
    ),
    Claim(
        "quality of data", "Many labels of CoLA are denied by an ensemble of language models",
        cola_disagreement,
    ),
    Claim(
        "quality of data", "On the original labels the baseline is ahead of one latent",
        cola_probes(0, "sae_1", BEHIND),
    ),
    Claim(
        "quality of data", "Where ensemble and labels differ, one latent sides with the ensemble",
        cola_probes(2, "sae_1", AHEAD),
    ),
    Claim(
        "quality of data", "So do 128 latents", cola_probes(2, "sae_128", AHEAD),
    ),
    Claim("one latent", "A single latent of a wide SAE tells many labels", single_latents),
    Claim("one latent", "Such latents have an explanation that can be read", explanations),
    Claim(
        "all tokens", "SAE probes on all tokens beat some probes on last tokens and components",
        without_attention,
    ),
    Claim(
        "all tokens", "Attention probes among the baselines take some of these wins away",
        with_attention,
    ),
    Claim(
        "architectures", "Newer architectures do not beat ReLU SAEs (normal, k = 16)",
        newer_architectures("normal, k = 16"),
    ),
    Claim(
        "architectures", "Nor with few training rows", newer_architectures("scarcity, k = 16"),
    ),
    Claim("architectures", "Nor out of distribution", newer_architectures("OOD, k = 16")),
    Claim("architectures", "Nor at one latent", newer_architectures("k = 1")),
    Claim("architectures", "No architecture is far ahead of the others", best_architecture),
    Claim(
        "beyond the paper", "Logistic regression alone beats picking the best of five (scarcity)",
        one_baseline_suffices(GEMMA, "scarcity"),
    ),
    Claim(
        "beyond the paper", "The same on Llama, class imbalance",
        one_baseline_suffices(LLAMA, "class_imbalance"),
    ),
    Claim("beyond the paper", "Words alone tell many of the labels", words_alone, our_words),
    Claim(
        "beyond the paper", "SAE probes are ahead of their random twins", None,
        our_control(NORMAL.name, "random_sae", AHEAD),
    ),
    Claim(
        "beyond the paper", "They are behind words alone", None,
        our_control(NORMAL.name, "text_only", BEHIND),
    ),
    Claim(
        "beyond the paper", "They are behind the same probe on raw dimensions", None,
        our_control(NORMAL.name, "raw_dims", BEHIND),
    ),
)  # fmt: skip


def published_paths(paths: Paths, folder: Path | None) -> Paths:
    """Where the paper's files are: in ``folder``, or where they are fetched to.

    Raises UserError for a folder that holds none.
    """
    if folder is None:
        return paths
    if not (folder / "results").is_dir():
        raise UserError(f"{folder} has no folder results/: name that of the paper's files")
    return replace(paths, results_dir=folder / "results", data_dir=folder / "data")


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--published", type=Path, metavar="FOLDER", help="with the paper's results/ and data/"
    )
    parser.add_argument(
        "--ours_model", default="all-MiniLM-L6-v2", metavar="NAME", help="of our own run"
    )
    written = parser.add_mutually_exclusive_group()
    written.add_argument("--document", action="store_true", help="write the page of docs/")
    written.add_argument("--render", action="store_true", help="only write that page again")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths, page = cli.paths_of(args), PAGE
    if args.render:
        content = read_numbers()
    else:
        published = published_paths(paths, args.published)
        ours = read_ours(paths, args.ours_model)
        rows = measure(Published(published), ours)
        content = {"ours": ours_in_words(ours), "claims": [asdict(row) for row in rows]}
        if args.document and ours is None:
            content = with_ours_of(content, read_numbers())
        page = PAGE if args.document else paths.results_dir / PAGE.name
        write_json(page.with_suffix(".json"), content)
    with atomic_path(page) as temporary:
        temporary.write_text(as_page(content), encoding="utf-8")
    print(f"{len(CLAIMS)} claims: {page}")
    return 0


def with_ours_of(content: dict, before: dict) -> dict:
    """The numbers with what stands in earlier ones of a run of ours.

    Raises UserError where these are of other claims.
    """
    if len(before["claims"]) != len(content["claims"]):
        raise UserError(f"{NUMBERS} has other claims: give the results of a run of ours")
    rows = [{**new, "ours": old["ours"]} for new, old in zip(content["claims"], before["claims"])]
    return {"ours": before["ours"], "claims": rows}


def read_ours(paths: Paths, model: str) -> Ours | None:
    """Our own run; None where there is none."""
    info = get_model(model, paths)
    tidy = load_results(paths, info.name, tuple(SETTINGS)).tidy
    if not len(tidy):
        print(f"no results of {info.name} in {paths.results_dir}: make demo makes them")
        return None
    tables = compare_all(Picked(tidy[tidy["protocol"] == "paper"]), "paper")
    return Ours(info.name, tables, tidy)


def ours_in_words(ours: Ours | None) -> str:
    if ours is None:
        return ""
    saes = ", ".join(sorted(ours.tidy.loc[ours.tidy["kind"] == SAE, "sae_id"].dropna().unique()))
    n = ours.tidy["dataset"].nunique()
    fresh = len(on_fresh_rows(ours.tidy)) > 0
    return f"{ours.model}, {saes}, {n} datasets" + (", fresh test rows" if fresh else "")


def measure(source: Published, ours: Ours | None) -> list[Row]:
    """Each claim against the published tables and our run."""
    return [
        Row(
            claim.section,
            claim.claim,
            None if claim.published is None else claim.published(source),
            None if claim.ours is None or ours is None else claim.ours(ours),
        )
        for claim in CLAIMS
    ]


def read_numbers() -> dict:
    """The content of docs/claims.json. Raises UserError where it is not there."""
    if not NUMBERS.is_file():
        raise UserError(f"{NUMBERS} is not there: make claims writes it")
    content = json.loads(NUMBERS.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


HEAD = """\
# The paper's claims, one by one

`make claims ARGS=--document` writes this page. A claim is the paper's (arXiv 2502.16681), in our
words. The column *its tables* is what we compute from the tables published with the paper, matched,
and with ties resolved as everywhere here. A difference is of mean test AUC from the best baseline,
with its 95 % interval over datasets. *Ours* is a run of our own: {ours}.
*yes* and *no* say whether a number agrees with the claim. *not sure* says that its interval reaches
zero, or that the rank test does not agree with it. For "does not improve" and "not ahead" such an
interval agrees, unless its middle is above zero.
A number that stands in the paper's text and in none of its tables is not repeated. Sections are
those that the authors' repository (JoshEngels/SAE-Probes) names. Every number of its tables is made
by `make fetch-data fetch-published-results claims`, which writes such a page into results/, with
your latest run in results/ as *ours*. That of this page is in [full_run.md](full_run.md)."""
# of the paper, as the README of the authors' repository gives them; it names no others
SECTIONS = {
    "pruning": "4.1, 4.2",
    "one latent": "4.1, 4.2",
    "quality of data": "4.3.1",
    "architectures": "6",
}
TAIL = """\
Not here: the normal setting of Gemma 2 9B, whose published table of SAE probes is too large for the
copy that this page was made from."""


def as_page(content: dict) -> str:
    """The page, from the numbers."""
    lines = [
        *HEAD.format(ours=content["ours"] or "none").splitlines(),
        "",
        "| | subject | section | claim | its tables | agrees | ours | agrees |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for number, row in enumerate(content["claims"], 1):
        cells = [str(number), row["section"], SECTIONS.get(row["section"], "–"), row["claim"]]
        for side in ("published", "ours"):
            found = row[side]
            if found is None:
                cells += ["–", ""]
                continue
            why = f" ({found['why']})" if found["why"] else ""
            cells += [found["shown"] + why, found["agrees"]]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    n_agree = {
        side: {
            word: sum(
                1
                for row in content["claims"]
                if row[side] is not None and row[side]["agrees"] == word
            )
            for word in (SAME, OTHER, UNSURE)
        }
        for side in ("published", "ours")
    }
    lines += [
        "",
        *(
            f"{name}: {found[SAME]} agree; {found[OTHER]} not; not sure: {found[UNSURE]}."
            for name, found in (("Its tables", n_agree["published"]), ("Ours", n_agree["ours"]))
        ),
        *(
            f"Against: {number}, {row['claim']}."
            for number, row in enumerate(content["claims"], 1)
            if any(row[side] and row[side]["agrees"] == OTHER for side in ("published", "ours"))
        ),
        "",
        *TAIL.splitlines(),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    cli.run(main)
