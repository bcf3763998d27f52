"""The corpus: each case spoils one file of a small finished world; hostile ones try to run
something or to write elsewhere.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from conftest import MODEL
from safetensors.numpy import save_file

from utils.names import set_stem
from utils.paths import Paths

BAD, GOOD = "1_first", "2_second"
SAE_ID = "layer_2/s"
D_MODEL, D_SAE, N_ROWS = 384, 128, 300
HOOK = "blocks.2.hook_resid_post"
HUGE, HOSTILE = 1 << 40, True


@dataclass(frozen=True)
class Case:
    """``stage``: the script that meets the file; ``spoil(paths, canary)``: makes it bad; ``said``:
    a part of the line that it gets; ``hostile``: the file would run something if it were trusted.
    """

    name: str
    stage: str
    spoil: Callable[[Paths, Path], None]
    said: str
    hostile: bool = False


class Hostile:
    """An object whose unpickling touches the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def corpus() -> list[Case]:
    return [
        *texts(),
        *dense(),
        *sparse(),
        *npz(),
        *safetensors(),
        *configs(),
        *dictionaries(),
        *tables(),
        *pickles(),
        *tars(),
    ]


# texts


def texts() -> list[Case]:
    def content(data: bytes) -> Callable[[Paths, Path], None]:
        return lambda paths, _: void(paths.texts(BAD).write_bytes(data))

    def rows(prompts: list, targets: list, ood: bool = False) -> Callable[[Paths, Path], None]:
        table = pd.DataFrame({"prompt": prompts, "target": targets})
        return lambda paths, _: table.to_csv(
            paths.ood_texts(BAD) if ood else paths.texts(BAD), index=False
        )

    def compressed(data: bytes) -> Callable[[Paths, Path], None]:
        def spoil(paths: Paths, _: Path) -> None:
            paths.texts(BAD).unlink()
            paths.texts(BAD).with_name(f"{BAD}.csv.zst").write_bytes(data)

        return spoil

    def bomb() -> bytes:
        import zstandard

        return zstandard.compress(b"prompt,target\n" + bytes(400 << 20))

    def shortened(paths: Paths, _: Path) -> None:
        pd.read_csv(paths.texts(BAD)).iloc[:-1].to_csv(paths.texts(BAD), index=False)

    def reworded(paths: Paths, _: Path) -> None:
        pd.read_csv(paths.texts(BAD)).iloc[::-1].to_csv(paths.texts(BAD), index=False)

    def odd_name(paths: Paths, _: Path) -> None:
        name = os.fsencode(paths.texts("x").parent) + b"/b\xff.csv"
        Path(os.fsdecode(name)).write_text("prompt,target\na,0\nb,1\n")

    def folder(paths: Paths, _: Path) -> None:
        paths.texts(BAD).unlink()
        paths.texts(BAD).mkdir()

    def loop(paths: Paths, _: Path) -> None:
        paths.texts(BAD).unlink()
        paths.texts(BAD).symlink_to(paths.texts(BAD))

    probes = "train_baselines"
    named = f"{BAD}.csv"
    return [
        Case("texts empty", probes, content(b""), named),
        Case("texts of a header alone", probes, content(b"prompt,target\n"), "0 classes"),
        Case("texts without prompt", probes,
             content(b"text,target\na,0\nb,1\n"), "lacks the column prompt"),
        Case("texts without target", probes,
             content(b"prompt,label\na,0\nb,1\n"), "lacks the column target"),
        Case("texts with target twice", probes,
             content(b"prompt,target,target\na,0,1\nb,1,0\n"), "column target more than once"),
        Case("texts of three classes", probes, rows(["a", "b", "c"], [0, 1, 2]), "3 classes"),
        Case("texts of one class", probes, rows(["a", "b"], [1, 1]), "1 classes"),
        Case("texts with an empty prompt", probes,
             rows(["a", " ", "c"], [0, 1, 0]), "no prompt in row 3"),
        Case("texts with an empty target", probes,
             rows(["a", "b", "c"], [0, 1, None]), "no target in row 4"),
        Case("texts in Latin-1", probes,
             content("prompt,target\ncafé,0\nb,1\n".encode("latin-1")), named),
        Case("texts in UTF-16", probes,
             content("prompt,target\na,0\nb,1\n".encode("utf-16")), named),
        Case("texts with an open quote", probes, content(b'prompt,target\n"a,0\nb,1\n'), named),
        Case("texts with too many cells", probes, content(b"prompt,target\na,0\nb,1,2,3\n"), named),
        Case("texts of zero bytes", probes, content(bytes(4000)), named),
        Case("texts that are an image", probes,
             content(b"\x89PNG\r\n\x1a\n" + bytes(range(256))), named),
        Case("texts of broken zstd", probes, compressed(b"\x28\xb5\x2f\xfd" + bytes(60)), named),
        Case("texts of no zstd", probes, compressed(b"prompt,target\na,0\nb,1\n"), named),
        Case("texts cut off in zstd", probes, lambda p, c: compressed(_zst(p)[:60])(p, c), named),
        Case("texts that unpack to 400 MB", probes,
             lambda p, c: compressed(bomb())(p, c), "unpacks to more than"),
        Case("texts that are a folder", probes, folder, BAD),
        Case("texts that are a link to themselves", probes, loop, BAD),
        Case("texts with a name that is no text", probes, odd_name, "has a name that is no text"),
        Case("texts one row shorter than the activations", probes,
             shortened, "was made from other texts"),
        Case("texts in another order than the activations", probes,
             reworded, "was made from other texts"),
        Case("OOD texts of another class", "train_baselines OOD",
             rows(["a", "b"], ["1", "2"], ood=True), "no class of 1_first"),
        Case("OOD texts without target", "train_baselines OOD",
             lambda p, c: void(p.ood_texts(BAD).write_text("prompt\na\n")),
             "lacks the column target"),
        Case("OOD texts empty", "train_baselines OOD",
             lambda p, c: void(p.ood_texts(BAD).write_bytes(b"")), f"{BAD}_OOD.csv"),
        Case("a master table of other columns", probes,
             lambda p, c: void(p.master_table().write_text("a,b\n1,2\n")), "lacks"),
        Case("a master table of noise", probes,
             lambda p, c: void(p.master_table().write_bytes(os.urandom(500))), "MASTER"),
    ]  # fmt: skip


