"""indexers/sources/folder: what changed in a folder, what is gone, and what only seems to be gone"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from indexers.sources import folder as folder_module
from indexers.sources.folder import FolderOptions, FolderSource
from indexers.sources.source import Batch
from pipeline.errors import InvalidInput, SourceUnavailable, UnreadableSource

_TICKS = count(1_600_000_000)  # seconds, long ago: files that are settled, each with a time of its own
_NOBODY = 65_534


@dataclass
class Reader:
    """Runs a source as its caller does: batches are applied in order, the cursor is kept after each."""

    path: Path
    allow_empty: bool = False
    cursor: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    bodies: dict[str, str] = field(default_factory=dict)

    def run(self, *, stop_after: int | None = None) -> list[Batch]:
        source = FolderSource(FolderOptions(path=self.path, allow_empty=self.allow_empty))
        batches: list[Batch] = []
        for batch in source.read(dict(self.cursor), dict(self.keys)):
            if len(batches) == stop_after:
                break
            batches.append(batch)
            assert set(batch.removed) <= self.keys.keys(), "only what is known can be removed"
            for found in batch.found:
                self.keys[found.article.id] = found.key
                self.bodies[found.article.id] = found.article.body
            for article_id in batch.removed:
                del self.keys[article_id], self.bodies[article_id]
            if batch.cursor is not None:
                self.cursor = orjson.loads(orjson.dumps(batch.cursor))
        return batches


def _problems(batches: Iterable[Batch]) -> list[str]:
    return [problem for batch in batches for problem in batch.problems]


def _removed(batches: Iterable[Batch]) -> list[str]:
    return [article_id for batch in batches for article_id in batch.removed]


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    _settle(path)


def _settle(path: Path) -> None:
    moment = next(_TICKS)
    os.utime(path, (moment, moment))


def _jsonl(bodies: Mapping[str, str]) -> str:
    return "".join(json.dumps({"id": name, "body": body}, ensure_ascii=False) + "\n" for name, body in bodies.items())


def _csv(bodies: Mapping[str, str]) -> str:
    return "id,body\n" + "".join(f"{name},{body}\n" for name, body in bodies.items())


_TABLES = {"a.jsonl": _jsonl, "a.csv": _csv}


def test_a_folder_that_did_not_change_gives_nothing_the_second_time(tmp_path: Path) -> None:
    _write(tmp_path / "금리/a.jsonl", _jsonl({"1": "하나", "2": "둘"}))
    _write(tmp_path / "b.md", "본문")
    reader = Reader(tmp_path)
    reader.run()
    assert reader.keys == {"1": "금리/a.jsonl", "2": "금리/a.jsonl", "b": "b.md"}
    assert reader.run() == []


@pytest.mark.parametrize("name", _TABLES)
def test_a_changed_table_gives_its_articles_and_removes_those_it_has_not(tmp_path: Path, name: str) -> None:
    _write(tmp_path / name, _TABLES[name]({"1": "하나", "2": "둘", "3": "셋"}))
    reader = Reader(tmp_path)
    reader.run()
    _write(tmp_path / name, _TABLES[name]({"2": "둘째", "4": "넷"}))
    batches = reader.run()
    assert reader.bodies == {"2": "둘째", "4": "넷"}
    assert _removed(batches) == ["1", "3"]


def test_pages_are_changed_and_removed_one_by_one(tmp_path: Path) -> None:
    for name in ("a/1.md", "a/2.md", "b.html"):
        _write(tmp_path / name, f"본문 {name}")
    reader = Reader(tmp_path)
    reader.run()
    _write(tmp_path / "a/1.md", "새 본문")
    (tmp_path / "a/2.md").unlink()
    batches = reader.run()
    assert [found.key for batch in batches for found in batch.found] == ["a/1.md"]
    assert reader.bodies.keys() == {"a:1", "b"}
    assert reader.bodies["a:1"] == "새 본문"


@pytest.mark.parametrize("renamed", ["0.jsonl", "z/z.jsonl"])
def test_a_renamed_file_keeps_its_articles_without_removing_one(tmp_path: Path, renamed: str) -> None:
    _write(tmp_path / "a.jsonl", _jsonl({"1": "하나", "2": "둘"}))
    reader = Reader(tmp_path)
    reader.run()
    (tmp_path / renamed).parent.mkdir(exist_ok=True)
    (tmp_path / "a.jsonl").rename(tmp_path / renamed)
    batches = reader.run()
    assert reader.keys == {"1": renamed, "2": renamed}
    assert not _removed(batches)
    assert not _problems(batches)


def test_an_article_that_moves_to_a_later_file_is_never_removed(tmp_path: Path) -> None:
    _write(tmp_path / "a.jsonl", _jsonl({"1": "하나", "2": "둘"}))
    _write(tmp_path / "b.jsonl", _jsonl({"3": "셋"}))
    reader = Reader(tmp_path)
    reader.run()
    _write(tmp_path / "a.jsonl", _jsonl({"1": "하나"}))
    _write(tmp_path / "b.jsonl", _jsonl({"2": "둘", "3": "셋"}))
    assert not _removed(reader.run())
    assert reader.keys == {"1": "a.jsonl", "2": "b.jsonl", "3": "b.jsonl"}


def test_an_id_in_two_files_lives_until_both_have_lost_it(tmp_path: Path) -> None:
    _write(tmp_path / "a.jsonl", _jsonl({"1": "앞", "x": "y"}))
    _write(tmp_path / "b.jsonl", _jsonl({"1": "뒤"}))
    reader = Reader(tmp_path)
    assert "'1' in a.jsonl, b.jsonl" in _problems(reader.run())[0]
    assert reader.bodies["1"] == "뒤"
    assert reader.run() == []
    (tmp_path / "b.jsonl").unlink()
    assert not _removed(reader.run())
    assert (reader.bodies["1"], reader.keys["1"]) == ("앞", "a.jsonl")
    _write(tmp_path / "a.jsonl", _jsonl({"x": "y"}))
    assert _removed(reader.run()) == ["1"]


@pytest.mark.parametrize("cut", [b'{"id": "2", "bo', b"\xff\xfe\n"])
def test_a_half_written_table_removes_nothing_until_it_is_whole(tmp_path: Path, cut: bytes) -> None:
    path = tmp_path / "a.jsonl"
    _write(path, _jsonl({"1": "하나", "2": "둘", "3": "셋"}))
    reader = Reader(tmp_path)
    reader.run()
    _write(path, _jsonl({"1": "새로"}).encode() + cut)
    batches = reader.run()
    assert len(_problems(batches)) == 1
    assert reader.bodies == {"1": "새로", "2": "둘", "3": "셋"}
    _write(path, _jsonl({"1": "새로", "2": "둘"}))
    assert _removed(reader.run()) == ["3"]


@pytest.mark.parametrize("broken", [b"", b"no gzip"])
def test_a_file_that_cannot_be_read_keeps_its_articles_and_is_tried_again(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "a.jsonl.gz"
    reader = Reader(tmp_path)
    _write(path, gzip.compress(_jsonl({"1": "하나"}).encode()))
    reader.run()
    _write(path, broken)
    for _ in range(2):
        assert len(_problems(reader.run())) == 1
        assert reader.bodies == {"1": "하나"}
    _write(path, gzip.compress(_jsonl({"2": "둘"}).encode()))
    reader.run()
    assert reader.bodies == {"2": "둘"}


def test_a_file_renamed_while_it_is_written_loses_nothing_for_one_run(tmp_path: Path) -> None:
    _write(tmp_path / "a.jsonl", _jsonl({"1": "하나", "2": "둘"}))
    reader = Reader(tmp_path)
    reader.run()
    (tmp_path / "a.jsonl").unlink()
    _write(tmp_path / "b.jsonl", _jsonl({"1": "하나"}) + '{"id": "2", "bo')
    assert not _removed(reader.run())
    assert reader.keys == {"1": "b.jsonl", "2": "a.jsonl"}
    assert _removed(reader.run()) == ["2"], "a file that stays broken must not keep what is gone for ever"


def test_a_file_written_just_now_is_read_again_and_loses_nothing_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "_CLOCK_TICK_NS", 600 * 10**9)
    path = tmp_path / "a.jsonl"
    path.write_text(_jsonl({"1": "하나", "2": "둘"}), encoding="utf-8")
    reader = Reader(tmp_path)
    reader.run()
    path.write_text(_jsonl({"1": "셋째"}), encoding="utf-8")
    written = time.time_ns()
    assert not _removed(reader.run())
    path.write_text(_jsonl({"1": "넷째"}), encoding="utf-8")  # the same size, in the same tick of a coarse clock
    os.utime(path, ns=(written, written))
    reader.run()
    assert reader.bodies == {"1": "넷째", "2": "둘"}
    _settle(path)
    assert _removed(reader.run()) == ["2"]


def test_a_file_dated_far_ahead_is_settled(tmp_path: Path) -> None:
    _write(tmp_path / "a.md", "본문")
    os.utime(tmp_path / "a.md", (4_000_000_000, 4_000_000_000))
    reader = Reader(tmp_path)
    reader.run()
    assert reader.run() == []


@pytest.mark.parametrize("allow_empty", [False, True])
def test_a_missing_folder_removes_nothing(tmp_path: Path, allow_empty: bool) -> None:
    _write(tmp_path / "share/a.md", "본문")
    reader = Reader(tmp_path / "share", allow_empty=allow_empty)
    reader.run()
    (tmp_path / "share").rename(tmp_path / "unmounted")
    with pytest.raises(SourceUnavailable, match=r"share gives nothing: .*not mounted"):
        reader.run()
    (tmp_path / "unmounted").rename(tmp_path / "share")
    assert reader.run() == []
    assert reader.keys == {"a": "a.md"}


def test_an_empty_folder_removes_articles_only_where_that_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    _write(path, _jsonl({str(n): "글" for n in range(1_200)}))
    reader = Reader(tmp_path)
    reader.run()
    path.unlink()
    with pytest.raises(SourceUnavailable, match=r"1,200 articles are known.*allow_empty"):
        reader.run()
    assert len(reader.keys) == 1_200
    reader.allow_empty = True
    assert max(len(batch.removed) for batch in reader.run()) == 500
    assert not reader.keys


def test_a_folder_that_was_always_empty_is_no_error(tmp_path: Path) -> None:
    assert not _problems(Reader(tmp_path).run())


def test_a_path_of_a_file_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "a.md", "본문")
    with pytest.raises(UnreadableSource, match="is no folder"):
        Reader(tmp_path / "a.md").run()


@contextmanager
def _without_rights() -> Iterator[Path]:
    """A folder that a user without privileges may read, as that user."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        before = os.geteuid()
        if before == 0:
            os.chown(name, _NOBODY, -1)
            os.seteuid(_NOBODY)
        try:
            yield Path(name)
        finally:
            os.seteuid(before)


