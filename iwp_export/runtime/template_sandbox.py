"""A Jinja environment for templates that nobody has read: what they may do is bounded in time and memory.

Jinja's own sandbox keeps a template from Python's internals, but `'a' * 10**13` and two nested loops are legal in it.
Here every value that a template makes is counted, and the clock is read at each turn of a loop, call, filter and
comparison; in between runs one operation on values of bounded size. What chat templates do not need and a sum cannot
bound is left out, and using it is an error that names it.
"""
# ruff: noqa: N802 - `visit_For` and the like are Jinja's names

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS as JINJAS_FILTERS
from jinja2.nodes import EvalContext
from jinja2.runtime import Context, LoopContext, Macro, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Cycler, Joiner, Namespace

from iwp_export.runtime.template_limits import (
    DEPTH,
    FILTERS,
    ITEM_BYTES,
    LINEAR,
    SLOW,
    SPLITTING,
    LimitError,
    Meter,
    check_method,
    check_operator,
    weigh,
)

METHODS: Mapping[type, frozenset[str]] = {
    str: LINEAR | SLOW | SPLITTING | {"format", "join", "replace"},
    dict: frozenset(["get", "items", "keys", "values"]),
    list: frozenset(["count", "index"]),
    tuple: frozenset(["count", "index"]),
}
"""What a template may call on a value."""
JINJAS_OWN = (Cycler, Joiner, LoopContext, Macro, Namespace)
"""Objects whose public attributes cost nothing."""


class CountingNamespace(Namespace):
    """Jinja's namespace, without names that begin with an underscore, as in transformers."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # Jinja's signature: `namespace(self=...)` is legal
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"  # Jinja's shows the content, in which the namespace itself may be


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}, which begins with an underscore")


class CountingCode(CodeGenerator):
    """Compiles calls of the meter into a template where the environment is not asked anyway."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        # Text that the template itself writes in a turn is counted here. A turn that the loop's condition skips has
        # no body, so the condition counts too.
        size = sum(sys.getsizeof(data.data) for data in node.find_all(nodes.TemplateData))
        turn = nodes.EnvironmentAttribute(f"turn({size})", lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(turn, lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(nodes.EnvironmentAttribute("tick()"), node.test, lineno=node.lineno)
        super().visit_For(node, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._hold(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._hold(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._hold(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            self._hold(super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def _hold(self, visit: Callable[[Any, Frame], None], node: nodes.Node, frame: Frame) -> None:
        self.write("environment.hold(")
        visit(node, frame)
        self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.join_parts(context.eval_ctx, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self._tick(super().visit_Compare, node, frame)

    def visit_Test(self, node: nodes.Test, frame: Frame) -> None:
        self._tick(super().visit_Test, node, frame)

    def _tick(self, visit: Callable[[Any, Frame], None], node: nodes.Node, frame: Frame) -> None:
        self.write("(environment.tick() and ")
        visit(node, frame)
        self.write(")")


@pass_context
def _finalize(context: Context, value: Any) -> Any:
    """Count what is written out. It takes a context, so that Jinja writes nothing out while it compiles."""
    context.environment.meter.charge(weigh(value))  # type: ignore[attr-defined]
    return value


class CountingEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox with a meter; `meter` is set anew before each rendering."""

    code_generator_class = CountingCode
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, optimized=False, finalize=_finalize)
        self.meter = Meter()
        self.filters = {name: _counting_filter(name, check) for name, check in FILTERS.items()}
        self.globals.update(range=_small_range, namespace=CountingNamespace)
        del self.globals["lipsum"]

    def tick(self) -> bool:
        return self.meter.tick()

    def turn(self, size: int) -> bool:
        return self.meter.charge(size)

    def hold(self, value: Any) -> Any:
        """Count a list, tuple or dictionary made of values that were counted, or a part of one."""
        weigh(value)
        self.meter.charge(sys.getsizeof(value))
        return value

    def own(self, value: Any) -> Any:
        """Count a result; what an iterator has still to make is made now."""
        if isinstance(value, JINJAS_OWN):
            return value
        if not hasattr(value, "__next__"):
            self.meter.charge(weigh(value))
            return value
        items = []
        for item in value:
            self.meter.charge(ITEM_BYTES)
            items.append(item)
        self.meter.charge(weigh(items))
        return (item for item in items)  # true even if it is empty, as the iterator was

    def join_parts(self, context: EvalContext, parts: tuple[Any, ...]) -> str:
        """The operator `~`."""
        for part in parts:
            self.meter.charge(weigh(part))
        return markup_join(parts) if context.autoescape else str_join(parts)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if not super().is_safe_attribute(obj, attr, value):
            return False
        allowed = [names for kind, names in METHODS.items() if isinstance(obj, kind)]
        return isinstance(obj, JINJAS_OWN) or any(attr in names for names in allowed)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.meter.tick()  # a tuple's hash is computed each time
        return super().getitem(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_operator(self.meter, operator, left, right)
        return self.own(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.meter.tick()
        method = obj if hasattr(obj, "__self__") else getattr(obj, "__wrapped__", obj)  # Jinja wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            check_method(self.meter, owner, method.__name__, args, kwargs)
        self.meter.depth += 1
        try:
            if self.meter.depth > DEPTH:
                raise LimitError(f"its calls nest more than {DEPTH} deep")
            result = super().call(context, obj, *args, **kwargs)
        finally:
            self.meter.depth -= 1
        return result if isinstance(owner, dict) else self.own(result)  # a dictionary hands out what it has


def _counting_filter(name: str, check: Callable[..., None] | None) -> Callable[..., Any]:
    function: Callable[..., Any] = to_json if name == "tojson" else JINJAS_FILTERS[name]
    wanted = getattr(function, "jinja_pass_arg", None)  # Jinja's mark of filters that take more than the value

    @pass_context
    def apply(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        environment: Any = context.environment
        environment.meter.tick()
        if isinstance(value, str):
            environment.meter.need(len(value) * ITEM_BYTES)  # it may be taken apart
        if check is not None:
            check(environment.meter, value, *args, **kwargs)
        own = {"context": context, "eval_context": context.eval_ctx, "environment": environment}
        before = () if wanted is None else (own[wanted.name],)
        return environment.own(function(*before, value, *args, **kwargs))

    return apply


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As in transformers: Jinja's own escapes what HTML does not like."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _small_range(*args: int) -> range:
    weigh(args)
    return safe_range(*args)
