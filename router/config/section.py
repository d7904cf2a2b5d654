"""What every section of a config file has in common, and the plain types of its values."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from router.urls import base_url, page_url, redis_url

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Port = Annotated[int, Field(ge=0, le=65535)]


HttpUrl = Annotated[str, AfterValidator(page_url)]
BaseUrl = Annotated[str, AfterValidator(base_url)]
RedisUrl = Annotated[str, AfterValidator(redis_url)]


class Section(BaseModel):
    """A part of the file: frozen, and a key that it does not have is an error.

    ``renamed``: keys of earlier versions, with what to write instead. A validator is built at its first use, and within
    that of the section around it: every command that reads a config waits for that. So no section is instantiated while
    modules are imported (``default``).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)
    renamed: ClassVar[Mapping[str, str]] = {}


def default(**given: Any) -> Any:
    """What a section is that the text leaves out: as if it were there with these keys."""
    return Field(given, validate_default=True)


def named(key: str) -> BeforeValidator:
    """A bare word stands for the section with that one key."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


def listed(value: Any) -> Any:
    """A bare word is a list of one; an empty list is refused."""
    return [value] if isinstance(value, str) else some(value)


def some(value: Any) -> Any:
    """Refuse an empty list; checked before parsing, since pydantic's own bound counts valid items only."""
    if isinstance(value, list | dict) and not value:
        raise ValueError("needs at least one entry")
    return value
