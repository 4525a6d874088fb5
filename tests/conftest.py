"""What every test stands on. A component's own fixtures stand beside its tests, or in a plugin named here."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# A shared machine stalls now and then: a property fails by what it computes, never by how long that took.
# Before a change lands the same examples are tried each time; who develops tries new ones.
settings.register_profile(
    "fedmq",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("fedmq")

pytest_plugins = ["tests.broker_fixtures", "tests.postgres_fixtures"]
