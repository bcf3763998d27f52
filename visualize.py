"""Result tables to a matched comparison, figures and a self-contained report.

    python visualize.py --model_name gemma-2-9b
    python visualize.py --model_name all-MiniLM-L6-v2 --setting scarcity

Reads the tables of train_baselines.py and train_sae_probes.py, or the paper's published ones, or both. Writes
results/comparison_{model}.csv, figures/{model}/*.png and *.pdf and figures/{model}/report.html, and prints the headline
table. A figure whose table is missing is left out, with a line that says so.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from utils import cli
from utils.comparison import (
    CONTROL_METHODS,
    TITLES,
    by_sae,
    compare,
    contenders,
    headline,
    matched,
    of_protocol,
    protocols,
    val_test_gap,
)
from utils.errors import UserError
from utils.models import get_model
from utils.paths import BASELINE_FOLDERS, Paths
from utils.probes import PROTOCOLS
from utils.report import write_report
from utils.results import read_table
from utils.runtime import atomic_path, progress
from utils.settings import SETTINGS
from utils.tidy_results import BASELINE, CONTROL, SAE, load_results

# What differs in the texts of each out-of-distribution file, as read in the files
OOD_SHIFTS = {
    "5_hist_fig_ismale": "cartoon characters",
    "6_hist_fig_isamerican": "stray letters in names",
    "7_hist_fig_ispolitician": "surname first",
    "66_living-room": "in French",
    "67_social-security": "in Spanish",
    "73_control-group": "in German",
    "87_glue_cola": "sentences from elsewhere",
    "90_glue_qnli": "texts from elsewhere",
}
CONDITION_LABELS = {
    "scarcity": "training rows",
    "class_imbalance": "fraction of positive rows",
    "label_noise": "fraction of training labels flipped",
}


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    cli.add_setting(parser, extra=("all",), default="all")
    cli.add_datasets(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    model_name = get_model(args.model_name).name
    settings = SETTINGS if args.setting == "all" else (args.setting,)
    tidy, remarks = load_results(paths, model_name, settings)
    if args.datasets:
        tidy = tidy[tidy["dataset"].isin(args.datasets)]
    if not len(tidy):
        raise UserError(
            f"no result tables of {model_name} in {paths.results_dir}: "
            f"run `make train-baselines train-sae-probes MODEL={model_name}`"
        )
    for remark in remarks:
        print(f"note: {remark}")
    comparison = compare(tidy)
    table_path = paths.comparison_table(model_name)
    with atomic_path(table_path) as temporary:
        comparison.to_csv(temporary, index=False, lineterminator="\n")

    # figures show one protocol, the paper's where there are both; tables show both
    shown = next(iter(protocols(tidy)), PROTOCOLS[0])
    drawn, left_out = draw(of_protocol(tidy, shown), comparison[comparison["protocol"] == shown], paths.figures(model_name))
    for line in left_out:
        print(f"left out: {line}")
    against_control = control_table(of_protocol(tidy, shown))
    report = paths.figures(model_name) / "report.html"
    write_report(
        report,
        model_name,
        {
            "comparison": comparison,
            "against_control": against_control,
            "gap": val_test_gap(tidy),
            "positive_control": positive_control(paths),
            "each_sae": by_sae(tidy),
        },
        drawn,
        remarks + left_out,
        run_settings(paths, model_name),
    )
    print_summary(comparison, against_control)
    print(f"\nreport   {report}\nfigures  {paths.figures(model_name)} ({len(drawn)} as PNG and PDF)\ntable    {table_path}")
    return 0


def draw(tidy: pd.DataFrame, comparison: pd.DataFrame, folder: Path) -> tuple[dict[str, tuple[str, Path]], list[str]]:
    """({name: (caption, PNG)} of the figures drawn, a line for each left out)."""
    from matplotlib import pyplot as plt

    from utils import figures

    normal = tidy[tidy["setting"] == "normal"]
    have = set(comparison["setting"]) if len(comparison) else set()
    jobs: list[tuple[str, str, bool, str, Callable]] = [
        ("settings", "Mean test AUC of each contender, setting by setting", bool(have),
         "no setting has both baselines and SAE probes", lambda: figures.setting_bars(comparison)),
        ("normal_auc_by_k", "Test AUC against k, the number of latents a probe may use, dataset by dataset",
         bool((normal["kind"] == SAE).any()), "no SAE probes in the normal setting", lambda: figures.auc_by_k(tidy)),
        ("normal_quiver", "SAE probe against best baseline, a point a dataset; both picked by validation AUC",
         "normal" in have, "the normal setting lacks baselines or SAE probes", lambda: scatter(normal)),
        ("normal_layers", "Mean test AUC of each baseline by layer", bool((normal["kind"] == BASELINE).any()),
         "no baselines in the normal setting", lambda: figures.method_by_layer(tidy)),
    ]  # fmt: skip
    for setting, label in CONDITION_LABELS.items():
        jobs.append(
            (setting, f"Mean test AUC over the conditions of {setting}", setting in have,
             f"{setting} lacks baselines or SAE probes",
             lambda s=setting, name=label: figures.condition_curves(comparison, s, name))
        )  # fmt: skip
    jobs.append(
        ("OOD", "Test AUC out of distribution, dataset by dataset", "OOD" in have, "OOD lacks baselines or SAE probes",
         lambda: figures.ood_bars(matched(contenders(tidy[tidy["setting"] == "OOD"])), OOD_SHIFTS))
    )  # fmt: skip
    drawn, left_out = {}, []
    for name, caption, possible, reason, make in progress(jobs, desc="figures", unit="figure"):
        if not possible:
            left_out.append(f"figure {name}: {reason}")
            continue
        figure = make()
        for suffix in ("png", "pdf"):
            with atomic_path(folder / f"{name}.{suffix}") as temporary:
                metadata = {"CreationDate": None} if suffix == "pdf" else None  # the same bytes on every run
                figure.savefig(temporary, format=suffix, dpi=160, metadata=metadata)
        plt.close(figure)
        drawn[name] = (caption, folder / f"{name}.png")
    return drawn, left_out


def scatter(normal: pd.DataFrame):
    from utils import figures

    picks = matched(contenders(normal))
    return figures.quiver_scatter(picks["quiver_baselines"], picks["sae_only"], picks.get("random_sae"))


def control_table(tidy: pd.DataFrame) -> pd.DataFrame:
    """Normal setting, by k: mean test AUC of SAE probes (best SAE by val_auc) and of each control, and who is ahead of it."""
    rows = tidy[(tidy["setting"] == "normal") & tidy["kind"].isin([SAE, CONTROL])]
    table: list[dict] = []
    for k, of_k in rows.groupby("k"):
        picks = contenders(of_k)
        row: dict = {"k": int(k)}
        for name in CONTROL_METHODS:
            if name not in picks or "sae_only" not in picks:
                continue
            both = matched({n: picks[n] for n in ("sae_only", name)})
            sae, control = both["sae_only"]["test_auc"], both[name]["test_auc"]
            row |= {"SAE probe": sae.mean(), TITLES[name]: control.mean(), f"ahead of {TITLES[name]}": int((sae > control).sum())}
            row["of"] = len(sae)
        if len(row) > 1:
            table.append({**row, "of": row.pop("of")})
    return pd.DataFrame(table)


def positive_control(paths: Paths) -> pd.DataFrame:
    """The table of positive_control.py, empty where it was not run."""
    path = paths.positive_control()
    return read_table(path) if path.is_file() else pd.DataFrame()


def run_settings(paths: Paths, model_name: str) -> dict[str, dict]:
    """The settings files beside the result tables, by the table's folder."""
    found = {}
    for kind, folders in (("baseline_probes", BASELINE_FOLDERS.values()), ("sae_probes", [f"{s}_setting" for s in SETTINGS])):
        for folder in folders:
            path = paths.results_dir / f"{kind}_{model_name}" / folder / "settings.json"
            if path.is_file():
                found[f"{kind}/{folder}"] = json.loads(path.read_text(encoding="utf-8"))
    return found


def print_summary(comparison: pd.DataFrame, against_control: pd.DataFrame) -> None:
    if len(comparison):
        print("\nMean test AUC over matched datasets and conditions (each contender's probe picked by validation AUC):")
        print(headline(comparison).to_string(float_format="{:.3f}".format))
    if len(against_control):
        print("\nNormal setting, trained SAEs against the random-SAE control, by number of latents k:")
        print(against_control.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    cli.run(main)
