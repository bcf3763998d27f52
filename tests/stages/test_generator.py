"""The generator: every order of work gives the same files, the plan keeps its bounds, devices are
gated, work resumes.
"""

from __future__ import annotations

import shutil
import time
from collections import deque

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import folder_flags, write_texts
from sae_lens import SAE
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.matching_pursuit_sae import MatchingPursuitSAE, MatchingPursuitSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import (
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from scipy.sparse import random_array

import generate_sae_activations_optimized as generator
from published import export_splits
from utils.activations import write_activations
from utils.datasets import load_dataset, load_ood
from utils.readers.sparse_files import load_sparse, to_csr
from utils.runtime.errors import UserError
from utils.saes import encode as encoding
from utils.saes import plan as encoding_plan
from utils.saes import run
from utils.saes.catalog import open_sae
from utils.saes.encode import check_device, encode_all, read_block
from utils.saes.encoder import Encoder
from utils.saes.original_order import write_original_split
from utils.saes.plan import Job, make_plan
from utils.saes.run import EncodingRun
from utils.saes.store import SaeActivations
from utils.settings import Condition, TrainTest, split

MODEL, D_MODEL = "all-MiniLM-L6-v2", 384
NAMES = ["1_first", "2_second", "3_third"]
HOOK = "blocks.2.hook_resid_post"
CPU = torch.device("cpu")


@pytest.fixture
def ready(paths):
    """Texts, activations of three datasets and an OOD file, and two SAEs of awkward widths."""
    write_texts(paths, NAMES, n_rows=300, ood=(NAMES[0],))
    rng = np.random.default_rng(0)
    for name in NAMES:
        write(paths, name, rng)
    write(paths, NAMES[0], rng, ood=True)
    torch.manual_seed(0)
    for name, sae in (
        ("layer_2/top", TopKSAE(TopKSAEConfig(d_in=D_MODEL, d_sae=1003, k=9))),
        ("layer_2/jump", JumpReLUSAE(JumpReLUSAEConfig(d_in=D_MODEL, d_sae=517))),
    ):
        with torch.no_grad():
            sae.W_enc.normal_(std=0.05)
            if hasattr(sae, "threshold"):
                sae.threshold.fill_(1.5)
        sae.save_model(paths.saes(MODEL) / name)
    return paths


def write(paths, name, rng, ood=False):
    dataset = (load_ood if ood else load_dataset)(paths, name)
    activations = torch.from_numpy(rng.normal(size=(len(dataset), D_MODEL)).astype(np.float32))
    write_activations(
        paths.model_activations(MODEL, name, HOOK, ood), activations, dataset.texts, {}
    )


def generate(paths, *flags) -> int:
    twins = [] if "--controls" in flags else ["--controls", "none"]
    common = ["--model_name", MODEL, *folder_flags(paths), "--device", "cpu", *twins]
    return generator.main([*common, *flags])


def outputs(paths) -> dict[str, np.ndarray]:
    folder = paths.data_dir / f"sae_activations_{MODEL}"
    return {
        f"{p.parent.name}/{p.name}": load_sparse(p, "").toarray()
        for p in sorted(folder.rglob("*_X_*.pt"))
    }


def assert_alike(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for name in found:
        assert np.array_equal(found[name] != 0, expected[name] != 0), name
        assert np.allclose(found[name], expected[name], rtol=1e-6, atol=1e-6), name


@pytest.mark.parametrize("order", ["resident", "rows", "blocks"])
@pytest.mark.parametrize("batch_size", ["16", "128"])
def test_every_order_of_work_gives_the_same_latents(ready, monkeypatch, order, batch_size):
    assert generate(ready, "--controls", "all") == 0
    expected = outputs(ready)
    for path in ready.sae_activations_root(MODEL).glob("*/*.*"):
        path.unlink()
    real = encoding_plan._work

    def forced(group, jobs, limits):
        work = real(group, jobs, limits)
        work.order, work.block, work.blocks_a_pass = order, 100, 2
        work.chunks = [jobs[:1], jobs[1:]]
        return work

    monkeypatch.setattr(encoding_plan, "_work", forced)
    if order != "resident":  # one SAE at a time
        monkeypatch.setattr(encoding_plan, "_fits", lambda group, *_: False)
    assert generate(ready, "--batch_size", batch_size, "--controls", "all") == 0
    assert_alike(outputs(ready), expected)
    assert not list(ready.sae_activations_root(MODEL).glob(".waiting*"))


def test_the_latents_are_sae_lens_own(ready):
    assert generate(ready) == 0
    for sae_id in ("layer_2/top", "layer_2/jump"):
        sae = SAE.load_from_disk(ready.saes(MODEL) / sae_id)
        x = torch.load(ready.model_activations(MODEL, NAMES[1], HOOK), weights_only=True)
        with torch.no_grad():
            expected = sae.encode(x).numpy()
        stored = SaeActivations(ready, MODEL, NAMES[1], sae_id).rows().toarray()
        assert np.array_equal(stored != 0, expected != 0)
        assert np.allclose(stored, expected, rtol=1e-4, atol=1e-5)


def test_work_that_is_done_is_not_done_again_and_a_changed_source_is(ready, capsys):
    assert generate(ready) == 0
    capsys.readouterr()
    assert generate(ready) == 0
    assert "8 done, 0 to do" in capsys.readouterr().out
    texts = load_dataset(ready, NAMES[2]).texts[:250]
    write_activations(
        ready.model_activations(MODEL, NAMES[2], HOOK), torch.randn(250, D_MODEL), texts, {}
    )
    assert generate(ready) == 0
    assert "6 done, 2 to do" in capsys.readouterr().out


def test_dry_run_prints_the_plan_and_writes_nothing(ready, capsys):
    assert generate(ready, "--dry_run", "--max_memory", "1GiB") == 0
    said = capsys.readouterr().out
    assert "3 datasets, 960 rows, weights stay in memory" in said
    assert "min of products" in said
    assert not (ready.data_dir / f"sae_activations_{MODEL}").exists()


def test_too_little_memory_is_said_before_any_work(ready):
    with pytest.raises(UserError, match=r"need about .* MiB: raise --max_memory"):
        generate(ready, "--max_memory", "1MB")


def test_a_full_disk_is_said_before_any_work(ready, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 10})())
    with pytest.raises(UserError, match="make room first"):
        generate(ready)


