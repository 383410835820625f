"""Runs several statements in one round trip, in a transaction that names their organization.

The transaction is REPEATABLE READ (the session's default), so that all its statements see one state of the database. In
READ COMMITTED each would take its own snapshot, and could miss or see a commit that another one did not.

A request needs a few short statements. psycopg's cursors wait for the result of each, and its pipelines cost more time
in Python than they save in the network; so this module drives libpq's pipeline mode itself, and two statements take 105
µs of CPU time instead of 160: https://www.postgresql.org/docs/current/libpq-pipeline-mode.html
"""

import select
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from time import monotonic
from typing import Any, Final, Generic, NamedTuple, TypeVar
from uuid import UUID

import psycopg
from psycopg import abc, sql
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGresult

from cases_service.database.statements import Statement, numbered

T_co = TypeVar("T_co", covariant=True)
Row = tuple[Any, ...]
Send = Callable[[], None]

MAXIMUM_PREPARED: Final = 100
"""The most statements that a connection keeps prepared: a page's plan takes 400 kB of the server's memory."""

_CLOSES: Final = psycopg.capabilities.has_send_close_prepared()
_NAMING: Final = numbered("session")["name_organization"]
_SHOWING: Final = numbered("session")["show_notes"]
_CITUS: Final = (
    b"set local plan_cache_mode = 'force_custom_plan'",
    b"set local citus.propagate_set_commands = 'local'",
)
_INTEGRITY: Final = "23"
_FAILED: Final = (ExecStatus.FATAL_ERROR, ExecStatus.BAD_RESPONSE)


class Result(NamedTuple):
    """The result of a statement: its rows, and libpq's result, which knows the columns."""

    rows: list[Row]
    pgresult: PGresult


@dataclass(frozen=True, slots=True)
class Query(Generic[T_co]):
    """A statement with its parameters, and the function that reads its result."""

    statement: Statement
    parameters: Mapping[str, Any]
    read: Callable[[Result], T_co]
    is_binary: bool = False
    """Whether the result comes in binary form."""


