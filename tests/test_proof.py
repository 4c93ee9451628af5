"""docs/proof.md: every promise, target and bad input has a row, and what a row names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import yeoul

_ROOT = Path(__file__).parent.parent
_ROW = re.compile(r"\| (?P<what>.+?) \| (?P<shown_by>.*) \|")
_QUOTED = re.compile(r"`([^`]+)`")
_TARGET = re.compile(r"^([a-z]+):", re.MULTILINE)

# What the contract and the issue ask for, in their order; docs/proof.md has exactly these rows.
_WANTED = {
    "Commands": (
        "make demo",
        "make test",
        "yeoul index: files and folders of every format",
        "yeoul index: counts, failures by line",
        "yeoul index: a progress bar on a terminal, none elsewhere",
        "yeoul index: killed and started again, it ends in the same state",
        "yeoul search and its options",
        "yeoul serve: API, console and indexer in one process",
        "yeoul eval DIR --json FILE",
        "yeoul eval: recall over documents, best passage a document",
        "yeoul doctor",
        "exit code 0",
        "exit code 1, one line on stderr with the cure",
        "exit code 2",
        "--json prints JSON alone, the body of GET /v1/search",
    ),
    "Settings": (
        "yeoul.toml, YEOUL_* over it, flags over both",
        "data_dir",
        "database_url",
        "milvus.uri",
        "milvus.token",
        "encoder.model",
        "encoder.device",
        "engine",
        "fusion.method",
        "fusion.alpha",
        "api.keys",
        "indexers.poll_seconds",
    ),
    "HTTP calls": (
        "GET /v1/search",
        "GET /v1/search: q, limit, mode, cursor",
        "GET /v1/search: category, tag, since, until",
        "GET /v1/search: series, source",
        "GET /v1/search: area",
        "GET /v1/search: min_seq",
        "GET /v1/search: explain",
        "PUT /v1/articles/{id}: 202",
        "PUT /v1/articles/{id}?wait=true: 200",
        "GET /v1/articles/{id}: the article, status, passages, times",
        "GET /v1/articles/{id}: queued",
        "GET /v1/articles/{id}: failed, with its error",
        "DELETE /v1/articles/{id}: 202",
        "DELETE /v1/articles/{id}?wait=true: 200; then GET says deleted",
        "POST /v1/articles:bulk",
        "POST /v1/embeddings",
        "GET /healthz",
        "GET /readyz",
        "GET /metrics",
        "GET /openapi.json",
        "GET /",
        "/v1/suggest, /v1/services, /v1/events: 404 for now",
    ),
    "Articles": (
        "fields and their rules",
        "text, markdown, html",
        "times are RFC 3339 with an offset",
        "visible: false is in no result",
        "ids of 1-200 characters of any script",
        "updated_at missing is the time of acceptance",
        "equal and unchanged is nothing to do",
        "an older updated_at never overwrites",
        "body at most 5 MB, else 413",
    ),
    "Search results": (
        "limit 1-100, default 10; query at most 500 characters; mode",
        "the shape of the answer and of an item",
        "services and corrections are empty lists for now",
        "score in [0, 1], higher is better",
        "the parts of explain add up to the score",
        "the score is the same whatever limit is",
        "total is what can be paged, whatever limit is",
        "cursor: pages join to the one-shot list, ties too",
        "a cursor belongs to its question",
        "snippet escaped but for <mark>",
        "filter values are data, on both legs",
        "degraded names the leg that failed, the other answers",
        "Milvus answers while the index loads",
        "seq and min_seq",
        "min_seq: 503 after a bounded wait",
    ),
    "Errors and keys": (
        "one shape everywhere",
        "400 malformed",
        "401 and 403",
        "404",
        "409 an older revision",
        "413 too large",
        "422 a field",
        "503 not ready",
        "writes need the scope write",
        "no key configured: writes from loopback alone",
        "search is open unless api.search_requires_key",
    ),
    "Targets": (
        "dev sets inside the distractors: macro nDCG@10 of hybrid",
        "hybrid against its best leg on each dev set",
        "samples, gate half: hybrid nDCG@10 ≥ .90 over the kinds that are named",
        "samples, gate half: hybrid ≥ both legs over all queries",
        "samples, gate half: paraphrases ≥ lexical + .05",
        "samples: 120 articles, 120 judged queries, their kinds and halves",
        "yeoul index at ≥ 60% of Kiwi's own rate (at its edge: below)",
        "a second run encodes nothing, < 15 s",
        "one warm search, in process and over HTTP (at its edge: below)",
        "yeoul serve to ready; yeoul search from the shell",
        "acceptance from outside: search",
        "acceptance from outside: fresh",
    ),
    "Bad input": (
        "an empty file",
        "a missing file",
        "a line that is not JSON",
        "a missing id",
        "duplicate ids in one file",
        "a body over 5 MB",
        "an empty body",
        "only emoji",
        "a lone surrogate",
        "CP949",
        "a date without an offset",
        "ids with #, /, quotes",
        "limit=0, -1, 100000",
        "an empty query",
        "10,000 characters of query",
        "a query of particles, punctuation or choseong",
        "unknown mode",
        "a filter value that looks like an expression",
        "HTML in titles and bodies",
        "an index made with another encoder",
        "Milvus down at start",
        "Milvus down during a search",
        "a second process on the same data folder",
    ),
    "Live indexing": (
        "inbox: durable, one worker under a lease, a second one waits or takes over",
        "retries with backoff, dead letters, yeoul articles failed and retry",
        "backpressure: 429 with Retry-After above the queue limit",
        "a newer article overtakes a bulk load",
        "order and identity",
        "atomic swap on both engines: nothing mixed, vanished or returned",
        "change log: woken, polled as the fallback; pruned or asleep: loaded anew",
        "source: a folder of files",
        "source: RSS and Atom",
        "source: a SQL table or view",
        "a cursor moves only after its articles are in the inbox",
        "scheduler: only the lease holder; run now, pause, resume",
        "GET /v1/admin/jobs and the page /operations",
        "freshness: canary, histograms, /readyz",
        "rebuild and rollback under writes and searches",
        "yeoul verify finds and mends each difference",
        "Lite belongs to one process: the others go through its socket",
        "keys hashed at rest, scopes, a rate a key, an audit line a write",
        "feeds: time and size limits, http(s) only, no private address",
        "PostgreSQL and a Milvus server, two processes that answer and one that writes",
        "deploy/: linted, and its commands run outside of images",
    ),
    "Live indexing: targets": (
        "push → searchable, delete → gone, under load",
        "a model-based test of ≥ 10,000 operations",
        "≥ 200 kill -9",
        "a re-publish with unchanged bodies encodes nothing",
        "a rebuild under the load: no failed search, p99 ≤ 3 ×",
        "acceptance from outside: live",
    ),
    "Live indexing: faults": (
        "malformed NDJSON lines",
        "two articles of one id in one bulk",
        "clock skew and dates in the future",
        "a source that times out, answers 500, 304, half a feed",
        "a feed whose ids change",
        "a SQL source whose column is missing; a watermark that goes backwards",
        "a full disk",
        "SQLite locked",
        "PostgreSQL restarted under load",
        "Milvus restarted under load",
        "an article that makes the encoder raise",
    ),
    "Fast": (
        "batches: what comes at the same time is worked on together; bounded, cancelled, urgent ones first",
        "a batch of searches answers what each gets by itself",
        "Kiwi and kiwi-static in a process of their own: they read as here, whoever dies is replaced",
        "a SentenceTransformer: searches, embeddings and indexing in one line",
        "overload: 429 with Retry-After, a single and a batch alike",
        "dense leg: 8-bit first pass, exact results, room without moving",
        "lexical leg: compiled, the same scores",
        "several workers on one index of a Milvus server",
        "start: from a snapshot where it fits, else from the collection",
        "yeoul bench search, legs, growth, index",
        "yeoul bench peers, with the floor",
        "yeoul bench encode",
    ),
    "Fast: targets": (
        "searches a second, p99 at half of it, overload, memory, starts",
        "one query alone beside the floor and the peers",
        "batching on against off",
        "embeddings against infinity-emb",
        "memory and latency as the index grows",
    ),
}
_LATER = ("Better every week",)


def _sections() -> dict[str, str]:
    text = (_ROOT / "docs" / "proof.md").read_text(encoding="utf-8")
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _rows(section: str) -> dict[str, list[str]]:
    """What → the ids and commands that show it, in the order of the table."""
    lines = _sections()[section].strip().splitlines()
    assert lines[:2] == ["| what | shown by |", "|---|---|"]
    found: dict[str, list[str]] = {}
    for line in lines[2:]:
        match = _ROW.fullmatch(line)
        assert match, line
        assert match["what"] not in found, line
        found[match["what"]] = _QUOTED.findall(match["shown_by"])
    return found


def _tests(path: Path) -> set[str]:
    """The names that pytest collects in a test file: functions, methods, and state machines given a name."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if node.value is not None and ast.unparse(node.value).endswith(".TestCase"):
                names |= {ast.unparse(target) for target in targets}
    return {name for name in names if name.rpartition("::")[2].startswith(("test_", "Test"))}


