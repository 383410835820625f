"""A person's data: exporting what an organization holds about a visitor, and erasing it."""
