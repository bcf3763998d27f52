"""What was made from something else is missing, is named and made again, from texts to report."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import MODEL, folder_flags, write_texts

import generate_model_activations
import generate_sae_activations_optimized
import train_baselines
import train_sae_probes
import visualize
from checks import status
from utils import activations
from utils.activations import load_rows, write_activations
from utils.datasets import load_dataset, load_ood
from utils.models import get_model
from utils.results.findings import Kind
from utils.results.sources import Sources
from utils.results.tidy import load_results
from utils.runtime.errors import UserError
from utils.saes.store import SaeActivations, SaeFiles, made_from
from utils.settings import NORMAL, SHIFTED, Condition

NAME, SAE, D_MODEL, D_SAE = "1_first", "layer_2/mine", 384, 64
HOOK = "blocks.2.hook_resid_post"


def write_rows(paths, n_rows: int | None = None, seed: int = 0) -> None:
    """Activations whose first dimension tells the label, of the first ``n_rows`` texts."""
    dataset = load_dataset(paths, NAME)
    X = np.random.default_rng(seed).normal(size=(len(dataset), D_MODEL)).astype(np.float32)
    X[:, 0] += 2 * dataset.labels
    texts = dataset.texts[:n_rows]
    path = paths.model_activations(MODEL, NAME, HOOK)
    write_activations(path, torch.from_numpy(X[: len(texts)]), texts, {"hook_name": HOOK})


def write_sae(paths, seed: int) -> None:
    rng = np.random.default_rng(seed)
    folder = paths.saes(MODEL) / SAE
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "params.npz",
        W_enc=rng.normal(size=(D_MODEL, D_SAE)).astype(np.float32),
        W_dec=rng.normal(size=(D_SAE, D_MODEL)).astype(np.float32),
        b_enc=np.zeros(D_SAE, dtype=np.float32),
        b_dec=np.zeros(D_MODEL, dtype=np.float32),
        threshold=np.full(D_SAE, 5.0, dtype=np.float32),
    )


def encode(paths) -> int:
    flags = ["--model_name", MODEL, *folder_flags(paths), "--setting", "normal", "--device", "cpu"]
    flags += ["--controls", "none"]
    return generate_sae_activations_optimized.main(flags)


def probe(paths) -> int:
    flags = ["--model_name", MODEL, *folder_flags(paths), "--n_jobs", "1"]
    baselines = train_baselines.main([*flags, "--layers", "2", "--method", "logreg,pca"])
    probes = [*flags, "--ks", "1", "16", "--controls", "raw_dims"]
    return max(baselines, train_sae_probes.main(probes))


def tables(paths) -> dict[str, pd.DataFrame]:
    found = {
        "baselines": pd.read_csv(paths.baseline_table(MODEL, "normal", 2)),
        "probes": pd.read_csv(paths.sae_probe_table(MODEL, "normal")),
    }
    assert all(not table.duplicated(["method", "sae_id", "k"]).any()
               for table in found.values() if "k" in table)  # fmt: skip
    return found


@pytest.fixture
def done(paths):
    write_texts(paths, [NAME])
    write_rows(paths)
    write_sae(paths, seed=1)
    assert encode(paths) == 0
    assert probe(paths) == 0
    return paths


def mend_labels(paths) -> None:
    """Exchange the labels of some rows: as many of each class as before."""
    table = pd.read_csv(paths.texts(NAME))
    target = table["target"].sample(frac=1, random_state=3).to_numpy()
    table.assign(target=target).to_csv(paths.texts(NAME), index=False)


def mend_prompt(paths) -> None:
    """Mend a text and read it again."""
    table = pd.read_csv(paths.texts(NAME))
    table.loc[5, "prompt"] += " mended"
    table.to_csv(paths.texts(NAME), index=False)
    write_rows(paths)


CHANGES = {
    "the SAE was trained again": (lambda p: write_sae(p, seed=2), {"probes": ["sae_probe"]}),
    "the model's activations are others": (
        lambda p: write_activations_again(p),
        {"probes": ["raw_dims", "sae_probe"], "baselines": ["logreg", "pca"]},
    ),
    "labels were mended": (
        mend_labels,
        {"probes": ["raw_dims", "sae_probe"], "baselines": ["logreg", "pca"]},
    ),
    "a prompt was mended": (
        mend_prompt,
        {"probes": ["raw_dims", "sae_probe"], "baselines": ["logreg", "pca"]},
    ),
    "a trial on fewer rows": (
        lambda p: write_rows(p, n_rows=250),
        {"probes": ["raw_dims", "sae_probe"], "baselines": ["logreg", "pca"]},
    ),
}


def write_activations_again(paths) -> None:
    dataset = load_dataset(paths, NAME)
    X = torch.randn(len(dataset), D_MODEL, generator=torch.Generator().manual_seed(9))
    path = paths.model_activations(MODEL, NAME, HOOK)
    write_activations(path, X, dataset.texts, {"hook_name": HOOK, "model": "another"})


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_input_is_seen_named_and_made_again(done, change, capsys, tmp_path_factory):
    make, expected = CHANGES[change]
    before = tables(done)
    make(done)
    # stale rows are in no comparison, and status and report say so
    results = load_results(done, MODEL, ("normal",))
    stale = [found.what for found in results.findings if found.kind is Kind.STALE]
    assert len(stale) == len(expected)
    assert all("made from other inputs" in what for what in stale)
    left = set(results.tidy["method"])
    assert not left & {method for methods in expected.values() for method in methods}
    said = status.describe(done, get_model(MODEL, done), ("normal",))
    assert "made from other inputs" in said
    assert "latents of layer_2/mine on 1_first, normal: made from" in said
    capsys.readouterr()
    assert encode(done) == 0
    assert "1 to do" in capsys.readouterr().out
    assert probe(done) == 0
    assert "were made from other inputs, and are made again" in capsys.readouterr().out
    after = tables(done)
    for name, table in before.items():
        changed = sorted(
            {
                method
                for method in table["method"]
                if not table[table["method"] == method]
                .reset_index(drop=True)
                .equals(after[name][after[name]["method"] == method].reset_index(drop=True))
            }
        )
        assert changed == sorted(expected.get(name, []))
    # what there is now is what a fresh run on these inputs makes
    for path in done.results_dir.rglob("*.csv"):
        path.unlink()
    assert probe(done) == 0
    for name, table in tables(done).items():
        pd.testing.assert_frame_equal(table, after[name])
    assert not [f for f in load_results(done, MODEL).findings if f.kind is Kind.STALE]


def test_nothing_changed_nothing_made(done, capsys):
    before = {path: path.read_bytes() for path in done.results_dir.rglob("*.csv")}
    assert encode(done) == 0
    assert probe(done) == 0
    assert "made again" not in capsys.readouterr().out
    assert {path: path.read_bytes() for path in done.results_dir.rglob("*.csv")} == before


def test_probes_are_not_made_of_another_saes_latents(done, capsys):
    write_sae(done, seed=2)
    assert probe(done) == 1  # the latents on disk are those of the first SAE
    assert "was made from another SAE than there is now" in capsys.readouterr().err


def test_tables_without_the_column_are_read_and_named_as_unchecked(done, capsys):
    path = done.baseline_table(MODEL, "normal", 2)
    pd.read_csv(path).drop(columns="made_from").to_csv(path, index=False)
    results = load_results(done, MODEL, ("normal",))
    (finding,) = [found for found in results.findings if found.kind is Kind.UNCHECKED]
    assert "2 rows do not say" in finding.what
    assert {"logreg", "pca"} <= set(results.tidy["method"])
    assert probe(done) == 0
    assert "2 probes; 2 done" in capsys.readouterr().out


def test_results_stand_when_their_inputs_are_deleted(done):
    n_rows = len(load_results(done, MODEL).tidy)
    for path in done.model_activations_folder(MODEL).iterdir():
        path.unlink()
    files = SaeFiles(done, MODEL, "normal", NAME, SAE)
    for path in files.description_path.parent.glob("*.pt"):
        path.unlink()
    results = load_results(done, MODEL)
    assert len(results.tidy) == n_rows
    assert not [found for found in results.findings if found.kind is Kind.STALE]


def test_an_interrupted_second_making_is_completed(done):
    """New rows stand behind the old ones of their keys until the run ends."""
    path = done.sae_probe_table(MODEL, "normal")
    whole = path.read_text()
    write_sae(done, seed=2)
    assert encode(done) == 0
    assert probe(done) == 0
    after = path.read_text()
    header, *old = whole.splitlines()
    new = [line for line in after.splitlines()[1:] if line not in old]
    path.write_text("\n".join([header, *old, *new[:1]]) + "\n")  # killed after the first
    tidy = load_results(done, MODEL).tidy
    assert not tidy.duplicated(["method", "sae_id", "k"]).any()
    assert probe(done) == 0
    assert path.read_text() == after


def test_every_run_that_made_rows_is_in_settings_json(done):
    path = done.sae_probe_table(MODEL, "normal").with_name("settings.json")
    flags = ["--model_name", MODEL, *folder_flags(done), "--n_jobs", "1", "--ks", "2"]
    assert train_sae_probes.main([*flags, "--protocol", "nested"]) == 0
    runs = json.loads(path.read_text())["runs"]
    assert [run["settings"]["protocol"] for run in runs] == [["paper"], ["nested"]]
    assert visualize.main(["--model_name", MODEL, *folder_flags(done)]) == 0
    page = (done.figures(MODEL) / "report.html").read_text()
    assert page.count("&#34;nested&#34;") == 1
    assert page.count("&#34;scikit-learn&#34;") == 1


def test_model_activations_of_other_texts_are_missing(paths, capsys):
    """The stage itself, without a model: what it would do is what it says."""
    write_texts(paths, [NAME])
    write_rows(paths)
    info = get_model(MODEL, paths)
    reading = generate_model_activations.Reading((HOOK,), "cpu", "auto", None, None)
    done = generate_model_activations._is_done
    assert done(paths, info, NAME, False, reading)
    table = pd.read_csv(paths.texts(NAME))
    table.loc[5, "prompt"] += " mended"
    table.to_csv(paths.texts(NAME), index=False)
    assert not done(paths, info, NAME, False, reading)
    assert "made with other texts" in capsys.readouterr().out


def test_an_older_tensor_never_stands_under_a_new_description(done, monkeypatch):
    """A run that ends between the two writes leaves no file, not the old one with a new label."""
    path = done.model_activations(MODEL, NAME, HOOK)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(activations, "save_tensor", full)
    with pytest.raises(OSError, match="No space"):
        write_activations_again(done)
    assert not path.exists()


def test_a_tensor_that_was_swapped_is_seen(done):
    before = Sources(done, MODEL).of({"dataset": NAME, "layer": 2, "method": "logreg"}, NORMAL)
    path = done.model_activations(MODEL, NAME, HOOK)
    tensor = torch.load(path, weights_only=True)
    torch.save(tensor.flip(0).contiguous(), path)
    after = Sources(done, MODEL).of({"dataset": NAME, "layer": 2, "method": "logreg"}, NORMAL)
    assert before != after


def test_a_set_that_was_not_finished_is_not_read(done):
    files = SaeFiles(done, MODEL, "normal", NAME, SAE)
    files.description_path.unlink()
    with pytest.raises(UserError, match="not finished"):
        SaeActivations(done, MODEL, NAME, SAE).condition(Condition("normal"))


def test_latents_of_another_hook_or_release_are_not_taken(done):
    stored = SaeActivations(done, MODEL, NAME, SAE)
    stored.require_hook(HOOK)
    with pytest.raises(UserError, match=r"are of blocks\.2\.hook_resid_post, not of"):
        stored.require_hook("blocks.2.hook_mlp_out")
    files = SaeFiles(done, MODEL, "normal", NAME, SAE)
    assert files.is_done(made_from(files, HOOK, "its files"))
    assert files.changed(made_from(files, HOOK, "gpt2-small-res-jb")) == ["another release"]
    assert not files.changed(made_from(files, HOOK))  # a reader does not know, and does not compare


def write_ood(paths, n_rows: int) -> None:
    texts = [f"shifted text {i}" for i in range(n_rows)]
    table = pd.DataFrame({"prompt": texts, "target": [i % 2 for i in range(n_rows)]})
    paths.ood_texts(NAME).parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(paths.ood_texts(NAME), index=False)


def test_an_ood_file_that_grows_at_its_end_is_seen(done):
    row = {"dataset": NAME, "layer": 2, "method": "logreg"}
    write_ood(done, 60)
    shifted = load_ood(done, NAME)
    X = torch.randn(60, D_MODEL, generator=torch.Generator().manual_seed(0))
    path = done.model_activations(MODEL, NAME, HOOK, ood=True)
    write_activations(path, X, shifted.texts, {"hook_name": HOOK})
    before = Sources(done, MODEL).of(row, SHIFTED)
    assert before is not None
    write_ood(done, 90)
    assert Sources(done, MODEL).of(row, SHIFTED) != before
    with pytest.raises(UserError, match="has 60 rows"):
        load_rows(done, MODEL, NAME, HOOK, ood=True)
    reading = generate_model_activations.Reading((HOOK,), "cpu", "auto", None, None)
    is_done = generate_model_activations._is_done
    assert not is_done(done, get_model(MODEL, done), NAME, True, reading)


def test_latents_stay_current_when_their_activations_are_deleted_after_a_trial(done):
    """Of how many rows they are they say themselves."""
    write_rows(done, n_rows=250)
    assert encode(done) == 0
    assert probe(done) == 0
    path = done.model_activations(MODEL, NAME, HOOK)
    path.unlink()
    path.with_suffix(".json").unlink()
    stored = SaeActivations(done, MODEL, NAME, SAE)
    assert stored.rows().shape == (250, D_SAE)
    assert not [f for f in load_results(done, MODEL).findings if f.kind is Kind.STALE]


def test_another_precision_is_made_again(done, capsys):
    info, is_done = get_model(MODEL, done), generate_model_activations._is_done
    dataset = load_dataset(done, NAME)
    path = done.model_activations(MODEL, NAME, HOOK)
    described: dict[str, object] = {"hook_name": HOOK, "dtype": "bfloat16"}
    write_activations(path, torch.zeros(len(dataset), D_MODEL), dataset.texts, described)
    for dtype, expected in (("auto", True), ("bfloat16", True), ("float32", False)):
        reading = generate_model_activations.Reading((HOOK,), "cpu", dtype, None, None)
        assert is_done(done, info, NAME, False, reading) is expected
