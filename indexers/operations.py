"""What the command line asks of whoever has the index open: the process that serves, or the command itself.

An operation gets the assembly, its arguments as JSON has them, and a `Call` for what it has to say; it gives its exit code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from indexers import reconcile
from indexers.rebuild import Conditions, Rebuild
from pipeline.assembly import Assembly
from pipeline.control import Call
from pipeline.index.filters import Filter
from pipeline.retrieval.query import SearchRequest
from pipeline.retrieval.unified import unified

Arguments = Mapping[str, Any]
Operation = Callable[[Assembly, Arguments, Call], int]

_SHOWN_DIFFERENCES = 100


def search(assembly: Assembly, arguments: Arguments, call: Call) -> int:
    """Gives the body of GET /v1/search for `query`, `limit`, `mode`, `category` and `explain`."""
    request = SearchRequest.checked(
        arguments["query"],
        limit=arguments["limit"],
        mode=arguments["mode"],
        filter_=Filter(category=arguments["category"]),
    )
    result = assembly.connected.searcher.search(request)
    call.give(unified(result, query=arguments["query"], explain=arguments["explain"]))
    return 0


def verify(assembly: Assembly, arguments: Arguments, call: Call) -> int:
    """Tells every difference between the stores, with `repair` after mending it; 1 where one is left."""
    found = reconcile.verify(assembly.store, assembly.connected, repair=arguments["repair"])
    for difference in found[:_SHOWN_DIFFERENCES]:
        call.tell(str(difference))
    if len(found) > _SHOWN_DIFFERENCES:
        call.tell(f"… and {len(found) - _SHOWN_DIFFERENCES:,} more")
    left = sum(not difference.mended for difference in found)
    shown = sum(assembly.store.counts().get(status, 0) for status in ("indexed", "queued", "failed"))
    if not found:
        call.tell(f"{shown:,} articles: registry, collection, change log and index agree")
    elif left:
        call.warn(f"{left:,} differences: yeoul verify --repair mends them")
    else:
        call.tell(f"{len(found):,} differences, all mended")
    return 1 if left else 0


def rebuild(assembly: Assembly, arguments: Arguments, call: Call, *, serves: bool = False) -> int:
    """Builds the index anew as `recipe` says and puts it in use; with `prune`, drops the collections that were kept."""
    work = Rebuild(assembly, serves=serves, tell=call.tell, stopped=call.cancelled.is_set)
    if arguments["prune"]:
        dropped = work.prune()
        call.tell(f"dropped: {', '.join(dropped) or 'nothing was kept'}")
        return 0
    work.to_recipe(arguments["recipe"], _conditions(arguments))
    return 0


def rollback(assembly: Assembly, arguments: Arguments, call: Call, *, serves: bool = False) -> int:
    """Puts the collection in use that was before."""
    Rebuild(assembly, serves=serves, tell=call.tell, stopped=call.cancelled.is_set).back(_conditions(arguments))
    return 0


OPERATIONS: Mapping[str, Operation] = {
    "search": search,
    "verify": verify,
    "rebuild": rebuild,
    "rollback": rollback,
}


def of_server(assembly: Assembly) -> dict[str, Callable[[Arguments, Call], int]]:
    """The operations as the process offers them that serves, and follows the change log by itself."""
    here: dict[str, Callable[[Arguments, Call], int]] = {}
    for name, operation in OPERATIONS.items():
        here[name] = partial(operation, assembly)
    here["rebuild"] = partial(rebuild, assembly, serves=True)
    here["rollback"] = partial(rollback, assembly, serves=True)
    return here


def _conditions(arguments: Arguments) -> Conditions:
    return Conditions(queries=tuple(arguments["queries"]), min_overlap=arguments["min_overlap"])
