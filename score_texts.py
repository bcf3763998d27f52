"""New texts to scores of an exported probe.

    python score_texts.py --probe my_probe --texts mails.csv
    echo "You have won a prize" | python score_texts.py --probe my_probe
    python score_texts.py --probe my_probe --texts mails.txt --per_token --output scores.csv

Reads the column `prompt` of a CSV (--column says another), or a text a line of any other file or of
standard input. Writes a CSV: score, probability of the second class, the predicted class, and
whether the score is above the threshold at --fpr, a share of the first class that may be flagged
by mistake. Thresholds and probabilities are set on the probe's held-out rows.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

from utils import cli
from utils.datasets import read_csv
from utils.exported_probes import ExportedProbe, load_probe
from utils.results.csv_files import write_csv
from utils.runtime.errors import UserError

FPR = 0.05


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--probe", type=Path, required=True, metavar="FOLDER", help="from export_probe.py"
    )
    parser.add_argument(
        "--texts", default="-", metavar="FILE", help="CSV or text lines (-: standard input)"
    )
    parser.add_argument("--column", default="prompt", help="of the CSV")
    parser.add_argument(
        "--fpr", type=cli.share, default=FPR, help="false-positive rate of the threshold"
    )
    parser.add_argument(
        "--per_token", action="store_true", help="a row a token: what each adds to its text's score"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
    cli.add_device(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    if args.output is not None and args.output.is_dir():
        raise UserError(f"{args.output} is a folder: give --output a file's name")
    probe = load_probe(args.probe, cli.paths_of(args))
    probe.device = args.device
    threshold = probe.held_out.threshold(args.fpr)
    texts = read_texts(args.texts, args.column)
    table = of_tokens(probe, texts) if args.per_token else of_texts(probe, texts, threshold)
    if args.output is None:
        print(table.to_csv(index=False, lineterminator="\n"), end="")
        return 0
    write_csv(args.output, table)
    print(f"{len(texts)} texts scored: {args.output}")
    return 0


TABLES = (".csv", ".tsv", ".csv.gz", ".csv.zst")


def read_texts(source: str, column: str) -> list[str]:
    """The texts of a table (by its name's end), or the lines of another file or standard input.

    Raises UserError when there are none, one is empty, or the table lacks the column.
    """
    if source == "-":
        texts = lines_of(sys.stdin.buffer.read(), "standard input")
    elif not Path(source).is_file():
        raise UserError(f"no file {source}")
    elif source.lower().endswith(TABLES):
        table = read_csv(Path(source), "texts", (column.strip().casefold(),))
        if column not in table.columns:
            raise UserError(
                f"{source} has no column {column!r}: name one of"
                f" {', '.join(map(str, table.columns))} with --column"
            )
        texts = [str(text) for text in table[column]]
        empty = [row for row, text in enumerate(texts) if not text.strip()]
        if empty:
            raise UserError(f"{source} has no {column} in row {empty[0]}: fill or remove it")
    else:
        texts = lines_of(Path(source).read_bytes(), source)
    if not texts:
        raise UserError(f"there are no texts in {'standard input' if source == '-' else source}")
    return texts


def lines_of(content: bytes, name: str) -> list[str]:
    """The lines that hold something; how many hold nothing is said. Raises UserError where the
    content is not in UTF-8.
    """
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{name} is no text in UTF-8: save it so") from None
    texts = [line.rstrip("\r") for line in lines if line.strip()]
    n_empty = len(lines) - len(texts) - (not lines[-1])  # what ends with a line break has no more
    if n_empty:
        print(f"{name}: {n_empty} empty lines are left out", file=sys.stderr)
    return texts


def of_texts(probe: ExportedProbe, texts: list[str], threshold: float) -> pd.DataFrame:
    """A row a text."""
    scores = probe.decision_function(texts)
    return pd.DataFrame(
        {
            "text": texts,
            "score": scores,
            f"probability of {probe.classes_[1]}": probe.probabilities(scores)[:, 1],
            "class": probe.classes_[(scores > 0).astype(int)],
            "flagged": scores > threshold,
        }
    )


def of_tokens(probe: ExportedProbe, texts: list[str]) -> pd.DataFrame:
    """A row a token: the text's number from 0, the token's place, the token and its part."""
    rows = [
        (i, place, token, number)
        for i, scored in enumerate(probe.score_tokens(texts))
        for place, (token, number) in enumerate(scored)
    ]
    return pd.DataFrame(rows, columns=["text", "position", "token", "score"])


if __name__ == "__main__":
    cli.run(main)
