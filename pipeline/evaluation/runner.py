"""How good the search is: judged queries through the code that serves, every mode from one search a query.

The hybrid search proposes the union of both legs' best passages with both scores of each, so it holds what each leg alone
would have answered: `lexical`, `dense` and `rrf` are read from the same candidates. The index is built in memory and thrown
away; no live index is touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.encoding.encoder import Encoder
from pipeline.errors import InvalidQuery, NotReady, Unavailable
from pipeline.evaluation.baseline import plain_rankings
from pipeline.evaluation.cache import ArrayCache, default_folder
from pipeline.evaluation.corpus_index import System, index
from pipeline.evaluation.datasets import Dataset, Qrels, load, pooled
from pipeline.evaluation.measures import MAIN, MEASURES, PerQuery, means, measured
from pipeline.evaluation.significance import Comparison, compare
from pipeline.index.engine import Candidates, best_first
from pipeline.index.fields import LexicalParameters
from pipeline.index.resident import ResidentEngine
from pipeline.korean.morphemes import Analyser
from pipeline.passages import ChunkingParameters
from pipeline.retrieval.fusion import Fused, fuse
from pipeline.retrieval.query import SearchRequest
from pipeline.retrieval.ranking import Ranking
from pipeline.retrieval.searcher import FusionParameters, Searcher

MODES = ("lexical", "dense", "rrf", "hybrid")
LEGS = ("lexical", "dense")
PLAIN = "plain"
ALPHAS = tuple(step / 20 for step in range(21))  # 0 to 1 by .05
_DECIMALS = 6  # of a measure in the JSON: queries are some thousands

Rankings = dict[str, list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What came out. `modes`: mode → measure → mean over the queries, in [0, 1], higher is better.

    `per_query` has the same for each query, `rankings` its documents, best first; `candidates` is what both legs proposed for
    it, for trying other fusions without another search. `best_leg` is the leg with the higher nDCG@10, `comparison` is hybrid minus that leg in nDCG@10. `refused`
    are queries that the service does not take; they count as answered with nothing. `sweeps`: half → alpha → nDCG@10.
    """

    dataset: str
    documents: int
    passages: int
    manifest: Mapping[str, Any]
    settings: Mapping[str, Any]
    modes: Mapping[str, Mapping[str, float]]
    per_query: Mapping[str, PerQuery]
    rankings: Mapping[str, Rankings]
    qrels: Qrels
    candidates: Mapping[str, Candidates]
    best_leg: str
    comparison: Comparison
    refused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sweeps: Mapping[str, Mapping[float, float]] = field(default_factory=dict)

    @property
    def queries(self) -> int:
        return len(self.qrels)

    def to_json(self) -> dict[str, Any]:
        """The object of the contract, with the comparison, the settings and what was noted beside it."""
        return {
            "dataset": self.dataset,
            "queries": self.queries,
            "documents": self.documents,
            "passages": self.passages,
            "manifest": dict(self.manifest),
            "settings": dict(self.settings),
            "modes": {mode: _rounded(values) for mode, values in self.modes.items()},
            "comparison": {"measure": MAIN, "first": "hybrid", "second": self.best_leg, **asdict(self.comparison)},
            "sweeps": {half: {str(a): v for a, v in _rounded(s).items()} for half, s in self.sweeps.items()},
            "refused": list(self.refused),
            "notes": list(self.notes),
        }


