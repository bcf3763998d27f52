"""Latent cards: what each latent of an SAE probe says, and the texts on which it says it.

    python explain_probes.py --model_name all-MiniLM-L6-v2 --tokens
    python explain_probes.py --model_name gemma-2-9b --datasets 96_spam_is --k 8

Reads the probes that train_sae_probes.py kept (normal setting) and the SAE activations, and writes
results/latents_{model}.parquet: a row for each latent of each probe. visualize.py shows them.
With --tokens the language model reads the texts shown once more, and the cards say which tokens
carry the latent. Fits nothing.
"""

from __future__ import annotations

import argparse
import shlex
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd

from export_probe import how_read
from train_sae_probes import encoder_of, release_of, rows_of
from utils import cli
from utils.datasets import choose_datasets, load_dataset
from utils.exported_probes import left_out_means, model_of, token_activations
from utils.language_models import load_model
from utils.models import LanguageModel, get_model
from utils.names import hook_name, without_seed
from utils.paths import Paths
from utils.probes.k_sparse import PROTOCOLS, rank_latents
from utils.results.cards import (
    TOP,
    Card,
    Example,
    ProbeCards,
    choice_over_seeds,
    make_cards,
    read_cards,
    with_tokens,
    write_cards,
)
from utils.results.kept_probes import Kept, find_probe, flags_of
from utils.results.side_experiments import explanations
from utils.results.sources import Sources
from utils.results.tables import ResultTable, default_sae_probes, sae_probe_table
from utils.runtime.devices import pick_device
from utils.runtime.errors import Failures, UserError
from utils.runtime.files import locked
from utils.runtime.progress import progress
from utils.saes.decode import directions_of
from utils.saes.encode import latents_of
from utils.saes.releases import neuronpedia_address
from utils.saes.store import Look
from utils.saes.training import training_facts
from utils.settings import NORMAL, Condition, Split, SplitKind, split

K = 16
NEAR = 0.1  # share by which a latent's largest values may differ: activations are kept in 16 bits


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_model(parser)
    cli.add_datasets(parser)
    parser.add_argument(
        "--target_sae_id", nargs="+", type=cli.sae_id, metavar="ID", help="only these SAEs"
    )
    parser.add_argument(
        "--k", type=cli.positive, default=K, help="latents of the probe (or the most below it)"
    )
    parser.add_argument("--protocol", choices=PROTOCOLS, default=PROTOCOLS[0], help="of the probe")
    cli.add_split(parser)
    cli.add_seed(parser)
    parser.add_argument(
        "--tokens", action="store_true", help="run the model on the texts shown: tokens are marked"
    )
    parser.add_argument("--overwrite", action="store_true", help="make again what is there")
    cli.add_device(parser)
    return parser


@dataclass(frozen=True)
class Wanted:
    """Which probe of each dataset and SAE is explained, and whether tokens are marked."""

    k: int
    protocol: str
    seed: int
    tokens: bool
    overwrite: bool
    device: str


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    paths = cli.paths_of(args)
    info = get_model(args.model_name, paths)
    wanted = Wanted(args.k, args.protocol, args.seed, args.tokens, args.overwrite, args.device)
    datasets = choose_datasets(paths, args.datasets) if args.datasets else None
    path = paths.latents_table(info.name)
    failures = Failures()
    with locked(path.parent, path.name):
        table = probes_of(paths, info)
        rows = probes_to_explain(table, wanted, datasets, args.target_sae_id)
        if not rows:
            asked = [*(args.datasets or ()), *(args.target_sae_id or ())]
            of_these = f" for {', '.join(asked)}" if asked else ""
            further = flags_of(args.protocol, args.seed)
            command = stage(info.name, args.datasets, paths.split, further=further)
            raise UserError(
                f"{table.path} has no SAE probes of {info.name}{of_these} with at most {args.k}"
                f" latents: make them with `{command}`"
            )
        everything = wanted.overwrite and not (args.datasets or args.target_sae_id)
        there = {} if everything else {cards.key: cards for cards in read_cards(path)}
        explain(paths, info, rows, wanted, there, failures)
    n_latents = sum(len(cards.cards) for cards in there.values())
    cli.say(f"{n_latents} latents of {len(there)} probes: {cli.shown_path(path)}")
    return cli.report(failures, "probes")


