"""Faults met by a newcomer who attacked the scripts: each is one line, the rest is done, and
nothing finished is lost.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, clear_caches, folder_flags, write_texts
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

import generate_model_activations
import generate_sae_activations_optimized as generator
import train_baselines
import train_sae_probes
import visualize
from utils.activations import write_activations
from utils.datasets import load_dataset
from utils.names import set_stem
from utils.results.tables import sae_probe_table
from utils.runtime.errors import UserError
from utils.saes.catalog import list_sae_ids, open_sae

MODEL, SAE_ID = "all-MiniLM-L6-v2", "layer_2/s"
NAMES = ["1_first", "2_second"]


@pytest.fixture
def ready(paths):
    """Two datasets with activations and one SAE."""
    write_texts(paths, NAMES, n_rows=300)
    rng = np.random.default_rng(0)
    for name in NAMES:
        texts = load_dataset(paths, name).texts
        path = paths.model_activations(MODEL, name, "blocks.2.hook_resid_post")
        write_activations(
            path, torch.from_numpy(rng.normal(size=(300, 384)).astype(np.float32)), texts, {}
        )
    write_sae(paths)
    return paths


def write_sae(paths, seed: int = 0, **changes) -> None:
    torch.manual_seed(seed)
    sae = TopKSAE(TopKSAEConfig(d_in=384, d_sae=200, k=8))
    with torch.no_grad():
        sae.W_enc.normal_()
        for place, value in changes.items():
            getattr(sae, place)[0] = value
    sae.save_model(paths.saes(MODEL) / SAE_ID)


def flags(paths, *more: str) -> list[str]:
    return ["--model_name", MODEL, *folder_flags(paths), *more]


def encode(paths) -> int:
    return generator.main(flags(paths, "--setting", "normal", "--controls", "none"))


def probe(paths, *more: str) -> int:
    return train_sae_probes.main(
        flags(paths, "--ks", "4", "--n_jobs", "1", "--controls", "none", *more)
    )


def test_overwrite_keeps_the_old_row_when_the_new_one_cannot_be_made(ready):
    assert encode(ready) == 0
    assert probe(ready) == 0
    before = ready.sae_probe_table(MODEL, "normal").read_bytes()
    path = ready.sae_activations(MODEL, "normal", set_stem(NAMES[0], SAE_ID), "X_train_sae")
    content = path.read_bytes()
    path.write_bytes(content[:500])
    assert probe(ready, "--overwrite") == 1
    assert ready.sae_probe_table(MODEL, "normal").read_bytes() == before
    path.write_bytes(content)
    assert probe(ready, "--overwrite") == 0
    assert ready.sae_probe_table(MODEL, "normal").read_bytes() == before


def test_another_sae_under_the_same_id_is_encoded_anew(ready, capsys):
    assert encode(ready) == 0
    write_sae(ready, seed=1)
    capsys.readouterr()
    assert encode(ready) == 0
    assert "0 done, 2 to do" in capsys.readouterr().out


def test_the_remedy_for_a_broken_file_mends_it(ready, capsys):
    assert encode(ready) == 0
    path = ready.sae_activations(MODEL, "normal", set_stem(NAMES[0], SAE_ID), "X_test_sae")
    path.write_bytes(path.read_bytes()[:500])
    assert probe(ready) == 1
    assert f"{path} cannot be read" in (said := capsys.readouterr().err)
    assert "delete it, then `make generate-sae-acts-optimized" in said
    path.unlink()
    assert encode(ready) == 0
    assert probe(ready) == 0


def test_nan_weights_are_refused_and_other_saes_encoded(ready, capsys):
    write_sae(ready, W_enc=float("nan"))
    sae = TopKSAE(TopKSAEConfig(d_in=384, d_sae=100, k=8))
    sae.save_model(ready.saes(MODEL) / "layer_2" / "good")
    assert encode(ready) == 1
    assert "NaN or infinite weights in latents 0 to" in capsys.readouterr().err
    assert (
        len(list(ready.sae_activations_folder(MODEL, "normal").glob("*_2_good_X_rest_sae.pt"))) == 2
    )


def test_a_dataset_named_twice_is_done_once(ready):
    assert encode(ready) == 0
    assert probe(ready, "--datasets", NAMES[0], NAMES[0]) == 0
    assert len(pd.read_csv(ready.sae_probe_table(MODEL, "normal"))) == 1


@pytest.mark.parametrize(
    "main",
    [train_baselines.main, train_sae_probes.main, generator.main, generate_model_activations.main],
)
@pytest.mark.parametrize(
    "content",
    [b"text,label\na,1\n", b"", b"prompt,target\na,1\nb,1\n", b"prompt,target\n\xff\xfe,1\n"],
)
def test_one_bad_text_file_does_not_stop_the_others(ready, capsys, main, content):
    if main is train_sae_probes.main:
        assert encode(ready) == 0
    ready.texts(NAMES[0]).write_bytes(content)
    clear_caches()
    more = ["--method", "knn", "--layer", "2"] if main is train_baselines.main else []
    more += ["--layers", "2"] if main is generate_model_activations.main else []
    assert main(flags(ready, *more)) == 1
    assert capsys.readouterr().err.count(NAMES[0]) == 1


@pytest.mark.parametrize("content", ["[1]", '{"n_rows": "x"}', "garbage"])
def test_a_broken_description_is_named(ready, capsys, content):
    ready.model_activations(MODEL, NAMES[0], "blocks.2.hook_resid_post").with_suffix(
        ".json"
    ).write_text(content)
    assert encode(ready) == 1
    assert "delete it" in capsys.readouterr().err
    assert len(list(ready.sae_activations_folder(MODEL, "normal").glob("*_X_rest_sae.pt"))) == 1


@pytest.mark.parametrize(
    "change",
    [{"metadata": None}, {"metadata": []}, {"activation_fn": "topk", "activation_fn_kwargs": None}],
)
def test_odd_sae_settings_do_not_break_a_run(ready, change):
    path = ready.saes(MODEL) / SAE_ID / "cfg.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    if "activation_fn" in change:
        with pytest.raises(UserError, match="needs an integer k"):
            open_sae(ready, MODEL, SAE_ID)
    else:
        assert open_sae(ready, MODEL, SAE_ID).k_active == 8
    assert probe(ready) == 1  # no activations yet: said, not a traceback


def test_an_sae_of_another_width_leaves_the_others_alone(ready, capsys):
    sae = TopKSAE(TopKSAEConfig(d_in=768, d_sae=100, k=8))
    sae.save_model(ready.saes(MODEL) / "layer_2" / "a_wide")
    assert encode(ready) == 1
    assert "layer_2/a_wide reads activations of width 768" in capsys.readouterr().err
    assert len(list(ready.sae_activations_folder(MODEL, "normal").glob("*_2_s_X_rest_sae.pt"))) == 2


def test_saes_below_a_hidden_folder_are_found(tmp_path):
    (tmp_path / ".hidden" / "saes" / "layer_2" / "s").mkdir(parents=True)
    (tmp_path / ".hidden" / "saes" / "layer_2" / "s" / "cfg.json").touch()
    assert list_sae_ids(tmp_path / ".hidden" / "saes") == ["layer_2/s"]


@pytest.mark.parametrize(
    ("column", "value"), [("test_auc", 17.0), ("k", "many"), ("layer", "foo"), ("val_auc", "x")]
)
def test_a_wrong_cell_in_a_table_is_named(ready, column, value):
    assert encode(ready) == 0
    assert probe(ready) == 0
    path = ready.sae_probe_table(MODEL, "normal")
    table = pd.read_csv(path).astype({column: object})
    table.loc[1, column] = value
    table.to_csv(path, index=False)
    with pytest.raises(UserError, match=rf"all_metrics\.csv, line 3: {column} is"):
        visualize.main(flags(ready))


def test_a_table_without_a_column_is_named(ready):
    path = ready.sae_probe_table(MODEL, "normal")
    path.parent.mkdir(parents=True)
    pd.DataFrame(
        [{"dataset": "d", "k": 1, "sae_id": "s", "reg_type": "l1", "val_auc": 0.5, "test_auc": 0.5}]
    ).to_csv(path)
    with pytest.raises(UserError, match=r"all_metrics\.csv lacks the column layer"):
        visualize.main(flags(ready))


@pytest.mark.parametrize(
    "arguments",
    [["--batch_size", "0"], ["--device", "meta"], ["--device", "xpu"],
     ["--target_sae_id", "../.."], ["--target_sae_id", ""],
     ["--max_memory", "abc"], ["--layers", "x"]],
)  # fmt: skip
def test_bad_flags_are_refused_before_any_work(ready, arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        generator.main(flags(ready, *arguments))
    assert stopped.value.code == 2
    assert "error: argument" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_so_and_continues_to_the_same_table(ready, tmp_path, number):
    assert encode(ready) == 0
    command = [
        sys.executable,
        str(ROOT / "train_sae_probes.py"),
        *flags(ready, "--setting", "scarcity", "--n_jobs", "2", "--controls", "none"),
    ]
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    table = ready.sae_probe_table(MODEL, "scarcity")
    while not table.is_file() and run.poll() is None:
        time.sleep(0.05)
    run.send_signal(number)
    _, said = run.communicate(timeout=60)
    if run.returncode not in (0, -number):  # it may have been done already, its interpreter gone
        assert run.returncode == 130
        assert "the same command continues" in said
    assert "Traceback" not in said
    again = flags(ready, "--setting", "scarcity", "--n_jobs", "1", "--controls", "none")
    assert train_sae_probes.main(again) == 0
    table = sae_probe_table(ready.sae_probe_table(MODEL, "scarcity"), "num_train")
    assert len(table.read()) == len(table.done()) == 2 * 2 * 15
