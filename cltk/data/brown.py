"""The Brown corpus (Francis and Kucera, 1964) from word/tag tokens back to English text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

MARKS = {",", ".", ";", ":", "?", "!"}  # no space before them, never twice
WORDS = 200  # a block's length: most are 150 to 250


def words(line: str) -> list[str]:
    """The words of a line of word/tag tokens; formula markers (**zg) are dropped."""
    return [token.rpartition("/")[0] for token in line.split() if not token.startswith("**")]


def detokenise(tokens: list[str]) -> str:
    """English text of a paragraph's tokens: spaces, quotes and doubled marks repaired.

    The corpus writes `` and '' for quotes, ' for either single quote, puts a closing quote before the comma or stop that
    belongs inside it (American style), and doubles ; ? and !.
    """
    text, glue, single_open = "", True, False
    for token in _inside_quotes(tokens):
        if token in MARKS and text.endswith(token):  # doubled, or the stop of "Jr." that ends a sentence
            continue
        opens = token in ("``", "(") or (token == "'" and not single_open)
        closes = token in MARKS or token in ("''", ")") or (token == "'" and single_open)
        slash = token == "/"
        single_open ^= token == "'"
        text += ("" if glue or closes or slash else " ") + {"``": '"', "''": '"'}.get(token, token)
        glue = opens or slash
    return re.sub("''\"?", '"', text)  # inches are written '' inside a token


def _inside_quotes(tokens: list[str]) -> list[str]:
    """The tokens with every comma, stop, ? and ! moved before the closing quote that it follows."""
    moved: list[str] = []
    for token in tokens:
        place = len(moved)
        if token in (",", ".", "?", "!"):
            while place and moved[place - 1] == "''":
                place -= 1
            if place < len(moved) and place and moved[place - 1] == token:
                continue  # the doubled mark of `'' !/. !/.`
        moved.insert(place, token)
    return moved


def blocks(text: str) -> list[str]:
    """A document cut at sentence ends into blocks of nearly equal length, about 200 words; paragraphs end with a newline.

    A block is [paragraph, ...] joined by newlines; sentence i goes to block floor(words before its middle / (words / blocks)).
    """
    paragraphs = [[words(line) for line in part.splitlines()] for part in re.split(r"\n\s*\n", text) if part.strip()]
    total = sum(_length(sentence) for paragraph in paragraphs for sentence in paragraph)
    count = max(1, round(total / WORDS))
    cut: list[list[str]] = [[] for _ in range(count)]
    done = 0
    for paragraph in paragraphs:
        pieces: dict[int, list[str]] = {}
        for sentence in paragraph:
            middle = done + _length(sentence) / 2
            pieces.setdefault(min(count - 1, int(middle * count / max(total, 1))), []).extend(sentence)
            done += _length(sentence)
        for index, tokens in pieces.items():
            cut[index].append(detokenise(tokens))
    return ["\n".join(filter(None, piece)) for piece in cut if any(piece)]


def _length(sentence: list[str]) -> int:
    return sum(any(letter.isalnum() for letter in word) for word in sentence)


def split_documents(genres: Mapping[str, str]) -> dict[str, list[str]]:
    """{"memory", "probe", "heldout"}: 60, 10 and 30 % of the documents of each genre, in the order of their sha256."""
    splits: dict[str, list[str]] = {"memory": [], "probe": [], "heldout": []}
    for genre in sorted(set(genres.values())):
        names = sorted(
            (name for name in genres if genres[name] == genre), key=lambda name: hashlib.sha256(name.encode()).digest()
        )
        first, second = round(0.6 * len(names)), round(0.7 * len(names))
        splits["memory"] += names[:first]
        splits["probe"] += names[first:second]
        splits["heldout"] += names[second:]
    return {split: sorted(names) for split, names in splits.items()}
