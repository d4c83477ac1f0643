"""Passages: what is marked as what, in which order, and that marks stay on their words when a text is cut."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainkit.passages import SIZE, STATES, Mark, Passage, palette, passages
from domainkit.types import Example, Span

TEXT = "Acute renal failure after ibuprofen and paracetamol, with nausea."


def span(words: str, label: str, concept: str | None = None, text: str = TEXT) -> Span:
    return Span(text.index(words), text.index(words) + len(words), label, concept)


def shown(gold: tuple[Span, ...], predicted: tuple[Span, ...], text: str = TEXT) -> list[tuple[str, str, str]]:
    """State, label and words of every mark."""
    (passage,) = passages([Example(text, spans=gold)], [Example(text, spans=predicted)])
    return [(mark.state, mark.label, passage.text[mark.start : mark.end]) for mark in passage.marks]


def test_every_state() -> None:
    gold = (
        span("Acute renal failure", "Disease"), span("ibuprofen", "Chemical", "D1"),
        span("paracetamol", "Chemical"), span("nausea", "Disease"),
    )  # fmt: skip
    predicted = (
        span("renal failure", "Disease"), span("ibuprofen", "Chemical", "D1"),
        span("paracetamol", "Disease"), span("after", "Chemical"),
    )  # fmt: skip
    assert shown(gold, predicted) == [
        ("gold", "Disease", "Acute renal failure"),
        ("wrong", "Disease", "renal failure"),
        ("spurious", "Chemical", "after"),
        ("right", "Chemical", "ibuprofen"),
        ("gold", "Chemical", "paracetamol"),
        ("wrong", "Disease", "paracetamol"),
        ("missed", "Disease", "nausea"),
    ]


@pytest.mark.parametrize(
    ("gold", "predicted", "state", "hint"),
    [
        ("D1", "D1", "right", "Chemical: D1"),
        ("D1,D2", "D2", "right", "Chemical: D2"),
        ("D1", "D3", "mislinked", "mislinked Chemical: D3, not D1"),
        ("D1", None, "right", "Chemical"),  # a tagger does not link
        (None, "D3", "right", "Chemical: D3"),  # gold does not know
    ],
)
def test_a_wrong_concept(gold: str | None, predicted: str | None, state: str, hint: str) -> None:
    ours, theirs = (Example(TEXT, spans=(span("ibuprofen", "Chemical", concept),)) for concept in (gold, predicted))
    (mark,) = passages([ours], [theirs])[0].marks
    assert (mark.state, mark.hint) == (state, hint)
    assert mark.name == ("Chemical" if state == "right" else "mislinked Chemical")


def test_errors_come_first_and_the_order_stays_among_equals() -> None:
    spans = [Span(i, i + 1, "A") for i in range(5)]
    errors = (0, 2, 0, 5, 2, 0)
    gold = [Example(TEXT, spans=tuple(spans), id=str(i)) for i in range(len(errors))]
    predicted = [Example(TEXT, spans=tuple(spans[n:])) for n in errors]
    found = passages(gold, predicted)
    assert [(one.title, len(one.errors)) for one in found] == [
        ("3", 5), ("1", 2), ("4", 2), ("0", 0), ("2", 0), ("5", 0)
    ]  # fmt: skip
    assert passages(gold, predicted, limit=2) == found[:2]


def test_at_most_20_documents_and_none_without_a_mark() -> None:
    marked, blank = Example(TEXT, spans=(Span(0, 5, "A"),)), Example(TEXT)
    assert len(passages([marked] * 30, [blank] * 30)) == 20
    assert [one.title for one in passages([blank, marked], [blank, blank])] == ["document 2"]
    assert passages([Example("")], [Example("")]) == ()
    assert passages([], []) == ()


def test_titles() -> None:
    mark = (Span(0, 5, "A"),)
    gold = [Example(TEXT, mark, id="227508", group="g"), Example(TEXT, mark, group="g"), Example(TEXT, mark)]
    assert [one.title for one in passages(gold, gold)] == ["227508", "g", "document 3"]


def test_a_long_text_is_cut_to_where_the_errors_are() -> None:
    text = "before " * 400 + "renal failure, nausea, " + "after " * 400
    gold = (span("renal failure", "Disease", text=text), span("nausea", "Disease", text=text), Span(0, 6, "Disease"))
    (passage,) = passages([Example(text, gold)], [Example(text)])
    assert len(passage.text) <= SIZE
    assert [passage.text[mark.start : mark.end] for mark in passage.marks] == ["renal failure", "nausea"]
    assert passage.text.startswith("…before ") and passage.text.endswith("after…")
    assert passage.text[1:-1] in text


def test_a_text_without_errors_is_cut_from_its_beginning() -> None:
    text = "word " * 1000
    example = Example(text, (Span(0, 4, "A"), Span(4900, 4904, "A")))
    (passage,) = passages([example], [example])
    assert passage.text.startswith("word word") and passage.text.endswith("word…")
    assert [(mark.start, mark.end) for mark in passage.marks] == [(0, 4)]


def test_words_stay_whole_where_there_are_spaces() -> None:
    text = "renalfailure " * 400
    sound = [Span(i, i + 12, "A") for i in range(0, len(text), 13)]
    (passage,) = passages([Example(text, tuple(sound))], [Example(text, tuple(sound[:200] + sound[201:]))])
    words = {passage.text[mark.start : mark.end] for mark in passage.marks}
    assert (words, passage.errors[0].state) == ({"renalfailure"}, "missed")


def test_a_cut_is_not_moved_over_an_error() -> None:
    text = "x" * 1020 + " " + "x" * 1440 + " " + "x" * 3000
    errors = (Span(1000, 1020, "A"), Span(1140, 1150, "A"), Span(2470, 2480, "A"))  # in reach from 990 only
    (passage,) = passages([Example(text, errors)], [Example(text)])
    assert [mark.end - mark.start for mark in passage.marks] == [20, 10, 10]


def test_a_mark_across_the_cut_is_shortened() -> None:
    text = "x" * 5000
    (passage,) = passages([Example(text, (Span(100, 4900, "A"),))], [Example(text)])
    (mark,) = passage.marks
    assert (passage.text[mark.start : mark.end], mark.end) == ("x" * (mark.end - mark.start), len(passage.text) - 1)


PIECES = st.lists(st.sampled_from(["a", " ", "Ω", "😀", "👩‍⚕️", "ש", "م", "肾", "\n", "\x1f"]), min_size=1)


@settings(max_examples=150)
@given(PIECES, st.integers(1, 900), st.data())
def test_marks_stay_on_their_words(pieces: list[str], times: int, data: st.DataObject) -> None:
    text = "".join(pieces) * times
    place = st.tuples(st.integers(0, len(text) - 1), st.integers(1, 200), st.sampled_from("AB"))
    spans = st.lists(place.map(lambda p: Span(p[0], min(p[0] + p[1], len(text)), p[2])), max_size=6).map(tuple)
    sides = [Example(text, data.draw(spans)) for _ in range(2)]
    for passage in passages(sides[:1], sides[1:]):
        assert len(passage.text) <= SIZE
        start = len(text) > SIZE and passage.text[0] == "…"
        end = len(passage.text) - (len(text) > SIZE and passage.text[-1] == "…")
        assert passage.text[start:end] in text
        known = {(s.label, text[s.start : s.end]) for side in sides for s in side.spans}
        for mark in passage.marks:
            words = passage.text[mark.start : mark.end]
            at_the_cut = mark.start == start or mark.end == end
            assert (mark.label, words) in known or (at_the_cut and any(words in whole for _, whole in known))
        assert "".join(piece for piece, _, _ in passage.pieces()) == passage.text


def test_overlapping_marks_are_cut_into_pieces_the_longer_one_outside() -> None:
    outer, inner, crossing = Mark(0, 6, "A", "right"), Mark(2, 4, "B", "missed"), Mark(5, 8, "C", "spurious")
    assert Passage("", "abcdefghi", (outer, inner, crossing)).pieces() == [
        ("ab", (outer,), ()),
        ("cd", (outer, inner), (inner,)),
        ("e", (outer,), ()),
        ("f", (outer, crossing), (outer,)),
        ("gh", (crossing,), (crossing,)),
        ("i", (), ()),
    ]
    assert Passage("", "").pieces() == []


def test_errors_in_words() -> None:
    marks = tuple(Mark(i, i + 1, "A", state, "D1") for i, state in enumerate(STATES))
    told = Passage("", "abcdefgh", marks).told()
    assert told == "missed A: D1 “b”; spurious A: D1 “c”; wrong A: D1 “d”; mislinked A: D1 “f”"
    many = Passage("", "x" * 500, tuple(Mark(i, 400, "A", "missed") for i in range(8)))
    assert many.told().endswith("; and 3 more")
    assert len(many.told()) < 400
    assert Passage("", "a", marks[:1]).told() == "none"


@pytest.mark.parametrize(
    "mark", [Mark(0, 9, "A", "right"), Mark(-1, 2, "A", "right"), Mark(2, 2, "A", "right"), Mark(0, 1, "A", "odd")]
)
def test_a_mark_that_cannot_be_is_refused(mark: Mark) -> None:
    with pytest.raises(ValueError, match="in a passage of 3 characters"):
        Passage("t", "abc", (mark,))


def test_round_trip_and_unknown_keys() -> None:
    passage = Passage("t", "abc", (Mark(0, 1, "A", "mislinked", "D1", "D2"),))
    assert Passage.parse(asdict(passage)) == passage
    for wrong in ({"colour": 1}, {"marks": [asdict(passage.marks[0]) | {"colour": 1}]}):
        with pytest.raises(TypeError, match="colour"):
            Passage.parse(asdict(passage) | wrong)


def test_colours_follow_the_labels() -> None:
    marks = tuple(Mark(0, 1, label, "right") for label in "CAB")
    assert palette([Passage("", "x", marks[:1]), Passage("", "x", marks[1:])], 2) == {"A": 0, "B": 1, "C": 0}
