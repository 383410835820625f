"""What the tests of statements share."""

from collections.abc import Iterator

import pytest

from cases_service.database.connection_pool import Database
from cases_service.settings import Settings


@pytest.fixture(scope="module")
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database_url or "", settings)
    database.open()
    yield database
    database.close()
