"""Chat templates in the part of Jinja that onnxruntime-genai's engine knows, with the same meaning to jinja2.

That engine (minja) reads tags and whitespace otherwise than transformers, and lacks operations of texts: ``in`` is
false for every text, and there is no ``replace``. So a template is parsed by jinja2 and written anew, without text
between its tags. An operation that the engine lacks becomes one that it has, under the condition that makes the two
equal; where it does not hold, the operation stays, and the engine refuses the chat.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import Environment, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

#: what transformers always gives a template, though it may be none
_ALWAYS_GIVEN = ("documents", "tools")
#: methods and filters that take a text and change nothing
_PURE = (
    "capitalize",
    "get",
    "lower",
    "lstrip",
    "partition",
    "replace",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "strip",
    "upper",
)
#: methods and filters whose arguments are parts of a text
_SEEK = ("endswith", "lstrip", "partition", "replace", "rpartition", "rsplit", "rstrip", "split", "startswith", "strip")
_ROLES = '{"user": "USER", "assistant": "ASSISTANT", "system": "SYSTEM", "tool": "TOOL"}'
_TESTS = {
    "undefined": "not ({0} is defined)",
    "true": "{0} is boolean and {0}",
    "false": "{0} is boolean and not {0}",
    "sequence": "{0} is sequence or {0} is string or {0} is mapping",
}
#: a method, how often it cuts, and the part: the same of a text that is cut everywhere
_PARTS = {
    ("split", 1, "0"): "{0}.split({1})[0]",
    ("split", 1, "1"): "({0}.split({1})[1:]|join({1}) if {0}.split({1})|length > 1 else {0}.split({1})[1])",
    ("split", 1, "-1"): "({0}.split({1})[1:]|join({1}) if {0}.split({1})|length > 1 else {0})",
    ("rsplit", 1, "-1"): "{0}.split({1})[-1]",
    ("partition", "0"): "{0}.split({1})[0]",
    ("partition", "2"): "({0}.split({1})[1:]|join({1}))",
    ("rpartition", "2"): "{0}.split({1})[-1]",
}
_ITEMS = {"first": "[0]", "reverse": "[::-1]"}
#: what only jinja2 reads: marks that keep whitespace, raw text, line breaks of other systems, and rarer escapes
_NOT_EVERYWHERE = re.compile(r"\{[%#]\+|\+[%#]\}|\{%-?\s*raw|\r|\\[^nrt\\'\"]")
_SIGNS = {"eq": "==", "ne": "!=", "gt": ">", "gteq": ">=", "lt": "<", "lteq": "<=", "in": "in", "notin": "not in"}
_ATOMS = (nodes.Name, nodes.Literal, nodes.Getattr, nodes.Getitem, nodes.Call)


class Unwritten(ValueError):
    """A part of Jinja that chat templates do not have, such as ``include``."""


class _Generation(Extension):
    """The tag around answers, of transformers."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("generation"), [], [], body).set_lineno(line)


def rewritten(source: str) -> str | None:
    """The template in the common dialect; None where every engine reads ``source`` itself alike.

    Raises Unwritten where it has a part that has no spelling here.
    """
    tree = _parsed(source, True)
    common = "\n".join(_Writer(_assigned(tree), True).statements(tree.body, ""))
    plain = ["\n".join(_Writer(set(), False).statements(_parsed(source, trims).body, "")) for trims in (True, False)]
    return None if common == plain[0] == plain[1] and not _NOT_EVERYWHERE.search(source) else common


def sought(source: str) -> list[str]:
    """The texts that a template looks for in what is said."""
    tree = _parsed(source, True)
    found = [one.expr for one in tree.find_all(nodes.Compare) if one.ops[0].op in ("in", "notin")]
    for one in tree.find_all(nodes.Filter):
        found += one.args[:1] if one.name in _SEEK else []
    for call in tree.find_all(nodes.Call):
        found += call.args[:1] if isinstance(call.node, nodes.Getattr) and call.node.attr in _SEEK else []
    texts = [one.value for one in found if isinstance(one, nodes.Const) and isinstance(one.value, str)]
    return list(dict.fromkeys(text for text in texts if text.strip()))


