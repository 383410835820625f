"""The command line: every command, its options, and the doctor."""
