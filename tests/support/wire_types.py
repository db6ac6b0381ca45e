"""A field's type as the specification of the wire writes it, with its range: ``number? in (0, 10]``."""

from __future__ import annotations

from msgspec.inspect import (
    BytesType,
    DataclassType,
    EnumType,
    FloatType,
    IntType,
    NoneType,
    StrType,
    StructType,
    TupleType,
    Type,
    UnionType,
    VarTupleType,
)

from edge_sdk.elastic.submodel import Role as LayerRole

_NAMES = {LayerRole: "LayerRole"}  # where two have one name
_RANGES = {
    ("integer", (0, None, 2**53)): ("count", ""),
    ("integer", (1, None, 2**53)): ("integer", " ≥ 1"),
    ("number", (0, None, 1)): ("share", ""),
}
_TEXT_CHARACTERS = 500
_PATTERNS = {"[a-z0-9-]": "name", "[0-9a-f]": "digest"}
_POWERS = {base**n: f"{base}^{n}" for base, powers in ((10, range(5, 12)), (2, range(20, 54))) for n in powers}


def name_of(kind: type) -> str:
    """What the specification calls a struct or an enumeration."""
    return _NAMES.get(kind, kind.__name__)


def written(kind: Type) -> str:
    """The cell of a type, without the default."""
    if not isinstance(kind, UnionType):
        return "".join(_words(kind))
    (inner,) = (each for each in kind.types if not isinstance(each, NoneType))
    return "?".join(_words(inner))


def _words(kind: Type) -> tuple[str, str]:
    """What it is, and in which range or size."""
    match kind:
        case IntType() | FloatType():
            name = "integer" if isinstance(kind, IntType) else "number"
            bounds = kind.ge, kind.gt, kind.le
            return _RANGES.get((name, bounds)) or (name, _range(*bounds))
        case StrType(pattern=pattern, max_length=most):
            name = "text" if most == _TEXT_CHARACTERS else "string"
            return next((name for part, name in _PATTERNS.items() if part in (pattern or "")), name), ""
        case BytesType(min_length=least, max_length=most):
            is_fixed = most is not None and least == most
            return f"{most} " * is_fixed + "bytes", _size(least, None if is_fixed else most)
        case StructType(cls=cls) | DataclassType(cls=cls) | EnumType(cls=cls):
            return f"`{name_of(cls)}`", ""
        case VarTupleType(item_type=item, min_length=least, max_length=most):
            name, bounds = _words(item)
            return f"array of {name}{'s' * (name.isalpha() and name != 'bytes')}{bounds}", _size(least, most)
    return "[start, stop)" if isinstance(kind, TupleType) else "boolean", ""


def _range(least: float | None, above: float | None, most: float | None) -> str:
    first = f"({_number(above)}" if above is not None else f"[{_number(least)}"
    if most is not None:
        return f" in {first}, {_number(most)}]"
    if above is not None:
        return f" > {_number(above)}"
    return "" if least is None else f" ≥ {_number(least)}"


def _size(least: int | None, most: int | None) -> str:
    if most is None:
        return ""
    return f", {least} to {_number(most)}" if least else f", ≤ {_number(most)}"


def _number(value: float | None) -> str:
    return "" if value is None else _POWERS.get(int(value), f"{value:g}")
