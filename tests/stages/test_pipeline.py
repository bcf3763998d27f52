"""The whole pipeline through the scripts' own mains on a tiny language model: what is made,
resumed, and said of mistakes.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, clear_caches, folder_flags, paths_below, write_texts, write_tiny_model
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from transformers import BertModel

import explain_probes
import export_probe
import generate_model_activations
import generate_sae_activations_optimized
import score_texts
import train_baselines
import train_sae_probes
import train_saes
import visualize
from checks import transfer
from utils.datasets import load_dataset, load_ood
from utils.figures import study
from utils.language_models import HookedModel
from utils.models import get_model
from utils.notebook import probe_sae
from utils.paths import Paths
from utils.results.cards import read_cards, write_cards
from utils.runtime import files
from utils.runtime.errors import UserError
from utils.saes.store import SaeActivations
from utils.settings import Condition, split

MODEL = "all-MiniLM-L6-v2"
NAMES = ["1_first", "2_second", "3_third"]
STAGES = sorted(path.stem for path in ROOT.glob("*.py"))
MODULES = [
    path
    for folder in ("checks", "published", "benchmarks")
    for path in sorted((ROOT / folder).glob("*.py"))
]
SCRIPTS = STAGES + [
    f"{path.parent.name}.{path.stem}" for path in MODULES if "cli.run(main)" in path.read_text()
]


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Paths:
    """Folders after one run of every stage."""
    root = tmp_path_factory.mktemp("pipeline")
    paths = paths_below(root)
    clear_caches()
    write_texts(paths, [*NAMES, "4_corpus"], n_rows=300, ood=(NAMES[0],))
    write_tiny_model(paths)
    run_all(paths)
    return paths


TRAINING = ["--widths", "96", "--k_active", "8", "--n_samples", "20000"]
TRAINING += ["--layer", "2", "--trained_on", "tokens"]


def run_all(paths: Paths) -> None:
    common = ["--model_name", MODEL, *folder_flags(paths)]
    data = ["--datasets", *NAMES]
    assert generate_model_activations.main([*common, *data, "--max_rows", "260"]) == 0
    train_saes.HELD_OUT = 512
    assert train_saes.main([*common, *TRAINING]) == 0
    assert generate_sae_activations_optimized.main([*common, *data, "--setting", "all"]) == 0
    for setting, more in (("normal", []), ("scarcity", ["--conditions", "10", "103"]), ("OOD", [])):
        chosen = NAMES[:1] if setting == "OOD" else NAMES
        # one test starts workers: each start takes seconds
        arguments = [*common, "--datasets", *chosen, "--setting", setting, "--n_jobs", "1", *more]
        assert (
            train_baselines.main([*arguments, *(["--layer", "2"] if setting == "normal" else [])])
            == 0
        )
        assert train_sae_probes.main(arguments) == 0
    assert explain_probes.main([*common, "--tokens"]) == 0
    assert visualize.main([*common, *data]) == 0


def test_every_stage_leaves_its_files(done):
    assert len(list(done.model_activations_folder(MODEL).glob("*.pt"))) == 6
    assert len(list(done.sae_activations_folder(MODEL, "normal").glob("*_X_train_sae.pt"))) == 9
    assert len(list(done.sae_activations_folder(MODEL, "OOD").glob("*_X_test_sae.pt"))) == 3
    probes = pd.read_csv(done.sae_probe_table(MODEL, "scarcity"))
    assert sorted(probes["num_train"].unique()) == [10, 103]
    twins = {"random_sae_probe", "soft_frozen_probe"}
    others = {"raw_dims", "pca_dims", "shuffled_labels"}
    assert set(probes["method"]) == {"sae_probe", *twins, *others}
    assert probes["converged"].all()
    baselines = pd.read_csv(done.baseline_table(MODEL, "normal", 2))
    paper = {"logreg", "pca", "knn", "xgboost", "mlp"}
    assert set(baselines["method"]) == {*paper, "diff_of_means", "lda"}
    assert len(pd.read_csv(done.text_table("scarcity"))) == 2 * len(NAMES)
    # the texts of class 1 hold a word that tells them: every logistic regression must see it
    assert baselines[baselines["method"] == "logreg"]["test_auc"].min() > 0.95
    path = done.sae_probe_table(MODEL, "normal").with_name("settings.json")
    (run,) = json.loads(path.read_text())["runs"]
    assert run["settings"]["seed"] == 42
    assert "torch" in run["versions"]


def test_cards_say_what_the_latents_say(done):
    """Each value is that of the SAE activations; tokens are those of the text."""
    probes = read_cards(done.latents_table(MODEL))
    assert {probe.dataset for probe in probes} == set(NAMES)
    for probe in probes:
        texts = load_dataset(done, probe.dataset).texts
        latents = SaeActivations(done, MODEL, probe.dataset, probe.sae_id).rows()
        for card in probe.cards:
            for example in card.examples:
                assert example.activation == latents[example.row, card.latent]
                assert texts[example.row].startswith(example.text.rstrip("…"))
                shown = "".join(example.tokens).replace("[CLS]", "").replace("[SEP]", "")
                assert shown.replace(" ", "") in texts[example.row].lower().replace(" ", "")
        top = max(probe.cards, key=lambda card: card.share)
        assert max(e.activation for e in top.examples) > 0
        assert any(max(e.token_values) > 0 for e in top.examples if e.kind == "top")
    common = ["--model_name", MODEL, *folder_flags(done)]
    before = done.latents_table(MODEL).read_bytes()
    assert explain_probes.main([*common, "--overwrite", "--tokens"]) == 0
    assert done.latents_table(MODEL).read_bytes() == before


def test_cards_made_again_for_one_dataset_leave_the_others(done):
    common = ["--model_name", MODEL, *folder_flags(done)]
    before = done.latents_table(MODEL).read_bytes()
    again = ["--datasets", NAMES[1], "--overwrite", "--tokens"]
    assert explain_probes.main([*common, *again]) == 0
    assert done.latents_table(MODEL).read_bytes() == before


def test_cards_say_whether_other_seeds_choose_the_same_directions(done, tmp_path):
    """Of two SAEs that differ in their seed alone one is the trained one with its latents in
    another order, and one writes random directions: half of them choose each direction.
    """
    paths = paths_below(tmp_path)
    for ours, its in zip(folder_flags(done)[1::2], folder_flags(paths)[1::2]):
        if Path(ours).is_dir():
            shutil.copytree(ours, its)
    trained = paths.saes(MODEL) / "layer_2/width_96/topk_8"
    weights = load_file(trained / "sae_weights.safetensors")
    order = np.random.default_rng(0).permutation(96)
    for seed in (7, 8):
        folder = trained.with_name(f"topk_8_seed_{seed}")
        folder.mkdir()
        for name in ("cfg.json", "training.json"):
            shutil.copy(trained / name, folder)
        moved = {"b_enc": weights["b_enc"][order], "W_enc": weights["W_enc"][:, order]}
        moved["W_dec"] = weights["W_dec"][order]
        if seed == 8:
            moved["W_dec"] = torch.randn(
                96, moved["W_dec"].shape[1], generator=torch.Generator().manual_seed(0)
            )
        moved = {name: value.contiguous() for name, value in moved.items()}
        save_file({**weights, **moved}, folder / "sae_weights.safetensors")
    common = ["--model_name", MODEL, *folder_flags(paths), "--datasets", NAMES[0]]
    flags = [*common, "--controls", "none"]
    assert generate_sae_activations_optimized.main([*flags, "--setting", "normal"]) == 0
    assert train_sae_probes.main([*flags, "--n_jobs", "1", "--ks", "4"]) == 0
    assert explain_probes.main([*common, "--k", "4"]) == 0
    probes = read_cards(paths.latents_table(MODEL))
    (probe,) = (p for p in probes if p.dataset == NAMES[0] and p.sae_id.endswith("topk_8"))
    assert [name.split()[0].split("_")[-1] for name in probe.other_seeds] == ["7", "8"]
    assert [card.chosen_by_seeds for card in probe.cards] == [0.5] * 4
    before = paths.latents_table(MODEL).read_bytes()
    assert explain_probes.main([*common, "--k", "4"]) == 0
    assert paths.latents_table(MODEL).read_bytes() == before
    # one whose weights changed since it encoded says nothing, and takes no other's cards
    path = trained.with_name("topk_8_seed_8") / "sae_weights.safetensors"
    changed = load_file(path)
    save_file({**changed, "b_enc": changed["b_enc"] + 1}, path)
    clear_caches()
    assert explain_probes.main([*common, "--k", "4"]) != 0
    left = {p.sae_id: p for p in read_cards(paths.latents_table(MODEL)) if p.dataset == NAMES[0]}
    assert sorted(name[-6:] for name in left) == ["seed_7", "topk_8"]
    probe = left["layer_2/width_96/topk_8"]
    assert [name.split()[0][-6:] for name in probe.other_seeds] == ["seed_7"]
    assert [card.chosen_by_seeds for card in probe.cards] == [1.0] * 4
    # the same weights under another name are no other training
    for name in ("cfg.json", "training.json", "sae_weights.safetensors"):
        shutil.copy(trained / name, trained.with_name("topk_8_seed_7") / name)
    clear_caches()
    assert generate_sae_activations_optimized.main([*flags, "--setting", "normal"]) == 0
    assert train_sae_probes.main([*flags, "--n_jobs", "1", "--ks", "4"]) == 0
    assert explain_probes.main([*common, "--k", "4", "--target_sae_id", probe.sae_id]) == 0
    probes = read_cards(paths.latents_table(MODEL))
    (probe,) = (p for p in probes if p.dataset == NAMES[0] and p.sae_id == probe.sae_id)
    assert all("seed_7" not in name for name in probe.other_seeds)


def test_cards_of_what_is_no_longer_there_are_not_shown(done, tmp_path, capsys):
    paths = Paths(done.text_dir, done.data_dir, tmp_path / "results", tmp_path / "figures")
    shutil.copytree(done.results_dir, paths.results_dir)
    probes = read_cards(paths.latents_table(MODEL))
    stale = [replace(probe, made_from="another") if i else probe for i, probe in enumerate(probes)]
    write_cards(paths.latents_table(MODEL), stale)
    flags = ["--model_name", MODEL, *folder_flags(paths), "--setting", "normal"]
    assert visualize.main(flags) == 0
    assert f"latent cards of {len(probes) - 1} probes" in capsys.readouterr().out
    page = (paths.figures(MODEL, "normal") / "report.html").read_text()
    assert page.count('"neuronpedia"') == 1


def test_a_second_report_of_the_same_is_not_made(done, tmp_path, capsys):
    paths = Paths(done.text_dir, done.data_dir, tmp_path / "results", tmp_path / "figures")
    shutil.copytree(done.results_dir, paths.results_dir)
    flags = ["--model_name", MODEL, *folder_flags(paths), "--setting", "OOD"]
    assert visualize.main(flags) == 0
    said = capsys.readouterr().out
    report = paths.figures(MODEL, "OOD") / "report.html"
    first = report.stat()
    assert visualize.main(flags) == 0
    again = capsys.readouterr().out
    assert "up to date" in again
    assert again.splitlines()[-4:] == said.splitlines()[-4:]
    assert report.stat().st_mtime_ns == first.st_mtime_ns
    assert visualize.main([*flags, "--overwrite"]) == 0
    assert report.stat().st_mtime_ns > first.st_mtime_ns


def test_a_kept_probe_scores_the_texts_it_was_tested_on_as_its_table_says(done, tmp_path, capsys):
    """From texts through model and SAE to the AUC in the table."""
    common = ["--model_name", MODEL, *folder_flags(done)]
    table = pd.read_csv(done.sae_probe_table(MODEL, "normal"))
    (row, *_) = table[(table["method"] == "sae_probe") & (table["k"] == 16)].to_dict("records")
    about = ["--dataset", row["dataset"], "--sae_id", row["sae_id"], "--k", "16"]
    output = ["--output", str(tmp_path / "probe")]
    assert export_probe.main([*common, *about, *output]) == 0
    dataset = load_dataset(done, row["dataset"])
    labels = dataset.labels[:260]
    drawn = split(Condition("normal"), labels)
    texts = pd.DataFrame({"prompt": [dataset.texts[i] for i in drawn.test]})
    texts.to_csv(tmp_path / "texts.csv", index=False)
    capsys.readouterr()
    given = ["--probe", str(tmp_path / "probe"), "--texts", str(tmp_path / "texts.csv")]
    assert score_texts.main([*given, *folder_flags(done)]) == 0
    scores = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert roc_auc_score(drawn.y_test, scores["score"]) == pytest.approx(row["test_auc"], abs=2e-3)


def test_kept_probes_are_scored_on_the_texts_of_others(done, tmp_path, capsys):
    """On their own dataset as the table says; a probe whose weights are gone is a line."""
    results = tmp_path / "results"
    shutil.copytree(done.results_dir, results)
    paths = replace(done, results_dir=results)
    common = ["--model_name", MODEL, *folder_flags(paths)]
    assert transfer.main([*common, "--k", "16"]) == 0
    matrix = pd.read_csv(paths.transfer_table(MODEL))
    table = pd.read_csv(paths.sae_probe_table(MODEL, "normal"))
    assert set(matrix["trained_on"]) == set(matrix["tested_on"]) - {f"{NAMES[0]}_OOD"} == set(NAMES)
    for row in matrix[matrix["trained_on"] == matrix["tested_on"]].to_dict("records"):
        if row["probe"] == transfer.ON_LATENTS:
            mine = table[(table["dataset"] == row["trained_on"]) & (table["k"] == 16)]
            mine = mine[mine["sae_id"] == row["sae_id"]]
            assert row["test_auc"] == pytest.approx(mine["test_auc_fresh"].iloc[0], abs=1e-6)
    shutil.rmtree(paths.sae_probe_table(MODEL, "normal").parent / "probes")
    capsys.readouterr()
    assert transfer.main([*common, "--k", "16"]) == 1
    assert "were not kept: `make train-sae-probes" in capsys.readouterr().err


def test_the_report_stands_alone_and_names_what_is_missing(done):
    page = (done.figures(MODEL) / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert not re.search(r"(?:src|href)=['\"]https?:", page)
    assert "figure label_noise" in page
    assert (done.figures(MODEL) / "settings.pdf").stat().st_size > 1000
    comparison = pd.read_csv(done.comparison_table(MODEL))
    assert list(comparison.columns[:6]) == [
        "setting",
        "condition",
        "contender",
        "mean_test_auc",
        "n_datasets",
        "n_pairs",
    ]


def test_a_second_run_makes_nothing_twice(done, capsys):

    def times() -> dict:
        files = (path for path in done.data_dir.rglob("*") if path.is_file())
        return {path: path.stat().st_mtime_ns for path in files if ".locks" not in path.parts}

    before = times()
    run_all(done)
    assert times() == before
    said = capsys.readouterr().out
    assert said.count(" 0 to do") == 12


def test_a_run_with_nothing_to_do_needs_no_right_to_write(done, monkeypatch, capsys):
    """A read-only mount of somebody's finished work."""

    def refuse(path: str, timeout: float):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files, "FileLock", refuse)
    common = ["--model_name", MODEL, *folder_flags(done), "--datasets", *NAMES]
    assert generate_model_activations.main([*common, "--max_rows", "260"]) == 0
    assert generate_sae_activations_optimized.main([*common, "--setting", "all"]) == 0
    assert train_baselines.main([*common, "--layers", "2"]) == 0
    assert train_sae_probes.main(common) == 0
    assert capsys.readouterr().out.count(" 0 to do") == 5
    with pytest.raises(UserError, match="cannot be written"):
        train_sae_probes.main([*common, "--ks", "3"])


