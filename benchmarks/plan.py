"""What a study of a model's whole SAE release takes: SAEs, rows, bytes, products, hours of CPU and
GPU.

    python -m benchmarks.plan --model_name gemma-2-9b --workers 32
    python -m benchmarks.plan --model_name gemma-2-9b --workers 32 --layers 20 --gpu_gflops 40000

Reads the seconds per probe and the rate of products that `make benchmark` measured on this machine
(docs/benchmarks.json), the release from SAELens's registry (no network), and the sizes of the texts
that are there. Reading weights and rows is not counted; the worked example in docs/cluster.md says
where that matters. Runs nothing, writes nothing.
"""

from __future__ import annotations

import argparse

from benchmarks.measurements import KEPT, read_measurements
from benchmarks.rates import Sweep, probe_sweep
from utils import cli
from utils.datasets import choose_datasets, dataset_facts, dataset_size, readable
from utils.models import get_model
from utils.names import named_l0, named_width, sae_layer
from utils.runtime.errors import Failures, UserError, unknown_name
from utils.runtime.units import short_number, show_bytes
from utils.settings import SETTINGS

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
        default=15_000,
        help="float32 products of the GPU (assumed, not measured; an A100 gives this)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    info = get_model(args.model_name, paths)
    measured = read_measurements()
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
    failures = Failures()
    names = readable(paths, choose_datasets(paths, args.datasets), failures)
    sizes = [dataset_size(paths, name) for name in names]
    shifted = (
        readable(paths, choose_datasets(paths, args.datasets, ood=True), failures, ood=True)
        if "OOD" in args.settings
        else []
    )
    n_rows = sum(sizes) + sum(dataset_facts(paths, name, ood=True).n_rows for name in shifted)

    widths = [named_width(sae_id) or 0 for sae_id in saes]
    flops = sum(2.0 * n_rows * info.d_model * width for width in widths)
    stored = sum(n_rows * (named_l0(sae_id) or ASSUMED_L0) * BYTES_A_NONZERO for sae_id in saes)
    weights = sum(8.0 * info.d_model * width for width in widths)
    print(
        f"{release}: {len(saes)} SAEs, {sum(map(bool, widths))} with a width in their id, the"
        f" widest {short_number(max(widths))}"
    )
    print(
        f"{len(names)} datasets, {n_rows} rows; model activations"
        f" {show_bytes(4.0 * n_rows * info.d_model)} a layer"
    )
    print(
        f"weights to fetch {show_bytes(weights)}; SAE activations to store about"
        f" {show_bytes(stored)}"
    )
    rate = measured["product_rate"]
    print(
        f"encoding: {flops:.2e} float operations, {flops / rate / 3600:.1f} h at this machine's"
        f" {rate / 1e9:.0f} GFLOP/s, {flops / (args.gpu_gflops * 1e9) / 3600:.2f} GPU-hours at"
        f" {args.gpu_gflops:.0f} GFLOP/s (assumed)"
    )
    total = 0.0
    for setting in args.settings:
        asked = (
            sizes
            if setting != "OOD"
            else [size for name, size in zip(names, sizes) if name in shifted]
        )
        one: Sweep = probe_sweep(setting, asked, measured["rates"])
        total += one.seconds * len(saes)
        print(
            f"{setting:<16} {one.fits * len(saes):9d} probes, {one.seconds * len(saes) / 3600:8.2f}"
            " CPU-hours"
        )
    hours = total / 3600
    print(
        f"probes: {hours:.1f} CPU-hours; {hours / args.workers:.1f} h on {args.workers} workers of"
        " one thread like those measured"
    )
    print(f"measured {measured['date']} on {measured['machine']} ({KEPT.name})")
    return cli.report(failures, "files of texts")


def list_release(release: str) -> list[str]:
    """Ids of the SAEs of a release in SAELens's registry."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    directory = get_pretrained_saes_directory()
    if release not in directory:
        raise unknown_name("SAE release", release, directory)
    return list(directory[release].saes_map)


if __name__ == "__main__":
    cli.run(main)
