"""The peer FastAPI with SQLAlchemy 2 and Pydantic 2, written as their documentation would have it.

An async engine with asyncpg and its pool, mapped classes, `joinedload` for everything that a case shows, dependencies
for session, API token and visitor, keyset pagination by a row comparison, response models read from attributes.
"""

import base64
import binascii
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import jwt
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request
from pydantic import BaseModel, ConfigDict
from sqlalchemy import URL, ForeignKeyConstraint, Select, func, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, contains_eager, joinedload, mapped_column, relationship

from benchmarks.contestants.credentials import api_token, database, signing_secret

POOL_SIZE = 2 * int(os.environ.get("CASES_THREADS", "4"))
PRIORITY_LABELS = {1: "None", 2: "Low", 3: "Normal", 4: "High", 5: "Critical"}


def engine() -> AsyncEngine:
    """Return the engine, with as many connections as a process is given requests at a time: none is made anew."""
    parts = database()
    url = URL.create(
        "postgresql+asyncpg",
        username=parts.get("user"),
        password=parts.get("password"),
        database=parts.get("dbname"),
    )
    # A socket's directory has no place in the URL.
    address = {"host": parts.get("host"), "port": int(parts.get("port") or 5432)}
    return create_async_engine(url, connect_args=address, pool_size=POOL_SIZE, max_overflow=0)


sessions = async_sessionmaker(engine(), expire_on_commit=False)


class Base(DeclarativeBase):
    """A table of the service's schema; the key of all but the organizations is composite."""


class Organization(Base):
    """A company."""

    __tablename__ = "organizations"

    organization_id: Mapped[UUID] = mapped_column(primary_key=True)
    subscription_status: Mapped[str]
    subscription_ends_at: Mapped[datetime | None]


class ApiToken(Base):
    """What a backend authenticates with."""

    __tablename__ = "api_tokens"

    organization_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    token_hash: Mapped[bytes]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class SigningKey(Base):
    """What verifies the JWT of a visitor."""

    __tablename__ = "signing_keys"

    organization_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    algorithm: Mapped[str]
    encrypted_secret: Mapped[str | None]
    retired_at: Mapped[datetime | None]


class Visitor(Base):
    """A signed-in customer."""

    __tablename__ = "visitors"

    organization_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    external_id: Mapped[str]


class User(Base):
    """Someone who works for the organization."""

    __tablename__ = "users"

    organization_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    email: Mapped[str | None]
    first_name: Mapped[str | None]
    last_name: Mapped[str | None]
    full_name: Mapped[str | None]
    alias: Mapped[str | None]
    title: Mapped[str | None]
    avatar_url: Mapped[str | None]


