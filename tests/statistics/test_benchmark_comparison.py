import json

import numpy as np
import pytest

from rdc.cli import main
from rdc.errors import ConfigError, DataError
from rdc.statistics.benchmark_comparison import compare_benchmarks, read_benchmarks
from tests.bounds import bounded
from tests.tolerances import FITTED, SIGNIFICANT

RANDOM = np.random.Generator(np.random.Philox(key=3))


def rounds(median, count=9, noise=0.03):
    return (median * np.exp(noise * RANDOM.normal(size=count))).tolist()


def write(path, benchmarks, cpu="EPYC"):
    entries = [{"fullname": name, "stats": {"data": data}} for name, data in benchmarks.items()]
    info = {"machine_info": {"cpu": {"brand_raw": cpu}}, "commit_info": {"id": "abc"}, "benchmarks": entries}
    path.write_text(json.dumps(info))
    return path


OLD = {
    "steady": rounds(1.0),
    "worse": rounds(0.2),
    "better": rounds(0.05),
    "noisy": [0.5, 0.9, 1.0, 1.3, 2.0],
    "gone": rounds(1),
}
NEW = {
    "steady": rounds(1.02),
    "worse": rounds(0.27),
    "better": rounds(0.03),
    "noisy": [0.6, 0.8, 1.25, 1.5, 1.6],
    "here": rounds(1),
}


@pytest.fixture
def files(tmp_path):
    return write(tmp_path / "old.json", OLD), write(tmp_path / "new.json", NEW)


def test_verdicts(files):
    found = compare_benchmarks(*map(read_benchmarks, files))
    by_name = {change.name: change for change in found["changes"]}
    assert {name: change.verdict for name, change in by_name.items()} == {
        "steady": "same",
        "worse": "slower",
        "better": "faster",
        "noisy": "same",
    }
    worse = by_name["worse"]
    assert (
        worse.low <= worse.ratio <= worse.high
        and worse.ratio == pytest.approx(1.35, rel=FITTED)
        and worse.p_value < SIGNIFICANT
    )
    assert found["only_old"] == ["gone"] and found["only_new"] == ["here"]
    assert found["changes"][0].ratio >= found["changes"][-1].ratio


def test_threshold(files):
    old, new = map(read_benchmarks, files)
    names = [c.name for c in compare_benchmarks(old, new, threshold=0.5)["changes"] if c.verdict == "slower"]
    assert names == []


def test_the_same_run_has_no_change(files):
    old = read_benchmarks(files[0])
    assert {change.verdict for change in compare_benchmarks(old, old)["changes"]} == {"same"}


def test_false_alarms_are_rare():
    """Two runs of the same code: noise alone passes for a slow-down in few cases."""
    alarms = 0
    for trial in range(100):
        random = np.random.Generator(np.random.Philox(key=trial))
        runs = [
            {"path": "", "machine": "", "commit": "", "rounds": {"x": np.exp(0.1 * random.normal(size=7)).tolist()}}
            for _ in "ab"
        ]
        alarms += compare_benchmarks(*runs, threshold=0.0, draws=500)["changes"][0].verdict != "same"
    assert alarms <= 10


def test_relative_divides_the_machine_out(tmp_path):
    base = {f"b{i}": rounds(0.1 * (i + 1)) for i in range(6)}
    slow = {name: [2 * s for s in data] for name, data in base.items()}
    slow["b0"] = [1.5 * s for s in slow["b0"]]
    old, new = read_benchmarks(write(tmp_path / "a", base)), read_benchmarks(write(tmp_path / "b", slow, cpu="Atom"))
    plain, relative = compare_benchmarks(old, new), compare_benchmarks(old, new, relative=True)
    assert sum(c.verdict == "slower" for c in plain["changes"]) == 6
    assert [c.name for c in relative["changes"] if c.verdict == "slower"] == ["b0"]
    assert plain["drift"] == pytest.approx(2) and any("EPYC and Atom" in note for note in plain["notes"])


def test_what_is_refused(tmp_path, files):
    with pytest.raises(ConfigError, match="no such file"):
        read_benchmarks(tmp_path / "nothing.json")
    (tmp_path / "text.json").write_text("[1, 2")
    with pytest.raises(DataError, match="JSON of pytest-benchmark"):
        read_benchmarks(tmp_path / "text.json")
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(DataError):
        read_benchmarks(tmp_path / "list.json")
    with pytest.raises(ConfigError, match="seconds of every round; bare"):
        read_benchmarks(write(tmp_path / "bare.json", {"bare": []}))
    other = read_benchmarks(write(tmp_path / "other.json", {"other": [1.0, 1.1]}))
    with pytest.raises(ConfigError, match="none in common"):
        compare_benchmarks(read_benchmarks(files[0]), other)
    with pytest.raises(ConfigError, match="threshold"):
        compare_benchmarks(other, other, threshold=-1)


