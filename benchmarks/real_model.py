"""Trains a real pretrained model: SmolLM2-135M-Instruct on retail, untrained, after fine-tuning, after GRPO.

tau2's full policy and all tools are in the prompt, the scripted user answers, everything is computed in the dtype that
``actor=smollm2`` chooses for the processor. Policies are scored on training tasks and on held-out ones, sampled
(``--trials`` a task) and greedy.

    python benchmarks/real_model.py                a short trial of the program: two tasks, one step; not a result
    python benchmarks/real_model.py --full         everything; hours on two cores
    python benchmarks/real_model.py --full --until sft     no further than this stage
    python benchmarks/real_model.py --report       tables and figure of what is there

Each stage is a command of the project in a process of its own, and is made once: the same call goes on with the first
stage that is not there, and inside fine-tuning and GRPO at the newest checkpoint. So the work can be divided over as
many sittings as it takes. The model reads 8,192 tokens, so tasks whose honest demonstration has more than ``--longest``
tokens are left out; ``train.txt`` and ``test.txt`` in the folder name the others.

The last line is JSON: differences of pass^1 between GRPO and fine-tuning, and their aims.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import real_model_report as report

EXPERIMENT = "experiment=smollm2-retail"
# The untrained policy talks until the limits, so its scores take longest and say least.
STAGES = ("tasks", "sft", "sft_scores", "grpo", "grpo_scores", "untrained")
SHORT = (
    "train_dataset.batch_size=2", "train_dataset.batches_per_epoch=1", "gconfig.n_samples=2", "econfig.max_steps=40",
    "trainer.max_epochs=1", "warm_start.epochs=1", "warm_start.demonstrations=2", "gconfig.max_new_tokens=24",
)  # fmt: skip


class Work:
    """The folder of one proof, and the stages that lead to its end."""

    def __init__(
        self, folder: Path, words: Sequence[str], *, trials: int, context: int, longest: int, limit: int | None
    ) -> None:
        self.folder, self.trials, self.longest, self.limit = folder.absolute(), trials, longest, limit
        self.folder.mkdir(parents=True, exist_ok=True)
        base = with_context(self.folder / "base", context, [EXPERIMENT, *words])
        sizes = [f"gconfig.max_tokens={context}", f"actor.max_tokens_per_mb={context}"]
        place = [f"output_dir={self.folder}", "experiment_name=runs", f"actor.path={base}"]
        self.words = [EXPERIMENT, *place, *sizes, *words]

    def stage(self, name: str) -> None:
        """Make one stage, or what of it is missing."""
        match name:
            case "tasks":
                for split in ("train", "test"):
                    self._choose_tasks(split)
            case "sft":
                self.fine_tuned()
            case "grpo":
                self.trained()
            case "untrained":
                self._score(name, None)
            case "sft_scores":
                self._score("sft", self.fine_tuned())
            case _:
                self._score("grpo", self.trained())

    def fine_tuned(self) -> Path:
        """The policy after fine-tuning; a repeated command finds it in the cache."""
        tasks = self.folder / "train.txt"
        count = sum(not line.startswith("#") for line in tasks.read_text().splitlines())
        words = [f"train_dataset.split={tasks}", *(() if self.limit else [f"warm_start.demonstrations={count}"])]
        printed = self._run("tau2_lightning.sft", words)
        return Path(printed.splitlines()[-1])

    def trained(self) -> Path:
        """The policy after GRPO; a run that was cut off goes on at its newest checkpoint."""
        runs = report.runs_called(self.folder, "grpo")
        if ended := [run / "policy" for run in runs if (run / "policy" / "model.safetensors").is_file()]:
            return ended[-1]
        begun = [run for run in runs if any((run / "checkpoints").glob("*.ckpt"))]
        name = begun[-1].name if begun else f"grpo-{len(runs) + 1}"
        words = [f"actor.path={self.fine_tuned()}", f"train_dataset.split={self.folder / 'train.txt'}"]
        self._run("tau2_lightning.train", [*words, f"trial_name={name}", *(["ckpt_path=last"] if begun else [])])
        return self.folder / "runs" / name / "policy"

    def _score(self, name: str, policy: Path | None) -> None:
        """Validate ``policy`` on the chosen tasks of both splits, sampled and greedy, as far as that was not done."""
        for split in ("train", "test"):
            for how in ("sampled", "greedy"):
                wanted = f"{name}-{split}-{how}"
                if report.finished(self.folder, wanted) is not None:
                    continue
                number = len(report.runs_called(self.folder, wanted)) + 1
                trials = ["valid_dataset.greedy=true", "valid_dataset.num_trials=1"]
                if how == "sampled":
                    trials = [f"valid_dataset.num_trials={self.trials}"]
                words = ["mode=validate", f"valid_dataset.split={self.folder / split}.txt", *trials]
                words += [f"trial_name={wanted}-{number}", *([f"actor.path={policy}"] if policy else [])]
                self._run("tau2_lightning.train", words)

    def _choose_tasks(self, split: str) -> None:
        """Write the ids of the tasks whose honest demonstration is short enough, the shortest first."""
        target = self.folder / f"{split}.txt"
        if target.is_file():
            return
        lengths = demonstrated_lengths([*self.words, f"train_dataset.split={split}"])
        chosen = sorted((task for task, length in lengths.items() if length <= self.longest), key=lengths.__getitem__)
        head = f"# {len(chosen)} of {len(lengths)} tasks of {split}: demonstrations of at most {self.longest} tokens"
        target.write_text("\n".join([head, *chosen[: self.limit]]) + "\n")
        print(f"{target}: {head[2:]}", flush=True)

    def _run(self, module: str, words: Sequence[str]) -> str:
        """Run a command of the project, which shows its progress on stderr; returns what it printed."""
        command = [sys.executable, "-m", module, *self.words, *words]
        print(f"-> {module} {' '.join(words)}", flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
        if done.returncode:
            print(done.stdout, flush=True)
            raise SystemExit(f"{module} ended with exit code {done.returncode}; the same call goes on from there")
        return done.stdout


def with_context(folder: Path, tokens: int, words: Sequence[str]) -> Path:
    """A copy of the experiment's policy whose configuration allows ``tokens`` positions; made once.

    Nothing else changes: rotary embeddings need no table, and only pairs of tokens farther apart than in pretraining
    are new to the model.
    """
    from tau2_lightning.policy.gguf import given_policy
    from tau2_lightning.run.compose import load_config

    if (folder / "config.json").is_file():
        return folder
    given = Path(given_policy(load_config(words).actor))
    made = folder.with_name(f".{folder.name}")
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(given, made)
    config = json.loads((made / "config.json").read_text())
    config["max_position_embeddings"] = max(tokens, config["max_position_embeddings"])
    (made / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    made.rename(folder)
    return folder


def demonstrated_lengths(words: Sequence[str]) -> dict[str, int]:
    """Tokens of an honest demonstration of each training task, by task id; tasks that have none are left out."""
    from tau2_lightning.environment.demonstrations import demonstrate
    from tau2_lightning.environment.experts.turns import LeftOut
    from tau2_lightning.environment.settings import environment_settings
    from tau2_lightning.evaluation.resuming import training_tasks
    from tau2_lightning.policy.dialogues import TextDialogue
    from tau2_lightning.policy.gguf import given_policy
    from tau2_lightning.rollout.engines import chat_format_of
    from tau2_lightning.run.compose import load_config
    from tau2_lightning.warm_start.encoding import encode_as_sessions

    config = load_config(words)
    settings, dialogues = environment_settings(config.econfig), []
    for task in training_tasks(config):
        try:
            made, _ = demonstrate(settings, task, random.Random(0), 0.0, {})
        except LeftOut as reason:
            print(f"task {task.task_id} has no demonstration: {reason}")
            continue
        dialogues.append(TextDialogue(made.messages, made.tools, task=task.task_id))
    form = chat_format_of(config, given_policy(config.actor))
    lengths = {}
    for dialogue in dialogues:
        rows, _ = encode_as_sessions(form, [dialogue], config.rollout.history_policy)
        lengths[str(dialogue.task)] = max(map(len, rows))
    return lengths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the whole proof, not a short look")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage to make")
    parser.add_argument("--report", action="store_true", help="tables and figure of what is there; make nothing")
    parser.add_argument("--trials", type=int, default=4, help="episodes per task of a sampled score")
    parser.add_argument("--context", type=int, default=10240, help="tokens that the model's copy may read")
    parser.add_argument("--longest", type=int, default=9300, help="tokens of a demonstration; of --context that fit")
    parser.add_argument("--folder", type=Path, default=Path("outputs/real_model"))
    parser.add_argument("words", nargs="*", help="overrides of the configuration")
    options = parser.parse_args()
    folder = options.folder / ("" if options.full or options.report else "short")
    if not options.report:
        words = [*(() if options.full else SHORT), *options.words]
        trials, limit = (options.trials, None) if options.full else (2, 2)
        sizes = {"context": options.context, "longest": options.longest}
        work = Work(folder, words, trials=trials, limit=limit, **sizes)
        for name in STAGES[: STAGES.index(options.until) + 1]:
            work.stage(name)
    text = report.tables(folder)
    (folder / "report.md").write_text(text + "\n")
    report.figure(folder, folder / "curve.svg")
    print(text)
    if not options.full and not options.report:
        print("\nThis was the short form: it shows that the program works, not that the policy learns. Use --full.")
    print(json.dumps({"ratios": report.differences(folder), "aims": report.AIMS}))


if __name__ == "__main__":
    main()
