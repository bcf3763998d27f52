"""What to distrust in a model's result tables: known defects of published tables, gaps, small test
sets, unconverged fits.

    python -m checks.audit --model_name gemma-2-9b

Reads what visualize.py reads, whose report shows the same findings. Changes nothing. The exit
status is 3 when a table is found that must not be used as what it is called.
"""

from __future__ import annotations

import argparse

from utils import cli
from utils.models import get_model
from utils.results.audit import audit
from utils.results.findings import Kind
from utils.results.tidy import load_results
from utils.runtime.errors import Failures


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    results = load_results(paths, get_model(args.model_name, paths).name)
    findings = audit(paths, results)
    if not findings:
        print("no result tables to audit")
    for finding in findings:
        print(f"{finding.weight:<5}  {finding}")
    wrong = [f.about for f in findings if f.weight == "wrong" and f.kind is not Kind.UNREADABLE]
    status = cli.report(Failures(results.unreadable()), "result tables")
    if wrong:
        names = ", ".join(dict.fromkeys(wrong))
        print(f"\nmust not be used as what it is called: {names} (exit status {cli.EXIT_FOUND})")
        return cli.EXIT_FOUND
    return status


if __name__ == "__main__":
    cli.run(main)