def probes_of(paths: Paths, info: LanguageModel) -> ResultTable:
    """The table of a model's SAE probes in the normal setting."""
    return sae_probe_table(paths.sae_probe_table(info.name, NORMAL.name), None)


def probes_to_explain(
    table: ResultTable, wanted: Wanted, datasets: list[str] | None, sae_ids: list[str] | None
) -> list[dict]:
    """Of each dataset and SAE the row with ``wanted.k`` latents, or the most below it."""
    rows = default_sae_probes(table.read(), wanted.protocol, wanted.seed)
    mine = rows[rows["k"] <= wanted.k]
    if datasets is not None:
        mine = mine[mine["dataset"].isin(datasets)]
    if sae_ids is not None:
        mine = mine[mine["sae_id"].isin(sae_ids)]
    ordered = mine.sort_values("k", kind="stable")
    last = ordered.drop_duplicates(["dataset", "sae_id"], keep="last")
    return last.sort_values(["dataset", "sae_id"], kind="stable").to_dict("records")


def explain(
    paths: Paths,
    info: LanguageModel,
    rows: list[dict],
    wanted: Wanted,
    there: dict[tuple[str, str], ProbeCards],
    failures: Failures,
) -> None:
    """Add the cards of rows to ``there``, and write all."""
    markers: dict[tuple, TokenMarker] = {}
    todo, n_new = to_explain(paths, info, rows, wanted, there, failures)
    try:
        bar = progress(todo, desc="latent cards", unit="probe") if todo else ()
        for row, kept, others in bar:
            try:
                cards = there.get((row["dataset"], row["sae_id"]))
                if cards is None or wanted.overwrite or not _is_done(cards, row, kept, wanted):
                    cards = explain_probe(paths, info, row, kept)
                    if wanted.tokens:
                        cards = mark_tokens(paths, info, cards, wanted.device, markers)
                there[cards.key] = with_seeds(paths, info, row, cards, others)
                n_new += 1
            except UserError as error:
                n_new += _cannot(row, error, there, failures)
    finally:  # a run that is stopped keeps its work
        if n_new:
            write_cards(paths.latents_table(info.name), there.values())


def to_explain(
    paths: Paths,
    info: LanguageModel,
    rows: list[dict],
    wanted: Wanted,
    there: dict[tuple[str, str], ProbeCards],
    failures: Failures,
) -> tuple[list[tuple[dict, Kept, dict[str, str]]], int]:
    """(each row whose cards are not there, with its weights and the SAEs of other seeds; how many
    cards were taken out of ``there``, because their probes cannot be explained).
    """
    sources, table = Sources(paths, info.name), probes_of(paths, info)
    probed = table.read()[["dataset", "layer", "sae_id", "method"]].drop_duplicates()
    todo, n_gone = [], 0
    for row in rows:
        try:
            kept = kept_probe(info.name, table, row, sources)
        except UserError as error:
            n_gone += _cannot(row, error, there, failures)
            continue
        others = other_seeds(paths, info, row, probed, sources)
        old = there.get((row["dataset"], row["sae_id"]))
        if (
            old is None
            or wanted.overwrite
            or not _is_done(old, row, kept, wanted)
            or old.other_seeds != [f"{name} {source}" for name, source in others.items()]
        ):
            todo.append((row, kept, others))
    return todo, n_gone


def _cannot(
    row: dict, error: UserError, there: dict[tuple[str, str], ProbeCards], failures: Failures
) -> bool:
    """Note that a row has no cards; what was said of another probe of its dataset and SAE must not
    stand beside its numbers. Whether there was any.
    """
    failures.add(f"{row['dataset']}, {row['sae_id']}: {error}")
    return there.pop((row["dataset"], row["sae_id"]), None) is not None


def _is_done(old: ProbeCards, row: dict, kept: Kept, wanted: Wanted) -> bool:
    same = (old.k, old.protocol, old.seed, old.made_from) == (
        int(row["k"]),
        row["protocol"],
        int(row["seed"]),
        kept.made_from,
    )
    marked = any(e.tokens for card in old.cards for e in card.examples)
    shown = any(card.examples for card in old.cards)
    return same and (marked or not shown or not wanted.tokens)


