"""The commands, one module per subject: their arguments, options and output."""

from cases_service.cli.commands import credentials, loading, maintenance, personal_data, serving, visitors
from cases_service.cli.group import cli

__all__ = ["cli", "credentials", "loading", "maintenance", "personal_data", "serving", "visitors"]
