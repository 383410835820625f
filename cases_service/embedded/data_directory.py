"""Knows what lies in the data directory beside the embedded server: its secret key, and the mark of a demo."""

import base64
import fcntl
import os
import secrets
import tempfile
from pathlib import Path
from typing import Final

from cases_service.embedded import supervisor

KEY_FILE: Final = "secret.key"
_DEMO_MARK: Final = "made-by-demo"


class ForeignDirectoryError(RuntimeError):
    """The directory holds what is not a demo's to touch. The message is one line."""


def exists(data_dir: Path) -> bool:
    """Tell whether this is the data directory of an embedded server."""
    return (data_dir / supervisor.USERS_LOCK).exists()


def secret_key_file(data_dir: Path) -> Path:
    """Return the file that holds the directory's secret key, which is made at first need.

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
    """Mark the directory as a demo's, and make it where it is missing.

    Raises:
        ForeignDirectoryError: There is something in it that no demo put there.

    """
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = {path.name for path in data_dir.iterdir()}
    if _DEMO_MARK in names:
        return
    if names - {supervisor.USERS_LOCK}:
        raise ForeignDirectoryError(
            f"{data_dir} was not made by a demo: set CASES_DATA_DIR to a new directory, or use cases-service serve"
        )
    data_dir.chmod(0o700)
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
