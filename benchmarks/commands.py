"""What the commands of README.md take: typed as they stand there, in a fresh clone.

    python -m benchmarks.commands
    python -m benchmarks.commands --only setup demo again

Clones the last commit into a folder of its own, which is removed at the end (--work_dir keeps it),
and measures wall time and the memory of all processes together. "demo" and "test" are the two
commands, "again" a second demo, "own" the commands for an SAE of one's own, on a causal model of
four blocks with random weights. Adds a run to docs/commands.json, from which `make docs` fills
README.md. Fetches packages; takes a quarter of an hour on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from contextlib import ExitStack
from math import floor
from pathlib import Path
from typing import Any

from benchmarks.measurements import machine, run
from utils import cli
from utils.runtime.errors import Failures, UserError
from utils.runtime.files import ROOT, write_json
from utils.runtime.provenance import current_commit
from utils.runtime.units import show_bytes

KEPT = ROOT / "docs" / "commands.json"
MOST_RUNS = 5  # that are kept
PARTS = ("setup", "demo", "again", "test", "own")
OF_MAKE = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKE_TERMOUT", "MAKE_TERMERR")
INSTALLED, REPORT = ".venv/.installed", "figures/all-MiniLM-L6-v2/report.html"
# what a part makes first: where it is there, a run would go on and not begin
FIRST_MADE = {"setup": ".venv", "demo": "data/models/all-MiniLM-L6-v2", "own": "data/saes/mine"}
# {part: {the part that makes what it needs: a file of it}}
NEEDED = {
    "demo": {"setup": INSTALLED},
    "again": {"demo": REPORT},
    "test": {"setup": INSTALLED},
    "own": {"demo": REPORT},
}
MODEL_FOLDER, SAE_FOLDER = "~/my-model", "data/saes/mine/layer_2/my_sae"  # as README has them
D_MODEL, D_SAE, K_ACTIVE = 128, 1024, 32
BLOCK = re.compile(r"^```\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), help="which, in this order"
    )
    parser.add_argument(
        "--work_dir", type=Path, metavar="FOLDER", help="where the clone is made and left"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    failures = Failures()
    took: dict[str, dict[str, float]] = {}
    earlier = read_runs()
    about = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "commit": current_commit()}
    with ExitStack() as at_end:
        work = args.work_dir or Path(at_end.enter_context(tempfile.TemporaryDirectory()))
        clone = cloned(work.resolve())
        for part in (part for part in PARTS if part in args.only):
            with failures.caught(f"{part}: "):
                took[part] = measure(part, clone)
                write_json(KEPT, {"runs": [*earlier, {**about, **took}][-MOST_RUNS:]})
    if took:
        print(f"\nkept: {KEPT}; make docs writes it into README.md")
    for part, values in took.items():
        print(f"  {part:<8} {values['seconds']:6.0f} s  {show_bytes(values['peak_bytes']):>10}")
    return cli.report(failures, "commands")


def cloned(work: Path) -> Path:
    """A clone of the last commit below a folder; one that is there may go on, where it is of it.

    Raises UserError where it is of another.
    """
    clone = work / "clone"
    if not clone.is_dir():
        work.mkdir(parents=True, exist_ok=True)
        if run(["git", "clone", "--quiet", str(ROOT), str(clone)], work)[2]:
            raise UserError(f"{ROOT} cannot be cloned into {work}")
    elif current_commit(clone) != current_commit():
        raise UserError(f"{clone} is of another commit: remove it")
    return clone


def measure(part: str, clone: Path) -> dict[str, float]:
    """Seconds and memory of a part's commands. Raises UserError where they fail, or where what they
    need was not made: its time would then count.
    """
    first = FIRST_MADE.get(part)
    if first and (clone / first).exists():
        raise UserError(f"{clone} has begun it already: another --work_dir")
    for needed, path in NEEDED.get(part, {}).items():
        if not (clone / path).exists():
            raise UserError(f"it needs what the part {needed} makes: --only {needed} {part}")
    if part == "own":
        make_own(clone)
    script = script_of(part, (clone / "README.md").read_text(encoding="utf-8"), clone.parent)
    command = ["bash", "-euo", "pipefail", "-c", script]
    seconds, peak, status = run(command, clone, environment=without_make())
    if status:
        raise UserError(f"its commands ended with {status}; they and their output are above")
    measured: dict[str, float] = {"seconds": round(seconds, 1), "peak_bytes": peak}
    return measured | ({"disk_bytes": size_of(clone)} if part == "demo" else {})


def without_make() -> dict[str, str]:
    """The environment without make's own variables and those that our Makefile heeds: the commands
    run as on a machine that has set none.
    """
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    heeded = {*OF_MAKE, *re.findall(r"^([A-Z_]+) \?=", makefile, flags=re.MULTILINE)}
    heeded -= {"PYTHON"}  # which may be the only one that will do
    return {name: value for name, value in os.environ.items() if name not in heeded}


def script_of(part: str, readme: str, work: Path) -> str:
    """The shell commands of a part, out of README.md's text."""
    if part == "setup":
        return "make setup"
    if part == "own":
        block = blocks_of(readme, "Is my SAE useful?")[0]
        return block.replace(MODEL_FOLDER, str(work / "my-model"))
    two = blocks_of(readme, "Two commands")[0]
    target = "test" if part == "test" else "demo"
    return next(line for line in two.splitlines() if line.startswith(f"make {target}"))


