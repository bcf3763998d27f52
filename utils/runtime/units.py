"""Sizes and numbers as people read and write them."""

from __future__ import annotations

import math
import re


def parse_bytes(text: str) -> int:
    """Bytes in "4GiB", "500MB", "2g" (binary units unless written MB, GB) or "1073741824".

    Raises ValueError for anything else (argparse turns that into its own message).
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?)(i?b)?\s*", text.lower())
    if not match:
        raise ValueError(f"{text!r} is no size; write 4GiB or 500MB")
    number, prefix, suffix = match.groups()
    base = 1000 if suffix == "b" and prefix else 1024
    return int(float(number) * base ** ["", "k", "m", "g", "t"].index(prefix))


def show_bytes(n: float) -> str:
    """ "3.40 GiB", "12.0 MiB"."""
    for unit, digits in (("B", 0), ("KiB", 1), ("MiB", 1), ("GiB", 2)):
        if abs(n) < 1024:
            return f"{n:.{digits}f} {unit}"
        n /= 1024
    return f"{n:.2f} TiB"


def short_number(number: float) -> str:
    """16384 -> "16k", 131072 -> "131k", as releases of SAEs write it; 1048576 -> "1M"."""
    if 1 << 16 <= number < 1 << 20 and math.log2(number).is_integer():
        return f"{number // 1000:.0f}k"
    for size, unit in ((1 << 20, "M"), (1 << 10, "k")):
        if number >= size:
            return f"{number / size:.0f}{unit}"
    return f"{number:.0f}"
