"""A text while it is written token by token: which of the likely tokens comes next, and when to take words back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

LOOP = 12  # tokens that stand in a text for the second time: a small model has begun to repeat itself

Spell = Callable[[Sequence[int]], str]  # token ids → text, without special tokens
Unfit = Callable[[str], Sequence[int]]  # a text, as if it ended here → ends (characters) of what must not stand in it


class Draft:
    """One line of text. It ends with a token of `ends`, where a line break would follow, or where it repeats itself.

    Tokens and names do not align: that a forbidden name stands in the text shows only when the word after it begins.
    So a token is taken if the text without what is unfit goes on, or if more letters could still make another word
    of its last one; if they do not, the draft goes back to where that word began and takes the next likely token
    there. It never ends unless all of it is fit, and is never stuck: it can end before any word. What it costs: a fit
    name is not reached whose first words are an unfit one.
    """

    def __init__(self, spell: Spell, ends: Collection[int], unfit: Unfit | None = None) -> None:
        self.spell, self.ends, self.unfit = spell, ends, unfit or (lambda text: ())
        self.tokens: list[int] = []
        self.done = False
        self._texts = [""]  # of the first 0, 1, … tokens
        self._fit = [True]  # whether these may stand as they are
        self._left: list[list[int]] = []  # for each place: the tokens not tried there, the most likely first

    @property
    def text(self) -> str:
        """What is written: all of a text that is done, else as much from its beginning as is fit."""
        return next(text for text, fit in zip(reversed(self._texts), reversed(self._fit), strict=True) if fit).strip()

    def advance(self, likely: Sequence[int]) -> None:
        """Write one more token, perhaps after taking some back, or end. likely: tokens for the next place."""
        self._left.append(list(likely))
        while not self._take():
            pass

    def _take(self) -> bool:
        """Try one token. Whether it is written, or the text is done."""
        if not self._left[-1]:
            if self._fit[-1]:
                self.done = True
                return True
            self._back()
            return False
        token = self._left[-1].pop(0)
        text, broken, _ = self.spell([*self.tokens, token]).partition("\n")
        ends, faults = token in self.ends or bool(broken), self.unfit(text)
        if not faults or (not ends and _open(text, faults)):
            self.tokens.append(token)
            self._texts.append(text)
            self._fit.append(not faults)
            self.done = ends or self._loops()
            return True
        if not self._fit[-1]:
            self._back()
        return False

    def _loops(self) -> bool:
        """Whether the last tokens have stood in the text before; if so they are taken out of it."""
        last = self.tokens[-LOOP:]
        if all(self.tokens[i : i + LOOP] != last for i in range(len(self.tokens) - LOOP)):
            return False
        del self.tokens[-LOOP:], self._texts[-LOOP:], self._fit[-LOOP:]
        return True

    def _back(self) -> None:
        """Take back the last word, all that was written from the last place where a fit text began a new one."""
        for place in reversed(range(len(self.tokens))):
            before, after = self._texts[place : place + 2]
            goes_on = before[-1:].isalnum() and after[len(before) : len(before) + 1].isalnum()
            if self._fit[place] and not goes_on:
                break
        del self.tokens[place:], self._texts[place + 1 :], self._fit[place + 1 :], self._left[place + 1 :]


def _open(text: str, faults: Sequence[int]) -> bool:
    """Whether letters to come could make other words of all that is unfit; it may have a plural s already."""
    return text[-1:].isalnum() and all(text[end:] in ("", "s") for end in faults)