def blocks_of(readme: str, title: str) -> list[str]:
    """The fenced blocks of the section of a Markdown text that has this title."""
    sections = re.split(r"^## (.*)\n", readme, flags=re.MULTILINE)
    by_title = dict(zip(sections[1::2], sections[2::2]))
    return BLOCK.findall(by_title.get(title, ""))


def make_own(clone: Path) -> None:
    """A causal model of four blocks and an SAE for it, both with random weights, where README's
    commands look for them. Its tokenizer is that of the demo's model.
    """
    import torch
    from sae_lens import TopKSAE, TopKSAEConfig
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(clone / "data" / "models" / "all-MiniLM-L6-v2")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=D_MODEL,
        intermediate_size=2 * D_MODEL,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(clone.parent / "my-model")
    tokenizer.save_pretrained(clone.parent / "my-model")
    sae = TopKSAE(TopKSAEConfig(d_in=D_MODEL, d_sae=D_SAE, k=K_ACTIVE))
    directions = torch.nn.functional.normalize(torch.randn(D_SAE, D_MODEL), dim=1)
    with torch.no_grad():
        sae.W_dec.copy_(directions)
        sae.W_enc.copy_(directions.T)
    sae.save_model(clone / SAE_FOLDER)


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def read_runs() -> list[dict[str, Any]]:
    """The runs that are kept."""
    if not KEPT.is_file():
        return []
    runs = json.loads(KEPT.read_text(encoding="utf-8"))["runs"]
    assert isinstance(runs, list)
    return runs


def facts() -> dict[str, str]:
    """What documents quote: {"demo_took": "4 to 5 minutes", "demo_memory": "1.9 GiB", …}."""
    runs = read_runs()
    quoted = {"commands_machine": "; ".join(dict.fromkeys(one["machine"] for one in runs))}
    for part in PARTS:
        values = [one[part] for one in runs if part in one]
        if not values:
            continue
        quoted[f"{part}_took"] = span([value["seconds"] for value in values])
        quoted[f"{part}_memory"] = show_bytes(max(value["peak_bytes"] for value in values))
        disk = [value["disk_bytes"] for value in values if "disk_bytes" in value]
        if disk:
            quoted[f"{part}_disk"] = show_bytes(max(disk))
    return quoted


def span(seconds: list[float]) -> str:
    """The whole minutes (below two: the tens of seconds) between which all of these lie."""
    size, unit, shown = (60, "minutes", 1) if max(seconds) >= 120 else (10, "seconds", 10)
    low, high = floor(min(seconds) / size), floor(max(seconds) / size) + 1
    return f"{low * shown} to {high * shown} {unit}"


if __name__ == "__main__":
    cli.run(main)
