"""Run a transformers model over texts and read its activations at named hooks, without
TransformerLens.

Hooks have TransformerLens's names and values (without its processing of weights): ``hook_embed`` is
the token embedding, with its scale where the model has one; ``blocks.N.hook_resid_pre`` what enters
block N, ``attn.hook_z`` the heads' outputs side by side before they are mixed, ``hook_attn_out``
and ``hook_mlp_out`` what attention and MLP add to the residual stream (after the norms that Gemma 2
and 3 put behind them), ``hook_resid_mid`` the stream between the two, ``hook_mlp_in`` what enters
the norm before the MLP, ``ln2.hook_normalized`` what that norm gives without its gain and bias,
``mlp.hook_in`` what enters the MLP, and ``hook_resid_post`` what leaves the block.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.gguf_models import dequantise, gguf_file
from utils.models import LanguageModel
from utils.names import hook_place
from utils.paths import Paths
from utils.readers.fingerprints import folder_fingerprint
from utils.runtime.errors import UserError, first_line, is_out_of_memory
from utils.runtime.progress import progress

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.hooks import RemovableHandle

# Models that add learned positions to the token embedding: TransformerLens's hook_embed is the
# embedding alone.
LEARNED_POSITIONS = {"gpt2", "gpt_neo", "opt"}
# Where a block keeps what adds to the residual stream, in the spellings of the transformers
# library.
ATTENTION = ("self_attn", "attn", "attention", "self_attention")
MLP = ("mlp", "feed_forward", "block_sparse_moe")
PARTS = ("hook_attn_out", "hook_mlp_out")  # what adds to the stream
STREAM = ("hook_resid_pre", "hook_resid_post")  # what every block has
# The norm before the MLP, and the projection that mixes the heads.
NORMS = ("pre_feedforward_layernorm", "ln_2", "post_attention_layernorm")
MIXERS = ("o_proj", "c_proj", "dense", "out_proj")
# Of a checkpoint: a head that no hook needs, and what older versions of transformers stored beside
# the weights.
NEEDLESS = re.compile(r"(^|\.)pooler\.|attn\.(masked_)?bias$|attention\.(masked_)?bias$|inv_freq$")
# mean over tokens, not the last one
ENCODERS = {"bert", "roberta", "distilbert", "xlm-roberta", "mpnet", "electra"}
# whose first position is behind that of padding
OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "mpnet"}
# of a batch, padding included, where no batch size is given
TOKENS_PER_BATCH = {"cpu": 4096, "mps": 8192, "cuda": 32_768}
MOST_PADDING = 0.08  # of the tokens of a batch


class _LastHookReached(Exception):
    """Ends a forward pass: blocks above the last hook need not run."""


class HookedModel:
    """A language model with its tokenizer, read at ``hook_names``.

    Raises UserError when the model cannot be found or has no such hook.
    """

    def __init__(
        self,
        info: LanguageModel,
        hook_names: list[str],
        paths: Paths,
        device: str,
        dtype: str = "auto",
    ) -> None:
        import torch

        self._tokenizing = ThreadPoolExecutor(1)
        self._ahead: Future[tuple[list[str], list[list[int]]]] | None = None
        self.info = info
        self.hook_names = list(dict.fromkeys(hook_names))
        self.device = torch.device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.tokenizer, self.model = _load(model_source(info, paths), info, self.dtype)
        self.model.to(self.device).eval()
        longest = longest_text(_config(self.model))
        if longest is not None and info.max_seq_len > longest:
            raise UserError(
                f"{info.name} has positions for {longest} tokens, not for {info.max_seq_len}: lower"
                " --max_seq_len"
            )
        # decoders often have none; padded places are masked, any token will do
        pad = self.tokenizer.pad_token_id
        n_tokens = self.model.get_input_embeddings().num_embeddings
        self.pad_id = pad if pad is not None and pad < n_tokens else 0
        self.bos_id = self.tokenizer.bos_token_id if info.prepend_bos else None
        if info.prepend_bos and self.bos_id is None:
            raise UserError(f"{info.name} has no BOS token: leave --prepend_bos out")
        self.tokenizer.truncation_side = "right" if info.pooling == "mean" else "left"
        depth = len(_blocks(self.model))
        for name in self.hook_names:
            if hook_place(name)[0] >= depth:
                raise UserError(f"{name}: {self.info.name} has blocks 0 to {depth - 1}")
        self._check_shapes()
        for name in self.hook_names:
            self._check_hook(name)

    def _place_hook(self, name: str, keep: Callable[[Any], None]) -> RemovableHandle:
        """Have ``keep`` called with what a forward pass has at the hook."""
        blocks = _blocks(self.model)
        number, _ = hook_place(name)
        block = blocks[max(number, 0)]
        if name == "hook_embed" and _config(self.model).model_type in LEARNED_POSITIONS:
            return self.model.get_input_embeddings().register_forward_hook(
                lambda _module, _inputs, output: keep(output)
            )
        if name == "hook_embed" or name.endswith("hook_resid_pre"):
            # what enters the first block is the embedding with its scale (Gemma) or its layer norm
            # (BERT)
            return _on_input(block, keep)
        if name.endswith("attn.hook_z"):
            return _on_input(_mixer(block, name, self.info.name), keep)
        if name.endswith("mlp.hook_in"):
            return _on_input(_module(block, MLP, name, self.info.name), keep)
        if name.endswith(("hook_resid_mid", "hook_mlp_in")):
            return _on_input(_norm(block, name, self.info.name), keep)
        if name.endswith("ln2.hook_normalized"):
            norm = _norm(block, name, self.info.name)
            return _on_input(norm, lambda states: keep(normalized(norm, states)))
        module = block if name.endswith("hook_resid_post") else _part(block, name, self.info.name)
        return module.register_forward_hook(lambda _module, _inputs, output: keep(output))

    def _forward(self, names: list[str], batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What a batch has at the named hooks, as far as it passes them; blocks above the last one
        are not run.
        """
        import torch

        captured: dict[str, torch.Tensor] = {}

        def keep(name: str, value: Any) -> None:
            captured[name] = value[0] if isinstance(value, tuple) else value
            if len(captured) == len(names):
                raise _LastHookReached

        handles = [self._place_hook(name, partial(keep, name)) for name in names]
        try:
            with torch.inference_mode(), suppress(_LastHookReached):
                self.model(**batch)
        finally:
            for handle in handles:
                handle.remove()
        return captured

    def _check_shapes(self) -> None:
        """Raise UserError unless every hook gives a row for each token of a text: some models have
        the batch elsewhere, several streams, or need more than a text.
        """
        try:
            states = self._forward(self.hook_names, self._few_tokens())
        except UserError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"{self.info.name} cannot be run on texts alone ({type(error).__name__}:"
                f" {first_line(error)[:120]})"
            ) from error
        for name, found in states.items():
            if found.shape[:-1] != (1, 8):
                raise UserError(
                    f"{name}: {self.info.name} has a tensor of shape {tuple(found.shape)} there for"
                    " 8 tokens, not a row for each"
                )

    def _few_tokens(self) -> dict[str, torch.Tensor]:
        """A batch of one text of eight tokens."""
        n_tokens = self.model.get_input_embeddings().num_embeddings
        return self.padded([[i % n_tokens for i in range(8)]])

    def width(self, name: str) -> int:
        """The columns of what is read at a hook."""
        return int(self._forward([name], self.padded([[0]]))[name].shape[-1])

    def _check_hook(self, name: str) -> None:
        """Raise UserError where a hook inside a block, on a few tokens, is not what its name says
        in this model: the parts of a block must add up, and modules must be in their usual order.
        """
        import torch

        if name == "hook_embed" or name.endswith(STREAM):
            return
        with torch.inference_mode():
            fits = self._is_as_named(name)
        if not fits:
            raise UserError(
                f"{name}: blocks of {self.info.name} are built otherwise, and what stands there is"
                f" something else than in TransformerLens; use {' or '.join(STREAM)}"
            )

    def _is_as_named(self, name: str) -> bool:
        _, number, point = name.split(".", 2)
        block = _blocks(self.model)[int(number)]

        def on_a_few_tokens(*points: str) -> dict[str, torch.Tensor]:
            """{point of the block: what a batch of eight tokens has there}."""
            names = {f"blocks.{number}.{wanted}": wanted for wanted in points}
            states = self._forward(list(names), self._few_tokens())
            silent = ", ".join(names.keys() - states.keys())
            if silent:
                raise UserError(f"{self.info.name} never passes {silent}: {name} is not read")
            return {wanted: states[full] for full, wanted in names.items()}

        if point in PARTS:
            seen = on_a_few_tokens(*STREAM, *PARTS)
            return parts_add_up(*(seen[p] for p in (STREAM[0], *PARTS, STREAM[1])))
        if point == "hook_resid_mid":
            seen = on_a_few_tokens("hook_resid_pre", "hook_attn_out", point)
            return is_close(seen["hook_resid_pre"] + seen["hook_attn_out"], seen[point])
        if point == "attn.hook_z":
            seen = on_a_few_tokens(point, "hook_attn_out")
            mixed = _mixer(block, name, self.info.name)(seen[point])
            if hasattr(block, "post_feedforward_layernorm"):
                mixed = _part(block, "hook_attn_out", self.info.name)(mixed)
            return is_close(mixed, seen["hook_attn_out"])
        if point == "mlp.hook_in":
            return True
        seen = on_a_few_tokens("hook_mlp_in", "mlp.hook_in")
        norm = _norm(block, name, self.info.name)
        before, after = seen["hook_mlp_in"], seen["mlp.hook_in"]
        fits = is_close(norm(before), after)
        return fits and (point == "hook_mlp_in" or _is_gain_of(norm, before, after))

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, at most ``max_seq_len``, special tokens included."""
        longest = self.info.max_seq_len
        token_ids: list[list[int]] = self.tokenizer(texts, truncation=True, max_length=longest)[
            "input_ids"
        ]
        if self.bos_id is None:
            return token_ids
        kept = slice(0, longest - 1) if self.info.pooling == "mean" else slice(1 - longest, None)
        return [
            ids if ids[:1] == [self.bos_id] else [self.bos_id, *(ids[kept] if longest > 1 else [])]
            for ids in token_ids
        ]

    def _tokens_of(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text; those of the call before, where it was told of these texts."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.exception() is None and ahead.result()[0] == texts:
            return ahead.result()[1]
        return self.tokenize(texts)

    def _check(self, captured: dict[str, torch.Tensor], kept: torch.Tensor) -> None:
        """Raise UserError where a hook did not fire, or gave what is no number at a token that is
        ``kept`` [batch, n_tokens].
        """
        import torch

        silent = [name for name in self.hook_names if name not in captured]
        if silent:
            raise UserError(f"{self.info.name} never passes {', '.join(silent)}: it is not read")
        for name, states in captured.items():
            if not torch.isfinite(states[kept]).all():
                raise UserError(
                    f"{self.info.name} gives NaN or infinite values at {name}: try --dtype float32"
                )

    def padded(self, token_ids: list[list[int]]) -> dict[str, torch.Tensor]:
        """Texts of different lengths as one batch, padded on the right."""
        import torch

        longest = max(map(len, token_ids))
        ids = torch.full((len(token_ids), longest), self.pad_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(token_ids):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}

    def run(
        self, token_ids: list[list[int]], desc: str, batch_size: int | None = None
    ) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor], torch.Tensor]]:
        """Forward passes over texts batched by length, with a progress bar.

        Yields (text indices [batch], {hook_name: float32 [batch, n_tokens, d_model]}, mask bool
        [batch, n_tokens]).
        """
        import torch

        lengths = np.array([len(ids) for ids in token_ids])
        # longest first: what does not fit in memory fails at once
        order = np.argsort(-lengths, kind="stable")
        with progress(total=int(lengths.sum()), desc=desc, unit="tok", unit_scale=True) as bar:
            start = n_done = 0
            n_tokens = TOKENS_PER_BATCH[self.device.type]
            while start < len(order):
                size = batch_size or texts_in_batch(lengths[order[start:]], n_tokens)
                rows = order[start : start + size]
                batch = self.padded([token_ids[i] for i in rows])
                try:
                    captured = self._forward(self.hook_names, batch)
                except RuntimeError as error:
                    if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(
                        error
                    ):
                        raise
                    if len(rows) == 1 or batch_size:
                        raise UserError(
                            f"{self.device.type} has no memory for {len(rows)} texts of"
                            f" {int(lengths[rows].max())} tokens: use a smaller --batch_size,"
                            " --max_seq_len, or --dtype bfloat16"
                        ) from None
                    n_tokens //= 2
                    continue
                start += size
                captured = {name: value.float() for name, value in captured.items()}
                self._check(captured, batch["attention_mask"].bool())
                bar.update(int(lengths[rows].sum()))
                n_done += len(rows)
                bar.set_postfix_str(f"{n_done} of {len(order)} texts", refresh=False)
                yield rows, captured, batch["attention_mask"].bool()

    def pooled(
        self,
        texts: list[str],
        desc: str,
        batch_size: int | None = None,
        following: Callable[[], list[str]] | None = None,
    ) -> dict[str, torch.Tensor]:
        """{hook_name: float32 [n_texts, d_model]}: the last token of each text, or for encoders the
        mean over its tokens. attn.hook_z has n_heads x d_head columns. ``following``: gives the
        texts of the next call, which are tokenized meanwhile.
        """
        import torch

        token_ids = self._tokens_of(texts)
        # only now: a tokenizer does one thing at a time
        if following is not None:
            self._ahead = self._tokenizing.submit(lambda: _with_tokens(following(), self.tokenize))
        pooled: dict[str, torch.Tensor] = {}
        for rows, captured, mask in self.run(token_ids, desc, batch_size):
            for name, states in captured.items():
                if name not in pooled:
                    pooled[name] = torch.empty(len(texts), states.shape[-1])
                pooled[name][torch.from_numpy(rows)] = pool(states, mask, self.info.pooling).cpu()
        return pooled


def _with_tokens(
    texts: list[str], tokenize: Callable[[list[str]], list[list[int]]]
) -> tuple[list[str], list[list[int]]]:
    return texts, tokenize(texts)


def texts_in_batch(lengths: np.ndarray, n_tokens: int) -> int:
    """How many of the next texts go through the model together; ``lengths`` fall.

    At most ``n_tokens`` with their padding, and so many that padding is MOST_PADDING of their own
    tokens: short texts of different lengths would else be padded by half.
    """
    longest = max(int(lengths[0]), 1)
    lengths = lengths[: max(1, n_tokens // longest)]
    padded = longest * np.arange(1, len(lengths) + 1)
    fits = padded <= (1 + MOST_PADDING) * np.cumsum(lengths)
    return len(lengths) if fits.all() else max(1, int(np.argmin(fits)))


def pool(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """[batch, d_model] from states [batch, n_tokens, d_model] and mask bool [batch, n_tokens],
    padding on the right.
    """
    import torch

    if pooling == "last":
        return states[torch.arange(len(states), device=states.device), mask.sum(dim=1) - 1]
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


def parts_add_up(
    before: torch.Tensor, attention: torch.Tensor, mlp: torch.Tensor, after: torch.Tensor
) -> bool:
    """Whether a block's output is its input and its two parts, up to rounding in their precision.

    All [batch, n_tokens, d_model].
    """
    import torch

    eps = torch.finfo(after.dtype).eps
    before, attention, mlp, after = (part.float() for part in (before, attention, mlp, after))
    # an addition rounds to the precision of its larger side; parts may cancel
    size = before.abs() + attention.abs() + mlp.abs()
    return _within(before + attention + mlp - after, size, eps)


def _within(off: torch.Tensor, size: torch.Tensor, eps: float) -> bool:
    """Whether each number is off by no more than rounding explains: of its own size and the usual
    one, so that a few huge dimensions hide nothing.
    """
    return bool((off.abs() <= (4 * eps + 1e-5) * (size + size.median())).all())


def is_close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two tensors are equal up to rounding in their precision."""
    import torch

    eps = torch.finfo(expected.dtype).eps
    return _within(found.float() - expected.float(), expected.float().abs(), eps)


