"""Find methods by name, read their cards, and make them from settings.

A method is registered by standing in a room: ``methods/tune/dps.py`` is ``tune/dps``. Files are listed without being
imported, so that listing names costs nothing.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError

from anytune.errors import MethodError, SettingsError, nearest, unknown
from anytune.manifests import MethodRecord
from anytune.methods.protocol import Method, Room, check_composition, check_kinds

ROOMS: tuple[str, ...] = get_args(Room)
#: The rooms of what tunes a task on a base: methods that start from nothing, and those that start from stored prompts.
TUNING: tuple[str, ...] = ("tune", "transfer")
#: A room, several, or None for all.
Rooms: TypeAlias = str | Sequence[str] | None
_Class = TypeVar("_Class", bound=type[Method])


def register(cls: _Class) -> _Class:
    """Class decorator: makes the class a method named after its file, in the room of its folder.

    Outside these rooms (a notebook, a test) the class may say ``name`` and ``room`` itself; by default it is a tune
    method named after the class. Such a method is used by handing an object of it to a job.
    """
    *_, room, name = ["", "", *cls.__module__.split(".")]
    if cls.__module__ == f"{__package__}.{room}.{name}" and room in ROOMS:
        cls.name, cls.room = name, room  # type: ignore[assignment]
    else:
        cls.name = vars(cls).get("name", cls.__name__.lower())
        cls.room = vars(cls).get("room", "tune")
    cls.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # type: ignore[attr-defined]
    return cls


def names(room: Rooms = None) -> list[str]:
    """All methods as ``room/name``, without importing them; files that begin with "_" are no methods."""
    here = Path(__file__).parent
    rooms: Sequence[str] = ROOMS if room is None else (room,) if isinstance(room, str) else room
    found = [(one, module.name) for one in rooms for module in pkgutil.iter_modules([str(here / one)])]
    return [f"{one}/{name}" for one, name in found if not name.startswith("_")]


def full_name(name: str, room: Rooms = None) -> str:
    """``room/name`` of a method given so or, where that is unique, by its name alone.

    Raises:
        MethodError: unknown (suggests the near one) or in several rooms.
    """
    known = names(room)
    found = [full for full in known if full == name or full.split("/")[1] == name]
    if not found:
        choices = {full.split("/")[1] for full in known} | ({*known} if "/" in name else set())
        first = room if isinstance(room, str) else next(iter(room or ()), "")
        raise unknown(f"{first + ' ' if first else ''}method", name, choices, MethodError)
    if len(found) > 1:
        raise MethodError(f"'{name}' is the name of several methods", fix=f"one of {', '.join(found)}")
    return found[0]


def get(name: str, room: Rooms = None) -> type[Method]:
    """The class of a method, by ``tune/full`` or, where that is unique, ``full``.

    Raises:
        MethodError: unknown (suggests the near one) or in several rooms.
    """
    module = importlib.import_module(f"anytune.methods.{full_name(name, room).replace('/', '.')}")
    classes = [
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, Method) and cls.__module__ == module.__name__ and "name" in vars(cls)
    ]
    if len(classes) != 1:
        raise MethodError(f"{module.__name__} must hold exactly one class with @register, it holds {len(classes)}")
    return classes[0]


def create(name: str, settings: Mapping[str, Any] | None = None, room: Rooms = None) -> Method:
    """Make a method from its settings, checked against the types and limits of its fields.

    Raises:
        MethodError: unknown method.
        SettingsError: unknown setting (suggests the near one) or a value outside its limits.
    """
    cls = get(name, room)
    fields = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    for key in settings or {}:
        if key not in fields:
            near = nearest(str(key), fields)
            raise SettingsError(
                f"method '{cls.name}' has no setting '{key}'",
                why=f"Its settings: {', '.join(fields) or 'none'}.",
                fix=f"{near}={(settings or {})[key]}" if near else f"anytune methods {cls.name}",
            )
    try:
        return TypeAdapter(cls).validate_python(dict(settings or {}))
    except ValidationError as problem:
        first = problem.errors()[0]
        place = first["loc"][0]  # after it comes the branch of a union that was tried: nothing for a user
        raise SettingsError(
            f"method '{cls.name}': {place} = {first['input']!r}: {first['msg'].lower()}",
            fix=f"anytune methods {cls.name}   (shows every setting with its limits)",
        ) from None


def settings_of(method: Method) -> dict[str, Any]:
    """All settings of a method, defaults included: what a manifest records. State fields are left out."""
    return {field.name: getattr(method, field.name) for field in dataclasses.fields(method) if field.init}  # type: ignore[arg-type]


def record(method: Method) -> MethodRecord:
    """The method as a manifest holds it."""
    return MethodRecord(name=f"{method.room}/{method.name}", settings=settings_of(method))


def card(name: str) -> str:
    """The method's card: the docstring its file opens with, read without running the file.

    Raises:
        MethodError: unknown method.
    """
    path = (Path(__file__).parent / full_name(name)).with_suffix(".py")
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting as ``anytune methods NAME`` shows it."""

    name: str
    type: str
    default: Any
    description: str


def describe(name: str) -> list[Setting]:
    """The settings of a method with type, default and meaning."""
    cls = get(name)
    schema = TypeAdapter(cls).json_schema().get("properties", {})
    rows = []
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if not field.init:
            continue
        entry = schema.get(field.name, {})
        default = field.default if field.default is not dataclasses.MISSING else entry.get("default")
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        rows.append(Setting(field.name, str(field.type), default, str(entry.get("description", ""))))
    return rows


def parse(
    specifications: str | Sequence[Any] | Mapping[str, Any], room: Rooms = None, model_type: str | None = None
) -> list[Method]:
    """Methods from what a recipe or ``--method`` gives.

    Accepted: ``"lora"``, ``["full", "llrd"]``, ``{"name": "lora", "r": 8}``, a list that mixes these, and Method
    objects.

    Args:
        room: where names are looked for; an error calls the methods by the first of several rooms.
        model_type: the kind of model they are for, if it is known.

    Raises:
        MethodError: a method is unknown or not for this kind of model, or two cannot be combined.
        SettingsError: a setting is unknown or outside its limits, or the specification is none of the above.
    """
    if isinstance(specifications, str | Mapping | Method):
        specifications = [specifications]
    made: list[Method] = []
    for one in specifications:
        if isinstance(one, Method):
            made.append(one)
        elif isinstance(one, str):
            made.append(create(one, room=room))
        elif isinstance(one, Mapping) and isinstance(one.get("name"), str):
            inner = one.get("settings")
            flat = {key: value for key, value in one.items() if key not in ("name", "settings")}
            made.append(create(one["name"], {**(inner or {}), **flat}, room=room))
        else:
            raise SettingsError(
                f"a method is a name or a mapping with 'name', not {one!r}", fix="method: {name: lora, r: 8}"
            )
    check_composition(made)
    if model_type is not None:
        check_kinds(made, model_type)
    return made
