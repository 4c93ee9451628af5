"""Every error that Yeoul raises on purpose.

    YeoulError
    ├── InvalidInput            what the caller gave cannot be used
    │   ├── InvalidArticle      an article breaks a rule of its fields
    │   ├── InvalidQuery        a search request breaks a rule
    │   ├── InvalidSetting      a setting has a value that cannot work
    │   └── UnreadableSource    a file or a data set cannot be read
    ├── TooLarge                the thing is fine, there is too much of it
    ├── ArticleNotFound
    ├── SourceNotFound
    ├── JobNotFound
    ├── OlderRevision           a newer version of the article is already accepted
    ├── SourceChanged           a source was changed or removed while it was read
    ├── LogPruned               the change log does not reach back so far: load anew
    ├── Unavailable             a part is down or not ready: try again
    │   ├── StoreUnavailable    the collection or the state database does not answer
    │   ├── SourceUnavailable   a place where articles come from does not answer
    │   ├── QueueFull           more changes wait in the inbox than it is allowed to hold
    │   ├── Overloaded          more is asked at once than can be answered in time
    │   └── NotReady            the index is still loading, or a wait ran out
    ├── FolderInUse             another process holds the data folder
    ├── ManifestMismatch        the index was made with another encoder, dictionary or chunking
    └── EncoderFailed           the model cannot be loaded or raised while encoding

An error takes the *thing* and builds its text: what was wrong, the value seen, the cure (`hint`). `code` is its stable
name for programs. Nothing here knows HTTP: `api/errors.py` maps classes to status codes.
"""

from __future__ import annotations

import math

_MAX_SHOWN_CHARS = 80  # of an offending value: enough to recognise it, little enough for one line of log


def shown(value: object) -> str:
    """`value` as it is quoted in an error: `repr`, printable, at most 80 characters."""
    text = repr(value).encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 1] + "…"


class YeoulError(Exception):
    """The root: `message` says what was wrong, `hint` says the cure."""

    code = "internal_error"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        """For its way from one process to another: whatever an error was made of, it is the same there."""
        return _again, (type(self), self.args), self.__dict__


def _again(kind: type[YeoulError], arguments: tuple[object, ...]) -> YeoulError:
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    return error


class InvalidInput(YeoulError):
    code = "invalid_input"


class InvalidArticle(InvalidInput):
    code = "invalid_article"

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(
            f"article field {field!r} should be {rule}, is {shown(value)}", f"correct {field!r} and send again"
        )
        self.field = field


class InvalidQuery(InvalidInput):
    code = "invalid_query"

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(f"search parameter {field!r} should be {rule}, is {shown(value)}", f"correct {field!r}")
        self.field = field


class InvalidSetting(InvalidInput):
    code = "invalid_setting"

    def __init__(self, name: str, value: object, rule: str) -> None:
        variable = "YEOUL_" + name.upper().replace(".", "__")
        super().__init__(
            f"setting {name!r} should be {rule}, is {shown(value)}",
            f"set it in yeoul.toml or in the environment as {variable}",
        )


class UnreadableSource(InvalidInput):
    code = "unreadable_source"


class TooLarge(YeoulError):
    code = "too_large"

    def __init__(self, what: str, size: int, limit: int, unit: str) -> None:
        super().__init__(f"{what} is {size:,} {unit}, at most {limit:,} are taken", "split it into smaller parts")


class ArticleNotFound(YeoulError):
    code = "article_not_found"

    def __init__(self, article_id: str) -> None:
        super().__init__(f"no article has the id {shown(article_id)}", "ids are case-sensitive; was it ever published?")


class SourceNotFound(YeoulError):
    code = "source_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"no source has the name {shown(name)}", "yeoul sources list shows them; names are case-sensitive"
        )


class JobNotFound(YeoulError):
    code = "job_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(f"no job has the name {shown(name)}", "GET /v1/admin/jobs lists them")


class OlderRevision(YeoulError):
    code = "older_revision"

    def __init__(self, article_id: str, given: str, kept: str) -> None:
        super().__init__(
            f"article {shown(article_id)} was sent with updated_at {given}, but {kept} is already accepted",
            "send a later updated_at, or leave it out to mean 'now'",
        )


class SourceChanged(YeoulError):
    code = "source_changed"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the source {shown(name)} was changed or removed while it was read", "run it again, as it is now"
        )


class LogPruned(YeoulError):
    code = "log_pruned"

    def __init__(self, position: int) -> None:
        super().__init__(
            f"the change log after line {position:,} is gone", "nothing to do: what is visible is read anew"
        )


class Unavailable(YeoulError):
    code = "unavailable"


class StoreUnavailable(Unavailable):
    code = "store_unavailable"

    def __init__(self, store: str, address: str, why: str, hint: str) -> None:
        super().__init__(f"the {store} at {address} does not answer: {why}", hint)


class SourceUnavailable(Unavailable):
    """`status`: of the HTTP answer, where there was one."""

    code = "source_unavailable"

    def __init__(
        self, place: str, why: str, hint: str = "the next run begins where this one ended", *, status: int | None = None
    ) -> None:
        super().__init__(f"the source {place} gives nothing: {why}", hint)
        self.status = status


class QueueFull(Unavailable):
    code = "queue_full"

    def __init__(self, waiting: int, limit: int) -> None:
        super().__init__(
            f"{waiting:,} changes wait to be indexed, at most {limit:,} are taken (indexers.queue_limit)",
            "send again in a while what was not taken, or see why the worker does not come forward",
        )


class Overloaded(Unavailable):
    """`retry_after`: whole seconds, at least 1, after which what waits now will be done."""

    code = "overloaded"

    def __init__(self, what: str, waiting: int, seconds: float) -> None:
        self.retry_after = max(1, math.ceil(seconds))
        super().__init__(
            f"too many ask at once: {waiting:,} wait for {what} already",
            f"ask again in {self.retry_after} s, more slowly; where it goes on, more processes are needed",
        )


class NotReady(Unavailable):
    code = "not_ready"


class FolderInUse(YeoulError):
    code = "folder_in_use"

    def __init__(self, folder: str, holder: str) -> None:
        super().__init__(
            f"the data folder {folder} is in use by {holder}",
            "Milvus Lite belongs to one process: stop that one, use its HTTP API, or set milvus.uri to a Milvus server",
        )
        self.holder = holder


class ManifestMismatch(YeoulError):
    code = "manifest_mismatch"

    def __init__(self, differences: dict[str, tuple[object, object]]) -> None:
        parts = "; ".join(
            f"{name}: index {shown(made)}, running {shown(now)}" for name, (made, now) in differences.items()
        )
        super().__init__(
            f"the index was made with other settings ({parts})",
            "set them back, or build the index anew with them: yeoul rebuild",
        )
        self.differences = differences


class EncoderFailed(YeoulError):
    code = "encoder_failed"
