"""Rows of data sets: formats, streaming, and what is said about data that cannot be read."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from coldpress.data.texts.rows import rows, tables
from coldpress.errors import ColdpressError

ROWS = [{"prompt": "What is tin?", "response": "A metal."}, {"prompt": "Où ?", "response": 'Là,\n"ici".'}]
CSV = 'prompt,response\nWhat is tin?,A metal.\nOù ?,"Là,\n""ici""."\n'


def written(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return file


def lines(values: list[dict]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", lines(ROWS)),
        ("a.json", lines(ROWS)),
        ("a.json", json.dumps(ROWS)),
        ("a.json", json.dumps(ROWS, indent=2)),
        ("a.json", "\n\n " + json.dumps(ROWS, ensure_ascii=False) + "\n"),
        ("a.jsonl.gz", lines(ROWS)),
        ("a.csv", CSV),
        ("a.csv", "\ufeff" + CSV),
        ("a.tsv.gz", CSV.replace("prompt,", "prompt\t").replace("?,", "?\t")),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, text: str):
    file = written(tmp_path, name, text)
    assert list(rows(None, [file])) == ROWS


def test_a_text_file_has_a_row_for_each_line(tmp_path: Path):
    file = written(tmp_path, "a.txt", "one\n\n  two\nthree")
    assert list(rows("text", [file])) == [{"text": "one"}, {"text": ""}, {"text": "  two"}, {"text": "three"}]


def test_the_name_of_the_format_stands_above_the_suffix(tmp_path: Path):
    file = written(tmp_path, "train.data", lines(ROWS))
    assert list(rows("json", [file])) == ROWS


def test_files_come_in_the_order_named_and_globs_in_that_of_names(tmp_path: Path):
    for name in "cab":
        written(tmp_path, f"{name}.jsonl", lines([{"n": name}]))
    found = rows("json", [str(tmp_path / "c.jsonl"), str(tmp_path / "[abc].jsonl")])
    assert [row["n"] for row in found] == ["c", "a", "b"], "a file named twice is read once"


@pytest.mark.parametrize("as_array", [True, False])
def test_a_file_is_read_as_far_as_rows_are_taken(tmp_path: Path, as_array: bool):
    many = [{"n": number, "text": "x" * 100} for number in range(5000)]
    text = json.dumps(many)[:-1] if as_array else lines(many)
    file = written(tmp_path, "many.json", text + "no JSON here")
    taken = rows("json", [file])
    assert [next(taken)["n"] for _ in range(4900)] == list(range(4900))
    with pytest.raises(ColdpressError, match="no JSON here"):
        list(taken)


def test_an_object_longer_than_what_is_read_at_once_is_whole(tmp_path: Path):
    long = [{"text": "é" * 300_000}, {"text": "]"}]
    assert list(rows("json", [written(tmp_path, "long.json", json.dumps(long))])) == long


def test_a_long_field_of_a_csv_file_is_whole(tmp_path: Path):
    [row] = rows("csv", [written(tmp_path, "long.csv", f"text\n{'a' * 200_000}\n")])
    assert len(row["text"]) == 200_000


def test_an_iterated_table_can_be_iterated_again(tmp_path: Path):
    [table] = tables(None, [written(tmp_path, "a.csv", CSV)])
    assert (table.format, list(table), list(table)) == ("csv", ROWS, ROWS)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "a.jsonl has no rows"),
        ("a.jsonl", "\n \n", "a.jsonl has no rows"),
        ("a.json", "[ ]", "a.json has no rows"),
        ("a.csv", "prompt,response\n", "a.csv has no rows"),
        ("a.csv", "", "a.csv has no rows"),
        ("a.txt", "", "a.txt has no rows"),
        ("a.jsonl", '{"a": 1}\n{"a": 2\n', r'a.jsonl, line 2: not JSON \(.*\): \{"a": 2\n'),
        ("a.jsonl", '{"a": 1}\n' + "w" * 500, r"line 2: not JSON \(Expecting value\): w{80}\n"),
        ("a.jsonl", '{"a": 1}\n7\n', "line 2: no object with fields: 7"),
        ("a.json", '[{"a": 1},\n{"a": }]', r'a.json, line 2: .*\(Expecting value\): \{"a": \}\]$'),
        ("a.json", '[{"a": 1}\n{"a": 2}]', r"line 2: .*',' should stand here"),
        ("a.json", '[{"a": 1},\n"b"]', 'line 2: .*an object with fields should stand here.*: "b"'),
        ("a.json", '[{"a": 1}', "',' should stand here.*: the end of the file"),
        ("a.json", '[{"a": 1}]\n[]', "line 2: .*more follows after the array"),
        ("a.csv", "a,b\n1,2,3\n", "a.csv, line 2: 3 values, but 2 columns"),
        ("a.csv", "a,b,a\n1,2,3\n", "several columns are named 'a'"),
        ("a.csv", 'a,b\n1,"2\n', "not CSV"),
    ],
)
def test_broken_files_are_named_with_the_place(tmp_path: Path, name: str, text: str, message: str):
    with pytest.raises(ColdpressError, match=message):
        list(rows(None, [written(tmp_path, name, text)]))


def test_files_that_are_no_text_are_named(tmp_path: Path):
    binary, packed = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    binary.write_bytes(b'{"a": "\xff"}\n')
    packed.write_bytes(gzip.compress(lines(ROWS * 100).encode())[:-20])
    with pytest.raises(ColdpressError, match=r"a\.jsonl is not a text file in UTF-8"):
        list(rows(None, [binary]))
    with pytest.raises(ColdpressError, match=r"cannot read .*b.jsonl.gz"):
        list(rows(None, [packed]))


def test_what_cannot_be_found_is_said_before_anything_is_read(tmp_path: Path):
    good = written(tmp_path, "train.jsonl", lines(ROWS))
    with pytest.raises(ColdpressError, match=r"trian.jsonl does not exist") as caught:
        rows("json", [good, tmp_path / "trian.jsonl"])
    assert "train.jsonl" in (caught.value.hint or "")
    with pytest.raises(ColdpressError, match=r"no data file matches .*\*.csv"):
        rows(None, [str(tmp_path / "*.csv")])
    with pytest.raises(ColdpressError, match="is a folder"):
        rows("json", [tmp_path])
    with pytest.raises(ColdpressError, match="data_name 'json' needs files"):
        rows("json")
    with pytest.raises(ColdpressError, match="no split 'test'"):
        rows("json", [good], split="test")


def test_names_and_suffixes_that_are_not_known(tmp_path: Path):
    file, other = written(tmp_path, "a.jsonl", lines(ROWS)), written(tmp_path, "b.csv", CSV)
    with pytest.raises(ColdpressError, match="unknown data_name 'jsonl'") as caught:
        rows("jsonl", [file])
    assert caught.value.hint == "did you mean 'json'?"
    with pytest.raises(ColdpressError, match="unknown data_name 'parkuet'"):
        rows("parkuet")
    with pytest.raises(ColdpressError, match=r"suffix '\.xlsx' is not known.*\.jsonl.*\.csv"):
        rows(None, [written(tmp_path, "a.xlsx", "")])
    with pytest.raises(ColdpressError, match=r"several formats: .*a.jsonl \(json\), .*b.csv \(csv\)"):
        rows(None, [file, other])
    with pytest.raises(ColdpressError, match="is a path") as caught:
        rows(str(file))
    assert "--data_files" in (caught.value.hint or "")


@pytest.mark.parametrize("library", ["pyarrow", "datasets"])
def test_a_library_that_is_missing_is_named_with_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
):
    for module in ("pyarrow", "pyarrow.parquet", "datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ColdpressError, match=f"needs the library {library}") as caught:
        if library == "pyarrow":
            rows(None, [written(tmp_path, "a.parquet", "PAR1")])
        else:
            rows("owner/set")
    assert caught.value.hint == "pip install 'coldpress[data]'"


class ParquetFile:
    """As much of pyarrow.parquet.ParquetFile as is used: batches of rows, read when they are asked for."""

    def __init__(self, path: Path):
        if Path(path).read_bytes()[:4] != b"PAR1":
            raise ValueError("Parquet magic bytes not found in footer.\nMore.")

    def __enter__(self) -> ParquetFile:
        return self

    def __exit__(self, *error: object) -> None: ...

    def iter_batches(self, batch_size: int) -> object:
        return (SimpleNamespace(to_pylist=lambda row=row: [row]) for row in ROWS)


def test_parquet_files_are_read_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    parquet = ModuleType("pyarrow.parquet")
    parquet.ParquetFile = ParquetFile  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyarrow", ModuleType("pyarrow"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    assert list(rows(None, [written(tmp_path, "a.parquet", "PAR1")])) == ROWS
    with pytest.raises(ColdpressError, match=r"cannot read .*a.parquet: Parquet magic bytes not found in footer\.$"):
        list(rows(None, [written(tmp_path, "a.parquet", "none")]))


def hub(monkeypatch: pytest.MonkeyPatch, answer: object) -> list[dict]:
    """A stand-in for the library ``datasets`` that gives ``answer``, or raises it; what it was asked is in the list."""
    asked: list[dict] = []

    def load_dataset(path: str, name: str | None, **options: object) -> object:
        asked.append({"path": path, "name": name, **options})
        if isinstance(answer, Exception):
            raise answer
        return answer

    module = ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


def test_a_data_set_of_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch):
    asked = hub(monkeypatch, iter(ROWS))
    [table] = tables("owner/set", split="validation", subset="small")
    assert list(table) == ROWS
    streamed = {"data_files": None, "split": "validation", "streaming": True}
    assert asked == [{"path": "owner/set", "name": "small", **streamed}]


def test_a_hub_that_fails_is_said_plainly(monkeypatch: pytest.MonkeyPatch):
    def breaks_off() -> object:
        yield ROWS[0]
        raise ConnectionError("reset by peer\nlong trace")

    hub(monkeypatch, FileNotFoundError("Couldn't reach 'owner/set' on the Hub"))
    with pytest.raises(ColdpressError, match=r"cannot read the data set 'owner/set'.*: Couldn't reach") as caught:
        rows("owner/set")
    assert "--data_files" in (caught.value.hint or "")
    hub(monkeypatch, breaks_off())
    with pytest.raises(ColdpressError, match=r"reset by peer\n"):
        list(rows("wikitext"))
