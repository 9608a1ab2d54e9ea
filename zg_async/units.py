"""Amounts: int neuron inside, decimal strings of 0G at the border, never float.

1 0G = 10**18 neuron. Older texts call the coin A0GI or OG and the smallest unit wei.
"""

import re
from typing import Final

NEURON_PER_0G: Final = 10**18
MAX_AMOUNT: Final = 2**256 - 1

Amount = int | str
"""An `int` of neuron, or a decimal string of 0G such as `"0.1"`, `"0.1 0G"` or `"5 neuron"`."""

_TEXT: Final = re.compile(r"(?a:(\d+)(?:\.(\d+))?)\s*(0G|A0GI|OG|neuron|wei)?", re.IGNORECASE)
_SMALLEST: Final = frozenset({"neuron", "wei"})


def parse_amount(amount: Amount) -> int:
    """Turn an amount into neuron, exactly.

    Args:
        amount: An int of neuron, or a decimal string of 0G; a string may name its unit
            (0G, A0GI, OG, neuron, wei).

    Returns:
        The amount in neuron, 0 <= amount < 2**256.

    Raises:
        TypeError: A float, a bool or anything else that is neither int nor str.
        ValueError: Negative, too large, more than 18 decimals, or not a number.
    """
    if isinstance(amount, bool) or not isinstance(amount, int | str):
        raise TypeError(
            f"an amount is an int of neuron or a decimal string of 0G, not {type(amount).__name__}; "
            'write "0.1" instead of 0.1'
        )
    value = amount if isinstance(amount, int) else _parse_text(amount)
    if value < 0:
        raise ValueError(f"an amount can't be negative: {amount}")
    if value > MAX_AMOUNT:
        raise ValueError(f"an amount has to be below 2**256 neuron: {str(amount)[:40]}")
    return value


def _parse_text(text: str) -> int:
    match = _TEXT.fullmatch(text.strip()) if len(text) <= 120 else None
    if match is None:
        raise ValueError(f'not an amount: {text[:60]!r}; write it like "3", "0.5", "0.5 0G" or "100 neuron"')
    whole, fraction, unit = match[1], match[2] or "", (match[3] or "0G").lower()
    if unit in _SMALLEST:
        if fraction:
            raise ValueError(f"a {unit} can't be divided: {text!r}")
        return int(whole)
    if len(fraction) > 18:
        raise ValueError(f"0G has 18 decimals, {text!r} has {len(fraction)}")
    return int(whole) * NEURON_PER_0G + int(fraction.ljust(18, "0"))


def format_amount(neuron: int, *, decimals: int = 18, unit: str = " 0G") -> str:
    """Write an amount of neuron as 0G.

    Args:
        neuron: The amount in neuron; may be negative (a balance difference).
        decimals: At most this many decimals (0 to 18); the rest is cut, never rounded up. Zeros at the end are dropped.
        unit: What to put behind the number.

    Returns:
        For example `"1.0112 0G"`.
    """
    sign, neuron = ("-", -neuron) if neuron < 0 else ("", neuron)
    whole, rest = divmod(neuron, NEURON_PER_0G)
    fraction = f"{rest:018d}"[:decimals].rstrip("0")
    return f"{sign}{whole}{'.' + fraction if fraction else ''}{unit}"


def og_to_wei(amount: Amount) -> int:
    """Turn 0G into neuron, as the peers' helper of this name: `og_to_wei("1")` is 10**18.

    Args:
        amount: 0G as decimal string, or as a whole int of 0G.

    Returns:
        The amount in neuron.

    Raises:
        TypeError: A float: write it as a string.
        ValueError: Not a number, negative, or more than 18 decimals.
    """
    if isinstance(amount, int) and not isinstance(amount, bool):
        return parse_amount(amount * NEURON_PER_0G)
    return parse_amount(amount)


def wei_to_og(neuron: int) -> str:
    """Turn neuron into an exact decimal string of 0G, without unit.

    Args:
        neuron: The amount in neuron.

    Returns:
        For example `"0.1"` for 10**17.

    Raises:
        TypeError: Not an int.
        ValueError: Negative or too large.
    """
    if not isinstance(neuron, int):
        raise TypeError(f"neuron are int, not {type(neuron).__name__}")
    return format_amount(parse_amount(neuron), unit="")
