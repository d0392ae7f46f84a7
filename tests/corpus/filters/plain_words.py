"""Words as the rules of quality take them, in plain Python: what the compiled loops are compared with."""

from __future__ import annotations

from fledge.corpus.characters import DIGIT, LETTER, TABLE_SIZE, UNSPACED, character_tables


def kind(character: str) -> int:
    code = ord(character)
    return -1 if character == "_" or code >= TABLE_SIZE else int(character_tables().kind[code])


def words_of(text: str) -> list[str]:
    """Runs without white space, cut before a letter of an unspaced script and before a letter or numeral after one."""
    words = []
    for run in text.split():
        start, unspaced = 0, False
        for i, character in enumerate(run):
            if i > start and (kind(character) == UNSPACED or (unspaced and kind(character) in {LETTER, DIGIT})):
                words.append(run[start:i])
                start, unspaced = i, False
            unspaced |= kind(character) == UNSPACED
        words.append(run[start:])
    return words
