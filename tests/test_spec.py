"""Task files: what is read, and that every fault is named with its place and its remedy."""

from __future__ import annotations

import tomllib
from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainkit import assets
from domainkit.fill import fill
from domainkit.spec import Domain, Source, Training
from domainkit.types import UserError

SHIPPED = sorted(path.parent.name for path in (assets.ROOT / "tasks").glob("*/domain.toml"))
TASK = """
kind = "lm"
title = "Reads law"
[settings]
share = 0.3
[[sources]]
path = "data/law.jsonl"
part = "domain"
language = "en"
"""


@pytest.fixture
def law(tmp_path: Path) -> Path:
    folder = tmp_path / "law"
    folder.mkdir()
    (folder / "domain.toml").write_text('title = "Law"\n[training]\nepochs = 4\n')
    (folder / "lm.toml").write_text(TASK)
    (folder / "court.toml").write_text(TASK.replace('"lm"', '"classify"').replace("share = 0.3", "labels = [1]"))
    return folder


@dataclass(frozen=True)
class Inner:
    size: int = field(metadata={"min": 1})


@dataclass(frozen=True)
class Outer:
    name: str
    rate: float = field(default=0.5, metadata={"min": 0.0, "max": 1.0})
    count: int = 3
    on: bool = False
    folder: Path = Path(".")
    words: tuple[str, ...] = ()
    parts: tuple[Inner, ...] = ()
    inner: Inner | None = None
    mode: str = field(default="a", metadata={"choices": ("a", "b")})
    more: dict[str, dict] = field(default_factory=dict)


def fault(table: dict[str, object], cls: type = Outer) -> str:
    with pytest.raises(UserError) as caught:
        fill(cls, table, where="tasks/x/y.toml")
    return str(caught.value)


def test_fill_reads_every_type() -> None:
    table = tomllib.loads(
        'name = "n"\nrate = 1\ncount = 2\non = true\nfolder = "a/b"\nwords = ["x", "y"]\n'
        "[[parts]]\nsize = 1\n[[parts]]\nsize = 2\n[more.z]\nq = 1"
    )
    expected = Outer("n", 1.0, 2, True, Path("a/b"), ("x", "y"), (Inner(1), Inner(2)), more={"z": {"q": 1}})
    assert fill(Outer, table, where="f") == expected
    assert isinstance(fill(Outer, table, where="f").rate, float)
    assert fill(Outer, {"name": "n"}, where="f") == Outer("n")


def test_an_unknown_key_names_the_known_ones_and_the_closest() -> None:
    text = fault({"epoch": 1}, Training)
    assert text.startswith("unknown key ['epoch'] in tasks/x/y.toml; known: ['activations', ")
    assert text.endswith("; instead: epochs")


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({}, "missing key 'name'; instead: name = a string"),
        ({"name": 1}, "name: 1 is not a string"),
        ({"name": "n", "count": True}, "count: True is true or false, not a whole number"),
        ({"name": "n", "count": 2.0}, "count: 2.0 is not a whole number"),
        ({"name": "n", "rate": True}, "rate: True is true or false, not a number"),
        ({"name": "n", "rate": "0.5"}, "rate: '0.5' is a string, not a number"),
        ({"name": "n", "rate": float("nan")}, "rate: nan is not a number"),
        ({"name": "n", "on": 1}, "on: 1 is not true or false"),
        ({"name": "n", "rate": 1.5}, "rate: 1.5 is too large; instead: at most 1.0"),
        ({"name": "n", "rate": -1}, "rate: -1.0 is too small; instead: at least 0.0"),
        ({"name": "n", "mode": "c"}, "mode: unknown value 'c'; instead: one of ['a', 'b']"),
        ({"name": "n", "words": "x"}, "words: 'x' is a string, not a list"),
        ({"name": "n", "words": ["x", 2]}, "words[2]: 2 is not a string"),
        ({"name": "n", "parts": [{"size": 1}, {"size": 0}]}, "parts[2].size: 0 is too small; instead: at least 1"),
        ({"name": "n", "parts": [{}]}, "missing key 'parts[1].size'; instead: size = a whole number"),
        ({"name": "n", "parts": [3]}, "parts[1]: 3 is not a table"),
        ({"name": "n", "more": {"z": 1}}, "more.z: 1 is not a table"),
    ],
)
def test_a_fault_says_what_where_and_what_instead(table: dict[str, object], text: str) -> None:
    assert fault(table) == f"tasks/x/y.toml: {text}"


