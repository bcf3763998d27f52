"""What a study of a model's whole SAE release takes: SAEs, rows, bytes, products, hours of CPU and
GPU.

    python -m benchmarks.plan --model_name gemma-2-9b --workers 32
    python -m benchmarks.plan --model_name gemma-2-9b --workers 32 --layers 20 --gpu_gflops 40000

Reads the seconds per probe and the rate of products that `make benchmark` measured on this machine
(docs/benchmarks.json), the release from SAELens's registry (no network), and the sizes of the texts
that are there. Reading weights and rows is not counted; the worked example in docs/cluster.md says
where that matters. Runs nothing; --record keeps the sizes for that page (docs/plan.json).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from benchmarks.measurements import KEPT, read_measurements
from benchmarks.rates import Sweep, probe_sweep
from utils import cli
from utils.datasets import choose_datasets, dataset_facts, dataset_size, readable
from utils.models import DEFAULT_MODEL, get_model
from utils.names import named_l0, named_width, sae_layer
from utils.paths import Paths
from utils.runtime.errors import Failures, UserError, unknown_name
from utils.runtime.files import ROOT, write_json
from utils.runtime.units import short_number, show_bytes
from utils.settings import SETTINGS, SHIFTED

RECORDED = ROOT / "docs" / "plan.json"
GPU_GFLOPS = 15_000.0  # of float32 products, assumed: an A100 gives this
ASSUMED_L0 = 100  # of an SAE whose id does not say
BYTES_A_NONZERO = 8.1


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    cli.add_datasets(parser)
    parser.add_argument(
        "--sae_release", metavar="NAME", help="release in SAELens's registry (default: the model's)"
    )
    parser.add_argument(
        "--layers", nargs="+", type=cli.layer, metavar="N", help="only SAEs of these layers"
    )
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="which settings"
    )
    parser.add_argument("--workers", type=cli.positive, default=1, help="workers of one thread")
    parser.add_argument(
        "--gpu_gflops",
        type=float,
        default=GPU_GFLOPS,
        help="float32 products of the GPU (assumed, not measured; an A100 gives this)",
    )
    parser.add_argument("--record", action="store_true", help="keep the sizes for docs/cluster.md")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    measured = read_measurements()
    failures = Failures()
    study = study_of(paths, args, failures)
    if args.record:
        if failures.lines or args.layers or args.datasets or set(args.settings) != set(SETTINGS):
            raise UserError("--record is for a whole release on all texts in all settings")
        if study.release != get_model(DEFAULT_MODEL, paths).sae_release:
            raise UserError(f"--record is for the release of {DEFAULT_MODEL}, of which docs/ speak")
        write_json(RECORDED, asdict(study))
        print(f"kept: {RECORDED}; make docs writes it into docs/cluster.md")
    print_plan(study, measured, args)
    return cli.report(failures, "files of texts")


class SizedSae(NamedTuple):
    """``width``: its latents, 0 where they are not known."""

    layer: str
    width: int
    l0: float


@dataclass(frozen=True)
class Study:
    """A release of SAEs, and the texts that they are tried on.

    ``sizes``: rows of each dataset. ``sizes_with_ood``: of those that have OOD texts, which have
    ``n_ood_rows`` rows together.
    """

    release: str
    d_model: int
    saes: list[SizedSae]
    sizes: list[int]
    sizes_with_ood: list[int]
    n_ood_rows: int

    @property
    def n_rows(self) -> int:
        return sum(self.sizes) + self.n_ood_rows

    @property
    def acts_bytes(self) -> float:
        """Model activations of one layer."""
        return 4.0 * self.n_rows * self.d_model

    @property
    def flops(self) -> float:
        """Float operations of all encoders' products."""
        return sum(2.0 * self.n_rows * self.d_model * sae.width for sae in self.saes)

    @property
    def weight_bytes(self) -> float:
        """Encoders and decoders."""
        return sum(8.0 * self.d_model * sae.width for sae in self.saes)

    @property
    def latents_bytes(self) -> float:
        """SAE activations on disk."""
        return sum(self.n_rows * sae.l0 * BYTES_A_NONZERO for sae in self.saes)

    def of_layer(self, layer: int) -> Study:
        """The SAEs of one layer."""
        return replace(self, saes=[sae for sae in self.saes if sae.layer == str(layer)])

    def probes(self, settings: Iterable[str], rates: dict) -> dict[str, Sweep]:
        """{setting: the probes of all SAEs}."""
        of_settings = {}
        for setting in settings:
            one = probe_sweep(
                setting, self.sizes if setting != SHIFTED.name else self.sizes_with_ood, rates
            )
            n_saes = len(self.saes)
            of_settings[setting] = Sweep(one.fits * n_saes, one.seconds * n_saes)
        return of_settings


