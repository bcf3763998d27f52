"""The flags and manners that all scripts share."""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from utils.models import DEFAULT_MODEL
from utils.names import HOOK_POINTS, Layer, hook_name, parse_layer
from utils.paths import Paths
from utils.runtime.devices import default_n_jobs
from utils.runtime.errors import OUT_OF_MEMORY, Failures, UserError, is_out_of_memory
from utils.runtime.progress import where_it_stood
from utils.runtime.tasks import NO_ROOM
from utils.runtime.units import parse_bytes
from utils.runtime.workers import Workers
from utils.settings import NORMAL, SETTINGS, SplitKind, get_setting

LINE = 80  # characters of a terminal


def say(text: str) -> None:
    """Print a line, folded between words where a terminal ends."""
    print(folded(text))


def folded(text: str, indent: str = "  ") -> str:
    """A line as several of at most LINE characters; words and what stands between backticks stay
    whole, and may be longer.
    """
    lines = [""]
    for word in re.findall(r"`[^`]*`\S*|\S+", text):
        longer = f"{lines[-1]} {word}" if lines[-1].strip() else f"{lines[-1]}{word}"
        if len(longer) <= LINE or not lines[-1].strip():
            lines[-1] = longer
        else:
            lines.append(indent + word)
    return "\n".join(lines)


def make_command(
    target: str, model_name: str, datasets: list[str] | None = None, flags: str = ""
) -> str:
    """The make command that runs a stage on datasets, with further flags of its script, as a shell
    takes it.
    """
    parts = ["make", target, f"MODEL={model_name}"]
    if datasets:
        parts.append(f"DATASETS={shlex.quote(shlex.join(datasets))}")
    if flags.strip():
        parts.append(f"ARGS={shlex.quote(flags.strip())}")
    return " ".join(parts)


def shown_path(path: Path) -> str:
    """A path as a user here would type it: from the folder in which the command runs."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


EXIT_FAILED = 1  # something of the run failed; the rest is done
EXIT_BAD_INPUT = 2  # nothing could be done with these flags or files
EXIT_FOUND = 3  # a check found what it looks for; all of it was done
EXIT_STOPPED = 130  # by Ctrl-C or SIGTERM, as shells have it
EXIT_BROKEN_PIPE = 141  # as shells have it too


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The docstring as it is written, and each flag's default unless there is none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser that shows the script's docstring and the defaults; flags cannot be abbreviated."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=_Formatter, allow_abbrev=False
    )
    defaults = Paths()
    folders = parser.add_argument_group("folders")
    folders.add_argument(
        "--data_dir", type=Path, default=defaults.data_dir, help="activations, models and SAEs"
    )
    folders.add_argument(
        "--text_dir", type=Path, default=defaults.text_dir, help="the text datasets"
    )
    folders.add_argument(
        "--results_dir", type=Path, default=defaults.results_dir, help="result tables"
    )
    folders.add_argument(
        "--figures_dir", type=Path, default=defaults.figures_dir, help="figures and report"
    )
    folders.add_argument(
        "--sae_dir",
        type=lambda text: Path(text).absolute(),
        help="folder with the SAEs (default: saes/{model} below --data_dir)",
    )
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model_name", default=DEFAULT_MODEL, help="language model, as in the file names"
    )


EVERY = "all"
NO_CONTROLS = "none"


def add_setting(
    parser: argparse.ArgumentParser, default: str = NORMAL.name, every: bool = True
) -> None:
    """``every``: the script can do all settings in one run."""
    parser.add_argument(
        "--setting",
        type=setting_name,
        choices=[*SETTINGS, *([EVERY] if every else [])],
        default=default,
        help="which of the five settings",
    )


def setting_name(text: str) -> str:
    """A flag's setting; what other tools call it is understood."""
    try:
        return get_setting(text).name
    except UserError:  # "all", or a mistake that the choices name
        return text


def settings_asked(args: argparse.Namespace) -> tuple[str, ...]:
    """The names of the settings that --setting asks for."""
    return tuple(SETTINGS) if args.setting == EVERY else (args.setting,)


def over_settings(
    train: Callable[[argparse.Namespace, Failures], None], args: argparse.Namespace, what: str
) -> int:
    """Run ``train`` with the flags of each setting that --setting asks for; the exit status.

    Of several settings one that cannot be done is a failure, and the others go on.

    Raises UserError where --conditions, which are of one setting, are given for all.
    """
    failures = Failures()
    if args.setting != EVERY:
        train(args, failures)
        return report(failures, what)
    if args.conditions:
        raise UserError("--conditions are of one setting: name it with --setting")
    for setting in settings_asked(args):
        with failures.caught(f"{setting}: "):
            train(argparse.Namespace(**{**vars(args), "setting": setting}), failures)
    return report(failures, what)


def add_datasets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--datasets",
        nargs="+",
        metavar="NAME",
        help="only these datasets (default: all that apply)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        type=device_name,
        default="auto",
        help="auto (CUDA, then MPS, then CPU), cuda, cuda:N, mps or cpu",
    )


