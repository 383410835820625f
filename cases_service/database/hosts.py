"""Takes the hosts of a connection string apart, for gunicorn's master, too, which may not import the metrics yet."""

from typing import Final

from psycopg.conninfo import conninfo_to_dict, make_conninfo

_PLACE: Final = ("host", "hostaddr", "port")


def single_hosts(url: str | None) -> list[str]:
    """Return a connection string for each host that a libpq URI or key-value string names; none for None."""
    if url is None:
        return []
    given = conninfo_to_dict(url)
    places = {name: str(given[name]).split(",") for name in _PLACE if given.get(name)}
    number = max(map(len, places.values()), default=1)
    return [
        make_conninfo("", **given | {name: values[i % len(values)] for name, values in places.items()})
        for i in range(number)
    ]
