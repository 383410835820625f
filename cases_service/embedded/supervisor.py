"""The process that runs an embedded PostgreSQL as long as it has users, and leaves nothing behind.

`server.join` runs this file by its path, so it uses only the standard library, not the package. It reports an error as
one sentence on standard output. The kernel tracks who is alive: it releases a `flock` however its holders end.

- users.lock is held by every user, and exclusively by the supervisor once the last of them is gone;
- supervisor.lock is held by the supervisor, from the moment a user decides to start one;
- server.lock is held by the supervisor and, by inheritance, by every process of the server.
"""

import contextlib
import ctypes
import fcntl
import itertools
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

USERS_LOCK = "users.lock"
SUPERVISOR_LOCK = "supervisor.lock"
SERVER_LOCK = "server.lock"
CLUSTER = "postgres"
SOCKET = "socket"
LOG = "postgres.log"
GIVEN_BY_ROOT = "given-by-root"

SUPERUSER = "postgres"
DATABASE = "cases"
PORT = 5432  # part of the socket's name; nothing listens on TCP
OLDEST_VERSION = 15
POLL_SECONDS = 0.01

_SOCKET_NAME = f".s.PGSQL.{PORT}"
_SOCKET_MARK = "data-directory"
_SOCKET_PATH_BYTES = 103  # sun_path holds 104 on macOS and 108 on Linux, a final zero included
_EARLIER_SERVER_SECONDS = 45
_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER = 0x10000000
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}  # without the user's secrets and PG… variables

_libc = ctypes.CDLL(None, use_errno=True)


class StartError(RuntimeError):
    """The server does not run. The message says why."""


def open_lock(path: Path) -> int:
    """Open a lock file, created if missing. As root, give it to the directory's owner, who may be a user too."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        if os.geteuid() == 0:
            give_lock(lock, path)
    except BaseException:
        os.close(lock)
        raise
    return lock


def give_lock(lock: int, path: Path) -> None:
    """Give a lock file to the directory's owner, unless it has hard links: those would change hands too."""
    found, owner = os.fstat(lock), path.parent.stat()
    if found.st_uid == owner.st_uid:
        return
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise PermissionError(f"{path} is not a plain file of one name")
    os.fchown(lock, owner.st_uid, owner.st_gid)


def try_lock(lock: int, how: int) -> bool:
    """Take the lock if it is free."""
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def take_lock(lock: int, *, seconds: float, how: int = fcntl.LOCK_EX) -> bool:
    """Take the lock if it becomes free within these seconds."""
    deadline = time.monotonic() + seconds
    while not try_lock(lock, how):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def main(data_dir: Path, bin_dir: Path, settings: list[str]) -> None:
    """Become a separate process and run the server until its last user is gone."""
    if os.fork():
        os._exit(0)  # so that the supervisor is not a user's child, to be waited for
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Users that are stopping still answer their last requests. A handler, since children would inherit SIG_IGN.
        signal.signal(number, lambda *_: None)
    os.umask(0o077)
    os.chdir("/")
    try:
        supervise(data_dir, bin_dir, settings)
    except (StartError, OSError, subprocess.SubprocessError) as error:
        with contextlib.suppress(BrokenPipeError):  # nobody listens if a server fails later
            os.write(sys.stdout.fileno(), str(error).encode())


def supervise(data_dir: Path, bin_dir: Path, settings: list[str]) -> None:
    """Run the server in the data directory until its last user is gone."""
    users, server_lock = open_lock(data_dir / USERS_LOCK), open_lock(data_dir / SERVER_LOCK)
    become_ordinary(data_dir, bin_dir)
    write_to_log(data_dir / LOG)
    cluster, programs = data_dir / CLUSTER, Programs(bin_dir, data_dir / LOG, server_lock)
    refuse_link(cluster)
    require_version(cluster, bin_dir)
    wait_for_earlier_server(cluster, bin_dir, server_lock)
    clear_traces(cluster)
    if not cluster.exists():
        make_cluster(cluster, programs, durable="fsync=off" not in settings)
    socket_dir = make_socket_dir(data_dir / SOCKET)
    try:
        server = programs.start("postgres", *server_arguments(cluster, socket_dir, settings))
        threading.Thread(target=stop_after_last_user, args=(users, server), daemon=True).start()
        status = server.wait()
    finally:
        remove_socket_dir(data_dir / SOCKET)
    if status:
        raise StartError(f"PostgreSQL ended with status {status}: {programs.last_words()}")