class Contact(Base):
    """One way the visitor was met."""

    __tablename__ = "contacts"

    organization_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    visitor_id: Mapped[UUID | None]
    first_name: Mapped[str | None]
    last_name: Mapped[str | None]
    full_name: Mapped[str | None]
    email: Mapped[str | None]
    phone: Mapped[str | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class CaseFunnelStage(Base):
    """The step of the organization's process that a case is in."""

    __tablename__ = "case_funnel_stages"

    organization_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    position: Mapped[int]


def reference(table: str, column: str) -> ForeignKeyConstraint:
    """Return a reference by organization and id."""
    return ForeignKeyConstraint(["organization_id", column], [f"{table}.organization_id", f"{table}.id"])


class Case(Base):
    """A case."""

    __tablename__ = "cases"
    __table_args__ = (
        reference("contacts", "contact_id"),
        reference("users", "owner_id"),
        reference("users", "created_by_user_id"),
        reference("users", "updated_by_user_id"),
        reference("case_funnel_stages", "case_funnel_stage_id"),
    )

    organization_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    case_number: Mapped[str]
    contact_id: Mapped[UUID | None]
    owner_id: Mapped[UUID | None]
    subject: Mapped[str | None]
    description: Mapped[str | None]
    status: Mapped[str]
    priority: Mapped[int]
    latest_messaging_channel: Mapped[str | None]
    channel_priority: Mapped[int | None]
    is_closed: Mapped[bool]
    closed_at: Mapped[datetime | None]
    is_waiting: Mapped[bool]
    unread_message_count: Mapped[int]
    visitor_unread_message_count: Mapped[int]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    created_by_user_id: Mapped[UUID | None]
    updated_by_user_id: Mapped[UUID | None]
    case_funnel_stage_id: Mapped[UUID | None]

    contact: Mapped[Contact] = relationship(foreign_keys="[Case.organization_id, Case.contact_id]", viewonly=True)
    owner: Mapped[User | None] = relationship(foreign_keys="[Case.organization_id, Case.owner_id]", viewonly=True)
    created_by_user: Mapped[User | None] = relationship(
        foreign_keys="[Case.organization_id, Case.created_by_user_id]", viewonly=True
    )
    updated_by_user: Mapped[User | None] = relationship(
        foreign_keys="[Case.organization_id, Case.updated_by_user_id]", viewonly=True
    )
    case_funnel_stage: Mapped[CaseFunnelStage | None] = relationship(
        foreign_keys="[Case.organization_id, Case.case_funnel_stage_id]", viewonly=True
    )

    @property
    def priority_label(self) -> str:
        """The name of the priority."""
        return PRIORITY_LABELS[self.priority]


class FromAttributes(BaseModel):
    """A model that is read from a mapped object."""

    model_config = ConfigDict(from_attributes=True)


class UserOut(FromAttributes):
    """A user in a case."""

    id: UUID
    organization_id: UUID
    email: str | None
    first_name: str | None
    last_name: str | None
    full_name: str | None
    alias: str | None
    title: str | None
    avatar_url: str | None


class ContactOut(FromAttributes):
    """A contact in a case."""

    id: UUID
    organization_id: UUID
    first_name: str | None
    last_name: str | None
    full_name: str | None
    email: str | None
    phone: str | None
    created_at: datetime
    updated_at: datetime


class CaseFunnelStageOut(FromAttributes):
    """A funnel stage in a case."""

    id: UUID
    organization_id: UUID
    name: str
    position: int


class CaseOut(FromAttributes):
    """A case with everything that it refers to."""

    id: UUID
    organization_id: UUID
    case_number: str
    contact_id: UUID
    contact: ContactOut
    owner_id: UUID | None
    owner: UserOut | None
    subject: str | None
    description: str | None
    status: str
    priority: int
    priority_label: str
    latest_messaging_channel: str | None
    is_closed: bool
    closed_at: datetime | None
    is_waiting: bool
    unread_message_count: int
    created_at: datetime
    updated_at: datetime
    created_by_user_id: UUID | None
    created_by_user: UserOut | None
    updated_by_user_id: UUID | None
    updated_by_user: UserOut | None
    case_funnel_stage: CaseFunnelStageOut | None
    case_funnel_stage_id: UUID | None
    channel_priority: int | None
    visitor_unread_message_count: int


class PageOut(BaseModel):
    """A page of cases."""

    next: str | None
    previous: str | None
    results: list[CaseOut]


async def session() -> AsyncIterator[AsyncSession]:
    """Give a session for the request."""
    async with sessions() as opened:
        yield opened


Session = Annotated[AsyncSession, Depends(session)]


async def authenticate(organization_id: UUID, database: Session, authorization: Annotated[str, Header()] = "") -> UUID:
    """Return the organization of the path, which the API token has to belong to."""
    given = api_token(authorization)
    if given is None:
        raise HTTPException(401)
    organization = await database.scalar(
        select(Organization)
        .join(ApiToken, ApiToken.organization_id == Organization.organization_id)
        .where(
            Organization.organization_id == given.organization_id,
            ApiToken.organization_id == given.organization_id,
            ApiToken.token_hash == given.hash,
            ApiToken.revoked_at.is_(None),
            or_(ApiToken.expires_at.is_(None), ApiToken.expires_at > func.now()),
        )
    )
    if organization is None:
        raise HTTPException(401)
    if organization.organization_id != organization_id or organization.subscription_status != "active":
        raise HTTPException(403)
    return organization_id


OrganizationId = Annotated[UUID, Depends(authenticate)]


async def identify(token: str, organization_id: OrganizationId, database: Session) -> UUID:
    """Return the id of the visitor that the JWT in the path names."""
    try:
        key_id = UUID(jwt.get_unverified_header(token).get("kid", ""))
        key = await database.scalar(
            select(SigningKey).where(
                SigningKey.organization_id == organization_id,
                SigningKey.id == key_id,
                or_(SigningKey.retired_at.is_(None), SigningKey.retired_at > func.now()),
            )
        )
        if key is None:
            raise HTTPException(400, "The visitor's token is invalid.")
        secret = signing_secret(organization_id, key.id, key.algorithm, key.encrypted_secret or "")
        claims = jwt.decode(token, secret, algorithms=[key.algorithm], options={"require": ["sub", "exp"]})
    except (jwt.InvalidTokenError, ValueError):
        raise HTTPException(400, "The visitor's token is invalid.") from None
    visitor_id = await database.scalar(
        select(Visitor.id).where(Visitor.organization_id == organization_id, Visitor.external_id == claims["sub"])
    )
    if visitor_id is None:
        raise HTTPException(404)
    return visitor_id


VisitorId = Annotated[UUID, Depends(identify)]


def cases_of(organization_id: UUID, visitor_id: UUID) -> Select[Case]:
    """Return the cases of all contacts of a visitor, with everything that they show."""
    return (
        select(Case)
        .join(Case.contact)
        .where(
            Case.organization_id == organization_id,
            Contact.organization_id == organization_id,
            Contact.visitor_id == visitor_id,
        )
        .options(
            contains_eager(Case.contact),
            joinedload(Case.owner),
            joinedload(Case.created_by_user),
            joinedload(Case.updated_by_user),
            joinedload(Case.case_funnel_stage),
        )
    )


def encode_cursor(direction: str, case: Case) -> str:
    """Return the text of a cursor."""
    return base64.urlsafe_b64encode(f"{direction} {case.created_at.isoformat()} {case.id}".encode()).decode()


def decode_cursor(cursor: str) -> tuple[str, datetime, UUID]:
    """Return direction, time and id of a cursor."""
    try:
        direction, created_at, case_id = base64.urlsafe_b64decode(cursor).decode().split(" ")
        return direction, datetime.fromisoformat(created_at).astimezone(UTC), UUID(case_id)
    except (ValueError, binascii.Error):
        raise HTTPException(400, "The cursor is invalid.") from None


app = FastAPI()
CASES = "/api/v5/orgs/{organization_id}/external-visitors/{token}/cases"


@app.get(CASES, response_model=PageOut)
async def list_cases(  # noqa: PLR0917  FastAPI passes them by name
    request: Request,
    organization_id: OrganizationId,
    visitor_id: VisitorId,
    database: Session,
    cursor: str | None = None,
    page_size: Annotated[int, Query(ge=1, le=100)] = 25,
) -> dict[str, Any]:
    """Answer a page of cases."""
    statement = cases_of(organization_id, visitor_id)
    key = tuple_(Case.created_at, Case.id)
    direction = "after"
    if cursor is not None:
        direction, created_at, case_id = decode_cursor(cursor)
        position = tuple_(created_at, case_id)
        statement = statement.where(key > position if direction == "after" else key < position)
    if direction == "after":
        statement = statement.order_by(Case.created_at, Case.id)
    else:
        statement = statement.order_by(Case.created_at.desc(), Case.id.desc())
    found = (await database.scalars(statement.limit(page_size + 1))).all()
    cases = list(found[:page_size])
    more = len(found) > page_size
    if direction == "before":
        cases.reverse()
    has_next, has_previous = (more, cursor is not None) if direction == "after" else (True, more)

    def link(way: str, case: Case) -> str:
        return str(request.url.include_query_params(cursor=encode_cursor(way, case)))

    return {
        "next": link("after", cases[-1]) if cases and has_next else None,
        "previous": link("before", cases[0]) if cases and has_previous else None,
        "results": cases,
    }


@app.get(CASES + "/{case_id}", response_model=CaseOut)
async def get_case(organization_id: OrganizationId, visitor_id: VisitorId, case_id: UUID, database: Session) -> Case:
    """Answer one case."""
    case = await database.scalar(cases_of(organization_id, visitor_id).where(Case.id == case_id))
    if case is None:
        raise HTTPException(404)
    return case
