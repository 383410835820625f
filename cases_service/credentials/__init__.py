"""Credentials: API tokens, signing keys, the visitor's JWT, and the encryption of secrets at rest."""
