"""Settings in XML: elements at paths such as `ServerSettings.property[@name='ServerPort']`, their text or attributes.

No document with declarations of its own is read, so there are no entities to expand and none to fetch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from xml.dom import minidom
from xml.parsers import expat

from infra.server_files_rules import Broken, Rule, text

_DECLARATION = re.compile(rb"\s*<\?xml\s[^>]*\?>")
_ENCODING = re.compile(rb"encoding\s*=\s*[\"']([A-Za-z0-9._-]+)[\"']")
_ATTRIBUTE = re.compile(r"\[(\w+)='(.*)'\]", re.DOTALL)
_STEP = re.compile(r"([^\[\]]+)(?:\[@?([\w.:-]+)(?:=(?:'([^']*)'|\"([^\"]*)\"))?\])?")
_PARTS = re.compile(r"(?:[^.\[]|\[[^\]]*\])+")
_NAME = re.compile(r"[A-Za-z_][\w.:-]*")
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_NEW = b'<?xml version="1.0" encoding="utf-8"?>'
_DEEPEST = 200


def edit_xml(data: bytes, rules: Sequence[Rule], warnings: list[str]) -> bytes:
    """Raises Broken."""
    document = minidom.Document()
    declaration: bytes = _NEW
    if data.strip():
        document, declaration = _read(data)
    for rule in rules:
        try:
            _apply(document, rule)
        except Broken as broken:
            warnings.append(f"{rule.match}: {broken}")
    if document.documentElement is None:
        return data
    encoding = _ENCODING.search(declaration)
    body = "\n".join(node.toxml() for node in document.childNodes) + "\n"
    name = encoding[1].decode() if encoding else "utf-8"
    return (declaration.strip() + b"\n" if declaration else b"") + body.encode(name, "xmlcharrefreplace")


def _read(data: bytes) -> tuple[minidom.Document, bytes]:
    _check(data)
    try:
        document = minidom.parseString(data)  # noqa: S318 - without declarations, as was just seen
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise Broken(f"not XML{_where(error)}") from None
    found = _DECLARATION.match(data)
    return document, found[0] if found is not None else b""


def _check(data: bytes) -> None:
    depth = 0

    def begin(*_: Any) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise Broken("its XML is too deep")

    def end(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    def declared(*_: Any) -> None:
        raise Broken("its XML has declarations of its own, which are not read")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = begin, end
    parser.EntityDeclHandler = parser.ElementDeclHandler = parser.AttlistDeclHandler = declared
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError, ValueError) as error:
        if isinstance(error, Broken):
            raise
        raise Broken(f"not XML{_where(error)}") from None


def _where(error: Exception) -> str:
    line = getattr(error, "lineno", None)
    return "" if line is None else f", line {line}"


def _apply(document: minidom.Document, rule: Rule) -> None:
    """Raises Broken."""
    path = [_step(part) for part in _PARTS.findall(rule.match)]
    if not path:
        raise Broken("it leads nowhere")
    root = document.documentElement
    if root is None:
        if path[0].name == "*":
            return
        root = document.createElement(path[0].checked())
        document.appendChild(root)
    if not path[0].fits(root):
        raise Broken(f"the document is a {root.tagName}")
    found = [root]
    for depth, step in enumerate(path[1:], start=1):
        below = [child for parent in found for child in _elements(parent) if step.fits(child)]
        if not below and len(found) == 1 and not rule.condition and all(each.name != "*" for each in path):
            below = [_append(document, found[0], step, depth)]
        found = below
    for element in found:
        _change(document, element, rule)


class _Step:
    """A name, or `*`, and perhaps an attribute or a child that it must have, with which value."""

    def __init__(self, name: str, of: str | None, value: str | None, attribute: bool) -> None:
        self.name, self.of, self.value, self.attribute = name, of, value, attribute

    def fits(self, element: minidom.Element) -> bool:
        if self.name not in ("*", element.tagName):
            return False
        if self.of is None:
            return True
        if self.attribute:
            return element.hasAttribute(self.of) and self.value in (None, element.getAttribute(self.of))
        return any(child.tagName == self.of and self.value in (None, _text(child)) for child in _elements(element))

    def checked(self) -> str:
        """Its name, for an element that is made. Raises Broken."""
        if not _NAME.fullmatch(self.name) or (self.of is not None and not self.attribute):
            raise Broken("no element can be made there")
        return self.name


def _step(part: str) -> _Step:
    match = _STEP.fullmatch(part)
    if match is None:
        raise Broken("its path is not understood")
    return _Step(match[1], match[2], match[3] if match[3] is not None else match[4], "[@" in part)


def _elements(parent: minidom.Element) -> list[minidom.Element]:
    return [child for child in parent.childNodes if isinstance(child, minidom.Element)]


def _append(document: minidom.Document, parent: minidom.Element, step: _Step, depth: int) -> minidom.Element:
    """On a line of its own, two spaces deeper than its parent."""
    made = document.createElement(step.checked())
    if step.of is not None:
        made.setAttribute(step.of, step.value or "")
    last = parent.lastChild
    if isinstance(last, minidom.Text) and not last.data.strip():
        parent.insertBefore(document.createTextNode("\n" + "  " * depth), last)
        parent.insertBefore(made, last)
    else:
        parent.appendChild(document.createTextNode("\n" + "  " * depth))
        parent.appendChild(made)
        parent.appendChild(document.createTextNode("\n" + "  " * (depth - 1)))
    return made


def _change(document: minidom.Document, element: minidom.Element, rule: Rule) -> None:
    """`[name='value']` is an attribute, all else the element's text."""
    attribute = _ATTRIBUTE.fullmatch(text(rule.value))
    present = _text(element) if attribute is None else element.getAttribute(attribute[1])
    if not rule.applies(present):
        return
    value = text(rule.made(present)) if attribute is None else attribute[2]
    if _FORBIDDEN.search(value):
        raise Broken("the value has characters that XML cannot have")
    if attribute is not None:
        element.setAttribute(attribute[1], value)
        return
    for child in [each for each in element.childNodes if isinstance(each, minidom.Text)]:
        if child.data.strip() or not _elements(element):
            element.removeChild(child)
    element.insertBefore(document.createTextNode(value), element.firstChild)


def _text(element: minidom.Element) -> str:
    return "".join(child.data for child in element.childNodes if isinstance(child, minidom.Text)).strip()
