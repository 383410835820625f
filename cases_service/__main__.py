"""Runs the command line: `cases-service`, or `python -m cases_service`."""

import signal
from typing import NoReturn


def main() -> NoReturn:
    """Run the command that the arguments name, and exit with its status."""
    # The commands take a while to import. Until they can catch an interrupt, it just ends the process.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from cases_service.cli import standard_streams  # noqa: PLC0415  only after the signal is set

    standard_streams.open_missing()
    from cases_service.cli import main as command_line  # noqa: PLC0415  only once there are streams to write to

    command_line.main()


if __name__ == "__main__":
    main()
