"""The command line, run for real: what it prints, its exit codes, and an error that states the cure for each bad input."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.request import urlopen

import pytest

from pipeline.folder import FolderLock
from pipeline.storage import leases
from pipeline.storage.articles import ArticleStore
from pipeline.storage.database import StateDatabase
from tests.command_line import Outcome, Shell, counts, finished
from tests.faults import until

_NOBODY = "http://127.0.0.1:1"  # nothing listens on port 1
_PATIENCE = 300.0  # seconds until a test gives up waiting
_HIT_FIELDS = {"article_id", "passage_id", "title", "url", "category", "published_at", "snippet", "score"}
_ANSWER_FIELDS = {
    "query", "understood", "took_ms", "seq", "degraded", "services", "total", "next_cursor", "items",
}  # fmt: skip
_EXPLAIN_FIELDS = {
    "dense", "lexical", "dense_normalised", "lexical_normalised", "alpha", "boosts", "matched_terms",
}  # fmt: skip
_ROWS = [
    {"id": "phishing", "title": "보이스피싱 대처", "body": "보이스피싱을 당했다면 112에 지급정지를 요청합니다.", "category": "안전"},
    {"id": "rent", "title": "월세 세액공제", "body": "연말정산에서 월세 세액공제를 받으려면 무주택 세대주여야 합니다.", "category": "세금"},
    {"id": "quoted \" ' id", "title": "<script>alert(1)</script>", "body": "<b>환율</b> 우대를 받는 법", "format": "html"},
    {"id": "이모지", "title": "", "body": "😀😀"},
]  # fmt: skip

Given = tuple[tuple[str | bytes, ...], dict[str, str]]


def everything(shell: Shell, *commands: Given) -> list[Outcome]:
    """Runs `commands` one after the other: one that waits for another one's folder gives up on a busy machine."""
    return [shell.run(*arguments, **settings) for arguments, settings in commands]


