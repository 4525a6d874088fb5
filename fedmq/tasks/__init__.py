"""Tasks that come with fedmq, for the demo and for trying out. Each module defines `task`.

They need scikit-learn, for its data sets: `pip install 'fedmq[demo]'`.
"""

from __future__ import annotations

from typing import Final

BUILT_IN: Final[dict[str, str]] = {
    "digits": "fedmq.tasks.digits",
    "iris": "fedmq.tasks.iris",
    "breast-cancer": "fedmq.tasks.breast_cancer",
}
"""The name of a task in commands and settings -> the module that defines it."""
