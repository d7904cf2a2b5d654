"""What every section of a config file has in common, and the plain types of its values."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from router.urls import http_url

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Port = Annotated[int, Field(ge=0, le=65535)]


def _redis_url(text: str) -> str:
    if text.partition("://")[0] not in {"redis", "rediss", "unix"}:
        raise ValueError(f"expected redis://host:port/db, not {text!r}")
    return text


HttpUrl = Annotated[str, AfterValidator(http_url)]
RedisUrl = Annotated[str, AfterValidator(_redis_url)]


class Section(BaseModel):
    """A part of the file: frozen, and a key that it does not have is an error.

    ``renamed``: keys of earlier versions, with what to write instead.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    renamed: ClassVar[Mapping[str, str]] = {}


def named(key: str) -> BeforeValidator:
    """A bare word stands for the section with that one key."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


def some(value: Any) -> Any:
    """Refuse an empty list; checked before parsing, since pydantic's own bound counts valid items only."""
    if isinstance(value, list | dict) and not value:
        raise ValueError("needs at least one entry")
    return value
