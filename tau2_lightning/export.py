"""A checkpoint as a Hugging Face folder: ``python -m tau2_lightning.export CKPT [out=FOLDER] [dtype=bfloat16]``.

It runs in one process, whatever layout wrote the checkpoint, and needs memory for one file of weights.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tau2_lightning.run.exit import exit_code

ABOUT = """usage: python -m tau2_lightning.export CKPT [key=value ...]

Write the policy in a checkpoint as a Hugging Face folder, which any server loads; prints the folder.

  CKPT                    a checkpoint (outputs/E/T/checkpoints/step40.ckpt), a run's folder: its newest checkpoint,
                          or the best.json of a run: its best checkpoint by validated pass^1
  out=FOLDER              where to write; default: exports/<checkpoint> of the run's folder
  dtype=bfloat16          or float16, float32
  merge_adapters=true     false: only the adapters of a LoRA run, as PEFT and vLLM read them
  max_shard_size=5GB      largest size of one file of weights
  base=FOLDER_OR_ID       the model that training started from, if it is no longer where it was
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry. Returns the exit code: 0 done, 1 failed, 2 for what cannot be exported, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(words):
        print(ABOUT, end="")
        return 0
    return exit_code(lambda: _main(words))


def _main(words: list[str]) -> int:
    # Imported here, because `--help` needs neither torch nor transformers.
    import torch

    from tau2_lightning.policy.loading import load_tokenizer
    from tau2_lightning.policy.written import appearing
    from tau2_lightning.run.exporting import Export
    from tau2_lightning.strategy.stored_policy import stored_policy, write_adapter
    from tau2_lightning.strategy.write_faults import naming_write_faults
    from tau2_lightning.telemetry.quiet import quiet_libraries

    quiet_libraries()
    asked = Export.of(words)
    with naming_write_faults("export", asked.out):
        if asked.merge_adapters:
            tokenizer = load_tokenizer(asked.base, asked.template)
            files = stored_policy(asked.checkpoint, asked.base, getattr(torch, asked.dtype))
            files.write(asked.out, tokenizer, asked.shard_bytes)
        else:
            with appearing(asked.out) as partial:
                write_adapter(asked.checkpoint, asked.base, partial)
    print(asked.out)
    return 0


if __name__ == "__main__":
    from tau2_lightning.run.exit import leave

    leave(main())
