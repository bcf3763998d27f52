"""Benchmark of reading a model's activations: our batches by length against a plain loop over texts
as they come.

    python -m benchmarks.models
    python -m benchmarks.models --n_texts 4000

Runs the demo's model on the CPU over texts of the paper's datasets, both ways in one run and in
turns, checks that the activations are the same, and prints the ratio. Needs `make fetch-data`.
Writes no results.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from benchmarks.measurements import add_reading, hand_on
from utils import cli
from utils.datasets import list_datasets, load_dataset
from utils.language_models import HookedModel, model_source, pool
from utils.models import get_model
from utils.names import hook_name
from utils.saes.encode import product_rate

if TYPE_CHECKING:
    import torch

MODEL = "all-MiniLM-L6-v2"
PLAIN_BATCH = 32  # texts, as they come, padded to the longest


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add_reading(parser, n_texts=2000)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    names = list_datasets(paths)
    share = -(-args.n_texts // len(names))
    texts = [text for name in names for text in load_dataset(paths, name).texts[:share]][
        : args.n_texts
    ]
    import torch
    import transformers

    info = get_model(MODEL)
    hook = hook_name(info.probe_layer)
    model = HookedModel(info, [hook], paths, "cpu")
    unhooked = transformers.AutoModel.from_pretrained(model_source(info, paths)).eval()
    rate = product_rate(info.d_model, torch.device("cpu"))
    best: dict[str, float] = {}
    for _ in range(args.n_turns):
        for name, run in (
            ("ours", lambda: model.pooled(texts, "ours")[hook]),
            ("plain", lambda: plain(unhooked, model, texts)),
        ):
            started = time.perf_counter()
            result = run()
            seconds = time.perf_counter() - started
            best[name] = min(seconds, best.get(name, seconds))
            if name == "ours":
                ours = result
    rate = max(rate, product_rate(info.d_model, torch.device("cpu")))
    if not torch.allclose(ours, result, atol=1e-4):
        raise RuntimeError("the two ways gave other activations")
    n_tokens = sum(map(len, model.tokenize(texts)))
    print(
        f"{len(texts)} texts, {n_tokens} tokens: ours {best['ours']:.1f} s, plain loop"
        f" {best['plain']:.1f} s"
    )
    print(f"ratio {best['plain'] / best['ours']:.2f}")
    share = flops_of_token(model) * n_tokens / best["ours"] / rate
    print(f"{share:.0%} of this machine's {rate / 1e9:.0f} GFLOP/s in products of that width")
    hand_on(
        models_ratio=best["plain"] / best["ours"],
        models_share=share,
        tokens_per_second=n_tokens / best["ours"],
    )
    return 0


def flops_of_token(model: HookedModel) -> float:
    """Float operations of the linear layers that one token passes up to the last hook; attention's
    own products, which grow with the text, are not counted.
    """
    from torch import nn

    n_blocks = int(model.info.probe_layer) + 1
    blocks = next(m for m in model.model.modules() if isinstance(m, nn.ModuleList))[:n_blocks]
    layers = (m for m in blocks.modules() if isinstance(m, nn.Linear))
    return sum(2.0 * layer.in_features * layer.out_features for layer in layers)


def plain(unhooked: Any, model: HookedModel, texts: list[str]) -> torch.Tensor:
    """[n_texts, d_model]: batches of texts as they come, through the whole model, its state read
    afterwards.
    """
    import torch

    layer = int(model.info.probe_layer)
    parts = []
    for start in range(0, len(texts), PLAIN_BATCH):
        batch = model.tokenizer(
            texts[start : start + PLAIN_BATCH],
            truncation=True,
            max_length=model.info.max_seq_len,
            padding=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            states = unhooked(**batch, output_hidden_states=True).hidden_states[layer + 1]
        parts.append(pool(states, batch["attention_mask"].bool(), model.info.pooling))
    return torch.cat(parts)


if __name__ == "__main__":
    cli.run(main)
