"""`cases-service doctor`: looks for what can be wrong with an installation, a module for each subject."""
