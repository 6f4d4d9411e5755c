"""Every variant of a contender tried briefly, so that it can run in its fastest."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.processes import failure_noted
from benchmarks.report import progress

Trial = dict[str, Any]


def trials(name: str, variants: Iterable[Any], seconds: Callable[[Any], float]) -> list[Trial]:
    """What each variant, a named tuple, takes.

    Returns:
      The fields of each variant with its "seconds", None if it failed, and then its "failure".
    """
    done = []
    for variant in variants:
        trial: Trial = variant._asdict() | {"seconds": None}
        with failure_noted(trial):
            trial["seconds"] = seconds(variant)
        progress(f"{name}: {trial}")
        done.append(trial)
    return done


def fastest(trials: Iterable[Trial]) -> Trial:
    """The trial of the fastest variant that did not fail."""
    return min(trials, key=lambda trial: trial["seconds"] or math.inf)
