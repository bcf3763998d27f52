"""Train small SAEs with SAELens on the activations of a language model.

    python train_saes.py --model_name all-MiniLM-L6-v2 --layers 2 --widths 1024
    python train_saes.py --model_name gemma-2-2b --layers 12 --widths 16384 \
        --n_samples 2000000 --device cuda

An SAE is trained on what it will encode: on tokens where a probe reads the last token of a text, on
the vectors of texts (the mean over a text's tokens) where it reads that (--trained_on).

Writes data/saes/{model}/layer_{layer}/width_{width}/topk_{k}/ in SAELens's own format (cfg.json,
sae_weights.safetensors), with training.json beside it: variance explained, mean L0 and dead latents
on activations kept out of the training. Texts on which a probe may be tested are left out of the
training. SAEs that are there stay. Meant for a laptop-sized demonstration; to train a large SAE use
SAELens itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from itertools import product, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
from utils.names import Layer, hook_name, layer_folder, make_sae_id, without_seed
from utils.paths import Paths
from utils.readers.fingerprints import digest, file_fingerprint
from utils.runtime.devices import pick_device
from utils.runtime.errors import UserError
from utils.runtime.files import atomic_folder, locked, write_json
from utils.runtime.progress import progress
from utils.saes.training import FACTS, Schedule, train, training_facts
from utils.settings import NORMAL, Condition, split

if TYPE_CHECKING:
    import torch
    from sae_lens import TopKTrainingSAE

BATCH = 512  # activations in a step
LEARNING_RATE = 1e-3
HELD_OUT = 8192  # for the figures in training.json: at most these, and a tenth of all
TRAINED_ON = ("tokens", "texts")
# activations to collect, and passes over them, where no flag says otherwise
N_SAMPLES = {"tokens": 250_000, "texts": 16_000}
N_EPOCHS = {"tokens": 1.0, "texts": 20.0}


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    parser.add_argument(
        "--layers",
        "--layer",
        dest="layers",
        nargs="+",
        type=cli.layer,
        metavar="N",
        help="blocks or hooks whose activations are encoded (default: the model's probe layer)",
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
        "--trained_on",
        choices=TRAINED_ON,
        help="single tokens, or vectors of texts (default: what probes of the model read)",
    )
    parser.add_argument(
        "--n_samples",
        "--n_tokens",
        dest="n_samples",
        type=cli.positive,
        help="tokens or texts to train on (default: 250,000 tokens, 16,000 texts)",
    )
    parser.add_argument(
        "--n_epochs", type=float, help="passes over them (default: 1 over tokens, 20 over texts)"
    )
    parser.add_argument(
        "--max_characters",
        type=cli.positive,
        metavar="N",
        help="leave out longer texts, which take longest to read",
    )
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
    layers = list(dict.fromkeys(args.layers or [info.probe_layer]))
    if args.k_active > min(args.widths):
        raise UserError(
            f"--k_active {args.k_active} is more than the {min(args.widths)} latents of the"
            " smallest SAE"
        )
    training = Training.of(args, info)
    folders = {
        (layer, width): paths.saes(info.name)
        / make_sae_id(layer, width, training.k_active, training.seed)
        for layer, width in product(layers, args.widths)
    }
    sources = {layer: training_source(paths, info, layer, training) for layer in layers}
    todo = {
        (layer, width): folder
        for (layer, width), folder in folders.items()
        if not is_done(folder, sources[layer]) and not is_older(folder, sources[layer])
    }
    where = ", ".join(map(str, layers))
    print(
        f"{info.name} layer {where}: {len(folders)} SAEs, {len(folders) - len(todo)} done,"
        f" {len(todo)} to do"
    )
    if not todo:
        return 0

    with ExitStack() as locks:
        for layer in layers:
            locks.enter_context(locked(paths.saes(info.name), layer_folder(layer)))
        training = replace(training, device=pick_device(args.device))
        texts = training_texts(paths, info.name, training)
        hooks = [hook_name(layer) for layer in dict.fromkeys(layer for layer, _ in todo)]
        model = HookedModel(info, hooks, paths, training.device)
        collected = collect(model, hooks, texts, training)
        for (layer, width), folder in todo.items():
            activations = collected[hook_name(layer)]
            of_any_seed = training_source(paths, info, layer, replace(training, seed=-1))
            sae = SaeToTrain(info.name, layer, width, sources[layer], of_any_seed)
            make_sae(activations, folder, sae, training)
    return 0


@dataclass(frozen=True)
class Training:
    """How SAEs are trained: ``trained_on`` "tokens" or "texts", ``n_samples`` of them, of the
    datasets ``corpus`` (None: all).
    """

    trained_on: str
    corpus: tuple[str, ...] | None
    k_active: int
    n_samples: int
    n_epochs: float
    max_characters: int | None
    seed: int
    device: str

    @classmethod
    def of(cls, args: argparse.Namespace, info: LanguageModel) -> Training:
        """As the flags say; otherwise as probes of the model read texts."""
        on = args.trained_on or ("texts" if info.pooling == "mean" else "tokens")
        return cls(
            on,
            tuple(args.corpus) if args.corpus else None,
            args.k_active,
            args.n_samples or N_SAMPLES[on],
            args.n_epochs or N_EPOCHS[on],
            args.max_characters,
            args.seed,
            args.device,
        )

    def chosen(self) -> list[str] | None:
        return list(self.corpus) if self.corpus else None

    def flags(self) -> list[object]:
        """What of it changes an SAE."""
        return [getattr(self, field.name) for field in fields(self) if field.name != "device"]


@dataclass(frozen=True)
class SaeToTrain:
    """One SAE; ``made_from``: the fingerprint of what it trains on, ``made_from_but_seed``: of all
    of that but the seed.
    """

    model_name: str
    layer: Layer
    width: int
    made_from: str
    made_from_but_seed: str


def training_source(paths: Paths, info: LanguageModel, layer: Layer, training: Training) -> str:
    """The fingerprint of all that an SAE is trained from: model, hook, texts, the rows among them
    that a probe may be tested on, and the flags.
    """
    texts = [existing_csv(paths.texts(name)) for name in choose_datasets(paths, training.chosen())]
    shifted = [existing_csv(paths.ood_texts(name)) for name in list_ood_datasets(paths)]
    files = [file_fingerprint(path) for path in (*texts, *shifted) if path is not None]
    tested = {name: rows_with_activations(paths, info.name, name) for name in list_datasets(paths)}
    return digest([model_identity(info, paths), hook_name(layer), training.flags(), files, tested])


def is_done(folder: Path, source: str) -> bool:
    """Whether an SAE is there and was trained from this; of an older one it is not known."""
    if not (folder / "cfg.json").is_file():
        return False
    made_from = training_facts(folder).get("made_from", source)
    if made_from != source:
        print(f"{folder}: was trained from something else (texts, model or flags), is made again")
    return bool(made_from == source)


def is_older(folder: Path, source: str) -> bool:
    """Whether this SAE stands under the id without a seed, as older versions named all."""
    named = folder.with_name(without_seed(folder.name))
    there = named != folder and (named / "cfg.json").is_file()
    older = there and training_facts(named).get("made_from") == source
    if older:
        print(f"{named}: is the SAE that was asked for")
    return older


def training_texts(paths: Paths, model_name: str, training: Training) -> list[str]:
    """Distinct texts of the corpus in random order, without any text on which a probe may be
    tested; of each dataset equally many, as far as they go.

    A probe may be tested on every row that has model activations, and on every out-of-distribution
    row. Where that leaves nothing, because all rows have activations, the training rows of the
    normal setting are taken, whose test rows stay unseen.
    """
    chosen = choose_datasets(paths, training.chosen())
    shifted = {text for name in list_ood_datasets(paths) for text in load_ood(paths, name).texts}
    tested = set(shifted)
    for name in list_datasets(paths):
        n_rows = rows_with_activations(paths, model_name, name)
        if n_rows is not None:
            tested.update(load_dataset(paths, name).texts[:n_rows])
    by_dataset = [
        [text for text in load_dataset(paths, name).texts if text not in tested] for name in chosen
    ]
    if not any(by_dataset):
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
        by_dataset = [
            [text for i in rows[name].train if (text := load_dataset(paths, name).texts[i])
             not in tested]
            for name in chosen
        ]  # fmt: skip
    most = training.max_characters or sys.maxsize
    rng = np.random.default_rng(training.seed)
    shuffled = [
        [texts[i] for i in rng.permutation(len(texts)) if len(texts[i]) <= most]
        for texts in by_dataset
    ]
    # one of each dataset in turn: of however many are taken, as many of each
    texts = [text for of_round in zip_longest(*shuffled) for text in of_round if text is not None]
    texts = list(dict.fromkeys(texts))
    if not texts:
        raise UserError(
            "every text of the corpus is one that a probe may be tested on, or too long: name"
            " another --corpus"
        )
    return texts


def collect(
    model: HookedModel, hooks: list[str], texts: list[str], training: Training
) -> dict[str, torch.Tensor]:
    """{hook: activations of tokens, or of texts, [n, d_model] float32, shuffled}; the last
    ``n_held_out`` of them are not for training.
    """
    import torch

    n_wanted = training.n_samples + min(HELD_OUT, training.n_samples // 10)
    if training.trained_on == "texts":
        collected = model.pooled(texts[:n_wanted], "vectors of texts")
    else:
        collected = tokens_of(model, hooks, texts, n_wanted)
    generator = torch.Generator().manual_seed(training.seed)
    n_there = len(collected[hooks[0]])
    order = torch.randperm(n_there, generator=generator)[:n_wanted]
    if len(order) < n_wanted:
        print(f"the corpus has only {len(order)} {training.trained_on} of {n_wanted}")
    if len(order) < 4 * BATCH:
        raise UserError(
            f"{len(order)} {training.trained_on} are too few to train on: name a larger --corpus"
        )
    return {hook: collected[hook][order] for hook in hooks}


def tokens_of(
    model: HookedModel, hooks: list[str], texts: list[str], n_tokens: int
) -> dict[str, torch.Tensor]:
    """{hook: activations of at least ``n_tokens`` tokens of the first texts}.

    Of a causal model without each text's first token: attention rests on it, and its activations
    are a hundred times larger than all others and say nothing of the text.
    """
    import torch

    n_left_out = 1 if model.info.pooling == "last" else 0
    token_ids, total = [], 0
    for start in range(0, len(texts), 100):
        for ids in model.tokenize(texts[start : start + 100]):
            token_ids.append(ids)
            total += max(len(ids) - n_left_out, 0)
        if total >= n_tokens:
            break
    kept: dict[str, list[torch.Tensor]] = {hook: [] for hook in hooks}
    for _, captured, mask in model.run(token_ids, f"token activations at {', '.join(hooks)}"):
        mask[:, :n_left_out] = False
        for hook in hooks:
            kept[hook].append(captured[hook][mask].float().cpu())
    return {hook: torch.cat(parts) for hook, parts in kept.items()}


def batches(activations: torch.Tensor, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Endless shuffled batches [BATCH, d_model]."""
    import torch

    while True:
        order = torch.randperm(len(activations), generator=generator)
        for start in range(0, len(order) - BATCH + 1, BATCH):
            yield activations[order[start : start + BATCH]]


