"""The command line: all commands, their options, and the doctor."""
