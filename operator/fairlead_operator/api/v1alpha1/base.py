"""What the models of the kinds are made of: their base class, schema marks and value types."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema

from fairlead_operator import units

LABEL_VALUE_LENGTH = 63
LABEL_KEY_LENGTH = 316


def cel(rule: str, message: str) -> dict[str, str]:
    """A rule that the API server evaluates, and what it answers when the rule is broken."""
    return {"rule": rule, "message": message}


def rules(*validations: dict[str, str]) -> dict[str, Any]:
    """Schema mark: CEL rules of the marked object, list or field."""
    return {"x-kubernetes-validations": list(validations)}


def map_list(*keys: str) -> dict[str, Any]:
    """Schema mark: a list of objects with unique keys, merged by them."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


def set_list() -> dict[str, Any]:
    """Schema mark: a list of unique values."""
    return {"x-kubernetes-list-type": "set"}


def atomic_list() -> dict[str, Any]:
    """Schema mark: a list that is replaced whole."""
    return {"x-kubernetes-list-type": "atomic"}


class KubeModel(BaseModel):
    """Base of everything inside a kind: immutable, camelCase outside, fields of other versions ignored."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        use_attribute_docstrings=True,
    )

    def to_dict(self) -> dict[str, Any]:
        """The object as the API server takes it: camelCase, absent fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class _Text(str):
    """A string of the API with a meaning; it serialises as it was written."""

    __slots__ = ()

    @classmethod
    def _accept(cls, value: object) -> Self:
        raise NotImplementedError

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._accept, serialization=core_schema.to_string_ser_schema(when_used="always")
        )


class Duration(_Text):
    """A GEP-2257 duration such as ``1h30m``."""

    __slots__ = ()

    @property
    def ms(self) -> int:
        """Milliseconds."""
        return units.parse_duration_ms(self)

    @property
    def seconds(self) -> int:
        """Whole seconds, rounded up: a bound that is cut short would come too early."""
        return -(-self.ms // 1000)

    @classmethod
    def _accept(cls, value: object) -> Self:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is not a duration: write text such as 90s")  # noqa: TRY004 pydantic collects ValueErrors
        units.parse_duration_ms(value)
        return cls(value)

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": units.DURATION_PATTERN, "maxLength": units.MAX_DURATION_TEXT}


class Money(_Text):
    """A decimal amount, written as an integer or as a quoted string with at most six places."""

    __slots__ = ()

    @property
    def nano(self) -> int:
        """The amount in billionths: nano-USD when it is USD."""
        return units.parse_usd(self)

    @classmethod
    def _accept(cls, value: object) -> Self:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(f"{value!r} is not an amount: write an integer, or a quoted decimal such as '0.45'")  # noqa: TRY004 pydantic collects ValueErrors
        text = str(value)
        units.parse_usd(text)
        return cls(text)

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": units.USD_PATTERN,
            "maxLength": units.MAX_USD_TEXT,
            "minimum": 0,
            "maximum": units.MAX_USD,
        }


Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
"""A DNS label."""
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
"""A DNS subdomain: the name of a Secret or a PersistentVolumeClaim."""
Uri = Annotated[str, Field(pattern=r"^(hf|s3|gs|pvc|oci)://.+$", max_length=512)]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$", max_length=128)]
ContextTokens = Annotated[int, Field(ge=128, le=10_485_760)]
Replicas = Annotated[int, Field(ge=0, le=1000)]
LabelKey = Annotated[str, Field(min_length=1, max_length=LABEL_KEY_LENGTH)]
LabelValue = Annotated[str, Field(max_length=LABEL_VALUE_LENGTH)]
Labels = Annotated[dict[str, LabelValue], Field(max_length=16)]

Amount = Annotated[str, Field(pattern=r"^-?[0-9]{1,18}(\.[0-9]{1,9})?$", max_length=32)]
"""An amount in a status: USD with two or six places, or a whole number of tokens or requests."""
Timestamp = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
"""RFC 3339, UTC, as the API server writes it: 2026-11-20T08:41:10Z."""
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Generation = Annotated[int, Field(ge=0, le=2**53)]
Word = Annotated[str, Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", max_length=128)]
"""A CamelCase word for programs to switch on."""
Message = Annotated[str, Field(max_length=4096)]
