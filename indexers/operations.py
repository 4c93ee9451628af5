"""What the command line asks of whoever has the index open: the process that serves, or the command itself.

An operation gets the assembly, its arguments as JSON has them, and a `Call` for what it has to say; it gives its exit code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from indexers import reconcile
from indexers.rebuild import Conditions, Rebuild
from pipeline.assembly import Assembly
from pipeline.control import Call
from pipeline.index import lite
from pipeline.index.filters import Filter
from pipeline.retrieval.query import SearchRequest
from pipeline.retrieval.unified import unified
from pipeline.storage import manifests, readers

Arguments = Mapping[str, Any]
Operation = Callable[[Assembly, Arguments, Call], int]

_SHOWN_DIFFERENCES = 100
_READERS_SECONDS = 20.0  # for processes that answer to compare their indexes: they look every two seconds
_LOOK_SECONDS = 0.2


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
    if assembly.lock is None:  # a server: what was compared is an index that was loaded for it
        left += _compared_by_readers(assembly, call, repair=arguments["repair"])
    shown = sum(assembly.store.counts().get(status, 0) for status in ("indexed", "queued", "failed"))
    if not found and not left:
        call.tell(f"{shown:,} articles: registry, collection, change log and index agree")
    elif left:
        call.warn(f"{left:,} differences: yeoul verify --repair mends them")
    else:
        call.tell(f"{len(found):,} differences, all mended")
    return 1 if left else 0


def _compared_by_readers(assembly: Assembly, call: Call, *, repair: bool) -> int:
    """Has each process that answers compare what it has in memory; how many differences are left, a process that says nothing
    being one."""
    readers.ask(assembly.database, "repair" if repair else "compare")
    end = time.monotonic() + _READERS_SECONDS
    while any(one.differing is None for one in readers.comparisons(assembly.database)) and time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
    left = 0
    for one in readers.comparisons(assembly.database):
        if one.differing is None:
            call.tell(f"{one.name} has not compared its index within {_READERS_SECONDS:g} s: see its log")
            left += 1
        elif one.differing:
            mended = ", mended" if repair else ""
            call.tell(f"{one.name}: {one.differing:,} articles in memory are not as the registry says{mended}")
            left += 0 if repair else one.differing
        else:
            call.tell(f"{one.name}: its index in memory agrees")
    return left


def rebuild(assembly: Assembly, arguments: Arguments, call: Call) -> int:
    """Builds the index anew as `recipe` says and puts it in use; with `prune`, drops the collections that were kept."""
    work = Rebuild(assembly, tell=call.tell, stopped=call.cancelled.is_set)
    if arguments["prune"]:
        dropped = work.prune()
        call.tell(f"dropped: {', '.join(dropped) or 'nothing was kept'}")
        return 0
    work.to_recipe(arguments["recipe"], _conditions(arguments))
    return 0


def rollback(assembly: Assembly, arguments: Arguments, call: Call) -> int:
    """Puts the collection in use that was before."""
    Rebuild(assembly, tell=call.tell, stopped=call.cancelled.is_set).back(_conditions(arguments))
    return 0


def store(assembly: Assembly, _arguments: Arguments, call: Call) -> int:
    """Gives the address of Milvus Lite, for a process that uses it beside this one, and the name of the collection in use, by
    which that knows that both mean the same installation."""
    in_use = manifests.active(assembly.database)
    address = lite.address_of(assembly.settings.milvus_uri)
    call.give({"address": address, "collection": in_use.name if in_use is not None else ""})
    return 0


# In the command's own process.
OPERATIONS: Mapping[str, Operation] = {
    "search": search,
    "verify": verify,
    "rebuild": rebuild,
    "rollback": rollback,
}
_OF_SERVER: Mapping[str, Operation] = {"search": search, "verify": verify, "store": store}


def of_server(assembly: Assembly) -> dict[str, Callable[[Arguments, Call], int]]:
    """The operations as the process offers them that serves."""
    return {name: partial(operation, assembly) for name, operation in _OF_SERVER.items()}


def _conditions(arguments: Arguments) -> Conditions:
    return Conditions(queries=tuple(arguments["queries"]), min_overlap=arguments["min_overlap"])
