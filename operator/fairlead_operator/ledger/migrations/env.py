"""Alembic's entry: runs the migrations on the connection that ``schema.migrate`` hands over."""

from alembic import context

from fairlead_operator.ledger.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
