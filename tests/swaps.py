"""Two customers who exchange their external ids, in one transaction with a new signing key, as one `load` can do it."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
from uuid import UUID, uuid4

import psycopg
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from cases_service.application import Application
from cases_service.credentials import signing_keys
from tests.factories import Organization, cases_path, get

NAMES = ("one", "other")
ANSWERS_BETWEEN = 12


class Epoch(NamedTuple):
    """What holds between two swaps: the key that signs, and whose case each external id stands for."""

    jwts: dict[str, str]
    cases: dict[str, str]


class Swaps:
    """The two customers. A JWT of an epoch shows that epoch's cases, and no others, whenever it is used."""

    def __init__(self, organization: Organization) -> None:
        self.organization = organization
        self.kid, self._secret = organization.kid, organization.secret
        self.visitors = {name: organization.visitor(name) for name in NAMES}
        self.cases = {name: str(visitor.cases(1)[0]) for name, visitor in self.visitors.items()}
        self.epochs = [self._epoch()]

    def swap(self, connection: psycopg.Connection, *, with_key: bool = True) -> Epoch:
        """Exchange the external ids, and the key unless that stays; commit, and return what holds from now on."""
        organization = self.organization
        one, other = (visitor.id for visitor in self.visitors.values())
        with connection.transaction():
            if with_key:
                self._replace_key(connection)
            connection.execute(
                "update visitors set external_id = case external_id when 'one' then 'other' else 'one' end"
                " where organization_id = %s and id in (%s, %s)",
                [organization.id, one, other],
            )
        self.cases = dict(zip(NAMES, reversed([self.cases[name] for name in NAMES]), strict=True))
        epoch = self._epoch()
        self.epochs.append(epoch)
        return epoch

    def path(self, name: str, *, epoch: int = -1, after: str = "") -> str:
        return cases_path(self.organization.id, self.epochs[epoch].jwts[name]) + after

    def ask(
        self, client: FlaskClient, name: str, *, epoch: int = -1, after: str = "", if_none_match: str | None = None
    ) -> TestResponse:
        headers = {} if if_none_match is None else {"If-None-Match": if_none_match}
        return get(client, self.organization, self.path(name, epoch=epoch, after=after), **headers)

    def wrong_answers(self, app: Application, connection: psycopg.Connection, *, swaps: int, clients: int) -> list[str]:
        """Swap under the requests of some clients; return the answers that showed the other customer.

        Between two swaps there are a few answers at the least, and many have to show the right customer.
        """
        ended, answered = threading.Event(), threading.Semaphore(0)
        wrong, right = list[str](), list[str]()

        def request_for_ever(seed: int) -> None:
            choose, client, etag = random.Random(seed), app.test_client(), '"none"'  # noqa: S311
            while not ended.is_set():
                epoch = self.epochs[-1] if choose.random() < 0.5 else self.epochs[-2:][0]
                name = choose.choice(NAMES)
                headers = {"If-None-Match": etag} if choose.random() < 0.5 else {}
                answer = get(client, self.organization, cases_path(self.organization.id, epoch.jwts[name]), **headers)
                etag = answer.headers.get("ETag", etag)
                if answer.status_code == 200 and answer.json is not None:
                    shown = [case["id"] for case in answer.json["results"]]
                    (right if shown == [epoch.cases[name]] else wrong).append(str(shown))
                elif answer.status_code not in (304, 400, 503):
                    wrong.append(answer.text)
                answered.release()

        with ThreadPoolExecutor(clients) as executor:
            requests = [executor.submit(request_for_ever, seed) for seed in range(clients)]
            try:
                for _ in range(swaps):
                    self.swap(connection)
                    for _ in range(ANSWERS_BETWEEN):
                        assert answered.acquire(timeout=30)
            finally:
                ended.set()
            for request in requests:
                request.result()
        assert len(right) > swaps / 5
        return wrong

    def _replace_key(self, connection: psycopg.Connection) -> None:
        """Retire the key and make another one, inside of a transaction."""
        organization, kid, secret = self.organization, uuid4(), signing_keys.new_secret()
        sealed = organization.box.seal(secret, organization_id=organization.id, key_id=kid, algorithm="HS256")
        connection.execute(
            "update signing_keys set retired_at = now() where organization_id = %s and id = %s",
            [organization.id, self.kid],
        )
        connection.execute(
            "insert into signing_keys (organization_id, id, algorithm, encrypted_secret) values (%s, %s, 'HS256', %s)",
            [organization.id, kid, sealed],
        )
        self.kid, self._secret = kid, secret

    def _epoch(self) -> Epoch:
        jwts = {name: self._jwt(name, self.kid) for name in NAMES}
        return Epoch(jwts, dict(self.cases))

    def _jwt(self, name: str, kid: UUID) -> str:
        organization = self.organization
        header = {"alg": "HS256", "typ": "JWT", "kid": str(kid)}
        return organization.signed(organization.claims(name), header, self._secret)
