"""Everything that one variant's engine is set to, as the table looks at it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fairlead_operator.api.v1alpha1 import Engine, ModelPoolSpec, Variant
from fairlead_operator.api.v1alpha1.modelpool import ModelSource
from fairlead_operator.decide.engine_table.arguments import Option, meant, named
from fairlead_operator.decide.engine_table.hardware import Device, device_of
from fairlead_operator.decide.engine_table.versions import version_of

ON, OFF = "on", "off"


@dataclass(frozen=True, slots=True)
class Given:
    """One of extraArgs. ``options``: what its name may mean; ``part``: it sets a key of the option's value."""

    text: str
    where: str
    name: str
    value: str | None
    part: bool
    options: tuple[Option, ...]

    @property
    def option(self) -> Option | None:
        """The option that it sets; ``None`` if its name is unknown or means several."""
        return self.options[0] if len(self.options) == 1 else None

    @property
    def state(self) -> str | None:
        """Its value; of a switch on or off."""
        if self.option is None or self.option.takes != "switch":
            return self.value
        written = meant_name(self.name, self.option)
        return ON if written == self.option.name else OFF


@dataclass(frozen=True, slots=True)
class Setting:
    """A variant with what holds on it; ``name`` is the pool's, ``version`` of vLLM is ``None`` if it is not known."""

    name: str
    spec: ModelPoolSpec
    variant: Variant
    engine: Engine
    source: ModelSource
    device: Device
    version: str | None
    extra: Mapping[str, Given]

    def place(self, field: str) -> str:
        """Where an engine field (its Python name) is set: on the variant or on the pool."""
        return place(self.variant, field)

    def number(self, option: str) -> int | None:
        """The whole number that extraArgs give an option."""
        text = self.given(option)
        return int(text) if text is not None and re.fullmatch(r"[0-9]{1,12}", text) else None

    def given(self, option: str) -> str | None:
        """What extraArgs give an option (its positive name): a value, on or off; ``None`` if they do not."""
        found = self.extra.get(option)
        return None if found is None else found.state

    def where(self, option: str) -> str:
        """Place and text of an option in extraArgs."""
        found = self.extra[option]
        return f"{found.where} `{found.text}`"


def setting_of(spec: ModelPoolSpec, variant: Variant, name: str = "", image: str = "") -> Setting:
    """What holds on a variant. ``image`` is the release's engine image, for pools that name none."""
    engine = spec.engine_of(variant)
    version = version_of(engine.image or image)
    where = place(variant, "extra_args")
    every = [given(text, f"{where}[{index}]", version) for index, text in enumerate(engine.extra_args)]
    extra = {one.option.name: one for one in every if one.option is not None and not one.part}
    return Setting(name, spec, variant, engine, spec.model_of(variant), device_of(variant), version, extra)


def given(text: str, where: str, version: str | None) -> Given:
    """One of extraArgs, read as vLLM's parser reads it."""
    written, separator, value = text.partition("=")
    name, dot, _ = written.partition(".")
    known = named(version)
    options = tuple(known[full] for full in meant(name, version))
    return Given(text, where, name, value if separator else None, bool(dot), options)


def meant_name(written: str, option: Option) -> str:
    """The full name of the option that a possibly shortened one stands for."""
    return written if written in option.names else next(name for name in option.names if name.startswith(written))


def place(variant: Variant, field: str) -> str:
    """Where an engine field (its Python name) is set, in the API's words."""
    overridden = variant.engine is not None and getattr(variant.engine, field, None) is not None
    camel = re.sub(r"_(.)", lambda match: match[1].upper(), field)
    return f"spec.variants[{variant.name}].engine.{camel}" if overridden else f"spec.engine.{camel}"
