"""``anytune methods``: list methods and read their cards (:mod:`anytune.methods.registry`)."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from anytune.cli import options, show


def methods(
    name: Annotated[str | None, typer.Argument(help="A method, to read its card.", show_default=False)] = None,
    room: Annotated[str | None, typer.Option(help="Only 'pretrain', 'tune', 'transfer' or 'recycle'.")] = None,
    json: options.Json = False,
) -> None:
    """List the methods, or print the card of one.

    Example: anytune methods lora
    """
    from anytune.errors import MethodError, unknown
    from anytune.methods import registry

    if room is not None and room not in registry.ROOMS:
        raise unknown("room", room, registry.ROOMS, MethodError)
    if name is None:
        rows = [{"method": full, "title": title(registry.card(full))} for full in registry.names(room)]
        if json:
            show.print_json(rows)
            return
        show.print_table(["method", "what it does"], [list(row.values()) for row in rows])
        print("\nnext: anytune methods NAME   (its card and settings)")
        return
    record = description(name, room)
    if json:
        show.print_json(record)
        return
    print(f"{record['method']}\n\n{record['card']}\n")
    if record["settings"]:
        table = [list(setting.values()) for setting in record["settings"]]
        show.print_table(["setting", "default", "type", "meaning"], table)
    else:
        print("It has no settings.")


def description(name: str, room: str | None = None) -> dict[str, Any]:
    """Name, card and settings of a method."""
    from anytune.methods import registry

    cls = registry.get(name, room)
    full = f"{cls.room}/{cls.name}"
    settings = [
        {
            "name": one.name,
            "default": str(one.default),
            "type": readable_type(one.type),
            "description": one.description,
        }
        for one in registry.describe(full)
    ]
    return {"method": full, "title": title(registry.card(full)), "card": registry.card(full), "settings": settings}


def title(card: str) -> str:
    """The card's first line, which says what the method is."""
    return card.strip().partition("\n")[0].rstrip(".")


def readable_type(annotation: str) -> str:
    """``Annotated[int, Field(gt=0, description="rank")]`` as ``int, gt=0``."""
    if not annotation.startswith("Annotated["):
        return annotation
    inner = annotation.removeprefix("Annotated[").removesuffix("]")
    kind, _, rest = inner.rpartition(", Field(")
    limits = [part for part in rest.rstrip(")").split(", ") if part.partition("=")[0] in ("gt", "ge", "lt", "le")]
    return ", ".join([kind or inner, *limits])
