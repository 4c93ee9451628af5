"""deploy/: what can be known of images, services, alarms and the runbook without a Docker engine.

The commands that the images run are run here, on a copy of what the images are made of.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import pytest
import torch
import yaml
from prometheus_client.parser import text_string_to_metric_families
from typer.main import get_command

import yeoul
from api.app import create_app
from api.telemetry import Gauges, Metrics
from pipeline import settings as configuration
from pipeline.documents import Article
from pipeline.index.collection import Collection
from pipeline.storage import manifests
from pipeline.storage.articles import ArticleStore
from pipeline.storage.database import StateDatabase
from tests import postgres_server
from tests.faults import until
from tests.test_manifest import MADE

_ROOT = Path(__file__).parent.parent
_DEPLOY = _ROOT / "deploy"
_BIN = Path(sys.executable).parent
_PORT = "8200"  # that the images listen on
_STARTUP_SECONDS = 600.0  # 5 s on an idle machine
_LOOK_SECONDS = 0.1
_SECONDS = 600  # for one command on a busy machine
_GRACE = re.compile(r"(\d+)s")
_VARIABLE = re.compile(r"\$\{(\w+)")
_METRIC = re.compile(r"\b(yeoul_\w+)(?:\{([^}]*)\})?")
_SPAN = re.compile(r"`([^`\n]+)`")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_IN_COMPOSE = re.compile(r"docker\s+compose\s+(exec|run|logs|restart|stop|up)\s+([^|<>&\n`]*)")
_WITH_VALUE = {"-v", "--since"}  # options of docker compose that take a word
_OF_THE_READER = {".env", "compose.override.yaml", "yeoul.dump"}  # files of the runbook that its reader makes


# --- Dockerfile -----------------------------------------------------------------------------------------------------


def _instructions() -> list[tuple[str, str]]:
    """(instruction, the rest) of deploy/Dockerfile, continued lines joined."""
    text = (_DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def _stages() -> dict[str, list[tuple[str, str]]]:
    stages: dict[str, list[tuple[str, str]]] = {}
    for name, rest in _instructions():
        if name == "FROM":
            stages[rest.rpartition(" AS ")[2]] = []
        elif stages:
            stages[list(stages)[-1]].append((name, rest))
    return stages


def _command(stage: str) -> list[str]:
    """What containers of `stage` run."""
    return [str(word) for word in json.loads(next(rest for name, rest in _stages()[stage] if name == "CMD"))]


def _copied() -> list[str]:
    """The files and folders of the repository that get into the images."""
    copies = [rest.split() for name, rest in _instructions() if name == "COPY" and not rest.startswith("--from")]
    return [source for words in copies for source in words[:-1]]


def _python_of_build(word: str) -> list[str]:
    """The `python -c` of the build that has `word`, as this interpreter runs it."""
    lines = [rest for name, rest in _stages()["build"] if name == "RUN" and rest.startswith("python -c")]
    return [sys.executable, *shlex.split(next(line for line in lines if word in line))[1:]]


def _finished(command: list[str], **given: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS, **given)


def test_hadolint_has_no_objection() -> None:
    done = _finished([str(_BIN / "hadolint"), "--no-color", str(_DEPLOY / "Dockerfile")])
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    lines = (_ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(_copied())
    assert [name for name in _copied() if not (_ROOT / name).exists()] == []


def test_the_last_user_is_not_root_and_each_image_runs_its_own_command() -> None:
    assert [rest for name, rest in _stages()["yeoul"] if name == "USER"] == ["10001:10001"]
    assert not any(name == "USER" for stage in ("api", "indexers") for name, _ in _stages()[stage])
    assert _command("api") == ["yeoul", "serve", "--host", "0.0.0.0"]
    assert _command("indexers") == ["yeoul", "indexers", "run"]


def test_settings_of_the_images_are_settings() -> None:
    named = {name for _, rest in _instructions() for name in re.findall(r"\b(YEOUL_\w+)=", rest)}
    assert named
    assert named <= _variables_of_settings()


@pytest.mark.parametrize("asked", ["cpu", "cuda"])
def test_the_build_ends_where_torch_is_not_the_one_that_was_asked_for(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, option, program, argument = _python_of_build("torch")
    assert argument == "$TORCH"
    monkeypatch.setattr(sys, "argv", [option, asked])
    with pytest.raises(SystemExit) as ended:
        exec(program, {})  # in this process, where torch is imported already
    right = asked == ("cuda" if torch.version.cuda else "cpu")
    assert (not ended.value.code) == right
    assert right or "set TORCH_INDEX_URL" in str(ended.value.code)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install .` of the build puts into the image, from the copied files alone."""
    folder = tmp_path_factory.mktemp("image")
    for name in _copied():
        source = _ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / "build" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / "build").mkdir(exist_ok=True)
            shutil.copy(source, folder / "build")
    install = next(rest for name, rest in _stages()["build"] if name == "RUN" and rest.endswith(" ."))
    options = [word for word in shlex.split(install) if word.startswith("--no-") and word != "--no-cache-dir"]
    done = _finished([sys.executable, "-m", "pip", "wheel", "-q", *options, "-w", "wheel", "."], cwd=folder / "build")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next((folder / "build" / "wheel").glob("yeoul-*.whl"))) as wheel:
        wheel.extractall(folder / "installed")
    return folder / "installed"