def add_saes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target_sae_id",
        nargs="+",
        type=sae_id,
        metavar="ID",
        help="SAEs to use (default: all in --sae_dir, else the paper's)",
    )
    parser.add_argument(
        "--sae_release", metavar="NAME", help="release in SAELens's registry (default: the model's)"
    )
    parser.add_argument(
        "--hook_name",
        type=hook,
        metavar="HOOK",
        help="what the SAEs read whose files and ids do not say it: blocks.12.hook_resid_post",
    )
    parser.add_argument(
        "--layers", nargs="+", type=layer, metavar="N", help="only SAEs of these layers or hooks"
    )


def add_controls(
    parser: argparse.ArgumentParser,
    names: tuple[str, ...],
    what: str,
    defaults: tuple[str, ...] | None = None,
) -> None:
    """``--controls``: ``defaults`` (None: all) unless others, or none, are asked for."""
    parser.add_argument(
        "--controls",
        nargs="+",
        choices=[*names, EVERY, NO_CONTROLS],
        default=list(names if defaults is None else defaults),
        help=f"{what} (all: all of them; none: none)",
    )
    parser.set_defaults(known_controls=names)


def controls_of(args: argparse.Namespace) -> list[str]:
    """The controls that --controls asks for.

    Raises UserError where "none" stands beside others.
    """
    if NO_CONTROLS in args.controls and len(args.controls) > 1:
        raise UserError("--controls none stands alone")
    if EVERY in args.controls:
        return list(args.known_controls)
    return [name for name in dict.fromkeys(args.controls) if name != NO_CONTROLS]


SPLITS = ("paper", "grouped")


def add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default=SPLITS[0],
        help="grouped: each text counts once, so that none is trained and tested on; results and"
        " figures go into folders grouped_split/",
    )
    parser.add_argument(
        "--test_frac",
        type=share,
        metavar="SHARE",
        help="the share of a small dataset's rows that is kept for the test, in place of 100 rows:"
        " 0.3; results and figures go into folders test_0.3_split/",
    )


def split_kind(args: argparse.Namespace) -> SplitKind:
    """How the flags of ``add_split`` want rows drawn; the paper's way where there are none."""
    grouped = getattr(args, "split", SPLITS[0]) != SPLITS[0]
    return SplitKind(grouped, getattr(args, "test_frac", None))


def add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed", type=seed, default=42, help="seed of the row draws and folds (42 is the paper's)"
    )


def add_seeds(parser: argparse.ArgumentParser) -> None:
    add_seed(parser)
    parser.add_argument(
        "--seeds",
        type=_seeds,
        metavar="42,43,…",
        help="several seeds: rows, folds and fits are repeated with each",
    )
    parser.add_argument(
        "--n_seeds",
        type=positive,
        metavar="N",
        help="so many seeds from --seed on: --n_seeds 3 is --seeds 42,43,44",
    )


def seeds_of(args: argparse.Namespace) -> list[int]:
    """The seeds that the flags ask for. Raises UserError where two flags say different things."""
    if args.seeds and args.n_seeds:
        raise UserError("--seeds and --n_seeds say the same thing: give one of them")
    if args.n_seeds:
        return list(range(args.seed, args.seed + args.n_seeds))
    return args.seeds or [args.seed]


def _seeds(text: str) -> list[int]:
    return list(dict.fromkeys(seed(part) for part in text.split(",") if part))


def seed(text: str) -> int:
    """A flag's seed, as numpy's generator takes it."""
    if not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no seed: give a whole number from 0 to 2**32 - 1"
        )
    return int(text)


def device_name(text: str) -> str:
    """A flag's device; whether the machine has it is checked when it is used."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no device: use auto, cuda, cuda:N, mps or cpu"
        )
    return text


def memory_size(text: str) -> int:
    """A flag's bytes."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def layer(text: str) -> Layer:
    """A flag's layer: a block's number, "embed", or a hook's name."""
    try:
        return parse_layer(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no layer: give a block's number, embed, or a hook: blocks.N. and one of"
            f" {', '.join(HOOK_POINTS)}"
        ) from None


def hook(text: str) -> str:
    """A flag's hook, by its whole name."""
    return hook_name(layer(text))


def sae_id(text: str) -> str:
    """A flag's SAE id: a path below the folder of SAEs."""
    if not text or text.startswith("/") or ".." in text.split("/"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no SAE id: it is a path below the folder of SAEs"
        )
    return text


def one_of(names: tuple[str, ...]) -> Callable[[str], list[str]]:
    """An argparse type for a comma-separated list of these names."""

    def parse(text: str) -> list[str]:
        parts = [part for part in text.split(",") if part]
        for part in parts:
            if part not in names:
                raise argparse.ArgumentTypeError(
                    f"unknown {part!r}: choose from {', '.join(names)}"
                )
        return parts

    return parse


def add_scheduler(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scheduler",
        metavar="tcp://HOST:8786",
        help="run on the workers of this Dask scheduler, which share the folders",
    )


