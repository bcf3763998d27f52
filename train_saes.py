"""Train small SAEs with SAELens on the token activations of a language model.

    python train_saes.py --model_name all-MiniLM-L6-v2 --layer 2 --widths 1024 4096
    python train_saes.py --model_name all-MiniLM-L6-v2 --layer 2 \
        --widths 16384 --n_tokens 2000000 --device cuda

Writes data/saes/{model}/layer_{layer}/width_{width}/topk_{k}/ in SAELens's own format (cfg.json,
sae_weights.safetensors), with training.json beside it: variance explained, mean L0 and dead latents
on tokens kept out of the training. Texts on which a probe may be tested are left out of the
training. SAEs that are there stay. Meant for a laptop-sized demonstration; to train a large SAE use
SAELens itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import cli
from utils.activations import rows_with_activations
from utils.datasets import (
    choose_datasets,
    existing_csv,
    list_datasets,
    list_ood_datasets,
    load_dataset,
    load_ood,
)
from utils.language_models import HookedModel, model_identity
from utils.models import LanguageModel, get_model
from utils.names import Layer, hook_name, layer_folder, make_sae_id
from utils.paths import Paths
from utils.readers.fingerprints import digest, file_fingerprint
from utils.runtime.devices import pick_device
from utils.runtime.errors import UserError
from utils.runtime.files import atomic_folder, locked, write_json
from utils.runtime.progress import progress
from utils.settings import NORMAL, Condition, split

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = 512
LEARNING_RATE = 1e-3
HELD_OUT_TOKENS = 8192  # for the figures in training.json


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    parser.add_argument(
        "--layer",
        "--layers",
        dest="layer",
        type=int,
        help="block whose residual stream is encoded (default: the model's probe layer)",
    )
    parser.add_argument(
        "--widths",
        type=cli.positive,
        nargs="+",
        default=[1024, 4096],
        help="latents of each SAE to train (d_sae)",
    )
    parser.add_argument(
        "--k_active",
        type=cli.positive,
        default=32,
        help="latents active on a token (the TopK SAE's own k)",
    )
    parser.add_argument(
        "--n_tokens", type=cli.positive, default=250_000, help="tokens to collect for training"
    )
    parser.add_argument("--n_epochs", type=float, default=1.0, help="passes over these tokens")
    parser.add_argument(
        "--corpus",
        nargs="+",
        metavar="NAME",
        help="datasets whose texts to train on (default: all)",
    )
    cli.add_seed(parser)
    cli.add_device(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    info = get_model(args.model_name, paths)
    layer = info.probe_layer if args.layer is None else args.layer
    if args.k_active > min(args.widths):
        raise UserError(
            f"--k_active {args.k_active} is more than the {min(args.widths)} latents of the"
            " smallest SAE"
        )

    wanted = {
        width: sae_folder(paths, info.name, layer, width, args.k_active) for width in args.widths
    }
    folders = list(wanted.values())
    source = training_source(paths, info, layer, args)
    todo = [folder for folder in folders if not is_done(folder, source)]
    print(
        f"{info.name} layer {layer}: {len(folders)} SAEs, {len(folders) - len(todo)} done,"
        f" {len(todo)} to do"
    )
    if not todo:
        return 0

    device = pick_device(args.device)
    with locked(paths.saes(info.name), layer_folder(layer)):
        texts = training_texts(paths, info.name, args.corpus, args.seed)
        model = HookedModel(info, [hook_name(layer)], paths, device)
        tokens = collect_tokens(model, hook_name(layer), texts, args.n_tokens, args.seed)
        sae = SaeToTrain(info.name, layer, args.k_active, args.n_epochs, args.seed, device, source)
        for width, folder in wanted.items():
            if folder in todo:
                make_sae(tokens, folder, sae, width)
    return 0


@dataclass(frozen=True)
class SaeToTrain:
    """All of a training run but the width of its SAE.

    ``k_active``: latents active on a token; ``made_from``: the fingerprint of what it trains on.
    """

    model_name: str
    layer: Layer
    k_active: int
    n_epochs: float
    seed: int
    device: str
    made_from: str


def sae_folder(paths: Paths, model_name: str, layer: Layer, width: int, k_active: int) -> Path:
    """Named as Gemma Scope names its SAEs: layer, width, sparsity."""
    return paths.saes(model_name) / make_sae_id(layer, width, k_active)


def training_source(
    paths: Paths, info: LanguageModel, layer: Layer, args: argparse.Namespace
) -> str:
    """The fingerprint of all that an SAE is trained from: model, hook, texts, the rows among them
    that a probe may be tested on, and the flags.
    """
    texts = [existing_csv(paths.texts(name)) for name in choose_datasets(paths, args.corpus)]
    shifted = [existing_csv(paths.ood_texts(name)) for name in list_ood_datasets(paths)]
    files = [file_fingerprint(path) for path in (*texts, *shifted) if path is not None]
    flags = [args.k_active, args.n_tokens, args.n_epochs, args.seed]
    tested = {name: rows_with_activations(paths, info.name, name) for name in list_datasets(paths)}
    return digest([model_identity(info, paths), hook_name(layer), flags, files, tested])


def is_done(folder: Path, source: str) -> bool:
    """Whether an SAE is there and was trained from this; of an older one it is not known."""
    if not (folder / "cfg.json").is_file():
        return False
    try:
        made_from = json.loads((folder / "training.json").read_text()).get("made_from", source)
    except (OSError, ValueError, AttributeError):
        return True
    if made_from != source:
        print(f"{folder}: was trained from something else (texts, model or flags), is made again")
    return bool(made_from == source)


def training_texts(paths: Paths, model_name: str, corpus: list[str] | None, seed: int) -> list[str]:
    """Distinct texts of the corpus in random order, without any text on which a probe may be
    tested.

    A probe may be tested on every row that has model activations, and on every out-of-distribution
    row. Where that leaves nothing, because all rows have activations, the training rows of the
    normal setting are taken, whose test rows stay unseen.
    """
    import numpy as np

    chosen = choose_datasets(paths, corpus)
    shifted = {text for name in list_ood_datasets(paths) for text in load_ood(paths, name).texts}
    tested = set(shifted)
    for name in list_datasets(paths):
        n_rows = rows_with_activations(paths, model_name, name)
        if n_rows is not None:
            tested.update(load_dataset(paths, name).texts[:n_rows])
    distinct = dict.fromkeys(
        text for name in chosen for text in load_dataset(paths, name).texts if text not in tested
    )
    if not distinct:
        print(
            "every row of the corpus may be tested in some setting: training on the normal"
            " setting's training rows"
        )
        rows = {
            name: split(Condition(NORMAL.name), load_dataset(paths, name).labels)
            for name in list_datasets(paths)
        }
        tested = shifted | {
            load_dataset(paths, name).texts[i] for name in rows for i in rows[name].test
        }
        trained = (load_dataset(paths, name).texts[i] for name in chosen for i in rows[name].train)
        distinct = dict.fromkeys(text for text in trained if text not in tested)
    texts = list(distinct)
    if not texts:
        raise UserError(
            "every text of the corpus is one that a probe may be tested on: name another --corpus"
        )
    return [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))]


def collect_tokens(
    model: HookedModel, hook: str, texts: list[str], n_tokens: int, seed: int
) -> torch.Tensor:
    """Token activations [n_tokens, d_model] float32, shuffled; the last HELD_OUT_TOKENS are not for
    training.
    """
    import torch

    wanted = n_tokens + HELD_OUT_TOKENS
    token_ids, total = [], 0
    for start in range(0, len(texts), 1000):
        for ids in model.tokenize(texts[start : start + 1000]):
            token_ids.append(ids)
            total += len(ids)
        if total >= wanted:
            break
    kept = []
    for _, captured, mask in model.run(token_ids, f"token activations at {hook}"):
        kept.append(captured[hook][mask].cpu())
    tokens = torch.cat(kept)
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))[:wanted]
    if len(order) < wanted:
        print(f"the corpus has only {len(order)} tokens of {wanted}")
    if len(order) < 2 * HELD_OUT_TOKENS:
        raise UserError(f"{len(order)} tokens are too few to train on: name a larger --corpus")
    return tokens[order]


def batches(tokens: torch.Tensor, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Endless shuffled batches [BATCH_TOKENS, d_model]."""
    import torch

    while True:
        order = torch.randperm(len(tokens), generator=generator)
        for start in range(0, len(order) - BATCH_TOKENS + 1, BATCH_TOKENS):
            yield tokens[order[start : start + BATCH_TOKENS]]


