"""One command at a time in a folder of results: `FOLDER/in_use.json` says who is at work there.

What a killed process leaves behind does not stop the next one. On one machine the kernel tells: the holder has a file
locked (flock) for as long as it lives. Of a holder elsewhere, or on a disk that knows no locks, its sign of life tells,
a count in the file that it raises every few seconds; clocks, which differ, are not asked.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from jaxalign.errors import InputError
from jaxalign.files import AnyPath, check_writable, is_remote
from jaxalign.log import is_first_process, log_status
from jaxalign.runtime import from_process_0, processes

BEAT_SECONDS = 10.0
SILENT_SECONDS = 60.0
"""A holder elsewhere that gives no sign of life for so long is gone."""

held_here: dict[str, int] = {}
"""Folders that this process holds -> the thread that does."""
lost: dict[AnyPath, str] = {}
"""Those of their files that are another process's meanwhile -> what to say of it."""


@contextmanager
def held(folder: AnyPath) -> Iterator[None]:
    """Keeps other commands out of a folder, which is made if need be, until the block ends.

    Several processes of one command are one holder: process 0 holds for all. In a block of its own thread for the same
    folder it does nothing. InputError: another process is at work there, or nothing can be written there.
    """
    with ExitStack() as stack:
        error = None
        if is_first_process():
            try:
                stack.enter_context(_held_by_this_process(folder))
            except InputError as own:
                error = own
        if processes() > 1 and from_process_0([error is not None])[0]:
            raise error or InputError(f"{folder}: the first host cannot work in it, and says why")
        if error:
            raise error
        yield


def check_held() -> None:
    """Raises InputError where a folder that this process held is another's by now: it was silent for too long."""
    for told in lost.values():
        raise InputError(told)


@contextmanager
def _held_by_this_process(folder: AnyPath) -> Iterator[None]:
    name = str(folder if is_remote(folder) else Path(folder).resolve())
    if held_here.get(name) == threading.get_ident():
        yield
        return
    if name in held_here:
        raise InputError(f"{folder}: another thread of this process is at work there; choose another folder")
    is_new = isinstance(folder, Path) and not os.path.lexists(folder)
    try:
        if isinstance(folder, Path):
            check_writable(folder)
        hold = Hold(folder / "in_use.json")
    except InputError:
        raise
    except Exception as error:  # of the disk, or of what reaches a bucket
        raise InputError(f"{folder}: nothing can be written there ({error}); choose another --config.out") from error
    held_here[name] = threading.get_ident()
    try:
        yield
    finally:
        del held_here[name]
        hold.release()
        if is_new:
            with contextlib.suppress(OSError):  # there is something in it
                Path(folder).rmdir()


