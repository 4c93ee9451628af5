"""How fast a SentenceTransformer encodes on this machine: through HTTP, where many connections send one text each, and in
process, where nothing is between the batches; beside what the device multiplies at best in the same run.

Texts are all different and have exactly so many tokens. The published table is of one RTX 3090, through HTTP, 256 connections.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import orjson

from indexers.benchmarks import infinity, shapes
from indexers.benchmarks.deployment import Deployment, served
from indexers.benchmarks.infinity import Started
from indexers.benchmarks.memory import processor_seconds
from indexers.benchmarks.report import Bars, Lines, ms, table
from indexers.benchmarks.wrk import ClosedLoop, check_wrk, closed_loop
from pipeline.encoding.batcher import Batch
from pipeline.encoding.line import Line, LinedEncoder
from pipeline.encoding.sentence import Device, SentenceEncoder

PATH = "/v1/embeddings"
LENGTHS = (8, 16, 32, 64, 128, 256, 512)  # tokens
PUBLISHED: Mapping[str, Sequence[int]] = MappingProxyType(  # requests a second at these lengths
    {
        "koelectra-small": (19_035, 14_434, 10_400, 6_792, 4_132, 1_912, 788),
        "bert-base": (8_608, 5_595, 3_314, 1_799, 904, 429, 187),
    }
)
COMPARED_LENGTH = 16
_WARM_UP_SECONDS = 1.0
_TEXTS = 4_096
_MATRIX_SIDE = MappingProxyType({"cpu": 1_024, "cuda": 8_192})
_MATRIX_SECONDS = 1.0
_BATCHES = 8  # of a call in process


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured: `seconds` of each cell; `rounds` of batching on and off, 0 for none, and, where a `peer` is given that
    starts on a model, of Yeoul and that, with `few` connections."""

    lengths: Sequence[int] = LENGTHS
    connections: int = 256
    seconds: float = 3.0
    rounds: int = 2
    few: int = 32
    device: Device = "auto"
    peer: Callable[[Path], AbstractContextManager[Started]] | None = None

    @property
    def compared(self) -> list[int]:
        """The lengths at which batches are compared with one by one."""
        return sorted({*self.lengths, COMPARED_LENGTH}) if self.rounds else []

    @property
    def cells(self) -> int:
        """How many measurements it is of one model."""
        a_round = 2 * len(self.compared) + (2 if self.peer is not None else 0)
        return 2 * len(self.lengths) + self.rounds * a_round


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A length. Texts a second through HTTP and in process; milliseconds of the requests and of the batches; `of_device`: share
    of the device's matrix rate, in process and through HTTP; NaN where nothing was answered."""

    length: int
    http: float
    p50: float
    p95: float
    p99: float
    outcomes: Mapping[str, int]
    process: float
    batch: float
    batch_p50: float
    batch_p95: float
    batch_p99: float
    of_device: float
    http_of_device: float
    published: int | None


@dataclass(frozen=True, slots=True)
class Served:
    """What a server did in a round: answers a second, and milliseconds of the processors for each of them."""

    rate: float
    cpu: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two servers in turn at a length, by round."""

    length: int
    name: str
    other: str
    first: tuple[Served, ...]
    second: tuple[Served, ...]

    @property
    def ratio(self) -> float:
        """Of the medians of the rates; above 1: the first is faster."""
        return _median(self.first, "rate") / max(_median(self.second, "rate"), 1e-9)


def _median(rounds: Sequence[Served], what: str) -> float:
    return float(statistics.median(getattr(one, what) for one in rounds))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One model. `matrix_rate`: floating-point operations a second of a product of large matrices in the same precision."""

    model: str
    device: str
    connections: int
    matrix_rate: float
    cells: tuple[Cell, ...]
    comparisons: tuple[Comparison, ...] = ()

    def tables(self) -> str:
        """Markdown."""
        head = f"{self.model} on {self.device}, {self.matrix_rate / 1e12:,.2f} TFLOP/s"
        published = any(cell.published for cell in self.cells)
        cells = table(
            [head, f"HTTP, {self.connections} connections", "p50", "p95", "p99", "of the device", "in process, passages",
             "texts a batch", "batch p50", "p95", "p99", "of the device",
             *(["published, RTX 3090, HTTP"] if published else [])],
            [_told(cell, published=published) for cell in self.cells],
        )  # fmt: skip
        compared = [
            [
                f"{one.length} tokens: {one.name} / {one.other}",
                _rates(one.first),
                _rates(one.second),
                f"{one.ratio:.2f}",
            ]
            for one in self.comparisons
        ]
        headings = [
            "in turn, answers a second by round (processors' ms for one)",
            "the first", "the second", "of the medians",
        ]  # fmt: skip
        return f"{cells}\n\n{table(headings, compared)}" if compared else cells

    def panel(self) -> Lines | Bars:
        """A picture of it."""
        lines: dict[str, list[tuple[float, float]]] = {
            "HTTP": [(cell.length, cell.http) for cell in self.cells],
            "in process": [(cell.length, cell.process) for cell in self.cells],
        }
        if published := [(cell.length, cell.published) for cell in self.cells if cell.published]:
            lines["published, RTX 3090"] = [*published]
        return Lines(
            title=f"{self.model}, {self.device}", x="tokens", y="texts a second", lines=lines, logarithmic=True
        )


