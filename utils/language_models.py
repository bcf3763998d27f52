"""Run a transformers model over texts and read its residual stream at named hooks, without TransformerLens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from utils.errors import UserError
from utils.models import LanguageModel, get_model
from utils.paths import Paths
from utils.runtime import progress

# Models that add learned positions to the token embedding: TransformerLens's hook_embed is the embedding alone.
LEARNED_POSITIONS = {"gpt2", "gpt_neo", "opt"}
TOKENS_PER_BATCH = 4096  # of a batch, padding included, where no batch size is given


class _LastHookReached(Exception):
    """Ends a forward pass: blocks above the last hook need not run."""


class HookedModel:
    """A language model with its tokenizer, read at ``hook_names`` ("hook_embed", "blocks.N.hook_resid_post").

    Raises UserError when the model cannot be found or has no such hook.
    """

    def __init__(self, model_name: str, hook_names: list[str], paths: Paths, device: str) -> None:
        self.info: LanguageModel = get_model(model_name)
        self.hook_names = list(dict.fromkeys(hook_names))
        self.device = torch.device(device)
        source = _source(self.info, paths)
        self.tokenizer, self.model = _load(source, self.info)
        self.model.to(self.device).eval()
        if self.tokenizer.pad_token is None:  # decoders often have none; padded places are masked, any token will do
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "right"
        self.tokenizer.truncation_side = "right" if self.info.pooling == "mean" else "left"
        self._captured: dict[str, torch.Tensor] = {}
        self._place_hooks()

    def _place_hooks(self) -> None:
        blocks = _blocks(self.model)
        learned = getattr(self.model.config, "model_type", "") in LEARNED_POSITIONS
        positions = {name: _block_of(name, len(blocks)) for name in self.hook_names}
        last = max(self.hook_names, key=lambda name: positions[name])

        def keep(name: str, value: torch.Tensor) -> None:
            self._captured[name] = value
            if name == last:
                raise _LastHookReached

        for name, position in positions.items():
            if position >= 0:
                blocks[position].register_forward_hook(
                    lambda _module, _inputs, output, name=name: keep(name, output[0] if isinstance(output, tuple) else output)
                )
            elif learned:
                embedding = self.model.get_input_embeddings()
                embedding.register_forward_hook(lambda _module, _inputs, output, name=name: keep(name, output))
            else:  # what enters the first block: the embedding with its scale (Gemma) or its layer norm (BERT)
                blocks[0].register_forward_pre_hook(
                    lambda _module, args, kwargs, name=name: keep(name, args[0] if args else kwargs["hidden_states"]),
                    with_kwargs=True,
                )

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, at most ``max_seq_len``, special tokens included."""
        return self.tokenizer(texts, truncation=True, max_length=self.info.max_seq_len)["input_ids"]

    @torch.inference_mode()
    def run(
        self, token_ids: list[list[int]], desc: str, batch_size: int | None = None
    ) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor], torch.Tensor]]:
        """Forward passes over texts batched by length, with a progress bar.

        Yields (text indices [batch], {hook_name: float32 [batch, n_tokens, d_model]}, mask bool [batch, n_tokens]).
        """
        lengths = np.array([len(ids) for ids in token_ids])
        order = np.argsort(-lengths, kind="stable")  # longest first: what does not fit in memory fails at once
        with progress(total=int(lengths.sum()), desc=desc, unit="tok", unit_scale=True) as bar:
            start = 0
            while start < len(order):
                size = batch_size or max(1, TOKENS_PER_BATCH // max(int(lengths[order[start]]), 1))
                rows = order[start : start + size]
                start += size
                batch = self.tokenizer.pad({"input_ids": [token_ids[i] for i in rows]}, return_tensors="pt").to(self.device)
                self._captured.clear()
                with suppress(_LastHookReached):
                    self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
                captured = {name: value.float() for name, value in self._captured.items()}
                bar.update(int(lengths[rows].sum()))
                yield rows, captured, batch["attention_mask"].bool()

    def pooled(self, texts: list[str], desc: str, batch_size: int | None = None) -> dict[str, torch.Tensor]:
        """{hook_name: float32 [n_texts, d_model]}: the last token of each text, or for encoders the mean over its tokens."""
        pooled = {name: torch.empty(len(texts), self.info.d_model) for name in self.hook_names}
        for rows, captured, mask in self.run(self.tokenize(texts), desc, batch_size):
            for name, states in captured.items():
                pooled[name][torch.from_numpy(rows)] = pool(states, mask, self.info.pooling).cpu()
        return pooled


def pool(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """[batch, d_model] from states [batch, n_tokens, d_model] and mask bool [batch, n_tokens], padding on the right."""
    if pooling == "last":
        return states[torch.arange(len(states), device=states.device), mask.sum(dim=1) - 1]
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


def _source(info: LanguageModel, paths: Paths) -> str:
    local = paths.language_model(info.name)
    if (local / "config.json").is_file():
        return str(local)
    if info.hub_id is None:
        raise UserError(f"no model at {local}: run `make fetch-data`")
    return info.hub_id


def _load(source: str, info: LanguageModel):
    import logging

    import transformers

    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        model = transformers.AutoModel.from_pretrained(source, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError) as error:
        if Path(source).exists():
            raise UserError(f"the model at {source} cannot be loaded ({str(error).splitlines()[0]}): fetch it again") from error
        raise UserError(
            f"{info.name} ({source}) is neither at data/models/{info.name} nor to be had from the Hugging Face hub: "
            f"accept its licence at https://huggingface.co/{source}, run `hf auth login`, and try again online"
        ) from error
    return tokenizer, model


def _blocks(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks: the module list as long as the config says the model is deep."""
    config: Any = getattr(model.config, "text_config", model.config)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return module
    raise UserError(f"{type(model).__name__} has no list of {config.num_hidden_layers} blocks to place hooks on")


def _block_of(name: str, n_blocks: int) -> int:
    """The block a hook reads after; -1 for hook_embed."""
    if name == "hook_embed":
        return -1
    parts = name.split(".")
    if len(parts) == 3 and parts[0] == "blocks" and parts[1].isdigit() and parts[2] == "hook_resid_post":
        if int(parts[1]) < n_blocks:
            return int(parts[1])
        raise UserError(f"{name}: the model has blocks 0 to {n_blocks - 1}")
    raise UserError(f"unknown hook {name!r}: use hook_embed or blocks.N.hook_resid_post")
