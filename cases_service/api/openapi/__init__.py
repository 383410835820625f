"""The OpenAPI document: what the routes share, what is said of each, and how that becomes a document."""
