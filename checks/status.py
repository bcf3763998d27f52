"""What of a model is there, what is missing, and the command that makes it.

    python -m checks.status --model_name gemma-2-9b
    python -m checks.status --model_name gemma-2-9b --output REPRODUCTION_STATUS.md

Looks at names, sizes and the ends of files, not at tensors: a full published set takes seconds.
Prints a matrix of settings by stages with counts done of expected, by SAE width, then files that
cannot be read, archives not yet unpacked, and a command for each gap. Changes nothing; --output
writes the same as Markdown.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from utils import cli
from utils.models import LanguageModel, get_model
from utils.paths import Paths
from utils.readers.archives import is_extracted
from utils.results.inventory import Count, Inventory, take_inventory, width_name
from utils.runtime.files import atomic_path

MAX_SHOWN = 20  # broken files listed by name


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    cli.add_setting(parser, default=cli.EVERY)
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the status there too, as Markdown"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    info = get_model(args.model_name, paths)
    settings = cli.settings_asked(args)
    text = describe(paths, info, settings)
    print(text)
    if args.output:
        with atomic_path(args.output) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        print(f"\nwritten to {args.output}")
    return 0


def describe(paths: Paths, info: LanguageModel, settings: tuple[str, ...]) -> str:
    """The whole status as Markdown that reads well as text."""
    inventory = take_inventory(paths, info, settings)
    header, *rows = matrix(inventory, settings)
    works, blocked, gaps = findings(paths, info, inventory, settings)
    lines = [
        f"# Status of {info.name}",
        "",
        f"{len(inventory.sizes)} datasets. Done of expected:",
        "",
    ]
    lines += table(header, rows)
    lines += section("Works", works, "nothing yet")
    lines += section("Blocked", blocked, "nothing")
    packed = [path for path in paths.archives(info.name) if not is_extracted(path, paths)]
    lines += section(
        "Archives not unpacked",
        [f"{path}: `make extract-data MODEL={info.name}`" for path in packed],
        "none",
    )
    broken = inventory.unreadable[:MAX_SHOWN]
    if len(inventory.unreadable) > MAX_SHOWN:
        broken.append(f"… and {len(inventory.unreadable) - MAX_SHOWN} more")
    lines += section("There, but unreadable", broken, "none")
    if inventory.stale:
        shown = inventory.stale[:MAX_SHOWN]
        if len(inventory.stale) > MAX_SHOWN:
            shown.append(f"… and {len(inventory.stale) - MAX_SHOWN} more")
        lines += section("Made from something else than there is now, to be made again", shown, "")
    lines += section("Missing, and what makes it", gaps, "nothing")
    if inventory.remarks:
        lines += section("Notes", inventory.remarks, "")
    return "\n".join(lines)


def matrix(inventory: Inventory, settings: tuple[str, ...]) -> list[list[str]]:
    """Heading and a row a setting; SAE columns by width."""
    widths = list(dict.fromkeys(width_name(sae_id) for sae_id in inventory.sae_ids))
    header = [
        "setting",
        "model activations",
        *(f"SAE acts {w}" for w in widths),
        "baselines",
        *(f"SAE probes {w}" for w in widths),
    ]
    rows = [header]
    for setting in settings:
        row = [setting, str(inventory.model_activations[setting])]
        row += [
            str(by_width(inventory.sae_activations, inventory, setting, width)) for width in widths
        ]
        row.append(str(inventory.baselines[setting]))
        row += [str(by_width(inventory.sae_probes, inventory, setting, width)) for width in widths]
        rows.append(row)
    return rows


def by_width(
    counts: dict[tuple[str, str], Count], inventory: Inventory, setting: str, width: str
) -> Count:
    return sum(
        (counts[setting, i] for i in inventory.sae_ids if width_name(i) == width), Count(0, 0)
    )


def findings(
    paths: Paths, info: LanguageModel, inventory: Inventory, settings: tuple[str, ...]
) -> tuple[list[str], list[str], list[str]]:
    """(what can be run or shown now, what cannot and why, each gap with its command)."""
    works, blocked, gaps = [], [], []
    for setting in settings:
        where = f"MODEL={info.name} SETTING={setting}"
        models, baselines = inventory.model_activations[setting], inventory.baselines[setting]
        if not models.complete:
            gaps.append(
                f"{setting}, model activations: {models}: `make generate-model-acts {where}`, or"
                " unpack the paper's"
            )
        if models.done:
            works.append(
                f"{setting}: baselines and SAE activations of the {models.done} model activation"
                " files that are there"
            )
        else:
            blocked.append(
                f"{setting}: training baselines and making SAE activations: there are no model"
                " activations"
            )
        if not baselines.complete:
            gaps.append(f"{setting}, baselines: {baselines}: `make train-baselines {where}`")
        for sae_id in inventory.sae_ids:
            if sae_id in inventory.only_in_tables:
                continue
            target = f'{where} ARGS="--target_sae_id {sae_id}"'
            gaps += gaps_of_sae(inventory, setting, sae_id, target)
            latents = inventory.sae_activations[setting, sae_id]
            if latents.done:
                works.append(f"{setting}: SAE probes of {sae_id} on {latents.done} datasets")
            elif not inventory.sae_probes[setting, sae_id].complete:
                blocked.append(f"{setting}: SAE probes of {sae_id}: there are no SAE activations")
        if baselines.done and setting in inventory.probed:
            works.append(f"{setting}: comparison and figures: `make visualize MODEL={info.name}`")
        else:
            lacking = [
                name
                for name, n in (
                    ("baselines", baselines.done),
                    ("SAE probes", setting in inventory.probed),
                )
                if not n
            ]
            blocked.append(
                f"{setting}: comparison and figures: there are no {' and no '.join(lacking)}"
            )
    if inventory.only_in_tables:
        gaps.append(
            f"{len(inventory.only_in_tables)} SAEs are known from result tables only: put them into"
            f" {paths.saes(info.name)}"
        )
    return works, blocked, gaps


def gaps_of_sae(inventory: Inventory, setting: str, sae_id: str, target: str) -> list[str]:
    """What an SAE lacks in a setting, each with its command; ``target``: that command's flags."""
    latents = inventory.sae_activations[setting, sae_id]
    probes = inventory.sae_probes[setting, sae_id]
    if probes.complete:
        return []
    gaps = [f"{setting}, SAE probes of {sae_id}: {probes}: `make train-sae-probes {target}`"]
    if not latents.complete:
        gaps.insert(
            0,
            f"{setting}, SAE activations of {sae_id}: {latents}: `make generate-sae-acts-optimized"
            f" {target}`",
        )
    return gaps


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table whose columns line up as plain text."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    line = "| " + " | ".join("{:<" + str(width) + "}" for width in widths) + " |"
    return [
        line.format(*header),
        "|" + "|".join("-" * (width + 2) for width in widths) + "|",
        *(line.format(*row) for row in rows),
    ]


def section(title: str, lines: list[str], none: str) -> list[str]:
    return ["", f"## {title}", *([f"- {line}" for line in lines] or [none])]


if __name__ == "__main__":
    cli.run(main)
