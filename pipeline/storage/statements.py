"""The statements of the write path, made once: SQLAlchemy takes longer to build one than the database to run it.

Each is run with a row, or with a list of rows, of its parameters; those that are columns to set begin with `new_`.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BindParameter, bindparam, insert, select, update

from pipeline.storage.tables import articles, changes, inbox, leftovers

OF: BindParameter[str] = bindparam("of")
NUMBER: BindParameter[int] = bindparam("number")
AT: BindParameter[datetime] = bindparam("at")
ACCEPTED: BindParameter[datetime | None] = bindparam("accepted")
IN_LANE: BindParameter[int | None] = bindparam("in_lane")
KNOWN = select(articles).where(articles.c.id == OF)
QUEUE = insert(inbox)
REGISTER = insert(articles)
CHANGE = update(articles).where(articles.c.id == OF)  # of whatever columns it is run with
SUPERSEDE = (  # what waited before the settled change
    update(inbox)
    .where(inbox.c.article_id == OF, inbox.c.seq < NUMBER, inbox.c.state == "queued")
    .values(state="superseded", settled_at=AT, payload=None)
)
HURRY = (  # who asks again for what waits does not want to wait longer
    update(inbox)
    .where(inbox.c.seq == NUMBER, inbox.c.state == "queued", inbox.c.lane > IN_LANE)
    .values(lane=IN_LANE, accepted_at=AT, due_at=None)
)
SETTLE = (
    update(inbox)
    .where(inbox.c.seq == NUMBER)
    .values(state=bindparam("new_state"), settled_at=AT, error=bindparam("new_error"), payload=None)
)
SHOW = (
    update(articles)
    .where(articles.c.id == OF)
    .values(revision=bindparam("new_revision"), passages=bindparam("new_passages"), indexed_at=AT, shown_payload=None)
)
SET_STATUS = (  # a newer change may be queued meanwhile: its status stands
    update(articles)
    .where(articles.c.id == OF, articles.c.accepted_seq == NUMBER)
    .values(status=bindparam("new_state"), error=bindparam("new_error"))
)
REPLACED = insert(leftovers).values(
    article_id=OF, revision=NUMBER, passages=bindparam("number_of_passages"), due_at=bindparam("due")
)
LOG = insert(changes).values(
    article_id=OF, revision=bindparam("new_revision"), seq=NUMBER, lane=IN_LANE, accepted_at=ACCEPTED, created_at=AT
)
