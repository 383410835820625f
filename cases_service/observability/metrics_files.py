"""The files in which gunicorn's workers share their counts, and their life cycle.

Each worker locks a slot for its lifetime and writes to the slot's files. Its successor continues their counts, so that
no counter decreases and the number of files does not grow with every replaced worker.
"""

import fcntl
import shutil
import tempfile
from io import BufferedRandom
from itertools import count
from pathlib import Path
from typing import Final

from prometheus_client.multiprocess import mark_process_dead

from cases_service.settings import share_metrics_in

# In memory, so that no slow disk delays a count.
_MEMORY: Final = Path("/dev/shm")  # noqa: S108  what is made there is ours alone
_made: Final[list[Path]] = []
_held: Final[list[BufferedRandom]] = []


def make() -> None:
    """Create a directory that only this user can enter, for the processes forked from this one."""
    _made.append(Path(tempfile.mkdtemp(prefix="cases-metrics-", dir=_MEMORY if _MEMORY.is_dir() else None)))
    share_metrics_in(_made[0])


def directory() -> Path | None:
    """Return the directory of this process and its siblings; None if it counts alone."""
    return _made[0] if _made else None


def remove() -> None:
    """Remove the directory; another process may do so at the same time."""
    for made in _made:
        shutil.rmtree(made, ignore_errors=True)


def take_slot(shared: Path) -> int:
    """Return the first slot that no living process holds, locked until this process ends."""
    return next(slot for slot in count() if _keep(shared / f"{slot}.lock"))


def clear_dead() -> None:
    """Remove the gauges, but not the counters, of workers that have ended."""
    for made in _made:
        for path in made.glob("*.lock"):
            lock = _lock(path)
            if lock is not None:
                with lock:
                    mark_process_dead(path.stem, str(made))


def _keep(path: Path) -> bool:
    lock = _lock(path)
    if lock is not None:
        _held.append(lock)
    return lock is not None


def _lock(path: Path) -> BufferedRandom | None:
    file = path.open("a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
