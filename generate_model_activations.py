"""Texts to model activations: the residual stream of a language model on every text of the
datasets.

    python generate_model_activations.py --model_name all-MiniLM-L6-v2 --max_rows 1500
    python generate_model_activations.py --model_name gemma-2-9b --layers 20 --setting OOD
    python generate_model_activations.py --model_name mine --hf_model ~/my-model \
        --hook_names blocks.3.hook_mlp_out

Any model of the transformers library: one of the table in utils/models.py by name, another with
--hf_model (a hub id or a folder) and the layers or hooks to read; what it is is written to
data/model_activations_{model}/model.json, and the later stages know it by its name. Writes
data/model_activations_{model}/{dataset}_{hook_name}.pt, float32 [n_rows, d_model], row i for text
i: the last token of a text (decoders, as in the paper) or the mean over its tokens (encoders).
Files that are there are not made again. Makes no SAE activations: that is
generate_sae_activations_optimized.py.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

from utils import cli
from utils.activations import read_description, write_activations
from utils.datasets import Dataset, choose_datasets, dataset_facts, load_dataset, load_ood, readable
from utils.language_models import ENCODERS, load_model, longest_text, model_identity, read_config
from utils.models import MODELS, LanguageModel, describe_model, get_model
from utils.names import hook_name, layer_order, parse_layer
from utils.paths import Paths
from utils.runtime.devices import pick_device
from utils.runtime.errors import Failures, UserError
from utils.runtime.files import Place, locked
from utils.runtime.tasks import Tasks
from utils.runtime.workers import Workers, run_tasks
from utils.settings import SHIFTED

DTYPES = ("auto", "float32", "bfloat16", "float16")


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    cli.add_setting(parser, default=cli.EVERY)
    cli.add_datasets(parser)
    parser.add_argument("--OOD", action="store_true", help="the same as --setting OOD")
    parser.add_argument(
        "--hf_model",
        metavar="ID_OR_PATH",
        help="where transformers finds a model outside the table",
    )
    parser.add_argument(
        "--layers",
        "--hook_names",
        dest="layers",
        nargs="+",
        type=cli.layer,
        metavar="N",
        help=(
            "blocks (their hook_resid_post), embed, or hooks such as blocks.3.hook_mlp_out"
            " (default: the model's)"
        ),
    )
    parser.add_argument(
        "--max_seq_len",
        type=cli.positive,
        metavar="TOKENS",
        help="longest text (default: the model's, 1024)",
    )
    parser.add_argument(
        "--prepend_bos",
        action="store_true",
        help="put the BOS token before each text, for SAEs trained so (GPT-2, Pythia: always)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="of the weights (auto: bfloat16 on CUDA, else float32)",
    )
    parser.add_argument(
        "--max_rows",
        type=cli.positive,
        metavar="N",
        help="only the first N rows of a dataset (OOD files are whole)",
    )
    parser.add_argument(
        "--batch_size",
        type=batch_size,
        metavar="TEXTS",
        help="texts in a forward pass (default: auto, by their length)",
    )
    cli.add_device(parser)
    cli.add_scheduler(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    if args.OOD:
        args.setting = SHIFTED.name
    info = find_model(args, paths)
    hooks = [hook_name(layer) for layer in args.layers or info.layers]

    jobs: list[tuple[str, bool]] = []
    if args.setting != SHIFTED.name:
        jobs += [(name, False) for name in choose_datasets(paths, args.datasets)]
    if args.setting in (SHIFTED.name, cli.EVERY):
        try:
            jobs += [(name, True) for name in choose_datasets(paths, args.datasets, ood=True)]
        except UserError:  # with "all", datasets without a partner are no mistake
            if args.setting == SHIFTED.name:
                raise

    shifted = paths.model_activations_folder(info.name, ood=True)
    folder = paths.model_activations_folder(info.name)
    with locked(folder, *hooks, also=shifted, lazily=True) as place:
        reading = Reading(tuple(hooks), args.device, args.dtype, args.batch_size, args.max_rows)
        failures = generate(info, reading, jobs, paths, cli.workers_of(args, paths, 0), place)
    return cli.report(failures, "files of texts")


@dataclass(frozen=True)
class Reading:
    """What is read of a text, and how.

    ``batch_size``: texts in a forward pass, None by their length; ``max_rows``: only the first rows
    of a dataset.
    """

    hooks: tuple[str, ...]
    device: str
    dtype: str
    batch_size: int | None
    max_rows: int | None


def generate(
    info: LanguageModel,
    reading: Reading,
    jobs: list[tuple[str, bool]],
    paths: Paths,
    workers: Workers,
    place: Place,
) -> Failures:
    """Make what is missing of these (dataset, whether its OOD file)."""
    failures = Failures()
    usable = {
        ood: set(readable(paths, [name for name, is_ood in jobs if is_ood == ood], failures, ood))
        for ood in (False, True)
    }
    jobs = [(name, ood) for name, ood in jobs if name in usable[ood]]
    todo = []
    for job in jobs:
        with failures.caught():
            if not _is_done(paths, info, *job, reading):
                todo.append(job)
    where = ", ".join(reading.hooks)
    cli.say(
        f"{info.name}: {len(jobs)} files of texts at {where}; {len(jobs) - len(todo)} done,"
        f" {len(todo)} to do"
    )
    if not todo:
        remember_hooks(info, reading.hooks, paths)
        return failures
    place.require()

    if not workers.scheduler:
        # a model that is not there ends the run here
        load_model(info, reading.hooks, paths, pick_device(reading.device), reading.dtype)
    started = time.monotonic()
    # on a cluster the next file may be another worker's
    following = [None] * len(todo) if workers.scheduler else [*todo[1:], None]
    tasks = [
        (paths, info, reading, *job, f"[{number}/{len(todo)}]", then)
        for number, (job, then) in enumerate(zip(todo, following), start=1)
    ]
    n_texts = n_files = 0
    for outcome in run_tasks(Tasks(generate_file, tasks), workers, "model activations"):
        if outcome.error is not None:
            failures.add(outcome.error)
        if outcome.value is not None:
            n_texts, n_files = n_texts + outcome.value, n_files + 1
            # only now: of a layer or path that is wrong nothing must stay
            if n_files == 1:
                remember_hooks(info, reading.hooks, paths)
    seconds = time.monotonic() - started
    folder = cli.shown_path(paths.model_activations_folder(info.name))
    cli.say(f"{n_texts} texts of {n_files} files in {seconds:.0f} s: {folder}")
    return failures


def remember_hooks(info: LanguageModel, hooks: tuple[str, ...], paths: Paths) -> None:
    """Tell the later stages of a model outside the table what there is of it: these hooks too."""
    if info.name in MODELS:
        return
    layers = {*info.layers, *map(parse_layer, hooks)}
    described = replace(info, layers=tuple(sorted(layers, key=layer_order)))
    if not paths.model_description(info.name).is_file() or get_model(info.name, paths) != described:
        describe_model(described, paths)


def generate_file(
    paths: Paths,
    info: LanguageModel,
    reading: Reading,
    name: str,
    ood: bool,
    position: str,
    then: tuple[str, bool] | None,
) -> int:
    """Write the activations of one file of texts at all hooks; how many texts it has. ``then``: the
    file whose texts are tokenized meanwhile.
    """
    model = load_model(info, reading.hooks, paths, pick_device(reading.device), reading.dtype)
    dataset = _texts(paths, name, ood, reading.max_rows)
    following = (lambda: _texts(paths, *then, reading.max_rows).texts) if then else None
    description = f"{position} {dataset.name}"
    pooled = model.pooled(dataset.texts, description, reading.batch_size, following)
    made_by = {**_made_by(info, paths), "dtype": str(model.dtype).removeprefix("torch.")}
    for hook, activations in pooled.items():
        path = paths.model_activations(info.name, name, hook, ood)
        write_activations(path, activations, dataset.texts, {**made_by, "hook_name": hook})
    return len(dataset)


def batch_size(text: str) -> int | None:
    """A flag's number of texts; None for "auto"."""
    return None if text == "auto" else cli.positive(text)


