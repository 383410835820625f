"""What is asked of the database: every function builds one query."""
