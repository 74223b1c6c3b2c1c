"""The items of a JSON file one by one, however many there are: of an array, or of values that follow each other.

The standard parser takes only whole files. Called by the formats beside it.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sim.common.errors import TraceError
from sim.traces.formats.base import opened

PIECE_BYTES = 1 << 22
LONGEST_ITEM = 1 << 28  # characters

_BLANK = re.compile(r"[ \t\r\n]*")


def json_items(path: Path) -> Iterator[tuple[int, Any]]:
    """(number from 1, value) of every item of the array that the file is, or of every value in it.

    Raises TraceError: not UTF-8, not JSON, cut off, nothing in it, an item of more than LONGEST_ITEM characters.
    """
    with opened(path) as file:
        text = _Text(path, file)
        if text.peek() == "":
            raise TraceError(f"{path}: the file is empty; a trace has at least one request")
        listed = text.peek() == "["
        if listed:
            text.take()
        number = 0
        while (mark := text.peek()) not in ("", "]"):
            if listed and number:
                if mark != ",":
                    raise TraceError(f"{path}: row {number}: not followed by a comma or the array's end; mend it")
                text.take()
            number += 1
            yield number, text.item(number)
        if listed and mark == "":
            raise TraceError(f"{path}: row {number}: the array ends nowhere; the file is cut off, copy it again")
        if mark == "]":
            text.take()
            if not listed or text.peek():
                raise TraceError(f"{path}: row {number}: something follows the last item; mend the file")
        if not number:
            raise TraceError(f"{path}: holds no items; a trace has at least one request")


class _Text:
    """What is still to be read of a file's text."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path = path
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._decode = json.JSONDecoder(parse_constant=self._refuse).raw_decode
        self._text = ""
        self._at = 0
        self._ended = False

    def peek(self) -> str:
        """The next character that is not blank, or ""."""
        while True:
            match = _BLANK.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._more()

    def take(self) -> None:
        """Pass over the character that `peek` gave."""
        self._at += 1

    def item(self, number: int) -> Any:
        """The value that begins here."""
        while True:
            self.peek()
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended or len(self._text) - self._at > LONGEST_ITEM:
                    raise TraceError(f"{self._path}: row {number}: not valid JSON ({error.msg}); mend it") from None
            except (ValueError, RecursionError):
                problem = "a number or nesting too large"
                raise TraceError(f"{self._path}: row {number}: not valid JSON ({problem}); mend it") from None
            else:
                if self._ended or end < len(self._text):  # a number at the very end may go on
                    self._at = end
                    return value
            self._more()

    def _more(self) -> None:
        data = self._file.read(max(PIECE_BYTES, len(self._text) - self._at))
        self._ended = not data
        try:
            self._text = self._text[self._at :] + self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError:
            raise TraceError(f"{self._path}: not UTF-8 text; save the file as UTF-8") from None
        self._at = 0

    def _refuse(self, word: str) -> Any:
        raise TraceError(f"{self._path}: not valid JSON ({word} is no number); mend it")
