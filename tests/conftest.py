"""What every test stands on. A component's own fixtures stand beside its tests, or in a plugin named here."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A shared machine stalls now and then: a property fails by what it computes, never by how long that took.
settings.register_profile(
    "fedmq", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("fedmq")

pytest_plugins = ["tests.broker_fixtures", "tests.postgres_fixtures"]