def written(path: Path, *rows: Mapping[str, object] | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def empty(tmp_path: Path, environment: dict[str, str]) -> Shell:
    """A folder in which nothing was ever indexed."""
    return Shell(tmp_path, environment)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Shell:
    """A folder whose articles are indexed; tests leave it as it is."""
    shell = Shell(tmp_path_factory.mktemp("indexed"), environment)
    shell.run("index", str(written(shell.folder / "articles.jsonl", *_ROWS))).done()
    return shell


@pytest.fixture
def own(indexed: Shell, tmp_path: Path) -> Shell:
    """A copy of `indexed` that a test may change."""
    shutil.copytree(indexed.folder / ".yeoul", tmp_path / ".yeoul")
    return Shell(tmp_path, indexed.environment)


@pytest.fixture(scope="module")
def served(indexed: Shell, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A copy of `indexed` that `yeoul serve` holds; its commands need no Kiwi of their own, so they are quick."""
    shell = Shell(tmp_path_factory.mktemp("served"), indexed.environment)
    shutil.copytree(indexed.folder / ".yeoul", shell.folder / ".yeoul")
    serving = _serving(shell)
    try:
        yield shell
    finally:
        serving.terminate()
        ended = finished(serving)
    assert "Traceback" not in ended.err


# ---- index


def test_a_folder_is_read_with_all_its_formats_and_bad_lines_are_told_by_number(empty: Shell) -> None:
    folder = empty.folder / "articles"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "b.md").write_text("# 전세\n\n전세 대출을 알아봅니다.", encoding="utf-8")
    (folder / "c.html").write_text("<title>청약</title><p>청약 통장의 가점</p>", encoding="utf-8")
    (folder / "d.csv").write_bytes("id,title,body\n넷,펀드,적립식 펀드의 장점\n".encode("cp949"))
    written(
        folder / "a.jsonl",
        _ROWS[0],
        "{no json",
        {"title": "no id", "body": "x"},
        {"id": "a/b", "title": "x", "body": "y"},
        {"id": "no offset", "title": "x", "body": "y", "updated_at": "2026-03-02T09:00:00"},
        {"id": "empty", "title": "", "body": " "},
        '{"id": "lone", "title": "x", "body": "\\ud800"}',
        _ROWS[1],
    )
    outcome = empty.run("index", str(folder))
    assert outcome.code == 0
    assert "Traceback" not in outcome.err
    assert [int(number) for number in re.findall(r"a\.jsonl[:, ]+(?:line )?(\d+)", outcome.err)] == [2, 3, 4, 5, 6, 7]
    assert "5 articles read: 5 new or changed, 0 unchanged, 6 lines refused" in outcome.out
    assert "5 articles indexed as 5 passages, 5 of them encoded; 0 deleted, 0 failed" in outcome.out
    assert counts(empty) == ({"indexed": 5}, 0)


def test_a_second_run_is_quiet_and_encodes_nothing_and_another_category_nothing_again(own: Shell) -> None:
    file = written(own.folder / "articles.jsonl", *_ROWS)
    again = own.run("index", str(file)).done()
    assert again.out == "4 articles read: 0 new or changed, 4 unchanged, 0 lines refused\n"
    written(file, _ROWS[0], *({**row, "category": "옮김"} for row in _ROWS[1:]))
    edited = own.run("index", str(file)).done()
    assert "3 new or changed, 1 unchanged" in edited.out
    assert "3 articles indexed as 3 passages, 0 of them encoded" in edited.out
    found = own.run("search", "연말정산", "--category", "옮김", "--json").done().json["items"]
    assert "rent" in {item["article_id"] for item in found}
    assert {item["category"] for item in found} == {"옮김"}


def test_files_that_cannot_be_read_are_told_and_nothing_changes(empty: Shell) -> None:
    (empty.folder / "empty.jsonl").touch()
    (empty.folder / "picture.png").touch()
    (empty.folder / "nothing").mkdir()
    names = ("missing.jsonl", "picture.png", "nothing")
    *told, hollow = everything(empty, *((("index", name), {}) for name in (*names, "empty.jsonl")))
    for name, outcome in zip(names, told, strict=True):
        assert name in outcome.told()
    assert hollow.code == 1
    assert "empty.jsonl" in hollow.err
    assert "Traceback" not in hollow.err
    assert counts(empty) == ({}, 0)


def test_wrong_usage_is_exit_code_2(empty: Shell) -> None:
    wrong: list[tuple[str, ...]] = [
        ("search", "월세", "--mode", "semantic"),
        ("search", "월세", "--limit", "ten"),
        ("search",),
        ("serach", "월세"),
        ("index",),
    ]
    for outcome in everything(empty, *((arguments, {}) for arguments in wrong)):
        assert outcome.code == 2, outcome
        assert outcome.err
        assert "Traceback" not in outcome.err
    assert "semantic" in empty.run(*wrong[0]).err


# ---- search


def test_a_search_as_json_is_the_contracts_object_alone(indexed: Shell) -> None:
    answer = indexed.run("search", "보이스피싱", "--json").done().json
    assert answer.keys() >= _ANSWER_FIELDS
    assert answer["query"] == answer["understood"]["text"] == "보이스피싱"
    assert (answer["seq"], answer["degraded"], answer["services"]) == (4, [], [])
    best = answer["items"][0]
    assert best.keys() >= _HIT_FIELDS
    assert best["article_id"] == "phishing"
    assert "<mark>보이스피싱</mark>" in best["snippet"]
    assert 0 <= best["score"] <= 1


def test_an_explained_search_as_json_has_the_parts_of_each_score(served: Shell) -> None:
    explained = served.run("search", "월세 공제", "--json", "--explain", "--limit", "1", "--category", "세금")
    (hit,) = explained.done().json["items"]
    assert (hit["article_id"], hit["category"]) == ("rent", "세금")
    parts = hit["explain"]
    assert parts.keys() >= _EXPLAIN_FIELDS
    alpha = parts["alpha"]
    fused = alpha * parts["dense_normalised"] + (1 - alpha) * parts["lexical_normalised"]
    assert hit["score"] == pytest.approx(fused, abs=1e-5)


def test_html_of_an_article_is_text_in_an_answer(served: Shell) -> None:
    answers = everything(
        served, *((("search", "환율 우대", "--json", "--mode", mode), {}) for mode in ("hybrid", "dense", "lexical"))
    )
    for answer in answers:
        hit = answer.done().json["items"][0]
        assert hit["article_id"] == "quoted \" ' id"
        assert "<b>" not in hit["snippet"]


def test_a_search_for_people_shows_titles_and_why(served: Shell) -> None:
    outcome = served.run("search", "보이스피싱", "--explain").done()
    assert "1. 보이스피싱 대처" in outcome.out
    assert "lexical" in outcome.out
    assert "<mark>" not in outcome.out
    ascii_only = Shell(served.folder, {**served.environment, "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"})
    assert ascii_only.run("search", "보이스피싱", "--explain").done().out.isascii()


@pytest.mark.parametrize("shell", ["indexed", "served"])
def test_a_shell_that_passes_no_utf8_gets_an_answer(request: pytest.FixtureRequest, shell: str) -> None:
    outcome = request.getfixturevalue(shell).run("search", "--json", b"\xff\xfe \x80")
    assert outcome.done().json["query"] == "?? ?"


@pytest.mark.parametrize(
    "query",
    ["은 는 이 가", "?!… ,.", "ㅇㅅㅍㅅ", "😀🏳️‍🌈", "' OR 1==1 --", "월" * 500],
    ids=["particles", "punctuation", "choseong", "emoji", "expression", "500 characters"],
)
def test_a_strange_query_gets_an_answer(served: Shell, query: str) -> None:
    answer = served.run("search", "--json", "--", query).done().json
    assert answer.keys() >= _ANSWER_FIELDS
    assert answer["degraded"] == []
    for hit in answer["items"]:
        assert 0 <= hit["score"] <= 1


def test_a_query_that_cannot_be_asked_is_told_with_the_rule(indexed: Shell) -> None:
    bad: list[tuple[tuple[str, ...], str]] = [
        (("search", ""), "'q' should be some text"),
        (("search", " \t\u200b"), "'q' should be some text"),
        (("search", "월" * 10_000), "'q' should be at most 500 characters (10,000 seen)"),
        (("search", "월세", "--limit", "0"), "'limit' should be in 1..100, is 0"),
        (("search", "월세", "--limit=-1"), "'limit' should be in 1..100, is -1"),
        (("search", "월세", "--limit", "100000"), "'limit' should be in 1..100, is 100000"),
    ]
    outcomes = everything(indexed, *((arguments, {}) for arguments, _ in bad))
    for (_, rule), outcome in zip(bad, outcomes, strict=True):
        assert rule in outcome.told()


def test_a_filter_value_that_looks_like_an_expression_is_a_value(served: Shell) -> None:
    outcome = served.run("search", "월세", "--json", "--category", '" or category != "')
    assert outcome.done().json["items"] == []


def test_searching_where_nothing_is_indexed_finds_nothing(empty: Shell) -> None:
    outcome = empty.run("search", "월세").done()
    assert "no article found" in outcome.out


# ---- settings, manifests and stores that do not fit


def test_an_index_made_with_other_settings_is_refused_by_name_and_kept(own: Shell) -> None:
    new = written(own.folder / "new.jsonl", {"id": "new", "title": "예금", "body": "예금자 보호 한도"})
    commands = (("search", "월세"), ("index", str(new)), ("doctor",))
    searched, indexed, diagnosed = (own.run(*command, CHUNKING__MAX_TOKENS="100") for command in commands)
    made = re.compile(r"max_tokens: index \d+, running 100.*set them back, or build the index anew with them")
    assert made.search(searched.told())
    assert made.search(indexed.told())
    assert diagnosed.code == 1
    assert "AMISS manifest" in diagnosed.out
    assert "cure: set them back" in diagnosed.out
    assert counts(own) == ({"indexed": 4, "queued": 1}, 1)
    own.run("index", str(new)).done()  # with the settings of the index everything goes on
    assert counts(own) == ({"indexed": 5}, 0)
    found = own.run("search", "예금자 보호", "--json").done().json
    assert found["items"][0]["article_id"] == "new"
    assert found["total"] >= 2


def test_a_milvus_server_that_does_not_answer_is_told_and_the_inbox_keeps_the_articles(empty: Shell) -> None:
    file = written(empty.folder / "a.jsonl", *_ROWS)
    indexed, diagnosed = everything(
        empty, (("index", str(file)), {"MILVUS__URI": _NOBODY}), (("doctor",), {"MILVUS__URI": _NOBODY})
    )
    assert _NOBODY in indexed.told()
    assert "start the Milvus server, or correct milvus.uri" in indexed.told()
    assert diagnosed.code == 1
    assert "AMISS collection" in diagnosed.out
    assert "cure: start the Milvus server" in diagnosed.out
    assert counts(empty) == ({"queued": 4}, 4)
    later = empty.run("index", str(file)).done()
    assert "0 new or changed, 4 unchanged" in later.out
    assert "4 articles indexed" in later.out


def test_a_setting_that_cannot_work_is_told_with_its_name(empty: Shell) -> None:
    wrong = {
        "FUSION__ALPHA": ("2", "fusion.alpha"),
        "ENGINE": ("faiss", "engine"),
        "API__KEYS": ("secret", "api.keys"),
        "DATABASE_URL": ("nonsense", "database_url"),
        "MILVUS__URI": ("somewhere", "milvus.uri"),
    }
    given = ({name: value, "DATA_DIR": name} for name, (value, _) in wrong.items())
    outcomes = everything(empty, *((("search", "월세"), settings) for settings in given))
    for (_, named), outcome in zip(wrong.values(), outcomes, strict=True):
        assert named in outcome.told()
    (empty.folder / "yeoul.toml").write_text("[milvus\n")
    assert "yeoul.toml is not readable TOML" in empty.run("search", "월세").told()


def test_several_workers_are_refused_where_the_store_belongs_to_one_process(empty: Shell) -> None:
    for refused in (empty.run("serve", "--workers", "2"), empty.run("serve", API__WORKERS="2")):
        told = refused.told()
        assert "setting 'api.workers' should be 1 with Milvus Lite" in told
        assert "is 2" in told
        assert "milvus.uri" in told
    assert not (empty.folder / ".yeoul").exists()


def test_workers_that_cannot_start_end_the_command(empty: Shell) -> None:
    outcome = empty.run("serve", "--workers", "2", MILVUS__URI="http://127.0.0.1:1", USER_WORDS="missing.tsv")
    assert outcome.code == 1
    assert "yeoul: " in outcome.err
    assert "missing.tsv" in outcome.err
    assert "Traceback" not in outcome.err


def test_doctor_is_content_with_an_index_that_works(indexed: Shell) -> None:
    outcome = indexed.run("doctor", API__KEYS='[{"key": "very-secret-key"}]').done()
    assert "AMISS" not in outcome.out
    assert "very-secret-key" not in outcome.out
    assert "4 indexed; 0 changes wait in the inbox" in outcome.out
    assert "4 rows" in outcome.out


# ---- several processes, interruptions


def test_a_second_process_waits_for_the_folder_and_says_for_whom(own: Shell) -> None:
    file = written(own.folder / "new.jsonl", {"id": "new", "title": "예금", "body": "예금자 보호 한도"})
    lock = FolderLock.take(own.folder / ".yeoul", "yeoul index")
    waiting = own.start("index", str(file))
    try:
        refused = own.run("search", "월세").told()
        assert "yeoul index (process" in refused
        assert "use its HTTP API" in refused
        until(lambda: counts(own)[1] == 1, _PATIENCE, "it is not accepted all the same")
        assert waiting.poll() is None
    finally:
        lock.release()
    outcome = finished(waiting)
    assert outcome.code == 0
    assert "waiting for yeoul index (process" in outcome.err
    assert "1 articles indexed" in outcome.out


def test_what_the_holder_of_the_folder_cannot_index_is_told_and_fails_the_command(own: Shell) -> None:
    file = written(own.folder / "new.jsonl", {"id": "bad", "title": "예금", "body": "예금자 보호 한도"})
    lock = FolderLock.take(own.folder / ".yeoul", "yeoul serve")
    waiting = own.start("index", str(file))
    database = StateDatabase.open(f"sqlite:///{own.folder / '.yeoul' / 'state.db'}")
    try:
        store, deadline = ArticleStore(database), time.monotonic() + _PATIENCE
        while not store.queued(1):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        lease = leases.acquire(database, "worker", "the holder", 60)
        assert lease is not None
        store.fail(store.queued(1)[0], "the encoder refused it", lease)
        outcome = finished(waiting)
    finally:
        lock.release()
        database.close()
    assert outcome.code == 1
    assert "bad: the encoder refused it" in outcome.err


def test_an_interrupted_index_says_how_to_go_on(empty: Shell) -> None:
    rows = [{"id": f"글{n}", "title": "제목", "body": f"{n}번째 글입니다. " * 200} for n in range(1_500)]
    file = written(empty.folder / "a.jsonl", *rows)
    running = empty.start("index", str(file))
    deadline = time.monotonic() + _PATIENCE
    # Not before the first articles are indexed: Python may lose an interrupt that meets it in a model's start.
    while not (empty.folder / ".yeoul" / "holder.json").exists() or not counts(empty)[0].get("indexed"):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    assert "waits in the inbox" in finished(running).told()
    assert sum(counts(empty)[0].values()) == 1_500


def test_with_a_server_running_the_other_commands_go_through_it(served: Shell) -> None:
    file = written(served.folder / "new.jsonl", {"id": "new", "title": "예금", "body": "예금자 보호 한도"})
    indexed, diagnosed = everything(served, (("index", str(file)), {}), (("doctor",), {}))
    assert indexed.code == 0
    assert "indexed by the process that holds the folder (yeoul serve" in indexed.err
    assert "held by yeoul serve" in diagnosed.done().out
    found = served.run("search", "예금자 보호", "--json", http_proxy=_NOBODY).done().json
    assert found["items"][0]["article_id"] == "new"
    assert found["seq"] >= 5  # the canary is counted too


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_told_to_end_leaves_everything_written(own: Shell, number: int) -> None:
    snapshot = own.folder / ".yeoul" / "resident.safetensors"
    snapshot.unlink()
    serving = _serving(own)
    file = written(own.folder / "new.jsonl", {"id": "new", "title": "예금", "body": "예금자 보호 한도"})
    assert own.run("index", str(file)).code == 0
    serving.send_signal(number)
    ended = finished(serving)
    assert "Traceback" not in ended.err
    assert snapshot.stat().st_size
    assert [file for wal in own.folder.rglob("wal") for file in wal.iterdir()] == []  # of Milvus Lite
    assert counts(own)[0]["indexed"] == len(_ROWS) + 1


def _serving(shell: Shell) -> subprocess.Popen[bytes]:
    """A server in this folder, ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serving = shell.start("serve", "--port", str(port))
    _wait_until_ready(f"http://127.0.0.1:{port}/readyz", serving)
    return serving


def _wait_until_ready(url: str, serving: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            with urlopen(url, timeout=30) as response:
                if response.status == 200:
                    return
        except OSError:
            pass
        assert serving.poll() is None, finished(serving)
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_console_script_is_the_module(empty: Shell) -> None:
    script = Path(sys.executable).parent / "yeoul"
    helped = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    for command in ("index", "search", "serve", "eval", "doctor"):
        assert command in helped.stdout
