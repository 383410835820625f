"""A service on a database of its own, and the portal beside it, with visitors whose cases are known."""

import json
import shutil
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import psycopg

from cases_service.credentials.secret_encryption import SecretBox
from cases_service.database.migrations import init_db
from cases_service.demo.portal.launch import DemoVisitor, Plan, input_of, start_portal
from cases_service.embedded.server import SERVICE_ROLE, WRITER_ROLE, EmbeddedServer, join
from cases_service.server.launch import listen
from tests.factories import LONG_AGO, SECRET_KEY, Organization, hs256
from tests.process.conftest import killed_at_end, serve_arguments, short_path
from tests.process.embedded_data import FAST, stop, url_of
from tests.process.running import LOOPBACK, PATIENCE, Service, environment

EVIL = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script> & “quotes”"
LONG = "Unbroken" * 40
AGENT_EMAIL = "agent.secret@example.com"
AGENT_AVATAR = "https://images.example.com/agent.png"


class Case(NamedTuple):
    """What the page shows of a case."""

    id: UUID
    number: str


class World:
    """The visitors: ada has many cases, zoe one, newcomer none, and stranger is unknown to the service.

    Each of the talkers has a case for a test that changes it.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.data_dir = place / "data"
        self.server: EmbeddedServer | None = join(self.data_dir, settings=FAST)
        with psycopg.connect(self.server.conninfo, autocommit=True) as connection:
            init_db(connection, service_role=SERVICE_ROLE, writer_role=WRITER_ROLE)
            self.fill(Organization(connection, SecretBox([SECRET_KEY])))

    def start_database(self) -> None:
        self.server = join(self.data_dir, settings=FAST)

    def stop_database(self) -> None:
        if self.server is not None:
            stop(self.server)
        self.server = None

    @contextmanager
    def changed(self, statement: str, *values: Any) -> Iterator[None]:
        """Make a change of one case, which the statement names last, and take it back at the end."""
        columns = "subject, description, status, closed_at, is_waiting, updated_at"
        with psycopg.connect(url_of(self.data_dir, user="postgres"), autocommit=True) as connection:
            before = connection.execute(f"select {columns} from cases where id = %s".encode(), values[-1:]).fetchone()
            connection.execute(statement.encode(), values)
            try:
                yield
            finally:
                back = f"update cases set ({columns}) = row(%s, %s, %s, %s, %s, %s) where id = %s"
                connection.execute(back.encode(), (*(before or ()), values[-1]))

    def fill(self, organization: Organization) -> None:
        self.organization_id = organization.id
        self.api_token = organization.token_with("visitors:read", "visitors:write")
        self.agents_token = organization.token_with("cases:write")
        self.key_id, self.secret = organization.kid, organization.secret
        agent = organization.user(
            first_name="Grace", last_name="Hopper", email=AGENT_EMAIL, alias="Billing team", avatar_url=AGENT_AVATAR
        )
        stage = uuid4()
        organization.insert(
            "case_funnel_stages", organization_id=self.organization_id, id=stage, name="Inspection", position=2
        )
        ada = organization.visitor("ada", contacts=0)
        contacts = [ada.contact(first_name="Ada", last_name=name) for name in ("by phone", "from chat", "imported")]
        known = {"owner_id": agent, "case_funnel_stage_id": stage, "description": "It\nbegan so."}

        def make(number: int, **values: Any) -> Case:
            # Three at a time are of one moment, as imports make them; the contacts take turns.
            created_at = LONG_AGO + timedelta(days=number // 3)
            given = {"case_number": f"A-{number}", "subject": f"Subject {number}", **known, **values}
            return Case(organization.case(contacts[number % 3], created_at, **given), given["case_number"])

        closed = {"status": "Closed", "priority": 1}
        self.closed = _newest_first([make(number, **closed) for number in range(47)])
        opened = [make(number) for number in range(47, 50)]
        opened.append(make(51, subject=EVIL, description=EVIL, status="In Progress", priority=5))
        opened.append(make(54, subject=LONG, status="Pending", priority=4, latest_messaging_channel="whatsapp"))
        opened.append(
            make(57, status="Pending", is_waiting=True, unread_message_count=2, owner_id=None, subject=None, priority=2)
        )
        self.open = _newest_first(opened)
        self.evil, self.waiting = opened[3], opened[5]
        zoe = organization.visitor("zoe", contacts=2)
        self.zoes = Case(organization.case(zoe.contact_ids[0], LONG_AGO, case_number="Z-1"), "Z-1")
        self.agent = agent
        organization.visitor("newcomer")
        self.talkers = [f"talker-{number}" for number in range(40)]
        self.fresh = iter([(name, self._talk(organization, name, agent)) for name in self.talkers])

    def _talk(self, organization: Organization, name: str, agent: UUID) -> Case:
        (contact,) = organization.visitor(name).contact_ids
        case_id = organization.case(contact, LONG_AGO, case_number=name, subject="Talk", owner_id=agent)
        return Case(case_id, name)

    def plan(self, service: Service) -> Plan:
        given: dict[str, str | int | None] = {
            "url": service.url(""),
            "organization": str(self.organization_id),
            "api_token": self.api_token,
            "key_id": str(self.key_id),
            "secret": self.secret,
        }
        counts = {"ada": (3, 6, 47), "zoe": (2, 1, 0), "newcomer": (1, 0, 0), "stranger": (0, 0, 0)}
        counts |= dict.fromkeys(self.talkers, (1, 1, 0))
        return Plan(given, ["localhost", LOOPBACK], [DemoVisitor(name, *numbers) for name, numbers in counts.items()])


def _newest_first(cases: list[Case]) -> list[Case]:
    """Order cases by time and id, as the API does; a number stands for a time, three for the same."""
    return sorted(cases, key=lambda case: (int(case.number[2:]) // 3, case.id), reverse=True)


class Portal(NamedTuple):
    """The page's address, what it shows, and the service that it asks."""

    url: str
    world: World
    service: Service

    def answer(self, case: Case, text: str, *, is_private: bool = False, **values: Any) -> None:
        """Have the agent write a message, or a note, as the company's own system does."""
        body = {"text": text, "is_private": is_private, "sender_user_id": str(self.world.agent), **values}
        self._send(f"/cases/{case.id}/messages", self.world.agents_token, body)

    def say(self, case: Case, text: str) -> None:
        """Have the talker of a case write a message from elsewhere."""
        claims = {"sub": case.number, "exp": int(time.time()) + 600}
        jwt = hs256(claims, {"alg": "HS256", "kid": str(self.world.key_id)}, self.world.secret)
        path = f"/external-visitors/-/cases/{case.id}/messages"
        self._send(path, self.world.api_token, {"text": text}, {"X-External-Identity": jwt})

    def texts(self, case: Case) -> list[str]:
        """Return what was said in a case, as the company's own system sees it."""
        found = self._send(f"/cases/{case.id}/messages?page_size=100", self.world.agents_token)
        return [message["text"] for message in found["results"]]

    def case(self, case: Case) -> Any:
        """Return a case, as the company's own system sees it."""
        return self._send(f"/cases/{case.id}", self.world.agents_token)

    def _send(self, path: str, token: str, body: Any = None, headers: Mapping[str, str] = MappingProxyType({})) -> Any:
        url = self.service.url(f"/api/v5/orgs/{self.world.organization_id}{path}")
        given = {"Authorization": f"Token {token}", "Content-Type": "application/json", **headers}
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, content, given)  # noqa: S310  http
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
            return json.load(answer)


@contextmanager
def running_portal() -> Iterator[Portal]:
    with short_path() as place:
        world = World(place)
        variables = {
            "DATABASE_URL": url_of(world.data_dir),
            "CASES_WRITE_DATABASE_URL": url_of(world.data_dir, user=WRITER_ROLE),
            "CASES_SECRET_KEY": SECRET_KEY,
        }
        service = Service(serve_arguments(), environment(**variables), place, cwd=place)
        try:
            with killed_at_end([service]):
                service.wait_until_ready()
                listener = listen(f"{LOOPBACK}:0")
                url = f"http://{LOOPBACK}:{listener.getsockname()[1]}/"
                process = start_portal(world.plan(service), listener)
                try:
                    yield Portal(url, world, service)
                finally:
                    input_of(process).close()
                    assert process.wait(PATIENCE) == 0
        finally:
            world.stop_database()
            shutil.rmtree(world.data_dir, ignore_errors=True)