def test_all_settings_in_one_run_make_what_each_makes_alone(done, tmp_path, capsys):
    moved = Paths(done.text_dir, done.data_dir, tmp_path / "results", tmp_path / "figures")
    flags = ["--model_name", MODEL, *folder_flags(moved), "--n_jobs", "1", "--setting", "all"]
    arguments = [*flags, "--datasets", NAMES[1], "--method", "logreg", "--layers", "2"]
    # the dataset has no OOD partner: that setting is named, the others are done
    assert train_baselines.main(arguments) == 1
    assert "OOD: none of the datasets has an OOD partner" in capsys.readouterr().err
    normal = pd.read_csv(moved.baseline_table(MODEL, "normal", 2))
    alone = pd.read_csv(done.baseline_table(MODEL, "normal", 2))
    alone = alone[(alone["dataset"] == NAMES[1]) & (alone["method"] == "logreg")]
    assert normal["test_auc"].tolist() == alone["test_auc"].tolist()
    assert all(
        moved.baseline_table(MODEL, setting).is_file()
        for setting in ("scarcity", "class_imbalance", "label_noise")
    )
    with pytest.raises(UserError, match="--conditions are of one setting"):
        train_baselines.main([*flags, "--conditions", "10"])


@pytest.mark.parametrize("n_jobs", ["1", "2"])
def test_tables_are_the_same_bytes_for_any_number_of_workers_and_order(done, tmp_path, n_jobs):
    moved = Paths(done.text_dir, done.data_dir, tmp_path / "results", tmp_path / "figures")
    flags = [
        "--model_name",
        MODEL,
        *folder_flags(moved),
        "--datasets",
        *NAMES,
        "--n_jobs",
        n_jobs,
        "--randomize_order",
    ]
    assert train_sae_probes.main(flags) == 0
    assert (
        moved.sae_probe_table(MODEL, "normal").read_bytes()
        == done.sae_probe_table(MODEL, "normal").read_bytes()
    )
    assert train_baselines.main([*flags, "--layer", "2"]) == 0
    assert (
        moved.baseline_table(MODEL, "normal", 2).read_bytes()
        == done.baseline_table(MODEL, "normal", 2).read_bytes()
    )


