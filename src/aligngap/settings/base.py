"""What every settings class shares, what a name may be, and how a complaint is worded."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict

#: What an arm or a variant may be called: it stands in tables, in files' names and in "ARM[VARIANT]" and "ARM@STEP".
DAY = "2024-07-26"  #: what Llama's templates say where they are told no date
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+=-]{0,79}")


class Settings(BaseModel):
    """Frozen, and strict about names."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def explain(error: Any, prefix: str = "", model: Any = None) -> str:
    """The first complaint of a pydantic ValidationError as one line: key, what is wrong, what was given.

    Where a key is unknown, `model`, the class that was to be read, says which name is meant.
    """
    every = error.errors(include_url=False)
    top = keys_of(every[0])
    inside = [e for e in every if keys_of(e)[: len(top)] == top]  # one or more for each kind that a value may have
    key = max(map(keys_of, inside), key=len)
    same = [e for e in inside if keys_of(e) == key]
    first = same[0]
    told = list(dict.fromkeys(say_wrong(e) for e in same))
    message = " or ".join([told[0], *(text.removeprefix("must be ") for text in told[1:])])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key[-1], fields_at(model_in(model), key[:-1]), n=1)
        message = "unknown key; " + (f"did you mean `{near[0]}`?" if near else "remove it or correct its name")
    given = first.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    more = f" [and {len(every) - len(inside)} more]" if len(every) > len(inside) else ""
    return f"{(prefix + '.'.join(key)).rstrip('.') or 'study'}: {message}{shown}{more}"


#: a value's kind by pydantic's name of it, as it stands in a type of error, and in words
KINDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "list": "a list",
    "tuple": "a list", "dict": "keys with values", "model": "keys with values",
}  # fmt: skip


def say_wrong(complaint: Mapping[str, Any]) -> str:
    """What one complaint of pydantic is about, in words of our own where its own speak of its types."""
    kind, _, rest = complaint["type"].partition("_")
    if complaint["type"] == "missing":
        return "missing; add it"
    if kind in KINDS and rest in ("type", "parsing", "from_float", "attributes_type"):
        return f"must be {KINDS[kind]}"
    message = str(complaint["msg"]).removeprefix("Value error, ")
    return "must be " + message.removeprefix("Input should be ") if message.startswith("Input should be ") else message


def keys_of(complaint: Mapping[str, Any]) -> list[str]:
    """The keys of the value that a complaint is about, without the kinds of it that pydantic tried."""
    return [str(part) for part in complaint["loc"] if part not in (*KINDS, "str") and "[" not in str(part)]


def fields_at(model: type[BaseModel] | None, keys: Sequence[str]) -> list[str]:
    """The names that may stand in the section that `keys` lead to; none where that is not known."""
    for key in keys:
        if model is not None and key in model.model_fields:  # else it is a name of the user's own, or a place in a list
            model = model_in(model.model_fields[key].annotation)
    return [] if model is None else list(model.model_fields)


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The class of settings inside an annotation, such as `dict[str, Arm]` or `Reference | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := model_in(part)) is not None), None)