def study_of(paths: Paths, args: argparse.Namespace, failures: Failures) -> Study:
    """The study that the flags ask for. Raises UserError where there is no such release."""
    info = get_model(args.model_name, paths)
    release = args.sae_release or info.sae_release
    if release is None:
        raise UserError(f"{info.name} has no release in the table: name one with --sae_release")
    saes = [
        sae_id
        for sae_id in list_release(release)
        if not args.layers or sae_layer(sae_id) in args.layers
    ]
    if not saes:
        raise UserError(f"{release} has no SAE of the layers {args.layers}")
    names = readable(paths, choose_datasets(paths, args.datasets), failures)
    shifted = (
        readable(paths, choose_datasets(paths, args.datasets, ood=True), failures, ood=True)
        if SHIFTED.name in args.settings
        else []
    )
    return Study(
        release=release,
        d_model=info.d_model,
        saes=[
            SizedSae(
                str(sae_layer(sae_id)), named_width(sae_id) or 0, named_l0(sae_id) or ASSUMED_L0
            )
            for sae_id in saes
        ],
        sizes=[dataset_size(paths, name) for name in names],
        sizes_with_ood=[dataset_size(paths, name) for name in names if name in shifted],
        n_ood_rows=sum(dataset_facts(paths, name, ood=True).n_rows for name in shifted),
    )


def print_plan(study: Study, measured: dict[str, Any], args: argparse.Namespace) -> None:
    rate = measured["product_rate"]
    widths = [sae.width for sae in study.saes]
    print(
        f"{study.release}: {len(widths)} SAEs, {sum(map(bool, widths))} with a width in their id,"
        f" the widest {short_number(max(widths))}"
    )
    print(
        f"{len(study.sizes)} datasets, {study.n_rows} rows; model activations"
        f" {show_bytes(study.acts_bytes)} a layer"
    )
    print(
        f"weights to fetch {show_bytes(study.weight_bytes)}; SAE activations to store about"
        f" {show_bytes(study.latents_bytes)}"
    )
    print(
        f"encoding: {study.flops:.2e} float operations, {study.flops / rate / 3600:.1f} h at this"
        f" machine's {rate / 1e9:.0f} GFLOP/s,"
        f" {study.flops / (args.gpu_gflops * 1e9) / 3600:.2f} GPU-hours at"
        f" {args.gpu_gflops:.0f} GFLOP/s (assumed)"
    )
    of_settings = study.probes(args.settings, measured["rates"])
    for setting, sweep in of_settings.items():
        print(f"{setting:<16} {sweep.fits:9d} probes, {sweep.seconds / 3600:8.2f} CPU-hours")
    hours = sum(sweep.seconds for sweep in of_settings.values()) / 3600
    print(
        f"probes: {hours:.1f} CPU-hours; {hours / args.workers:.1f} h on {args.workers} workers of"
        " one thread like those measured"
    )
    print(f"measured {measured['date']} on {measured['machine']} ({KEPT.name})")


def read_study() -> Study:
    """The study that documents show."""
    content = json.loads(RECORDED.read_text(encoding="utf-8"))
    return Study(**{**content, "saes": [SizedSae(*sae) for sae in content["saes"]]})


def list_release(release: str) -> list[str]:
    """Ids of the SAEs of a release in SAELens's registry."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    directory = get_pretrained_saes_directory()
    if release not in directory:
        raise unknown_name("SAE release", release, directory)
    return list(directory[release].saes_map)


if __name__ == "__main__":
    cli.run(main)
