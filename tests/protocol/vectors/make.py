"""Write the files of cases in protocol/vectors anew: `python -m tests.protocol.vectors.make`.

Only after a deliberate change of the protocol, in the same commit as its description.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tests.protocol.vectors import grid_cases, model_cases, random_cases, sign_cases, wire_cases
from tests.protocol.vectors.conversation import conversation_cases
from tests.protocol.vectors.form import FOLDER, Case, text_of

FILES: Final[dict[str, tuple[str, Callable[[], list[Case]]]]] = {
    "topics.json": ("Topics taken apart and made, and what may be a name.", wire_cases.topic_cases),
    "keys.json": ("Ed25519 keys, their ids, and signatures.", wire_cases.key_cases),
    "messages.json": ("Every kind of message in its envelope.", wire_cases.message_cases),
    "envelopes.json": ("Packets that are wrong, and strange ones that are not.", wire_cases.envelope_cases),
    "replays.json": ("Packets that come again.", wire_cases.replay_cases),
    "schemas.json": ("Tensor schemas and their hashes.", model_cases.schema_cases),
    "sampling.json": (
        "The rule by which devices are sampled, and whose turn it is.",
        model_cases.sampling_cases,
    ),
    "chunks.json": ("Blobs cut into chunks and put together.", model_cases.chunk_cases),
    "chain.json": ("Chained hashes of versions.", model_cases.chain_cases),
    "grid.json": ("Index sets in the grid code, and its tables.", grid_cases.grid_cases),
    "random.json": (
        "Starts from a seed: recipes for first weights. Masks that a seed stands for, and payloads with them.",
        random_cases.cases,
    ),
    "signs.json": ("Values in the optional coder signs/1.", sign_cases.sign_cases),
    "blobs.json": (
        "Snapshots, deltas, rebases, updates, error feedback, restoring.",
        model_cases.blob_cases,
    ),
    "conversation.json": (
        "Two conversations with a device, packet by packet, in this order.",
        conversation_cases,
    ),
}


def texts() -> dict[str, str]:
    """The text of each file, by its name."""
    return {name: text_of(about, cases()) for name, (about, cases) in FILES.items()}


def main() -> None:
    """Write the files."""
    for name, text in texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
