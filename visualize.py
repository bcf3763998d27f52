"""Result tables to a matched comparison, figures and a self-contained report.

    python visualize.py --model_name gemma-2-9b
    python visualize.py --model_name all-MiniLM-L6-v2 --setting scarcity

Reads the tables of train_baselines.py and train_sae_probes.py, or the paper's published ones, or
both. Writes results/comparison_{model}.csv, figures/{model}/*.png and *.pdf and
figures/{model}/report.html, and prints the headline table. A figure whose table is missing is left
out, with a line that says so.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pandas as pd

from utils import cli
from utils.figures import side_experiments as paper_figures
from utils.figures import study as figures
from utils.figures.report import write_report
from utils.figures.study import NoData
from utils.models import get_model
from utils.paths import Paths
from utils.probes.k_sparse import PROTOCOLS
from utils.results import side_experiments
from utils.results.audit import audit
from utils.results.comparison import (
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
from utils.results.multi_token import load_multi_token
from utils.results.tables import read_table
from utils.results.tidy import CONTROL, SAE, load_results
from utils.runtime.errors import UserError
from utils.runtime.files import atomic_path, locked
from utils.runtime.progress import progress
from utils.settings import SETTINGS

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


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    cli.add_setting(parser, default=cli.EVERY)
    cli.add_datasets(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    model_name = get_model(args.model_name, paths).name
    settings = cli.settings_asked(args)
    failures: list[str] = []
    tidy, remarks = load_results(paths, model_name, settings, failures)
    if args.datasets:
        tidy = tidy[tidy["dataset"].isin(args.datasets)]
    if not len(tidy) and failures:
        raise UserError(failures[0])
    if not len(tidy):
        raise UserError(
            f"no result tables of {model_name} in {paths.results_dir}: "
            f"run `make train-baselines train-sae-probes MODEL={model_name}`"
        )
    for remark in remarks:
        print(f"note: {remark}")
    with locked(paths.figures(model_name), "report.html", also=paths.results_dir):
        return show(paths, model_name, tidy, failures)


def show(paths: Paths, model_name: str, tidy: pd.DataFrame, failures: list[str]) -> int:
    """Write the comparison, the figures and the report; the exit status."""
    comparison = compare(tidy)
    table_path = paths.comparison_table(model_name)
    with atomic_path(table_path) as temporary:
        comparison.to_csv(temporary, index=False, lineterminator="\n")

    # figures show one protocol, the paper's where there are both; tables show both
    shown = next(iter(protocols(tidy)), PROTOCOLS[0])
    gap = val_test_gap(tidy)
    jobs = makers(
        of_protocol(tidy, shown),
        comparison[comparison["protocol"] == shown],
        gap,
        paths,
        model_name,
        failures,
    )
    drawn, left_out = draw(jobs, paths.figures(model_name), failures)
    for line in left_out:
        print(f"left out: {line}")
    against_control = control_table(of_protocol(tidy, shown))
    report = paths.figures(model_name) / "report.html"
    findings = audit(paths, model_name)
    write_report(
        report,
        model_name,
        {
            "comparison": comparison,
            "against_control": against_control,
            "gap": gap,
            "positive_control": positive_control(paths),
            "each_sae": by_sae(tidy),
        },
        drawn,
        findings,
        left_out,
        run_settings(paths, model_name),
    )
    print_summary(comparison, against_control)
    print(
        f"\nreport   {report}\nfigures  {paths.figures(model_name)} ({len(drawn)} as PNG and"
        f" PDF)\ntable    {table_path}"
    )
    return cli.report_failures(failures, "result tables")


def draw(
    jobs: dict[str, tuple[str, Callable]], folder: Path, failures: list[str]
) -> tuple[dict[str, tuple[str, Path]], list[str]]:
    """({name: (caption, PNG)} of the figures drawn, a line for each left out)."""
    from matplotlib import pyplot as plt

    drawn: dict[str, tuple[str, Path]] = {}
    left_out: list[str] = []
    for name, (caption, make) in progress(jobs.items(), desc="figures", unit="figure"):
        try:
            figure = make()
        except (NoData, UserError) as reason:
            if isinstance(reason, UserError):  # a file is there and cannot be used
                failures.append(str(reason))
            left_out.append(f"figure {name}: {reason}")
            for suffix in ("png", "pdf"):  # an older one would show what is no longer there
                (folder / f"{name}.{suffix}").unlink(missing_ok=True)
            continue
        for suffix in ("png", "pdf"):
            content = BytesIO()  # on a full disk matplotlib's own writing ends in a traceback
            # the same bytes on every run
            metadata = {"CreationDate": None} if suffix == "pdf" else None
            figure.savefig(content, format=suffix, dpi=160, metadata=metadata)
            with atomic_path(folder / f"{name}.{suffix}") as temporary:
                temporary.write_bytes(content.getvalue())
        plt.close(figure)
        drawn[name] = (caption, folder / f"{name}.png")
    return drawn, left_out


def makers(
    tidy: pd.DataFrame,
    comparison: pd.DataFrame,
    gap: pd.DataFrame,
    paths: Paths,
    model_name: str,
    failures: list[str],
) -> dict[str, tuple[str, Callable]]:
    """{name: (caption, what draws it or raises NoData)}, in the order of the report."""
    picks = {setting: contenders(rows) for setting, rows in tidy.groupby("setting")}
    normal = picks.get("normal", {})
    jobs: dict[str, tuple[str, Callable]] = {
        "settings": (
            "Mean test AUC of each contender, setting by setting",
            lambda: figures.setting_bars(comparison),
        ),
        "normal_auc_by_k": (
            "Test AUC against k, the number of latents a probe may use, dataset by dataset",
            lambda: figures.auc_by_k(tidy),
        ),
        "normal_quiver": (
            "SAE probe against best baseline, a point a dataset; both picked by validation AUC",
            lambda: figures.quiver_scatter(normal),
        ),
        "auc_by_width": (
            "Mean test AUC against the width of the SAE (whose L0 may differ too)",
            lambda: figures.auc_by_size(tidy, "width"),
        ),
        "auc_by_l0": (
            "Mean test AUC against the L0 of the SAE",
            lambda: figures.auc_by_size(tidy, "L0"),
        ),
        "normal_layers": (
            "Mean test AUC of each baseline by layer",
            lambda: figures.method_by_layer(tidy),
        ),
        "normal_best_method": (
            "How often each baseline is the best by validation AUC, layer by layer",
            lambda: figures.best_method_by_layer(tidy),
        ),
    }
    labels = {setting.name: setting.axis_label for setting in SETTINGS.values() if setting.values}
    for setting, label in labels.items():
        jobs[setting] = (
            (
                f"Mean test AUC over the conditions of {setting}, and the difference from the best"
                " baseline"
            ),
            lambda s=setting, name=label: figures.condition_curves(comparison, s, name),
        )
        jobs[f"{setting}_datasets"] = (
            (
                f"{setting} on eight datasets, from the one where SAE probes gain most to the one"
                " where they lose most"
            ),
            lambda s=setting, name=label: figures.selected_datasets(picks.get(s, {}), s, name),
        )
    jobs["OOD"] = (
        "Test AUC out of distribution, dataset by dataset, with what was shifted",
        lambda: figures.ood_bars(picks.get("OOD", {}), OOD_SHIFTS),
    )
    jobs["validation_gaps"] = (
        "How much more validation promises than test rows keep",
        lambda: figures.validation_gaps(gap, labels),
    )
    jobs["multi_token"] = (
        "Probes on all tokens of a text",
        lambda: paper_figures.multi_token(
            load_multi_token(paths, model_name, failures), normal.get("quiver_baselines")
        ),
    )
    jobs["architectures"] = (
        "How often probes on one SAE architecture beat those on another (published win rates)",
        lambda: paper_figures.architecture_wins(side_experiments.win_rates(paths, model_name)),
    )
    jobs["cola_relabelling"] = (
        "CoLA with its own labels and with cleaner ones (published results)",
        lambda: paper_figures.relabelling(side_experiments.relabelling(paths, model_name)),
    )
    jobs["pruned_latents"] = (
        (
            "Probes on the latents judged most relevant, in and out of distribution (published"
            " results)"
        ),
        lambda: paper_figures.pruned_latents(side_experiments.pruned(paths, model_name)),
    )
    return jobs


def control_table(tidy: pd.DataFrame) -> pd.DataFrame:
    """Normal setting, by k: mean test AUC of SAE probes (best SAE by val_auc) and of each control,
    and who is ahead of it.
    """
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
            row |= {
                "SAE probe": sae.mean(),
                TITLES[name]: control.mean(),
                f"ahead of {TITLES[name]}": int((sae > control).sum()),
            }
            row["of"] = len(sae)
        if len(row) > 1:
            table.append({**row, "of": row.pop("of")})
    return pd.DataFrame(table)


def positive_control(paths: Paths) -> pd.DataFrame:
    """The table of checks.positive_control, empty where it was not run."""
    path = paths.positive_control()
    table = read_table(path) if path.is_file() else pd.DataFrame()
    return (
        table
        if {"n_train", "probe", "mean_test_auc", "above_logreg", "n_labels"} <= set(table.columns)
        else pd.DataFrame()
    )


def run_settings(paths: Paths, model_name: str) -> dict[str, dict]:
    """The settings files beside the result tables, by the table's folder."""
    found = {}
    baselines = [setting.baseline_folder for setting in SETTINGS.values()]
    probes = [f"{setting}_setting" for setting in SETTINGS]
    for kind, folders in (("baseline_probes", baselines), ("sae_probes", probes)):
        for folder in folders:
            path = paths.results_dir / f"{kind}_{model_name}" / folder / "settings.json"
            if path.is_file():
                try:
                    found[f"{kind}/{folder}"] = json.loads(path.read_text(encoding="utf-8"))
                except (OSError, ValueError) as error:
                    print(f"note: {path} cannot be read ({error})")
    return found


def print_summary(comparison: pd.DataFrame, against_control: pd.DataFrame) -> None:
    if len(comparison):
        print(
            "\nMean test AUC over matched datasets and conditions (each contender's probe picked by"
            " validation AUC):"
        )
        print(headline(comparison).to_string(float_format="{:.3f}".format))
    if len(against_control):
        print("\nNormal setting, trained SAEs against controls, by number of latents k:")
        print(against_control.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    cli.run(main)
