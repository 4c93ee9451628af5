"""Alembic's entry: runs the migrations on the engine that `StateDatabase` hands over."""

from alembic import context

from pipeline.storage.tables import metadata

engine = context.config.attributes["engine"]
with engine.connect().execution_options(yeoul_write=True) as connection:
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
