"""`extract` by many workers: every document once, in the bytes of one process, whoever is killed on the way."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from domainkit import extract as story
from domainkit import parts
from domainkit.data.jsonl import write_jsonl
from domainkit.documents import Input, chunks
from domainkit.extract import Request, extract
from domainkit.kinds import CHUNK
from domainkit.parts import SIZE, _Ahead
from domainkit.types import Example, UserError
from domainkit.workers import Workers
from tests.clinic import Clinic, make_clinic, note
from tests.stubbed import KILL, Stub, Stubbed
from tests.test_recipes import domainkit as command

ROOT = Path(__file__).resolve().parents[1]
SHARD = SIZE * CHUNK  # short documents

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not find_spec("datatrove"), reason="datatrove is missing: pip install 'domainkit[workers]'"),
]


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Iterator[Clinic]:
    folder = tmp_path_factory.mktemp("clinic")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOMAINKIT_CACHE", str(folder / "cache"))
        yield make_clinic(folder)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(story.parts, "Part", Stubbed)
    monkeypatch.setattr(story, "load", lambda *_, **__: Stub(tmp_path / "alone" / "parts"))
    (tmp_path / "alone").mkdir()


def documents(folder: Path, count: int, kill: int | None = None) -> Path:
    path = folder / "notes.jsonl"
    write_jsonl(path, (Example(KILL if i == kill else f"Note {i}.", id=f"n{i}") for i in range(count)))
    return path


def ids(path: Path) -> list[str]:
    return [json.loads(row)["id"] for row in path.read_text().splitlines()]


def test_a_real_run_writes_the_same_bytes(clinic: Clinic, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", (note(i, i % 3) for i in range(SHARD + 40)))
    (tmp_path / "b.txt").write_text(note(7).text)
    line = ["extract", str(clinic.run), str(tmp_path / "a.jsonl"), str(tmp_path / "b.txt"), "--out"]
    assert command(*line, str(tmp_path / "one.jsonl")).code == 0
    ended = command(*line, str(tmp_path / "two.jsonl"), "--workers", "2")
    assert (ended.code, ended.out) == (0, f"documents: {tmp_path / 'two.jsonl'}, {SHARD + 41} of them\n")
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.txt", "one.jsonl", "two.jsonl"]


@pytest.mark.usefixtures("stub")
def test_a_killed_workers_shards_are_done_again(clinic: Clinic, tmp_path: Path) -> None:
    """20,000 documents; one process is killed in the middle of a shard, and the run goes on without being asked."""
    request = Request(clinic.run, (documents(tmp_path, 20_000, kill=11_111),), tmp_path / "whole.jsonl")
    (tmp_path / "alone" / "killed").touch()
    extract(request)
    done = extract(replace(request, out=tmp_path / "out.jsonl", workers=Workers(2)))
    assert (tmp_path / "killed").exists() and done.documents == 20_000
    assert ids(tmp_path / "out.jsonl") == [f"n{i}" for i in range(20_000)]
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    again = Counter((tmp_path / "read").read_text().split())
    assert len(again) == 20_000 and sum(again.values()) <= 20_000 + 2 * SHARD  # only what both had begun


@pytest.mark.slow
def test_all_killed_and_asked_again(clinic: Clinic, tmp_path: Path) -> None:
    """The whole run is killed, its workers too; asked again it does what is left."""
    request = Request(clinic.run, (documents(tmp_path, 20_000),), tmp_path / "out.jsonl", workers=Workers(2))
    code = (
        "import sys; from pathlib import Path\n"
        "from domainkit import extract\n"
        "from tests.stubbed import Stubbed\n"
        "if __name__ == '__main__':\n"
        "    extract.parts.Part = Stubbed\n"
        "    run, notes, out = map(Path, sys.argv[1:])\n"
        "    extract.extract(extract.Request(run, (notes,), out, workers=extract.Workers(2)))\n"
    )
    (tmp_path / "go.py").write_text(code)
    begun = [sys.executable, str(tmp_path / "go.py"), str(clinic.run), str(request.inputs[0]), str(request.out)]
    where = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(begun, cwd=ROOT, env=where, start_new_session=True, stderr=subprocess.DEVNULL)
    marks = tmp_path / "out.jsonl.parts" / "marks" / "completions"
    while process.poll() is None and not (marks.exists() and len(list(marks.iterdir())) >= 5):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    complete = len(list(marks.iterdir()))
    assert 5 <= complete < 40 and not request.out.exists()
    (tmp_path / "read").unlink()
    assert subprocess.run(begun, cwd=ROOT, env=where, capture_output=True, timeout=120).returncode == 0
    assert ids(request.out) == [f"n{i}" for i in range(20_000)]
    assert len((tmp_path / "read").read_text().split()) == 20_000 - complete * SHARD
    assert not marks.exists()


@pytest.mark.usefixtures("stub", "at_once")
@pytest.mark.parametrize("change", ["documents", "summary"])
def test_what_was_begun_with_something_else_is_refused(
    clinic: Clinic, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(clinic.run, (documents(tmp_path, 2 * SHARD),), tmp_path / "out.jsonl", workers=Workers(2))

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parts, "_together", stop)
        extract(request)
    if change == "documents":
        write_jsonl(request.inputs[0], (Example("Other.", id=f"n{i}") for i in range(2 * SHARD)))
    asked = replace(request, summary="summary" if change == "summary" else "")
    with pytest.raises(UserError, match=r"out\.jsonl\.parts: holds what was begun with other.*--overwrite"):
        extract(asked)
    extract(replace(asked, overwrite=True))
    assert len(ids(request.out)) == 2 * SHARD


@pytest.mark.usefixtures("stub")
def test_workers_that_always_die_are_no_endless_loop(clinic: Clinic, tmp_path: Path) -> None:
    request = Request(clinic.run, (documents(tmp_path, 9),), tmp_path / "out.jsonl", workers=Workers(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(story.parts, "Part", Deadly)
        with pytest.raises(UserError, match="killed before they completed a shard"):
            extract(request)


class Deadly(Stubbed):
    def __call__(self, number: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        ("spark", r"no engine 'spark'; instead: one of \['datatrove', 'ray'\]"),
        ("nowhere.json", "no engine 'nowhere.json'"),
    ],
)
def test_an_engine_that_nobody_knows_is_refused(engine: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        Workers(2, engine).check()


def test_what_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domainkit.workers.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"datatrove is not installed.*domainkit\[workers\]"):
        Workers(2).check()


def test_a_process_goes_along_and_can_go_back(tmp_path: Path) -> None:
    inputs = (Input(documents(tmp_path, 9 * CHUNK + 1), "jsonl"),)
    every = list(chunks(inputs))
    ahead = _Ahead(inputs)
    for first, count in ((0, 2), (2, 2), (5, 1), (1, 3), (8, 4)):
        assert ahead.take(first, count) == every[first : first + count]


SBATCH = """#!/bin/bash
# A queue of one machine: the array's tasks run one after another
script="${@: -1}"
if grep -q launch_pickled "$script"; then
  last=$(grep -oP '(?<=--array=0-)[0-9]+' "$script")
  for task in $(seq 0 $last); do
    SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=here RUN_OFFSET=0 bash "$script" >/dev/null 2>&1
  done
