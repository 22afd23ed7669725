"""What every settings class shares, what a name may be, and how a complaint is worded."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict

#: What an arm or a variant may be called: it stands in tables, in files' names and in "ARM[VARIANT]" and "ARM@STEP".
DAY = "2024-07-26"  #: what Llama's templates say where they are told no date
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+=-]{0,79}")


class Settings(BaseModel):
    """Frozen, and strict about names."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def explain(error: Any, prefix: str = "") -> str:
    """The first complaint of a pydantic ValidationError as one line: key, what is wrong, what was given."""
    first = error.errors(include_url=False)[0]
    where = prefix + ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key; remove it or correct its name"
    elif first["type"] == "missing":
        message = "missing; add it"
    given = first.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    more = f" [and {error.error_count() - 1} more]" if error.error_count() > 1 else ""
    return f"{where.rstrip('.') or 'study'}: {message}{shown}{more}"
