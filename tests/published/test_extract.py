"""Unpacking the paper's archives: what lands where, what resumes, what is refused. The archives are
made here.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import folder_flags

from published import extract as extract_data

MODEL = "gemma-2-9b"


def pack(path: Path, members: dict[str, bytes], special: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in special:
            archive.addfile(info)
    return path


def run(paths) -> int:
    return extract_data.main(["--model_name", MODEL, *folder_flags(paths)])


def test_files_land_in_the_folder_the_archive_is_for_and_a_second_run_does_nothing(paths, capsys):
    folder = f"model_activations_{MODEL}"
    members = {
        f"{folder}/a_blocks.20.hook_resid_post.pt": b"a",
        f"./data/{folder}/b.pt": b"b",
        "c.pt": b"c",
        f"{folder}/._d.pt": b"x",
    }
    pack(paths.data_dir / f"{folder}.tar.gz", members)
    assert run(paths) == 0
    names = sorted(path.name for path in (paths.data_dir / folder).iterdir())
    assert names == ["a_blocks.20.hook_resid_post.pt", "b.pt", "c.pt"]
    capsys.readouterr()
    assert run(paths) == 0
    assert "already unpacked" in capsys.readouterr().out


def test_the_two_ood_archives_do_not_write_over_each_other(paths):
    names = (f"sae_activations_{MODEL}_OOD/a_OOD.pt", f"sae_activations_{MODEL}/a.pt")
    pack(paths.text_dir / f"sae_activations_{MODEL}_OOD.tar.gz", dict.fromkeys(names, b"131k"))
    pack(paths.text_dir / f"sae_activations_{MODEL}_OOD_1m.tar.gz", dict.fromkeys(names, b"1m"))
    assert run(paths) == 0
    for ood in (False, True):
        assert paths.published_ood_archive(MODEL, "a", ood).read_bytes() == b"131k"
        assert paths.published_ood_archive(MODEL, "a", ood, "_1m").read_bytes() == b"1m"


def link(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "name",
    [
        "../outside.pt",
        "/tmp/outside.pt",
        f"model_activations_{MODEL}/../../outside.pt",
        "a\\..\\b.pt",
        "sae_activations_x/a.pt",
    ],
)
def test_members_that_point_elsewhere_are_refused_and_the_rest_is_unpacked(paths, capsys, name):
    folder = f"model_activations_{MODEL}"
    pack(
        paths.data_dir / f"{folder}.tar.gz",
        {f"{folder}/a.pt": b"a", name: b"evil", f"{folder}/b.pt": b"b"},
    )
    assert run(paths) == 1
    assert "refused" in capsys.readouterr().err
    assert sorted(p.name for p in paths.data_dir.rglob("*.pt")) == ["a.pt", "b.pt"]
    assert not list(paths.data_dir.parent.glob("outside*"))


def test_links_and_devices_are_refused(paths, capsys):
    folder = f"model_activations_{MODEL}"
    special = (
        link(f"{folder}/l.pt", tarfile.SYMTYPE, "/etc/passwd"),
        link(f"{folder}/h.pt", tarfile.LNKTYPE, "/etc/passwd"),
        link(f"{folder}/d.pt", tarfile.CHRTYPE),
        link(f"{folder}/p.pt", tarfile.FIFOTYPE),
    )
    pack(paths.data_dir / f"{folder}.tar.gz", {f"{folder}/a.pt": b"a"}, special)
    assert run(paths) == 1
    assert capsys.readouterr().err.count("is a link, device or sparse file") == 4
    assert [p.name for p in paths.data_dir.rglob("*.pt")] == ["a.pt"]


def test_a_link_on_disk_leads_nothing_out(paths, tmp_path):
    folder = f"model_activations_{MODEL}"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    paths.data_dir.mkdir(parents=True)
    (paths.data_dir / folder).symlink_to(elsewhere)
    pack(paths.data_dir / f"{folder}.tar.gz", {f"{folder}/a.pt": b"a"})
    assert run(paths) == 1
    assert not list(elsewhere.iterdir())


def test_a_cut_off_archive_keeps_what_was_whole_and_says_so(paths, capsys):
    folder = f"model_activations_{MODEL}"
    incompressible = np.random.default_rng(0).bytes(400_000)
    archive = pack(
        paths.data_dir / f"{folder}.tar.gz",
        {f"{folder}/a.pt": b"a", f"{folder}/b.pt": incompressible},
    )
    archive.write_bytes(archive.read_bytes()[:-2000])
    assert run(paths) == 1
    assert "cut off or damaged" in capsys.readouterr().err
    assert [p.name for p in paths.data_dir.rglob("*.pt")] == ["a.pt"]
    assert not list(paths.data_dir.rglob("*.tmp"))
    archive.write_bytes(b"no archive")
    assert run(paths) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_an_archive_of_nothing_we_know_is_named(paths):
    paths.data_dir.mkdir(parents=True)
    with pytest.raises(extract_data.UserError, match="no archive of gemma-2-9b"):
        run(paths)


def test_something_else_in_a_members_place_is_kept_and_named(paths, capsys):
    folder = f"model_activations_{MODEL}"
    pack(
        paths.data_dir / f"{folder}.tar.gz",
        {f"{folder}/a.pt": b"new", f"{folder}/b/c.pt": b"c", f"{folder}/d.pt": b"d"},
    )
    (paths.data_dir / folder).mkdir()
    (paths.data_dir / folder / "a.pt").write_bytes(b"old")
    (paths.data_dir / folder / "b").write_bytes(b"a file")
    assert run(paths) == 1
    said = capsys.readouterr().err
    assert "other content" in said
    assert "cannot be a folder" in said
    assert (paths.data_dir / folder / "a.pt").read_bytes() == b"old"
    assert (paths.data_dir / folder / "d.pt").read_bytes() == b"d"


def test_a_small_archive_of_a_huge_sparse_file_is_refused(paths, capsys):
    info = tarfile.TarInfo(f"model_activations_{MODEL}/a.pt")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410] = b"00000000000\0", b"00000000000\0"  # a hole
    header[483:495] = b"%011o\0" % (1 << 32)  # the size it stands for
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 32)
    paths.data_dir.mkdir(parents=True)
    with gzip.open(paths.data_dir / f"model_activations_{MODEL}.tar.gz", "wb") as file:
        file.write(bytes(header) + bytes(1024))
    assert run(paths) == 1
    assert "sparse file" in capsys.readouterr().err
    assert not list(paths.data_dir.rglob("*.pt"))


def test_an_empty_archive_is_not_called_unpacked(paths, capsys):
    pack(paths.data_dir / f"model_activations_{MODEL}.tar.gz", {})
    assert run(paths) == 1
    assert "holds no files" in capsys.readouterr().err
