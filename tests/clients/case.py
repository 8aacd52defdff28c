"""What both tables of cases are made of."""

from dataclasses import dataclass
from typing import Any, Callable

LONG_PROMPT = "import os " * 1500
# Above what a gateway with the shipped configuration buffers, by more than one piece of a body: of less it may have seen the end.
TOO_LARGE = "x" * ((4 << 20) + (2560 << 10))
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}, "unit": {"type": "string", "enum": ["c", "f"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}


@dataclass
class Case:
    """A use of an SDK, and what is known of it beforehand."""

    name: str
    # Gets a `Side` and returns what it saw.
    use: Callable[[Any], Any]
    # The exception that the instance's answer leads to: an unexpected one on both sides is no success.
    raises: str | None = None
    # The gateway words this error itself.
    own: bool = False
    # Only the gateway does this; compared with this value.
    expected: Any = None


def user(text="Say hello to the router."):
    return [{"role": "user", "content": text}]


def declared(value):
    """Which fields of its class an object has, and their types: what a server adds is not the SDK's."""
    fields = sorted(set(type(value).model_fields) & value.model_fields_set)
    return {"class": type(value).__name__, **{name: type(getattr(value, name)).__name__ for name in fields}}
