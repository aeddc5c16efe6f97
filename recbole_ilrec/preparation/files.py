"""Files and folders that are either complete or absent: atomic writes, checksums, a staging folder with recovery.

Also whether something can be written at all.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from recbole_ilrec.errors import UserError

logger = logging.getLogger(__name__)

BLOCK = 1 << 20


@contextmanager
def write_atomically(path: Path) -> Iterator[IO[str]]:
    """A UTF-8 text stream that becomes ``path`` only when the block ends without an error.

    The text goes to a temporary name in the same folder, is synced to disk and renamed. Line ends are written as given.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def share(path: Path) -> None:
    """Give a file that its writer made for one user alone, as safetensors does, the permissions of any new file."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def require_writable(folder: Path, what: str) -> None:
    """Write a byte in ``folder``, or in the nearest folder above it that exists; nothing stays and nothing is made.

    Args:
        folder: where files are to go; it need not exist.
        what: the setting as typed, e.g. ``"checkpoint_dir=saved"``.

    Raises:
        UserError: the system refuses: a read-only or full disk, no permission, a file in the place of a folder.
    """
    trial: Path | None = None
    try:
        place = folder
        while not place.exists() and place != place.parent:
            place = place.parent
        trial = place / f".writable.tmp-{os.getpid()}"
        with trial.open("wb") as stream:
            stream.write(b"0")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise UserError(
            f"{what} cannot be written, the system refused: {error.strerror}. Choose another path, or mend its "
            "permissions or the free space."
        ) from None
    finally:
        if trial is not None:
            with suppress(OSError):
                trial.unlink()


def sync_folder(folder: Path) -> None:
    """Make the renames inside ``folder`` durable, where the system allows a folder to be synced."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def mirror(source: Path, target: Path) -> None:
    """Make ``target`` what ``source`` is, a file, a folder or nothing; what stood there is gone.

    Files are the same ones under a second name where the file system can, since weights may be large, else copies: for
    files that are replaced and never written in place.
    """
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_linked)
    elif source.is_file():
        _linked(source, target)


def _linked(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in blocks with a progress bar."""
    from tqdm import tqdm

    digest = hashlib.sha256()
    with (
        path.open("rb") as stream,
        tqdm(total=path.stat().st_size, desc=f"sha256 {path.name}", unit="B", unit_scale=True, disable=None) as bar,
    ):
        while block := stream.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside ``target`` that is gone, with all it holds, when the block ends; see :func:`install`.

    The folder is locked while its process lives, so that :func:`recover` can tell it from what a killed run left.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.parent / f".{target.name}.tmp-{os.getpid()}"
    staging.mkdir()
    lock = lock_folder(staging)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def install(folder: Path, target: Path) -> None:
    """Move the finished ``folder`` to ``target``, replacing a folder that stands there.

    Choice: no portable call exchanges two folders at once, so an existing target is first set aside as
    ``.NAME.old-PID``. A run killed between the two renames is put right by :func:`recover`.
    """
    sync_folder(folder)
    aside = target.parent / f".{target.name}.old-{os.getpid()}"
    if target.exists():
        os.rename(target, aside)
    try:
        os.rename(folder, target)
    except BaseException:
        if aside.exists():
            os.rename(aside, target)
        raise
    sync_folder(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def recover(target: Path) -> None:
    """Clean up after killed runs: remove their staging folders, put back a target set aside in the midst of a swap.

    The staging folder of a run that is still busy is left alone.
    """
    for leftover in sorted(target.parent.glob(f".{target.name}.old-*")):
        if target.exists():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            os.rename(leftover, target)
            logger.info("Put back %s, set aside by a run that was killed.", target)
    for leftover in sorted(target.parent.glob(f".{target.name}.tmp-*")):
        lock = lock_folder(leftover)
        if lock is None:
            continue
        os.close(lock)
        shutil.rmtree(leftover, ignore_errors=True)
        logger.info("Removed %s, left by a run that was killed.", leftover)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """This process alone works in ``folder``, which is made when missing; where locks do not exist nothing is checked.

    Raises:
        UserError: another process works in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = _lock(folder, wait=False)
    except BlockingIOError:
        raise UserError(f"another process is at work in {folder}: wait until it ends, or stop it first.") from None
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


@contextmanager
def in_turn(folder: Path, busy: str) -> Iterator[int | None]:
    """``folder``, made when missing, for this process alone; while another has it, say ``busy`` and wait.

    Yields:
        the descriptor that holds the lock, which can be handed on to a process that outlives this one.
    """
    descriptor = _waited_for(folder, busy)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def made_once(path: Path) -> Iterator[None]:
    """The turn of this process among those that would make ``path``: who comes later waits, and finds it made.

    The folder that is locked meanwhile is gone afterwards, as are those above it that were made for it and stay empty.
    """
    turn = path.parent / ".turns" / path.name
    made = [turn, turn.parent, *(folder for folder in path.parents if not folder.exists())]
    with in_turn(turn, "Waiting for another run that makes what this one needs"):
        try:
            yield
        finally:
            with suppress(OSError):
                for folder in made:
                    folder.rmdir()


def _waited_for(folder: Path, busy: str) -> int | None:
    """Descriptor of ``folder``, locked, and still the folder of that name: who had it before may have removed it."""
    while True:
        with suppress(FileNotFoundError):
            folder.mkdir(parents=True, exist_ok=True)
        descriptor = lock_folder(folder)
        if descriptor is None:
            logger.info("%s (%s)", busy, folder)
            descriptor = lock_folder(folder, wait=True)
        if descriptor is None:
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        os.close(descriptor)


def lock_folder(folder: Path, *, wait: bool = False) -> int | None:
    """Descriptor of ``folder``, locked for this process and those that it hands the descriptor to.

    Returns:
        ``None`` when another run holds it (never with ``wait``), or locks do not exist here.
    """
    try:
        return _lock(folder, wait=wait)
    except BlockingIOError:
        return None


def _lock(folder: Path, *, wait: bool) -> int | None:
    """As :func:`lock_folder`, but that another run holds it is a ``BlockingIOError``."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor
