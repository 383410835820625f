"""The peer Django REST framework, written as its documentation would have it.

Model serializers, generic views, an authentication class, `CursorPagination`, `select_related` for everything that a
case shows, connections that are kept, JSON alone for a renderer, and no middleware that the pages do not need.
"""

from typing import Any
from uuid import UUID

import django
import jwt
from django.conf import settings

from benchmarks.contestants.credentials import api_token, database, signing_secret

_DATABASE = database()
settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": _DATABASE.get("dbname"),
            "USER": _DATABASE.get("user"),
            "PASSWORD": _DATABASE.get("password"),
            "HOST": _DATABASE.get("host"),
            "PORT": _DATABASE.get("port"),
            "CONN_MAX_AGE": None,
        }
    },
    INSTALLED_APPS=["rest_framework"],
    LOGGING_CONFIG=None,
    MIDDLEWARE=["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"],
    REST_FRAMEWORK={
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
        "UNAUTHENTICATED_USER": None,
    },
    ROOT_URLCONF=__name__,
    SECRET_KEY="nothing here is signed with it",  # noqa: S106
    TIME_ZONE="UTC",
    USE_TZ=True,
)
django.setup()

from django.core.wsgi import get_wsgi_application  # noqa: E402  Django wants its settings first
from django.db import models  # noqa: E402
from django.db.models import Q, QuerySet  # noqa: E402
from django.db.models.functions import Now  # noqa: E402
from django.shortcuts import get_object_or_404  # noqa: E402
from django.urls import path  # noqa: E402
from rest_framework import authentication, exceptions, generics, pagination, permissions, serializers  # noqa: E402
from rest_framework.request import Request  # noqa: E402


class Unmanaged(models.Model):
    """A table of the service's schema."""

    pk = models.CompositePrimaryKey("organization_id", "id")
    organization_id = models.UUIDField()
    id = models.UUIDField()

    class Meta:
        """Shared by all tables."""

        abstract = True
        app_label = "cases"
        managed = False


def reference(model: type[models.Model], column: str) -> Any:
    """Return a reference by organization and id, which are the composite key of every table."""
    return models.ForeignObject(
        model,
        on_delete=models.DO_NOTHING,
        from_fields=("organization_id", column),
        to_fields=("organization_id", "id"),
        related_name="+",
        null=True,
    )


class Organization(models.Model):
    """A company."""

    organization_id = models.UUIDField(primary_key=True)
    subscription_status = models.TextField()
    subscription_ends_at = models.DateTimeField(null=True)

    class Meta:
        """Made by the service's schema."""

        app_label = "cases"
        managed = False
        db_table = "organizations"


class ApiToken(Unmanaged):
    """What a backend authenticates with."""

    organization = models.ForeignObject(
        Organization,
        on_delete=models.DO_NOTHING,
        from_fields=("organization_id",),
        to_fields=("organization_id",),
        related_name="+",
    )
    token_hash = models.BinaryField()
    expires_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)

    class Meta(Unmanaged.Meta):
        """Made by the service's schema."""

        db_table = "api_tokens"


class SigningKey(Unmanaged):
    """What verifies the JWT of a visitor."""

    algorithm = models.TextField()
    encrypted_secret = models.TextField(null=True)
    retired_at = models.DateTimeField(null=True)

    class Meta(Unmanaged.Meta):
        """Made by the service's schema."""

        db_table = "signing_keys"


class Visitor(Unmanaged):
    """A signed-in customer."""

    external_id = models.TextField()

    class Meta(Unmanaged.Meta):
        """Made by the service's schema."""

        db_table = "visitors"


class User(Unmanaged):
    """Someone who works for the organization."""

    email = models.TextField(null=True)
    first_name = models.TextField(null=True)
    last_name = models.TextField(null=True)
    full_name = models.TextField(null=True)
    alias = models.TextField(null=True)
    title = models.TextField(null=True)
    avatar_url = models.TextField(null=True)

    class Meta(Unmanaged.Meta):
        """Made by the service's schema."""

        db_table = "users"


class Contact(Unmanaged):
    """One way the visitor was met."""

    visitor_id = models.UUIDField(null=True)
    first_name = models.TextField(null=True)
    last_name = models.TextField(null=True)
    full_name = models.TextField(null=True)
    email = models.TextField(null=True)
    phone = models.TextField(null=True)
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    class Meta(Unmanaged.Meta):
        """Made by the service's schema."""

        db_table = "contacts"


class CaseFunnelStage(Unmanaged):
    """The step of the organization's process that a case is in."""

    name = models.TextField()
    position = models.IntegerField()

    class Meta(Unmanaged.Meta):
        """Made by the service's schema."""

        db_table = "case_funnel_stages"


class Case(Unmanaged):
    """A case."""

    class Priority(models.IntegerChoices):
        """How urgent it is."""

        NONE = 1, "None"
        LOW = 2, "Low"
        NORMAL = 3, "Normal"
        HIGH = 4, "High"
        CRITICAL = 5, "Critical"

    case_number = models.TextField()
    contact_id = models.UUIDField(null=True)
    contact = reference(Contact, "contact_id")
    owner_id = models.UUIDField(null=True)
    owner = reference(User, "owner_id")
    subject = models.TextField(null=True)
    description = models.TextField(null=True)
    status = models.TextField()
    priority = models.SmallIntegerField(choices=Priority.choices)
    latest_messaging_channel = models.TextField(null=True)
    channel_priority = models.SmallIntegerField(null=True)
    is_closed = models.BooleanField()
    closed_at = models.DateTimeField(null=True)
    is_waiting = models.BooleanField()
    unread_message_count = models.IntegerField()
    visitor_unread_message_count = models.IntegerField()
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()
    created_by_user_id = models.UUIDField(null=True)
    created_by_user = reference(User, "created_by_user_id")
    updated_by_user_id = models.UUIDField(null=True)
    updated_by_user = reference(User, "updated_by_user_id")
    case_funnel_stage_id = models.UUIDField(null=True)
    case_funnel_stage = reference(CaseFunnelStage, "case_funnel_stage_id")

    class Meta(Unmanaged.Meta):
        """Made by the service's schema."""

        db_table = "cases"


class UserSerializer(serializers.ModelSerializer):
    """A user in a case."""

    class Meta:
        """What is shown."""

        model = User
        fields = (
            "id",
            "organization_id",
            "email",
            "first_name",
            "last_name",
            "full_name",
            "alias",
            "title",
            "avatar_url",
        )


class ContactSerializer(serializers.ModelSerializer):
    """A contact in a case."""

    class Meta:
        """What is shown."""

        model = Contact
        fields = (
            "id",
            "organization_id",
            "first_name",
            "last_name",
            "full_name",
            "email",
            "phone",
            "created_at",
            "updated_at",
        )


class CaseFunnelStageSerializer(serializers.ModelSerializer):
    """A funnel stage in a case."""

    class Meta:
        """What is shown."""

        model = CaseFunnelStage
        fields = ("id", "organization_id", "name", "position")


class CaseSerializer(serializers.ModelSerializer):
    """A case with everything that it refers to."""

    contact = ContactSerializer()
    owner = UserSerializer()
    created_by_user = UserSerializer()
    updated_by_user = UserSerializer()
    case_funnel_stage = CaseFunnelStageSerializer()
    priority_label = serializers.CharField(source="get_priority_display")

    class Meta:
        """What is shown."""

        model = Case
        fields = (
            "id",
            "organization_id",
            "case_number",
            "contact_id",
            "contact",
            "owner_id",
            "owner",
            "subject",
            "description",
            "status",
            "priority",
            "priority_label",
            "latest_messaging_channel",
            "is_closed",
            "closed_at",
            "is_waiting",
            "unread_message_count",
            "created_at",
            "updated_at",
            "created_by_user_id",
            "created_by_user",
            "updated_by_user_id",
            "updated_by_user",
            "case_funnel_stage",
            "case_funnel_stage_id",
            "channel_priority",
            "visitor_unread_message_count",
        )


class Backend:
    """Who asks, as Django's permissions see them."""

    is_authenticated = True

    def __init__(self, organization: Organization) -> None:
        self.organization = organization


class TokenAuthentication(authentication.BaseAuthentication):
    """Proves an API token."""

    def authenticate(self, request: Request) -> tuple[Backend, ApiToken]:
        """Return who asks, and the token."""
        given = api_token(request.headers.get("Authorization", ""))
        if given is None:
            raise exceptions.AuthenticationFailed
        token = (
            ApiToken.objects.select_related("organization")
            .filter(Q(expires_at=None) | Q(expires_at__gt=Now()))
            .filter(organization_id=given.organization_id, token_hash=given.hash, revoked_at=None)
            .first()
        )
        if token is None:
            raise exceptions.AuthenticationFailed
        return Backend(token.organization), token

    def authenticate_header(self, _request: Request) -> str:
        """Return the scheme that a 401 names."""
        return "Token"


class OwnOrganization(permissions.IsAuthenticated):
    """The token's organization is the path's, with an active subscription."""

    def has_permission(self, request: Request, view: Any) -> bool:
        """Tell whether the request may pass."""
        organization = request.user.organization
        return bool(
            organization.organization_id == view.kwargs["organization_id"]
            and organization.subscription_status == "active"
        )


class CasePagination(pagination.CursorPagination):
    """Pages by creation."""

    ordering = ("created_at", "id")
    page_size = 25
    page_size_query_param = "page_size"
    max_page_size = 100


class VisitorCases(generics.GenericAPIView):
    """The cases of the visitor that the JWT in the path names."""

    authentication_classes = (TokenAuthentication,)
    permission_classes = (OwnOrganization,)
    serializer_class = CaseSerializer

    def get_queryset(self) -> QuerySet[Case]:
        """Return the cases of all contacts of the visitor."""
        organization_id = self.kwargs["organization_id"]
        external_id = external_identity(self.kwargs["token"], organization_id)
        visitor = get_object_or_404(Visitor, organization_id=organization_id, external_id=external_id)
        return Case.objects.select_related(
            "contact", "owner", "created_by_user", "updated_by_user", "case_funnel_stage"
        ).filter(
            organization_id=organization_id, contact__organization_id=organization_id, contact__visitor_id=visitor.id
        )


def external_identity(token: str, organization_id: UUID) -> str:
    """Return the subject of a visitor's JWT."""
    try:
        key_id = jwt.get_unverified_header(token).get("kid")
        key = SigningKey.objects.get(
            Q(retired_at=None) | Q(retired_at__gt=Now()), organization_id=organization_id, id=key_id
        )
        secret = signing_secret(organization_id, key.id, key.algorithm, key.encrypted_secret)
        return str(jwt.decode(token, secret, algorithms=[key.algorithm], options={"require": ["sub", "exp"]})["sub"])
    except (jwt.InvalidTokenError, SigningKey.DoesNotExist):
        raise exceptions.ValidationError("The visitor's token is invalid.") from None


class CaseList(VisitorCases, generics.ListAPIView):
    """A page of cases."""

    pagination_class = CasePagination


class CaseDetail(VisitorCases, generics.RetrieveAPIView):
    """One case."""

    lookup_field = "id"
    lookup_url_kwarg = "case_id"


_CASES = "api/v5/orgs/<uuid:organization_id>/external-visitors/<str:token>/cases"
urlpatterns = [path(_CASES, CaseList.as_view()), path(f"{_CASES}/<uuid:case_id>", CaseDetail.as_view())]
application = get_wsgi_application()
