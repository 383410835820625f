"""The WSGI entry point: `gunicorn app:app`."""

from cases_service.application import create_app

app = create_app()
