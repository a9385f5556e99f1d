"""Settings in lines: plain files, Java's properties and ini files. What no rule names stays byte for byte."""

from __future__ import annotations

import re
from collections.abc import Sequence

from infra.server_files_rules import Rule, text

_LINES = re.compile(r"[^\n]*\n|[^\n]+")
_PROPERTY = re.compile(r"[ \t\f]*((?:[^\\ \t\f=:]|\\.)*)([ \t\f]*[=:]?[ \t\f]*)(.*)", re.DOTALL)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f"}
_ESCAPED = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\f": "\\f"})
_SECTION = re.compile(r"\s*\[(.*)\]\s*(?:[;#].*)?")
_SETTING = re.compile(r"(\s*)([^=:;#\[\s][^=:]*?)(\s*[=:][ \t]*)(.*)", re.DOTALL)
_BREAKS = re.compile(r"[\r\n]")


def edit_file(data: str, rules: Sequence[Rule], warnings: list[str]) -> str:
    """A line that begins with a rule's match becomes its value; of several rules the last."""
    made: list[str] = []
    for line in _LINES.findall(data):
        body, end = _split(line)
        for rule in rules:
            if rule.match and body.startswith(rule.match):
                line = text(rule.value) + (end or "\n")
        made.append(line)
    return "".join(made)


# Java's properties.


def edit_properties(data: str, rules: Sequence[Rule], warnings: list[str]) -> str:
    """A key with several lines has the value of its last, and all of them are changed."""
    end = "\r\n" if "\r\n" in data else "\n"
    lines = _logical(data)
    for rule in rules:
        places = [(at, found) for at, line in enumerate(lines) if (found := _property(line)) and found[0] == rule.match]
        present = places[-1][1][2] if places else None
        if not rule.applies(present):
            continue
        value = text(rule.made(present))
        for at, (_, head, there) in places:
            if there != value:
                lines[at] = head + _escaped(value) + end
        if not places:
            if lines and not lines[-1].endswith("\n"):
                lines[-1] += end
            lines.append(f"{_escaped_key(rule.match)}={_escaped(value)}{end}")
    return "".join(lines)


def _logical(data: str) -> list[str]:
    """Lines, each with those that continue it."""
    made: list[str] = []
    open_end = False
    for line in _LINES.findall(data):
        if open_end:
            made[-1] += line
        else:
            made.append(line)
        body = _split(line)[0]
        comment = not open_end and body.lstrip()[:1] in ("#", "!")
        open_end = not comment and (len(body) - len(body.rstrip("\\"))) % 2 == 1
    return made


def _property(line: str) -> tuple[str, str, str] | None:
    """Its key, what stands before its value, its value."""
    body = re.sub(r"\\\r?\n[ \t\f]*", "", line)
    body = _split(body)[0]
    if not body.strip() or body.lstrip()[0] in "#!":
        return None
    match = _PROPERTY.fullmatch(body)
    if match is None:
        return None
    head = body[: match.start(3)]
    return _unescaped(match[1]), head if match[2].strip() else head.rstrip() + "=", _unescaped(match[3])


def _unescaped(value: str) -> str:
    def plain(match: re.Match[str]) -> str:
        word = match[1]
        return chr(int(word[1:], 16)) if len(word) == 5 else _ESCAPES.get(word, word)

    found = _ESCAPE.sub(plain, value)
    return found.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if "\\u" in value else found


def _escaped(value: str) -> str:
    """What every reader of properties understands, whatever it takes the file's encoding for."""
    made = (
        value.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t").replace("\f", "\\f")
    )
    if made.startswith(" "):
        made = "\\" + made
    return "".join(each if " " <= each <= "~" else _unicode(each) for each in made)


def _escaped_key(value: str) -> str:
    return re.sub(r"([ =:#!])", r"\\\1", _escaped(value.lstrip(" ")))


def _unicode(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


# Ini files.


def edit_ini(data: str, rules: Sequence[Rule], warnings: list[str]) -> str:
    """`section.key`, `[section.with.dots].key`, or a key before all sections. A value stands as it is, without the
    quotes that most games would take for a part of it."""
    lines: list[str] = _LINES.findall(data)
    end = "\r\n" if "\r\n" in data else "\n"
    for rule in rules:
        section, key = ini_path(rule.match)
        places, last = _settings(lines, section, key)
        present = _setting(lines[places[-1]])[2] if places else None
        if not rule.applies(present):
            continue
        value = text(rule.made(present))
        if _BREAKS.search(value):
            warnings.append(f"{rule.match}: a value of several lines cannot be written there")
            continue
        for at in places:
            head, _, there = _setting(lines[at])
            if there != value:
                lines[at] = head + value + (_split(lines[at])[1] or end)
        if not places:
            _add(lines, section, key, value, last, end)
    return "".join(lines)


def ini_path(match: str) -> tuple[str, str]:
    """The first dot outside brackets parts the section from the key."""
    depth, made = 0, [""]
    for character in match:
        if character == "[":
            depth += 1
        elif character == "]":
            depth -= 1
        elif character == "." and depth <= 0 and len(made) == 1:
            made.append("")
        else:
            made[-1] += character
    return (made[0], made[1]) if len(made) == 2 else ("", made[0])


def _settings(lines: Sequence[str], section: str, key: str) -> tuple[list[int], int | None]:
    """Where the key stands, and after which line of the section another may; None without that section."""
    places: list[int] = []
    current, last = "", -1 if not section else None
    for at, line in enumerate(lines):
        body = _split(line)[0]
        if (header := _SECTION.fullmatch(body)) is not None:
            current = header[1].strip()
        if current != section or not body.strip():
            continue
        if header is not None or _SETTING.fullmatch(body):
            last = at
        if header is None and _setting(line)[1] == key:
            places.append(at)
    return places, last


def _setting(line: str) -> tuple[str, str, str]:
    """What stands before the value, the key, the value."""
    match = _SETTING.fullmatch(_split(line)[0])
    if match is None:
        return "", "", ""
    value = match[4].strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'`":
        value = value[1:-1]
    return match[1] + match[2] + match[3], match[2], value


def _add(lines: list[str], section: str, key: str, value: str, last: int | None, end: str) -> None:
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += end
    if last is None:
        lines += [end] if lines else []
        lines.append(f"[{section}]{end}")
        last = len(lines) - 1
    like = next((match[3] for line in lines if (match := _SETTING.fullmatch(_split(line)[0]))), " = ")
    lines.insert(last + 1, f"{key}{like}{value}{end}")


def _split(line: str) -> tuple[str, str]:
    """A line and its end."""
    body = line.removesuffix("\n").removesuffix("\r") if line.endswith("\n") else line
    return body, line[len(body) :]