ENTRY = {"fullname": "a", "stats": {"data": [1.0]}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 10**5, "nested too deeply; expected the JSON of pytest-benchmark"),
        (b'{"benchmarks": [{"fullname": "a", "stats": {"data": [NaN]}}]}', "NaN is not JSON"),
        (b"\xff\xfe{", "not JSON"),
        (b"", "not JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ({"benchmarks": 3}, "benchmarks: expected a list"),
        ({"benchmarks": {"a": ENTRY}}, "benchmarks: expected a list"),
        ({"benchmarks": [3]}, "benchmarks.0.: expected an object"),
        ({"benchmarks": [{"stats": {}}]}, "fullname is missing"),
        ({"benchmarks": [{**ENTRY, "fullname": ["a"]}]}, "fullname: expected"),
        ({"benchmarks": [{**ENTRY, "stats": {"data": "1"}}]}, "data: expected a list"),
        ({"benchmarks": [{**ENTRY, "stats": {"data": ["1"]}}]}, "data.0.: expected a number"),
        ({"benchmarks": [{**ENTRY, "stats": {"data": [True]}}]}, "data.0.: expected a number"),
        ({"benchmarks": [{**ENTRY, "stats": {"data": [10**400]}}]}, "data.0.: expected a number"),
        ({"benchmarks": [{**ENTRY, "stats": {"data": [1e300]}}]}, "data.0.: expected a number"),
        ({"benchmarks": [{**ENTRY, "stats": {"data": [1e-300]}}]}, "seconds of every round; a has none"),
        ({"benchmarks": [{**ENTRY, "stats": {"data": [-1.0]}}]}, "data.0.: expected a number >= 0"),
        ({"benchmarks": [{"fullname": "a\n" * 10**5, "stats": {}}]}, "seconds of every round; a.n"),
        ({"benchmarks": [ENTRY], "machine_info": [1]}, "machine_info: expected an object"),
        ({"benchmarks": [ENTRY], "commit_info": "abc"}, "commit_info: expected an object"),
        (
            {"benchmarks": [{**ENTRY, "stats": {"data": [1] * 100_001}}]},
            "100,001 rounds in all; expected at most 100,000",
        ),
    ],
)
def test_files_of_anything(tmp_path, content, words):
    (tmp_path / "b.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with bounded(), pytest.raises((ConfigError, DataError), match=words) as caught:
        read_benchmarks(tmp_path / "b.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_odd_machines_and_encodings(tmp_path, encoding):
    for machine, expected in (
        ({"cpu": "x"}, None),
        ({"cpu": {"brand_raw": ["a\n"]}}, r"['a\n']"),
        ({"machine": "arm"}, "arm"),
    ):
        content = {"benchmarks": [ENTRY], "machine_info": machine, "commit_info": {"id": 7}}
        (tmp_path / "b.json").write_bytes(json.dumps(content).encode(encoding))
        found = read_benchmarks(tmp_path / "b.json")
        assert (found["machine"], found["commit"], found["rounds"]) == (expected, "7", {"a": [1.0]})


def test_many_rounds_take_bounded_memory():
    run = {"path": "", "machine": "", "commit": "", "rounds": {"x": rounds(1.0, 20_000)}}
    with bounded(seconds=30):  # 5,000 draws of 20,000 rounds at once would be 800 MB
        change = compare_benchmarks(run, run, draws=500)["changes"][0]
    assert change.ratio == 1 and change.verdict == "same"


def test_pieces_change_nothing(files, monkeypatch):
    old, new = map(read_benchmarks, files)
    whole = compare_benchmarks(old, new)
    monkeypatch.setattr("rdc.statistics.benchmark_comparison._CHUNK", 1000)
    assert compare_benchmarks(old, new) == whole


def test_command(files, capsys):
    old, new = map(str, files)
    assert main(["bench", "compare", old, new]) == 1
    out = capsys.readouterr().out
    assert (
        "slower" in out
        and "worse" in out
        and "2 of 4 benchmarks: no change beyond noise" in out
        and "only in old: gone" in out
    )
    many = write(files[0].parent / "many.json", {name: [1.0, 1.1, 1.2] for name in ("worse", *"abcdefg")})
    main(["bench", "compare", str(many), new])
    assert "only in old: a, b, c, d, e and 2 more (--json names them)" in capsys.readouterr().out
    assert main(["bench", "compare", old, old]) == 0
    assert "4 of 4" not in capsys.readouterr().out  # five benchmarks in the old file
    assert main(["bench", "compare", old, new, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["changes"][0]["name"]
    assert main(["bench", "compare", old, "nothing.json"]) == 2
    assert main(["bench", "contrast", old, new]) == 2