def test_a_subfolder_that_cannot_be_listed_keeps_its_articles() -> None:
    with _without_rights() as folder:
        _write(folder / "a.md", "본문")
        _write(folder / "closed/b.md", "본문")
        reader = Reader(folder)
        reader.run()
        (folder / "closed").chmod(0)
        (folder / "a.md").unlink()
        batches = reader.run()
        (folder / "closed").chmod(0o755)
        assert _removed(batches) == ["a"]
        assert "closed cannot be looked at" in _problems(batches)[0]
        assert reader.run() == []


def test_a_folder_that_cannot_be_listed_removes_nothing() -> None:
    with _without_rights() as folder:
        _write(folder / "share/a.md", "본문")
        reader = Reader(folder / "share", allow_empty=True)
        reader.run()
        (folder / "share").chmod(0)
        with pytest.raises(SourceUnavailable, match="share"):
            reader.run()
        (folder / "share").chmod(0o755)
        assert reader.keys == {"a": "a.md"}


def test_a_file_without_rights_to_read_is_read_once_it_has_them() -> None:
    with _without_rights() as folder:
        _write(folder / "a.md", "본문")
        (folder / "a.md").chmod(0)
        reader = Reader(folder)
        assert "cannot be read" in _problems(reader.run())[0]
        (folder / "a.md").chmod(0o644)
        reader.run()
        assert reader.keys == {"a": "a.md"}


