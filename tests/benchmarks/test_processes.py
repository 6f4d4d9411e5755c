import collections
import os

import pytest

from benchmarks.processes import ContenderFailed, failure_noted, running


def test_a_contender_answers_from_its_process() -> None:
    with running(collections.Counter, "abracadabra") as contender:
        assert contender.call("most_common", 1) == [("a", 5)]
        contender.call("update", "bbbb")
        assert contender.call("most_common", 1) == [("b", 6)]
        assert contender.timed("total").seconds > 0


def test_what_a_contender_raises_is_its_failure() -> None:
    result: dict = {}
    with failure_noted(result), running(int, "seven"):
        pytest.fail("there is no contender")
    assert result == {"failure": "invalid literal for int() with base 10: 'seven'"}


def test_a_contender_that_ends_has_failed() -> None:
    with pytest.raises(ContenderFailed, match="status 3"), running(os._exit, 3):
        pytest.fail("there is no contender")
