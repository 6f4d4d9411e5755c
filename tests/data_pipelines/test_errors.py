"""What a user is told: one line, whatever the names of files and the headers in them are."""

import pickle
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.errors import UserError, printable


@given(st.text(st.characters(exclude_categories=())))
def test_an_error_is_one_line_without_control_characters(text: str) -> None:
    line = str(UserError(text))
    assert line.isprintable()
    assert len(line) == len(text)
    assert all(new in (old, "?") for old, new in zip(text, line, strict=True))
    assert str(pickle.loads(pickle.dumps(UserError(text)))) == line  # workers hand it over so


@given(st.text(st.characters(categories=("L", "M", "N", "P", "S"), include_characters=" ")))
def test_what_can_be_printed_stays(text: str) -> None:
    assert printable(text) == text


def test_what_cannot_becomes_question_marks() -> None:
    assert printable("a\x1b[31mb\r\n\x07\x9b\x7f\u2028c d") == "a?[31mb??????c d"


def test_the_command_line_says_so_too() -> None:
    code = (
        "from data_pipelines.errors import UserError, reported_in_one_line as reported\n"
        "with reported():\n"
        "    {}\n"
    )
    for cause, expected in (
        ("raise UserError('a\\x1b[2J\\nb')", b"error: a?[2J?b\n"),
        ("open('no\\x1b[2J\\nwhere')", b"error: no?[2J?where: No such file or directory; check"),
    ):
        result = subprocess.run([sys.executable, "-c", code.format(cause)], capture_output=True)
        assert result.returncode == 1
        assert result.stderr.startswith(expected)
