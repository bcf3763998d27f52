"""Which activations an SAE reads: what its files say, then its release, then its id.

Nothing is guessed. Sources that disagree, or an SAE that says nothing, are refused in one line; so
is a hook whose activations are not made here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from utils.names import HOOK_POINTS, Layer, hook_name, parse_layer, sae_layer
from utils.runtime.errors import UserError
from utils.saes.formats import format_of, gemma_scope_2_point

# what a Gemma Scope release was trained on, by the end of its name
GEMMA_SCOPE = {
    "res": "blocks.{}.hook_resid_post",
    "mlp": "blocks.{}.hook_mlp_out",
    "att": "blocks.{}.attn.hook_z",
    "transcoders": "blocks.{}.ln2.hook_normalized",
}
# other releases whose files and ids say only the block
OF_RELEASES = {r"^mwhanna-.*transcoders": "blocks.{}.mlp.hook_in"}
NOT_RESIDUAL = re.compile(
    r"(?<![a-z])(mlp|att|attn|attention|transcoders?|crosscoders?|clt)(?![a-z])", re.IGNORECASE
)


@dataclass(frozen=True)
class Says:
    """What one source says: a hook's whole name, or a block's number alone."""

    source: str
    hook: str | None = None
    block: int | None = None

    def agrees(self, other: Says) -> bool:
        """Whether both can be true: a block's number is that of the other's hook."""
        if self.hook and other.hook:
            return self.hook == other.hook
        mine, theirs = self._number(), other._number()
        return mine is None or theirs is None or mine == theirs

    def _number(self) -> int | None:
        if self.block is not None:
            return self.block
        return -1 if self.hook == "hook_embed" else block_of(self.hook)


def block_of(hook: str | None) -> int | None:
    """The block of a hook; None for the embedding's and for names that are not TransformerLens's.

    >>> block_of("blocks.5.attn.hook_z"), block_of("hook_embed")
    (5, None)
    """
    match = re.match(r"blocks\.(\d+)\.", hook or "")
    return int(match.group(1)) if match else None


def layer_read_by(
    sae_id: str, folder: Path | None, release: str | None, asked: str | None = None
) -> Layer:
    """The layer whose activations an SAE reads.

    ``folder``: its files where it is on disk; ``release``: the release it is of, where that is
    known; ``asked``: a hook that the user names, for SAEs that say nothing themselves.

    Raises UserError where sources disagree, none says it, or the hook is not made here.
    """
    said = (
        of_files(folder),
        of_release(release or sae_id, sae_id),  # a downloaded folder has the release's name
        of_id(sae_id),
        Says("--hook_name", asked) if asked else None,
    )
    sources = [says for says in said if says is not None]
    for i, first in enumerate(sources):
        for second in sources[i + 1 :]:
            if not first.agrees(second):
                raise UserError(
                    f"{sae_id}: {first.source} says {_shown(first)}, {second.source} says"
                    f" {_shown(second)}: one of them is wrong"
                )
    named = next((says for says in sources if says.hook), None)
    if named is None:
        numbered = next((says for says in sources if says.block is not None), None)
        known = format_of(folder) if folder is not None else None
        says_place = known is None or known.says_place
        elsewhere = NOT_RESIDUAL.search(f"{release or ''} {sae_id}")
        if numbered is None or elsewhere or not says_place:
            raise UserError(
                f"{sae_id} does not say which activations it reads: name them with --hook_name,"
                " as blocks.12.hook_resid_post"
            )
        # a block's number alone is that of its output, as in the paper's own names
        return int(numbered.block or 0)
    assert named.hook is not None
    try:
        if "hook_" not in named.hook:
            raise ValueError(named.hook)
        return parse_layer(re.sub(r"(?<=\d\.)hook_z$", "attn.hook_z", named.hook))
    except ValueError:
        points = ", ".join(f"blocks.N.{point}" for point in HOOK_POINTS)
        raise UserError(
            f"{sae_id} reads {named.hook} ({named.source}), whose activations are not made here:"
            f" those of hook_embed, {points} are"
        ) from None


def _shown(says: Says) -> str:
    return says.hook or f"block {says.block}"


def of_files(folder: Path | None) -> Says | None:
    """What the files of an SAE say; None where they say nothing."""
    known = format_of(folder) if folder is not None else None
    if known is None or folder is None:
        return None
    hook = known.hook(folder)
    named = folder if folder.is_file() else folder / known.marker
    return Says(str(named), hook) if hook else None


def of_release(release: str | None, sae_id: str) -> Says | None:
    """What the name of a Gemma Scope release says of its SAEs, and of Gemma Scope 2 the folder that
    SAELens's registry names; None for most others, whose files or ids say it.

    Raises UserError for temporal SAEs, whose latents depend on all tokens before.
    """
    if release and release.startswith("temporal-sae"):
        raise UserError(
            f"{sae_id} reads whole texts, token after token; rows of activations do not have them"
        )
    if re.match(r"gemma-scope-2-\d", release or ""):
        return _of_gemma_scope_2(str(release), sae_id)
    match = re.search(r"gemma-scope-\w+-\w+-(res|mlp|att|transcoders)\b", release or "")
    layer = sae_layer(sae_id)
    for pattern, hook in OF_RELEASES.items():
        if re.search(pattern, release or "") and isinstance(layer, int):
            return Says(str(release), hook.format(layer))
    if match is None or layer is None:
        return None
    if isinstance(layer, str):
        return Says(str(release), hook_name(layer))
    return Says(str(release), GEMMA_SCOPE[match.group(1)].format(layer))


def _of_gemma_scope_2(release: str, sae_id: str) -> Says | None:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    entry = get_pretrained_saes_directory().get(release)
    hook = gemma_scope_2_point(entry.saes_map.get(sae_id, sae_id) if entry else sae_id)
    return Says(release, hook) if hook else None


def of_id(sae_id: str) -> Says | None:
    """What an SAE's id says: a hook, or a block's number."""
    layer = sae_layer(sae_id)
    if isinstance(layer, str):
        return Says("its id", hook_name(layer))
    # a hook of TransformerLens that is not made here is no block's number
    other = re.match(r"blocks\.\d+\.[\w.]*hook_\w+", sae_id)
    if other and "hook_resid_post" not in other.group(0):
        return Says("its id", other.group(0))
    return None if layer is None else Says("its id", block=layer)
