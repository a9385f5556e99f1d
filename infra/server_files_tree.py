"""Settings in JSON and YAML: values at paths such as `servers.*.address` and `listeners[0].query_port`.

Both are edited as YAML's graph of nodes, so that every value nobody names keeps its type, its style and its place;
comments are lost, as with the real Wings, which sorts the keys as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from yaml._yaml import CParser
from yaml.composer import Composer
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.resolver import Resolver

from infra.server_files_rules import Broken, Rule, Scalar, text

_TAG = "tag:yaml.org,2002:"
_ELEMENT = re.compile(r"([^\[\]]+)?((?:\[\d+\])+)")
_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")
_DEEPEST = 200
_WIDTH = 1 << 30

#: A name, an element, or (None) each of them.
Step = str | int | None


class Missing(Broken):
    """There is nothing where the path leads, and nothing can be made there."""


def edit_yaml(data: str, rules: Sequence[Rule], warnings: list[str]) -> str:
    """Raises Broken."""
    try:
        root: Node | None = _Loader(data).get_single_node()
    except yaml.YAMLError as error:
        raise Broken(f"not YAML{_where(error)}") from None
    if root is None or (isinstance(root, ScalarNode) and root.tag == _TAG + "null"):
        root = MappingNode(_TAG + "map", [], flow_style=False)
    if not isinstance(root, MappingNode):
        raise Broken("its YAML is no map")
    _apply(root, rules, warnings)
    made: str = yaml.serialize(root, Dumper=yaml.CSafeDumper, allow_unicode=True, width=_WIDTH)
    return made


def edit_json(data: str, rules: Sequence[Rule], warnings: list[str]) -> str:
    """Raises Broken."""
    try:
        root = _node(json.loads(data or "{}"))
    except json.JSONDecodeError as error:
        raise Broken(f"not JSON, line {error.lineno}") from None
    if not isinstance(root, MappingNode | SequenceNode):
        raise Broken("its JSON is neither a map nor a list")
    _apply(root, rules, warnings)
    try:
        made = json.dumps(_plain(root), indent=4, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise Broken("a number in its JSON is too large") from None
    return made + ("\n" if data.endswith("\n") else "")


class _Loader(Composer, CParser, Resolver):
    """Only composes: nothing of the file becomes an object. Its tokens are read by libyaml, ten times faster."""

    def __init__(self, data: str) -> None:
        CParser.__init__(self, data)
        Composer.__init__(self)
        Resolver.__init__(self)

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self._depth = getattr(self, "_depth", 0) + 1
        if self._depth > _DEEPEST:
            raise Broken("its YAML is too deep")
        try:
            return Composer.compose_node(self, parent, index)
        finally:
            self._depth -= 1


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f", line {mark.line + 1}"


# Paths.


def steps(match: str) -> list[Step]:
    """`a.b[0].c` and `a.b.0.c` lead to the same; `~1` is a dot in a name, `~0` a tilde."""
    found: list[Step] = []
    for part in match.split("."):
        if part == "*":
            found.append(None)
            continue
        element = _ELEMENT.fullmatch(part)
        name = part if element is None else element[1]
        if name is not None:
            found.append(name.replace("~1", ".").replace("~0", "~"))
        if element is not None:
            found += (int(number) for number in re.findall(r"\d+", element[2]))
    return found


def _apply(root: Node, rules: Sequence[Rule], warnings: list[str]) -> None:
    graph = _Graph(root)
    for rule in rules:
        try:
            graph.set(root, steps(rule.match), rule)
        except Missing as missing:
            warnings.append(f"{rule.match}: {missing}")


class _Graph:
    """Nodes, of which some stand in several places by an alias: one of these is changed in one place only."""

    def __init__(self, root: Node) -> None:
        seen: set[int] = set()
        self._shared: set[int] = set()
        waiting = [root]
        while waiting:
            node = waiting.pop()
            if id(node) in seen:
                self._shared.add(id(node))
                continue
            seen.add(id(node))
            waiting += _below(node)

    def set(self, node: Node, path: Sequence[Step], rule: Rule) -> None:
        """Raises Missing."""
        step, rest = path[0], path[1:]
        if step is None:
            for name in list(_names(node)):
                if not rest or not isinstance(self._own(node, name), ScalarNode):  # nothing is in a scalar
                    self.set(node, [name, *rest], rule)
            return
        child = self._own(node, step)
        if not rest:
            present = child.value if isinstance(child, ScalarNode) else None
            if rule.applies(present):
                _put(node, step, _scalar(rule, present))
            return
        if child is None or (isinstance(child, ScalarNode) and (_is_null(child) or isinstance(rest[0], int))):
            if rule.condition:
                return
            if isinstance(rest[0], int) and rest[0] != 0:
                raise Missing("there is no such element")
            child = _container(rest)
            _put(node, step, child)
        self.set(child, rest, rule)

    def _own(self, node: Node, step: Step) -> Node | None:
        """The child there, made this place's own; None where there is none. Raises Missing where there can be none."""
        at = _position(node, step)
        if at is None:
            return None
        child: Node = node.value[at] if isinstance(node, SequenceNode) else node.value[at][1]
        if id(child) in self._shared:
            child = self._copy(child, {})
            _put(node, step, child)
        return child

    def _copy(self, node: Node, made: dict[int, Node]) -> Node:
        """With what is below; what is shared there is shared in the copy."""
        if id(node) in made:
            return made[id(node)]
        fresh: Node
        if isinstance(node, MappingNode):
            fresh = MappingNode(node.tag, [], flow_style=node.flow_style)
        elif isinstance(node, SequenceNode):
            fresh = SequenceNode(node.tag, [], flow_style=node.flow_style)
        else:
            assert isinstance(node, ScalarNode)
            fresh = ScalarNode(node.tag, node.value, style=node.style)
        made[id(node)] = fresh
        if id(node) in self._shared and made.keys() != {id(node)}:
            self._shared.add(id(fresh))
        if isinstance(node, MappingNode):
            fresh.value = [(self._copy(key, made), self._copy(value, made)) for key, value in node.value]
        elif isinstance(node, SequenceNode):
            fresh.value = [self._copy(each, made) for each in node.value]
        return fresh


