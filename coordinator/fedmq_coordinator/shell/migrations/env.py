"""How a journal of an older version becomes one of this version: a revision a version, run by Alembic.

A revision is named by the version of the journal that it leads to, and speaks of tables as they were then, never of
`store_schema`, which goes on changing. All that lack run in one transaction, on the connection that `store_versions`
hands over; there is no way back but a backup. Alembic finds these files by their path: the folder is no package.
"""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