def stage(
    model_name: str,
    datasets: list[str] | None,
    kind: SplitKind,
    sae_id: str | None = None,
    further: str = "",
) -> str:
    """The command that makes the probes; ``further`` flags of its script."""
    flags = (f"--target_sae_id {shlex.quote(sae_id)}" if sae_id else "") + kind.flags + further
    return cli.make_command("train-sae-probes", model_name, datasets, flags)


def kept_probe(model_name: str, table: ResultTable, row: dict, sources: Sources) -> Kept:
    """The weights of a row. Raises UserError where they were not kept, or were made from something
    else than there is now.
    """
    kept = find_probe(table, row)
    split = sources.paths.split
    further = f"{flags_of(row['protocol'], int(row['seed']))} --overwrite"
    again = stage(model_name, [row["dataset"]], split, row["sae_id"], further)
    if kept is None:
        raise UserError(f"its weights were not kept: make it again with `{again}`")
    made_from = sources.of(row, NORMAL)
    if not kept.is_of(made_from):
        raise UserError(
            f"it was made from other inputs than there are now: make it again with `{again}`"
        )
    return kept


def other_seeds(
    paths: Paths, info: LanguageModel, row: dict, probed: pd.DataFrame, sources: Sources
) -> dict[str, str]:
    """{id: what its latents were made from} of the SAEs with probes of the same dataset and layer
    that differ from a row's SAE in the seed of their training alone.
    """
    mine = probed[(probed["dataset"] == row["dataset"]) & (probed["layer"] == row["layer"])]
    look = Look(paths, info.name)
    found: dict[str, str] = {}
    for other in mine[mine["method"] == row["method"]].to_dict("records"):
        sae_id = other["sae_id"]
        if sae_id == row["sae_id"] or without_seed(sae_id) != without_seed(row["sae_id"]):
            continue
        made_from = sources.of(other, NORMAL)
        weights = look.sae(sae_id), look.sae(row["sae_id"])
        trained = [
            training_facts(paths.saes(info.name) / name).get("made_from_but_seed")
            for name in (sae_id, row["sae_id"])
        ]
        if made_from and None not in weights and weights[0] != weights[1]:
            found |= {sae_id: made_from} if trained[0] == trained[1] else {}
    return dict(sorted(found.items()))


def with_seeds(
    paths: Paths, info: LanguageModel, row: dict, probe: ProbeCards, others: dict[str, str]
) -> ProbeCards:
    """The cards of a row with ``choice_over_seeds`` among ``others``, of ``other_seeds``: of each
    the first k latents, chosen on the same training rows. One that cannot be read is left out.
    """
    latents = np.array([card.latent for card in probe.cards])
    condition, seed = Condition(NORMAL.name, kind=paths.split), int(row["seed"])
    own, chosen = None, {}
    if others:
        with suppress(UserError):  # without its own directions nothing can be said
            own = directions_of(encoder_of(paths, info.name, probe.dataset, probe.sae_id), latents)
    for sae_id, made_from in others.items() if own is not None else ():
        with suppress(UserError):
            encoder = encoder_of(paths, info.name, probe.dataset, sae_id)
            source = rows_of(paths, info.name, {**row, "sae_id": sae_id}, ood=False)
            rows = source.condition(condition, seed)
            first = rank_latents(rows.X_train, rows.y_train, n_keep=len(latents)).latents
            chosen[f"{sae_id} {made_from}"] = directions_of(encoder, first)
    shares = [float("nan")] * len(latents)
    if own is not None:
        shares = choice_over_seeds(own, list(chosen.values())).tolist()
    cards = [replace(card, chosen_by_seeds=share) for card, share in zip(probe.cards, shares)]
    return replace(probe, cards=cards, other_seeds=list(chosen))


