"""Lines that come one by one become batches: by their number, by time, at the end, and where it is to stop."""

import os
from collections.abc import Iterator
from threading import Timer

import pytest

from cases_service.loading.files import MAXIMUM_LINE_BYTES
from cases_service.loading.follow import Batch, LineFeed


class Pipes:
    """What lines are written into, and what says that no more are to be read."""

    def __init__(self) -> None:
        self.input, self.writer = os.pipe()
        self.stop, self.stopper = os.pipe()

    def feed(self, *, size: int = 3, seconds: float = 60) -> Iterator[Batch]:
        return LineFeed(self.input, size=size, seconds=seconds, stop=self.stop).batches()

    def write(self, text: bytes) -> None:
        os.write(self.writer, text)

    def end(self) -> None:
        os.close(self.writer)
        self.writer = -1

    def close(self) -> None:
        for descriptor in (self.input, self.writer, self.stop, self.stopper):
            if descriptor >= 0:
                os.close(descriptor)


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    pipes = Pipes()
    yield pipes
    pipes.close()


def test_so_many_lines_are_a_batch_at_once(pipes: Pipes) -> None:
    pipes.write(b"a\nb\nc\nd\n")
    assert next(pipes.feed()) == Batch([(1, b"a"), (2, b"b"), (3, b"c")], 3)


def test_the_end_of_the_input_completes_the_last_line_and_batch(pipes: Pipes) -> None:
    pipes.write(b"a\nb\nc\nd\ne")
    pipes.end()
    assert [batch.through for batch in pipes.feed()] == [3, 5]


def test_a_line_does_not_wait_for_others_longer_than_it_is_to(pipes: Pipes) -> None:
    pipes.write(b"a\nb")
    assert next(pipes.feed(seconds=0.05)) == Batch([(1, b"a")], 1)


def test_a_line_that_comes_in_pieces_is_one(pipes: Pipes) -> None:
    pipes.write(b"ab")
    Timer(0.05, lambda: pipes.write(b"c\n")).start()
    assert next(pipes.feed(size=1)).lines == [(1, b"abc")]


def test_blank_lines_count_and_are_left_out(pipes: Pipes) -> None:
    pipes.write(b"\n \na\n\nb\n")
    pipes.end()
    assert list(pipes.feed()) == [Batch([(3, b"a"), (5, b"b")], 5)]


def test_where_it_is_to_stop_what_is_complete_is_given_on(pipes: Pipes) -> None:
    pipes.write(b"a\nb\nc\nd\nhalf")
    feed = pipes.feed()
    assert next(feed).through == 3
    os.write(pipes.stopper, b".")
    assert list(feed) == [Batch([(4, b"d")], 4)]


def test_of_a_line_that_is_too_long_the_beginning_comes_and_the_next_one_whole(pipes: Pipes) -> None:
    def write() -> None:
        for _ in range(32):
            pipes.write(b"x" * 65536)
        pipes.write(b"x\nb\n")
        pipes.end()

    Timer(0, write).start()
    (batch,) = pipes.feed()
    (number, line), second = batch.lines
    assert (number, second) == (1, (2, b"b"))
    assert MAXIMUM_LINE_BYTES < len(line) < MAXIMUM_LINE_BYTES + 2 * 65536
