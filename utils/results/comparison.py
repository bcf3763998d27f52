"""Matched comparison of SAE probes with baselines: who wins, by how much, and how sure that is.

A decision is one dataset in one condition at one layer, with one seed of its rows. Contenders are
compared only over decisions that all of them have, and a control only with those that it has too. A
contender with several probes for a decision (a quiver) takes the one with the best val_auc and is
scored by its test_auc; ties in val_auc, which decide much of the paper's scarcity setting, are
resolved in expectation over a uniformly random choice. Nothing is ever picked by test_auc.

Means, wins and intervals give each dataset one vote, whatever the number of its decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from utils.names import trained_id
from utils.probes.controls import OF_LAYER
from utils.probes.k_sparse import PROTOCOLS
from utils.probes.words import TEXT_ONLY
from utils.results.statistics import TIE, dataset_means, describe_difference, holm
from utils.results.tidy import BASELINE, CONTROL, SAE, TEXT
from utils.settings import KS_OTHER, NORMAL


@dataclass(frozen=True)
class Contender:
    """Who is compared: its name in tables and figures, and which rows are its probes.

    ``control``: stands for what an SAE did not learn, and takes no decision from the others.
    ``method``: of a control's rows in result tables.
    """

    name: str
    title: str
    rows: Callable[[pd.DataFrame], pd.Series]
    control: bool = False
    method: str | None = None


def _of_kind(*kinds: str) -> Callable[[pd.DataFrame], pd.Series]:
    return lambda rows: rows["kind"].isin(kinds)


def _of_method(kind: str, method: str) -> Callable[[pd.DataFrame], pd.Series]:
    return lambda rows: (rows["kind"] == kind) & (rows["method"] == method)


def _with_control(method: str) -> Callable[[pd.DataFrame], pd.Series]:
    """Probes of the trained SAEs that have a control of a method."""

    def rows_of(rows: pd.DataFrame) -> pd.Series:
        controls = rows.loc[rows["method"] == method, "sae_id"].dropna().unique()
        own = [trained_id(str(name)) for name in controls]
        return (rows["kind"] == SAE) & rows["sae_id"].isin(own)

    return rows_of


def _control(name: str, title: str, method: str) -> Contender:
    return Contender(name, title, _of_method(CONTROL, method), control=True, method=method)


BASELINES, PROBES = "quiver_baselines", "sae_only"  # who is always compared
CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        Contender(BASELINES, "best baseline", _of_kind(BASELINE)),
        Contender("quiver_with_sae", "baselines + SAE", _of_kind(BASELINE, SAE)),
        Contender(PROBES, "SAE probe", _of_kind(SAE)),
        Contender("logreg", "logreg", _of_method(BASELINE, "logreg")),
        Contender(TEXT_ONLY, "text only", _of_kind(TEXT), control=True),
        Contender(
            "twin_sae", "SAEs that have a twin", _with_control("random_sae_probe"), control=True
        ),
        _control("random_sae", "random twin", "random_sae_probe"),
        _control("soft_frozen", "soft-frozen twin", "soft_frozen_probe"),
        _control("raw_dims", "raw dimensions", "raw_dims"),
        _control("pca_dims", "principal components", "pca_dims"),
        _control("reconstruction", "SAE reconstruction", "reconstruction"),
        _control("error", "SAE error", "error"),
        _control("shuffled", "shuffled labels", "shuffled_labels"),
    )
}
TITLES = {name: contender.title for name, contender in CONTENDERS.items()}
CORE = tuple(name for name, contender in CONTENDERS.items() if not contender.control)
CONTROLS = tuple(name for name, contender in CONTENDERS.items() if contender.control)
# of the method of a control's rows, its name here
CONTROL_OF = {of.method: name for name, of in CONTENDERS.items() if of.method is not None}
DECISION = ["setting", "condition", "dataset", "layer", "seed"]
ALL = "all"
COLUMNS = (
    "setting", "condition", "contender", "mean_test_auc", "n_datasets", "n_pairs", "protocol",
    "n_unmatched", "lowest", "highest", "tie_share", "mean_val_auc", "mean_difference", "ci_low",
    "ci_high", "wins", "ties", "losses", "p_wilcoxon", "p_holm", "mde", "n_candidates",
    "n_candidates_baseline", "n_empty", "baselines",
)  # fmt: skip


def pick(rows: pd.DataFrame, also: tuple[str, ...] = ()) -> pd.DataFrame:
    """One row a decision: test_auc expected over the probes tied at the best val_auc, its range,
    how many are tied (``n_tied``), of how many one was picked (``n_candidates``), and whether all
    that are tied have no weight at all (``empty``: their AUC is 0.5 whatever the data).

    ``also``: columns whose values pick each for themselves, as SAEs compared with each other do.
    A probe without val_auc is not picked, unless it is the only one and needs no picking (the
    published OOD tables have one baseline a dataset, without val_auc).
    """
    by = [*also, *DECISION]
    by_decision = rows.groupby(by, observed=True)
    best = by_decision["val_auc"].transform("max")
    alone = by_decision["test_auc"].transform("size") == 1
    tied = rows[(rows["val_auc"] >= best - TIE) | alone]
    weightless = (tied["n_nonzero"] == 0) if "n_nonzero" in tied else False
    grouped = tied.assign(empty=weightless).groupby(by, observed=True)
    picked = grouped["test_auc"].agg(test_auc="mean", lowest="min", highest="max", n_tied="size")
    picked["val_auc"] = grouped["val_auc"].max()
    picked["empty"] = grouped["empty"].all()
    picked["n_candidates"] = by_decision.size()
    picked["methods"] = " ".join(sorted(rows["method"].dropna().unique()))
    picked["n_test"] = grouped["n_test"].max() if "n_test" in tied else np.nan
    return in_words(picked.reset_index())


def in_words(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose categories are the words that they stand for."""
    names = [name for name, kind in table.dtypes.items() if kind == "category"]
    return table.astype(dict.fromkeys(names, object))


