"""Run by Alembic: migrates over the connection that `gchat.serve.site.migrating` hands in."""

from alembic import context

from gchat.serve.site.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transaction_per_migration=False,
)
context.run_migrations()