def test_all_faults_are_told_at_once() -> None:
    table = {"nam": "n", "rate": 2, "count": "x", "on": 0, "mode": "q", "words": 1, "folder": 2}
    text = fault(table)
    assert text.startswith("tasks/x/y.toml: 8 faults\n  unknown key ['nam'] in tasks/x/y.toml; known: ")
    assert len(text.splitlines()) == 7
    assert text.endswith("\n  and 3 more")


@given(
    st.dictionaries(
        st.sampled_from([*(f.name for f in fields(Training)), "epoch", ""]),
        st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.lists(st.integers(), max_size=2),
                  st.dictionaries(st.text(max_size=2), st.integers(), max_size=1), st.dates()),
    )
)  # fmt: skip
def test_fill_gives_a_valid_value_or_a_user_error(table: dict[str, object]) -> None:
    try:
        made = fill(Training, table, where="f")
    except UserError:
        return
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    assert asdict(made) == asdict(Training()) | given
    assert made.epochs >= 1
    assert made.bits in (4, 8, 16, 32)
    assert fill(Training, asdict(made), where="f") == made


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_domain_loads(name: str) -> None:
    domain = Domain.load(name)
    assert domain.name == name
    assert domain.title
    assert domain.description
    assert domain.tasks
    for task in domain.tasks:
        assert task.title
        assert (assets.ROOT / "tasks" / name) in task.sources[0].path.parents
        assert domain.task(task.name) is task


def test_the_finance_domain_is_what_the_readme_promises() -> None:
    domain = Domain.load("finance")
    assert domain.training == Training(glossary="finance")  # the file spells out the defaults, for people to see
    lm, regulation, terms = domain.tasks
    assert (lm.name, lm.kind, lm.settings["share"]) == ("lm", "lm", 0.3)
    parts = {(source.part, source.language) for source in lm.sources}
    assert parts == {("domain", "en"), ("domain", "zh"), ("general", "en"), ("general", "zh")}
    assert (regulation.name, regulation.kind) == ("regulation", "classify")
    assert [source.path.name for source in regulation.sources] == ["cfpb.jsonl"]
    assert (terms.name, terms.kind) == ("terms", "terms")


def test_a_folder_of_ones_own(law: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(law.parent)
    for given_as in (str(law), "./law", "law"):
        domain = Domain.load(given_as)
        assert (domain.name, domain.title, domain.description) == ("law", "Law", "")
        assert domain.training == Training(epochs=4)
        assert [task.name for task in domain.tasks] == ["court", "lm"]
        assert domain.task("lm").sources == (Source(law / "data" / "law.jsonl", "domain", "en", "law"),)
        assert domain.hashes == {p.name: sha256(p.read_bytes()).hexdigest() for p in sorted(law.iterdir())}
    monkeypatch.chdir(law)
    assert Domain.load(".").name == "law"


def test_values_are_frozen(law: Path) -> None:
    domain = Domain.load(str(law))
    with pytest.raises(FrozenInstanceError):
        domain.training.epochs = 9  # type: ignore[misc]
    with pytest.raises(TypeError):
        domain.task("lm").settings["share"] = 1  # type: ignore[index]


def test_hashes_change_with_their_file_only(law: Path) -> None:
    before = Domain.load(str(law)).hashes
    (law / "lm.toml").write_text(TASK + "\n# a comment")
    after = Domain.load(str(law)).hashes
    assert {name for name in before if before[name] != after[name]} == {"lm.toml"}


def test_an_unknown_domain_names_the_known_and_the_closest() -> None:
    with pytest.raises(UserError, match=r"unknown domain 'finanse'; instead: 'finance' \(one of \['biored', 'finance'"):
        Domain.load("finanse")


def test_an_unknown_task_names_the_known_and_the_closest(law: Path) -> None:
    with pytest.raises(
        UserError, match=r"unknown task 'cort' in domain law; instead: 'court' \(one of \['court', 'lm'\]\)"
    ):
        Domain.load(str(law)).task("cort")


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("domain.toml", None, "no domain.toml here"),
        ("domain.toml", b"title = Law", "not valid TOML: "),
        ("domain.toml", "title = '法'".encode("gb18030"), "not UTF-8 at byte 9"),
        ("domain.toml", b"title = 'x'\nepochs = 2", "unknown key ['epochs'] in "),
        ("domain.toml", b"title = 'x'\n[training]\nepochs = 0", "epochs: 0 is too small"),
        ("lm.toml", b"kind = 'lm'\ntitle = 'x'\nsources = []", "no source"),
        ("lm.toml", TASK.replace("part", "prat").encode(), "unknown key ['sources[1].prat'] in "),
        ("lm.toml", TASK.replace('"domain"', '"domane"').encode(), "sources[1].part: unknown value 'domane'"),
        ("lm.toml", (TASK + TASK[TASK.index("[[") :]).encode(), "two sources are called 'law'"),
        ("lm.toml", TASK.replace("[settings]", "").encode(), "unknown key ['share'] in "),
    ],
)
def test_a_broken_file_is_named(law: Path, file: str, content: bytes | None, text: str) -> None:
    (law / file).unlink()
    if content is not None:
        (law / file).write_bytes(content)
    with pytest.raises(UserError) as caught:
        Domain.load(str(law))
    assert text in str(caught.value)
    assert str(law) in str(caught.value)
    assert content is None or file in str(caught.value)


