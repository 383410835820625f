"""Who may ask: API tokens, signing keys, the visitor's JWT, and how secrets are encrypted at rest."""