def test_ood_files_hold_the_ood_rows(done):
    """Not the in-distribution test rows (the defect of the published OOD numbers)."""
    folder = done.sae_activations_folder(MODEL, "OOD")
    stem = f"{NAMES[0]}_2_width_96_topk_8"
    ood = torch.load(folder / f"{stem}_X_test_sae.pt", weights_only=True)
    inside = torch.load(
        done.sae_activations_folder(MODEL, "normal") / f"{stem}_X_test_sae.pt", weights_only=True
    )
    assert len(ood) == 60
    assert not any((row == inside.to_dense()).all(dim=1).any() for row in ood.to_dense()[:5])


def test_activations_equal_transformers_own_hidden_states(done):
    hooks = ["hook_embed", "blocks.2.hook_resid_post"]
    model = HookedModel(get_model(MODEL), hooks, done, "cpu")
    texts = [*load_dataset(done, NAMES[0]).texts[:7], "the"]
    pooled = model.pooled(texts, "test")
    reference = BertModel.from_pretrained(done.language_model(MODEL))
    for i, text in enumerate(texts):
        inputs = model.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            states = reference(**inputs, output_hidden_states=True).hidden_states
        for hook, state in zip(hooks, (states[0], states[3])):
            assert torch.allclose(pooled[hook][i], state[0].mean(dim=0), atol=1e-4)


