"""The page of examples/portal beside the demo, with a choice of the visitor to sign in as."""
