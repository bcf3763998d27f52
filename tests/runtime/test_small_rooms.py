"""Sizes, numbers, progress bars and what is written about a run."""

from __future__ import annotations

import io
import json
import shlex
import signal
import sys

import pytest

from utils import cli
from utils.names import make_sae_id, named_width
from utils.runtime import progress as progress_bars
from utils.runtime.errors import Failures, UserError
from utils.runtime.progress import progress, where_it_stood
from utils.runtime.provenance import (
    RECORDED_PACKAGES,
    installed_versions,
    read_run_settings,
    save_run_settings,
)
from utils.runtime.units import parse_bytes, short_number, show_bytes


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("1", 1),
        ("2g", 2 << 30),
        ("4GiB", 4 << 30),
        ("1.5 MiB", 3 << 19),
        ("500MB", 500_000_000),
        ("1 kb", 1000),
        ("3b", 3),
    ],
)
def test_sizes_are_read_as_people_write_them(text, n):
    assert parse_bytes(text) == n


@pytest.mark.parametrize("text", ["", "GiB", "4 hours", "-1g", "1e9", "nan"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="is no size"):
        parse_bytes(text)


def test_sizes_and_counts_are_shown_short():
    shown = [show_bytes(n) for n in (12, 2048, 3 << 20, 5 << 30, 5 << 40)]
    assert shown == ["12 B", "2.0 KiB", "3.0 MiB", "5.00 GiB", "5.00 TiB"]
    assert [short_number(n) for n in (96, 4096, 16384, 24576, 131072, 1 << 20)] == [
        "96",
        "4k",
        "16k",
        "24k",
        "131k",
        "1M",
    ]


def test_a_width_is_read_from_an_id_as_it_is_written_there():
    """131k is 131,072 and not 131 x 1,024, in Gemma Scope's ids and in ours."""
    named = {"16k": 1 << 14, "32k": 1 << 15, "65k": 1 << 16, "131k": 1 << 17, "262k": 1 << 18,
             "524k": 1 << 19, "1m": 1 << 20, "24k": 24 << 10, "128k": 1 << 17}  # fmt: skip
    assert {name: named_width(f"layer_20/width_{name}/average_l0_9") for name in named} == named
    for width in (96, 1000, 1024, 4096, 24576, 65 << 10, 1 << 16, 131 << 10, 1 << 17, 1 << 20):
        assert named_width(make_sae_id(2, width, 32, seed=42)) == width
    assert make_sae_id(2, 1 << 17, 32, seed=42) == "layer_2/width_131k/topk_32"


def test_a_stopped_run_can_say_how_far_it_was():
    bar = progress(total=7, desc="probing", unit="task")
    bar.update(3)
    assert where_it_stood() == " (probing: 3 of 7 tasks)"
    bar.close()


def test_failures_are_noted_once_and_the_rest_goes_on():
    failures = Failures()
    done = []
    for name in ("a", "b", "b", "c"):
        with failures.caught("file: "):
            if name == "b":
                raise UserError("b is broken")
            done.append(name)
    assert (done, failures.lines) == (["a", "c"], ["file: b is broken"])
    with pytest.raises(KeyError), failures.caught():
        raise KeyError("a fault of ours is no failure of the user's")


def test_a_run_leaves_its_settings_versions_and_commit(tmp_path):
    path = tmp_path / "settings.json"
    for seed in (42, 42, 43):
        save_run_settings(path, {"seed": seed})
    assert [run["settings"]["seed"] for run in read_run_settings(path)] == [42, 43]
    written = read_run_settings(path)[0]
    assert {"python", "numpy", "scikit-learn"} <= set(written["versions"])
    assert set(installed_versions()) <= {"python", *RECORDED_PACKAGES}
    assert written["commit"] is None or len(written["commit"]) == 40
    path.write_text(json.dumps(written))  # the form of one run alone
    save_run_settings(path, {"seed": 43})
    assert [run["settings"]["seed"] for run in read_run_settings(path)] == [42, 43]
    path.write_text("[1, 2]")
    assert read_run_settings(path) == []


def test_seeds_are_asked_for_in_one_flag():
    parser = cli.make_parser(None)
    cli.add_seeds(parser)

    def seeds(*flags: str) -> list[int]:
        return cli.seeds_of(parser.parse_args(list(flags)))

    assert seeds() == [42]
    assert seeds("--n_seeds", "3") == seeds("--seeds", "42,43,44") == [42, 43, 44]
    assert seeds("--n_seeds", "2", "--seed", "7") == [7, 8]
    with pytest.raises(UserError, match="give one of them"):
        seeds("--n_seeds", "2", "--seeds", "1,2")


def test_controls_are_all_some_or_none():
    parser = cli.make_parser(None)
    cli.add_controls(parser, ("a", "b", "c"), "what", ("a", "b"))

    def controls(*flags: str) -> list[str]:
        return cli.controls_of(parser.parse_args(list(flags)))

    assert controls() == ["a", "b"]
    assert controls("--controls", "all") == ["a", "b", "c"]
    assert controls("--controls", "c", "c") == ["c"]
    assert controls("--controls", "none") == []
    with pytest.raises(UserError, match="stands alone"):
        controls("--controls", "none", "a")


def test_bars_in_a_log_are_lines_of_their_own(monkeypatch):
    monkeypatch.setattr(progress_bars, "LOG_EVERY", 0)
    monkeypatch.setattr(sys, "stderr", said := io.StringIO())
    for _ in progress(range(2), desc="outer", unit="file"):
        for _ in progress(range(2), desc="inner, of a long name" * 4, unit="row", leave=False):
            pass
    lines = said.getvalue().splitlines()
    assert any(line.startswith("outer: 100%") for line in lines)
    assert all(line.isprintable() and 0 < len(line) <= 80 for line in lines)


def test_what_is_short_says_nothing_in_a_log(monkeypatch):
    monkeypatch.setattr(sys, "stderr", said := io.StringIO())
    assert list(progress(range(3), desc="short")) == [0, 1, 2]
    assert said.getvalue() == ""


def test_a_suggested_command_is_one_that_a_shell_takes():
    command = cli.make_command("train-sae-probes", "m", ["a b", "c"], " --ks 16 --overwrite")
    target, *variables = shlex.split(command)[1:]
    given = dict(variable.split("=", 1) for variable in variables)
    assert target == "train-sae-probes"
    # the Makefile puts DATASETS into a command line of its own
    assert shlex.split(given["DATASETS"]) == ["a b", "c"]
    assert given["ARGS"] == "--ks 16 --overwrite"
    assert cli.make_command("explain", "m") == "make explain MODEL=m"


def test_a_path_is_shown_from_where_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.shown_path(tmp_path / "results" / "t.csv") == "results/t.csv"
    assert cli.shown_path(tmp_path.parent / "t.csv") == str(tmp_path.parent / "t.csv")


def test_a_folded_line_fits_a_terminal_and_keeps_its_paths_whole():
    path = "/a/very-long/folder-of-somebody/" + "x" * 70
    lines = cli.folded(f"{'words ' * 30}{path} end").splitlines()
    assert all(len(line) <= cli.LINE or path in line for line in lines)
    assert any(path in line for line in lines)


def test_a_stop_just_after_the_work_is_one_line_too(monkeypatch, capsys):
    """Between the end of main and the handlers that end the process at once."""

    class Stopped(io.StringIO):
        def flush(self) -> None:
            raise KeyboardInterrupt

    handlers = {stop: signal.getsignal(stop) for stop in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(sys, "argv", ["a_script.py"])
    monkeypatch.setattr(sys, "stdout", Stopped())
    try:
        with pytest.raises(SystemExit) as ended:
            cli.run(lambda argv: 0)
    finally:
        for stop, handler in handlers.items():
            signal.signal(stop, handler)
    assert ended.value.code == 130
    assert "the same command continues" in capsys.readouterr().err