def _told(cell: Cell, *, published: bool) -> list[str]:
    failed = "".join(f", {name}: {count:,}" for name, count in sorted(cell.outcomes.items()) if name != "200")
    return [
        f"{cell.length} tokens", f"{cell.http:,.1f} a second{failed}", ms(cell.p50), ms(cell.p95), ms(cell.p99),
        f"{cell.http_of_device:.0%}", f"{cell.process:,.1f} a second", f"{cell.batch:.0f}", ms(cell.batch_p50),
        ms(cell.batch_p95), ms(cell.batch_p99), f"{cell.of_device:.0%}",
        *([f"{cell.published:,}" if cell.published else ""] if published else []),
    ]  # fmt: skip


def _rates(rounds: Sequence[Served]) -> str:
    return f"{', '.join(f'{one.rate:,.1f}' for one in rounds)} ({_median(rounds, 'cpu'):.1f})"


def measured(
    name: str, folder: Path, deployment: Deployment, plan: Plan, *, advance: Callable[[int], None] = lambda _n: None
) -> Figures:
    """The model in `folder`, called `name`, alone in this process and then in the server of `deployment`.

    Raises NotStarted, NoWrk, EncoderFailed; InvalidInput for a length that the model does not have.
    """
    check_wrk()
    lengths = sorted({*plan.lengths, *plan.compared})
    encoder = SentenceEncoder.open(str(folder), device=plan.device, query_prompt="", passage_prompt="")
    device = encoder.model.device.type
    rate = matrix_rate(device)
    texts = {length: shapes.texts(encoder, length, _TEXTS) for length in lengths}
    flops = {length: length * shapes.flops_a_token(encoder.model, length) for length in lengths}
    alone = {}
    for length in plan.lengths:
        alone[length] = _in_process(encoder, texts[length], length, plan.seconds)
        advance(1)
    del encoder  # and the device's memory
    environment = {
        "YEOUL_ENCODER__MODEL": str(folder),
        "YEOUL_ENCODER__DEVICE": device,
        "YEOUL_ENCODER__QUERY_PROMPT": "",
        "YEOUL_ENCODER__PASSAGE_PROMPT": "",
    }
    cells = []
    with served(deployment, **environment) as (server, _):
        for length in plan.lengths:
            bodies, many = [_body(text) for text in texts[length]], plan.connections
            first = _warmed_up(server.url, bodies, many, PATH)
            found = closed_loop(server.url, bodies, connections=many, seconds=plan.seconds, first=first, post_to=PATH)
            cells.append(_cell(name, length, found, alone[length], flops[length] / rate))
            advance(1)
    comparisons = _compared(deployment, environment, folder, texts, plan, advance) if plan.rounds else ()
    return Figures(
        model=name,
        device=device,
        connections=plan.connections,
        matrix_rate=rate,
        cells=tuple(cells),
        comparisons=tuple(comparisons),
    )


def _cell(name: str, length: int, http: ClosedLoop, alone: _Alone, share: float) -> Cell:
    """`share`: of the device, for each text a second."""
    batches = [seconds * 1000 for seconds in alone.batches]
    p50, p95, p99 = (float(value) for value in np.percentile(batches, [50, 95, 99]))
    published = dict(zip(LENGTHS, PUBLISHED.get(name, ()), strict=False))
    answered = http.rate > 0
    nothing = float("nan")
    return Cell(
        length=length,
        http=http.rate,
        p50=http.percentiles[49] if answered else nothing,
        p95=http.percentiles[94] if answered else nothing,
        p99=http.percentiles[98] if answered else nothing,
        outcomes=http.outcomes,
        process=alone.rate,
        batch=alone.size,
        batch_p50=p50,
        batch_p95=p95,
        batch_p99=p99,
        of_device=alone.rate * share,
        http_of_device=http.rate * share,
        published=published.get(length),
    )


