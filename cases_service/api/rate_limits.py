"""Rate limits: for failed authentications of an address, and for requests of an API token and of a visitor.

The counters are `limits`' sliding windows: the previous window counts in part, so that nobody gets twice the limit at
the border of two windows. Their keys are keyed hashes, so the storage holds no token, external identity or address.
While the storage is unreachable, requests pass uncounted, and wait for it rarely and briefly.
"""

import hashlib
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID

import structlog
from flask import g, request
from limits import RateLimitItem, parse, parse_many
from limits.errors import StorageError
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from cases_service.api.memory_counters import MemoryCounters
from cases_service.api.response import Response
from cases_service.problems import RateLimitedError, UnauthorizedError, VisitorNotFoundError
from cases_service.settings import Settings

T = TypeVar("T")

_PREFIX: Final = "cases"
_STORAGE_SECONDS: Final = 0.25
_PAUSE_SECONDS: Final = 5.0
_WITH_PORT: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]+)?|([0-9.]+):[0-9]+")

log = structlog.get_logger()


class StorageAwayError(RuntimeError):
    """The storage cannot count. The message is one line without a password."""


class Window(NamedTuple):
    """A limit, the requests remaining, and the seconds until it resets."""

    limit: int
    remaining: int
    reset: int


class RateLimits:
    """The limits of one application, at least one of which is set."""

    def __init__(self, settings: Settings) -> None:
        self._of_address = _parse(settings.rate_limit_failed_authentications)
        self._of_token = _parse(settings.rate_limit_token)
        self._of_visitor = _parse(settings.rate_limit_visitor)
        self._storage = _Storage(settings.rate_limit_storage)
        # All processes that share a storage need the same hashes.
        secret = settings.secret_keys[0] if settings.secret_keys else ""
        self._hash_key = hashlib.sha256(f"rate limits {secret}".encode()).digest()

    def close(self) -> None:
        """Close the connections to the storage."""
        self._storage.close()

    @contextmanager
    def failed_authentications(self) -> Iterator[None]:
        """Reject the request's address if it has failed too often, and count a failure inside.

        Raises:
            RateLimitedError: The address has used up its failures.

        """
        subject = self._address()
        for item in self._of_address:
            window = self._look(item, subject)
            if window and window.remaining == 0:
                raise RateLimitedError(retry_after=window.reset)
        try:
            yield
        except UnauthorizedError:
            self._take(self._of_address, subject)
            raise

    def count_token(self, token_hash: bytes) -> None:
        """Count a request of an API token, or raise RateLimitedError if it has made too many."""
        if self._of_token or self._of_visitor:
            # The address's remaining failures mean nothing to a caller who has not failed.
            _windows().clear()
        self._take(self._of_token, self._subject("token", token_hash))

    def count_visitor(self, organization_id: UUID, external_id: str) -> None:
        """Count a request for an organization's visitor, or raise RateLimitedError if there were too many."""
        g.rate_limit_visitor = self._subject("visitor", organization_id.bytes + external_id.encode())
        self._take(self._of_visitor, g.rate_limit_visitor)

    @contextmanager
    def known_visitors(self) -> Iterator[None]:
        """Forget the visitor that the request inside counted if it does not exist.

        Otherwise JWTs for ever new subjects would fill the storage. The API token's limit covers such requests.
        """
        try:
            yield
        except VisitorNotFoundError:
            subject = g.pop("rate_limit_visitor", None)
            for item in self._of_visitor if subject else ():
                self._storage.forget(item, subject)
            raise

    def show(self, response: Response) -> Response:
        """Add the RateLimit headers of the request's tightest limit to an API response."""
        if not request.path.startswith("/api/"):
            return response
        if not _windows():
            for item in self._of_address:
                self._look(item, self._address())
        windows = list(_windows().values())
        if not windows and not self._storage.is_away:
            # The request did not prove a token or visitor whose limit applies.
            windows = [Window(item.amount, item.amount, 0) for item in (*self._of_token, *self._of_visitor)]
        if windows:
            tightest = min(windows, key=lambda window: (window.remaining, -window.reset))
            response.headers["RateLimit-Limit"] = str(tightest.limit)
            response.headers["RateLimit-Remaining"] = str(tightest.remaining)
            response.headers["RateLimit-Reset"] = str(tightest.reset)
        return response

    def _take(self, items: Sequence[RateLimitItem], subject: str) -> None:
        for item in items:
            passed = self._storage.hit(item, subject)
            window = self._look(item, subject)
            if passed is False:
                raise RateLimitedError(retry_after=max(window.reset if window else 1, 1))

    def _look(self, item: RateLimitItem, subject: str) -> Window | None:
        window = self._storage.window(item, subject)
        if window is not None:
            _windows()[item.key_for(subject)] = window
        return window

    def _address(self) -> str:
        return self._subject("address", _network(request.remote_addr or "").encode())

    def _subject(self, kind: str, identity: bytes) -> str:
        digest = hashlib.blake2b(identity, digest_size=16, key=self._hash_key).hexdigest()
        return f"{kind}/{digest}"