def find_model(args: argparse.Namespace, paths: Paths) -> LanguageModel:
    """The model asked for; one outside the table is described for the later stages when its first
    file is whole.

    Raises UserError when --hf_model is given for a name that already means another model.
    """
    name = args.model_name
    if args.hf_model is None:
        info = get_model(name, paths)
        if args.prepend_bos and name in MODELS and not info.prepend_bos:
            raise UserError(
                f"{name} is read without a BOS token of its own here: to put one, name it otherwise"
                f" (--model_name my-{name} --hf_model {info.hub_id} --layers …)"
            )
        info = replace(info, prepend_bos=info.prepend_bos or args.prepend_bos)
        return replace(info, max_seq_len=args.max_seq_len) if args.max_seq_len else info
    if name in MODELS:
        raise UserError(
            f"--model_name {name} is {MODELS[name].hub_id or 'a model of the table'}: give"
            " --hf_model another name"
        )

    known = get_model(name, paths) if paths.model_description(name).is_file() else None
    source = args.hf_model
    if source.startswith("~"):  # quoted, so that the shell left it
        source = str(Path(source).expanduser())
    if known and known.hub_id not in (args.hf_model, source):
        raise UserError(
            f"--model_name {name} is already {known.hub_id}: give this model another name"
        )
    layers = sorted({*(known.layers if known else ()), *(args.layers or ())}, key=layer_order)
    if not layers:
        raise UserError(
            "a model outside the table needs --layers or --hook_names: which activations are to be"
            " read?"
        )
    config = read_config(source, name)
    info = LanguageModel(
        name,
        source,
        config.hidden_size,
        tuple(layers),
        known.probe_layer if known else layers[-1],
        pooling="mean" if config.model_type in ENCODERS else "last",
        max_seq_len=args.max_seq_len
        or (known.max_seq_len if known else min(1024, longest_text(config) or 1024)),
        prepend_bos=args.prepend_bos or (known is not None and known.prepend_bos),
    )
    return info


