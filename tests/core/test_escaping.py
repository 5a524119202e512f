"""What OmniQ logs holds nothing that acts on a terminal, and no line that nobody wrote."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from omniq.storage.escaping import LONGEST_ARGUMENT, Lines, get_logger, printable, shown

HOSTILE = "x\r\n2026-01-01 INFO all is well\x1b[2J\x1b]0;title\x07\u202e"
SOURCES = sorted(Path(__file__).parents[2].glob("omniq-*/src/**/*.py"))


def test_every_logger_of_omniq_is_one_that_escapes() -> None:
    assert len(SOURCES) > 200
    makes = re.compile(r"^\w*log(ger)? = logging\.getLogger\(", re.MULTILINE)
    assert [path for path in SOURCES if path.name != "escaping.py" and makes.search(path.read_text())] == []


class Talkative:
    def __str__(self) -> str:
        return HOSTILE


@pytest.mark.parametrize("value", [HOSTILE, ValueError(HOSTILE), Talkative(), [HOSTILE], HOSTILE.encode()])
def test_what_a_record_shows_is_one_line_of_printable_characters(
    value: object, caplog: pytest.LogCaptureFixture
) -> None:
    log = get_logger("omniq.test_escaping")
    log.error("task %s: %r (%d of %s)", value, value, 1, None)
    log.error("task %(name)s", {"name": value})
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "(1 of None)" in said[0]
    assert all(map(str.isprintable, said))


def test_the_fields_of_a_record_are_escaped_for_formats_that_show_them(caplog: pytest.LogCaptureFixture) -> None:
    get_logger("omniq.test_escaping").error("x", extra={"task_id": HOSTILE, "task_name": HOSTILE, "task_queue": "a"})
    formatted = logging.Formatter("%(task_id)s %(task_name)s %(task_queue)s").format(caplog.records[0])
    assert formatted == f"{printable(HOSTILE)} {printable(HOSTILE)} a"


def test_a_traceback_keeps_its_lines_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    get_logger("omniq.test_escaping").error("failed:\n%s", Lines("first\n\tsecond\x1b[2J"))
    assert caplog.records[0].getMessage() == "failed:\nfirst\n        second\\x1b[2J"


def test_a_value_without_end_ends(caplog: pytest.LogCaptureFixture) -> None:
    get_logger("omniq.test_escaping").error("failed: %s", "x" * 10_000_000)
    assert len(caplog.records[0].getMessage()) < LONGEST_ARGUMENT + 100


def test_an_id_in_an_error_is_one_short_line() -> None:
    assert shown("0196f0c4") == "0196f0c4"
    assert shown(HOSTILE).isprintable()
    assert len(shown("x" * 10_000)) == 200
