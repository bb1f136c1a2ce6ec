"""A calculator that a model may call: arithmetic and counting in texts, evaluated on a safe AST.

`48/2`, `round(3.75 * 12, 1)`, `1,250 + 80`, `"strawberry".count("r")`. Nothing else of Python is
reachable: an expression is parsed, and each node is one of those below or is refused.
"""

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Any

from gaia.errors import GaiaError

MAX_CHARS = 256
MAX_BITS = 1024  # of an integer: any larger power would hold the machine up
MAX_DIGITS = 400  # that `round` keeps or drops: Python computes 10**digits first
MAX_TEXT = 10_000  # letters of a text that `*` or `+` makes

Value = int | float | str | bool


class CalculatorError(GaiaError):
    """The expression is not one that the calculator takes, or it has no value."""


def _power(base: Any, exponent: Any) -> Any:
    whole = isinstance(base, int) and isinstance(exponent, int) and exponent > 0
    if whole and base.bit_length() * exponent > MAX_BITS:
        raise CalculatorError(f"{base}**{exponent} is too large", f"stay below 2**{MAX_BITS}")
    result = base**exponent
    if isinstance(result, complex):
        raise CalculatorError(f"{base}**{exponent} is not a real number", "use a positive base")
    return result


def _round(value: Any, digits: int = 0) -> Any:
    if not -MAX_DIGITS <= digits <= MAX_DIGITS:
        raise CalculatorError(f"round to {digits} digits", f"use -{MAX_DIGITS} to {MAX_DIGITS}")
    return round(value, digits) if digits else round(value)


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs, "min": min, "max": max, "round": _round, "len": len,
    "sqrt": math.sqrt, "floor": math.floor, "ceil": math.ceil,
}  # fmt: skip
_TEXT_METHODS = frozenset({"count", "lower", "upper"})


def calculate(expression: str) -> str:
    """Evaluates an expression; the answer as a model reads it.

    Returns:
        An integer without a point, a float with at most 12 significant digits, a text as it is.

    Raises:
        CalculatorError: naming the part that cannot be evaluated.
    """
    text = expression.strip()
    if not text or len(text) > MAX_CHARS:
        raise CalculatorError(f"the expression has {len(text)} characters", f"use 1 to {MAX_CHARS}")
    # Digits grouped by commas, but not the arguments of `max(1,2)`.
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text) if "(" not in text else text
    try:
        shown = _shown(_value(ast.parse(text, mode="eval").body))
        shown.encode()  # half a character, written as an escape, is no text that a model can read
        return shown
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise CalculatorError(f"{expression!r}: {error}", "use numbers and + - * / ( )") from None
    except ArithmeticError as error:
        raise CalculatorError(f"{expression!r} has no value: {error}", "check it") from None


def _value(node: ast.expr) -> Value:
    match node:
        case ast.Constant(value=int() | float() | str() as value):
            return value
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _number(_UNARY[type(op)](_value(operand)))
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _BINARY:
            return _binary(op, _value(left), _value(right))
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
            return _COMPARE[type(op)](_value(left), _value(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _number(_FUNCTIONS[name](*map(_value, args)))
        case ast.Call(func=ast.Attribute(value=of, attr=name), args=args, keywords=[]) if (
            name in _TEXT_METHODS
        ):
            return _method(_value(of), name, [_value(arg) for arg in args])
    raise CalculatorError(
        f"`{ast.unparse(node)}` is not arithmetic", f"use + - * / ( ) or {', '.join(_FUNCTIONS)}"
    )


def _binary(op: ast.operator, left: Value, right: Value) -> Value:
    size = sum(len(v) if isinstance(v, str) else abs(v) for v in (left, right))
    if (isinstance(left, str) or isinstance(right, str)) and not (
        isinstance(op, ast.Add | ast.Mult) and size <= MAX_TEXT
    ):
        raise CalculatorError("a text takes part in arithmetic", 'use "text".count("t")')
    for text, times in ((left, right), (right, left)):
        if isinstance(text, str) and isinstance(times, int) and len(text) * times > MAX_TEXT:
            raise CalculatorError("the text is too long", f"stay below {MAX_TEXT} letters")
    return _number(_BINARY[type(op)](left, right))


def _method(of: Value, name: str, args: list[Value]) -> Value:
    if not isinstance(of, str) or not all(isinstance(arg, str) for arg in args):
        raise CalculatorError(f".{name}() is asked of {of!r}", "use it on texts")
    return getattr(of, name)(*args)


def _number(value: Value) -> Value:
    if isinstance(value, float) and not math.isfinite(value):
        raise CalculatorError(f"the result is {value}", "use smaller numbers")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise CalculatorError("the result is too large", f"stay below 2**{MAX_BITS}")
    return value


def _shown(value: Value) -> str:
    if isinstance(value, float):
        short = f"{value:.12g}"
        return short.removesuffix(".0") if "e" not in short else repr(value)
    return str(value)
