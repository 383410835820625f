"""The data directory of the embedded server: its ownership, its secret key, and the mark of a demo."""

import base64
import fcntl
import os
import pwd
import secrets
import stat
import tempfile
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

from cases_service.embedded import supervisor

KEY_FILE: Final = "secret.key"
_DEMO_MARK: Final = "made-by-demo"


class ForeignDirectoryError(RuntimeError):
    """The directory is not the caller's own, or not a demo's. The message is one line."""


def exists(data_dir: Path) -> bool:
    """Tell whether this is the data directory of an embedded server."""
    return (data_dir / supervisor.USERS_LOCK).exists()


def make_own(data_dir: Path, *, may_hold: AbstractSet[str] = frozenset()) -> set[str]:
    """Create the directory if it is missing, verify that it is the caller's own, and return the names in it.

    A directory with no files but `may_hold` is closed to other users, unless they could have put those files there.

    Raises:
        ForeignDirectoryError: It is not a directory, another user's, or writable by other users.

    """
    require_own(data_dir)
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_own(data_dir)  # another user may have been quicker
    found, names = data_dir.stat(), _names(data_dir)
    is_open = bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    if not names - (set() if is_open else may_hold) and found.st_uid == os.geteuid():
        data_dir.chmod(0o700)
        names = _names(data_dir)  # once nobody else can add to them
    if is_open and names:
        raise ForeignDirectoryError(
            f"other users may write to {data_dir}: if you trust what is in it, run chmod -R go-w on it;"
            " else set CASES_DATA_DIR to a new directory"
        )
    return names


def require_own(data_dir: Path) -> None:
    """Verify that the path, if it exists, is the caller's own directory and that no other user can replace it.

    Raises:
        ForeignDirectoryError: It is not, or another user can.

    """
    found = _look_at(data_dir)
    _require_fixed_way(data_dir)
    if found is None:
        return
    if not stat.S_ISDIR(found.st_mode):
        raise ForeignDirectoryError(f"{data_dir} is not a directory: set CASES_DATA_DIR to one, or to a new path")
    if found.st_uid != os.geteuid() and not (os.geteuid() == 0 and supervisor.is_given_by_root(data_dir)):
        raise ForeignDirectoryError(
            f"{data_dir} belongs to {_name(found.st_uid)}, and this process is {_name(os.geteuid())}:"
            " run the command as its owner, or set CASES_DATA_DIR to a directory of your own"
        )


def _look_at(data_dir: Path) -> os.stat_result | None:
    """Return the path's status, or None if nothing exists there yet."""
    try:
        return data_dir.stat()
    except FileNotFoundError:
        if not data_dir.is_symlink():
            return None
        raise ForeignDirectoryError(
            f"{data_dir} is a link to a directory that does not exist: make that, or set CASES_DATA_DIR to another"
        ) from None
    except OSError as error:
        raise ForeignDirectoryError(f"cannot use the data directory {data_dir}: {error.strerror}") from None


def _require_fixed_way(data_dir: Path) -> None:
    """Reject a path if another user could replace a part of it."""
    for place in (data_dir, *data_dir.parents):
        if place.is_symlink() and place.lstat().st_uid not in (0, os.geteuid()):
            raise ForeignDirectoryError(f"{place} is another user's link: set CASES_DATA_DIR to a path without it")
    for place in data_dir.resolve().parents:
        mode = place.stat().st_mode if place.exists() else 0
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise ForeignDirectoryError(
                f"every user may write to {place}, and put another directory in the place of {data_dir}:"
                f" run chmod o-w on {place}, or set CASES_DATA_DIR to a directory elsewhere"
            )


def _names(data_dir: Path) -> set[str]:
    return {path.name for path in data_dir.iterdir()}


def _name(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


def secret_key_file(data_dir: Path) -> Path:
    """Return the file with the directory's secret key; it is created when first needed.

    Safe for several processes at once. Only the directory's owner can read the file.
    """
    file = data_dir / KEY_FILE
    directory = os.open(data_dir, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        if not file.exists():
            _write_secret_key(file)
    finally:
        os.close(directory)
    return file


def claim_for_demo(data_dir: Path) -> None:
    """Mark the directory as a demo's; create it if it is missing.

    Raises:
        ForeignDirectoryError: It has files that no demo made, or other users may use it.

    """
    names = make_own(data_dir, may_hold={supervisor.USERS_LOCK})
    if _DEMO_MARK in names:
        return
    if names - {supervisor.USERS_LOCK}:
        raise ForeignDirectoryError(
            f"{data_dir} was not made by a demo: set CASES_DATA_DIR to a new directory, or use cases-service serve"
        )
    # The lock makes it a data directory, the mark a demo's. A demo that ends between the two may be repeated.
    os.close(supervisor.open_lock(data_dir / supervisor.USERS_LOCK))
    (data_dir / _DEMO_MARK).touch(mode=0o600)


def _write_secret_key(file: Path) -> None:
    descriptor, draft = tempfile.mkstemp(dir=file.parent, prefix=".secret-")
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(base64.urlsafe_b64encode(secrets.token_bytes(32)) + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
        if os.geteuid() == 0:
            owner = file.parent.stat()
            os.fchown(stream.fileno(), owner.st_uid, owner.st_gid)
    Path(draft).replace(file)