def test_an_article_is_looked_for_again_in_a_file_that_could_not_be_read() -> None:
    with _without_rights() as folder:
        _write(folder / "a.jsonl", _jsonl({"1": "앞"}))
        _write(folder / "b.jsonl", _jsonl({"1": "뒤", "2": "둘"}))
        reader = Reader(folder)
        reader.run()
        (folder / "a.jsonl").chmod(0)
        _write(folder / "b.jsonl", _jsonl({"2": "둘"}))
        assert not _removed(reader.run())
        assert reader.bodies["1"] == "뒤"
        (folder / "a.jsonl").chmod(0o644)
        reader.run()
        assert (reader.bodies["1"], reader.keys["1"]) == ("앞", "a.jsonl")


def test_a_link_to_nowhere_keeps_its_articles(tmp_path: Path) -> None:
    _write(tmp_path / "drive/a.md", "본문")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.md").symlink_to(tmp_path / "drive/a.md")
    reader = Reader(tmp_path / "folder")
    reader.run()
    (tmp_path / "drive").rename(tmp_path / "unmounted")
    assert len(_problems(reader.run())) == 1
    assert reader.keys == {"a": "a.md"}


def test_a_name_that_is_not_utf8_is_told_and_the_rest_is_read(tmp_path: Path) -> None:
    _write(tmp_path / "a.md", "본문")
    name = os.fsdecode("금리.jsonl".encode("cp949"))
    _write(tmp_path / name, _jsonl({"1": "하나"}))
    reader = Reader(tmp_path)
    assert "not UTF-8" in _problems(reader.run())[0]
    assert reader.keys == {"a": "a.md"}