def try_storage(settings: Settings) -> None:
    """Send the storage of the counters a request's query.

    Raises:
        StorageAwayError: It does not answer, or refuses.

    """
    storage = _open(settings.rate_limit_storage)
    try:
        SlidingWindowCounterRateLimiter(storage).get_window_stats(parse("1/second"), "doctor")
    except StorageError as error:
        raise StorageAwayError(" ".join(str(error.__cause__).split())) from None
    finally:
        if isinstance(storage, RedisStorage):
            storage.storage.close()


class _Storage:
    """The storage of the counters. While it is unreachable, one request every few seconds retries; no other waits."""

    def __init__(self, url: str) -> None:
        self._storage = _open(url)
        self._limiter = SlidingWindowCounterRateLimiter(self._storage)
        self._lock = threading.Lock()
        self._asked_again_at = 0.0
        self.is_away = False

    def close(self) -> None:
        if isinstance(self._storage, RedisStorage):
            self._storage.storage.close()

    def hit(self, item: RateLimitItem, subject: str) -> bool | None:
        """Count, and return whether it was within the limit; None if the storage is unreachable."""
        return self._ask(partial(self._limiter.hit, item, subject))

    def forget(self, item: RateLimitItem, subject: str) -> None:
        """Remove the subject's counts."""
        self._ask(partial(self._limiter.clear, item, subject))

    def window(self, item: RateLimitItem, subject: str) -> Window | None:
        """Return what remains, or None if the storage is unreachable."""
        stats = self._ask(partial(self._limiter.get_window_stats, item, subject))
        if stats is None:
            return None
        seconds = math.ceil(stats.reset_time - time.time())
        return Window(item.amount, stats.remaining, max(seconds, 0 if stats.remaining else 1))

    def _ask(self, question: Callable[[], T]) -> T | None:
        if self.is_away and not self._is_tried_again():
            return None
        try:
            answer = question()
        except StorageError as error:
            self._turn(is_away=True, error=type(error.__cause__).__name__)
            return None
        if self.is_away:
            self._turn(is_away=False)
        return answer

    def _is_tried_again(self) -> bool:
        with self._lock:
            is_time = time.monotonic() >= self._asked_again_at
            if is_time:
                self._asked_again_at = time.monotonic() + _PAUSE_SECONDS
            return is_time

    def _turn(self, *, is_away: bool, **why: str) -> None:
        with self._lock:
            is_news, self.is_away = is_away != self.is_away, is_away
            self._asked_again_at = time.monotonic() + _PAUSE_SECONDS
        if is_news and is_away:
            log.error("rate_limit_storage_away", advice="requests pass uncounted; see CASES_RATE_LIMIT_STORAGE", **why)
        elif is_news:
            log.warning("rate_limit_storage_back")


def _open(url: str) -> MemoryCounters | RedisStorage:
    if url == "memory://":
        return MemoryCounters()
    return RedisStorage(url, key_prefix=_PREFIX, wrap_exceptions=True, **_redis_options())


def _redis_options() -> Mapping[str, Any]:
    from redis import backoff, exceptions, retry  # noqa: PLC0415  an extra that only this storage needs

    # One immediate retry on a fresh connection: Redis may have restarted. The default retries for seconds.
    once_more = retry.Retry(backoff.NoBackoff(), 1, supported_errors=(exceptions.ConnectionError,))
    return {"socket_timeout": _STORAGE_SECONDS, "socket_connect_timeout": _STORAGE_SECONDS, "retry": once_more}


def _parse(notation: str | None) -> list[RateLimitItem]:
    return parse_many(notation) if notation else []


def _windows() -> dict[str, Window]:
    """Return the windows of this request's counters, as the storage reported them."""
    if "rate_limit_windows" not in g:
        g.rate_limit_windows = {}
    windows: dict[str, Window] = g.rate_limit_windows
    return windows


def _network(address: str) -> str:
    """Return what an address counts for: itself, or for IPv6 its /64, which one subscriber has entirely."""
    with_port = _WITH_PORT.fullmatch(address)
    try:
        found = ip_address((with_port[1] or with_port[2]) if with_port else address)
    except ValueError:
        return address
    if not isinstance(found, IPv6Address):
        return str(found)
    return str(found.ipv4_mapped or IPv6Network((int(found), 64), strict=False))