def fake_encoder(
    d_model: int, d_sae: int, sae_id: str = "layer_20/width_x/average_l0_100"
) -> Encoder:
    from pathlib import Path

    from utils.readers.weight_files import StoredArray

    return Encoder(
        sae_id, "jumprelu", d_model, d_sae, StoredArray(Path("x"), 0, (d_model, d_sae), "<f4")
    )


GIB = 1 << 30


def test_the_planner_reads_fewer_bytes():
    """1M x 3584 (15 GB) under 2 GiB: few rows wait in memory for the weights, many are streamed
    past blocks of weights.
    """
    encoder = {"s": fake_encoder(3584, 1 << 20)}
    few = [Job(f"d{i}", 20, ["s"], [], 1000, 0) for i in range(20)]
    (work,) = make_plan(few, encoder, CPU, 2 * GIB, 128)
    assert work.order == "rows"
    assert work.bytes_to_read <= 1.01 * (
        20_000 * 3584 * 4 + len(work.chunks) * (1 << 20) * 3584 * 4
    )
    # 3.8 GB: two passes over the rows beat many over the weights
    narrow = {"s": fake_encoder(3584, 1 << 18)}
    many = [Job(f"d{i}", 20, ["s"], [], 3000, 0) for i in range(1000)]
    (work,) = make_plan(many, narrow, CPU, 3 * GIB, 128)
    assert work.order == "blocks"
    small = {"s": fake_encoder(3584, 1 << 14), "t": fake_encoder(3584, 1 << 14)}
    (work,) = make_plan([Job("d", 20, ["s", "t"], [], 3000, 0)], small, CPU, 4 * GIB, 128)
    assert (work.order, work.sae_ids) == ("resident", ["s", "t"])


class LyingDevice:
    """Stands for a device whose product is wrong: the gate sees its results where it asks for the
    device's.
    """

    type = "liar"


