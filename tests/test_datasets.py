"""BEIR folders: what is read, what is refused and how it is told."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UnreadableSource
from pipeline.evaluation.datasets import Corpus, load, pooled, read_corpus, sample_evenly

Rows = Sequence[Mapping[str, object]]

CORPUS: Rows = [
    {"_id": "적금/1#가", "title": "적금", "text": "매달 돈을 모읍니다."},
    {"_id": "b", "title": None, "text": "제목이 없는 글"},
    {"_id": "c", "text": ""},
]
QUERIES: Rows = [{"_id": "q1", "text": "적금"}, {"_id": "q2", "text": "판정이 없는 질문"}, {"_id": "q3", "text": "글"}]
QRELS = "query-id\tcorpus-id\tscore\nq3\tb\t2\nq1\t적금/1#가\t1\nq1\tb\t0\n"


def _lines(rows: Rows) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def _folder(path: Path, *, corpus: bytes | None = None, queries: bytes | None = None, qrels: str = QRELS) -> Path:
    (path / "qrels").mkdir(parents=True)
    (path / "corpus.jsonl").write_bytes(_lines(CORPUS) if corpus is None else corpus)
    (path / "queries.jsonl").write_bytes(_lines(QUERIES) if queries is None else queries)
    (path / "qrels" / "test.tsv").write_text(qrels, encoding="utf-8")
    return path


def _zipped(folder: Path) -> Path:
    for path in [*folder.glob("*.jsonl"), *folder.glob("qrels/*.tsv")]:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    return folder


def test_a_folder_is_read_whole_and_queries_without_a_relevant_document_are_left_out(tmp_path: Path) -> None:
    dataset = load(_folder(tmp_path / "set"))
    assert dataset.name == "set"
    assert dataset.corpora == (
        Corpus(
            name="corpus.jsonl",
            ids=("적금/1#가", "b", "c"),
            titles=("적금", "", ""),
            texts=("매달 돈을 모읍니다.", "제목이 없는 글", ""),
        ),
    )
    assert list(dataset.queries.items()) == [("q1", "적금"), ("q3", "글")]
    assert dataset.qrels == {"q1": {"적금/1#가": 1, "b": 0}, "q3": {"b": 2}}
    assert list(dataset.qrels) == list(dataset.queries)
    assert dataset.notes == ()


def test_zipped_files_read_as_plain_ones(tmp_path: Path) -> None:
    plain, zipped = load(_folder(tmp_path / "a" / "set")), load(_zipped(_folder(tmp_path / "b" / "set")))
    assert (zipped.queries, zipped.qrels) == (plain.queries, plain.qrels)
    assert [c.content_hash for c in zipped.corpora] == [c.content_hash for c in plain.corpora]


def test_a_byte_order_mark_blank_lines_windows_line_ends_and_no_header_change_nothing(tmp_path: Path) -> None:
    usual = load(_folder(tmp_path / "a" / "set"))
    queries = b"\xef\xbb\xbf" + _lines(QUERIES).replace(b"\n", b"\r\n\r\n")
    headless = QRELS.split("\n", 1)[1].replace("\n", "\r\n")
    assert load(_folder(tmp_path / "b" / "set", queries=queries, qrels=headless)) == usual


def test_judgments_of_unknown_queries_and_documents_are_counted_and_told(tmp_path: Path) -> None:
    dataset = load(_folder(tmp_path, qrels=QRELS + "nobody\tb\t1\nnobody\tc\t1\nq3\tgone\t1\n"))
    assert (dataset.unknown_queries, dataset.unknown_documents) == (2, 1)
    assert dataset.qrels["q3"] == {"b": 2, "gone": 1}  # what is missing counts as not found
    assert dataset.notes == (
        "judgments of queries that are not in queries.jsonl: 2, left out",
        "judgments of documents that are not in the corpus: 1, never found",
    )


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (_folder(tmp_path) / name).unlink()
    with pytest.raises(UnreadableSource, match=f"has no {name}"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("file", "line", "why"),
    [
        ("corpus", b"{", "not JSON"),
        ("corpus", b"[1]", "not an object"),
        ("corpus", b'{"_id": "\\ud800", "text": "x"}', "not JSON"),
        ("corpus", '{"_id": "x", "text": "한"}'.encode("cp949"), "not JSON"),
        ("corpus", b'{"text": "x"}', "'_id' should be a text, is None"),
        ("corpus", b'{"_id": "", "text": "x"}', "'_id' should be a text, is ''"),
        ("corpus", b'{"_id": 7, "text": "x"}', "'_id' should be a text, is 7"),
        ("corpus", b'{"_id": "x", "title": "x"}', "'text' should be a text, is None"),
        ("corpus", b'{"_id": "x", "title": 1, "text": "x"}', "'title' should be a text, is 1"),
        ("corpus", b'{"_id": "b", "text": "x"}', "'b' stands on an earlier line"),
        ("queries", b'{"_id": "q4"}', "'text' should be a text"),
        ("queries", b'{"_id": "q1", "text": "x"}', "'q1' stands on an earlier line"),
    ],
)
def test_a_bad_line_is_told_by_its_number(tmp_path: Path, file: str, line: bytes, why: str) -> None:
    folder = _folder(tmp_path)
    with (folder / f"{file}.jsonl").open("ab") as lines:
        lines.write(line)
    with pytest.raises(UnreadableSource, match=f"line 4 of .*{file}.jsonl cannot be used: .*{why}"):
        load(folder)


@pytest.mark.parametrize(
    ("line", "why"),
    [("q1 b 1", "1 columns"), ("q1\t0\tb\t1", "4 columns"), ("q1\tb\tyes", "'yes' is no whole number")],
)
def test_a_bad_judgment_is_told_by_its_number(tmp_path: Path, line: str, why: str) -> None:
    with pytest.raises(UnreadableSource, match=f"line 5 of .*test.tsv cannot be used: .*{why}"):
        load(_folder(tmp_path, qrels=QRELS + line))


def test_judgments_in_another_encoding_are_refused_by_line(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    (folder / "qrels" / "test.tsv").write_bytes(QRELS.encode("cp949"))
    with pytest.raises(UnreadableSource, match=r"line 3 of .* not UTF-8"):
        load(folder)


def test_a_folder_without_a_relevant_document_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableSource, match=r"no query of .* has a relevant document"):
        load(_folder(tmp_path, qrels="q1\tb\t0\nnobody\tb\t1\n"))


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableSource, match="has no documents"):
        load(_folder(tmp_path, corpus=b"\n"))


@pytest.mark.parametrize("kept", [-12, 60])
def test_a_cut_archive_is_told(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "more.jsonl.gz"
    path.write_bytes(gzip.compress(_lines([{"_id": f"d{n}", "text": "글"} for n in range(1000)]))[:kept])
    with pytest.raises(UnreadableSource, match=r"more\.jsonl\.gz cannot be read"):
        read_corpus(path)


def test_an_archive_that_is_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / "more.jsonl.gz"
    path.write_bytes(b'{"_id": "d", "text": "x"}')
    with pytest.raises(UnreadableSource, match=r"more\.jsonl\.gz cannot be read"):
        read_corpus(path)


def test_a_judged_document_of_the_pool_is_known(tmp_path: Path) -> None:
    dataset = load(_folder(tmp_path / "set", qrels=QRELS + "q3\td1\t1\n"))
    pool = tmp_path / "pool.jsonl"
    pool.write_bytes(_lines([{"_id": "d1", "text": "x"}]))
    assert (dataset.unknown_documents, pooled(dataset, pool).unknown_documents) == (1, 0)


def test_a_pool_adds_documents_and_no_queries(tmp_path: Path) -> None:
    dataset = load(_folder(tmp_path / "set"))
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl.gz"
    first.write_bytes(_lines([{"_id": "d1", "title": "t", "text": "x", "source": "elsewhere"}]))
    second.write_bytes(gzip.compress(_lines([{"_id": "d2", "text": "y"}])))
    more = pooled(dataset, first, second)
    assert (more.queries, more.qrels) == (dataset.queries, dataset.qrels)
    assert [c.ids for c in more.corpora] == [("적금/1#가", "b", "c"), ("d1",), ("d2",)]
    assert more.documents == dataset.documents + 2
    with pytest.raises(UnreadableSource, match=r"second\.jsonl\.gz has a document 'd2' that is in the corpus already"):
        pooled(more, second)
    with pytest.raises(UnreadableSource, match="there is no file"):
        pooled(dataset, tmp_path / "none.jsonl")


def test_the_content_hash_sees_every_text_and_not_the_name() -> None:
    corpus = Corpus(name="x", ids=("a", "b"), titles=("t", ""), texts=("u", "v"))
    others = [
        Corpus(name="x", ids=("a", "c"), titles=("t", ""), texts=("u", "v")),
        Corpus(name="x", ids=("a", "b"), titles=("", "t"), texts=("u", "v")),
        Corpus(name="x", ids=("a", "b"), titles=("tu", ""), texts=("", "v")),
        Corpus(name="x", ids=("b", "a"), titles=("", "t"), texts=("v", "u")),
    ]
    assert len({corpus.content_hash, *(other.content_hash for other in others)}) == 5
    assert Corpus(name="y", ids=("a", "b"), titles=("t", ""), texts=("u", "v")).content_hash == corpus.content_hash


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_an_even_sample_keeps_the_order_and_leaves_no_gap_larger_than_another_by_more_than_one(
    length: int, n: int
) -> None:
    sample = sample_evenly(range(length), n)
    assert sample == (list(range(length)) if n >= length else [int(i * length / n) for i in range(n)])
    assert len(sample) == min(n, length)
    gaps = {after - before for before, after in zip(sample, [*sample[1:], length], strict=True)}
    assert max(gaps) - min(gaps) <= 1


def test_a_sample_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="n should be >= 1, is now 0"):
        sample_evenly([1, 2], 0)


def test_a_sampled_dataset_asks_those_queries_alone(tmp_path: Path) -> None:
    dataset = load(_folder(tmp_path))
    one = dataset.sampled(1)
    assert (list(one.queries), list(one.qrels)) == (["q1"], ["q1"])
    assert one.corpora == dataset.corpora
    assert dataset.sampled(99) == dataset