def test_a_texts_activations_do_not_depend_on_its_batch(done):
    model = HookedModel(get_model(MODEL), ["blocks.5.hook_resid_post"], done, "cpu")
    texts = [*load_dataset(done, NAMES[0]).texts[:20], "the cat " * 40]
    together, alone = model.pooled(texts, "test"), model.pooled(texts, "test", batch_size=1)
    assert torch.allclose(
        together["blocks.5.hook_resid_post"], alone["blocks.5.hook_resid_post"], atol=1e-4
    )


def test_no_text_that_can_be_tested_is_trained_on(done):
    args = train_saes.make_parser().parse_args(["--model_name", MODEL, *TRAINING])
    training = train_saes.Training.of(args, get_model(MODEL))
    texts = set(train_saes.training_texts(done, MODEL, training))
    for name in NAMES:
        assert not texts & set(load_dataset(done, name).texts[:260])
    assert not texts & set(load_ood(done, NAMES[0]).texts)
    assert texts & set(load_dataset(done, "4_corpus").texts)


def test_an_sae_that_was_trained_from_something_else_is_made_again(done, tmp_path, capsys):
    """Other flags, texts or rows that a probe may be tested on: told apart without a training."""
    folder = done.saes(MODEL) / "layer_2" / "width_96" / "topk_8"
    info, flags = get_model(MODEL), ["--model_name", MODEL, *folder_flags(done), *TRAINING]

    def source_of(paths, *more: str) -> str:
        args = train_saes.make_parser().parse_args([*flags, *more])
        return train_saes.training_source(paths, info, 2, train_saes.Training.of(args, info))

    source = source_of(done)
    assert train_saes.is_done(folder, source)
    assert train_saes.main(flags) == 0
    assert "1 SAEs, 1 done, 0 to do" in capsys.readouterr().out
    for more in (["--seed", "7"], ["--n_samples", "10000"], ["--corpus", "4_corpus"]):
        assert not train_saes.is_done(folder, source_of(done, *more))
    assert "was trained from something else" in capsys.readouterr().out
    # activations of one more dataset: its texts may now be tested on
    elsewhere = copied(done, tmp_path)
    path = elsewhere.model_activations(MODEL, NAMES[0], "blocks.2.hook_resid_post")
    shutil.copy(path, elsewhere.model_activations(MODEL, "4_corpus", "blocks.2.hook_resid_post"))
    assert source_of(elsewhere) != source
    # an SAE of before this was written down is taken as it is
    older = elsewhere.saes(MODEL) / "layer_2" / "width_96" / "topk_8"
    figures = json.loads((older / "training.json").read_text())
    del figures["made_from"]
    (older / "training.json").write_text(json.dumps(figures))
    assert train_saes.is_done(older, "anything")


