"""Keys of the whole run: one domain among several cannot have a value of its own for them."""

from __future__ import annotations

# Beside each, where the whole run's value goes.
OF_THE_RUN: dict[str, dict[str, str]] = {
    "econfig": {
        "domain": "the name in domains.NAME says it",
        "user_engine": "one server plays the users of all domains",
        "turn_discount": "the algorithm applies it to the whole batch",
        "invalid_format_penalty": "the algorithm applies it to the whole batch",
    },
    "train_dataset": {
        "batch_size": "a batch holds tasks of all domains",
        "batches_per_epoch": "a batch holds tasks of all domains",
        "accept_changed_tasks": "a checkpoint is accepted as a whole",
    },
    "valid_dataset": {},
}