def _texts(paths: Paths, name: str, ood: bool, max_rows: int | None) -> Dataset:
    dataset = load_ood(paths, name) if ood else load_dataset(paths, name)
    if ood or max_rows is None or max_rows >= len(dataset):
        return dataset
    return Dataset(
        dataset.name, dataset.texts[:max_rows], dataset.labels[:max_rows], dataset.classes
    )


def _is_done(paths: Paths, info: LanguageModel, name: str, ood: bool, reading: Reading) -> bool:
    """Whether every hook's file is there, with enough rows, made from these texts by this model;
    more rows than asked for are enough. Files of others are taken as they are.

    Raises UserError when texts or a description cannot be read.
    """
    size = dataset_facts(paths, name, ood).n_rows
    wanted = size if ood else min(reading.max_rows or size, size)
    for hook in reading.hooks:
        path = paths.model_activations(info.name, name, hook, ood)
        if not path.is_file():
            return False
        made = read_description(path)
        if not made:
            continue
        n_rows = made.get("n_rows")
        texts = dataset_facts(paths, name, ood, n_rows).texts
        now = {**_made_by(info, paths), "texts_sha256": texts}
        changed = [key for key, value in now.items() if value and made.get(key, value) != value]
        if made.get("prepend_bos", False) != info.prepend_bos:  # older files do not say it
            changed.append("prepend_bos")
        few = n_rows is not None and n_rows < wanted
        if reading.dtype not in ("auto", made.get("dtype", reading.dtype)):
            changed.append("dtype")
        if changed:
            what = " and ".join(key.removesuffix("_sha256") for key in changed)
            print(f"{path.name}: made with other {what}, is made again")
        elif few:
            print(f"{path.name}: made with {n_rows} rows, is made again with {wanted}")
        if changed or few:
            return False
    return True


def _made_by(info: LanguageModel, paths: Paths) -> dict[str, object]:
    """What a file says of how its texts were read."""
    return {
        "model_name": info.name,
        "model": model_identity(info, paths),
        "pooling": info.pooling,
        "max_seq_len": info.max_seq_len,
        **({"prepend_bos": True} if info.prepend_bos else {}),
    }


if __name__ == "__main__":
    cli.run(main)