def normalized(norm: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """What a LayerNorm or RMSNorm gives without its gain and bias, float32: TransformerLens's
    ``hook_normalized``.
    """
    from torch import nn

    states = states.float()
    if isinstance(norm, nn.LayerNorm):
        states = states - states.mean(dim=-1, keepdim=True)
    eps: Any = getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", 0.0)
    return states / (states.square().mean(dim=-1, keepdim=True) + float(eps)).sqrt()


def _is_gain_of(norm: nn.Module, states: torch.Tensor, output: torch.Tensor) -> bool:
    """Whether a norm's output is ``normalized`` times its gain, which Gemma stores less one."""
    import torch

    plain = normalized(norm, states)
    gain, bias = (getattr(norm, name, None) for name in ("weight", "bias"))
    if not isinstance(gain, torch.Tensor):
        return False
    shift = bias.float() if isinstance(bias, torch.Tensor) else 0.0
    return any(
        is_close((plain * factor + shift).to(output.dtype), output)
        for factor in (gain.float(), gain.float() + 1)
    )


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of "auto": bfloat16 where a GPU computes in it, float32 elsewhere; or the one
    named.
    """
    import torch

    if name == "auto":
        return (
            torch.bfloat16
            if device.type == "cuda" and torch.cuda.is_bf16_supported()
            else torch.float32
        )
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def load_model(
    info: LanguageModel, hook_names: tuple[str, ...], paths: Paths, device: str, dtype: str = "auto"
) -> HookedModel:
    """The model on a device, read at these hooks; the one used last stays, here as on a cluster's
    worker, as long as its files do.
    """
    return _load_model(info, hook_names, paths, (device, dtype), model_identity(info, paths))


@lru_cache(maxsize=1)
def _load_model(
    info: LanguageModel,
    hook_names: tuple[str, ...],
    paths: Paths,
    place: tuple[str, str],
    _: str | None,
) -> HookedModel:
    return HookedModel(info, list(hook_names), paths, *place)


def model_source(info: LanguageModel, paths: Paths) -> str:
    """The folder or hub id that transformers loads a model from: data/models/{name} where it is
    there. A folder with a GGUF file is dequantised into that.
    """
    local = paths.language_model(info.name)
    packed = gguf_file(Path(info.hub_id)) if info.hub_id else None
    if packed is not None:
        dequantise(packed, local)
    if (local / "config.json").is_file():
        return str(local)
    if info.hub_id is None:
        raise UserError(f"no model at {local}: run `{info.fetched_by}`")
    return info.hub_id


def model_identity(info: LanguageModel, paths: Paths) -> str | None:
    """What tells a model's weights and tokenizer from others of its name: the fingerprint of its
    folder, or the revision in the hub's cache. None where it is not at hand.
    """
    from huggingface_hub import try_to_load_from_cache

    for folder in (paths.language_model(info.name), Path(info.hub_id or "")):
        if (folder / "config.json").is_file():
            return folder_fingerprint(folder)
    cached = try_to_load_from_cache(info.hub_id, "config.json") if info.hub_id else None
    return f"{info.hub_id}@{Path(cached).parent.name}" if isinstance(cached, str) else None


def longest_text(config: Any) -> int | None:
    """The tokens for which a model has positions; None where its config does not say."""
    n_positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(n_positions, int) or n_positions <= 0:  # XLNet says -1
        return None
    if config.model_type in OFFSET_POSITIONS:
        return n_positions - int(getattr(config, "pad_token_id", None) or 0) - 1
    return n_positions


def read_config(source: str, name: str) -> Any:
    """A model's text config, from a folder or the hub, without its weights.

    Raises UserError when it is not to be had.
    """
    import transformers

    packed = gguf_file(Path(source))
    where = {"gguf_file": packed.name} if packed else {}
    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False, **where)
    except (OSError, ValueError) as error:
        raise _not_to_be_had(source, name, error) from error
    except Exception as error:  # the reader of GGUF has others
        if packed is None:
            raise
        raise UserError(f"{packed} cannot be read ({first_line(error)}): fetch it again") from error
    return _text_config(config)


def _load(source: str, info: LanguageModel, dtype: torch.dtype) -> tuple[Any, Any]:
    import logging

    import transformers

    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        # torch's own attention drops the soft cap of Gemma 2's scores, and up to 5.20 transformers
        # uses it all the same
        capped = getattr(_text_config(config), "attn_logit_softcapping", None)
        attention = {"attn_implementation": "eager"} if capped else {}
        model, loading = transformers.AutoModel.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **attention,
        )
    except (OSError, ValueError) as error:
        raise _not_to_be_had(source, info.name, error) from error
    except ImportError as error:  # quantised in a way that needs a library of its own
        raise UserError(
            f"{info.name} ({source}) cannot be loaded ({first_line(error)}): take its weights"
            " in bfloat16 or float32"
        ) from error
    except RuntimeError as error:  # tensors of other shapes than the config's
        raise UserError(
            f"{info.name} ({source}): the weights do not fit config.json: fetch it again"
        ) from error
    depth = _config(model).num_hidden_layers
    lacking = _needed(loading["missing_keys"])
    unread = [key for key in _needed(loading["unexpected_keys"]) if _is_in_block(key, depth)]
    if lacking or unread:
        raise UserError(
            f"{info.name} ({source}): the weights do not fit the model"
            f" ({len(lacking)} lack, {len(unread)} have no place, {(lacking + unread)[0]} is one):"
            " save it with its plain names, without wrappers or adapters"
        )
    return tokenizer, model


def _needed(keys: Iterable[str]) -> list[str]:
    return sorted(key for key in keys if not NEEDLESS.search(key))


def _is_in_block(key: str, depth: int) -> bool:
    """Whether a tensor's name is of one of the model's blocks: heads and blocks that predict
    further tokens, behind them, change no hook.
    """
    match = re.search(r"(?:^|\.)(?:layers?|blocks?|h)\.(\d+)\.", key)
    return match is not None and int(match.group(1)) < depth


def _not_to_be_had(source: str, name: str, error: Exception) -> UserError:
    if Path(source).exists():
        return UserError(
            f"the model at {source} cannot be loaded ({str(error).splitlines()[0]}): fetch it again"
        )
    if source.startswith(("/", ".", "~", "\\")) or source.count("/") != 1:
        return UserError(
            f"there is no model at {source}: give a folder with config.json, or a hub id"
        )
    return UserError(
        f"{name} ({source}) is neither at data/models/{name} nor to be had from the Hugging Face"
        f" hub: accept its licence at https://huggingface.co/{source} if it has one, run `hf auth"
        " login`, and try again online"
    )


def _config(model: nn.Module) -> Any:
    return _text_config(model.config)


def _text_config(config: Any) -> Any:
    """The settings of the part that reads texts."""
    return getattr(config, "text_config", config)


def _on_input(module: nn.Module, keep: Callable[[Any], None]) -> RemovableHandle:
    """Have ``keep`` called with what enters a module."""
    return module.register_forward_pre_hook(
        lambda _module, args, kwargs: keep(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )


def _part(block: nn.Module, name: str, model_name: str) -> nn.Module:
    """The module of a block whose output attention or MLP adds to the residual stream."""
    attention = name.endswith("hook_attn_out")
    # Gemma 2 and 3 normalise what they add; elsewhere post_attention_layernorm stands before the
    # MLP
    if hasattr(block, "post_feedforward_layernorm"):
        norm = "post_attention_layernorm" if attention else "post_feedforward_layernorm"
        return _module(block, (norm,), name, model_name)
    return _module(block, ATTENTION if attention else MLP, name, model_name)


def _module(block: nn.Module, candidates: tuple[str, ...], name: str, model_name: str) -> nn.Module:
    """The first of a block's modules that has one of these names.

    Raises UserError where there is none, or the block reads a second sequence of tokens.
    """
    found = [getattr(block, candidate) for candidate in candidates if hasattr(block, candidate)]
    if not found or (candidates != ATTENTION and hasattr(block, "crossattention")):
        raise UserError(
            f"{name}: blocks of {model_name} have no such part to read; use {' or '.join(STREAM)}"
        )
    module: nn.Module = found[0]
    return module


def _norm(block: nn.Module, name: str, model_name: str) -> nn.Module:
    """The norm before a block's MLP."""
    return _module(block, NORMS, name, model_name)


def _mixer(block: nn.Module, name: str, model_name: str) -> nn.Module:
    """The projection of a block's attention that mixes its heads' outputs."""
    attention = _module(block, ATTENTION, name, model_name)
    found = [
        module for path, module in attention.named_modules() if path.rpartition(".")[2] in MIXERS
    ]
    if len(found) != 1:
        raise UserError(
            f"{name}: attention of {model_name} has {len(found)} modules that could mix its heads;"
            f" use {' or '.join(STREAM)}"
        )
    return found[0]


def _blocks(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks: the module list as long as the config says the model is deep."""
    from torch import nn

    depth = _config(model).num_hidden_layers
    text: Any = getattr(model, "language_model", model)  # a vision tower may be as deep
    for module in text.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise UserError(f"{type(model).__name__} has no list of {depth} blocks to place hooks on")
