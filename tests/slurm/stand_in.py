"""Stands in for `python -m dmt_ds` where a test is about the scripts: takes the same arguments, needs no torch.

Overrides: output_dir, steps, seconds (a step), save_every, fail_at (a step), code (its exit code), deaf (to signals
for so many seconds at start, as Python is while it imports), train.stop_after_step, doctor (its exit code),
tracking.parent (is said).
"""

import itertools
import os
import signal
import sys
import time
from pathlib import Path

DEFAULTS = {"output_dir": "run", "steps": "5", "seconds": "0.1", "save_every": "1", "deaf": "0", "doctor": "0"}


def say(text: str) -> None:
    print(f"stand-in {os.environ.get('SLURM_PROCID', '-')}: {text}", flush=True)


def pretrain(settings: dict[str, str]) -> int:
    asked: list[str] = []
    say("importing")
    if "tracking.parent" in settings:
        say(f"stands under {settings['tracking.parent']}")
    time.sleep(float(settings["deaf"]))
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda n, frame: asked.append(signal.Signals(n).name))
    run, main = Path(settings["output_dir"]), os.environ["SLURM_PROCID"] == "0"
    latest = run / "checkpoints" / "latest"
    step = int(latest.read_text().removeprefix("step")) if latest.exists() else 0
    say(
        f"start at {step}, {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}, local {os.environ['SLURM_LOCALID']}"
    )
    if step >= int(settings.get("train.stop_after_step", step + 1)):
        say(f"train.stop_after_step: nothing to do at {step}")
        return 0
    while step < int(settings["steps"]):
        time.sleep(float(settings["seconds"]))
        step += 1
        stops = bool(asked) or str(step) == settings.get("train.stop_after_step")
        if main and (stops or step % int(settings["save_every"]) == 0):
            latest.parent.mkdir(parents=True, exist_ok=True)
            latest.write_text(f"step{step:08d}")
        if str(step) == settings.get("fail_at"):
            return int(settings["code"])
        if stops:
            say(f"saved at {step} after {asked}")
            return 0
    if main:
        (run / "DONE").write_text(str(step))
    say("finished")
    return 0


def main() -> int:
    command, words = sys.argv[3], sys.argv[4:]
    settings = DEFAULTS | dict(word.split("=", 1) for word in words if "=" in word)
    if command in ("pretrain", "finetune", "segment", "detect"):
        say(f"{command} {words}")
        return pretrain(settings)
    if command == "suite":
        print("-c", "vit_tiny", f"output_dir=suite/{words[words.index('--print-run') + 1]}", sep="\n")
        print(*(word for word in words if "=" in word), sep="\n")
        return 0
    if command == "config":
        for key, word in itertools.pairwise(words):
            if key == "--get":
                print(settings.get(word, "null"))
        return 0
    say(f"{command} {words}")
    return int(settings["doctor"])


if __name__ == "__main__":
    sys.exit(main())
