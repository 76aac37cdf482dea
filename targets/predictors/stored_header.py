"""The JSON header of a stored predictor, read field by field: each has its kind and bounds, and one that has not is named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...compiler.errors import FormatError
from .columns import VIEWS
from .fit import Accuracy, Model


@dataclass(frozen=True)
class Fields:
    """One JSON object of the header. `file`: for messages; `where`: the way to it from the header's root."""

    file: str
    value: Any
    where: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.value, Mapping):
            raise self.error("", f"is {_short(self.value)}, not an object")

    def error(self, name: str, what: str) -> FormatError:
        """`what` said of field `name`."""
        place = ".".join(part for part in (self.where, name) if part) or "its header"
        return FormatError(f"{self.file}: not a predictor that `neaptide cost fit` wrote: {place} {what}")

    def get(self, name: str) -> Any:
        """The field as it is, None when it is absent."""
        return self.value.get(name)

    def mapping(self, name: str) -> Mapping[str, Any]:
        """An object."""
        return self._object(name).value

    def inside(self, name: str, key: str) -> Fields:
        """The object `key` in the object `name`."""
        return self._object(name)._object(key)

    def text(self, name: str) -> str:
        """A string."""
        value = self.get(name)
        if not isinstance(value, str):
            raise self.error(name, f"is {_short(value)}, not text")
        return value

    def choice(self, name: str, known: Sequence[str]) -> Any:
        """One of `known`."""
        value = self.get(name)
        if value not in known:
            raise self.error(name, f"is {_short(value)}, not one of {', '.join(known)}")
        return value

    def number(self, name: str, least: float = -math.inf, most: float = math.inf) -> float:
        """A finite number within bounds."""
        return float(self._number(name, self.get(name), least, most))

    def whole(self, name: str, least: int, most: int) -> int:
        """A whole number within bounds."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(name, f"is {_short(value)}, not a whole number from {least} to {most:,}")
        return value

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.get(name)
        if not isinstance(value, bool):
            raise self.error(name, f"is {_short(value)}, not true or false")
        return value

    def numbers(self, name: str, *, least: float) -> dict[str, float]:
        """An object of numbers."""
        inner = self._object(name)
        return {key: float(inner._number(key, value, least, math.inf)) for key, value in inner.value.items()}

    def model(self, name: str) -> Model:
        """A `Model`."""
        inner = self._object(name)
        return Model(
            inner.choice("view", VIEWS), inner.whole("power", 0, 9), inner.number("ridge", 0), inner.flag("boosted"), inner.flag("log")
        )

    def accuracy(self, name: str) -> Accuracy:
        """An `Accuracy`."""
        return _accuracy(self._object(name))

    def tried(self, name: str) -> tuple[tuple[str, Accuracy], ...]:
        """Pairs of a model's name and its accuracy."""
        found = []
        for i, pair in enumerate(self._list(name)):
            if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
                raise self.error(f"{name}[{i}]", f"is {_short(pair)}, not a model's name and its accuracy")
            found.append((pair[0], _accuracy(Fields(self.file, pair[1], f"{self.where}{name}[{i}]"))))
        return tuple(found)

    def levels(self, name: str) -> dict[str, tuple[str, ...]]:
        """Per text column its distinct texts, at least one."""
        inner = self._object(name)
        for key in inner.value:
            texts = inner._list(key)
            if not texts or not all(isinstance(text, str) for text in texts) or len(set(texts)) < len(texts):
                raise inner.error(key, "does not list distinct texts")
        return {key: tuple(texts) for key, texts in inner.value.items()}

    def ranges(self, name: str) -> dict[str, tuple[float, float]]:
        """Per number column its least and its larger largest value."""
        inner, found = self._object(name), {}
        for key in inner.value:
            bounds = inner._list(key)
            if len(bounds) != 2:
                raise inner.error(key, f"has {len(bounds)} bounds, not two")
            low, high = (float(inner._number(key, bound, -math.inf, math.inf)) for bound in bounds)
            if not (low < high and math.isfinite(high - low)):
                raise inner.error(key, f"goes from {low} to {high}; the second bound is the larger")
            found[key] = (low, high)
        return found

    def _object(self, name: str) -> Fields:
        return Fields(self.file, self.get(name), f"{self.where}.{name}" if self.where else name)

    def _list(self, name: str) -> list[Any]:
        value = self.get(name)
        if not isinstance(value, list):
            raise self.error(name, f"is {_short(value)}, not a list")
        return value

    def _number(self, name: str, value: Any, least: float, most: float) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300 or not least <= value <= most:
            bounds = [f"at least {least:g}"] * (least > -math.inf) + [f"at most {most:g}"] * (most < math.inf)
            raise self.error(name, f"is {_short(value)}, not a finite number{' of ' if bounds else ''}{' and '.join(bounds)}")
        return value


def _accuracy(fields: Fields) -> Accuracy:
    return Accuracy(
        fields.whole("networks", 0, 10**12), fields.number("error", 0), fields.number("error_90", 0), fields.number("spearman", -1.01, 1.01)
    )


def _short(value: Any) -> str:
    return "missing" if value is None else repr(value)[:60]
