"""HTML that is safe by construction: text is escaped unless it was made by `element`."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_EMPTY = frozenset({"meta", "img", "br", "line", "rect", "path", "circle", "polyline"})


class Html(str):
    """Markup that is already safe."""

    __slots__ = ()


def escaped(text: object) -> Html:
    """Any value as text of a page; what cannot be shown, or turns writing around, as '\ufffd'."""
    if isinstance(text, Html):
        return text
    return Html(html.escape(_INVISIBLE.sub("\ufffd", str(text)), quote=True))


def joined(parts: Iterable[object]) -> Html:
    """One after another; each is escaped unless it is Html."""
    return Html("".join(escaped(part) for part in parts))


def element(name: str, /, *parts: object, **attributes: object) -> Html:
    """`<name ...>parts</name>`. A trailing or inner '_' of an attribute's name: class_, aria_label;
    an attribute that is None is left out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _EMPTY and not parts:
        return Html(f"<{name}{given}/>")
    return Html(f"<{name}{given}>{joined(parts)}</{name}>")


def table(header: Iterable[object], rows: Iterable[Iterable[object]], caption: str = "") -> Html:
    """The first cell of every row is its heading."""
    head = element("tr", *(element("th", cell, scope="col") for cell in header))
    body = []
    for first, *rest in rows:
        cells = (element("td", cell) for cell in rest)
        body.append(element("tr", element("th", first, scope="row"), *cells))
    title = (element("caption", caption),) if caption else ()
    inner = element("table", *title, element("thead", head), element("tbody", *body))
    return element("div", inner, class_="scroll")
