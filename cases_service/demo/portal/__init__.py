"""The portal of examples/portal beside the demo, where a newcomer chooses whom to be signed in as."""