def run(
    folder: Path,
    *,
    analyser: Analyser,
    encoder: Encoder,
    chunking: ChunkingParameters,
    lexical: LexicalParameters,
    fusion: FusionParameters,
    pool: Sequence[Path] = (),
    queries: int | None = None,
    plain: bool = False,
    swept: bool = False,
    cache_dir: Path | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> Evaluation:
    """Evaluates the BEIR folder `folder`: `yeoul eval`.

    `pool` are files of more documents to search among, `queries` how many to draw evenly (None: all), `plain` adds plain
    Kiwi BM25, `swept` the sweep over alpha; None for `cache_dir` is the user's cache folder. Raises UnreadableSource for
    the data, EncoderFailed and Unavailable for the parts.
    """
    dataset = pooled(load(folder), *pool)
    if queries is not None:
        dataset = dataset.sampled(queries)
    system = System(
        analyser=analyser, encoder=encoder, chunking=chunking, lexical=lexical, fusion=fusion, device=device
    )
    found = evaluate(dataset, system, plain=plain, cache_dir=cache_dir, progress=progress)
    if not swept:
        return found
    tune, gate = halves(list(dataset.queries))
    sweeps = {name: sweep(found, half, adaptive=fusion.adaptive) for name, half in (("tune", tune), ("gate", gate))}
    return replace(found, sweeps=sweeps)


def evaluate(
    dataset: Dataset,
    system: System,
    *,
    plain: bool = False,
    engine: ResidentEngine | None = None,
    cache_dir: Path | None = None,
    progress: bool = False,
) -> Evaluation:
    """Every mode of `system` on `dataset`; an `engine` that holds its corpora already saves indexing them again."""
    cache = ArrayCache(cache_dir or default_folder())
    if engine is None:
        engine = index(dataset.corpora, system, cache, progress=progress)
    rankings, candidates, refused = _answered(dataset, system, engine, progress=progress)
    if plain:
        rankings[PLAIN] = plain_rankings(dataset, system.analyser, cache, progress=progress)
    per_query = {mode: measured(dataset.qrels, found) for mode, found in rankings.items()}
    modes = {mode: means(values) for mode, values in per_query.items()}
    best_leg = max(LEGS, key=lambda leg: modes[leg][MAIN])
    return Evaluation(
        dataset=dataset.name,
        documents=dataset.documents,
        passages=engine.count,
        manifest=asdict(system.manifest),
        settings={"lexical": asdict(system.lexical), "fusion": asdict(system.fusion)},
        modes=modes,
        per_query=per_query,
        rankings=rankings,
        qrels=dataset.qrels,
        candidates=candidates,
        best_leg=best_leg,
        comparison=compare(*([*per_query[mode][MAIN].values()] for mode in ("hybrid", best_leg))),
        refused=tuple(refused),
        notes=dataset.notes,
    )


def leg(candidates: Candidates, name: str, *, limit: int) -> Candidates:
    """What a search by one leg alone would have proposed, read from the candidates of both.

    They hold the `limit` best passages of the leg, ties by id, because it proposed them; the lexical leg proposes nothing
    without a match.
    """
    scores: np.ndarray[Any, np.dtype[np.float64]] = getattr(candidates, name)
    best = [i for i in best_first(scores, candidates.passage_ids) if name == "dense" or scores[i] > 0][:limit]
    nothing = np.full(len(best), np.nan)
    return replace(
        candidates,
        passage_ids=[candidates.passage_ids[i] for i in best],
        article_ids=[candidates.article_ids[i] for i in best],
        dense=scores[best] if name == "dense" else nothing,
        lexical=scores[best] if name == "lexical" else nothing,
        passages=(),
        articles=np.zeros(0, dtype=np.intp),
    )


def halves(ids: Sequence[str]) -> tuple[list[str], list[str]]:
    """(tune, gate): the queries at even and at odd places, so that a weight is chosen on the one and judged on the other."""
    return list(ids[::2]), list(ids[1::2])


def sweep(
    evaluation: Evaluation, queries: Sequence[str], alphas: Sequence[float] = ALPHAS, *, adaptive: bool = True
) -> dict[float, float]:
    """Weight of the dense leg → mean nDCG@10 of `tm2c2` over `queries`, from the candidates kept: no search is made.

    `adaptive` lets the weight follow the evidence of each query's words, as the setting does.
    """
    qrels = {query: evaluation.qrels[query] for query in queries}
    kept = {query: evaluation.candidates[query] for query in queries if query in evaluation.candidates}
    found = {}
    for alpha in alphas:
        rankings = {q: _documents(c, fuse(c, method="tm2c2", alpha=alpha, adaptive=adaptive)) for q, c in kept.items()}
        found[alpha] = means(measured(qrels, rankings, [MAIN]))[MAIN]
    return found


def table(evaluation: Evaluation) -> str:
    """The result as a Markdown table, with the comparison and what was noted below it."""
    lines = [
        f"{evaluation.dataset}: {evaluation.queries:,} queries, {evaluation.documents:,} documents, "
        f"{evaluation.passages:,} passages, alpha {evaluation.manifest['alpha']:g}",
        "",
        "| mode | " + " | ".join(MEASURES) + " |",
        "|---" * (len(MEASURES) + 1) + "|",
    ]
    for mode, values in evaluation.modes.items():
        lines.append(f"| {mode} | " + " | ".join(f"{values[name]:.4f}" for name in MEASURES) + " |")
    seen = evaluation.comparison
    lines += [
        "",
        f"hybrid against {evaluation.best_leg} ({MAIN}): {seen.difference:+.4f}, "
        f"{seen.confidence:.0%} interval {seen.low:+.4f} to {seen.high:+.4f}, at least {seen.bound:+.4f}, "
        f"p {seen.p_value:.4f}",
    ]
    if evaluation.refused:
        lines.append(f"{len(evaluation.refused):,} queries are empty or too long to be searched: answered with nothing")
    lines += evaluation.notes
    return "\n".join(lines + _sweep_lines(evaluation))


def _sweep_lines(evaluation: Evaluation) -> list[str]:
    if not evaluation.sweeps:
        return []
    lines = [
        "",
        f"| alpha ({MAIN}) | " + " | ".join(evaluation.sweeps) + " |",
        "|---" * (len(evaluation.sweeps) + 1) + "|",
    ]
    for alpha in next(iter(evaluation.sweeps.values())):
        lines.append(f"| {alpha:.2f} | " + " | ".join(f"{s[alpha]:.4f}" for s in evaluation.sweeps.values()) + " |")
    return lines


def _answered(
    dataset: Dataset, system: System, engine: ResidentEngine, *, progress: bool
) -> tuple[dict[str, Rankings], dict[str, Candidates], list[str]]:
    """Mode → query → documents; the candidates of each query; the queries that were refused."""
    searcher = system.searcher(engine)
    rankings: dict[str, Rankings] = {mode: {} for mode in MODES}
    kept: dict[str, Candidates] = {}
    refused = []
    bar = tqdm(dataset.queries.items(), desc="searching", unit=" queries", disable=None if progress else True)
    for query, text in bar:
        try:
            request = SearchRequest.checked(text)
        except InvalidQuery:
            refused.append(query)
            continue
        kept[query] = both = _candidates(searcher, engine, request)
        for mode, found in _by_mode(searcher, engine, request, both).items():
            rankings[mode][query] = found
    return rankings, kept, refused


def _by_mode(
    searcher: Searcher, engine: ResidentEngine, request: SearchRequest, both: Candidates
) -> dict[str, list[str]]:
    parameters = searcher.fusion
    alone = {name: leg(both, name, limit=parameters.candidates) for name in LEGS}
    if len(both.dense) and np.isnan(both.dense).all():  # a query without meaning: only the dense mode asks that leg
        alone["dense"] = _candidates(searcher, engine, replace(request, mode="dense"))
    by_rank = fuse(both, method="rrf", alpha=parameters.alpha, rrf_k=parameters.rrf_k)
    return {
        **{name: _documents(found, searcher.fused(found)) for name, found in alone.items()},
        "rrf": _documents(both, by_rank),
        "hybrid": _documents(both, searcher.fused(both)),
    }


def _candidates(searcher: Searcher, engine: ResidentEngine, request: SearchRequest) -> Candidates:
    """Raises Unavailable where a leg failed: a figure of half a search would be taken for the whole."""
    (question,) = searcher.understand([request])
    (found,) = searcher.candidates(engine, [request], [question])
    if isinstance(found, NotReady):
        raise found
    failed = {**question.failed, **found.failed}
    if failed:
        raise Unavailable(
            f"the {' and the '.join(failed)} leg failed at the query {request.text!r}: {'; '.join(failed.values())}",
            "see the log; run again",
        )
    return found


def _documents(candidates: Candidates, fused: Fused) -> list[str]:
    return Ranking(candidates, fused).article_ids


def _rounded(values: Mapping[Any, float]) -> dict[Any, float]:
    return {name: round(value, _DECIMALS) for name, value in values.items()}
