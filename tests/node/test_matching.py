"""By which words and patterns a server is known to have started."""

from __future__ import annotations

import pytest

from services.node.matching import Matching, TooSlow


@pytest.mark.parametrize(
    ("done", "line", "found"),
    [
        (["ready"], b"[12:00] ready!", True),
        (["ready"], b"not yet", False),
        (["never", "ready"], b"ready", True),
        ([r"regex:^done in \d+ ms$"], b"done in 12 ms", True),
        ([r"regex:^done in \d+ ms$"], b"done in a moment", False),
        (["ready", "regex:^x$"], b"ready", True),
        (["ready"], b"\xff\xfe ready", True),
        (["regex:f.rtig"], "f\u00fcrtig".encode(), True),
    ],
)
async def test_a_line_says_so(done: list[str], line: bytes, found: bool) -> None:
    matching = Matching(done, strip_ansi=False)
    assert await matching.matches(line) is found
    await matching.close()


async def test_colours_are_in_the_way_unless_they_are_not_to_be() -> None:
    line = b"re\x1b[1;32mady"
    assert not await Matching(["ready"], strip_ansi=False).matches(line)
    assert await Matching(["ready"], strip_ansi=True).matches(line)


def test_where_there_is_nothing_to_wait_for() -> None:
    assert Matching([], strip_ansi=False).empty
    assert Matching(["", "regex:"], strip_ansi=False).empty
    broken = Matching(["regex:("], strip_ansi=False)
    assert (broken.empty, broken.complaints) == (True, ["("])


async def test_a_pattern_that_takes_for_ever_is_given_up() -> None:
    matching = Matching(["ready", "regex:^(a+)+$"], strip_ansi=False)
    with pytest.raises(TooSlow):
        await matching.matches(b"a" * 60 + b"!")
    assert not matching.empty
    assert await matching.matches(b"ready")
    assert not await matching.matches(b"a" * 60 + b"!")