def copied(done: Paths, tmp_path) -> Paths:
    shutil.copytree(done.data_dir, tmp_path / "data")
    clear_caches()
    return Paths(done.text_dir, tmp_path / "data", tmp_path / "results", tmp_path / "figures")


@pytest.mark.parametrize("damage", ["missing", "truncated", "nan", "shape", "rows", "other texts"])
def test_a_bad_activation_file_is_named_and_the_rest_is_done(done, tmp_path, capsys, damage):
    paths = copied(done, tmp_path)
    path = paths.model_activations(MODEL, NAMES[1], "blocks.2.hook_resid_post")
    tensor = torch.load(path, weights_only=True)
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "nan":
        torch.save(torch.where(torch.arange(len(tensor))[:, None] == 7, float("nan"), tensor), path)
    elif damage == "shape":
        torch.save(tensor[:, :100].clone(), path)
    elif damage == "rows":
        torch.save(tensor[:100].clone(), path)
    else:
        description = json.loads(path.with_suffix(".json").read_text())
        path.with_suffix(".json").write_text(json.dumps({**description, "texts_sha256": "0"}))
    flags = [
        "--model_name",
        MODEL,
        *folder_flags(paths),
        "--datasets",
        *NAMES,
        "--layer",
        "2",
        "--method",
        "logreg",
    ]
    assert train_baselines.main(flags) == 1
    said = capsys.readouterr().err
    assert said.count(str(path)) == 1
    assert "make generate-model-acts" in said
    assert set(pd.read_csv(paths.baseline_table(MODEL, "normal", 2))["dataset"]) == {
        NAMES[0],
        NAMES[2],
    }