def _below(node: Node) -> Iterator[Node]:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, SequenceNode):
        yield from node.value


def _container(rest: Sequence[Step]) -> Node:
    if not isinstance(rest[0], int):  # a name
        return MappingNode(_TAG + "map", [], flow_style=False)
    first = ScalarNode(_TAG + "null", "null") if len(rest) == 1 else _container(rest[1:])
    return SequenceNode(_TAG + "seq", [first], flow_style=False)


def _names(node: Node) -> Iterator[Step]:
    if isinstance(node, MappingNode):
        yield from (key.value for key, _ in node.value if isinstance(key, ScalarNode) and key.value != "<<")
    elif isinstance(node, SequenceNode):
        yield from range(len(node.value))


def _put(node: Node, step: Step, child: Node) -> None:
    at = _position(node, step)
    if isinstance(node, SequenceNode) and at is not None:
        node.value[at] = child
    elif isinstance(node, MappingNode):
        if at is None:
            node.flow_style = bool(node.flow_style and node.value)
            node.value.append((_key(str(step)), child))
        else:
            node.value[at] = (node.value[at][0], child)


def _position(node: Node, step: Step) -> int | None:
    if isinstance(node, MappingNode):
        for index, (key, _) in enumerate(node.value):
            if isinstance(key, ScalarNode) and key.value == str(step):
                return index
        return None
    if isinstance(node, SequenceNode) and str(step).isdecimal():
        if int(str(step)) >= len(node.value):
            raise Missing("there is no such element")
        return int(str(step))
    raise Missing("what is there is no map")


def _key(name: str) -> ScalarNode:
    return ScalarNode(_TAG + "str", name)


def _is_null(node: ScalarNode) -> bool:
    return bool(node.tag == _TAG + "null")


def _scalar(rule: Rule, present: str | None) -> ScalarNode:
    """Texts that are whole numbers become numbers, as with the real Wings; what a pattern made stays a text."""
    made = rule.made(present)
    if rule.pattern is None and isinstance(made, str) and _INTEGER.fullmatch(made):
        made = int(made)
    return _leaf(made)


def _leaf(value: Scalar) -> ScalarNode:
    match value:
        case None:
            return ScalarNode(_TAG + "null", "null")
        case bool():
            return ScalarNode(_TAG + "bool", text(value))
        case int():
            return ScalarNode(_TAG + "int", str(value))
        case float():
            return ScalarNode(_TAG + "float", repr(value))
        case str():
            return ScalarNode(_TAG + "str", value)


# JSON as such a graph, and back.


def _node(value: Any) -> Node:
    if isinstance(value, dict):
        return MappingNode(_TAG + "map", [(_key(name), _node(each)) for name, each in value.items()])
    if isinstance(value, list):
        return SequenceNode(_TAG + "seq", [_node(each) for each in value])
    return _leaf(value)


def _plain(node: Node) -> Any:
    if isinstance(node, MappingNode):
        return {key.value: _plain(each) for key, each in node.value}
    if isinstance(node, SequenceNode):
        return [_plain(each) for each in node.value]
    kinds: dict[str, Any] = {"null": lambda _: None, "bool": lambda word: word == "true", "int": int, "float": float}
    return kinds.get(node.tag.removeprefix(_TAG), str)(node.value)