def test_a_pipe_named_like_a_file_is_passed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.md")  # to open it would wait for ever
    assert not [found for batch in Reader(tmp_path).run() for found in batch.found]


@pytest.mark.parametrize("stop_after", range(5))
def test_a_run_that_was_broken_off_is_made_good_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    monkeypatch.setattr(folder_module, "_BATCH", 2)
    _write(tmp_path / "a.jsonl", _jsonl({str(n): "글" for n in range(5)}))
    _write(tmp_path / "b.jsonl", _jsonl({str(n): "글" for n in range(5, 8)}))
    reader = Reader(tmp_path)
    reader.run()
    _write(tmp_path / "a.jsonl", _jsonl({"1": "새로", "2": "새로"}))
    _write(tmp_path / "b.jsonl", _jsonl({"5": "새로", "3": "새로"}))
    reader.run(stop_after=stop_after)
    reader.run()
    assert reader.bodies == dict.fromkeys(("1", "2", "3", "5"), "새로")


def test_cursors_of_many_files_do_not_outgrow_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "_BATCH", 1)
    for n in range(300):
        _write(tmp_path / f"{n}.md", "본문")
    cursors = [batch.cursor for batch in Reader(tmp_path).run() if batch.cursor is not None]
    assert len(cursors) > 10
    assert sum(len(cursor["files"]) for cursor in cursors) < 15 * 300