def matrix_rate(device: str) -> float:
    """Floating-point operations a second of the product of two square matrices on all of `device`, as the encoder computes:
    in half precision on CUDA, else in single. 2 n³ for a side of n; the best of a second."""
    import torch  # noqa: PLC0415 - a second to import

    side = _MATRIX_SIDE[device]
    matrix = torch.rand(side, side, device=device, dtype=torch.float16 if device == "cuda" else torch.float32)
    best, end = float("inf"), time.perf_counter() + _MATRIX_SECONDS
    while best == float("inf") or time.perf_counter() < end:
        begun = time.perf_counter()
        matrix @ matrix
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return float(2 * side**3 / best)


@dataclass(frozen=True, slots=True)
class _Alone:
    """In process: texts a second; texts of a batch; seconds of each."""

    rate: float
    size: float
    batches: Sequence[float]


def _in_process(encoder: SentenceEncoder, texts: Sequence[str], length: int, seconds: float) -> _Alone:
    lined = LinedEncoder(Line(encoder, waiting=1))
    batches: list[Batch] = []
    lined.encode_passages(texts[:1])
    lined.observe = batches.append
    # So many at a time that the end of one call weighs little, and that a slow machine is soon done with one.
    at_once = max(8, _BATCHES * encoder.batch_tokens // length)
    done, begun = 0, time.perf_counter()
    while not done or time.perf_counter() < begun + seconds:
        start = done % len(texts)
        done += len(lined.encode_passages(texts[start : start + at_once]))
    rate = done / (time.perf_counter() - begun)
    return _Alone(rate, statistics.fmean(len(one.waits) for one in batches), [one.worked for one in batches])


def _body(text: str, **more: str) -> str:
    return orjson.dumps({"input": text, **more}).decode()


def _warmed_up(url: str, bodies: Sequence[str], connections: int, path: str) -> int:
    """The number of the next body."""
    warm = closed_loop(url, bodies, connections=connections, seconds=_WARM_UP_SECONDS, post_to=path)
    return warm.requests + connections


def _compared(
    deployment: Deployment,
    environment: Mapping[str, str],
    folder: Path,
    texts: Mapping[int, Sequence[str]],
    plan: Plan,
    advance: Callable[[int], None],
) -> Iterator[Comparison]:
    """With batches and one by one at each length; with batches and the peer at `COMPARED_LENGTH`."""

    @contextmanager
    def ours(**more: str) -> Iterator[Started]:
        with served(deployment, **environment, **more) as (server, _):
            assert server.process is not None
            yield server.url, server.process.pid

    def seen(
        started: AbstractContextManager[Started], asked: Mapping[int, Sequence[str]], connections: int, path: str
    ) -> dict[int, Served]:
        rates = {}
        with started as (url, pid):
            for length, bodies in asked.items():
                first = _warmed_up(url, bodies, connections, path)
                before = processor_seconds(pid)
                found = closed_loop(
                    url, bodies, connections=connections, seconds=plan.seconds, first=first, post_to=path
                )
                spent = processor_seconds(pid) - before
                rates[length] = Served(found.rate, spent * 1000 / max(1, found.requests))
                advance(1)
        return rates

    many, few = plan.connections, plan.few
    asked = {length: [_body(text) for text in texts[length]] for length in plan.compared}
    pairs = [(seen(ours(), asked, many, PATH), seen(ours(YEOUL_ENCODER__BATCH_SIZE="1"), asked, many, PATH))
             for _ in range(plan.rounds)]  # fmt: skip
    yield from _comparisons(f"batches, {many} connections", "one by one", pairs)
    if (peer := plan.peer) is not None:
        both = {COMPARED_LENGTH: asked[COMPARED_LENGTH]}
        named = {COMPARED_LENGTH: [_body(text, model=infinity.MODEL) for text in texts[COMPARED_LENGTH]]}
        pairs = [(seen(ours(), both, few, PATH), seen(peer(folder), named, few, infinity.PATH))
                 for _ in range(plan.rounds)]  # fmt: skip
        yield from _comparisons(f"Yeoul, {few} connections", infinity.NAME, pairs)


def _comparisons(
    name: str, other: str, pairs: Sequence[tuple[Mapping[int, Served], Mapping[int, Served]]]
) -> Iterator[Comparison]:
    for length in pairs[0][0]:
        first, second = tuple(a[length] for a, _ in pairs), tuple(b[length] for _, b in pairs)
        yield Comparison(length=length, name=name, other=other, first=first, second=second)