def fitted(sae: TopKTrainingSAE, rows: torch.Tensor, training: Training) -> TopKTrainingSAE:
    """The SAE trained on rows [n, d_model]."""
    import torch

    generator = torch.Generator().manual_seed(training.seed)
    n_steps = max(int(len(rows) * training.n_epochs), BATCH) // BATCH
    schedule = Schedule(n_steps, BATCH, LEARNING_RATE, n_steps // 5, training.device)
    return train(sae, batches(rows, generator), schedule)


def make_sae(
    activations: torch.Tensor, folder: Path, wanted: SaeToTrain, training: Training
) -> None:
    """Make one SAE, and move its finished folder into place."""
    import torch
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    torch.manual_seed(training.seed)
    n_held_out = min(HELD_OUT, len(activations) // 11)
    rows, held_out = activations[:-n_held_out], activations[-n_held_out:]
    mean = rows.mean(dim=0)
    # Unit mean square per dimension makes one learning rate fit every layer. It is folded into the
    # weights below, so the saved SAE takes activations as they are.
    scale = float((rows - mean).square().mean().rsqrt())
    cfg = TopKTrainingSAEConfig(
        d_in=rows.shape[1],
        d_sae=wanted.width,
        k=training.k_active,
        device=training.device,
        apply_b_dec_to_input=True,
        rescale_acts_by_decoder_norm=False,  # with it, encoding would need the decoder
        metadata=SAEMetadata(
            model_name=wanted.model_name, hook_name=hook_name(wanted.layer), seed=training.seed
        ),
    )
    sae = TopKTrainingSAE(cfg)
    with torch.no_grad():
        sae.b_dec.copy_(mean * scale)
    sae = fitted(sae, rows * scale, training)
    sae.fold_activation_norm_scaling_factor(scale)
    figures = measure(sae, held_out.to(training.device))
    with atomic_folder(folder) as temporary:
        sae.save_inference_model(temporary)
        write_json(
            temporary / FACTS,
            {
                **figures,
                "trained_on": training.trained_on,
                "n_samples": len(rows),
                "n_epochs": training.n_epochs,
                "seed": training.seed,
                "made_from": wanted.made_from,
                "made_from_but_seed": wanted.made_from_but_seed,
            },
        )
    cli.say(
        f"trained: {cli.shown_path(folder)} ({figures['variance_explained']:.0%} of variance"
        f" explained, {figures['dead_latents']} dead latents)"
    )


def measure(sae: Any, activations: torch.Tensor) -> dict[str, float]:
    """Variance explained (1 - FVU), mean L0 and latents that never fire, on rows [n, d_model]."""
    import torch

    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=activations.device)
    error = l0 = 0.0
    with torch.no_grad():
        for batch in progress(activations.split(BATCH), desc="held-out rows", unit="batch"):
            latents = sae.encode(batch)
            error += float((sae.decode(latents) - batch).square().sum())
            l0 += float((latents > 0).sum())
            fired |= (latents > 0).any(dim=0)
    total = float((activations - activations.mean(dim=0)).square().sum())
    return {
        "variance_explained": 1 - error / total,
        "mean_l0": l0 / len(activations),
        "dead_latents": int((~fired).sum()),
    }


if __name__ == "__main__":
    cli.run(main)