def literal(value: Any) -> str:
    """A constant; of the escapes, those that every engine knows."""
    if isinstance(value, str):
        for character, escape in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
            value = value.replace(character, escape)
        return f'"{value}"'
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


@lru_cache(16)
def _environment(trims: bool) -> Environment:
    return Environment(trim_blocks=trims, lstrip_blocks=trims, extensions=[_Generation, loopcontrols])


def _parsed(source: str, trims: bool) -> nodes.Template:
    return _environment(trims).parse(source)


def _assigned(tree: nodes.Template) -> set[str]:
    return {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}


class _Writer:
    """Writes a tree as a template: a tag a line, and no text between them.

    ``replaces``: what the engine lacks is replaced.
    """

    def __init__(self, assigned: set[str], replaces: bool):
        self._given = set(_ALWAYS_GIVEN) - assigned
        self._replaces = replaces

    # Statements

    def statements(self, body: Sequence[nodes.Node], indent: str) -> Iterator[str]:
        for node in body:
            write = getattr(self, f"_write_{type(node).__name__.lower()}", None)
            if write is None:
                raise Unwritten(type(node).__name__)
            yield from write(node, indent)

    def _write_output(self, node: nodes.Output, indent: str) -> Iterator[str]:
        for one in node.nodes:
            text = literal(one.data) if isinstance(one, nodes.TemplateData) else self.expression(one)
            yield f"{indent}{{{{- {text} -}}}}"

    def _write_if(self, node: nodes.If, indent: str) -> Iterator[str]:
        for word, branch in (("if", node), *(("elif", branch) for branch in node.elif_)):
            yield f"{indent}{{%- {word} {self._condition(branch.test)} -%}}"
            yield from self.statements(branch.body, indent + "  ")
        yield from self._otherwise(node.else_, indent)
        yield f"{indent}{{%- endif -%}}"

    def _write_for(self, node: nodes.For, indent: str) -> Iterator[str]:
        which = f" if {self._condition(node.test)}" if node.test else ""
        tail = which + (" recursive" if node.recursive else "")
        begin = f"for {self._target(node.target)} in {self._operand(node.iter)}{tail}"
        yield from self._block(begin, "endfor", node.body, indent, node.else_)

    def _write_macro(self, node: nodes.Macro, indent: str) -> Iterator[str]:
        yield from self._block(f"macro {node.name}({self._parameters(node)})", "endmacro", node.body, indent)

    def _write_callblock(self, node: nodes.CallBlock, indent: str) -> Iterator[str]:
        if isinstance(node.call.node, nodes.ExtensionAttribute):
            yield from self._block("generation", "endgeneration", node.body, indent)
        else:
            begin = f"call({self._parameters(node)}) {self.expression(node.call)}"
            yield from self._block(begin, "endcall", node.body, indent)

    def _write_assign(self, node: nodes.Assign, indent: str) -> Iterator[str]:
        yield f"{indent}{{%- set {self._target(node.target)} = {self.expression(node.node)} -%}}"

    def _write_assignblock(self, node: nodes.AssignBlock, indent: str) -> Iterator[str]:
        through = f" | {self.expression(node.filter)}" if node.filter else ""
        yield from self._block(f"set {self._target(node.target)}{through}", "endset", node.body, indent)

    def _write_filterblock(self, node: nodes.FilterBlock, indent: str) -> Iterator[str]:
        yield from self._block(f"filter {self.expression(node.filter)}", "endfilter", node.body, indent)

    def _write_with(self, node: nodes.With, indent: str) -> Iterator[str]:
        pairs = zip(node.targets, node.values, strict=True)
        given = ", ".join(f"{self._target(name)}={self.expression(value)}" for name, value in pairs)
        yield from self._block(f"with {given}".strip(), "endwith", node.body, indent)

    def _write_break(self, node: nodes.Break, indent: str) -> Iterator[str]:
        yield f"{indent}{{%- break -%}}"

    def _write_continue(self, node: nodes.Continue, indent: str) -> Iterator[str]:
        yield f"{indent}{{%- continue -%}}"

    def _condition(self, node: nodes.Node) -> str:
        """In a statement, a choice between two values stands in brackets."""
        text = self.expression(node)
        return f"({text})" if " if " in text else text

    def _block(
        self, begin: str, end: str, body: list[nodes.Node], indent: str, otherwise: Sequence[nodes.Node] = ()
    ) -> Iterator[str]:
        yield f"{indent}{{%- {begin} -%}}"
        yield from self.statements(body, indent + "  ")
        yield from self._otherwise(otherwise, indent)
        yield f"{indent}{{%- {end} -%}}"

    def _otherwise(self, body: Sequence[nodes.Node], indent: str) -> Iterator[str]:
        if body:
            yield f"{indent}{{%- else -%}}"
            yield from self.statements(body, indent + "  ")

    def _parameters(self, node: nodes.Macro | nodes.CallBlock) -> str:
        bare = len(node.args) - len(node.defaults)
        given = [
            f"{arg.name}={self.expression(value)}" for arg, value in zip(node.args[bare:], node.defaults, strict=True)
        ]
        return ", ".join([*(arg.name for arg in node.args[:bare]), *given])

    def _target(self, node: nodes.Node) -> str:
        if isinstance(node, nodes.Tuple):
            return ", ".join(map(self._target, node.items))
        if isinstance(node, nodes.NSRef):
            return f"{node.name}.{node.attr}"
        return self.expression(node)

    # Expressions

    def expression(self, node: nodes.Node) -> str:
        write = getattr(self, f"_{type(node).__name__.lower()}", None)
        if write is not None:
            return str(write(node))
        if isinstance(node, nodes.BinExpr):
            left = self.expression(node.left) if type(node.left) is type(node) else self._operand(node.left)
            return f"{left} {node.operator} {self._operand(node.right)}"
        raise Unwritten(type(node).__name__)

    def _operand(self, node: nodes.Node) -> str:
        text = self.expression(node)
        return text if isinstance(node, _ATOMS) else f"({text})"

    def _object(self, node: nodes.Node) -> str:
        """What ``.`` or ``[`` follows: the engine knows none behind a call of a function."""
        text = self._operand(node)
        return f"({text})" if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name) else text

    def _name(self, node: nodes.Name) -> str:
        return node.name

    def _const(self, node: nodes.Const) -> str:
        return literal(node.value)

    def _list(self, node: nodes.List) -> str:
        return f"[{', '.join(map(self.expression, node.items))}]"

    def _tuple(self, node: nodes.Tuple) -> str:
        return f"({', '.join(map(self.expression, node.items))}{',' if len(node.items) == 1 else ''})"

    def _dict(self, node: nodes.Dict) -> str:
        pairs = (f"{self.expression(pair.key)}: {self.expression(pair.value)}" for pair in node.items)
        return f"{{{', '.join(pairs)}}}"

    def _getattr(self, node: nodes.Getattr) -> str:
        return f"{self._object(node.node)}.{node.attr}"

    def _getitem(self, node: nodes.Getitem) -> str:
        if self._replaces and (part := self._part(node)):
            return part
        return f"{self._object(node.node)}[{self.expression(node.arg)}]"

    def _part(self, node: nodes.Getitem) -> str | None:
        """A part of a text that is cut once, as it is of the text cut everywhere."""
        call, place = node.node, self.expression(node.arg)
        if not isinstance(call, nodes.Call) or not isinstance(call.node, nodes.Getattr) or not _is_pure(call):
            return None
        texts = [one.value for one in call.args if isinstance(one, nodes.Const)]
        part = _PARTS.get((call.node.attr, *texts[1:], place))
        if part is None or not texts or not _is_text(call.args[0]):
            return None
        return part.format(self._object(call.node.node), literal(texts[0]))

    def _slice(self, node: nodes.Slice) -> str:
        start, stop, step = (self.expression(part) if part else "" for part in (node.start, node.stop, node.step))
        return f"{start}:{stop}" + (f":{step}" if step else "")

    def _neg(self, node: nodes.Neg) -> str:
        return f"-{self._operand(node.node)}"

    def _pos(self, node: nodes.Pos) -> str:
        return f"+{self._operand(node.node)}"

    def _not(self, node: nodes.Not) -> str:
        return f"not {self._operand(node.node)}"

    def _concat(self, node: nodes.Concat) -> str:
        return " ~ ".join(map(self._operand, node.nodes))

    def _condexpr(self, node: nodes.CondExpr) -> str:
        otherwise = f" else {self._operand(node.expr2)}" if node.expr2 else ""
        return f"{self._operand(node.expr1)} if {self._operand(node.test)}{otherwise}"

    def _compare(self, node: nodes.Compare) -> str:
        operand, *others = node.ops
        part, whole = self._operand(node.expr), self._operand(operand.expr)
        looks = operand.op in ("in", "notin") and not isinstance(operand.expr, nodes.Literal)
        if not self._replaces or others or not looks:
            return part + "".join(f" {_SIGNS[one.op]} {self._operand(one.expr)}" for one in node.ops)
        found = f"{part} in {whole}"
        if _is_pure(node):
            is_text = f"{whole} is string"
            if _is_text(node.expr):
                found = f"({whole}.split({part})|length > 1) if {is_text} else ({found})"
            else:
                several = f"(not {part}) or ({whole}.split({part})|length > 1)"
                found = f"({several}) if ({is_text} and {part} is string) else ({found})"
        return f"not ({found})" if operand.op == "notin" else found

    def _test(self, node: nodes.Test) -> str:
        one = self._operand(node.node)
        if self._replaces and node.name == "defined" and one in self._given:
            return "true"
        if self._replaces and node.name in _TESTS and _is_pure(node):
            return _TESTS[node.name].format(one)
        return f"{one} is {node.name}{self._arguments(node, '')}"

    def _filter(self, node: nodes.Filter) -> str:
        if node.node is None:  # of a block
            return f"{node.name}{self._arguments(node, '')}"
        one = self._operand(node.node)
        same = f"{one}|{node.name}{self._arguments(node, '')}"
        if not self._replaces or not _is_pure(node):
            return same
        if node.name in _ITEMS and not node.args:
            return f"({one}|list){_ITEMS[node.name]} if {one} is not string else ({same})"
        if node.name == "replace":
            return self._replaced(one, node.args, f"{one} is string", same)
        return self._upper(one, same) if node.name == "upper" else same

    def _call(self, node: nodes.Call) -> str:
        if not isinstance(node.node, nodes.Getattr):
            return f"{self._operand(node.node)}{self._arguments(node, '()')}"
        one, method = self._object(node.node.node), node.node.attr
        same = f"{one}.{method}{self._arguments(node, '()')}"
        if not self._replaces or not _is_pure(node):
            return same
        if method == "replace":
            return f"({self._replaced(one, node.args, '', same)})"
        if method == "lower":
            return f"({one}|lower if {one} is string else {same})"
        return f"({self._upper(one, same)})" if method == "upper" else same

    def _replaced(self, one: str, arguments: Sequence[nodes.Expr], condition: str, same: str) -> str:
        if len(arguments) != 2 or not _is_text(arguments[0]):
            return same
        old, new = map(self._operand, arguments)
        is_text = isinstance(arguments[1], nodes.Const) and isinstance(arguments[1].value, str)
        conditions = [condition, "" if is_text else f"{new} is string"]
        whether = " and ".join(filter(None, conditions))
        made = f"{one}.split({old})|join({new})"
        return f"{made} if ({whether}) else ({same})" if whether else made

    def _upper(self, one: str, same: str) -> str:
        """The roles in capitals, by name."""
        return f"{_ROLES}[{one}] if {one} in {_ROLES} else ({same})"

    def _arguments(self, node: nodes.Call | nodes.Filter | nodes.Test, empty: str) -> str:
        given = [
            *map(self.expression, node.args),
            *(f"{one.key}={self.expression(one.value)}" for one in node.kwargs),
            *(f"{stars}{self._operand(one)}" for stars, one in (("*", node.dyn_args), ("**", node.dyn_kwargs)) if one),
        ]
        return f"({', '.join(given)})" if given else empty


def _is_text(node: nodes.Node) -> bool:
    """Whether it is a constant text that is not empty."""
    return isinstance(node, nodes.Const) and isinstance(node.value, str) and bool(node.value)


def _is_pure(node: nodes.Node) -> bool:
    """Whether an expression may be evaluated twice."""
    return all(isinstance(call.node, nodes.Getattr) and call.node.attr in _PURE for call in node.find_all(nodes.Call))
