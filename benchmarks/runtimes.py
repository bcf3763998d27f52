"""Whether another runtime reads a language model faster on a CPU at equal numbers: torch.compile,
ONNX Runtime and OpenVINO against the plain forward pass.

    python -m benchmarks.runtimes
    python -m benchmarks.runtimes --model_name smollm2-135m --n_texts 200

Each gets the blocks up to the model's probe layer, the same padded batches and as many threads, in
turns; float32 throughout. Prints and keeps (docs/runtimes.json, which `make docs` writes into
docs/performance.md) how long each took to prepare, its time against the plain pass, and the largest
difference of an activation, relative to the largest activation. A runtime that is not installed, or
that cannot take the model, is a line that says so. The three are no requirements of this project:
pip install onnx onnxscript onnxruntime openvino
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.measurements import add_reading, machine
from utils import cli
from utils.datasets import list_datasets, load_dataset
from utils.language_models import TOKENS_PER_BATCH, HookedModel, texts_in_batch
from utils.models import get_model
from utils.names import hook_name
from utils.runtime.errors import UserError, first_line
from utils.runtime.files import ROOT, write_json

if TYPE_CHECKING:
    import torch

KEPT = ROOT / "docs" / "runtimes.json"
Batch = tuple["torch.Tensor", "torch.Tensor"]
Read = Callable[[Batch], np.ndarray]


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--model_name", default="all-MiniLM-L6-v2", metavar="NAME")
    add_reading(parser, n_texts=500)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    import torch

    paths = cli.paths_of(args)
    info = get_model(args.model_name, paths)
    names = list_datasets(paths)
    share = -(-args.n_texts // len(names))
    in_turn = zip(*(load_dataset(paths, name).texts[:share] for name in names))
    texts = [text for of_turn in in_turn for text in of_turn][: args.n_texts]
    if not isinstance(info.probe_layer, int):
        raise UserError(f"{info.name} is read at {info.probe_layer}, not at the end of a block")
    model = HookedModel(info, [hook_name(info.probe_layer)], paths, "cpu")
    batches = padded_batches(model, texts)
    n_tokens = int(sum(mask.sum() for _, mask in batches))
    lower = lower_blocks(model, info.probe_layer + 1)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Read] = {"plain": plain(lower)}
        for name, (packages, prepare) in RUNTIMES.items():
            lacking = [p for p in packages if importlib.util.find_spec(p) is None]
            if lacking:
                found[name] = {"failed": f"{', '.join(lacking)} not installed"}
                continue
            started = time.perf_counter()
            try:
                own = Path(folder) / name.replace(" ", "_")
                own.mkdir()
                ways[name] = prepare(lower, batches[0], own)
                ways[name](batches[0])
            except Exception as error:  # whatever another's compiler may raise
                found[name] = {"failed": why(error)}
                ways.pop(name, None)
                continue
            found[name] = {"prepared_s": time.perf_counter() - started}
        measure(ways, batches, args.n_turns, found)
    for name, row in found.items():
        print(f"{name}: {in_words(row)}")
    print(f"{len(texts)} texts, {n_tokens} tokens, {torch.get_num_threads()} threads")
    content = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
    content[info.name] = {"machine": machine(), "n_tokens": n_tokens, "runtimes": found}
    write_json(KEPT, content)
    return 0


def padded_batches(model: HookedModel, texts: list[str]) -> list[Batch]:
    """(token ids, mask) of the batches that reading makes of texts."""
    token_ids = sorted(model.tokenize(texts), key=len, reverse=True)
    lengths = np.array([len(ids) for ids in token_ids])
    batches, start = [], 0
    while start < len(token_ids):
        size = texts_in_batch(lengths[start:], TOKENS_PER_BATCH["cpu"])
        batch = model.padded(token_ids[start : start + size])
        batches.append((batch["input_ids"], batch["attention_mask"]))
        start += size
    return batches


def lower_blocks(model: HookedModel, depth: int) -> torch.nn.Module:
    """The first blocks: (ids, mask) to what comes out of the last, [n_texts, n_tokens, d_model]."""
    from torch import nn

    whole = model.model
    for holder in whole.modules():
        for name, child in list(holder.named_children()):
            if isinstance(child, nn.ModuleList) and len(child) >= depth:
                setattr(holder, name, child[:depth])
                if hasattr(holder, "norm"):  # after the last block of a decoder
                    holder.norm = nn.Identity()
    whole.config.num_hidden_layers = depth
    if hasattr(whole.config, "use_cache"):
        whole.config.use_cache = False

    class Lower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = whole

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.whole(input_ids=ids, attention_mask=mask).last_hidden_state

    return Lower().eval()


def plain(lower: Callable[..., torch.Tensor]) -> Read:
    import torch

    def read(batch: Batch) -> np.ndarray:
        with torch.inference_mode():
            return lower(*batch).numpy()

    return read


def compiled(lower: torch.nn.Module, batch: Batch, folder: Path) -> Read:
    """Needs a C++ compiler."""
    import torch

    return plain(torch.compile(lower, dynamic=True))


def as_onnx(lower: torch.nn.Module, batch: Batch, folder: Path) -> Path:
    """The blocks as a file that takes any number of texts and tokens."""
    import torch

    path = folder / "lower.onnx"
    n_texts, n_tokens = torch.export.Dim("n_texts", min=2), torch.export.Dim("n_tokens", min=2)
    shapes = {name: {0: n_texts, 1: n_tokens} for name in ("ids", "mask")}
    torch.onnx.export(
        lower, batch, path, dynamo=True, dynamic_shapes=shapes, verbose=False,
        input_names=["ids", "mask"], output_names=["states"],
    )  # fmt: skip
    return path


def onnx_runtime(lower: torch.nn.Module, batch: Batch, folder: Path) -> Read:
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        str(as_onnx(lower, batch, folder)), options, providers=["CPUExecutionProvider"]
    )

    def read(batch: Batch) -> np.ndarray:
        ids, mask = batch
        (states,) = session.run(None, {"ids": ids.numpy(), "mask": mask.numpy()})
        return np.asarray(states)

    return read


def open_vino(lower: torch.nn.Module, batch: Batch, folder: Path) -> Read:
    import openvino
    import torch

    made = openvino.compile_model(
        openvino.convert_model(as_onnx(lower, batch, folder)),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()},
    )

    def read(batch: Batch) -> np.ndarray:
        return np.array(made([part.numpy() for part in batch])[0])

    return read


RUNTIMES: dict[str, tuple[tuple[str, ...], Callable[[Any, Batch, Path], Read]]] = {
    "torch.compile": ((), compiled),
    "ONNX Runtime": (("onnx", "onnxscript", "onnxruntime"), onnx_runtime),
    "OpenVINO": (("onnx", "onnxscript", "openvino"), open_vino),
}


def measure(
    ways: dict[str, Read], batches: list[Batch], n_turns: int, found: dict[str, dict[str, Any]]
) -> None:
    """Add to ``found`` each way's ratio to the plain pass, and how far its numbers are from it on
    real tokens; a way that fails on the way says so.
    """
    best: dict[str, float] = {}
    apart = dict.fromkeys(ways, 0.0)
    for turn in range(n_turns):
        expected: list[np.ndarray] = []
        for name, read in list(ways.items()):
            started = time.perf_counter()
            try:
                states = [read(batch) for batch in batches]
            except Exception as error:
                found[name] = {"failed": why(error)}
                ways.pop(name)
                continue
            seconds = time.perf_counter() - started
            # the first turn compiles for new shapes
            if turn or n_turns == 1:
                best[name] = min(seconds, best.get(name, seconds))
            if name == "plain":
                expected = states
                continue
            for (_, mask), one, other in zip(batches, states, expected):
                real = mask.numpy() == 1
                largest = float(np.abs(other[real]).max())
                difference = float(np.abs(one[real] - other[real]).max()) / largest
                apart[name] = max(apart[name], difference)
    for name in ways:
        if name != "plain":
            found[name] |= {"ratio": best["plain"] / best[name], "apart": apart[name]}


def why(error: Exception) -> str:
    """The first sentence of an error, without a terminal's colours."""
    line = re.sub(r"\x1b\[[0-9;]*m", "", first_line(error))
    return line.split(". ")[0][:120]


def in_words(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"not measured: {row['failed']}"
    return (
        f"{row['ratio']:.2f} times the plain pass's speed, ready after {row['prepared_s']:.0f} s,"
        f" numbers within {row['apart']:.0e}"
    )


if __name__ == "__main__":
    cli.run(main)
