"""Symbolic sizes in `.pt2` files: the text that sympy prints (`Max(Integer(1), Symbol('s0'))`), checked before sympy reads it.

torch hands the text to `sympy.sympify`, which evaluates it as Python. Read here are calls of sympy's and torch's own arithmetic by
name, numbers, symbols and operators between them; nothing else. Since sympy computes numbers at once, to any length, powers and
shifts are bounded too: no expression of a file takes more than a moment or a megabyte.
"""

from __future__ import annotations

import ast
import functools
import re

LONGEST = 20_000  # characters of one expression
HIGHEST_POWER = 256  # of a symbol, all nested powers together
SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,60}")
UNBACKED = re.compile(r"(?:u|zuf)([\d_]+)")  # torch counts up to the number of such a symbol
NUMERAL = re.compile(r"-?(\d{1,40}(\.\d{0,40})?(e[-+]?\d{1,3})?|inf|nan|oo)", re.IGNORECASE)
SYMPY = (
    "Abs", "Add", "And", "Eq", "Equality", "Float", "Ge", "GreaterThan", "Gt", "Integer", "Le", "LessThan", "Lt", "Max", "Min", "Mod",
    "Mul", "Ne", "Not", "Or", "Pow", "Rational", "StrictGreaterThan", "StrictLessThan", "Symbol", "Unequality", "Xor", "ceiling", "floor",
)  # fmt: skip
POWERS = frozenset(("Pow", "FloatPow", "PowByNatural", "LShift", "RShift", "RoundDecimal"))
NAMED = frozenset(("Symbol", "Float", "Integer"))  # what may be made from a text
STRUCTURE = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.Load, ast.operator, ast.unaryop, ast.cmpop, ast.boolop)
RISKY = (ast.LShift, ast.RShift, ast.MatMult)


@functools.cache
def functions() -> frozenset[str]:
    """Names that an expression may call: sympy's arithmetic and relations, and every function of torch's own sympy module."""
    import sympy
    from torch.utils._sympy import functions as own

    made = {n for n, v in vars(own).items() if isinstance(v, type) and issubclass(v, sympy.Function) and v.__module__ == own.__name__}
    return frozenset((*SYMPY, *made))


def is_symbol(name: str) -> bool:
    """Whether `name` can be the name of a symbolic size."""
    counted = UNBACKED.fullmatch(name)
    return SYMBOL.fullmatch(name) is not None and "__" not in name and (counted is None or len(counted[1]) <= 5)


def is_arithmetic(text: str) -> bool:
    """Whether `text` can do nothing but compute a size, and that cheaply."""
    if len(text) > LONGEST:
        return False
    try:
        tree = ast.parse(text, mode="eval")
        return all(_is_harmless(node) for node in ast.walk(tree)) and _texts_are_named(tree) and _power(tree.body) <= HIGHEST_POWER
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False


def _is_harmless(node: ast.AST) -> bool:
    """Whether one node of the tree is part of arithmetic."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in functions() and (node.func.id in NAMED or not node.keywords)
    if isinstance(node, ast.keyword):
        return node.arg is not None and isinstance(node.value, ast.Constant) and _is_small(node.value.value)
    if isinstance(node, ast.Name):
        return node.id in functions() or is_symbol(node.id)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) or (isinstance(node.value, (int, float)) and abs(node.value) < 2**65)
    return isinstance(node, STRUCTURE) and not isinstance(node, RISKY)


def _texts_are_named(tree: ast.AST) -> bool:
    """Whether every text is the name of a symbol or the digits of a number, given to what takes it for that: sympy evaluates others."""
    fine: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NAMED:
            for given in node.args[:1]:
                if isinstance(given, ast.Constant) and isinstance(given.value, str):
                    wanted = is_symbol(given.value) if node.func.id == "Symbol" else NUMERAL.fullmatch(given.value) is not None
                    fine |= {id(given)} if wanted else set()
    return all(id(n) in fine for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str))


def _is_small(value: object) -> bool:
    """Whether a keyword's value (an assumption of a symbol, the precision of a number) is one that takes no memory."""
    return isinstance(value, bool) or (isinstance(value, int) and 0 <= value <= 1024)


def _power(node: ast.AST) -> int:
    """The highest power that a symbol or number reaches in `node`; beyond `HIGHEST_POWER` where an exponent is not a small number."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _raised(node.left, node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in POWERS:
        return _raised(*node.args) if len(node.args) == 2 and not node.keywords else HIGHEST_POWER + 1
    parts = [_power(child) for child in ast.iter_child_nodes(node)]
    product = isinstance(node, ast.BinOp) or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Mul")
    return max(1, sum(parts) if product else max(parts, default=1))


def _raised(base: ast.AST, exponent: ast.AST) -> int:
    number = exponent
    if (
        isinstance(number, ast.Call)
        and isinstance(number.func, ast.Name)
        and number.func.id in ("Integer", "Float", "Rational")
        and number.args
    ):
        number = number.args[0]
    if isinstance(number, ast.UnaryOp) and isinstance(number.op, ast.USub):
        number = number.operand
    value = number.value if isinstance(number, ast.Constant) else None
    if isinstance(value, str) and NUMERAL.fullmatch(value):
        value = abs(float(value))
    if not isinstance(value, (int, float)) or not abs(value) <= HIGHEST_POWER:
        return HIGHEST_POWER + 1
    return _power(base) * max(1, int(abs(value)))