def test_a_device_that_lies_is_found_out(ready, monkeypatch):
    encoder = open_sae(ready, MODEL, "layer_2/jump")
    block = read_block(encoder, 0, encoder.d_sae, CPU)
    rows = np.random.default_rng(0).normal(size=(100, D_MODEL)).astype(np.float32)
    real = encoding.prepared

    def lie_by(factor):
        def prepared(encoder, activations, device, n_product):
            return real(encoder, activations, CPU, n_product) * (
                factor if device.type == "liar" else 1.0
            )

        return prepared

    monkeypatch.setattr(encoding, "prepared", lie_by(1.0))
    check_device(encoder, block, rows, LyingDevice())  # type: ignore[arg-type]
    for factor in (1.01, -1.0, 0.0):
        monkeypatch.setattr(encoding, "prepared", lie_by(factor))
        with pytest.raises(
            UserError, match=r"liar gives other latents than the CPU .*--device cpu"
        ):
            check_device(encoder, block, rows, LyingDevice())  # type: ignore[arg-type]


def test_a_product_shape_is_kept_on_mps():
    """The last batch is filled up with zeros, because MPS's memory grows with every new shape."""
    mps = type("device", (), {"type": "mps"})()
    monkey = pytest.MonkeyPatch()
    monkey.setattr(torch.Tensor, "to", lambda self, *_args, **_options: self)
    try:
        x = encoding.prepared(fake_encoder(8, 16), np.ones((5, 8), np.float32), mps, 128)
    finally:
        monkey.undo()
    assert x.shape == (128, 8)
    assert not x[5:].any()


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka"])
def test_sae_lens_inference_form_of_batch_top_k_is_read(paths, kind):
    if kind == "batchtopk":
        sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=24, d_sae=101, k=5))
    else:
        sae = MatryoshkaBatchTopKTrainingSAE(
            MatryoshkaBatchTopKTrainingSAEConfig(
                d_in=24, d_sae=101, k=5, matryoshka_widths=[40, 101]
            )
        )
    x = torch.randn(64, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.topk_threshold.fill_(0.05)
    folder = paths.saes(MODEL) / "layer_2" / kind
    sae.save_inference_model(folder)
    with torch.no_grad():
        expected = SAE.load_from_disk(folder).encode(x).numpy()
    encoder = open_sae(paths, MODEL, f"layer_2/{kind}")
    blocks = [read_block(encoder, a, b, CPU) for a, b in encoding.block_starts(encoder, 30)]
    found = to_csr(encode_all(encoder, blocks, x.numpy(), CPU), 101).toarray()
    assert np.array_equal(found != 0, expected != 0)
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_other_architectures_go_through_sae_lens(ready):
    torch.manual_seed(1)
    sae = MatchingPursuitSAE(MatchingPursuitSAEConfig(d_in=D_MODEL, d_sae=40))
    sae.save_model(ready.saes(MODEL) / "layer_2" / "pursuit")
    assert generate(ready, "--target_sae_id", "layer_2/pursuit", "--setting", "normal") == 0
    x = torch.load(ready.model_activations(MODEL, NAMES[1], HOOK), weights_only=True)
    with torch.no_grad():
        expected = sae.encode(x).numpy()
    stored = SaeActivations(ready, MODEL, NAMES[1], "layer_2/pursuit").rows().toarray()
    assert np.allclose(stored, expected, rtol=1e-4, atol=1e-4)


def test_exported_splits_are_the_original_scripts_and_are_read_back(ready):
    assert generate(ready, "--target_sae_id", "layer_2/top") == 0
    flags = [
        "--model_name",
        MODEL,
        *folder_flags(ready),
        "--target_sae_id",
        "layer_2/top",
        "--datasets",
        NAMES[0],
    ]
    assert export_splits.main([*flags, "--setting", "scarcity", "--conditions", "20"]) == 0
    assert export_splits.main([*flags, "--setting", "class_imbalance", "--conditions", "0.4"]) == 0
    folder = ready.sae_activations_folder(MODEL, "scarcity")
    tensor = torch.load(folder / f"{NAMES[0]}_2_top_20_X_train_sae.pt", weights_only=True)
    assert tensor.layout == torch.sparse_coo
    assert tensor.is_coalesced()
    ours = SaeActivations(ready, MODEL, NAMES[0], "layer_2/top")
    conditions = [Condition("scarcity", 20), Condition("class_imbalance", 0.39999999999999997)]
    expected = [ours.condition(condition) for condition in conditions]
    for path in ready.sae_activations_folder(MODEL, "normal").iterdir():
        path.unlink()
    theirs = SaeActivations(ready, MODEL, NAMES[0], "layer_2/top")
    for condition, wanted in zip(conditions, expected):
        found = theirs.condition(condition)
        assert np.array_equal(found.X_train.toarray(), wanted.X_train.toarray())
        assert np.array_equal(found.X_test.toarray(), wanted.X_test.toarray())


def test_exported_ood_archives_are_read_back_as_the_notebook_reads_them(ready):
    assert generate(ready, "--target_sae_id", "layer_2/top", "--setting", "all") == 0
    flags = ["--model_name", MODEL, *folder_flags(ready), "--setting", "OOD"]
    with pytest.raises(UserError, match="name one of"):
        export_splits.main(flags)
    flags += ["--target_sae_id", "layer_2/top"]
    assert export_splits.main(flags) == 0
    ours = SaeActivations(ready, MODEL, NAMES[0], "layer_2/top", ood=True)
    expected = ours.condition(Condition("OOD"))
    inside, outside = (
        torch.load(ready.published_ood_archive(MODEL, NAMES[0], ood), weights_only=True)
        for ood in (False, True)
    )
    assert np.array_equal(inside.to_dense().numpy(), ours.rows().toarray()[:1500])
    assert np.array_equal(outside.to_dense().numpy(), expected.X_test.toarray())
    assert export_splits.main(flags) == 1  # whose files those are their names do not say
    for setting in ("normal", "OOD"):
        shutil.rmtree(ready.sae_activations_folder(MODEL, setting))
    theirs = SaeActivations(ready, MODEL, NAMES[0], "layer_2/top", ood=True)
    found = theirs.condition(Condition("OOD"))
    assert np.array_equal(found.X_train.toarray(), expected.X_train.toarray())
    assert np.array_equal(found.X_test.toarray(), expected.X_test.toarray())


@pytest.mark.parametrize(("named", "d_sae"), [("16k", 16384), ("131k", 131_072)])
def test_published_ood_archives_are_read(ready, named, d_sae):
    """One file a dataset, all rows: the first training rows, and the OOD rows; the SAE is told by
    its width, the paper's is the one of 131k.
    """
    labels, ood = load_dataset(ready, NAMES[0]).labels, load_ood(ready, NAMES[0]).labels
    rng = np.random.default_rng(0)
    inside, outside = (
        random_array((n, d_sae), density=1e-3, format="csr", dtype=np.float32, rng=rng)
        for n in (300, 60)
    )
    for rows, is_ood in ((inside, False), (outside, True)):
        path = ready.published_ood_archive(MODEL, NAMES[0], is_ood)
        path.parent.mkdir(parents=True, exist_ok=True)
        places = torch.from_numpy(np.stack(rows.nonzero()))
        torch.save(torch.sparse_coo_tensor(places, torch.from_numpy(rows.data), rows.shape), path)
    sae_id = f"layer_2/width_{named}/average_l0_9"
    found = SaeActivations(ready, MODEL, NAMES[0], sae_id, ood=True).condition(Condition("OOD"))
    trained_on = split(Condition("OOD"), labels, ood_labels=ood).train
    assert (found.X_train != inside[trained_on]).nnz == 0
    assert (found.X_test != outside).nnz == 0
    with pytest.raises(UserError, match="not those of"):
        SaeActivations(ready, MODEL, NAMES[0], "layer_2/width_1m/average_l0_9", ood=True).condition(
            Condition("OOD")
        )


def test_the_original_order_writes_every_conditions_files(ready):
    flags = ["--target_sae_id", "layer_2/jump", "--datasets", NAMES[0]]
    assert generate(ready, "--no-batch_mode", "--setting", "scarcity", *flags) == 0
    files = sorted(
        p.name for p in ready.sae_activations_folder(MODEL, "scarcity").glob("*_X_train_sae.pt")
    )
    assert len(files) == 15  # the sizes up to 200 of 300 rows
    original = SaeActivations(ready, MODEL, NAMES[0], "layer_2/jump").condition(
        Condition("scarcity", 20)
    )
    assert generate(ready, *flags, "--setting", "normal") == 0
    ours = SaeActivations(ready, MODEL, NAMES[0], "layer_2/jump").condition(
        Condition("scarcity", 20)
    )
    for a, b in ((original.X_train, ours.X_train), (original.X_test, ours.X_test)):
        assert np.array_equal(a.toarray() != 0, b.toarray() != 0)
        assert np.allclose(a.toarray(), b.toarray(), rtol=1e-5)


def test_the_original_order_encodes_as_many_rows_as_asked_for(ready, monkeypatch):
    seen = set()

    def encode_dense(sae, rows, batch_size):
        seen.add(batch_size)
        return real(sae, rows, batch_size)

    real = generator.encode_dense
    monkeypatch.setattr(generator, "encode_dense", encode_dense)
    flags = ["--target_sae_id", "layer_2/top", "--datasets", NAMES[0], "--setting", "normal"]
    assert generate(ready, "--no-batch_mode", *flags, "--batch_size", "17") == 0
    assert seen == {17}


def test_a_bad_file_is_named_and_the_rest_is_encoded(ready, capsys):
    path = ready.model_activations(MODEL, NAMES[1], HOOK)
    path.write_bytes(path.read_bytes()[:500])
    assert generate(ready, "--setting", "normal") == 1
    assert str(path) in capsys.readouterr().err
    assert len(list(ready.sae_activations_folder(MODEL, "normal").glob("*_X_rest_sae.pt"))) == 4


def test_a_named_l0_far_from_the_measured_one_is_a_warning(ready, capsys):
    (ready.saes(MODEL) / "layer_2" / "jump").rename(
        ready.saes(MODEL) / "layer_2" / "average_l0_3000"
    )
    assert generate(ready, "--setting", "normal", "--target_sae_id", "layer_2/average_l0_3000") == 0
    assert "its id says 3000" in capsys.readouterr().out


def test_split_files_have_the_rows_of_the_split(ready):
    assert generate(ready, "--setting", "normal") == 0
    labels = load_dataset(ready, NAMES[0]).labels
    of = split(Condition("normal"), labels)
    folder = ready.sae_activations_folder(MODEL, "normal")
    stem = f"{NAMES[0]}_2_jump"
    assert (
        torch.load(folder / f"{stem}_y_train.pt", weights_only=True).tolist() == of.y_train.tolist()
    )
    assert len(torch.load(folder / f"{stem}_X_test_sae.pt", weights_only=True)) == len(of.test)
    assert pd.Series(of.y_test).isin([0, 1]).all()


def test_write_original_split_returns_its_bytes(ready):
    rows = to_csr(
        encode_all(
            open_sae(ready, MODEL, "layer_2/jump"),
            [read_block(open_sae(ready, MODEL, "layer_2/jump"), 0, 517, CPU)],
            np.random.default_rng(0).normal(size=(50, D_MODEL)).astype(np.float32),
            CPU,
        ),
        517,
    )
    labels = np.arange(300) % 2
    drawn = split(Condition("scarcity", 20), labels)
    written = TrainTest(rows[:20], drawn.y_train, rows[20:], drawn.y_test)
    n_bytes = write_original_split(
        ready, MODEL, "d", "layer_2/jump", Condition("scarcity", 20), written
    )
    assert n_bytes >= 20 * rows.nnz


def test_a_run_that_is_stopped_just_after_it_gave_files_to_write_finishes_them(ready, monkeypatch):
    """Ctrl-C between handing a set of files to the writing thread and noting that: the lock is not
    let go of, and nothing is left unfinished, while they are written.
    """
    write_set = EncodingRun._write

    def slowly(self, *arguments):
        time.sleep(0.5)
        return write_set(self, *arguments)

    class Stopping(deque):
        def append(self, _):
            raise KeyboardInterrupt

    monkeypatch.setattr(EncodingRun, "_write", slowly)
    monkeypatch.setattr(run, "deque", Stopping)
    flags = ["--model_name", MODEL, *folder_flags(ready), "--controls", "none"]
    with pytest.raises(KeyboardInterrupt):
        generator.main(flags)
    root = ready.sae_activations_root(MODEL)
    assert not list(root.rglob(".*.tmp"))
    assert len(list(root.rglob("*_X_train_sae.pt"))) == 2  # of the normal setting and of OOD
    monkeypatch.undo()
    assert generator.main(flags) == 0