def explain_probe(paths: Paths, info: LanguageModel, row: dict, kept: Kept) -> ProbeCards:
    """The cards of one probe, without tokens, and without other seeds."""
    source = rows_of(paths, info.name, row, ood=False)
    condition, seed = Condition(NORMAL.name, kind=paths.split), int(row["seed"])
    dataset = load_dataset(paths, row["dataset"])
    drawn = split(condition, source.labels, seed, texts=source.texts)
    release = release_of(paths, info.name, row["dataset"], row["sae_id"]) or ""
    rows = source.condition(condition, seed)
    cards = make_cards(rows, kept.probe, partial(text_of, drawn, dataset.texts), seed)
    known = explanations(paths, info.name, row["sae_id"])
    return ProbeCards(
        dataset=row["dataset"],
        sae_id=row["sae_id"],
        k=int(row["k"]),
        protocol=row["protocol"],
        seed=seed,
        hook_name=hook_name(row["layer"]),
        classes=list(dataset.classes),
        probe_test_auc=float(row["test_auc"]),
        probe_val_auc=float(row["val_auc"]),
        n_test=len(rows.y_test),
        release=release,
        neuronpedia=neuronpedia_address(release, row["sae_id"]),
        made_from=kept.made_from,
        other_seeds=[],
        cards=[replace(card, explanation=known.get(card.latent, "")) for card in cards],
    )


def text_of(drawn: Split, texts: list[str], place: int) -> tuple[int, str]:
    """(row of the dataset, text) of a place among the test rows."""
    row = int(drawn.test[place])
    return row, texts[row]


class TokenMarker:
    """Tokens of texts and what each gives an SAE's latents, as the activations were made."""

    def __init__(self, paths: Paths, probe: ProbeCards, about: dict, device: str) -> None:
        """``about``: how the probe's dataset was read, of ``how_read``."""
        self.about = about
        self.encoder = encoder_of(paths, about["model_name"], probe.dataset, probe.sae_id)
        hooks = (probe.hook_name,)
        model = model_of(about, paths)
        self.model = load_model(model, hooks, paths, pick_device(device), "float32")

    def values(
        self, texts: list[str], latents: list[np.ndarray]
    ) -> list[tuple[list[str], np.ndarray, np.ndarray]]:
        """Of each text its tokens; float [n_tokens, n_latents], what each token gives its latents;
        and float [n_latents], the latents of the text.

        What a token gives is the latent at the token where the last token is read, and how much the
        latent falls without the token where the mean is read.
        """
        given: list[tuple[list[str], np.ndarray, np.ndarray]] = []
        read = token_activations(self.model, self.about, texts)
        for (tokens, vectors), columns in zip(read, latents):
            if self.about["pooling"] == "last":
                at_tokens = latents_of(self.encoder, vectors)[:, columns].toarray()
                given.append((tokens, at_tokens, at_tokens[-1]))
            else:
                made = latents_of(self.encoder, left_out_means(vectors))[:, columns].toarray()
                given.append((tokens, made[0] - made[1:], made[0]))
        return given


def mark_tokens(
    paths: Paths,
    info: LanguageModel,
    probe: ProbeCards,
    device: str,
    markers: dict[tuple, TokenMarker],
) -> ProbeCards:
    """The cards with tokens.

    Raises UserError where the model or the SAE is not at hand, or gives a latent another value than
    the SAE activations have.
    """
    texts = load_dataset(paths, probe.dataset).texts
    latents_of_row: dict[int, set[int]] = {}
    for card in probe.cards:
        for example in card.examples:
            latents_of_row.setdefault(example.row, set()).add(card.latent)
    shown = sorted(latents_of_row)
    about = how_read(paths, info, probe.dataset, probe.hook_name)
    key = (probe.sae_id, probe.release, *sorted(map(str, about.values())))
    if key not in markers:
        markers.clear()  # one model in memory
        markers[key] = TokenMarker(paths, probe, about, device)
    columns = [np.array(sorted(latents_of_row[row])) for row in shown]
    made = markers[key].values([texts[row] for row in shown], columns)
    by_row = {row: (*one, list(of_row)) for row, one, of_row in zip(shown, made, columns)}

    def marked(card: Card, example: Example) -> Example:
        tokens, values, whole, of_row = by_row[example.row]
        place = of_row.index(card.latent)
        if (
            example.kind == TOP
            and abs(whole[place] - example.activation) > NEAR * example.activation
        ):
            raise UserError(
                f"latent {card.latent} is {example.activation:.3g} on row {example.row} in the SAE"
                f" activations, and {whole[place]:.3g} when the model reads the text now: another"
                " model, SAE or reading of texts made them"
            )
        return with_tokens(example, tokens, values[:, place])

    return replace(
        probe,
        cards=[
            replace(card, examples=[marked(card, e) for e in card.examples]) for card in probe.cards
        ],
    )


if __name__ == "__main__":
    cli.run(main)