def workers_of(args: argparse.Namespace, paths: Paths, n_jobs: int) -> Workers:
    """Where the tasks of a run are to be done; ``--device cuda``: on workers that offer a GPU
    ("auto" takes what is there).
    """
    return Workers(
        n_jobs, args.scheduler, paths.data_dir, gpu=getattr(args, "device", "").startswith("cuda")
    )


def add_workers(parser: argparse.ArgumentParser) -> None:
    add_scheduler(parser)
    parser.add_argument(
        "--n_jobs",
        type=positive,
        default=default_n_jobs(),
        help="worker processes, one thread each",
    )
    parser.add_argument(
        "--randomize_order", action="store_true", help="work through the tasks in random order"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="redo rows that the result table already has"
    )
    parser.add_argument(
        "--conditions",
        nargs="+",
        type=float,
        metavar="VALUE",
        help=(
            "only these conditions of the setting: training rows for scarcity, fractions for"
            " class_imbalance and label_noise"
        ),
    )


def share(text: str) -> float:
    """A flag's share, between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a share between 0 and 1, as 0.05")
    return value


def positive(text: str) -> int:
    """A flag's whole number of at least 1."""
    if not text.lstrip("-").isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of at least 1")
    return int(text)


def paths_of(args: argparse.Namespace) -> Paths:
    folders = (args.text_dir, args.data_dir, args.results_dir, args.figures_dir)
    kind = split_kind(args)
    folders = (*folders[:2], *(folder / kind.folder for folder in folders[2:]))
    if getattr(args, "scheduler", None):  # workers start elsewhere
        folders = tuple(folder.absolute() for folder in folders)
    return Paths(*folders, sae_dir=args.sae_dir, split=kind)


def folder_flags(paths: Paths) -> list[str]:
    """The flags that point a script at these folders."""
    folders = {
        "text": paths.text_dir,
        "data": paths.data_dir,
        "results": paths.results_dir,
        "figures": paths.figures_dir,
    }
    return [part for kind, folder in folders.items() for part in (f"--{kind}_dir", str(folder))]


def settings_of(args: argparse.Namespace) -> dict[str, object]:
    """The resolved flags, without folders and without what cannot change a result."""
    skipped = {
        "data_dir",
        "text_dir",
        "results_dir",
        "figures_dir",
        "n_jobs",
        "scheduler",
        "randomize_order",
        "known_controls",
        "keep_probes",
        "overwrite",
    }
    return {name: value for name, value in sorted(vars(args).items()) if name not in skipped}


def report(failures: Failures, what: str) -> int:
    """Print the failures of a run, one line each; the exit status of the script."""
    if not failures.lines:
        return 0
    print(f"\nfailed ({what}: {len(failures.lines)}); the rest is done:", file=sys.stderr)
    for line in failures.lines:
        print(f"  - {line}", file=sys.stderr)
    return EXIT_FAILED


def _script() -> list[str]:
    """How this script was named on the command line: its path, or -m and its module."""
    spec = sys.modules["__main__"].__spec__
    return [sys.argv[0]] if spec is None else ["-m", spec.name]


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def run(main: Callable[[list[str] | None], int]) -> None:
    """Run a script's main; a user's mistake becomes one line and a non-zero exit. SIGTERM stops it
    as SIGINT does.
    """
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        for name in ("stdout", "stderr"):  # closed by whoever started this
            if getattr(sys, name) is None:
                setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        # a file name may be no text, and its line must still be printed
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        status = _status_of(main)
    except KeyboardInterrupt:  # just before the work, or just after it
        status = _stopped()
    sys.exit(status)


def _stopped() -> int:
    """Say in a line that a run was stopped; its exit status."""
    again = shlex.join(["python", *_script(), *sys.argv[1:]])
    print(
        f"\nstopped{where_it_stood()}: finished work is kept; the same command continues: {again}",
        file=sys.stderr,
    )
    return EXIT_STOPPED


def _write_nowhere() -> None:
    """What stands in the buffer of a pipe that nobody reads would be an error at the very end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _status_of(main: Callable[[list[str] | None], int]) -> int:
    """The exit status of a main; from then on a signal ends the process at once, because its work
    is done.
    """
    status = EXIT_FAILED
    try:
        status = main(None)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = EXIT_BAD_INPUT
    except KeyboardInterrupt:
        status = _stopped()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"error: {OUT_OF_MEMORY}; finished work is kept", file=sys.stderr)
    except BrokenPipeError:  # whoever read our lines, as `head` does, has had enough
        _write_nowhere()
        status = EXIT_BROKEN_PIPE
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        remedy = "make room" if error.errno in NO_ROOM else "mend this"
        print(
            f"error: {error.strerror or error}{where}: finished work is kept; {remedy} and run"
            " again",
            file=sys.stderr,
        )
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _write_nowhere()
        except (OSError, ValueError):  # a closed stream, or a full disk
            pass
        # libraries' threads still end, which a KeyboardInterrupt would disturb
        for stop in (signal.SIGINT, signal.SIGTERM):
            signal.signal(stop, lambda _signal, _frame: os._exit(status))
    return status