def stop_after_last_user(users: int, server: subprocess.Popen[bytes]) -> None:
    """Shut down once no user holds the lock. This process then holds it to its end, so that newcomers wait."""
    fcntl.flock(users, fcntl.LOCK_EX)
    server.send_signal(signal.SIGINT)


class Programs:
    """PostgreSQL's programs, which end with this process, hold server.lock and write to the log."""

    def __init__(self, bin_dir: Path, log: Path, server_lock: int) -> None:
        self._bin_dir, self._log, self._server_lock = bin_dir, log, server_lock

    def start(self, name: str, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Start a program."""
        return subprocess.Popen(  # noqa: S603  the programs of bin_dir
            [self._bin_dir / name, *arguments],
            stdin=stdin,
            stdout=sys.stderr,
            env=_ENVIRONMENT,
            pass_fds=[self._server_lock],
            preexec_fn=end_with_parent(os.getpid()),  # noqa: PLW1509  there is one thread as yet
        )

    def run(self, name: str, *arguments: str, lines: str = "") -> None:
        """Run a program to its end, with these lines as input."""
        program = self.start(name, *arguments, stdin=subprocess.PIPE)
        program.communicate(lines.encode())
        if program.returncode:
            raise StartError(f"{name} failed: {self.last_words()}")

    def last_words(self) -> str:
        """Quote the end of the log."""
        lines = self._log.read_text(errors="replace").splitlines()
        return " | ".join(line.strip() for line in lines[-5:]) + f" ({self._log})"


def end_with_parent(parent: int) -> Callable[[], None] | None:
    """Return a function that makes a child, on Linux, receive SIGINT when its parent is killed."""
    if sys.platform != "linux":
        return None

    def ask_for_signal() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
        if os.getppid() != parent:  # it was killed before the kernel knew
            os._exit(1)

    return ask_for_signal


def require_version(cluster: Path, bin_dir: Path) -> None:
    """Reject a PostgreSQL that is too old, or not the version that made the cluster."""
    answer = subprocess.check_output([bin_dir / "postgres", "--version"], text=True)  # noqa: S603  bin_dir's
    version = answer.partition("(PostgreSQL) ")[2].strip()
    major = int("".join(itertools.takewhile(str.isdigit, version)) or 0)
    if major < OLDEST_VERSION:
        raise StartError(f"{bin_dir} is PostgreSQL {version}; {OLDEST_VERSION} is the oldest that will do")
    if cluster.exists() and (made_by := (cluster / "PG_VERSION").read_text().strip()) != str(major):
        raise StartError(
            f"{cluster} was made by PostgreSQL {made_by}, and {bin_dir} is PostgreSQL {major}:"
            f" use programs of version {made_by} or another data directory"
        )


def wait_for_earlier_server(cluster: Path, bin_dir: Path, server_lock: int) -> None:
    """Wait for the server of a killed supervisor: on Linux it ends by itself, elsewhere it has to be stopped."""
    if take_lock(server_lock, seconds=1):
        return
    stop = [str(bin_dir / "pg_ctl"), "stop", "--pgdata", str(cluster), "--mode", "fast", "--no-wait"]
    subprocess.run(stop, check=False, stdin=subprocess.DEVNULL, stdout=sys.stderr)  # noqa: S603  bin_dir's
    if not take_lock(server_lock, seconds=_EARLIER_SERVER_SECONDS):
        raise StartError(f"an earlier server of {cluster} is still ending")


def clear_traces(cluster: Path) -> None:
    """Remove the files of a killed server.

    PostgreSQL does not start if the process id in postmaster.pid is in use again, which soon happens in a restarted
    container. Since we hold server.lock, none of our servers lives: postmaster.pid is either stale or belongs to a
    server that was started by hand.
    """
    pid_file = cluster / "postmaster.pid"
    if pid_file.exists():
        pid = pid_file.read_text().partition("\n")[0]
        if serves(pid, cluster):
            raise StartError(f"{cluster} is in use by process {pid}, a PostgreSQL that was started by hand")
        pid_file.unlink()
    for socket in cluster.parent.glob(f"{SOCKET}*"):
        remove_socket_dir(socket)


def serves(pid: str, cluster: Path) -> bool:
    """Tell whether the cluster is an argument of the process; False if there is no /proc."""
    try:
        return os.fsencode(cluster) in Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def make_cluster(cluster: Path, programs: Programs, *, durable: bool) -> None:
    """Create the cluster and its database, under another name until it is complete."""
    unfinished = cluster.with_suffix(".unfinished")
    refuse_link(unfinished)
    shutil.rmtree(unfinished, ignore_errors=True)
    identity = ["--username", SUPERUSER, "--auth", "trust", "--encoding", "UTF8", "--locale", "C"]
    programs.run("initdb", "--pgdata", str(unfinished), *identity, *([] if durable else ["--no-sync"]))
    single = ["--single", "-D", str(unfinished), "-c", "exit_on_error=on", "postgres"]
    programs.run("postgres", *single, lines=f"CREATE DATABASE {DATABASE}\n")
    unfinished.rename(cluster)


def server_arguments(cluster: Path, socket_dir: Path, settings: list[str]) -> list[str]:
    """Return the arguments of postgres; of settings with the same name, the last one counts."""
    ours = ["listen_addresses=", f"port={PORT}", f"unix_socket_directories={socket_dir}"]
    return ["-D", str(cluster), *(f"--{setting}" for setting in [*settings, *ours])]


def write_to_log(log: Path) -> None:
    """Start a new log, keep the previous one, and redirect standard error to it."""
    with contextlib.suppress(FileNotFoundError):
        log.rename(log.with_suffix(".previous.log"))
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)  # O_EXCL follows no link
    os.dup2(file, sys.stderr.fileno())
    os.close(file)


def refuse_link(path: Path) -> None:
    """Reject a symbolic link in place of the server's files: its target may be anybody's."""
    if path.is_symlink():
        raise StartError(f"{path} is a symbolic link: the server's files have to be in the data directory itself")


def make_socket_dir(socket: Path) -> Path:
    """Create the socket's directory; if its path is unsuitable, a temporary one with a link to it."""
    if is_suitable(socket):
        socket.mkdir(0o700)
        return socket
    elsewhere = make_temporary_dir()
    mark = os.open(elsewhere / _SOCKET_MARK, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(mark, identity_of(socket.parent))
    os.close(mark)
    socket.symlink_to(elsewhere)
    return elsewhere


def is_suitable(socket_dir: Path) -> bool:
    """Tell whether a socket's path there is short enough, and free of characters that separate or quote directories."""
    path = os.fsencode(socket_dir / _SOCKET_NAME)
    return len(path) <= _SOCKET_PATH_BYTES and not set(b',"') & set(path)


def make_temporary_dir() -> Path:
    """Create a directory for the socket in the first usual place that is suitable."""
    for place in dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp"]):  # noqa: S108  mkdtemp is safe there
        if is_suitable(Path(place, "cases-socket-12345678")):
            with contextlib.suppress(OSError):
                return Path(tempfile.mkdtemp(prefix="cases-socket-", dir=place))
    raise StartError(
        f"no place for the server's socket, whose path may have {_SOCKET_PATH_BYTES} bytes, without comma and"
        " quotation mark: use such a path for the data directory, or for TMPDIR"
    )


def remove_socket_dir(socket: Path) -> None:
    """Remove the socket's directory; a temporary one only if its mark proves that it is this data directory's.

    A copied data directory has the original's link, to a directory that is in use.
    """
    if not socket.is_symlink():
        shutil.rmtree(socket, ignore_errors=True)
        return
    elsewhere = socket.readlink()
    with contextlib.suppress(OSError):
        remove_marked_dir(elsewhere, socket.parent)
    socket.unlink()


def remove_marked_dir(elsewhere: Path, data_dir: Path) -> None:
    """Remove a temporary directory of this data directory, and in it only files that a server made."""
    directory = os.open(elsewhere, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if not is_marked(directory, data_dir):
            return
        for name in (_SOCKET_NAME, f"{_SOCKET_NAME}.lock", _SOCKET_MARK):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)
    finally:
        os.close(directory)
    elsewhere.rmdir()


def is_marked(directory: int, data_dir: Path) -> bool:
    """Tell whether an open directory was made for this data directory's socket, by its owner."""
    found = os.fstat(directory)
    if found.st_uid != data_dir.stat().st_uid or found.st_mode & 0o077:
        return False
    try:
        mark = os.open(_SOCKET_MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except OSError:
        return False
    try:
        return os.read(mark, 100) == identity_of(data_dir)
    finally:
        os.close(mark)


def identity_of(data_dir: Path) -> bytes:
    """Return the directory's identity, which a copy of it does not share."""
    found = data_dir.stat()
    return f"{found.st_dev}:{found.st_ino}\n".encode()


def become_ordinary(data_dir: Path, bin_dir: Path) -> None:
    """As root, which PostgreSQL rejects, give up root's rights but keep the data directory.

    Root's own directory is served from a user namespace that maps root to nobody, so that all files stay root's. If
    that is not permitted, as in most containers, the directory is given to nobody. In another user's directory the
    server runs as that user.
    """
    if os.geteuid() != 0:
        return
    owner, nobody = data_dir.stat(), pwd.getpwnam("nobody")
    if owner.st_uid != 0:
        drop_to(owner.st_uid, owner.st_gid, data_dir, bin_dir)
    elif namespaces_are_permitted(nobody):
        enter_namespace(nobody)
        require_way(data_dir, bin_dir)
    else:
        drop_to(nobody.pw_uid, nobody.pw_gid, data_dir, bin_dir)


def namespaces_are_permitted(nobody: pwd.struct_passwd) -> bool:
    """Try it in a child, since it cannot be undone."""
    if sys.platform != "linux":
        return False
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError):
            enter_namespace(nobody)
            os._exit(0)
        os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def enter_namespace(nobody: pwd.struct_passwd) -> None:
    """Map root to nobody in a new user namespace; initdb needs a user name that the system knows."""
    if _libc.unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{nobody.pw_uid} 0 1")
    Path("/proc/self/gid_map").write_text(f"{nobody.pw_gid} 0 1")


def drop_to(uid: int, gid: int, data_dir: Path, bin_dir: Path) -> None:
    """Switch to another user for good."""
    os.setgroups([])
    os.setegid(gid)
    os.seteuid(uid)
    require_way(data_dir, bin_dir)
    os.seteuid(0)
    if data_dir.stat().st_uid != uid:
        give_to(uid, gid, data_dir)
    os.setgid(gid)
    os.setuid(uid)


def give_to(uid: int, gid: int, data_dir: Path) -> None:
    """Change the owner of the directory and of the server's files in it, and leave a mark that root did it."""
    refuse_link(data_dir / CLUSTER)
    mark_as_given(data_dir)
    places = [place for place in (data_dir / CLUSTER, *data_dir.glob(f"{SOCKET}*")) if place.is_dir()]
    parts = [path for place in places if not place.is_symlink() for path in (place, *place.rglob("*"))]
    for path in [data_dir, *parts]:
        os.chown(path, uid, gid, follow_symlinks=False)


def mark_as_given(data_dir: Path) -> None:
    """Leave a file that only root can make, and that is valid only for this directory."""
    mark = data_dir / GIVEN_BY_ROOT
    mark.unlink(missing_ok=True)
    file = os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.fchmod(file, 0o644)
    os.write(file, b"%d\n" % data_dir.stat().st_ino)
    os.close(file)


def is_given_by_root(data_dir: Path) -> bool:
    """Tell whether root gave this directory to the user who runs the server."""
    try:
        mark = os.open(data_dir / GIVEN_BY_ROOT, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        found = os.fstat(mark)
        is_roots = stat.S_ISREG(found.st_mode) and found.st_uid == 0 and found.st_nlink == 1
        return is_roots and os.read(mark, 100) == b"%d\n" % data_dir.stat().st_ino
    finally:
        os.close(mark)


def require_way(data_dir: Path, bin_dir: Path) -> None:
    """Reject directories that the server's user cannot enter."""
    for place in (data_dir.parent, bin_dir):
        if not os.access(place, os.X_OK, effective_ids=True):
            raise StartError(f"PostgreSQL does not run with the rights of root, and without them cannot enter {place}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
