"""Unpack the paper's published archives of a model into data/.

    python -m published.extract --model_name gemma-2-9b
    python -m published.extract --model_name gemma-2-9b \
        --archives model_activations_gemma-2-9b_OOD.tar.gz

Looks in data/ and raw_text_datasets/ for model_activations_{model}.tar.gz, …_OOD.tar.gz,
sae_activations_{model}_OOD.tar.gz, …_OOD_1m.tar.gz and baseline_results_{model}.tar.gz. Streams
each once; a run that was stopped goes on with the files that are lacking. Nothing is written
outside the folders that an archive is named for: links, devices and members that point elsewhere
are refused. The archives stay. Downloads nothing.
"""

from __future__ import annotations

import argparse

from utils import cli
from utils.models import get_model
from utils.readers.archives import extract
from utils.runtime.errors import Failures, UserError
from utils.runtime.files import locked


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    parser.add_argument(
        "--archives",
        nargs="+",
        metavar="NAME",
        help="only these (default: all of the model's that are there)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    model_name = get_model(args.model_name, paths).name
    archives = paths.archives(model_name)
    if args.archives:
        unknown = set(args.archives) - {path.name for path in archives}
        if unknown:
            there = ", ".join(path.name for path in archives) or "none"
            raise UserError(
                f"no archive {', '.join(sorted(unknown))} of {model_name} in {paths.data_dir};"
                f" there: {there}"
            )
        archives = [path for path in archives if path.name in args.archives]
    if not archives:
        names = ", ".join(paths.archive_names(model_name))
        raise UserError(
            f"no archive of {model_name} in {paths.data_dir} or {paths.text_dir}: put one there"
            f" ({names})"
        )
    failures = Failures()
    for archive in archives:
        try:
            with failures.caught(), locked(paths.data_dir, archive.name):
                for line in extract(archive, paths, model_name):
                    failures.add(line)
        except OSError as error:
            failures.add(
                f"{archive.name}: {error.strerror or error} ({error.filename}): what was whole is"
                " unpacked"
            )
    return cli.report(failures, "archives")


if __name__ == "__main__":
    cli.run(main)