fi
echo "Submitted batch job 7"
"""


@pytest.mark.slow
@pytest.mark.usefixtures("stub")
def test_a_slurm_job(clinic: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a queue that stands in for Slurm's."""
    tools = {"sbatch": SBATCH, "srun": '#!/bin/bash\nshift 3\nexec "$@"\n', "squeue": "#!/bin/bash\n",
             "scontrol": "#!/bin/bash\necho here\n"}  # fmt: skip
    (tmp_path / "bin").mkdir()
    for name, text in tools.items():
        path = tmp_path / "bin" / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    options = tmp_path / "slurm.json"
    options.write_text(json.dumps({"partition": "cpu", "time": "1:00:00", "tasks_per_job": 2, "env_command": "true"}))
    request = Request(
        clinic.run, (documents(tmp_path, 3 * SHARD + 1),), tmp_path / "out.jsonl", workers=Workers(engine=str(options))
    )
    extract(request)
    assert ids(request.out) == [f"n{i}" for i in range(3 * SHARD + 1)]
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/bash\necho Submitted batch job 8\n")
    lost = replace(request, out=tmp_path / "lost.jsonl")
    with pytest.raises(UserError, match="the job has ended, and 4 of 4 shards are not complete"):
        extract(lost)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("ray"), reason="Ray is not installed")
@pytest.mark.usefixtures("stub")
def test_ray(clinic: Clinic, tmp_path: Path) -> None:
    request = Request(clinic.run, (documents(tmp_path, 3 * SHARD + 1),), tmp_path / "out.jsonl")
    extract(replace(request, workers=Workers(2, "ray")))
    assert ids(request.out) == [f"n{i}" for i in range(3 * SHARD + 1)]
