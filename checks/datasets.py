"""Are these texts fit to probe on? Every dataset's rows, classes, repeated texts, and test rows
that are copies of training rows.

    python -m checks.datasets
    python -m checks.datasets --datasets my_dataset --all

A dataset of your own is a CSV with the columns prompt and target (two classes) in
raw_text_datasets/cleaned_data/. A file that cannot be used (one class, three classes, a row without
prompt or target) is named, and the exit status is 1. What can be used but tells less than it seems
to is listed: texts that stand in both classes, and test rows of the normal setting whose very text
is among the training rows. OOD files are looked at too: one where many texts stand in both
classes is not its dataset's task. Changes nothing.
"""

from __future__ import annotations

import argparse

from utils import cli
from utils.datasets import choose_datasets, list_ood_datasets, other_kinds, readable
from utils.runtime.errors import Failures
from utils.text_checks import KNOWN_UNFIT, TextCheck, known_check, known_ood_check, share_of_copies

MAX_SHOWN = 20


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_datasets(parser)
    parser.add_argument(
        "--all",
        action="store_true",
        help=f"list every dataset, not only the {MAX_SHOWN} with most copies",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    failures = Failures()
    names = readable(paths, choose_datasets(paths, args.datasets), failures)
    with_ood = readable(
        paths, [name for name in list_ood_datasets(paths) if name in names], failures, ood=True
    )
    checks = sorted((known_check(paths, name) for name in names), key=lambda check: -check.seen)
    for check in checks:
        if check.trouble:
            failures.add(f"{check.name} cannot be split: {check.trouble}")
    shown = checks if args.all else checks[:MAX_SHOWN]
    if shown:
        print_table(shown, len(checks))
        print(summary(checks))
    for name in with_ood:
        shifted = known_ood_check(paths, name)
        if shifted.n_shared:
            print(f"{name}: {shifted.n_shared} of its OOD texts are texts of the dataset itself")
        if shifted.n_in_both_classes:
            known = KNOWN_UNFIT.get(name)
            why = f" ({known})" if known else ""
            verdict = f": it is not the task of {name}{why}" if shifted.unfit else ""
            print(
                f"{name}_OOD: {shifted.n_in_both_classes} of {shifted.n_rows} rows are texts that"
                f" stand in both classes{verdict}"
            )
    for file in other_kinds(paths).values():
        print(f"{file.name} is not read: convert it to .csv, .csv.gz or .csv.zst")
    return cli.report(failures, "files of texts")


def print_table(shown: list[TextCheck], n_all: int) -> None:
    print(
        f"{'dataset':44} {'rows':>6} {'class 1':>8} {'repeated':>9} {'in both classes':>16}"
        f" {'test rows seen in training':>27}"
    )
    for check in shown:
        seen = f"{check.n_test_seen} of {check.n_test} ({check.seen:.0%})"
        print(
            f"{check.name:44} {check.n_rows:6d} {check.n_positive / check.n_rows:8.0%}"
            f" {check.n_repeated:9d} {check.n_in_both_classes:16d} {seen:>27}"
        )
    if len(shown) < n_all:
        print(f"… and {n_all - len(shown)} more with fewer copies (--all lists them)")


def summary(checks: list[TextCheck]) -> str:
    """One line on all datasets."""
    n_tenth, mean = share_of_copies(checks)
    n_both = sum(check.n_in_both_classes > 0 for check in checks)
    return (
        f"\n{len(checks)} datasets: on average {mean:.0%} of the test rows (normal setting) are"
        f" copies of training rows, a tenth or more in {n_tenth} datasets; {n_both} datasets have"
        " texts that stand in both classes"
    )


if __name__ == "__main__":
    cli.run(main)