def _zst(paths: Paths) -> bytes:
    import zstandard

    return zstandard.compress(paths.texts(BAD).read_bytes())


# model activations


def dense() -> list[Case]:
    def tensor(make: Callable[[torch.Tensor], object]) -> Callable[[Paths, Path], None]:
        def spoil(paths: Paths, _: Path) -> None:
            path = paths.model_activations(MODEL, BAD, HOOK)
            torch.save(make(torch.load(path, weights_only=True)), path)

        return spoil

    def content(change: Callable[[bytes], bytes]) -> Callable[[Paths, Path], None]:
        def spoil(paths: Paths, _: Path) -> None:
            path = paths.model_activations(MODEL, BAD, HOOK)
            path.write_bytes(change(path.read_bytes()))

        return spoil

    def described(text: str) -> Callable[[Paths, Path], None]:
        return lambda p, c: void(
            p.model_activations(MODEL, BAD, HOOK).with_suffix(".json").write_text(text)
        )

    def surplus(paths: Paths, _: Path) -> None:
        path = paths.model_activations(MODEL, BAD, HOOK)
        path.with_suffix(".json").unlink()
        torch.save(torch.zeros(N_ROWS + 1, D_MODEL), path)

    def legacy(paths: Paths, _: Path) -> None:
        path = paths.model_activations(MODEL, BAD, HOOK)
        torch.save(torch.zeros(N_ROWS, D_MODEL), path, _use_new_zipfile_serialization=False)

    def hostile(paths: Paths, canary: Path) -> None:
        torch.save({"x": Hostile(canary)}, paths.model_activations(MODEL, BAD, HOOK))

    def bare_pickle(paths: Paths, canary: Path) -> None:
        paths.model_activations(MODEL, BAD, HOOK).write_bytes(pickle.dumps(Hostile(canary)))

    def link(paths: Paths, _: Path) -> None:
        path = paths.model_activations(MODEL, BAD, HOOK)
        path.unlink()
        path.symlink_to(path)

    def absent(paths: Paths, _: Path) -> None:
        paths.model_activations(MODEL, BAD, HOOK).unlink()

    def infinite(x: torch.Tensor) -> torch.Tensor:
        x[7, 3] = float("inf")
        return x

    stage = "generator"
    unread = "cannot be read"
    return [
        Case("activations missing", stage, absent, "no file"),
        Case("activations empty", stage, content(lambda b: b""), unread),
        Case("activations cut off", stage, content(lambda b: b[:-100]), unread),
        Case("activations cut to half", stage, content(lambda b: b[: len(b) // 2]), unread),
        Case("activations of noise", stage, content(lambda b: os.urandom(1000)), unread),
        Case("activations with a byte of the index changed", stage,
             content(lambda b: b[:-40] + b"\xff" + b[-39:]), unread),
        Case("activations compressed", stage, content(deflated), "it is compressed"),
        Case("activations stretched over one number", stage,
             tensor(lambda x: x[:1, :1].expand(HUGE, D_MODEL)), "declared over"),
        Case("activations as whole numbers", stage, tensor(lambda x: x.long()), "int64"),
        Case("activations as complex numbers", stage,
             tensor(lambda x: x.to(torch.complex64)), "complex64"),
        Case("activations of one dimension", stage,
             tensor(lambda x: x[:, 0].clone()), "not [n_rows, d_model]"),
        Case("activations of three dimensions", stage,
             tensor(lambda x: x[None].clone()), "not [n_rows, d_model]"),
        Case("activations of another width", stage,
             tensor(lambda x: x[:, :100].clone()), "d_model 100, not 384"),
        Case("activations without a row", stage, tensor(lambda x: x[:0].clone()), "has 0 rows"),
        Case("activations with a row less", stage, tensor(lambda x: x[1:].clone()), "has 299 rows"),
        Case("published activations with a row more", stage, surplus, "has 301 rows"),
        Case("activations with NaN", stage,
             tensor(lambda x: x * float("nan")), "NaN or infinite value in row 0"),
        Case("activations with an infinity", stage,
             tensor(infinite), "NaN or infinite value in row 7"),
        Case("activations as a dict", stage, tensor(lambda x: {"x": x}), "holds a dict"),
        Case("activations as a list", stage, tensor(lambda x: [1.0, 2.0]), "holds a list"),
        Case("activations without storage", stage, tensor(lambda x: x.to("meta")), unread),
        Case("activations as a sparse tensor", stage,
             tensor(lambda x: x.to_sparse()), "not [n_rows, d_model]"),
        Case("activations in torch's old format", stage, legacy, unread),
        Case("activations that are a link to themselves", stage, link, "no file"),
        Case("activations whose description is cut off", stage,
             described('{"n_rows": 3'), "cannot be read"),
        Case("activations whose description is a list", stage, described("[1]"), "cannot be read"),
        Case("activations whose description nests too deep", stage,
             described("[" * 100_000), "cannot be read"),
        Case("activations of fewer rows than described", stage,
             described('{"n_rows": 9000}'), "300 rows"),
        Case("activations that run a command", stage, hostile, unread, HOSTILE),
        Case("activations that are a bare pickle", stage, bare_pickle, unread, HOSTILE),
    ]  # fmt: skip


def deflated(content: bytes) -> bytes:
    """The same archive with its members compressed."""
    made = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    return made.getvalue()


# SAE activations


def sparse() -> list[Case]:
    def path_of(paths: Paths, part: str = "X_train_sae") -> Path:
        return paths.sae_activations(MODEL, "normal", set_stem(BAD, SAE_ID), part)

    def tensor(
        make: Callable[[torch.Tensor], object], part: str = "X_train_sae"
    ) -> Callable[[Paths, Path], None]:
        def spoil(paths: Paths, _: Path) -> None:
            path = path_of(paths, part)
            torch.save(make(torch.load(path, weights_only=True)), path)

        return spoil

    def csr(
        indptr=None, indices=None, values=None, size=None
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Changes parts of a sparse tensor without torch's checks."""

        def make(x: torch.Tensor) -> torch.Tensor:
            parts = [x.crow_indices().clone(), x.col_indices().clone(), x.values().clone()]
            for part, change in zip(parts, (indptr, indices, values)):
                if change:
                    change(part)
            return torch.sparse_csr_tensor(
                parts[0], parts[1], parts[2], size=size or x.shape, check_invariants=False
            )

        return make

    def put(place: int, value: float) -> Callable[[torch.Tensor], None]:
        def change(part: torch.Tensor) -> None:
            part[place] = value

        return change

    def coo(
        indices: list[list[int]], size: tuple[int, ...]
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        columns = torch.tensor(indices)
        return lambda _: torch.sparse_coo_tensor(
            columns, torch.ones(columns.shape[1]), size, check_invariants=False
        )

    def hybrid(x: torch.Tensor) -> torch.Tensor:
        return torch.sparse_coo_tensor(torch.tensor([[0, 1]]), torch.ones(2, D_SAE), (200, D_SAE))

    def hostile(paths: Paths, canary: Path) -> None:
        torch.save(Hostile(canary), path_of(paths))

    def cut(paths: Paths, _: Path) -> None:
        path_of(paths).write_bytes(path_of(paths).read_bytes()[:700])

    stage = "train_sae_probes"
    out = "indices out of range"
    return [
        Case("latents cut off", stage, cut, "cannot be read"),
        Case("latents with a column too far", stage, tensor(csr(indices=put(3, D_SAE))), out),
        Case("latents with a negative column", stage, tensor(csr(indices=put(3, -1))), out),
        Case("latents whose row pointers fall", stage,
             tensor(csr(indptr=put(5, 0))), "row pointers"),
        Case("latents whose row pointers end too far", stage,
             tensor(csr(indptr=put(-1, 10**6))), "row pointers"),
        Case("latents whose row pointers begin late", stage,
             tensor(csr(indptr=put(0, 1))), "row pointers"),
        Case("latents of fewer row pointers than rows", stage,
             tensor(csr(size=(1000, D_SAE))), "row pointers"),
        Case("latents with NaN", stage,
             tensor(csr(values=put(0, float("nan")))), "NaN or infinite"),
        Case("latents with an infinity", stage,
             tensor(csr(values=put(0, float("-inf")))), "NaN or infinite"),
        Case("latents of another SAE", stage,
             tensor(lambda x: x.to_dense()[:, :50].to_sparse_csr()), "of different SAEs"),
        Case("latents with a row less", stage,
             tensor(lambda x: x.to_dense()[1:].to_sparse_csr()), "299 rows"),
        Case("latents that declare a trillion columns", stage,
             tensor(csr(size=(200, HUGE))), "more than any"),
        Case("latents that declare a trillion rows", stage,
             tensor(coo([[0], [0]], (HUGE, D_SAE))), "more than any"),
        Case("latents with a COO row too far", stage, tensor(coo([[200], [0]], (200, D_SAE))), out),
        Case("latents with a negative COO row", stage, tensor(coo([[-1], [0]], (200, D_SAE))), out),
        Case("latents of three dimensions", stage,
             tensor(lambda x: x.to_dense()[None]), "3 dimensions"),
        Case("latents half sparse, half dense", stage, tensor(hybrid), "not [n_rows, d_sae]"),
        Case("latents by columns", stage,
             tensor(lambda x: x.to_dense().to_sparse_csc()), "cannot be read"),
        Case("latents as complex numbers", stage,
             tensor(lambda x: x.to_dense().to(torch.complex64)), "complex64"),
        Case("labels of other rows", stage, tensor(lambda y: 1 - y, "y_train"), "other labels"),
        Case("labels with one less", stage,
             tensor(lambda y: y[1:].clone(), "y_test"), "other labels"),
        Case("labels as complex numbers", stage,
             tensor(lambda y: y.to(torch.complex64), "y_test"), "other labels"),
        Case("latents that run a command", stage, hostile, "cannot be read", HOSTILE),
    ]  # fmt: skip


# SAEs


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "W_enc": rng.normal(size=(D_MODEL, D_SAE)).astype(np.float32),
        "W_dec": rng.normal(size=(D_SAE, D_MODEL)).astype(np.float32),
        "b_enc": np.zeros(D_SAE, np.float32),
        "b_dec": np.zeros(D_MODEL, np.float32),
        "threshold": np.ones(D_SAE, np.float32),
    }


def npz() -> list[Case]:
    def saved(
        change: Callable[[dict], None], save: Callable = np.savez
    ) -> Callable[[Paths, Path], None]:
        def spoil(paths: Paths, _: Path) -> None:
            of = arrays()
            change(of)
            save(_folder(paths) / "params.npz", **of)

        return spoil

    def content(change: Callable[[bytes], bytes]) -> Callable[[Paths, Path], None]:
        def spoil(paths: Paths, canary: Path) -> None:
            saved(lambda of: None)(paths, canary)
            path = _folder(paths) / "params.npz"
            path.write_bytes(change(path.read_bytes()))

        return spoil

    def header(text: str) -> Callable[[Paths, Path], None]:
        """W_enc with this .npy header and few bytes behind it."""

        def spoil(paths: Paths, _: Path) -> None:
            head = text.encode("latin1")
            with zipfile.ZipFile(_folder(paths) / "params.npz", "w") as archive:
                archive.writestr(
                    "W_enc.npy",
                    b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(64),
                )

        return spoil

    def hostile(paths: Paths, canary: Path) -> None:
        of = {**arrays(), "W_enc": np.array([Hostile(canary)], dtype=object)}
        np.savez(_folder(paths) / "params.npz", **of)  # type: ignore[arg-type]

    def climbing(paths: Paths, _: Path) -> None:
        with zipfile.ZipFile(_folder(paths) / "params.npz", "w") as archive:
            for name, array in arrays().items():
                written = io.BytesIO()
                np.save(written, array)
                archive.writestr(f"../../{name}.npy", written.getvalue())

    def nan(of: dict, name: str) -> None:
        of[name].flat[0] = np.nan

    stage = "generator"
    huge = "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 4), }"
    return [
        Case("npz empty", stage, content(lambda b: b""), "params.npz"),
        Case("npz cut off", stage, content(lambda b: b[:-200]), "params.npz"),
        Case("npz of noise", stage, content(lambda b: os.urandom(2000)), "params.npz"),
        Case("npz compressed", stage,
             saved(lambda of: None, np.savez_compressed), "savez_compressed"),
        Case("npz without W_enc", stage, saved(lambda of: void(of.pop("W_enc"))), "lacks W_enc"),
        Case("npz without threshold", stage,
             saved(lambda of: void(of.pop("threshold"))), "lacks threshold"),
        Case("npz of whole numbers", stage,
             saved(lambda of: of.update(b_enc=np.zeros(D_SAE, int))), "not floats"),
        Case("npz big-endian", stage,
             saved(lambda of: of.update(b_enc=np.zeros(D_SAE, ">f4"))), "not floats"),
        Case("npz column by column", stage,
             saved(lambda of: of.update(W_enc=np.asfortranarray(of["W_enc"]))), "column-major"),
        Case("npz of one dimension", stage,
             saved(lambda of: of.update(W_enc=of["W_enc"][0])), "not two dimensions"),
        Case("npz of another model's width", stage,
             saved(lambda of: of.update(W_enc=of["W_enc"][:100])), "width 100"),
        Case("npz with a short threshold", stage,
             saved(lambda of: of.update(threshold=np.ones(5, "f4"))), "has shape (5,)"),
        Case("npz with NaN in the threshold", stage,
             saved(lambda of: nan(of, "threshold")), "NaN or infinite"),
        Case("npz with NaN in the weights", stage,
             saved(lambda of: nan(of, "W_enc")), "NaN or infinite"),
        Case("npz that declares four trillion numbers", stage, header(huge), "truncated"),
        Case("npz that declares a negative shape", stage,
             header(huge.replace("1099511627776", "-4")), "shape"),
        Case("npz with a header that is no dict", stage, header("[1, 2]"), "params.npz"),
        Case("npz with a header that nests too deep", stage, header("(" * 9000), "params.npz"),
        Case("npz with a header that is an expression", stage,
             header("__import__('os').system('true')"), "params.npz"),
        Case("npz whose names climb out", stage, climbing, "lacks W_enc"),
        Case("npz of objects that run a command", stage, hostile, "not floats", HOSTILE),
    ]  # fmt: skip


def safetensors() -> list[Case]:
    cfg = {
        "architecture": "jumprelu",
        "d_in": D_MODEL,
        "d_sae": D_SAE,
        "apply_b_dec_to_input": False,
    }

    def saved(
        change: Callable[[dict], None] = lambda of: None, **settings: object
    ) -> Callable[[Paths, Path], None]:
        def spoil(paths: Paths, _: Path) -> None:
            of = arrays()
            change(of)
            save_file(of, _folder(paths) / "sae_weights.safetensors")
            (_folder(paths) / "cfg.json").write_text(json.dumps({**cfg, **settings}))

        return spoil

    def raw(make: Callable[[bytes], bytes]) -> Callable[[Paths, Path], None]:
        def spoil(paths: Paths, canary: Path) -> None:
            saved()(paths, canary)
            path = _folder(paths) / "sae_weights.safetensors"
            path.write_bytes(make(path.read_bytes()))

        return spoil

    def header(entries: object) -> Callable[[Paths, Path], None]:
        text = json.dumps(entries).encode()
        return raw(lambda _: struct.pack("<Q", len(text)) + text + bytes(64))

    stage = "generator"
    name = "sae_weights.safetensors"
    entry = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
    return [
        Case("safetensors empty", stage, raw(lambda b: b""), name),
        Case("safetensors cut off", stage, raw(lambda b: b[:-50]), "truncated"),
        Case("safetensors of noise", stage, raw(lambda b: os.urandom(1000)), name),
        Case("safetensors with an absurd header length", stage,
             raw(lambda b: struct.pack("<Q", HUGE) + b[8:]), "absurd"),
        Case("safetensors with a list for a header", stage, header([1, 2]), name),
        Case("safetensors with other offsets than shape", stage,
             header({"W_enc": {**entry, "shape": [9, 9]}}), "declares shape"),
        Case("safetensors with negative offsets", stage,
             header({"W_enc": {**entry, "data_offsets": [-64, 0]}}), "declares"),
        Case("safetensors beyond the file", stage,
             header({"W_enc": {**entry, "data_offsets": [HUGE, HUGE + 64]}}), "truncated"),
        Case("safetensors without a dtype", stage,
             header({"W_enc": {"shape": [4, 4], "data_offsets": [0, 64]}}), name),
        Case("safetensors with a text for a shape", stage,
             header({"W_enc": {**entry, "shape": "4x4"}}), name),
        Case("safetensors of whole numbers", stage,
             saved(lambda of: of.update(W_enc=of["W_enc"].astype(int))), "lacks W_enc"),
        Case("safetensors without b_enc", stage,
             saved(lambda of: void(of.pop("b_enc"))), "lacks b_enc"),
        Case("an SAE of an unknown architecture", stage,
             saved(architecture="jumprelo"), "did you mean jumprelu"),
        Case("a topk SAE without k", stage, saved(architecture="topk"), "needs an integer k"),
        Case("a topk SAE with k of words", stage,
             saved(architecture="topk", k="many"), "needs an integer k"),
        Case("a topk SAE with more k than latents", stage,
             saved(architecture="topk", k=10**6), "is not between"),
        Case("an SAE with unknown input scaling", stage,
             saved(normalize_activations="l3"), "normalize_activations"),
        Case("an SAE for attention heads", stage,
             saved(reshape_activations="hook_q"), "'hook_q' is not known"),
    ]  # fmt: skip


def configs() -> list[Case]:
    def cfg(text: str | bytes, name: str = "cfg.json") -> Callable[[Paths, Path], None]:
        def spoil(paths: Paths, _: Path) -> None:
            save_file(arrays(), _folder(paths) / "sae_weights.safetensors")
            (_folder(paths) / name).write_bytes(text if isinstance(text, bytes) else text.encode())

        return spoil

    def model(text: str) -> Callable[[Paths, Path], None]:
        def spoil(paths: Paths, _: Path) -> None:
            paths.model_description("mine").parent.mkdir(parents=True)
            paths.model_description("mine").write_text(text)

        return spoil

    stage = "generator"
    return [
        Case("SAE settings empty", stage, cfg(""), "cfg.json"),
        Case("SAE settings cut off", stage, cfg('{"d_in": 4'), "cfg.json"),
        Case("SAE settings that are a list", stage, cfg("[]"), "holds no settings"),
        Case("SAE settings in UTF-16", stage, cfg("{}".encode("utf-16")), "cfg.json"),
        Case("SAE settings that nest too deep", stage, cfg('{"a":' * 100_000), "cfg.json"),
        Case(
            "SAE settings with a number of 10,000 digits",
            stage,
            cfg('{"d_in": ' + "9" * 10_000 + "}"),
            "cfg.json",
        ),
        Case(
            "Llama Scope settings without numbers",
            stage,
            cfg("{}", "hyperparams.json"),
            "final.safetensors",
        ),
        Case(
            "a model's description cut off",
            "generator mine",
            model('{"name": '),
            "no description of a model",
        ),
        Case(
            "a model's description that is a list",
            "generator mine",
            model("[]"),
            "no description of a model",
        ),
        Case(
            "a model's description without layers",
            "generator mine",
            model('{"name": "mine"}'),
            "no description of a model",
        ),
    ]


def dictionaries() -> list[Case]:
    def saved(
        make: Callable[[dict, Path], object], kind: str = "AutoEncoder"
    ) -> Callable[[Paths, Path], None]:
        def spoil(paths: Paths, canary: Path) -> None:
            rng = torch.Generator().manual_seed(0)
            state = {
                "encoder.weight": torch.randn(D_SAE, D_MODEL, generator=rng),
                "encoder.bias": torch.zeros(D_SAE),
            }
            torch.save(
                make({**state, "bias": torch.zeros(D_MODEL)}, canary), _folder(paths) / "ae.pt"
            )
            (_folder(paths) / "config.json").write_text(
                json.dumps({"trainer": {"dict_class": kind}})
            )

        return spoil

    def compressed(paths: Paths, canary: Path) -> None:
        saved(lambda of, _: of)(paths, canary)
        path = _folder(paths) / "ae.pt"
        path.write_bytes(deflated(path.read_bytes()))

    def stretched(of: dict, _: Path) -> dict:
        return {**of, "encoder.weight": torch.zeros(1, 1).expand(HUGE, D_MODEL)}

    stage = "generator"
    return [
        Case(
            "a dictionary of an unknown class",
            stage,
            saved(lambda of, _: of, "AutoEncoda"),
            "did you mean AutoEncoder",
        ),
        Case(
            "a dictionary without a bias",
            stage,
            saved(lambda of, _: {name: of[name] for name in of if name != "bias"}),
            "lacks bias",
        ),
        Case(
            "a dictionary that is a tensor",
            stage,
            saved(lambda of, _: of["bias"]),
            "holds a tensor, not tensors by name",
        ),
        Case("a dictionary compressed", stage, compressed, "it is compressed"),
        Case(
            "a dictionary of a trillion latents in a few bytes",
            stage,
            saved(stretched),
            "declared over",
        ),
        Case(
            "a dictionary that runs a command",
            stage,
            saved(lambda of, c: {**of, "x": Hostile(c)}),
            "ae.pt",
            HOSTILE,
        ),
    ]


def _folder(paths: Paths) -> Path:
    folder = paths.saes(MODEL) / "layer_2" / "bad"
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    return folder


# results


def tables() -> list[Case]:
    def changed(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Paths, Path], None]:
        def spoil(paths: Paths, _: Path) -> None:
            path = paths.sae_probe_table(MODEL, "normal")
            change(pd.read_csv(path)).to_csv(path, index=False)

        return spoil

    def content(change: Callable[[bytes], bytes]) -> Callable[[Paths, Path], None]:
        def spoil(paths: Paths, _: Path) -> None:
            path = paths.sae_probe_table(MODEL, "normal")
            path.write_bytes(change(path.read_bytes()))

        return spoil

    def cell(column: str, value: object) -> Callable[[Paths, Path], None]:
        return changed(lambda table: table.astype({column: object}).assign(**{column: value}))

    stage = "visualize"
    name = "all_metrics.csv"
    twice = changed(lambda t: pd.concat([t, t[["test_auc"]]], axis=1))
    return [
        Case("results empty", stage, content(lambda b: b""), name),
        Case("results of noise", stage, content(lambda b: os.urandom(1000)), name),
        Case("results in UTF-16", stage, content(lambda b: b.decode().encode("utf-16")), name),
        Case("results with a column twice", stage, twice, "test_auc more than once"),
        Case(
            "results without sae_id",
            stage,
            changed(lambda t: t.drop(columns="sae_id")),
            "lacks the column sae_id",
        ),
        Case("results with an AUC of 17", stage, cell("test_auc", 17.0), "test_auc is"),
        Case("results with an AUC of words", stage, cell("val_auc", "good"), "val_auc is"),
        Case("results with k of words", stage, cell("k", "many"), "k is"),
        Case("results with an infinite AUC", stage, cell("test_auc", "inf"), "test_auc is"),
        Case("results with an unknown layer", stage, cell("layer", "foo"), "layer is"),
        Case(
            "results with a line of too many cells",
            stage,
            content(lambda b: b + b"1,2,3," * 20 + b"\n"),
            name,
        ),
    ]


def pickles() -> list[Case]:
    def saved(make: Callable[[Path], object]) -> Callable[[Paths, Path], None]:
        def spoil(paths: Paths, canary: Path) -> None:
            folder = paths.data_dir / "consolidated_probing_gemma-2-9b"
            folder.mkdir(parents=True)
            for kind in ("sae_probes", "baseline_probes"):  # a report needs tables
                shutil.copytree(
                    paths.results_dir / f"{kind}_{MODEL}", paths.results_dir / f"{kind}_gemma-2-9b"
                )
            made = make(canary)
            (folder / f"{BAD}.pkl").write_bytes(
                made if isinstance(made, bytes) else pickle.dumps(made)
            )

        return spoil

    def stretched() -> bytes:
        """A tensor of a trillion numbers over one."""
        return pickle.dumps({"x": torch.zeros(1).expand(HUGE)})

    stage = "visualize gemma-2-9b"
    name = f"{BAD}.pkl"
    return [
        Case("a pickle empty", stage, saved(lambda c: b""), name),
        Case(
            "a pickle cut off", stage, saved(lambda c: pickle.dumps({"a": [1.0] * 100})[:-20]), name
        ),
        Case("a pickle that is a list", stage, saved(lambda c: [1, 2]), "holds a list"),
        Case("a pickle of noise", stage, saved(lambda c: os.urandom(500)), name),
        Case(
            "a pickle of a stretched tensor",
            stage,
            saved(lambda c: stretched()),
            "larger than its storage",
        ),
        Case(
            "a pickle of a memo of gigabytes",
            stage,
            saved(lambda c: b"\x80\x04}r" + struct.pack("<I", 1 << 30) + b"."),
            "memo",
        ),
        Case(
            "a pickle of an absurd length",
            stage,
            saved(lambda c: b"\x80\x04\x8d" + struct.pack("<Q", HUGE)),
            name,
        ),
        Case(
            "a pickle that runs a command",
            stage,
            saved(lambda c: {"x": Hostile(c)}),
            "which is not run",
            HOSTILE,
        ),
        Case(
            "a pickle that asks for eval",
            stage,
            saved(lambda c: b"\x80\x02cbuiltins\neval\n(X\x01\0\0\x001tR."),
            "which is not run",
            hostile=True,
        ),
    ]


# archives


def tars() -> list[Case]:
    folder = "model_activations_gemma-2-9b"

    def packed(fill: Callable[[tarfile.TarFile], None]) -> Callable[[Paths, Path], None]:
        def spoil(paths: Paths, _: Path) -> None:
            with tarfile.open(paths.data_dir / f"{folder}.tar.gz", "w:gz") as archive:
                fill(archive)

        return spoil

    def member(
        name: str, kind: bytes = tarfile.REGTYPE, target: str = ""
    ) -> Callable[[Paths, Path], None]:
        def fill(archive: tarfile.TarFile) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info, io.BytesIO())

        return packed(fill)

    def raw(content: Callable[[], bytes]) -> Callable[[Paths, Path], None]:
        return lambda p, c: void((p.data_dir / f"{folder}.tar.gz").write_bytes(content()))

    def long_name() -> bytes:
        """A header that announces a name of 4 GiB, which zeros compress to a few MB."""
        info = tarfile.TarInfo("././@LongLink")
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, 4 << 30
        return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(300 << 20), 1)

    def claimed() -> bytes:
        """A member of a petabyte."""
        info = tarfile.TarInfo(f"{folder}/a.pt")
        info.size = 1 << 50
        return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))

    stage = "extract"
    name = f"{folder}.tar.gz"
    return [
        Case("an archive empty", stage, raw(lambda: b""), name),
        Case("an archive of noise", stage, raw(lambda: os.urandom(1000)), name),
        Case("an archive of compressed noise", stage,
             raw(lambda: gzip.compress(os.urandom(1000))), name),
        Case("an archive that climbs out", stage,
             member("../../evil.pt"), "outside its folder", HOSTILE),
        Case("an archive with an absolute name", stage,
             member("/tmp/evil.pt"), "outside its folder", HOSTILE),
        Case("an archive with a link", stage,
             member(f"{folder}/a.pt", tarfile.SYMTYPE, "/etc/passwd"), "is a link", HOSTILE),
        Case("an archive with a hard link", stage,
             member(f"{folder}/a.pt", tarfile.LNKTYPE, "/etc/x"), "is a link", HOSTILE),
        Case("an archive with a device", stage,
             member(f"{folder}/a.pt", tarfile.CHRTYPE), "device", HOSTILE),
        Case("an archive with a member of a petabyte", stage,
             raw(claimed), "more than it can hold", HOSTILE),
        Case("an archive with a name of 4 GiB", stage,
             raw(long_name), "a header of 4.00 GiB", HOSTILE),
        Case("an archive for another model", stage,
             member("model_activations_llama/a.pt"), "another archive", HOSTILE),
    ]  # fmt: skip


def void(*_: object) -> None:
    """For lambdas that are there for their effect."""
