"""Where a run lives on disk: made for one attempt, gone after it, and what a runner left there is read as hostile."""

import errno
import fcntl
import logging
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Self

from pydantic import ValidationError

from modelpress.run import RunResult

LARGEST_RESULT = 32 << 20
LARGEST_SPEC = 1 << 20
"""What a model is known by is read with every list of models."""
LOCK = "lock"
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


log = logging.getLogger(__name__)


class InvalidResultError(Exception):
    """A runner said that it was done, but what it left behind cannot be used."""


class Scratch:
    """A worker's own folder below the shared one, with a lock in it that it holds as long as it lives.

    Folders of workers that are gone are removed on the way in; `left` are the names of those workers.
    """

    def __init__(self, folder: Path, worker: str) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (folder / LOCK).open("wb") as entrance:
            fcntl.flock(entrance, fcntl.LOCK_EX)
            self.left = [other.name for other in folder.iterdir() if other.is_dir() and _remove_if_left(other)]
            self.folder = folder / worker
            self.folder.mkdir(mode=0o700)
            self._lock = (self.folder / LOCK).open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    @contextmanager
    def run_directory(self, name: str) -> Iterator[Path]:
        path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
        try:
            (path / "in").mkdir()
            (path / "out").mkdir()
            yield path
        finally:
            remove_tree(path)

    def close(self) -> None:
        remove_tree(self.folder)
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _remove_if_left(folder: Path) -> bool:
    try:
        with (folder / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False  # its worker lives
    except FileNotFoundError:
        pass  # its worker ended while it removed the folder
    remove_tree(folder)
    return True


def remove_tree(folder: Path) -> None:
    """Never raises: what a runner may have left, thousands of folders deep or closed to us, goes too."""
    try:
        shutil.rmtree(folder)
    except (OSError, RecursionError):
        # shutil goes down by recursion and stops at closed folders; these two do neither
        for command in (["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
            subprocess.run([*command, "--", str(folder)], stderr=subprocess.DEVNULL, check=False)  # noqa: S603 (ours)
    if folder.exists():
        log.warning("%s cannot be removed as a whole", folder)


def read_result(run_dir: Path) -> RunResult:
    """Raises InvalidResultError."""
    with open_output(run_dir, "result.json") as (file, _):
        text = file.read(LARGEST_RESULT + 1)
    if len(text) > LARGEST_RESULT:
        raise InvalidResultError("result.json is too large")
    try:
        # Written and read once more, as what is stored will be: NaN, which is null in JSON, is seen now.
        result = RunResult.model_validate_json(RunResult.model_validate_json(text).model_dump_json())
    except ValidationError as error:
        raise InvalidResultError(f"result.json does not say what it must: {error.error_count()} errors") from error
    for spec in (result.model, result.dataset):
        if spec is not None and len(spec.model_dump_json()) > LARGEST_SPEC:
            raise InvalidResultError("the names in the file are too many or too long; make them shorter")
    return result


@contextmanager
def open_output(run_dir: Path, name: str) -> Iterator[tuple[BinaryIO, int]]:
    """A plain file directly in out/, never through a link, and its size. Raises InvalidResultError."""
    if not is_plain(name):
        raise InvalidResultError(f"{name!r} is not the plain name of a file")
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(open_folder(run_dir, "out"))
            file, about = stack.enter_context(open_file(folder, name))
        except OSError as error:
            raise InvalidResultError(f"out/{name} cannot be opened: {error.strerror}") from error
        yield file, about.st_size


def is_plain(name: str) -> bool:
    return name not in {"", ".", ".."} and "/" not in name and "\0" not in name


@contextmanager
def open_folder(run_dir: Path, *names: str) -> Iterator[int]:
    """A descriptor of a folder that a runner may have made, never through a link. Raises OSError."""
    folder = os.open(run_dir, FOLDER)
    try:
        for name in names:
            inner = os.open(name, FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


@contextmanager
def open_file(folder: int, name: str) -> Iterator[tuple[BinaryIO, os.stat_result]]:
    """Raises OSError, also where it is a link or no plain file."""
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    with os.fdopen(file, "rb") as opened:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1:
            raise OSError(errno.EINVAL, "it is not a plain file")
        yield opened, about