_NAMED = sorted({shown for section in _WANTED for named in _rows(section).values() for shown in named})


@pytest.mark.parametrize("section", _WANTED)
def test_every_row_is_there_and_no_other(section: str) -> None:
    assert tuple(_rows(section)) == _WANTED[section]


@pytest.mark.parametrize("section", _WANTED)
def test_every_row_is_shown_by_something(section: str) -> None:
    assert [what for what, shown in _rows(section).items() if not shown] == []


@pytest.mark.parametrize("shown", _NAMED)
def test_what_is_named_exists(shown: str) -> None:
    file, _, name = shown.partition("::")
    command = shown.split()
    if name:
        assert name in _tests(_ROOT / file)
    elif command[0] == "yeoul":
        groups = {group.name for group in yeoul.app.registered_groups}
        assert command[1] in groups | {
            c.name or getattr(c.callback, "__name__", "") for c in yeoul.app.registered_commands
        }
    elif command[0] == "make":
        assert command[1] in _TARGET.findall((_ROOT / "Makefile").read_text(encoding="utf-8"))
    else:
        script = f"{command[2].replace('.', '/')}.py" if command[:2] == ["python", "-m"] else file
        assert script.startswith("tests/benchmarks/")
        assert (_ROOT / script).is_file()


def test_a_name_that_is_gone_would_be_seen() -> None:
    here = _tests(Path(__file__))
    assert "test_a_name_that_is_gone_would_be_seen" in here
    assert here.isdisjoint({"_tests", "test_a_name_that_never_was"})
    assert {"TestLucene", "TestPlus"} <= _tests(_ROOT / "tests" / "test_lexical.py")


def test_what_comes_later_names_its_issue_and_no_test() -> None:
    *_, last = _sections()
    assert last == "Later"
    later = _sections()[last]
    assert all(issue in later for issue in _LATER)
    assert "::" not in later
