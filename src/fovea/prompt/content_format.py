"""Whether a chat template takes a message's content as one string or as a list of parts, read from its syntax tree."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Literal

from jinja2 import nodes

ContentFormat = Literal["string", "openai"]


def detect_content_format(tree: nodes.Template) -> ContentFormat:
    """ "openai" if the template goes over the parts of a message's content, "string" if it prints the content whole."""
    messages = _closure(tree, {"messages"}, lambda node, names: _is_part_of(node, names, ()))
    loops = [loop for loop in tree.find_all(nodes.For) if _is_part_of(_unfiltered(loop.iter), messages, ())]
    message = {loop.target.name for loop in loops if isinstance(loop.target, nodes.Name)}
    message |= _closure(tree, message, lambda node, names: _is_part_of(node, names, messages)) - messages

    def is_content(node: nodes.Node, names: Collection[str]) -> bool:
        if isinstance(node, nodes.Name):
            return node.name in names
        if isinstance(node, nodes.Getattr) and node.attr == "content":
            return _is_part_of(node.node, message, messages)
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content":
            return _is_part_of(node.node, message, messages)
        return False

    contents = _closure(tree, set(), is_content)
    over_parts = any(is_content(_unfiltered(loop.iter), contents) for loop in tree.find_all(nodes.For))
    return "openai" if over_parts else "string"


def _closure(tree: nodes.Template, names: set[str], matches: Callable[[nodes.Node, Collection[str]], bool]) -> set[str]:
    """`names` plus every variable and macro parameter that is given a value which `matches`."""
    names = set(names)
    macros = {macro.name: macro for macro in tree.find_all(nodes.Macro)}
    while True:
        found = {
            target.name
            for target, value in [*_assignments(tree), *_arguments(tree, macros)]
            if isinstance(target, nodes.Name) and matches(value, names)
        }
        if found <= names:
            return names
        names |= found


def _assignments(tree: nodes.Template) -> list[tuple[nodes.Node, nodes.Node]]:
    return [(assign.target, assign.node) for assign in tree.find_all(nodes.Assign)]


def _arguments(tree: nodes.Template, macros: Mapping[str, nodes.Macro]) -> list[tuple[nodes.Node, nodes.Node]]:
    pairs: list[tuple[nodes.Node, nodes.Node]] = []
    for call in tree.find_all(nodes.Call):
        function = call.node
        macro = macros.get(function.name) if isinstance(function, nodes.Name) else None
        if macro is not None:
            pairs += zip(macro.args, call.args, strict=False)
            by_name = {parameter.name: parameter for parameter in macro.args}
            pairs += [(by_name[keyword.key], keyword.value) for keyword in call.kwargs if keyword.key in by_name]
    return pairs


def _is_part_of(node: nodes.Node, names: Collection[str], lists: Collection[str]) -> bool:
    """Whether `node` is one of `names`, or an item or slice of one of them or of one of `lists`."""
    if isinstance(node, nodes.Name):
        return node.name in names
    if isinstance(node, nodes.Getitem) and isinstance(node.node, nodes.Name):
        sliced = isinstance(node.arg, nodes.Slice)
        return (sliced and node.node.name in names) or (not sliced and node.node.name in lists)
    return False


def _unfiltered(node: nodes.Node) -> nodes.Node:
    while isinstance(node, nodes.Filter) and node.node is not None:
        node = node.node
    return node