def test_missing_sae_activations_are_listed_with_their_command(done, tmp_path, capsys):
    paths = copied(done, tmp_path)
    shutil.rmtree(paths.sae_activations_folder(MODEL, "normal"))
    flags = [
        "--model_name",
        MODEL,
        *folder_flags(paths),
        "--datasets",
        *NAMES,
        "--target_sae_id",
        "layer_2/width_96/topk_8",
    ]
    assert train_sae_probes.main(flags) == 1
    assert capsys.readouterr().err.count("make generate-sae-acts-optimized") == 3


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (
            "train_baselines.py",
            ["--model_name", "gemma-2-9"],
            "unknown model 'gemma-2-9': did you mean gemma-2-9b",
        ),
        ("train_baselines.py", ["--setting", "scarcty"], "invalid choice: 'scarcty'"),
        (
            "train_sae_probes.py",
            ["--datasets", "1_frst"],
            "unknown dataset '1_frst': did you mean 1_first",
        ),
        ("train_sae_probes.py", ["--model", "gemma-2-9b"], "unrecognized arguments: --model"),
        ("generate_sae_activations_optimized.py", ["--device", "cudaa"], "--device"),
        ("visualize.py", ["--model_name", "llama-3.1-8b"], "no result tables of llama-3.1-8b"),
        ("train_saes.py", ["--widths", "4"], "--k_active 32 is more than the 4 latents"),
    ],
)
def test_mistakes_get_one_line_and_no_traceback(done, script, arguments, message):
    command = [
        sys.executable,
        str(ROOT / script),
        *folder_flags(done),
        *([] if "--model" in " ".join(arguments) else ["--model_name", MODEL]),
    ]
    finished = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert finished.returncode != 0
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_no_data(script, tmp_path):
    finished = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", script, "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert finished.returncode == 0
    assert "usage:" in finished.stdout
    imported = {
        line.rsplit("|", 1)[1].strip()
        for line in finished.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert not imported & {"torch", "transformers", "sae_lens"}


def test_empty_folders_name_the_next_command(tmp_path):
    paths = Paths(tmp_path / "t", tmp_path / "d", tmp_path / "r", tmp_path / "f")
    clear_caches()
    for main in (
        generate_model_activations.main,
        generate_sae_activations_optimized.main,
        train_baselines.main,
        train_sae_probes.main,
    ):
        with pytest.raises(UserError, match=r"make fetch-data|train_saes\.py"):
            main(["--model_name", MODEL, *folder_flags(paths)])


def test_encoded_rows_equal_sae_lens_on_the_stored_activations(done):
    from sae_lens import SAE

    sae = SAE.load_from_disk(done.saes(MODEL) / "layer_2" / "width_96" / "topk_8")
    x = torch.load(
        done.model_activations(MODEL, NAMES[2], "blocks.2.hook_resid_post"), weights_only=True
    )
    with torch.no_grad():
        expected = sae.encode(x).numpy()
    from utils.saes.store import SaeActivations

    stored = SaeActivations(done, MODEL, NAMES[2], "layer_2/width_96/topk_8").rows()
    assert np.array_equal(stored.toarray() != 0, expected != 0)
    assert np.allclose(stored.toarray(), expected, rtol=1e-4)


def test_the_notebook_call_gives_the_tables_numbers(done):
    """On the same SAE, datasets and rows as the scripts."""
    from sae_lens import SAE

    sae = SAE.load_from_disk(done.saes(MODEL) / "layer_2" / "width_96" / "topk_8")
    found = probe_sae(sae, MODEL, "blocks.2.hook_resid_post", NAMES[:2], ks=(1, 16), paths=done)
    table = pd.read_csv(done.sae_probe_table(MODEL, "normal"))
    table = table[table["sae_id"] == "layer_2/width_96/topk_8"].set_index(["dataset", "k"])
    for row in found[found["method"] == "sae_probe"].to_dict("records"):
        assert row["test_auc"] == pytest.approx(
            table.loc[(row["dataset"], row["k"]), "test_auc"], abs=1e-6
        )
        assert row["mean_l0"] <= 8
    logreg = (
        pd.read_csv(done.baseline_table(MODEL, "normal", 2))
        .query("method == 'logreg'")
        .set_index("dataset")
    )
    for row in found[found["method"] == "logreg"].to_dict("records"):
        assert row["test_auc"] == pytest.approx(logreg.loc[row["dataset"], "test_auc"], abs=1e-9)
    with pytest.raises(UserError, match="returned shape"):
        probe_sae(Flat(), MODEL, "blocks.2.hook_resid_post", NAMES[:1], paths=done)


class Flat:
    """An object whose encode is no SAE's."""

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(dim=1)


def test_figures_do_not_depend_on_the_users_matplotlib(done, tmp_path):
    """A notebook's backend, a matplotlibrc that asks for LaTeX, two dollar signs in a name."""
    paths = Paths(done.text_dir, done.data_dir, tmp_path / "results", tmp_path / "figures")
    shutil.copytree(done.results_dir, paths.results_dir)
    for path in paths.results_dir.rglob("*.csv"):
        path.write_text(path.read_text().replace(NAMES[1], "from $5 to $9_a"))
    rc = tmp_path / "matplotlibrc"
    rc.write_text("text.usetex: True\nfigure.dpi: 7\nbackend: qtagg\n")
    environment = os.environ | {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "MATPLOTLIBRC": str(rc),
    }
    flags = ["--model_name", MODEL, *folder_flags(paths), "--setting", "OOD"]
    assert visualize.main(flags) == 0
    ours = {p.name: p.read_bytes() for p in paths.figures(MODEL, "OOD").glob("settings*.png")}
    command = [sys.executable, "visualize.py", *flags, "--overwrite"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "cannot be drawn" not in run.stdout
    theirs = {p.name: p.read_bytes() for p in paths.figures(MODEL, "OOD").glob("settings*.png")}
    assert ours
    assert ours == theirs  # the same bytes as with nothing set


def test_one_figure_that_fails_is_one_left_out(done, tmp_path, monkeypatch, capsys):
    paths = Paths(done.text_dir, done.data_dir, tmp_path / "results", tmp_path / "figures")
    shutil.copytree(done.results_dir, paths.results_dir)
    monkeypatch.setattr(study, "setting_bars", lambda _: 1 / 0)
    flags = ["--model_name", MODEL, *folder_flags(paths), "--setting", "normal"]
    assert visualize.main(flags) == 1
    said = capsys.readouterr()
    assert "figure settings: it cannot be drawn (ZeroDivisionError" in said.err
    assert (paths.figures(MODEL, "normal") / "report.html").is_file()
    assert (paths.figures(MODEL, "normal") / "normal_quiver.png").is_file()


def test_saebench_files_hold_the_tables_means(done, tmp_path):
    paths = Paths(done.text_dir, done.data_dir, tmp_path / "results", done.figures_dir)
    shutil.copytree(done.results_dir, paths.results_dir)
    flags = [
        "--model_name",
        MODEL,
        *folder_flags(paths),
        "--datasets",
        *NAMES,
        "--export_saebench",
        "--n_jobs",
        "1",
    ]
    assert train_sae_probes.main(flags) == 0
    result = json.loads(paths.saebench(MODEL, "layer_2/width_96/topk_8").read_text())
    table = pd.read_csv(paths.sae_probe_table(MODEL, "normal"))
    table = table[table["sae_id"] == "layer_2/width_96/topk_8"]
    assert result["eval_type_id"] == "sparse_probing_sae_probes"
    assert result["sae_cfg_dict"] == {"architecture": "topk", "d_in": 384, "d_sae": 96}
    assert {1, 2, 5} <= set(result["eval_config"]["ks"])
    for k in (1, 2, 5):
        expected = table[table["k"] == k]["test_auc"].mean()
        assert result["eval_result_metrics"]["sae"][f"sae_top_{k}_test_auc"] == pytest.approx(
            expected
        )
    assert {detail["dataset_name"] for detail in result["eval_result_details"]} == set(NAMES)
    logreg = (
        pd.read_csv(paths.baseline_table(MODEL, "normal", 2))
        .query("method == 'logreg'")["test_acc"]
        .mean()
    )
    assert result["eval_result_metrics"]["llm"]["llm_test_accuracy"] == pytest.approx(logreg)
    assert not list(paths.results_dir.glob("saebench/*/*random*"))  # a control is no SAE


def test_a_second_run_does_nothing_whatever_fitted_the_first(done, tmp_path, capsys):
    """What was asked for is the key, what fitted it (lbfgs here) is not."""
    paths = Paths(done.text_dir, done.data_dir, tmp_path / "results", done.figures_dir)
    flags = [
        "--model_name",
        MODEL,
        *folder_flags(paths),
        "--datasets",
        NAMES[0],
        "--reg_type",
        "l2",
        "--ks",
        "4",
        "--n_jobs",
        "1",
    ]
    assert train_sae_probes.main(flags) == 0
    before = paths.sae_probe_table(MODEL, "normal").read_bytes()
    capsys.readouterr()
    assert train_sae_probes.main(flags) == 0
    assert "0 to do" in capsys.readouterr().out
    assert paths.sae_probe_table(MODEL, "normal").read_bytes() == before
    fitted = pd.read_csv(paths.sae_probe_table(MODEL, "normal"))["fitted_by"]
    assert set(fitted.dropna()) == {"lbfgs"}
