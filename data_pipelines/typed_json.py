"""JSON of files that may be damaged or forged, read as the type that it should have."""

from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def from_json(text: bytes) -> Any:
    """What a text says, of any type; NaN is no JSON.

    Raises:
      ValueError: it is no JSON, or nested too deeply.
    """
    try:
        return msgspec.json.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def typed(values: Any, kind: type[T]) -> T:
    """What `from_json` gives, as a dataclass or another type that annotations describe.

    Raises:
      ValueError: a value has another type or is out of range, or a field is missing or unknown.
    """
    try:
        found = msgspec.convert(values, kind)
        _refuse_unknown(values, msgspec.to_builtins(found))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return found


def _refuse_unknown(values: Any, known: Any) -> None:
    """Dataclasses are made without a word of the fields that they do not have."""
    if isinstance(values, dict):
        for name, value in values.items():
            if name not in known:
                raise ValueError(f"the field {name!r} is unknown to this version")
            _refuse_unknown(value, known[name])
    elif isinstance(values, (list, tuple)):
        for value, found in zip(values, known, strict=True):
            _refuse_unknown(value, found)