class Exchange:
    """Round trips on one connection. It remembers which statements the connection has prepared.

    Args:
        connection: In autocommit mode, and used by one thread at a time.
        answer_timeout: How long an answer may take, in seconds.
        prepares: Whether statements are prepared.
        is_citus: Whether the server passes statements on to others, and SET LOCAL only if told to.

    """

    writes: bool = False
    """Whether transactions may write, regardless of the session's default."""

    prepares: bool
    """Whether statements are prepared, from the next round trip on."""

    answer_timeout: float
    """How long an answer may take, in seconds."""

    def __init__(
        self, connection: psycopg.Connection[Any], *, answer_timeout: float, prepares: bool, is_citus: bool = False
    ) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self.answer_timeout = answer_timeout
        self.prepares = prepares
        self._is_citus = is_citus
        self._prepared: dict[bytes, None] = {}
        self._poll = select.poll()
        self._pgconn.nonblocking = 1
        self._refusal: str | None = None
        if is_citus:
            connection.add_notice_handler(self._note)

    def ask(self, organization_id: UUID, queries: Sequence[Query[Any]], *, notes: bool = False) -> list[Any]:
        """Return what each query reads from its result.

        The queries see only the organization's rows, and all of them the same state of the database.

        With `notes` they also see the organization's internal notes.

        Raises:
            psycopg.Error: A statement failed, and the transaction is rolled back; or the server has gone, or has not
                answered in time, in which case the connection is of no more use.

        """
        # A pipeline is implicitly one transaction; Citus needs an explicit one to pass it on.
        is_explicit = self.writes or self._is_citus
        begin = (
            preamble(organization_id, writes=self.writes, notes=notes, is_citus=self._is_citus) if is_explicit else ()
        )
        end = (b"commit",) if is_explicit else ()
        naming = () if is_explicit else _naming(organization_id, notes=notes)
        return self.step((*naming, *queries), begin=begin, end=end)[len(naming) :]

    def begin(self, organization_id: UUID, queries: Sequence[Query[Any]], *, notes: bool = False) -> list[Any]:
        """Do what `ask` does, in a transaction that may write and is left open."""
        return self.step(queries, begin=preamble(organization_id, writes=True, notes=notes, is_citus=self._is_citus))

    def write(self, organization_id: UUID, queries: Sequence[Query[Any]]) -> list[Any]:
        """Do what `ask` does, in a transaction that may write and is committed."""
        begin = preamble(organization_id, writes=True, is_citus=self._is_citus)
        return self.step(queries, begin=begin, end=(b"commit",))

    def step(
        self, queries: Sequence[Query[Any]], *, begin: Sequence[bytes] = (), end: Sequence[bytes] = ()
    ) -> list[Any]:
        """Return what each query reads from its result; run commands before and after them, in one round trip.

        Raises:
            psycopg.Error: As in `ask`.

        """
        transformer = Transformer(self._connection)
        preparations = self._preparations(queries)
        closings = self._closings(queries, len(preparations))
        sends = [self._send_query(query, transformer) for query in queries]
        results = self._run([*closings, *begin, *preparations.values(), *sends, *end])
        prepared = zip(preparations, results[len(closings) + len(begin) :], strict=False)
        self._prepared.update((name, None) for name, result in prepared if result.status == ExecStatus.COMMAND_OK)
        self._check(results)
        answers = results[len(results) - len(end) - len(queries) : len(results) - len(end)]
        return [query.read(_loaded(transformer, result)) for query, result in zip(queries, answers, strict=True)]

    def describe(self, statement: Statement) -> PGresult:
        """Return the server's description of a statement's columns, which has no rows.

        Raises:
            psycopg.Error: As in `ask`.

        """
        prepare = partial(self._pgconn.send_prepare, b"", statement.text)
        results = self._run([prepare, partial(self._pgconn.send_describe_prepared, b"")])
        self._check(results)
        return results[1]

    def _preparations(self, queries: Sequence[Query[Any]]) -> dict[bytes, Send]:
        """Return the sends that prepare the statements not prepared yet."""
        wanted = (query.statement for query in queries if self.prepares)
        new = {statement.name: statement.text for statement in wanted if statement.name not in self._prepared}
        return {name: partial(self._pgconn.send_prepare, name, text) for name, text in new.items()}

    def _closings(self, queries: Sequence[Query[Any]], new: int) -> list[Send]:
        """Return the sends that close the least recently used statements, if there are too many with the new ones."""
        for query in queries:
            if query.statement.name in self._prepared:
                del self._prepared[query.statement.name]
                self._prepared[query.statement.name] = None
        surplus = list(self._prepared)[: max(len(self._prepared) + new - MAXIMUM_PREPARED, 0)] if _CLOSES else []
        for name in surplus:
            del self._prepared[name]
        return [partial(self._pgconn.send_close_prepared, name) for name in surplus]

    def _send_query(self, query: Query[Any], transformer: abc.Transformer) -> Send:
        values = dumped(query, transformer)
        if self.prepares:
            send = partial(self._pgconn.send_query_prepared, query.statement.name, values)
        else:
            send = partial(self._pgconn.send_query_params, query.statement.text, values)
        return partial(send, result_format=Format.BINARY) if query.is_binary else send

    def _run(self, commands: Sequence[bytes | Send]) -> list[PGresult]:
        """Send all commands at once, and return the result of each; after a failure the server skips the rest."""
        self._refusal = None
        self._pgconn.enter_pipeline_mode()
        for command in commands:
            if isinstance(command, bytes):
                self._pgconn.send_query_params(command, None)
            else:
                command()
        self._pgconn.pipeline_sync()
        results = list(self._results())
        self._pgconn.exit_pipeline_mode()
        return results

    def _check(self, results: Sequence[PGresult]) -> None:
        """If a command has failed, end the transaction and raise the error."""
        failed = next((result for result in results if result.status in _FAILED), None)
        if failed is not None:
            if self._pgconn.transaction_status == TransactionStatus.INERROR:
                self._run([b"rollback"])
            error = psycopg.errors.error_from_result(failed)
            if self._refusal is not None and isinstance(error, psycopg.errors.InternalError_):
                raise psycopg.errors.lookup(self._refusal)(str(error))
            raise error

    def _note(self, notice: psycopg.errors.Diagnostic) -> None:
        """Remember which constraint a node of Citus refused a commit for: only a warning says so."""
        if notice.sqlstate is not None and notice.sqlstate.startswith(_INTEGRITY):
            self._refusal = notice.sqlstate

    def _results(self) -> Iterator[PGresult]:
        """Yield the results until the server has answered everything."""
        deadline = monotonic() + self.answer_timeout
        while self._pgconn.flush():
            self._wait(select.POLLIN | select.POLLOUT, deadline)
            self._pgconn.consume_input()
        while True:
            while self._pgconn.is_busy():
                self._wait(select.POLLIN, deadline)
                self._pgconn.consume_input()
            result = self._pgconn.get_result()
            if result is None:
                raise psycopg.OperationalError("the connection is lost")
            if result.status == ExecStatus.PIPELINE_SYNC:
                return
            yield result
            # A None follows the statement's one result, without waiting.
            self._pgconn.get_result()

    def _wait(self, events: int, deadline: float) -> None:
        self._poll.register(self._pgconn.socket, events)
        if not self._poll.poll(max(deadline - monotonic(), 0) * 1000):
            raise psycopg.OperationalError("the server does not answer")


@lru_cache(maxsize=256)
def preamble(
    organization_id: UUID, *, writes: bool = False, notes: bool = False, is_citus: bool = False
) -> tuple[bytes, ...]:
    """Return the commands that begin a transaction about one organization, with the settings for row security.

    With `notes` it also sees the organization's internal notes.

    Reads see one state of the database. Writes must see what others have just committed: otherwise two workers that
    record the use of the same token would fail.

    Not with set_config(): if told to, Citus passes SET LOCAL on, and nothing else. And Citus finds the shard by the
    organization, so that it has no plan for a join while that is a parameter without a value.
    """
    begin = b"begin isolation level read committed read write" if writes else b"begin isolation level repeatable read"
    propagate = _CITUS if is_citus else ()
    setting = sql.SQL("set local cases.organization_id = {}").format(sql.Literal(str(organization_id)))
    showing = (b"set local cases.private_notes = 'shown'",) if notes else ()
    return begin, *propagate, *showing, setting.as_bytes()


@lru_cache(maxsize=256)
def _naming(organization_id: UUID, *, notes: bool) -> tuple[Query[Any], ...]:
    """Return the queries that set the same on a server other than Citus."""
    naming = Query(_NAMING, {"organization_id": str(organization_id)}, _nothing)
    return (Query(_SHOWING, {}, _nothing), naming) if notes else (naming,)


def dumped(query: Query[Any], transformer: abc.Transformer) -> Sequence[abc.Buffer | None]:
    """Return a query's values in the order of its statement's parameters.

    They are sent as text and the server infers their types: one plan for a statement, whatever the numbers' sizes.
    """
    values = [query.parameters[name] for name in query.statement.parameters]
    return transformer.dump_sequence(values, [PyFormat.TEXT] * len(values))


def _nothing(_: Result) -> None:
    """Read nothing."""


def _loaded(transformer: abc.Transformer, result: PGresult) -> Result:
    transformer.set_pgresult(result)
    return Result(transformer.load_rows(0, result.ntuples, tuple), result)
