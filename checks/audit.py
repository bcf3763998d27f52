"""What to distrust in a model's result tables: known defects of published tables, gaps, small test
sets, unconverged fits.

    python -m checks.audit --model_name gemma-2-9b

Reads what visualize.py reads, whose report shows the same findings. Changes nothing. The exit
status is 1 when a table is found that must not be used as what it is called.
"""

from __future__ import annotations

import argparse

from utils import cli
from utils.models import get_model
from utils.results.audit import audit
from utils.results.tidy import load_results


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    found = audit(paths, load_results(paths, get_model(args.model_name, paths).name))
    if not found:
        print("no result tables to audit")
    for finding in found:
        print(f"{finding.weight:<5}  {finding.about}: {finding.what}")
    return cli.EXIT_FAILED if any(finding.weight == "wrong" for finding in found) else 0


if __name__ == "__main__":
    cli.run(main)
