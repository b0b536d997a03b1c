"""Arguments of Lightning's Trainer that cannot be set here: why, and what to use instead."""

from __future__ import annotations

from tau2_lightning.errors import Violation

_STRATEGY = "the strategy decides it from allocation_mode"
_OWN_GRADIENTS = "the module makes its optimizer steps itself, in the order that pipeline schedules need"

# Argument of lightning.Trainer -> (why it cannot be set, what to do).
REFUSED: dict[str, tuple[str, str]] = {
    "strategy": (_STRATEGY, "Use allocation_mode=vllm:d1+archon:d4p2t1"),
    "devices": (_STRATEGY, "Use allocation_mode, and cluster.n_gpus_per_node"),
    "num_nodes": (_STRATEGY, "Use cluster.n_nodes"),
    "precision": ("the strategy computes in the precision of the actor", "Use actor.precision=fp32 or bf16"),
    "plugins": (_STRATEGY, "Use allocation_mode and scheduler.type"),
    "sync_batchnorm": ("causal language models have no batch normalisation", "Leave it out"),
    "use_distributed_sampler": ("every rank gets the whole batch and takes its share by tokens", "Leave it out"),
    "inference_mode": ("weights under inference mode cannot be trained afterwards", "Leave it out; it is off"),
    "accumulate_grad_batches": (
        _OWN_GRADIENTS,
        "Use train_dataset.batch_size for the size of a batch, actor.max_tokens_per_mb for that of a micro-batch",
    ),
    "gradient_clip_val": (_OWN_GRADIENTS, "Use actor.optimizer.gradient_clipping"),
    "gradient_clip_algorithm": (_OWN_GRADIENTS, "Use actor.optimizer.gradient_clipping, which clips by norm"),
    "logger": ("loggers are a section of their own", "Use logger=csv|tensorboard|wandb or logger.mine._target_=..."),
    "callbacks": ("callbacks are a section of their own", "Use callbacks.mine._target_=my_package.MyCallback"),
    "enable_checkpointing": ("checkpoints are a callback", "Use trainer.save_top_k=0 or ~callbacks.checkpoints"),
    "enable_progress_bar": ("progress is a callback", "Use trainer.progress=off or ~callbacks.progress"),
    "enable_model_summary": (
        "a model that is laid out over ranks has no single summary",
        "Use callbacks.summary._target_=lightning.pytorch.callbacks.ModelSummary for this rank's part",
    ),
    "default_root_dir": ("a run has one folder for all it writes", "Use output_dir, experiment_name, trial_name"),
    "fast_dev_run": ("a run needs a policy, an engine and checkpoints", "Use experiment=quick"),
    "limit_train_batches": ("batches are made, not read", "Use train_dataset.batches_per_epoch"),
    "overfit_batches": ("every batch is played anew", "Use valid_dataset.limit and train_dataset.batches_per_epoch"),
    "limit_test_batches": ("there is no test loop", "Use mode=validate valid_dataset.split=test"),
    "limit_predict_batches": ("there is no predict loop", "Use mode=validate"),
    "check_val_every_n_epoch": ("validations have a key of this project", "Use trainer.validate_every_n_epochs"),
    "val_check_interval": ("validations come between epochs", "Use trainer.validate_every_n_epochs, shorter epochs"),
    "num_sanity_val_steps": ("a validation plays episodes", "Use trainer.validate_before"),
    "reload_dataloaders_every_n_epochs": ("every epoch plays new episodes already", "Leave it out"),
    "deterministic": ("rollouts decide what is repeatable", "Use seed, and rollout.seeded_sampling=true"),
    "benchmark": ("there are no convolutions to tune", "Leave it out"),
    "barebones": ("a run needs its callbacks and loggers", "Leave it out"),
    "enable_autolog_hparams": ("the resolved configuration is logged instead", "Leave it out"),
    "model_registry": ("a run writes its policy to its own folder", "Upload policy/ of the run's folder"),
}


def refused(key: str, value: object) -> Violation | None:
    """The violation for the dotted ``key``, when it is an argument of the Trainer that cannot be set here."""
    section, _, name = key.partition(".")
    if section != "trainer" or name not in REFUSED:
        return None
    why, instead = REFUSED[name]
    return Violation(key, value, f"cannot be set: {why}", instead)