@pytest.mark.parametrize(
    ("given_options", "message"),
    [
        ({}, "option 'path' .* should be given"),
        ({"path": 3}, "option 'path' .* should be a text, is 3"),
        ({"path": "articles"}, "option 'path' .* absolute path.* is 'articles'"),
        ({"path": "/a", "allow_empty": "yes"}, "option 'allow_empty' .* true or false, is 'yes'"),
        ({"path": "/a", "recurse": True}, "no option 'recurse'; it has path, allow_empty"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(given_options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        FolderOptions.from_mapping(given_options)


def test_options_are_taken_as_they_are_written() -> None:
    options = FolderOptions.from_mapping({"path": "/a/b", "allow_empty": True})
    assert options == FolderOptions(path=Path("/a/b"), allow_empty=True)


_NAMES = st.sampled_from(["a.jsonl", "b.csv", "c/d.jsonl"])
_EDITS = st.one_of(
    st.tuples(st.just("write"), _NAMES, st.sets(st.sampled_from("12345"), max_size=4), st.booleans()),
    st.tuples(st.just("remove"), _NAMES),
    st.tuples(st.just("rename"), _NAMES, _NAMES),
    st.tuples(st.just("run"), st.sampled_from([None, 0, 1, 2, 3])),
)


class _Model:
    """What the folder holds: {file: {id: body}}, and which files end in half a line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, dict[str, str]] = {}
        self.broken: set[str] = set()
        self.versions = count()

    def write(self, name: str, ids: set[str], is_broken: bool) -> None:
        bodies = {article_id: f"글 {next(self.versions)}" for article_id in sorted(ids)} or {"0": "글"}
        text = _csv(bodies) if name.endswith("csv") else _jsonl(bodies)
        _write(self.folder / name, text + ('"' if is_broken else ""))
        self.files[name] = bodies
        self.broken.discard(name)
        self.broken |= {name} if is_broken else set()

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)
        self.files.pop(name, None)
        self.broken.discard(name)

    def rename(self, name: str, to: str) -> None:
        if name in self.files and name != to and Path(name).suffix == Path(to).suffix:
            (self.folder / to).parent.mkdir(exist_ok=True)
            (self.folder / name).rename(self.folder / to)
            self.files[to] = self.files.pop(name)
            self.broken.discard(to)
            if name in self.broken:
                self.broken = (self.broken - {name}) | {to}

    def mend(self) -> None:
        for name in sorted(self.broken):
            self.write(name, set(self.files[name]), is_broken=False)


@settings(max_examples=200, deadline=None)
@example(
    edits=[
        ("write", "b.csv", set(), False),
        ("write", "c/d.jsonl", set(), False),
        ("run", 1),
        ("remove", "b.csv"),
        ("write", "c/d.jsonl", {"1"}, True),
        ("rename", "c/d.jsonl", "a.jsonl"),
    ]
)
@example(
    edits=[
        ("write", "b.csv", {"2", "1"}, False),
        ("write", "a.jsonl", {"2", "3", "1"}, False),
        ("run", 3),
        ("write", "b.csv", set(), False),
    ]
)
@example(
    edits=[
        ("write", "a.jsonl", {"1", "2"}, False),
        ("write", "b.csv", {"3"}, False),
        ("run", None),
        ("write", "b.csv", {"1"}, False),
        ("run", 1),
        ("write", "b.csv", {"4"}, False),
    ]
)
@given(edits=st.lists(_EDITS, max_size=14))
def test_after_any_edits_and_runs_the_articles_are_those_of_the_folder(edits: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_module, "_BATCH", 2)
        model, reader = _Model(Path(name)), Reader(Path(name), allow_empty=True)
        for what, *arguments in edits:
            if what == "run":
                reader.run(stop_after=arguments[0])
            else:
                getattr(model, what)(*arguments)
        reader.run()
        there = {article_id for bodies in model.files.values() for article_id in bodies}
        assert there <= reader.bodies.keys(), "what is in a file that was read is known"
        model.mend()
        reader.run()
        reader.run()  # a file that went while another was broken is spared for one run
        holders = {i: {bodies[i] for bodies in model.files.values() if i in bodies} for i in there}
        assert reader.bodies.keys() == holders.keys()
        assert all(reader.bodies[article_id] in bodies for article_id, bodies in holders.items())
        assert all(article_id in model.files[key] for article_id, key in reader.keys.items())
        assert reader.run() == []
