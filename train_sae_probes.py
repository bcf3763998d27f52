"""SAE activations to SAE probes: logistic regression on the k most telling latents, in each of the
five settings.

    python train_sae_probes.py --model_name gemma-2-9b --setting normal
    python train_sae_probes.py --model_name all-MiniLM-L6-v2 --setting scarcity \
        --conditions 10 53 198 --ks 16 128

Appends to results/sae_probes_{model}/{setting}_setting/all_metrics.csv as probes are done, and does
only what that table lacks. Needs the files of generate_sae_activations_optimized.py; what is
missing is listed at the end. Beside each SAE its controls are probed (utils/probes/controls.py): k
raw dimensions and k principal components of the model activations, the SAE's twins, and its latents
with shuffled labels. `--controls none` leaves them out; `reconstruction` and `error` are made when
they are asked for. Trains no baselines: that is train_baselines.py.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from utils import cli
from utils.activations import ModelRows, load_rows
from utils.datasets import choose_datasets, readable
from utils.models import LanguageModel, get_model
from utils.names import OF_LATENTS, Layer, hook_name, layer_order, split_twin, trained_id, twin_of
from utils.paths import Paths
from utils.probes.controls import (
    CONTROLS,
    DENSE,
    FITS,
    K_SHUFFLED,
    OF_LAYER,
    ControlActivations,
    DecodedActivations,
    control_id,
)
from utils.probes.k_sparse import (
    PROTOCOLS,
    REG_TYPES,
    SELECTIONS,
    SOLVERS,
    ProbeOptions,
    fit_sae_probes,
)
from utils.probes.l1_path import warm_up
from utils.results import saebench
from utils.results.kept_probes import Keeping, add_keep_probes, choose_kept
from utils.results.sources import Sources
from utils.results.sweep import Sweep, SweepOptions, Task, conditions_asked
from utils.results.tables import lock_tables, sae_probe_table
from utils.results.tidy import load_results
from utils.runtime.errors import Failures, UserError
from utils.saes.catalog import SaeChoice, choose_saes, find_sae, is_control, open_sae
from utils.saes.encoder import Encoder
from utils.saes.store import SaeActivations, SaeFiles, stored_checks
from utils.settings import (
    NORMAL,
    SHIFTED,
    Condition,
    ConditionRows,
    Setting,
    get_setting,
    is_possible,
    n_drawable,
)


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    cli.add_setting(parser)
    cli.add_datasets(parser)
    cli.add_split(parser)
    cli.add_saes(parser)
    parser.add_argument("--reg_type", choices=REG_TYPES, default="l1", help="penalty of the probe")
    parser.add_argument(
        "--binarize", action="store_true", help="probe on (latent > 1) instead of the latent"
    )
    parser.add_argument(
        "--ks",
        nargs="+",
        type=cli.positive,
        metavar="K",
        help="numbers of latents (default: 1 2 4 … 512, or 16 128); beyond d_sae: all",
    )
    parser.add_argument(
        "--solver",
        choices=SOLVERS,
        default="path",
        help="path reaches the optimum; saga is the paper's",
    )
    parser.add_argument(
        "--latent_selection",
        choices=SELECTIONS,
        default="mean_diff_normalized",
        help="how latents are ranked",
    )
    parser.add_argument(
        "--protocol",
        nargs="+",
        choices=PROTOCOLS,
        default=[PROTOCOLS[0]],
        help="rank latents on all training rows, or inside each fold (nested)",
    )
    defaults = tuple(name for name, control in CONTROLS.items() if control.by_default)
    cli.add_controls(parser, tuple(CONTROLS), "probe these too", defaults)
    parser.add_argument(
        "--export_saebench",
        action="store_true",
        help="normal setting: probe k = 1, 2, 5 too, and write results/saebench/",
    )
    add_keep_probes(parser)
    cli.add_seeds(parser)
    cli.add_workers(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    if args.export_saebench and args.setting != NORMAL.name:
        raise UserError(
            "--export_saebench is for --setting normal, which is what SAEBench evaluates"
        )
    return cli.over_settings(train, args, "datasets and SAEs")


def train(args: argparse.Namespace, failures: Failures) -> None:
    """Make the SAE probes of one setting that its table lacks."""
    paths = cli.paths_of(args)
    info = get_model(args.model_name, paths)
    setting = get_setting(args.setting)
    ks = sorted({*(args.ks or setting.ks), *(saebench.KS if args.export_saebench else ())})
    options = [
        ProbeOptions(
            args.reg_type, args.binarize, args.solver, args.latent_selection, protocol, seed
        )
        for protocol, seed in product(dict.fromkeys(args.protocol), cli.seeds_of(args))
    ]
    choice = SaeChoice(args.target_sae_id, args.layers, args.hook_name, args.sae_release)
    layers = choose_saes(paths, info, choice, failures)
    names = choose_datasets(paths, args.datasets, ood=setting.shifted)
    datasets = readable(paths, names, failures, ood=setting.shifted)
    controls = cli.controls_of(args)
    probed = sources(layers, paths.saes(info.name), controls, ks)
    table = sae_probe_table(paths.sae_probe_table(info.name, setting.name), setting.sae_column)
    with lock_tables([table]) as place:
        title = f"SAE probes, {info.name}, {setting.name}"
        made_now = Sources(paths, info.name)
        sweep = Sweep(title, [table], SweepOptions.of(args, paths, args.n_jobs))
        # what reads the same files is one task
        together: dict[tuple[str, str], list[Wanted]] = defaultdict(list)
        left_out = LeftOut(paths, info, setting)
        chosen_of = conditions_asked(args, paths, info.name, datasets)
        for dataset, source in product(datasets, probed):
            if left_out.lacks(source, dataset):
                continue
            base = {"dataset": dataset, **source.columns}
            made_from = made_now.of(base, setting)
            wanted = defaultdict(list)
            of_source = list(dict.fromkeys(map(source.options, options)))
            for option, condition, k in product(of_source, chosen_of[dataset], source.ks):
                if sweep.lacks(table, published_row(base, condition, k, option), made_from):
                    wanted[option, condition].append(k)
            if wanted:
                together[dataset, source.reads()].append(Wanted(base, dict(wanted), made_from))
        for (dataset, read), of_files in together.items():
            label = f"{dataset} with {read}"
            arguments = (paths, info.name, of_files, Keeping(args.keep_probes))
            sweep.add(Task(label, table, arguments, of_files[0].made_from))
        sweep.report()
        left_out.report()
        if sweep.tasks:
            warm_up()
        sweep.fill(probe_dataset, failures, place)
    if args.export_saebench:
        results = load_results(paths, info.name, (NORMAL.name,))
        for line in results.unreadable():
            failures.add(line)
        shapes = {i: stored_checks(paths, info.name, i, names) or {} for i in layers}
        for path in saebench.export_saebench(results.tidy, paths, info.name, shapes, options[0]):
            print(f"SAEBench  {path}")


@dataclass(frozen=True)
class Source:
    """What is probed: the columns sae_id, layer and method of its rows, and its numbers of latents
    (None: it has none). ``control``: its name among CONTROLS; None for an SAE.
    """

    columns: dict[str, Any]
    ks: list[int | None]
    control: str | None = None

    def reads(self) -> str:
        """Whose files of a dataset it reads."""
        sae_id = str(self.columns["sae_id"])
        return trained_id(sae_id) if self.control == "shuffled" else sae_id

    def options(self, options: ProbeOptions) -> ProbeOptions:
        """How its probe is made, where this is asked for."""
        if self.columns["method"] not in DENSE:
            return options
        return ProbeOptions("l2", solver="lbfgs", protocol=options.protocol, seed=options.seed)


def sources(
    layers: dict[str, Layer], sae_dir: Path, controls: list[str], ks: list[int]
) -> list[Source]:
    """Each SAE followed by its own controls, then those of the SAEs' layers."""
    probed = []
    for sae_id, layer in layers.items():
        # an SAE with random weights is a control too, and a method of its own
        untrained = is_control(sae_dir / sae_id)
        method = "random_sae_probe" if untrained else "sae_probe"
        probed.append(Source({"sae_id": sae_id, "layer": layer, "method": method}, [*ks]))
        for name in controls if not untrained else ():
            control = CONTROLS[name]
            if control.of != "layer":
                own: list[int | None] = [*ks]
                if control.method in DENSE:
                    own = [None]
                elif name == "shuffled":
                    own = [K_SHUFFLED if K_SHUFFLED in ks else ks[len(ks) // 2]]
                columns = {"sae_id": twin_of(sae_id, name), "layer": layer}
                probed.append(Source({**columns, "method": control.method}, own, name))
    read = sorted(set(layers.values()), key=layer_order)
    for layer, name in product(read, controls):
        if CONTROLS[name].of == "layer":
            columns = {"sae_id": control_id(name, layer), "layer": layer, "method": name}
            probed.append(Source(columns, [*ks], name))
    return probed


class LeftOut:
    """Controls that are made without being asked for, and whose files are not everybody's: what is
    not there is counted and said in a line, and is no failure.
    """

    def __init__(self, paths: Paths, info: LanguageModel, setting: Setting) -> None:
        self.paths, self.info, self.setting = paths, info, setting
        self.absent: dict[str, int] = defaultdict(int)
        self._decoders: dict[str, bool] = {}

    def lacks(self, source: Source, dataset: str) -> bool:
        """Whether a control has not what it is made from."""
        if source.control is None or self._is_there(source, dataset):
            return False
        self.absent[source.control] += 1
        return True

    def report(self) -> None:
        for control, n in self.absent.items():
            what = {
                "layer": "there are no model activations",
                "twin": "`make generate-sae-acts-optimized` makes the twins' activations",
                "latents": "the SAE's decoder or the model activations are not at hand",
            }[CONTROLS[control].of]
            print(f"left out: control {control}, {n} times (an SAE or layer and a dataset): {what}")

    def _is_there(self, source: Source, dataset: str) -> bool:
        kind, columns = CONTROLS[str(source.control)].of, source.columns
        sae_id, hook = str(columns["sae_id"]), hook_name(columns["layer"])
        activations = all(
            self.paths.model_activations(self.info.name, dataset, hook, ood).is_file()
            for ood in ((False, True) if self.setting.shifted else (False,))
        )
        if kind == "layer":
            return activations
        if kind == "twin":
            folder = SHIFTED.name if self.setting.shifted else NORMAL.name
            return bool(SaeFiles(self.paths, self.info.name, folder, dataset, sae_id).description())
        if columns["method"] not in DENSE:
            return True
        return activations and self._has_decoder(trained_id(sae_id), dataset)

    def _has_decoder(self, sae_id: str, dataset: str) -> bool:
        if sae_id not in self._decoders:
            self._decoders[sae_id] = False
            with suppress(UserError):
                if find_sae(self.paths.saes(self.info.name), sae_id) is not None:
                    encoder = encoder_of(self.paths, self.info.name, dataset, sae_id)
                    self._decoders[sae_id] = encoder.decoder is not None
        return self._decoders[sae_id]


def encoder_of(paths: Paths, model_name: str, dataset: str, sae_id: str) -> Encoder:
    """The SAE as it encoded a dataset: with the scaling of the release that its latents are of."""
    return open_sae(paths, model_name, sae_id, release_of(paths, model_name, dataset, sae_id))


def release_of(paths: Paths, model_name: str, dataset: str, sae_id: str) -> str | None:
    """The release whose scaling a dataset's latents have; None for that of its files alone."""
    files = SaeFiles(paths, model_name, NORMAL.name, dataset, sae_id)
    release = files.description().get("release")
    return None if release == "its files" else release


def published_row(base: dict, condition: Condition, k: int | None, options: ProbeOptions) -> dict:
    """The columns of a row that say what it is."""
    row = {**base, **asdict(options), "k": k}
    column = get_setting(condition.setting).sae_column
    return {**row, column: condition.label} if column else row


@dataclass(frozen=True)
class Wanted:
    """Probes to make of one source and dataset: the columns that they share, their ``ks`` by
    options and condition, and what they are made from.
    """

    base: dict[str, Any]
    ks: dict[tuple[ProbeOptions, Condition], list]
    made_from: str | None = None


def probe_dataset(
    paths: Paths, model_name: str, of_files: list[Wanted], keep: Keeping
) -> list[dict]:
    """All wanted probes of one dataset on the same files, which are read once; ``keep``: which of
    them to keep.
    """
    ood = any(get_setting(condition.setting).shifted for w in of_files for _, condition in w.ks)
    activations = rows_of(paths, model_name, of_files[0].base, ood)
    made = []
    for wanted in of_files:
        fit = FITS.get(wanted.base["method"], fit_sae_probes)
        for (options, condition), ks in wanted.ks.items():
            if not is_possible(condition, n_drawable(activations, condition)):
                continue  # fewer rows have activations than have texts
            for result in fit(activations.condition(condition, options.seed), ks, options):
                made.append(
                    {**published_row(wanted.base, condition, result["k"], options), **result}
                )
    if not made:
        raise UserError(
            f"only {len(activations.labels)} rows have activations: too few for what was asked"
        )
    return choose_kept(made, keep)


def rows_of(paths: Paths, model_name: str, base: dict, ood: bool) -> ConditionRows:
    """What the probe of a source sees of a dataset.

    Raises UserError when files are missing or do not fit.
    """
    name, sae_id, method, layer = (base[c] for c in ("dataset", "sae_id", "method", "layer"))
    width = get_model(model_name, paths).width_at(layer)

    def of_model() -> ModelRows:
        return load_rows(paths, model_name, name, hook_name(layer), ood, width)

    if method in OF_LAYER:
        return ControlActivations(method, of_model())
    control = split_twin(sae_id)[1]
    with_files = trained_id(sae_id) if control in OF_LATENTS else sae_id
    latents = SaeActivations(paths, model_name, name, with_files, ood)
    latents.require_hook(hook_name(layer))
    if method not in DENSE:
        return latents
    encoder = encoder_of(paths, model_name, name, with_files)
    return DecodedActivations(method, encoder, of_model(), latents)


if __name__ == "__main__":
    cli.run(main)
