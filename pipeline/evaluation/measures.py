"""The measures of the contract over rankings of documents, computed by ir_measures (trec_eval's formulas).

nDCG@10 with linear gains (Järvelin, Kekäläinen 2002), R@k as the part of the relevant documents among the first k, RR@10 as
one over the rank of the first relevant document among the first ten. All in [0, 1], higher is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ir_measures
from ir_measures import RR, R, nDCG

from pipeline.evaluation.datasets import Qrels

MEASURES = {"ndcg@10": nDCG @ 10, "recall@1": R @ 1, "recall@10": R @ 10, "recall@100": R @ 100, "mrr@10": RR @ 10}
MAIN = "ndcg@10"
DEPTH = 100  # documents of a ranking that any measure looks at

Rankings = Mapping[str, Sequence[str]]  # query id → document ids, best first
PerQuery = Mapping[str, Mapping[str, float]]  # measure → query id → value


def measured(qrels: Qrels, rankings: Rankings, names: Sequence[str] = tuple(MEASURES)) -> dict[str, dict[str, float]]:
    """Each measure of each query in `qrels`, in that order; a query without a ranking has 0."""
    # Places for scores: trec_eval would order equal scores by document id, and the order is decided already.
    run = {
        query: {document: -float(place) for place, document in enumerate(ranking[:DEPTH])}
        for query, ranking in rankings.items()
    }
    name_of = {MEASURES[name]: name for name in names}
    values: dict[str, dict[str, float]] = {name: dict.fromkeys(qrels, 0.0) for name in names}
    for metric in ir_measures.iter_calc(list(name_of), {q: dict(grades) for q, grades in qrels.items()}, run):
        values[name_of[metric.measure]][metric.query_id] = float(metric.value)
    return values


def means(per_query: PerQuery) -> dict[str, float]:
    """Each measure's mean over its queries."""
    return {name: sum(values.values()) / len(values) for name, values in per_query.items()}