class Hold:
    """One folder's file, made and kept alive."""

    def __init__(self, path: AnyPath):
        self.path = path
        self.store = Bucket(path) if is_remote(path) else LocalFile(Path(path))
        self.lock_path = Path(path)
        if is_remote(path):
            name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
            self.lock_path = Path(tempfile.gettempdir()) / f"jaxalign-{os.getuid()}-{name}.lock"
        lock, self.is_locked = locked(self.lock_path)
        if lock is None:
            raise self.refusal(self.store.read())
        self.lock, stat = lock, os.fstat(lock)
        self.record: dict[str, Any] = {
            "host": platform.node(),
            "process": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S%z"),
            "token": secrets.token_hex(8),
            # Of the same machine, until it is started again, and the same file: there the lock tells.
            "lock": f"{boot()} {stat.st_dev} {stat.st_ino}" if self.is_locked else None,
            "beat": 0,
        }
        try:
            self.take()
        except BaseException as error:
            if isinstance(error, OSError):  # no space: nor is the file left, empty
                self.lock_path.unlink(missing_ok=True)
            os.close(self.lock)
            raise
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.keep_alive, daemon=True)
        self.thread.start()

    def take(self) -> None:
        while (found := self.store.read()) is not None:
            if not self.is_locked or parsed(found).get("lock") != self.record["lock"]:
                found = self.silent(found)
            if found is not None and self.store.write(self.content(), found):
                return
        if not self.store.write(self.content(), None):
            raise self.refusal(self.store.read())

    def silent(self, found: bytes) -> bytes | None:
        """What was found again, once its writer has been silent for long enough; None if it is gone."""
        log_status(
            f"{self.path}: left by {named(found)}; waiting {SILENT_SECONDS:.0f} s to see whether that still works here"
        )
        until = time.monotonic() + SILENT_SECONDS
        while time.monotonic() < until:
            time.sleep(min(BEAT_SECONDS, SILENT_SECONDS) / 5)
            if (now := self.store.read()) != found:
                if now is None:
                    return None
                raise self.refusal(now)
        return found

    def refusal(self, content: bytes | None) -> InputError:
        return InputError(
            f"{self.path.parent}: {named(content)} is at work there; wait for its end, or choose another folder"
        )

    def content(self) -> bytes:
        return json.dumps(self.record).encode() + b"\n"

    def keep_alive(self) -> None:
        """Raises the count until the end, or until the file is another's."""
        while not self.ended.wait(BEAT_SECONDS):
            with contextlib.suppress(Exception):  # a disk or network that fails for a while
                found = self.store.read()
                if found is not None and parsed(found).get("token") != self.record["token"]:
                    lost[self.path] = (
                        f"{self.path.parent}: {named(found)} has taken it over, as this process was silent for too long"
                    )
                    return
                self.record["beat"] += 1
                self.store.write(self.content(), found)

    def release(self) -> None:
        """Takes the file away, if it is still this holder's."""
        self.ended.set()
        self.thread.join()
        lost.pop(self.path, None)
        with contextlib.suppress(Exception):  # what stays behind is one that was killed
            if (found := self.store.read()) and parsed(found).get("token") == self.record["token"]:
                self.store.remove()
            if is_remote(self.path):
                self.lock_path.unlink()
        os.close(self.lock)


class LocalFile:
    """A file on this machine, or on a disk that several share: it is written while it is locked.

    Where no lock holds between two hosts and both write, the signs of life tell the first that the file is the other's.
    """

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> bytes | None:
        # Opened anew: a network's disk then looks at what others have written.
        with contextlib.suppress(FileNotFoundError):
            return self.path.read_bytes() or None

    def write(self, content: bytes, found: bytes | None) -> bool:
        """Whether it could be written; made where `found` is None, else what was found is replaced."""
        # In place, for the lock is on this very file.
        with open(os.open(self.path, os.O_WRONLY | os.O_NOFOLLOW), "wb", buffering=0) as file:
            file.write(content)
            file.truncate()
            os.fsync(file.fileno())
        return True

    def remove(self) -> None:
        self.path.unlink()


class Bucket:
    """The same of an object; Google's storage makes it only where there is none, and replaces only what was read."""

    def __init__(self, path: AnyPath):
        from google.cloud import storage

        bucket, _, name = str(path).removeprefix("gs://").partition("/")
        self.blob = storage.Client().bucket(bucket).blob(name)
        self.generation = 0

    def read(self) -> bytes | None:
        from google.api_core.exceptions import NotFound

        self.generation = 0
        with contextlib.suppress(NotFound):
            content = self.blob.download_as_bytes(checksum=None)
            self.generation = int(self.blob.generation or 0)
            return content

    def write(self, content: bytes, found: bytes | None) -> bool:
        from google.api_core.exceptions import PreconditionFailed

        try:
            generation = 0 if found is None else self.generation
            self.blob.upload_from_string(content, if_generation_match=generation, checksum=None)
        except PreconditionFailed:
            return False
        return True

    def remove(self) -> None:
        self.blob.delete(if_generation_match=self.generation)


def locked(path: Path) -> tuple[int | None, bool]:
    """The file, open, and whether it is locked, which some disks cannot; None where another process has it locked."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return file, False
            os.close(file)
            return None, False
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                return file, True
        os.close(file)  # its holder has just taken it away


def boot() -> str:
    """What is this machine's alone, until it is started again."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return platform.node()


def parsed(content: bytes | None) -> dict[str, Any]:
    """The record in a file; {} where it is none."""
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(record := json.loads(content or b""), dict):
            return record
    return {}


def named(content: bytes | None) -> str:
    """Who holds a folder, for the user's terminal, which nothing in the file can steer."""
    if not (record := parsed(content)):
        return "another process"
    told = f"process {record.get('process')} on {record.get('host')} (since {record.get('since')})"
    return "".join(filter(str.isprintable, told))
