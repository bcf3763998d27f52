"""The paper's archives, unpacked member by member: nothing lands outside the folders that one is
for.
"""

from __future__ import annotations

import gzip
import json
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from utils.paths import Paths
from utils.runtime.errors import UserError, first_line
from utils.runtime.files import atomic_path, require_disk, write_json
from utils.runtime.progress import progress
from utils.runtime.units import show_bytes

if TYPE_CHECKING:
    from typing import Self  # from Python 3.11 on

CHUNK = 1 << 20
MOST_GROWTH = 1100  # times that gzip's densest output grows
SAMPLE = 32 << 20  # compressed bytes read to learn how much an archive grows
SPARE = 64 << 20  # bytes of the disk that are left free


def is_extracted(archive: Path, paths: Paths) -> bool:
    """Whether this very archive was unpacked to its end."""
    try:
        return json.loads(paths.extracted(archive).read_text(encoding="utf-8")) == identity(archive)
    except (OSError, ValueError):
        return False


def identity(archive: Path) -> dict[str, int]:
    status = archive.stat()
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def extract(archive: Path, paths: Paths, model_name: str) -> list[str]:
    """Unpack one archive; lines on members that were refused.

    Raises UserError when the archive is damaged or the disk too small. What was unpacked by then
    stays.
    """
    if is_extracted(archive, paths):
        print(f"{archive.name}: already unpacked")
        return []
    require_disk(paths.data_dir, estimate(archive))
    refused: list[str] = []
    n_new = n_there = 0
    size = archive.stat().st_size
    with (
        damage_as_user_error(archive),
        open(archive, "rb") as compressed,
        gzip.open(compressed) as stream,
        progress(total=size, desc=archive.name, unit="B", unit_scale=True) as bar,
        tarfile.open(fileobj=stream, mode="r|", tarinfo=Header) as members,
    ):
        for member in members:
            bar.update(compressed.tell() - bar.n)
            # tarfile would look for the next one behind its end for hours
            if member.size > MOST_GROWTH * size and not member.issparse():
                raise ValueError(
                    f"{member.name!r} announces {show_bytes(member.size)}, more than it can hold"
                )
            if member.isdir() or PurePosixPath(member.name).name.startswith(("._", ".DS_Store")):
                continue
            try:
                new = copy(
                    members, member, destination(member, archive, paths, model_name), archive
                )
            except UserError as error:
                refused.append(str(error))
                continue
            n_new, n_there = n_new + new, n_there + (not new)
        while stream.read(CHUNK):  # to the end, where gzip compares its checksum
            pass
        bar.update(size - bar.n)
    if not (n_new or n_there or refused):
        raise UserError(f"{archive} holds no files: download it again")
    if not refused:
        write_json(paths.extracted(archive), identity(archive))
    print(f"{archive.name}: {n_new} files unpacked, {n_there} were there, {len(refused)} refused")
    return refused


class Header(tarfile.TarInfo):
    """A member's header; one that announces a name or attributes of megabytes, which tarfile would
    read whole, is damage.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        kinds = (
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
            tarfile.SOLARIS_XHDTYPE,
        )
        if header.type in kinds and header.size > CHUNK:
            raise ValueError(f"a header of {show_bytes(header.size)}")
        return header


@contextmanager
def damage_as_user_error(archive: Path) -> Iterator[None]:
    try:
        yield
    except (
        tarfile.TarError,
        gzip.BadGzipFile,
        EOFError,
        zlib.error,
        ValueError,
        OverflowError,
    ) as error:
        raise UserError(
            f"{archive} is cut off or damaged ({first_line(error)}): what was whole is unpacked;"
            " download it again, and run this again"
        ) from error


def estimate(archive: Path) -> int:
    """Bytes that an archive will unpack to, from how much its beginning grows."""
    unpacker, n_in, n_out = zlib.decompressobj(wbits=31), 0, 0
    with open(archive, "rb") as file:
        while n_in < SAMPLE and (block := file.read(CHUNK)):
            n_in += len(block)
            try:
                while block:  # a block of a bomb grows a thousandfold: never all of it at once
                    n_out += len(unpacker.decompress(block, CHUNK))
                    block = unpacker.unconsumed_tail
            except zlib.error as error:
                raise UserError(
                    f"{archive} is no whole gzip file ({first_line(error)}): download it again"
                ) from error
    return int(archive.stat().st_size * n_out / max(n_in, 1))


def destination(member: tarfile.TarInfo, archive: Path, paths: Paths, model_name: str) -> Path:
    """Where a member goes: below one of the folders that its archive is for.

    Raises UserError for a link, a device, or a name that leads anywhere else.
    """
    # a few bytes of a sparse file can stand for gigabytes
    if not member.isreg() or member.issparse():
        raise UserError(
            f"{archive.name}: {member.name!r} is a link, device or sparse file: refused"
        )
    parts = [part for part in PurePosixPath(member.name).parts if part != "."]
    if PurePosixPath(member.name).is_absolute() or ".." in parts or "\\" in member.name:
        raise UserError(f"{archive.name}: {member.name!r} would land outside its folder: refused")
    if (
        not parts
        or not member.name.isprintable()
        or parts[-1] == "model.json"
        or any(len(part.encode()) > 200 for part in parts)
    ):
        raise UserError(f"{archive.name}: {member.name!r} is no name of a published file: refused")
    if len(parts) > 1 and parts[0] in ("data", "raw_text_datasets"):
        parts = parts[1:]
    stem = archive.name.removesuffix(".tar.gz")
    folders = {stem, stem.removesuffix("_1m"), stem.removesuffix("_1m").removesuffix("_OOD")}
    if parts[0] not in folders:
        if len(parts) > 1 and parts[0].startswith(
            ("model_activations", "sae_activations", "baseline_results")
        ):
            raise UserError(f"{archive.name}: {member.name!r} belongs to another archive: refused")
        parts = [stem.removesuffix("_1m"), *parts]
    if stem.endswith("_1m") and not parts[0].endswith("_1m"):
        parts[0] += "_1m"  # the other archive has the same names for another SAE
    path = paths.data_dir.joinpath(*parts)
    if paths.data_dir.resolve() not in path.parent.resolve().parents:  # a link on this disk
        raise UserError(
            f"{archive.name}: {member.name!r} would land outside {paths.data_dir}: refused"
        )
    return path


def copy(members: tarfile.TarFile, member: tarfile.TarInfo, path: Path, archive: Path) -> bool:
    """Write a member's content to ``path``; False when that very content is there already.

    Raises UserError when something else is there, or the disk has no room.
    """
    source = members.extractfile(member)
    assert source is not None
    if path.is_file() and path.stat().st_size == member.size and same_content(source, path):
        return False
    if path.exists():
        raise UserError(
            f"{path} is there with other content than in {archive.name}: delete it to have the"
            " archive's"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path.parent} cannot be a folder ({error.strerror}): move away what is in its place"
        ) from error
    free = shutil.disk_usage(path.parent).free
    if member.size > free - SPARE:
        raise UserError(
            f"{archive.name}: {member.name} needs {show_bytes(member.size)} and {show_bytes(free)}"
            " are free: make room, then run this again"
        )
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as file:
            shutil.copyfileobj(source, file, CHUNK)
        if temporary.stat().st_size != member.size:
            raise EOFError(f"{member.name} ends early")
    return True


def same_content(source: IO[bytes], path: Path) -> bool:
    """Whether a stream holds the bytes of a file of the same size; it is read either way."""
    same = True
    with open(path, "rb") as file:
        while block := source.read(CHUNK):
            same = file.read(len(block)) == block and same
    return same
