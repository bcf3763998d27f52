"""What the words alone tell: TF-IDF and logistic regression on every dataset, no model at all.

    python train_baselines.py --method text_only
    python -m checks.words

Says in a sentence how well the probes of train_baselines.py's method text_only do in the normal
setting, and on how many datasets a model's probes add nothing to them. With --document it writes
the numbers to docs/words.json, which README.md quotes.
"""

from __future__ import annotations

import argparse

import pandas as pd

from utils import cli
from utils.models import LanguageModel, get_model
from utils.probes.k_sparse import PROTOCOLS
from utils.results.comparison import NEAR, WORDS_SUFFICE, Picked, by_dataset
from utils.results.tidy import TEXT, load_results
from utils.runtime.errors import UserError
from utils.runtime.files import ROOT, write_json
from utils.settings import NORMAL

HIGH = 0.95
DOCUMENT = ROOT / "docs" / "words.json"


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    parser.add_argument(
        "--document", action="store_true", help="write docs/words.json, which README.md quotes"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    info = get_model(args.model_name, paths)
    tidy = load_results(paths, info.name, (NORMAL.name,)).tidy
    numbers = measure(tidy, info)
    print(sentence(numbers))
    if args.document:
        write_json(DOCUMENT, numbers)
        print(f"written to {DOCUMENT}; make docs puts it into README.md")
    return 0


def measure(tidy: pd.DataFrame, info: LanguageModel) -> dict[str, object]:
    """The numbers of ``sentence``. Raises UserError where there are no probes on texts."""
    texts = tidy[(tidy["kind"] == TEXT) & (tidy["protocol"] == PROTOCOLS[0])]
    texts = texts.drop_duplicates(["dataset", "seed"])
    if not len(texts):
        raise UserError(
            f"no probes on texts alone: `{cli.make_command('words', info.name)}` makes them"
        )
    mean = texts.groupby("dataset", observed=True)[["test_auc", "test_auc_fresh"]].mean()
    numbers: dict[str, object] = {
        "n_datasets": len(mean),
        "mean": round(float(mean["test_auc"].mean()), 3),
        "median": round(float(mean["test_auc"].median()), 3),
        "n_high": int((mean["test_auc"] >= HIGH).sum()),
        "mean_fresh": round(float(mean["test_auc_fresh"].mean()), 3),
        "n_fresh": int(mean["test_auc_fresh"].notna().sum()),
    }
    of_layer = tidy[tidy["layer"] == info.probe_layer]
    datasets = by_dataset(Picked(of_layer), PROTOCOLS[0])
    marks = datasets["words"].dropna() if "words" in datasets else pd.Series(dtype=object)
    if len(marks):
        numbers |= {
            "model": f"{info.name} at layer {info.probe_layer}",
            "test_rows": "fresh" if (datasets["test_rows"] == "fresh").any() else "all",
            "n_compared": len(marks),
            "n_suffice": int((marks == WORDS_SUFFICE).sum()),
        }
    return numbers


def sentence(numbers: dict) -> str:
    """The numbers in words."""
    said = (
        f"TF-IDF of words and word pairs with logistic regression needs no model. Its mean test AUC"
        f" over {numbers['n_datasets']} datasets is {numbers['mean']:.3f} (median"
        f" {numbers['median']:.3f}, at least {HIGH} on {numbers['n_high']}). On fresh test rows it"
        f" is {numbers['mean_fresh']:.3f}, over {numbers['n_fresh']} datasets."
    )
    if "n_compared" in numbers:
        said += (
            f" It is within {NEAR} of the best probe of {numbers['model']}, or above, on"
            f" {numbers['n_suffice']} of {numbers['n_compared']} datasets ({numbers['test_rows']}"
            " test rows)."
        )
    return said


if __name__ == "__main__":
    cli.run(main)
