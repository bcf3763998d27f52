"""Which rows a table of millions has: keys by column, looked up without a tuple for each row."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from functools import lru_cache

import numpy as np

from utils.results.csv_files import TEXT, TextColumn

Key = tuple  # one plain value a column


def plain(column: str, value: object) -> object:
    """One form for a key's value, whatever its type and spelling: what is text is never taken for a
    number.

    >>> plain("k", 16.0), plain("k", "16"), plain("ratio", 0.39999999999999997), plain("dataset", 7)
    (16, 16, 0.4, '7')
    """
    return text_of(value) if column in TEXT else _plain(type(value).__name__, value)


def text_of(cell: object) -> str:
    """A cell as text; "" for an empty one, which pandas reads as NaN."""
    return "" if cell is None or cell != cell else str(cell)


@lru_cache(maxsize=65536)
def _plain(kind: Hashable, value: object) -> object:
    """Fractions to four places, whole floats as integers, booleans as text. ``kind``: 1, 1.0 and
    True are one to a cache.
    """
    if isinstance(value, bool) or str(value) in ("True", "False", "TRUE", "FALSE"):
        return str(value).title()
    try:
        number = float(str(value))
    except ValueError:
        return str(value)
    if number != number or number in (float("inf"), -float("inf")):
        return "" if number != number else str(value)
    return int(number) if number == int(number) else round(number, 4)


def sortable(value: object) -> tuple:
    return (0, value, "") if isinstance(value, (int, float)) else (1, 0, str(value))


class KeyColumns:
    """The keys of a table's rows, each column's distinct values normalised once.

    ``numbers`` [n_rows]: the place of each row's key among all possible ones in their order.
    """

    def __init__(self, columns: Mapping[str, TextColumn], defaults: Mapping[str, object]) -> None:
        """``columns``: those that the table has; ``defaults``: every column of the key, with the
        value that an empty cell or a missing column stands for.
        """
        n_rows = max((len(column.codes) for column in columns.values()), default=0)
        self.values: list[list[object]] = []
        self._places: list[dict[object, int]] = []
        self.numbers = np.zeros(n_rows, dtype=object if _many(columns, defaults) else np.int64)
        for name, default in defaults.items():
            column = columns.get(name) or TextColumn(np.full(n_rows, -1, dtype=np.int64), [])
            absent = plain(name, default)
            forms = [plain(name, text) if text else absent for text in column.texts] + [absent]
            ordered = sorted(set(forms), key=sortable)
            places = {value: i for i, value in enumerate(ordered)}
            of_text = np.array([places[form] for form in forms], dtype=np.int64)
            self.numbers = self.numbers * len(ordered) + of_text[column.codes]
            self.values.append(ordered)
            self._places.append(places)

    def number_of(self, key: Key) -> int | None:
        """The place of a key, None where a value of it is in no row."""
        number = 0
        for value, places in zip(key, self._places):
            place = places.get(value)
            if place is None:
                return None
            number = number * len(places) + place
        return number

    def key_at(self, number: int) -> Key:
        """The key that stands at a place."""
        key = []
        for values in reversed(self.values):
            number, place = divmod(int(number), len(values))
            key.append(values[place])
        return tuple(reversed(key))


def _many(columns: Mapping[str, TextColumn], defaults: Mapping[str, object]) -> bool:
    """Whether there are more possible keys than 64 bits can count."""
    possible = 1
    for name in defaults:
        possible *= len(columns[name].texts) + 1 if name in columns else 1
    return possible >= 1 << 62


class Done(Mapping[Key, str]):
    """{key: what the row was made from}; of rows with one key the last counts."""

    def __init__(self, keys: KeyColumns, made_from: TextColumn | None, counted: np.ndarray) -> None:
        """``counted`` bool [n_rows]: the rows that are there with their score."""
        self._keys, self._sources = keys, [*(made_from.texts if made_from else []), ""]
        rows = np.flatnonzero(counted)
        # the last of equal keys: the first of the table read backwards
        self._numbers, first = np.unique(keys.numbers[rows][::-1], return_index=True)
        last = rows[::-1][first]
        self._codes = made_from.codes[last] if made_from else np.full(len(last), -1)

    def __getitem__(self, key: Key) -> str:
        number = self._keys.number_of(key)
        place = 0 if number is None else int(np.searchsorted(self._numbers, number))
        if number is None or place == len(self._numbers) or self._numbers[place] != number:
            raise KeyError(key)
        return self._sources[self._codes[place]]

    def __iter__(self) -> Iterator[Key]:
        return map(self._keys.key_at, self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)