@pytest.fixture(scope="module")
def environment(image: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """That of a container of the image, with kiwi-static's table as the build derives it."""
    folder = tmp_path_factory.mktemp("container")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("YEOUL_")}
    environment = {
        **inherited,
        "PYTHONPATH": str(image),
        "HOME": str(folder),
        "YEOUL_DATA_DIR": str(folder / "data"),
        "YEOUL_ENCODER__CACHE_DIR": str(folder / "kiwi-static"),
    }
    done = _finished(_python_of_build("PartsHere.open"), env=environment, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    return environment


def test_every_file_of_the_packages_is_in_the_image(image: Path) -> None:
    sources = {
        str(path.relative_to(_ROOT))
        for package in ("pipeline", "indexers", "api")
        for path in (_ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in sources if not (image / name).is_file()} == set()


def test_the_api_image_needs_no_other_table_is_healthy_and_ends_at_its_stop_signal(
    environment: Mapping[str, str], tmp_path: Path
) -> None:
    tables = {path: path.stat().st_mtime_ns for path in Path(environment["YEOUL_ENCODER__CACHE_DIR"]).iterdir()}
    assert len(tables) == 1
    with _served(environment, tmp_path) as (process, port):
        until(lambda: _finished(_health_check(port)).returncode == 0, _STARTUP_SECONDS, "it is not healthy")
        assert "<title>" in _page(f"http://127.0.0.1:{port}/")  # the templates are in the image too
        stop = next(rest for name, rest in _stages()["yeoul"] if name == "STOPSIGNAL")
        process.send_signal(signal.Signals[stop])
        _, err = process.communicate(timeout=_seconds(_compose()["services"]["api-1"]["stop_grace_period"]))
        assert (process.returncode, err) == (0, b"")
    assert {path: path.stat().st_mtime_ns for path in tables} == tables
    written = {path.name for folder in (environment["HOME"], tmp_path) for path in Path(folder).iterdir()}
    assert written == {"data", "kiwi-static"}  # all else is read-only there
    done = _finished(_health_check(port))
    assert done.returncode == 1
    assert "refused" in done.stderr


def _health_check(port: int) -> list[str]:
    rest = next(rest for name, rest in _stages()["api"] if name == "HEALTHCHECK")
    words: list[str] = json.loads(rest.partition("CMD ")[2])
    assert f":{_PORT}/healthz" in words[-1]
    return [sys.executable, *(word.replace(f":{_PORT}/", f":{port}/") for word in words[1:])]


@contextmanager
def _served(environment: Mapping[str, str], folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The command of the image `api` on a free port of this machine, once it answers; killed where it does not end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    words = ["127.0.0.1" if word == "0.0.0.0" else word for word in _command("api")[1:]]
    process = subprocess.Popen(
        [sys.executable, "-m", "yeoul", *words, "--port", str(port)],
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + _STARTUP_SECONDS
        while process.poll() is None and not _listens(port):
            assert time.monotonic() < deadline
            time.sleep(_LOOK_SECONDS)
        yield process, port
    finally:
        process.kill()
        process.communicate()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _page(url: str) -> str:
    with build_opener(ProxyHandler({})).open(url, timeout=60) as answer:
        text: str = answer.read().decode()
    return text


# --- compose.yaml ---------------------------------------------------------------------------------------------------


def _compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((_DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    return found


def _services() -> dict[str, dict[str, Any]]:
    services: dict[str, dict[str, Any]] = _compose()["services"]
    return services


def _seconds(written: str) -> int:
    found = _GRACE.fullmatch(written)
    assert found, written
    return int(found[1])


def _example() -> dict[str, str]:
    lines = (_DEPLOY / ".env.example").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("=", 1) for line in lines if line and not line.startswith("#")]
    return {name: value.strip("'") for name, value in pairs}


def _variables_of_settings() -> set[str]:
    return {f"YEOUL_{name.upper().replace('.', '__')}" for name, _, _ in configuration.described()}


def _has_health_check(service: Mapping[str, Any]) -> bool:
    target = service.get("build", {}).get("target")
    return "healthcheck" in service or any(name == "HEALTHCHECK" for name, _ in _stages().get(target, ()))


def test_compose_keeps_to_the_schema_of_the_compose_specification() -> None:
    done = _finished(
        [str(_BIN / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "deploy/compose.yaml"], cwd=_ROOT
    )
    assert done.returncode == 0, done.stdout


def test_every_variable_of_compose_is_in_the_example_and_the_reverse() -> None:
    used = set(_VARIABLE.findall((_DEPLOY / "compose.yaml").read_text(encoding="utf-8")))
    assert used == set(_example())


def test_no_secret_has_a_default() -> None:
    text = (_DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    secrets = [name for name in _example() if "PASSWORD" in name or "KEYS" in name]
    assert len(secrets) == 4
    assert [name for name in secrets if re.search(rf"\$\{{{name}(?!:\?)", text)] == []
    assert {_example()[name] for name in secrets} == {"", "[]"}


@pytest.mark.parametrize("name", ["api-1", "api-2", "indexers"])
def test_the_environment_of_a_service_is_taken_as_settings(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = {**_example(), "MILVUS_PASSWORD": "secret", "POSTGRES_PASSWORD": "secret"}
    monkeypatch.chdir(tmp_path)
    for variable, value in _services()[name]["environment"].items():
        assert variable in _variables_of_settings() | {"PGPASSWORD", "TZ"}
        monkeypatch.setenv(variable, re.sub(r"\$\{(\w+)[^}]*\}", lambda found: given[found[1]], value))
    settings = configuration.load()
    assert not settings.milvus_is_lite
    assert settings.milvus.token == "root:secret"
    assert settings.state_url.startswith("postgresql://yeoul@postgres/")
    # Were these given, a rebuild could not change them for all processes at once.
    assert not settings.encoder.model_fields_set
    assert not settings.chunking.model_fields_set


def test_images_are_pinned() -> None:
    ours = {"yeoul-api:${IMAGE_TAG:?set it in .env}", "yeoul-indexers:${IMAGE_TAG:?set it in .env}"}
    others = {service["image"] for service in _services().values()} - ours
    assert len(others) == 4
    assert [image for image in others if not re.fullmatch(r"[\w./-]+:(v?\d+\.\d+|RELEASE\.\d{4})[\w.-]*", image)] == []
    assert re.fullmatch(r"3\.11\.\d+", next(rest for name, rest in _instructions() if name == "ARG").partition("=")[2])


def test_what_is_waited_for_is_there_and_says_when_it_is_healthy() -> None:
    waits = [(name, on, how) for name, s in _services().items() for on, how in s.get("depends_on", {}).items()]
    assert {name for name, _, _ in waits} == {"api-1", "api-2", "indexers", "milvus"}
    for _, on, how in waits:
        assert how == {"condition": "service_healthy"}
        assert _has_health_check(_services()[on])


def test_every_service_but_the_indexers_has_a_health_check() -> None:
    """They have no port; their health is freshness, which the API measures."""
    assert {name for name, service in _services().items() if not _has_health_check(service)} == {"indexers"}


def test_only_the_api_has_ports_and_only_on_loopback() -> None:
    ports = {name: service["ports"] for name, service in _services().items() if "ports" in service}
    assert ports == {"api-1": [f"127.0.0.1:8201:{_PORT}"], "api-2": [f"127.0.0.1:8202:{_PORT}"]}
    assert ("EXPOSE", _PORT) in _stages()["api"]
    assert _compose()["networks"]["stores"] == {"internal": True}
    stores = set(_services()) - {"api-1", "api-2", "indexers"}
    assert {name for name in stores if _services()[name]["networks"] != ["stores"]} == set()


@pytest.mark.parametrize("name", _services())
def test_a_service_comes_back_has_limits_and_time_to_end(name: str) -> None:
    service = _services()[name]
    assert service["restart"] == "unless-stopped"
    assert service["deploy"]["resources"]["limits"]["memory"]
    assert _seconds(service["stop_grace_period"]) >= 30
    assert service["logging"]["options"]["max-size"]


def test_no_two_services_share_a_volume_and_what_yeoul_keeps_lies_in_one() -> None:
    mounts = [mount.split(":") for service in _services().values() for mount in service["volumes"]]
    assert sorted(volume for volume, _ in mounts) == sorted(_compose()["volumes"])
    folder = next(rest for name, rest in _stages()["yeoul"] if name == "ENV").partition("YEOUL_DATA_DIR=")[2].split()[0]
    for name in ("api-1", "api-2", "indexers"):
        assert Path(folder).is_relative_to(_services()[name]["volumes"][0].split(":")[1])


# --- alarms ---------------------------------------------------------------------------------------------------------


def _alarms() -> list[dict[str, Any]]:
    groups = yaml.safe_load((_DEPLOY / "prometheus-alerts.yaml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _exposed() -> dict[str, set[str]]:
    """Every metric of /metrics, and the labels that it has beside those that Prometheus gives."""
    metrics = Metrics()
    metrics.request(method="GET", route="/v1/search", status=200, seconds=0.1)
    metrics.search({"dense": 1.0}, {"dense": "away"})
    metrics.fresh(change="publish", origin="push", seconds=0.1)
    text = metrics.exposition(Gauges(ready=True, passages=1, queued=0, lag=0, failed=0, late=False)).decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.name: set(sample.labels) | {"instance", "job"} for sample in samples}


@pytest.mark.parametrize("alarm", _alarms(), ids=lambda alarm: alarm["alert"])
def test_an_alarm_asks_for_metrics_and_labels_that_there_are(alarm: Mapping[str, Any]) -> None:
    exposed = _exposed()
    found = _METRIC.findall(alarm["expr"])
    assert found or alarm["expr"] == 'up{job="yeoul"} == 0'
    labels = set().union(*(exposed[name] for name, _ in found)) | {"instance"}
    for name, matchers in found:
        assert set(re.findall(r"(\w+)[!=]", matchers)) <= exposed[name]
    for grouped in re.findall(r"by \(([^)]*)\)", alarm["expr"]):
        assert set(grouped.split(", ")) <= labels
    assert set(re.findall(r"\$labels\.(\w+)", str(alarm["annotations"]))) <= labels
    assert alarm["labels"]["severity"] in {"critical", "warning"}
    assert re.fullmatch(r"\d+m", alarm["for"])


def test_every_gauge_has_an_alarm() -> None:
    single = {name for name, labels in _exposed().items() if labels == {"instance", "job"}}
    gauges = {name for name in single if not name.endswith("_created")}  # when a counter began
    assert gauges == {name for alarm in _alarms() for name, _ in _METRIC.findall(alarm["expr"])} & gauges


def test_the_alarm_of_a_full_queue_comes_before_the_queue_is_full() -> None:
    limit = int(next(default for name, default, _ in configuration.described() if name == "indexers.queue_limit"))
    alarm = next(alarm for alarm in _alarms() if alarm["alert"] == "YeoulQueueNearlyFull")
    assert int(alarm["expr"].rpartition("> ")[2]) == 0.8 * limit


# --- RUNBOOK.md -----------------------------------------------------------------------------------------------------


def _runbook() -> str:
    return (_DEPLOY / "RUNBOOK.md").read_text(encoding="utf-8")


def _blocks(language: str = "") -> list[str]:
    return [text for kind, text in _FENCE.findall(_runbook()) if kind == language]


def _scripts() -> list[str]:
    return [text for text in _blocks() if "reverse_proxy" not in text]


def _spans() -> list[str]:
    return _SPAN.findall(_FENCE.sub("", _runbook()))


def _commands() -> list[list[str]]:
    """The words after `yeoul` of every command of the images and the runbook."""
    found = [_command(stage)[1:] for stage in ("api", "indexers")]
    for line in [*"\n".join(_scripts()).splitlines(), *_spans()]:
        words = line.partition(" #")[0].split()
        for place, word in enumerate(words):
            if word == "yeoul" and words[place + 1 :] and (place == 0 or words[place - 1] in _services()):
                found.append(words[place + 1 :])
    return found


def _parse(words: list[str]) -> None:
    """Reads `words` as the command line does, and runs nothing. Raises what the command line would tell."""
    command: Any = get_command(yeoul.app)
    context = command.make_context("yeoul", [*words])
    while hasattr(command, "commands"):
        name, command, words = command.resolve_command(context, [*words])
        if words == ["--help"]:
            return
        context = command.make_context(name, [*words], parent=context)


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_a_command_is_one_that_yeoul_has(words: list[str]) -> None:
    _parse(words)


@pytest.mark.parametrize("words", ["rebuilt", "rebuild --encode e5", "index", "verify all", "articles lost --help"])
def test_a_command_that_yeoul_has_not_would_be_told(words: str) -> None:
    with pytest.raises(Exception, match=r"No such|Missing|unexpected extra"):
        _parse(words.split())


def test_the_runbook_names_the_commands_of_the_contract() -> None:
    named = {tuple(words[:1]) for words in _commands()} | {tuple(words[:2]) for words in _commands()}
    wanted = "serve, indexers run, index, rebuild, rollback, verify, doctor, key cms, articles failed, articles retry"
    assert {tuple(command.split()) for command in wanted.split(", ")} <= named
    assert {("sources", each) for each in ("add", "list", "run", "remove")} <= named


@pytest.mark.parametrize("script", _scripts())
def test_a_script_of_the_runbook_is_one_for_the_shell(script: str) -> None:
    done = _finished(["bash", "-n"], input=script)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_runbook_names_services_that_there_are() -> None:
    found = _IN_COMPOSE.findall(_runbook())
    assert {verb for verb, _ in found} == {"exec", "run", "logs", "restart", "stop", "up"}
    for verb, rest in found:
        words = rest.partition(" #")[0].split()
        after = ["", *words][: len(words)]
        named = [
            word
            for before, word in zip(after, words, strict=True)
            if not word.startswith("-") and before not in _WITH_VALUE
        ]
        named = named[:1] if verb in {"exec", "run"} else named
        assert set(named) <= {*_services(), "SERVICE"}, (verb, rest)
        assert named or verb == "up", (verb, rest)


def test_the_example_of_an_override_is_of_services_that_there_are() -> None:
    (block,) = _blocks("yaml")
    override = yaml.safe_load(block)["services"]
    assert set(override) <= set(_services())
    named = {name for service in override.values() for name in service.get("environment", {})}
    assert named <= _variables_of_settings()


def test_every_alarm_has_a_row_and_the_reverse() -> None:
    rows = re.findall(r"^\| (Yeoul\w+) \| (.+) \| (.+) \|$", _runbook(), re.MULTILINE)
    assert [name for name, _, _ in rows] == [alarm["alert"] for alarm in _alarms()]


def test_metrics_settings_and_calls_of_the_runbook_exist() -> None:
    families = {re.sub("_(bucket|count|sum|created)$", "", name) for name in _exposed()}
    metrics = {span for span in _spans() if re.fullmatch(r"yeoul_\w+", span)}
    assert metrics
    assert metrics <= families | set(_exposed())
    settings = {span for span in _spans() if re.fullmatch(r"(api|indexers|encoder|chunking|milvus|fusion)\.\w+", span)}
    assert settings
    assert settings <= {name for name, _, _ in configuration.described()}
    paths = create_app(configuration.Settings()).openapi()["paths"]
    calls = {re.sub(r"/jobs/[^/]+/", "/jobs/{name}/", call) for call in re.findall(r"/v1/[\w/:-]+", _runbook())}
    assert calls
    assert calls <= set(paths)


def test_files_and_links_of_the_runbook_exist() -> None:
    links = re.findall(r"\]\(([^)]+)\)", _runbook())
    files = {span for span in _spans() if re.fullmatch(r"[\w./-]+\.(md|yaml|py|toml|dump)|\.env", span)}
    for name in [*links, *(files - _OF_THE_READER)]:
        assert (_DEPLOY / name).exists(), name
    for script in re.findall(r"python (tests/\S+\.py)", _runbook()):
        assert (_ROOT / script).exists(), script
    assert len(_runbook().splitlines()) < 200


def test_a_lost_collection_is_made_again_as_the_runbook_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = next(text for text in _blocks() if "PYTHON" in text).partition("\n")[2].partition("PYTHON\n")[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YEOUL_DATA_DIR", str(tmp_path))
    with pytest.raises(SystemExit, match="nothing was ever indexed"):
        exec(program, {})
    database = StateDatabase.open(f"sqlite:///{tmp_path / 'state.db'}")
    manifests.activate(database, "lost_1", MADE, {})
    database.close()
    exec(program, {})
    made = Collection.open(uri=str(tmp_path / "milvus.db"), name="lost_1", dim=MADE.dim, create=False)
    assert made.count() == 0
    made.close()


@pytest.mark.postgres
def test_a_dump_is_restored_as_the_runbook_says(postgres_url: str, tmp_path: Path) -> None:
    """With the commands of the runbook, but for the name of the database, over a state that went on after the dump."""
    dump, restore = (
        shlex.split(
            next(line for line in "\n".join(_scripts()).splitlines() if program in line).partition("postgres ")[2]
        )
        for program in ("pg_dump", "pg_restore")
    )
    database = StateDatabase.open(postgres_url)
    store = ArticleStore(database)
    kept = store.accept(Article(id="kept", title="남는 글", body="본문")).seq
    _postgres(dump, postgres_url, tmp_path / "yeoul.dump")
    store.accept(Article(id="later", title="나중 글", body="본문"))
    database.close()
    _postgres(restore, postgres_url, tmp_path / "yeoul.dump")
    database = StateDatabase.open(postgres_url)
    assert [change.article_id for change in ArticleStore(database).queued(10)] == ["kept"]
    assert ArticleStore(database).accept(Article(id="next", title="다음 글", body="본문")).seq > kept
    database.close()


def _postgres(words: list[str], url: str, file: Path) -> None:
    """Runs `words`, of which > and < say which way `file` goes; the database of the runbook is that of `url`."""
    binaries = postgres_server.server_binaries()
    assert binaries is not None
    plain = url.replace("postgresql+psycopg://", "postgresql://")
    way = next(word for word in words if word in "<>")
    program, *options = words[: words.index(way)]
    options = [word for word in options if word not in {"-U", "-d", "yeoul"}]
    with file.open("wb" if way == ">" else "rb") as handle:
        done = subprocess.run(
            [str(binaries / program), *options, "-d", plain],
            stdin=handle if way == "<" else None,
            stdout=handle if way == ">" else None,
            stderr=subprocess.PIPE,
            check=False,
            timeout=_SECONDS,
        )
    assert (done.returncode, done.stderr) == (0, b"")
