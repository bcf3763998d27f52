"""Probes on all tokens of a text: SAE latents pooled over tokens, concatenated components, and an
attention probe; beside them logistic regression on the last token and on the mean of the same rows.

    python train_multi_token_probes.py --model_name all-MiniLM-L6-v2 \
        --datasets 87_glue_cola 96_spam_is

Runs the language model over one dataset at a time and keeps its token activations (16-bit) in
memory while the probes are made: nothing of them is written, where storing them took about a
terabyte. Appends to results/multi_token_{model}/all_results.csv, does only what that lacks, and
visualize.py shows it beside the paper's consolidated results. The setting is the normal one.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from utils import cli
from utils.datasets import (
    choose_datasets,
    dataset_facts,
    dataset_size,
    load_dataset,
    readable,
    text_codes,
)
from utils.language_models import load_model, model_identity
from utils.models import LanguageModel, get_model
from utils.names import Layer, hook_name
from utils.paths import Paths
from utils.probes.baselines import METHODS
from utils.probes.k_sparse import ProbeOptions, fit_sae_probes
from utils.probes.token_probes import (
    Tokens,
    attention_probe,
    components_probe,
    last_token,
    mean_token,
    pool_latents,
)
from utils.readers.fingerprints import digest
from utils.results.csv_files import MADE_FROM
from utils.results.kept_probes import NOTHING, Keeping, choose_kept
from utils.results.multi_token import (
    ATTENTION,
    COMPONENTS,
    LAST_TOKEN,
    MEAN_TOKEN,
    POOLINGS,
    multi_token_table,
    sae_method,
)
from utils.results.sweep import Sweep, SweepOptions, Task
from utils.results.tables import lock_tables
from utils.runtime.devices import available_memory, pick_device
from utils.runtime.errors import Failures, UserError
from utils.runtime.units import show_bytes
from utils.saes.catalog import (
    SaeChoice,
    choose_saes,
    find_sae,
    is_control,
    open_sae,
    sae_fingerprint,
)
from utils.saes.encode import check_device, encode_all, read_block
from utils.settings import NORMAL, SPLIT_RULES, Condition, TextCodes, split

if TYPE_CHECKING:
    import torch

    from utils.language_models import HookedModel
    from utils.readers.sparse_files import SparseRows
    from utils.saes.encode import EncoderBlock
    from utils.saes.encoder import Encoder

HALF_MAX = 65_504  # of a 16-bit float
K = 128  # latents of a pooled probe, as in the paper
OF_VECTORS = {LAST_TOKEN: last_token, MEAN_TOKEN: mean_token}


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    cli.add_datasets(parser)
    cli.add_saes(parser)
    cli.add_device(parser)
    cli.add_scheduler(parser)
    cli.add_seed(parser)
    parser.add_argument(
        "--max_tokens",
        type=cli.positive,
        default=256,
        help="longest text, the first token included",
    )
    parser.add_argument(
        "--max_rows",
        type=cli.positive,
        default=1500,
        help="only the first rows of a dataset (memory holds them)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="redo rows that the result table already has"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    info = get_model(args.model_name, paths)
    info = replace(info, max_seq_len=min(args.max_tokens, info.max_seq_len))

    failures = Failures()
    choice = SaeChoice(
        args.target_sae_id, args.layers or [info.probe_layer], args.hook_name, args.sae_release
    )
    saes = choose_saes(paths, info, choice, failures)
    sae_dir = paths.saes(info.name)
    controls = {sae_id for sae_id in saes if is_control(sae_dir / sae_id)}
    methods: list[tuple[str, str | None]] = [
        (sae_method(pooling, binarize, sae_id in controls), sae_id)
        for sae_id, pooling, binarize in product(saes, POOLINGS, (False, True))
    ]
    methods += [(method, None) for method in (COMPONENTS, ATTENTION, *OF_VECTORS)]
    datasets = readable(paths, choose_datasets(paths, args.datasets), failures)
    table = multi_token_table(paths.multi_token_results(info.name))
    read_and_probe = ReadAndProbe(args.max_rows, args.device, args.seed, args.sae_release)
    with lock_tables([table]) as place:
        title = f"multi-token probes, {info.name}"
        sweep = Sweep(title, [table], SweepOptions.of(args, paths, 0))
        for number, dataset in enumerate(datasets, start=1):
            rows = [base_row(dataset, info.probe_layer, m, i, args.seed) for m, i in methods]
            lacking: dict[tuple[str, str], str | None] = {}
            for row in rows:
                made_from = source_of(paths, info, dataset, row["sae_id"], args.max_rows)
                if sweep.lacks(table, row, made_from):
                    lacking[row["method"], row["sae_id"]] = made_from
            if lacking:
                position = f"[{number}/{len(datasets)}]"
                arguments = (paths, info, dataset, lacking, read_and_probe, position)
                sweep.add(Task(dataset, table, arguments))
        sweep.report()
        if sweep.tasks and not args.scheduler:
            # a model that is not there ends the run here
            load_model(info, (hook_name(info.probe_layer),), paths, pick_device(args.device))
        sweep.fill(probe_dataset, failures, place)
    return cli.report(failures, "datasets")


@dataclass(frozen=True)
class ReadAndProbe:
    """The flags that change what is read or probed."""

    max_rows: int
    device: str
    seed: int
    sae_release: str | None


def source_of(
    paths: Paths, info: LanguageModel, dataset: str, sae_id: str, max_rows: int
) -> str | None:
    """The fingerprint of what a probe on the tokens of a dataset is made from; None where the
    model or the SAE is of the hub and not at hand.
    """
    n_rows = min(max_rows, dataset_size(paths, dataset))
    on_disk = find_sae(paths.saes(info.name), sae_id) if sae_id else None
    sources = [
        SPLIT_RULES,
        info.max_seq_len,
        info.prepend_bos,
        dataset_facts(paths, dataset, n_rows=n_rows).texts_and_labels,
        model_identity(info, paths),
        sae_fingerprint(on_disk) if on_disk else sae_id or "no SAE",
    ]
    return None if None in sources else digest(sources)


def probe_dataset(
    paths: Paths,
    info: LanguageModel,
    name: str,
    wanted: dict[tuple[str, str], str | None],
    reading: ReadAndProbe,
    number: str,
) -> list[dict]:
    """Rows of all wanted probes of one dataset; its tokens are read once and never stored.

    ``wanted``: {(method, sae_id): what the row is made from}.
    """
    hook = hook_name(info.probe_layer)
    model = load_model(info, (hook,), paths, pick_device(reading.device))
    n_rows = min(reading.max_rows, dataset_size(paths, name))
    dataset = load_dataset(paths, name)
    tokens = read_tokens(model, hook, dataset.texts[:n_rows], f"{number} {name}")
    told = (dataset.labels[:n_rows], text_codes(paths, name, ood=False))
    made = probe_tokens(paths, info.name, tokens, told, wanted, reading)
    rows = [
        {
            **base_row(name, info.probe_layer, method, sae_id, reading.seed),
            **scores,
            MADE_FROM: wanted[method, sae_id or ""],
        }
        for (method, sae_id), scores in made
    ]
    return choose_kept(rows, Keeping(NOTHING))  # what they read of all tokens is on no disk


def base_row(dataset: str, layer: Layer, method: str, sae_id: str | None, seed: int) -> dict:
    """The columns of a row that say what it is."""
    return {
        "dataset": dataset,
        "layer": layer,
        "method": method,
        "sae_id": sae_id or "",
        "seed": seed,
    }


def read_tokens(model: HookedModel, hook: str, texts: list[str], desc: str) -> Tokens:
    """Token activations of texts, each without its first token (a text of one token keeps it).

    Raises UserError when they would not fit into memory.
    """
    token_ids = model.tokenize(texts)
    lengths = np.maximum([len(ids) - 1 for ids in token_ids], 1)
    width = model.width(hook)
    n_bytes = 2 * int(lengths.sum()) * width
    if n_bytes > available_memory():
        raise UserError(
            f"the tokens of {len(texts)} texts need {show_bytes(n_bytes)}: lower --max_rows or"
            " --max_tokens"
        )
    starts = np.concatenate([[0], np.cumsum(lengths)])
    values = np.zeros((starts[-1], width), dtype=np.float16)
    for rows, captured, kept in model.run(token_ids, desc):
        states, n_real = captured[hook].cpu().numpy(), kept.sum(dim=1).cpu().numpy()
        for i, row in enumerate(rows):
            kept_states = states[i, min(1, n_real[i] - 1) : n_real[i]]
            values[starts[row] : starts[row + 1]] = np.clip(kept_states, -HALF_MAX, HALF_MAX)
    return Tokens(values, starts)


def probe_tokens(
    paths: Paths,
    model_name: str,
    tokens: Tokens,
    told: tuple[np.ndarray, TextCodes],
    wanted: Collection[tuple[str, str]],
    reading: ReadAndProbe,
) -> list[tuple[tuple[str, str | None], dict]]:
    """((method, sae_id), scores) of each wanted probe on the normal split of these texts; ``told``:
    their labels [n_texts], and numbers that tell them apart.
    """
    import torch

    y, codes = told
    drawn = split(Condition(NORMAL.name), y, reading.seed)
    fresh = drawn.fresh(codes)
    sizes = {"n_train": len(drawn.train), "n_test": len(drawn.test)}
    results: list[tuple[tuple[str, str | None], dict]] = []
    device = torch.device(pick_device(reading.device))
    for sae_id in dict.fromkeys(sae_id for _, sae_id in wanted if sae_id):
        encoder = open_sae(paths, model_name, sae_id, reading.sae_release)
        place = device if fits_beside(encoder, device) else torch.device("cpu")
        block = read_block(encoder, 0, encoder.d_sae, place)
        check_device(encoder, block, tokens.values[:128].astype(np.float32), place)
        pooled = pool_latents(tokens, partial(_encode, encoder, block, place), encoder.d_sae)
        for (pooling, X), binarize in product(zip(POOLINGS, pooled), (False, True)):
            for control in (False, True):
                method = sae_method(pooling, binarize, control)
                if (method, sae_id) in wanted:
                    options = ProbeOptions(binarize=binarize, seed=reading.seed)
                    (probe,) = fit_sae_probes(drawn.take(X, texts=codes), [K], options)
                    results.append(((method, sae_id), probe))
    # Metal lacks some of its sums
    attention = partial(attention_probe, device=str(device) if device.type == "cuda" else "cpu")
    for method, probe_with in ((COMPONENTS, components_probe), (ATTENTION, attention)):
        if (method, "") in wanted:
            scores = probe_with(tokens, y, drawn.train, drawn.test, reading.seed, fresh)
            results.append(((method, None), {**scores, **sizes}))
    for method, vectors in OF_VECTORS.items():
        if (method, "") in wanted:
            scores = METHODS["logreg"](drawn.take(vectors(tokens), texts=codes), reading.seed)
            results.append(((method, None), {**scores, **sizes}))
    return results


def fits_beside(encoder: Encoder, device: torch.device) -> bool:
    """Whether a GPU has room for a whole encoder and its products beside the language model. Metal
    is left out: products of wide blocks have been wrong there.
    """
    import torch

    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return 3 * 4 * encoder.d_model * encoder.d_sae < free


def _encode(
    encoder: Encoder, block: EncoderBlock, device: torch.device, x: np.ndarray
) -> SparseRows:
    return encode_all(encoder, [block], x, device)


if __name__ == "__main__":
    cli.run(main)