def make_sae(tokens: torch.Tensor, folder: Path, wanted: SaeToTrain, width: int) -> None:
    """Make one SAE, and move its finished folder into place."""
    import torch
    from sae_lens import SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata

    torch.manual_seed(wanted.seed)
    training, held_out = tokens[:-HELD_OUT_TOKENS], tokens[-HELD_OUT_TOKENS:]
    mean = training.mean(dim=0)
    # Unit mean square per dimension makes one learning rate fit every layer. It is folded into the
    # weights below, so the saved SAE takes activations as they are.
    scale = float((training - mean).square().mean().rsqrt())
    cfg = TopKTrainingSAEConfig(
        d_in=tokens.shape[1],
        d_sae=width,
        k=wanted.k_active,
        device=wanted.device,
        apply_b_dec_to_input=True,
        rescale_acts_by_decoder_norm=False,  # with it, encoding would need the decoder
        metadata=SAEMetadata(
            model_name=wanted.model_name, hook_name=hook_name(wanted.layer), seed=wanted.seed
        ),
    )
    sae = TopKTrainingSAE(cfg)
    with torch.no_grad():
        sae.b_dec.copy_(mean * scale)
    generator = torch.Generator().manual_seed(wanted.seed)
    scaled = training * scale
    n_samples = int(len(training) * wanted.n_epochs)
    trainer_cfg = SAETrainerConfig(
        total_training_samples=n_samples // BATCH_TOKENS * BATCH_TOKENS,
        train_batch_size_samples=BATCH_TOKENS,
        lr=LEARNING_RATE,
        lr_end=LEARNING_RATE / 10,
        lr_warm_up_steps=20,
        lr_decay_steps=n_samples // BATCH_TOKENS // 5,
        device=wanted.device,
        dead_feature_window=100,
    )
    trainer = SAETrainer(trainer_cfg, sae, batches(scaled, generator))
    sae = trainer.fit()
    sae.fold_activation_norm_scaling_factor(scale)
    figures = measure(sae, held_out.to(wanted.device))
    with atomic_folder(folder) as temporary:
        sae.save_inference_model(temporary)
        write_json(
            temporary / "training.json",
            {
                **figures,
                "n_tokens": len(training),
                "n_epochs": wanted.n_epochs,
                "made_from": wanted.made_from,
            },
        )
    print(
        f"trained: {folder} ({figures['variance_explained']:.0%} of variance explained,"
        f" {figures['dead_latents']} dead latents)"
    )


def measure(sae: Any, tokens: torch.Tensor) -> dict[str, float]:
    """Variance explained (1 - FVU), mean L0 and latents that never fire, on tokens [n, d_model]."""
    import torch

    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=tokens.device)
    error = l0 = 0.0
    with torch.no_grad():
        for batch in progress(tokens.split(BATCH_TOKENS), desc="held-out tokens", unit="batch"):
            latents = sae.encode(batch)
            error += float((sae.decode(latents) - batch).square().sum())
            l0 += float((latents > 0).sum())
            fired |= (latents > 0).any(dim=0)
    total = float((tokens - tokens.mean(dim=0)).square().sum())
    return {
        "variance_explained": 1 - error / total,
        "mean_l0": l0 / len(tokens),
        "dead_latents": int((~fired).sum()),
    }


if __name__ == "__main__":
    cli.run(main)