# what a pick is made from; a copy of millions of rows with all columns is a gigabyte
PICKED_FROM = (
    *DECISION,
    "sae_id",
    "protocol",
    "method",
    "val_auc",
    "test_auc",
    "n_nonzero",
    "n_test",
)


def _to_pick_from(rows: pd.DataFrame, mask: pd.Series) -> pd.DataFrame:
    """Those of the rows that have a test AUC, with the columns that picks are made from."""
    return rows.loc[mask & rows["test_auc"].notna(), [c for c in PICKED_FROM if c in rows]]


def contenders(tidy: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The picks of every contender that has probes in the table.

    All SAE probes of a decision compete, whatever their solver, penalty and selection; ``audit``
    says where these are mixed. Where logistic regression is the only baseline it is the best one,
    and stands once; so do SAEs that all have a twin.
    """
    scored = tidy["test_auc"].notna()
    tidy = tidy if scored.all() else tidy[scored]
    masks = {name: contender.rows(tidy) for name, contender in CONTENDERS.items()}
    for narrower, wider in (("logreg", BASELINES), ("twin_sae", PROBES)):
        if (masks[narrower] == masks[wider]).all():
            del masks[narrower]
    picks = {name: pick(_to_pick_from(tidy, mask)) for name, mask in masks.items() if mask.any()}
    if {BASELINES, PROBES} <= set(picks):
        picks["quiver_with_sae"] = _rankable(
            picks["quiver_with_sae"], picks[BASELINES], picks[PROBES]
        )
    return {name: picked for name, picked in picks.items() if len(picked)}


def _rankable(either: pd.DataFrame, *sides: pd.DataFrame) -> pd.DataFrame:
    """The decisions of ``either`` in which each side was picked by a val_auc: what has none can be
    neither first nor second.
    """
    unranked = pd.concat([side.loc[side["val_auc"].isna(), DECISION] for side in sides])
    return either[
        ~pd.MultiIndex.from_frame(either[DECISION]).isin(pd.MultiIndex.from_frame(unranked))
    ]


def matched(picks: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The picks over the decisions that all contenders have, in the same order."""
    if not picks:
        return {}
    places = {name: pd.MultiIndex.from_frame(rows[DECISION]) for name, rows in picks.items()}
    first, *others = places.values()
    shared = first
    for other in others:
        shared = shared[shared.isin(other)]
    shared = shared[_order_of(shared.to_frame(index=False))]
    return {
        name: rows.iloc[places[name].get_indexer(shared)].reset_index(drop=True)
        for name, rows in picks.items()
    }


def _order_of(decisions: pd.DataFrame) -> pd.Index:
    """The places of decisions in their order; as text, because layers are numbers and "embed"."""
    return decisions[DECISION].astype(str).sort_values(DECISION, kind="stable").index


def protocols(tidy: pd.DataFrame) -> list[str]:
    """The protocols of the SAE probes in a table, the paper's first."""
    names = set(tidy.loc[tidy["kind"] == SAE, "protocol"].unique())
    return [protocol for protocol in PROTOCOLS if protocol in names]


def of_protocol(tidy: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """The rows of a protocol: probes on latents and controls, baselines and probes on texts; the
    paper's, in settings that have none of the protocol.
    """
    mine = tidy["protocol"] == protocol
    kept = mine
    for kind in (BASELINE, TEXT):
        of_kind = tidy["kind"] == kind
        lacking = ~tidy["setting"].isin(tidy.loc[of_kind & mine, "setting"].unique())
        kept = kept | (of_kind & lacking & (tidy["protocol"] == PROTOCOLS[0]))
    return tidy if kept.all() else tidy[kept]  # a copy of millions of rows is a gigabyte


def on_fresh_rows(tidy: pd.DataFrame) -> pd.DataFrame:
    """The probes that say what they score on fresh test rows, those whose text is in no training
    row, with that score as their test_auc. They are still picked by the same val_auc.
    """
    if "test_auc_fresh" not in tidy:
        return tidy.iloc[:0]
    fresh = tidy[tidy["test_auc_fresh"].notna()]
    return fresh.assign(test_auc=fresh["test_auc_fresh"], n_test=fresh["n_fresh"])


def on_score(tidy: pd.DataFrame, score: str) -> pd.DataFrame:
    """The probes that have another score, with it as their test_auc; still picked by val_auc."""
    if score not in tidy:
        return tidy.iloc[:0]
    known = tidy[tidy[score].notna()]
    return known.assign(test_auc=known[score])


class Picks:
    """The picks of a table's contenders by setting and protocol, each made once: of millions of
    rows they take seconds. ``fresh``: on fresh test rows, of the probes that say so.
    """

    def __init__(self, tidy: pd.DataFrame, fresh: bool = False) -> None:
        self.tidy, self.fresh = tidy, fresh
        self._made: dict[tuple[str, str], dict[str, pd.DataFrame]] = {}

    def settings(self) -> list[str]:
        """In the order of the table."""
        return list(map(str, self.tidy["setting"].unique()))

    def protocols(self, setting: str) -> list[str]:
        """Those of the setting's SAE probes."""
        rows = self._rows(setting)
        told = [name for name in ("kind", "protocol", "test_auc_fresh", "n_fresh") if name in rows]
        return protocols(on_fresh_rows(rows[told]) if self.fresh else rows)

    def shown(self, setting: str, protocol: str) -> pd.DataFrame:
        """The rows of a setting and protocol, with their score on these test rows."""
        # the protocol first: a baseline of it that knows no fresh rows is not one of the other's
        rows = of_protocol(self._rows(setting), protocol)
        return on_fresh_rows(rows) if self.fresh else rows

    def of(self, setting: str, protocol: str) -> dict[str, pd.DataFrame]:
        """{contender: its picks}."""
        if (setting, protocol) not in self._made:
            self._made[setting, protocol] = contenders(self.shown(setting, protocol))
        return self._made[setting, protocol]

    def _rows(self, setting: str) -> pd.DataFrame:
        mine = self.tidy["setting"] == setting
        return self.tidy if mine.all() else self.tidy[mine]  # a copy of millions is a gigabyte


class KnownPicks(Picks):
    """On fresh test rows in the settings and protocols of which SAE probes and baselines both know
    them, on all in the others.
    """

    def __init__(self, every: Picks, fresh: Picks) -> None:
        super().__init__(every.tidy)
        self._every, self._fresh = every, fresh
        self._is_fresh: dict[tuple[str, str], bool] = {}

    def is_fresh(self, setting: str, protocol: str) -> bool:
        if (setting, protocol) not in self._is_fresh:
            kinds = set(self._fresh.shown(setting, protocol)["kind"].unique())
            self._is_fresh[setting, protocol] = {SAE, BASELINE} <= kinds
        return self._is_fresh[setting, protocol]

    def shown(self, setting: str, protocol: str) -> pd.DataFrame:
        return self._side(setting, protocol).shown(setting, protocol)

    def of(self, setting: str, protocol: str) -> dict[str, pd.DataFrame]:
        return self._side(setting, protocol).of(setting, protocol)

    def _side(self, setting: str, protocol: str) -> Picks:
        return self._fresh if self.is_fresh(setting, protocol) else self._every


class Picked:
    """A model's picks on all test rows (``every``), on fresh ones (``fresh``), and on fresh ones
    where they are known, on all elsewhere (``known``).
    """

    def __init__(self, tidy: pd.DataFrame) -> None:
        self.every, self.fresh = Picks(tidy), Picks(tidy, fresh=True)
        self.known = KnownPicks(self.every, self.fresh)


def against(picked: Picks) -> pd.DataFrame:
    """The SAE probe against each control, over all conditions: a row a setting, protocol and
    control, matched; columns setting, protocol, control, both mean test AUCs and those of
    ``describe_difference``. An SAE is compared with its own controls.
    """
    rows = []
    for setting in picked.settings():
        for protocol in picked.protocols(setting):
            picks = picked.of(setting, protocol)
            of_shown = picked.shown(setting, protocol)
            for name in CONTROLS:
                if name == "twin_sae" or name not in picks or PROBES not in picks:
                    continue
                own, method = picks[PROBES], CONTENDERS[name].method
                if method is not None and method not in OF_LAYER:
                    own = pick(_to_pick_from(of_shown, _with_control(method)(of_shown)))
                sides = matched({"sae": own[picks[PROBES].columns], "control": picks[name]})
                if len(sides["sae"]):
                    what = {"setting": setting, "protocol": protocol, "control": name}
                    both = _side_by_side(sides["sae"], sides["control"], ("SAE probe", "control's"))
                    rows.append({**what, **both})
    return _with_holm(pd.DataFrame(rows))


WORDS_SUFFICE, MODEL_NEEDED = "words suffice", "model needed"
NEAR = 0.01  # AUC that words may be behind the best probe of a model and still suffice


def by_dataset(picked: Picked, protocol: str) -> pd.DataFrame:
    """A row a setting and dataset: mean test AUC of each contender over its decisions, on fresh
    test rows where both probes and words are known there, else on all (``test_rows``).

    ``words``: WORDS_SUFFICE where text only is within NEAR of the better of best baseline and SAE
    probe, or above, else MODEL_NEEDED; None where there is no probe on texts.
    """
    tables = [
        _by_dataset(picks, protocol).assign(test_rows=name)
        for name, picks in (("fresh", picked.fresh), ("all", picked.every))
    ]
    table = pd.concat([part for part in tables if len(part)] or [pd.DataFrame()])
    if not len(table):
        return table
    if TEXT_ONLY not in table:
        table[TEXT_ONLY] = np.nan
    ours = table[[name for name in (BASELINES, PROBES) if name in table]]
    known = table[TEXT_ONLY].notna() & ours.notna().all(axis=1)
    suffice = table[TEXT_ONLY] >= ours.max(axis=1) - NEAR
    table["words"] = np.where(suffice, WORDS_SUFFICE, MODEL_NEEDED)
    table["words"] = table["words"].where(known, None)
    # fresh rows come first, but for datasets of which too little is known there
    order = table["words"].isna().to_numpy().argsort(kind="stable")
    table = table.iloc[order].drop_duplicates(["setting", "dataset"])
    return table.sort_values(["setting", "dataset"], kind="stable").reset_index(drop=True)


def _by_dataset(picked: Picks, protocol: str) -> pd.DataFrame:
    tables = []
    for setting in picked.settings():
        picks = picked.of(setting, protocol)
        if BASELINES not in picks:
            continue
        # without SAE probes the words are compared with the baselines alone
        shared = _core(picks) if PROBES in picks else {BASELINES: picks[BASELINES]}
        for name in CONTROLS:
            if name in picks:
                shared[name] = matched({name: picks[name], "all": shared[BASELINES]})[name]
        means = {
            name: picked.groupby("dataset", observed=True)["test_auc"].mean()
            for name, picked in shared.items()
        }
        table = pd.DataFrame(means).rename_axis("dataset").reset_index()
        sizes = shared[BASELINES].groupby("dataset", observed=True)["n_test"].mean()
        table["n_test"] = table["dataset"].map(sizes)
        tables.append(table.assign(setting=setting))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def needing_a_model(tidy: pd.DataFrame, datasets: pd.DataFrame) -> pd.DataFrame:
    """The rows of datasets, setting by setting, whose labels the words alone do not tell; of
    ``datasets``, what ``by_dataset`` says.
    """
    if not len(datasets):
        return tidy.iloc[:0]
    needed = datasets[datasets["words"] == MODEL_NEEDED]
    kept = pd.MultiIndex.from_frame(needed[["setting", "dataset"]])
    return tidy[pd.MultiIndex.from_frame(tidy[["setting", "dataset"]]).isin(kept)]


def stated(comparison: pd.DataFrame, fresh: pd.DataFrame) -> pd.DataFrame:
    """What a report says in sentences: a row of SAE probes a setting and protocol, on fresh rows
    (``fresh``: ``compare`` of these) where they are known, else on all; ``test_rows`` says which.
    These are one family of tests.
    """
    tables = [fresh.assign(test_rows="fresh"), comparison.assign(test_rows="all")]
    rows = pd.concat([table for table in tables if len(table)] or tables, ignore_index=True)
    rows = rows[(rows["condition"] == ALL) & (rows["contender"] == PROBES)]
    first = rows.drop_duplicates(["setting", "protocol"])
    order = {name: i for i, name in enumerate(comparison["setting"].unique())}
    first = first.sort_values(
        "setting", key=lambda names: names.astype(object).map(order), kind="stable"
    )
    return first.assign(p_holm=holm(first["p_wilcoxon"]))


def compare(picked: Picks) -> pd.DataFrame:
    """Per setting, protocol and condition (and "all" of them), a row a contender, against the
    quiver of baselines.

    Columns: setting, condition, contender, mean_test_auc, n_datasets, n_pairs (matched decisions),
    then protocol, n_unmatched, the range of the mean over tie rules (lowest, highest), tie_share,
    mean_val_auc, and against quiver_baselines: mean_difference with Student's 95 % interval over
    datasets (ci_low, ci_high), datasets ahead, tied and behind (wins, ties, losses), Wilcoxon's p,
    corrected by Holm (p_holm) over the whole table, for the SAE probes of "all" conditions over
    these rows alone, which a report says in sentences; the smallest difference that these datasets
    would show with 80 % power (mde), how many probes the picks were chosen from on each side
    (n_candidates, n_candidates_baseline), decisions whose pick has no weight (n_empty), and the
    baselines that there are.
    """
    tables = []
    for setting in picked.settings():
        for protocol in picked.protocols(setting):
            picks = picked.of(setting, protocol)
            if {BASELINES, PROBES} <= set(picks) and len(_core(picks)[PROBES]):
                tables.append(_compare_picks(setting, picks).assign(protocol=protocol))
    if not tables:
        return pd.DataFrame(columns=list(COLUMNS))
    table = pd.concat(tables, ignore_index=True).reindex(columns=list(COLUMNS))
    # what a report says in sentences is one family of tests, all that its table lists another
    stated = (table["condition"] == ALL) & (table["contender"] == PROBES)
    p = table["p_wilcoxon"]
    return table.assign(p_holm=holm(p).where(~stated, holm(p[stated]).reindex(table.index)))


@dataclass(frozen=True)
class Comparisons:
    """All that a report says of who is ahead; each table may be empty.

    ``all_rows``: of ``compare``; ``fresh``: the same on fresh test rows; ``needed``: the same on
    the datasets whose labels words alone do not tell, on fresh rows where they are known, as
    ``against`` is, of the function of that name; ``datasets``: of ``by_dataset``; ``fixed_k``: of
    ``at_fixed_k``.
    """

    all_rows: pd.DataFrame
    fresh: pd.DataFrame = field(default_factory=pd.DataFrame)
    needed: pd.DataFrame = field(default_factory=pd.DataFrame)
    against: pd.DataFrame = field(default_factory=pd.DataFrame)
    datasets: pd.DataFrame = field(default_factory=pd.DataFrame)
    fixed_k: pd.DataFrame = field(default_factory=pd.DataFrame)

    def best_known(self) -> pd.DataFrame:
        """The comparison on fresh rows in the settings and protocols where they are known, on all
        in others.
        """
        if not len(self.fresh):
            return self.all_rows
        pairs = ["setting", "protocol"]
        known = pd.MultiIndex.from_frame(self.fresh[pairs])
        others = self.all_rows[~pd.MultiIndex.from_frame(self.all_rows[pairs]).isin(known)]
        return pd.concat([self.fresh, others]) if len(others) else self.fresh

    def table(self) -> pd.DataFrame:
        """The comparisons as one table; ``test_rows`` and ``datasets`` tell them apart."""
        every = [
            self.all_rows.assign(test_rows="all", datasets="all"),
            self.fresh.assign(test_rows="fresh", datasets="all"),
            self.needed.assign(test_rows="fresh where known", datasets=MODEL_NEEDED),
        ]
        return pd.concat([table for table in every if len(table)] or every[:1])


def compare_all(picked: Picked, protocol: str) -> Comparisons:
    """Every comparison of a model's probes; ``protocol``: whose picks tell datasets apart."""
    datasets = by_dataset(picked, protocol)
    return Comparisons(
        compare(picked.every),
        compare(picked.fresh),
        compare(Picked(needing_a_model(picked.every.tidy, datasets)).known),
        against(picked.known),
        datasets,
        at_fixed_k(picked.known, protocol),
    )


def _core(picks: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The contenders but the controls, over the decisions that baselines and SAE probes both have.

    Baselines and SAEs together may be rankable nowhere (published OOD tables have no val_auc): then
    they are left out.
    """
    sides = matched({name: picks[name] for name in (BASELINES, PROBES)})
    wanted = {name: picks[name] for name in CORE if name in picks}
    shared = matched(wanted)
    if len(shared[PROBES]) or not len(sides[PROBES]):
        return shared
    return matched({name: picked for name, picked in wanted.items() if name != "quiver_with_sae"})


def _compare_picks(setting: object, picks: dict[str, pd.DataFrame]) -> pd.DataFrame:
    present = _core(picks)
    pairs = {name: (picked, present[BASELINES]) for name, picked in present.items()}
    for name in CONTROLS:
        if name in picks:
            sides = matched({name: picks[name], "baseline": present[BASELINES]})
            pairs[name] = (sides[name], sides["baseline"])
    values = sorted(present[BASELINES]["condition"].unique(), key=_sortable)
    conditions = [condition for condition in values if condition != ALL]
    rows = [
        row
        for c in conditions
        for row in _rows(setting, c, {n: _only(p, c) for n, p in pairs.items()})
    ]
    frame = pd.DataFrame(rows + _rows(setting, ALL, pairs))
    decisions = {
        tuple(row) for name in present for row in picks[name][DECISION].itertuples(index=False)
    }
    unmatched = len(decisions) - len(present[BASELINES])
    frame["n_unmatched"] = np.where(frame["condition"] == ALL, unmatched, 0)
    return frame


def _only(
    pair: tuple[pd.DataFrame, pd.DataFrame], condition: object
) -> tuple[pd.DataFrame, pd.DataFrame]:
    picked, reference = pair
    return picked[picked["condition"] == condition], reference[reference["condition"] == condition]


def _rows(
    setting: object, condition: object, pairs: dict[str, tuple[pd.DataFrame, pd.DataFrame]]
) -> list[dict]:
    """A row a contender; each comes with the baselines' picks for the same decisions."""
    rows = []
    for name, (picked, reference) in pairs.items():
        if not len(picked):
            continue
        mean = {
            column: dataset_means(picked[column].to_numpy(), picked["dataset"]).mean()
            for column in ("test_auc", "lowest", "highest", "val_auc")
        }
        row = {
            "setting": setting,
            "condition": condition,
            "contender": name,
            "mean_test_auc": mean["test_auc"],
            "n_datasets": picked["dataset"].nunique(),
            "n_pairs": len(picked),
            "lowest": mean["lowest"],
            "highest": mean["highest"],
            "tie_share": float((picked["n_tied"] > 1).mean()),
            "mean_val_auc": mean["val_auc"],
            "n_candidates": picked["n_candidates"].mean(),
            "n_candidates_baseline": reference["n_candidates"].mean(),
            "n_empty": int(picked["empty"].sum()),
            "baselines": reference["methods"].iloc[0],
        }
        if name != BASELINES:
            row |= _difference(picked, reference)
        rows.append(row)
    return rows


def _difference(picked: pd.DataFrame, reference: pd.DataFrame) -> dict[str, float | int]:
    """What is known of the difference of matched picks. A pick without weights wins nothing: where
    it is ahead of the other side, that is a tie.
    """
    difference = picked["test_auc"].to_numpy() - reference["test_auc"].to_numpy()
    empty, other_empty = (side["empty"].to_numpy(dtype=bool) for side in (picked, reference))
    won_by_nothing = (empty & (difference > 0)) | (other_empty & (difference < 0))
    described = describe_difference(difference, picked["dataset"])
    means = dataset_means(np.where(won_by_nothing, 0.0, difference), picked["dataset"])
    wins, losses = int((means > TIE).sum()), int((means < -TIE).sum())
    return {**described, "wins": wins, "ties": len(means) - wins - losses, "losses": losses}


def _sortable(condition: object) -> float:
    return -1.0 if condition == ALL else float(str(condition))


def by_sae(picked: Picks) -> pd.DataFrame:
    """A row a setting, protocol and SAE (controls too): its probe, k picked by val_auc, against the
    best baseline, matched.

    Columns: setting, SAE or control, protocol, n_candidates (numbers of k to pick from), mean test
    AUC of both sides, and the columns of ``describe_difference``.
    """
    rows = []
    names = ("SAE probe", "best baseline")
    for setting in picked.settings():
        of_setting_rows = []
        for protocol in picked.protocols(setting):
            of_same = picked.of(setting, protocol).get(BASELINES)
            if of_same is None:
                continue
            shown = picked.shown(setting, protocol)
            probes = _to_pick_from(shown, shown["kind"].isin([SAE, CONTROL]))
            n_layers = probes.groupby("sae_id", observed=True)["layer"].nunique()
            best = pick(probes, ("sae_id",))
            each = _matched_each(best, of_same, ["sae_id", "layer"])
            for (sae_id, layer), probe, base in each:
                name = f"{sae_id} at {layer}" if n_layers[sae_id] > 1 else sae_id  # of two hooks
                what = {"setting": setting, "SAE or control": name, "protocol": protocol}
                place = (str(sae_id), str(layer), protocol)
                of_setting_rows.append((place, {**what, **_side_by_side(probe, base, names)}))
        rows += [row for _, row in sorted(of_setting_rows, key=lambda one: one[0])]
    return _with_holm(pd.DataFrame(rows))


def _matched_each(
    picked: pd.DataFrame, reference: pd.DataFrame, by: list[str]
) -> Iterator[tuple[tuple, pd.DataFrame, pd.DataFrame]]:
    """(values of ``by``, its picks, the reference's) for each group of picks that shares decisions
    with the reference, in the order of ``matched``: thousands of SAEs are matched at once.
    """
    reference = reference.loc[_order_of(reference)].reset_index(drop=True)
    places = pd.MultiIndex.from_frame(reference[DECISION])
    at = places.get_indexer(pd.MultiIndex.from_frame(picked[DECISION]))
    order = np.argsort(at, kind="stable")[int((at < 0).sum()) :]
    shared, at = picked.iloc[order], at[order]
    groups = shared.groupby(by, observed=True).indices
    # what differences are made of alone: thousands of small tables of words take seconds
    shared, reference = (
        side[["dataset", "test_auc", "n_candidates", "empty"]].astype({"dataset": "category"})
        for side in (shared, reference)
    )
    for values, rows in groups.items():
        of_group = values if isinstance(values, tuple) else (values,)
        yield of_group, shared.iloc[rows], reference.iloc[at[rows]]


MOST_RANKED = 60  # SAEs that are compared pair by pair: their number grows as the square


def leaderboard(picked: Picks, setting: str, protocol: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(a row an SAE, the best mean first; a row a pair), over the decisions of a setting.

    Of an SAE: its mean test AUC over the decisions that all SAEs share (k picked by val_auc; NaN
    where it lacks some that others have, and then it stands last and is in no pair), its
    ``own_datasets``, and against the best baseline the columns of ``describe_difference`` over the
    ``n_datasets`` that both have. Of a pair of the first MOST_RANKED: those columns, with p_holm
    over all pairs.
    """
    of_setting = picked.shown(setting, protocol)
    probes = _to_pick_from(of_setting, of_setting["kind"] == SAE)
    if not len(probes):
        return pd.DataFrame(), pd.DataFrame()
    best = pick(probes, ("sae_id",))
    by_sae = {str(name): rows for name, rows in best.groupby("sae_id", observed=True)}
    most = max(map(len, by_sae.values()))
    number = best.groupby(DECISION, observed=True).ngroup()
    decisions = {name: np.sort(number[rows.index]) for name, rows in by_sae.items()}
    every = next(decisions[name] for name, rows in by_sae.items() if len(rows) == most)
    means = {
        name: dataset_means(rows["test_auc"].to_numpy(), rows["dataset"]).mean()
        if np.array_equal(decisions[name], every)
        else float("nan")
        for name, rows in by_sae.items()
    }
    baseline = picked.of(setting, protocol).get(BASELINES)
    ordered = sorted(by_sae, key=lambda name: (means[name] != means[name], -means[name], name))
    behind: dict[str, dict] = {}
    if baseline is not None:
        for (name,), own, base in _matched_each(best, baseline, ["sae_id"]):
            n = own["dataset"].nunique()
            behind[str(name)] = {**_difference(own, base), "n_datasets": n}
    rows = []
    for name in ordered:
        n_own = by_sae[name]["dataset"].nunique()
        what = {"SAE": name, "mean_test_auc": means[name], "own_datasets": n_own}
        rows.append({**what, **behind.get(name, {})})
    ranked = [name for name in ordered if means[name] == means[name]][:MOST_RANKED]
    # they have the same decisions: matched once, all at a time
    rows_of = matched({name: by_sae[name] for name in ranked})
    pairs = []
    for i, better in enumerate(ranked):
        datasets = rows_of[better]["dataset"].astype("category")
        n = datasets.nunique()
        for other in ranked[i + 1 :]:
            difference = rows_of[better]["test_auc"] - rows_of[other]["test_auc"]
            said = describe_difference(difference.to_numpy(), datasets)
            pairs.append({"SAE": better, "other": other, "n_datasets": n, **said})
    return _with_holm(pd.DataFrame(rows)), _with_holm(pd.DataFrame(pairs))


def against_controls(picked: Picks, protocol: str) -> pd.DataFrame:
    """Normal setting, for each k, a row an SAE and a control that it is compared with: its own, and
    raw dimensions and principal components of its layer.

    Each side has one probe a decision, so that neither is the best of more. Columns: k, SAE,
    control, both mean test AUCs, and the columns of ``describe_difference``.
    """
    if NORMAL.name not in picked.settings():
        return pd.DataFrame()
    shown = picked.shown(NORMAL.name, protocol)
    rows = shown[shown["kind"].isin([SAE, CONTROL]) & shown["sae_id"].notna()]
    table: list[dict] = []
    for k, of_k in rows.dropna(subset=["test_auc", "k"]).groupby("k", observed=True):
        if not (of_k["kind"] == CONTROL).any():
            continue
        best = pick(of_k, ("sae_id",))
        picks = {str(sae_id): of_sae for sae_id, of_sae in best.groupby("sae_id", observed=True)}
        trained = sorted(of_k.loc[of_k["kind"] == SAE, "sae_id"].astype(str).unique())
        controls = of_k[of_k["kind"] == CONTROL].drop_duplicates("sae_id")
        for control in controls.sort_values("sae_id").to_dict("records"):
            name = str(control["sae_id"])
            for sae_id in trained if control["method"] in OF_LAYER else [trained_id(name)]:
                if sae_id not in picks:
                    continue
                pair = matched({"sae": picks[sae_id], "control": picks[name]})
                if len(pair["sae"]):
                    sides = _side_by_side(pair["sae"], pair["control"], ("SAE probe", "control's"))
                    table.append({"k": int(k), "SAE": sae_id, "control": name, **sides})
    return _with_holm(pd.DataFrame(table))


def _side_by_side(
    picked: pd.DataFrame, reference: pd.DataFrame, names: tuple[str, str]
) -> dict[str, object]:
    """Both mean test AUCs over datasets, under their names, and the difference between them."""
    datasets = picked["dataset"]
    means = {
        name: float(dataset_means(side["test_auc"].to_numpy(), datasets).mean())
        for name, side in zip(names, (picked, reference))
    }
    sizes = {"n_candidates": picked["n_candidates"].mean(), "n_datasets": datasets.nunique()}
    return {
        **sizes,
        **means,
        **_difference(picked, reference),
        "n_empty": int(picked["empty"].sum() + reference["empty"].sum()),
    }


def _with_holm(table: pd.DataFrame) -> pd.DataFrame:
    known = len(table) and "p_wilcoxon" in table
    return table.assign(p_holm=holm(table["p_wilcoxon"])) if known else table


AT_K = (PROBES, "random_sae", "soft_frozen", "raw_dims", "pca_dims")  # who has a k


def at_fixed_k(picked: Picks, protocol: str, ks: tuple[int, ...] = KS_OTHER) -> pd.DataFrame:
    """Contender by setting and k: mean test AUC over datasets where nothing is picked. Several SAEs
    count by their mean. Beside those with a k, what
    has none: logistic regression, text only. All over the decisions that all of them have.
    """
    columns: dict[tuple[str, str], dict[str, float]] = {}
    for setting in picked.settings():
        of_setting = picked.shown(setting, protocol)
        masks = {name: contender.rows(of_setting) for name, contender in CONTENDERS.items()}
        if masks["twin_sae"].any():  # the same SAEs on both sides
            masks[PROBES] = masks["twin_sae"]
        for k in ks:
            means = {
                name: of_setting[masks[name] & (of_setting["k"] == k)]
                .groupby(DECISION, observed=True)["test_auc"]
                .mean()
                for name in AT_K
            }
            for name in ("logreg", TEXT_ONLY):
                means[name] = (
                    of_setting[masks[name]].groupby(DECISION, observed=True)["test_auc"].mean()
                )
            there = {name: mean for name, mean in means.items() if len(mean)}
            if PROBES not in there:
                continue
            shared = pd.concat(there, axis=1, join="inner").groupby("dataset", observed=True).mean()
            if len(shared):
                column = {TITLES[name]: mean for name, mean in shared.mean().items()}
                columns[setting, f"k = {k}"] = {**column, "datasets": float(len(shared))}
    table = pd.DataFrame(columns)
    order = [title for title in [*TITLES.values(), "datasets"] if title in table.index]
    return table.loc[order]


def val_test_gap(tidy: pd.DataFrame) -> pd.DataFrame:
    """How far validation AUC promises more than test rows keep: a row a setting and condition, over
    all probes, unpicked.

    Columns: setting, condition, then "val - test: …" for the SAE probes of each protocol, all
    baselines, and logreg.
    """
    rows = tidy.dropna(subset=["val_auc", "test_auc"])
    rows = rows.assign(gap=rows["val_auc"] - rows["test_auc"])
    who = {
        f"SAE probes, {protocol}": (rows["kind"] == SAE) & (rows["protocol"] == protocol)
        for protocol in protocols(rows)
    }
    for protocol in PROTOCOLS:
        which = "" if protocol == PROTOCOLS[0] else f", {protocol}"
        of_baselines = (rows["kind"] == BASELINE) & (rows["protocol"] == protocol)
        who[f"baselines{which}"] = of_baselines
        who[f"logreg{which}"] = of_baselines & (rows["method"] == "logreg")
    who = {name: mask for name, mask in who.items() if mask.any()}
    columns = {
        name: rows[mask].groupby(["setting", "condition"], sort=False, observed=True)["gap"].mean()
        for name, mask in who.items()
    }
    table = pd.concat(columns, axis=1).dropna(thresh=2).reset_index()
    order = {setting: i for i, setting in enumerate(dict.fromkeys(rows["setting"]))}
    return table.sort_values(
        ["setting", "condition"],
        key=lambda c: c.astype(object).map(order) if c.name == "setting" else c.map(_sortable),
    )


def headline(table: pd.DataFrame) -> pd.DataFrame:
    """Contender by setting (and protocol, where there are two): mean test AUC over datasets, as
    text, with the numbers of datasets and pairs below. A number over fewer datasets than its column
    says has its own in brackets.
    """
    overall = table[table["condition"] == ALL]
    several = overall["protocol"].nunique() > 1
    columns: dict[str, dict[str, str]] = {}
    for (setting, protocol), rows in overall.groupby(
        ["setting", "protocol"], sort=False, observed=True
    ):
        of_probes = rows.set_index("contender").loc[PROBES]
        column = columns.setdefault(f"{setting}, {protocol}" if several else str(setting), {})
        for row in rows.to_dict("records"):
            auc = f"{row['mean_test_auc']:.3f}"
            if row["n_datasets"] != of_probes["n_datasets"]:
                auc += f" (of {row['n_datasets']})"
            column[TITLES[row["contender"]]] = auc
        column["datasets"], column["pairs"] = (
            f"{of_probes[name]:.0f}" for name in ("n_datasets", "n_pairs")
        )
    wide = pd.DataFrame(columns).fillna("–")
    order = [*(title for title in TITLES.values() if title in wide.index), "datasets", "pairs"]
    return wide.loc[order]
