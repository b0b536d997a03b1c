"""A user's script on two ranks, as docs/python.md describes it: ``script_of_two_ranks.py POLICY FOLDER``. Lightning
starts it once for each rank. The service is made up; everything else is real."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L

import tau2_lightning
from tau2_lightning import rank_zero
from tau2_lightning.run import policy as policy_checks
from tests.fake_service import FakeService, group
from tests.jobs import own_words


def main(policy: str, folder: str) -> None:
    service = FakeService([group(0, [1.0, 0.0, 0.0, 1.0])], [group(1, [0.0, 1.0, 0.0, 1.0])])
    setattr(rank_zero, "RolloutService", lambda *_, **__: service)  # noqa: B010
    setattr(policy_checks, "check_prompts", lambda *_: None)  # noqa: B010
    words = [*own_words(Path(policy), Path(folder)), f"cache_dir={folder}/cache", "domain=mock", "~callbacks.results"]
    small = ["allocation_mode=vllm:d1+archon:d2", "train_dataset.batches_per_epoch=2", "valid_dataset.limit=2"]
    with tau2_lightning.prepare([*words, *small]) as run:
        module, data = run.module(), run.datamodule()
        trainer = L.Trainer(
            strategy=run.strategy(), accelerator="cpu", devices=2, max_epochs=1, callbacks=run.callbacks(),
            logger=run.logger(), enable_progress_bar=False, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
        if trainer.is_global_zero:
            assert service.published == [1, 2] and module.weights_version == 2
            print(tau2_lightning.write_report(run.root))
        else:
            assert not service.started and data.rollouts.service is None


if __name__ == "__main__":
    main(*sys.argv[1:])
