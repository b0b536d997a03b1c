"""Random and adversarial words of the command line, the same for the same seed."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence

from tau2_lightning.config.keys import schema_keys
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.secrets import is_secret

# Secrets that must never be shown: one in a variable, one in the words.
VARIABLE, IN_VARIABLE, IN_WORD = "FUZZ_API_KEY", "canary-of-the-environment-5d1c", "canary-of-the-words-77ab"
# What is executed would make a file of this name in the working directory.
EXECUTED = "executed-by-a-word"
# Not drawn: the caller sets them, so that nothing is written elsewhere and a plan is compared with a start.
FIXED = ("mode", "output_dir", "cache_dir", "experiment_name", "trial_name", "trainer.progress", "trainer.accelerator")

TARGETS = [
    "os.system", "subprocess.run", "subprocess.Popen", "builtins.exec", "builtins.eval", "shutil.rmtree", "os._exit",
    "sys.exit", "pathlib.Path", "os", "", "os..system", "unittest.__main__.main", "pip.__main__.x", "nowhere.Thing",
    "tau2_lightning.train.main", "importlib.import_module", "pickle.loads", "yaml.unsafe_load", "posix.abort",
]  # fmt: skip
VALUES = [
    "", "null", "true", "[]", "{}", "[[]]", "{a: 1}", "{a: {b: {c: []}}}", "[1,2]", "-1", "0", "1e999", "nan", "inf",
    "-inf",
    "9" * 400, "1" * 5000, "x" * 5000, "é", "\udcff", "\x00", "a b", "'", '"', "\\", "{", "}", "[", "]", ":", ",", "=",
    "a=b", "a,b", "~", "...", "..", "../../../../etc/passwd", "/etc/passwd", "/dev/null", "/proc/self/mem", "~/x",
    "%s%n",
    "file:///etc/passwd", "http://[", "http://u:p@h/?api_key=x", "https://", "ftp://x", "0x10", "1_000", "1e-400",
    "+1", "²",
    f"${{oc.env:{VARIABLE}}}", "${oc.env:NO_SUCH_VARIABLE}", f"${{oc.env:{VARIABLE},x}}", "${oc.decode:'{a: 1}'}",
    "${oc.create:{_target_: os.system}}", "${hydra:runtime.cwd}", "${hydra:job.name}", "${now:%Y}", "${rollout}",
    "${actor.path}",
    "${seed}", "${.}", "${..seed}", "${", "${}", "${a:${b}}", "${oc.dict.keys:rollout}", "${oc.select:seed}",
    "${eval:1+1}",
    f"$(touch {EXECUTED})", f"`touch {EXECUTED}`", f"; touch {EXECUTED}", f"| touch {EXECUTED}", f"&& touch {EXECUTED}",
    f"!!python/object/apply:os.system ['touch {EXECUTED}']", "!!python/name:os.system", "!!binary aGk=", "*anchor",
    "&anchor x",
    f"__import__('os').system('touch {EXECUTED}')", "{{ ''.__class__.__mro__ }}", "{% raw %}", "{{ 1/0 }}",
    "range(1,3)", "glob(*)", "choice(1,2)", "sort(3,1)", "shuffle(1,2)", "int(1.5)", "extend_list(1)", "str(x)",
    "tag(a,b)",
]  # fmt: skip
SPOILT = ["%s", "{%s", "[%s", "%s'", '"%s', "%s}", "{api_key: %s", "[%s,%s]", "{a: %s}", "${%s}", "%s %s", "'%s'"]
GROUPS = ["domain", "actor", "algorithm", "rollout", "trainer", "callbacks", "logger", "warm_start", "experiment"]
CHOICES = ["mock", "telecom", "[telecom,mock]", "[mock", "[]", "[mock,mock]", "[mock,nowhere]", "tiny", "hf", "grpo",
    "gspo",
           "null", "default", "../train", "/etc/passwd", "", "a,b", "csv", "wandb", "quick"]  # fmt: skip
HYDRAS = [
    "hydra.run.dir=/tmp/x", "hydra/launcher=joblib", "hydra.verbose=true", "hydra.searchpath=[file:///nowhere]",
    "hydra.mode=RUN",
    "hydra.searchpath=[pkg://os]", "hydra.job.chdir=true", "~hydra.run", "+hydra.x=1",
    "hydra.callbacks={a: {_target_: os.system}}",
    "hydra.searchpath=nonsense", "hydra={}", "hydra=null",
]  # fmt: skip


class Words:
    """Draws the words of one command line after the other."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        keys = [key.name for key in schema_keys(RunConfig)]
        self._keys = [key for key in keys if not key.startswith(FIXED)]
        self._secret = [*filter(is_secret, keys), "domains.mock.econfig.user_llm_api_key", "logger.wandb.api_key",
                        "callbacks.mine.token", "rollout.workflow.api_key", "scheduler.slurm.password",
                        "econfig.user_llm_args.extra_headers.Authorization", "actor.megatron.secret",
                        "rollout.engine_ap_key", "econfig.judge_lm_api_key", "apiKey"]  # fmt: skip

    def draw(self) -> list[str]:
        """One to three words."""
        kinds = [self._of_a_key] * 5 + [self._of_a_target] * 2 + [self._of_a_secret] * 2
        kinds += [self._of_a_group, self._of_hydra, self._noise, self._mutated]
        return [self._rng.choice(kinds)() for _ in range(self._rng.choice([1, 1, 1, 2, 3]))]

    def _of_a_key(self) -> str:
        sign = self._rng.choice(["", "", "", "", "+", "++", "~", "+~", "~+"])
        return f"{sign}{self._rng.choice(self._keys)}{self._rng.choice(['=', '=', '=', '=', '', ':'])}{self._value()}"

    def _of_a_target(self) -> str:
        entry = f"{{_target_: {self._rng.choice(TARGETS)}, command: 'touch {EXECUTED}'}}"
        place = self._rng.choice(
            ["+callbacks.mine=%s", "+logger.mine=%s", "rollout.workflow=%s", "algorithm=%s", "++algorithm=%s",
                "actor=%s",
             "callbacks.progress.style=%s", "econfig.user_llm_args=%s", "gconfig.chat_template_kwargs=%s", "trainer=%s",
             "++callbacks={a: %s}", "scheduler.slurm=%s", "algorithm.reward_clip=%s", "+callbacks.mine.deep={er: %s}",
             "++rollout.engine_args=[%s]", "actor.optimizer=%s", "domains=%s", "+domains.mock=%s"]
        )  # fmt: skip
        word = place % entry
        return word if self._rng.random() < 0.7 else f"algorithm._target_={self._rng.choice(TARGETS)}"

    def _of_a_secret(self) -> str:
        value = self._rng.choice(SPOILT).replace("%s", IN_WORD)
        return f"{self._rng.choice(['', '', '+', '++'])}{self._rng.choice(self._secret)}={value}"

    def _of_a_group(self) -> str:
        return f"{self._rng.choice(['', '', '+', '~'])}{self._rng.choice(GROUPS)}={self._rng.choice(CHOICES)}"

    def _of_hydra(self) -> str:
        return self._rng.choice(HYDRAS)

    def _noise(self) -> str:
        alphabet = string.printable + "éß²\udc80\x00"
        return "".join(self._rng.choice(alphabet) for _ in range(self._rng.randint(1, 40))).lstrip("-") or "x"

    def _mutated(self) -> str:
        word = list(self._rng.choice(["gconfig.n_samples=4", "allocation_mode=vllm:d1+archon:d1p1t1", "seed=7",
                                      "actor.optimizer.lr=1e-4", "trainer.max_steps=3", "rollout.retries=1",
                                      "callbacks.progress.style=plain", "econfig.policy=ticket"]))  # fmt: skip
        for _ in range(self._rng.randint(1, 3)):
            at = self._rng.randrange(len(word))
            word[at : at + self._rng.randint(0, 2)] = self._rng.choices(string.punctuation + string.digits + "ax", k=1)
        return "".join(word).lstrip("-") or "x"

    def _value(self) -> str:
        return self._rng.choice(VALUES)


def quoted(words: Sequence[str]) -> str:
    """Words for the message of a failed test."""
    return " ".join(map(ascii, words))[:2000]
