"""Which SAEs of a release can be probed here: what each reads, its width, its format, or why not.

    python -m checks.saes --sae_release gemma-scope-2b-pt-res
    python -m checks.saes                     # every release, a line each
    python -m checks.saes --model_name gemma-2-2b

Reads the registry of the installed SAELens; nothing is fetched. What an SAE reads goes by the
release and the id. Once its files are here they are asked too: one that says something else is
refused. `python -m checks.status` shows what is on this disk.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils import cli
from utils.models import get_model
from utils.names import hook_name, named_width
from utils.paths import Paths
from utils.runtime.errors import UserError, unknown_name
from utils.saes.hooks import layer_read_by

if TYPE_CHECKING:
    from sae_lens.loading.pretrained_saes_directory import PretrainedSAELookup

# what the files of SAELens's loaders are, by its registry's ``conversion_func``
FORMS = {
    "None": "SAELens",
    "connor_rob_hook_z": "one .pt file",
    "deepseek_r1": "one .pt file",
    "dictionary_learning_1": "dictionary_learning",
    "gemma_2": "Gemma Scope",
    "gemma_2_transcoder": "Gemma Scope",
    "gemma_3": "Gemma Scope 2",
    "goodfire": "one .pt file",
    "llama_scope": "Llama Scope",
    "llama_scope_r1_distill": "Llama Scope R1",
    "mntss_clt_layer_transcoder": "one .safetensors file",
    "mwhanna_transcoder": "one .safetensors file",
    "qwen_scope": "Qwen Scope",
    "sparsify": "sparsify",
    "temporal": "SAELens",
}


@dataclass(frozen=True)
class Listed:
    """An SAE of a release; ``refused``: why it is not read, "" where it is."""

    sae_id: str
    hook: str = ""
    width: int | None = None
    form: str = ""
    refused: str = ""


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--sae_release", metavar="NAME", help="list each SAE of this release")
    parser.add_argument(
        "--model_name", help="only releases for this model (default: those for all models)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    directory = get_pretrained_saes_directory()
    if args.sae_release:
        if args.sae_release not in directory:
            raise unknown_name("SAE release", args.sae_release, directory)
        print_release(args.sae_release, directory[args.sae_release])
        return 0
    if args.model_name:
        directory = of_model(directory, cli.paths_of(args), args.model_name)
    print(f"{'release':54}{'for':28}{'read':>6}{'refused':>9}")
    n_read = n_all = 0
    for release, entry in sorted(directory.items()):
        saes = list_release(release, entry)
        readable = sum(not sae.refused for sae in saes)
        print(f"{release:54}{entry.model:28}{readable:>6}{len(saes) - readable:>9}")
        n_read, n_all = n_read + readable, n_all + len(saes)
    print(
        f"{len(directory)} releases: {n_read} of {n_all} SAEs are read here. Each one:"
        " --sae_release NAME"
    )
    return 0


def of_model(
    directory: dict[str, PretrainedSAELookup], paths: Paths, name: str
) -> dict[str, PretrainedSAELookup]:
    """The releases whose model is that of a name in our table.

    Raises UserError where there are none.
    """
    info = get_model(name, paths)
    spellings = {info.name, str(info.hub_id), str(info.hub_id).rpartition("/")[2]}
    chosen = {release: entry for release, entry in directory.items() if entry.model in spellings}
    if not chosen:
        raise UserError(f"no release of SAELens's registry is for {name}")
    return chosen


def list_release(release: str, entry: PretrainedSAELookup) -> list[Listed]:
    """Each SAE of a release, by its name and id alone."""
    form = FORMS.get(str(entry.conversion_func), "not known here")
    listed = []
    for sae_id in entry.saes_map:
        try:
            hook = hook_name(layer_read_by(sae_id, None, release))
        except UserError as error:
            listed.append(Listed(sae_id, refused=str(error).removeprefix(f"{sae_id} ")))
        else:
            listed.append(Listed(sae_id, hook, named_width(sae_id), form))
    return listed


def print_release(release: str, entry: PretrainedSAELookup) -> None:
    saes = list_release(release, entry)
    print(f"{release}: {len(saes)} SAEs for {entry.model}, of {entry.repo_id}")
    for sae in saes:
        if sae.refused:
            print(f"{sae.sae_id:46}refused: {sae.refused}")
        else:
            width = f"{sae.width:,}" if sae.width else "?"
            print(f"{sae.sae_id:46}{sae.hook:28}{width:>10}  {sae.form}")
    n_read = sum(not sae.refused for sae in saes)
    print(f"{n_read} read, {len(saes) - n_read} refused")


if __name__ == "__main__":
    cli.run(main)