def test_a_domain_without_task_is_refused(law: Path) -> None:
    for name in ("lm.toml", "court.toml"):
        (law / name).unlink()
    with pytest.raises(UserError, match="no task here"):
        Domain.load(str(law))


def test_config_lies_over_the_files_and_overrides_over_both(law: Path, tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text("[training]\nepochs = 5\nrank = 8\n[tasks.lm]\nshare = 0.4\ntokens = 7")
    domain = Domain.load(str(law), config=config)
    assert domain.training == Training(epochs=5, rank=8)
    assert dict(domain.task("lm").settings) == {"share": 0.4, "tokens": 7}
    assert dict(domain.task("court").settings) == {"labels": [1]}
    settings = ("epochs=6", "training.alpha = 9", "lm.share=0.5", "attention=eager", "lm.mode=two words", "lm.on=true")
    domain = Domain.load(str(law), config=config, overrides=settings)
    assert domain.training == Training(epochs=6, rank=8, alpha=9, attention="eager")
    assert dict(domain.task("lm").settings) == {"share": 0.5, "tokens": 7, "mode": "two words", "on": True}
    assert domain.task("lm").origin == f"{law / 'lm.toml'} with {config} with --set"
    assert domain.task("court").origin == str(law / "court.toml")
    assert Domain.load(str(law)).training == Training(epochs=4)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["epohs=2"], "unknown key ['epohs'] in --set; known: ['activations', "),
        (["epohs=2"], "; instead: epochs"),
        (["epochs=two"], "--set: epochs: 'two' is a string, not a whole number"),
        (["epochs=2\nrank=3"], "epochs: '2\\nrank=3' is a string, not a whole number"),
        (["epochs"], "--set: 'epochs' sets nothing; instead: KEY=VALUE or TASK.KEY=VALUE"),
        (["=2"], "--set: '=2' sets nothing"),
        (["lmm.share=1"], "--set: unknown task 'lmm'; instead: 'lm' (one of ['court', 'lm'])"),
        (["bits=5", "rank=0"], "--set: 2 faults\n  rank: 0 is too small"),
    ],
)
def test_a_wrong_override_is_blamed_on_set(law: Path, overrides: list[str], text: str) -> None:
    with pytest.raises(UserError) as caught:
        Domain.load(str(law), overrides=overrides)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[trainig]\nepochs = 1", "unknown key ['trainig'] in "),
        ("[training]\nepochs = 0", "epochs: 0 is too small"),
        ("[tasks.lmm]\nshare = 1", "unknown task 'lmm'; instead: 'lm'"),
        ("[tasks]\nlm = 1", "tasks.lm: 1 is not a table"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_wrong_config_is_blamed_on_its_file(law: Path, tmp_path: Path, content: str | None, text: str) -> None:
    config = tmp_path / "mine.toml"
    if content is not None:
        config.write_text(content)
    with pytest.raises(UserError) as caught:
        Domain.load(str(law), config=config)
    assert text in str(caught.value)
    assert str(config) in str(caught.value)
