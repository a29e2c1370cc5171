"""Starts runs: here one after the other, or as a job array of SLURM."""

import functools
import os
import pathlib
import shlex
import signal
import subprocess
import time
from collections.abc import Callable

import tqdm
from variants import Run

from mixmo_jax.errors import InputError, Interrupted, write_text
from mixmo_jax.runs.metric_writer import read_metrics

# One task for each command; they stand inside, as SLURM keeps a copy of the script. `srun` passes
# the SIGTERM on that comes before the time is over, and the run saves its step; the shell inside
# waits for that, and the task is queued again. Jobs that are preempted get a SIGTERM, too, and
# SLURM itself queues them again.
_ARRAY = """\
#!/bin/bash
#SBATCH --job-name=mixmo-{name}
#SBATCH --array=1-{count}
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output="{logs}/slurm-%a.log"
cd {folder} || exit 1
command=$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" <<'END'
{commands}
END
)
srun --ntasks=1 bash -c "trap : TERM; $command"
status=$?
if [ "$status" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


def run_here(runs: list[Run]) -> None:
    """Brings each run to its end, with a bar over all of them."""
    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    total = sum(map(_length, runs))
    # The time left follows from the mean speed since the start, as runs differ in theirs.
    kind = {"bar_format": form, "dynamic_ncols": True, "smoothing": 0}
    with tqdm.tqdm(total=total, initial=sum(map(_done, runs)), **kind) as bar:
        for run in runs:
            others = bar.n - _done(run)
            bar.set_description_str(f"{run.label}, seed {run.config.seed}")
            for command in run.missing:
                _run(command, run.folder, functools.partial(_show, bar, others, run))
            bar.update(others + _length(run) - bar.n)


def _show(bar: tqdm.tqdm, others: int, run: Run) -> None:
    """Brings the bar to what is done of a run, beside that of the others."""
    bar.update(others + _done(run) - bar.n)


def _length(run: Run) -> int:
    """How long a run is: its steps, but for the size of the data and of a batch."""
    return run.config.num_epochs * run.config.batch_repetitions


def _done(run: Run) -> int:
    """As much of it as is done."""
    epochs = min(len(read_metrics(run.folder)), run.config.num_epochs)
    return epochs * run.config.batch_repetitions


def _run(command: list[str], folder: pathlib.Path, report: Callable[[], object]) -> None:
    """Runs a command to its end; what it prints goes to a file beside the folder.

    Args:
      command: The command.
      folder: The folder of its run.
      report: Is called while it runs, twice a second.
    """
    log = folder.with_name(f"{folder.name}.log")
    with log.open("ab") as file:
        # In a group of its own, as Ctrl-C would reach it twice: from the terminal, and from here. A
        # second signal ends a run without saving its step.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    signum = signal.SIGINT
    try:
        while process.poll() is None:
            time.sleep(0.5)
            report()
    except KeyboardInterrupt as error:
        signum = getattr(error, "signum", signum)
        raise Interrupted("stopped; the same command resumes", signum) from None
    finally:
        if process.poll() is None:
            process.send_signal(signum)
            process.wait()  # the run saves its step
    if process.returncode:
        *_, last = log.read_text(errors="replace").splitlines() or [""]
        raise InputError(f"{folder}: the run ended with status {process.returncode}: {last}")


def write_slurm(runs: list[Run], output: pathlib.Path) -> pathlib.Path | None:
    """Writes a job array of SLURM, a task for each run that is not finished.

    The commands also stand in commands.txt, a line each, for other schedulers.

    Returns:
      The script for `sbatch`, None if nothing is missing.
    """
    lines = [" && ".join(map(shlex.join, run.missing)) for run in runs if run.missing]
    if not lines:
        return None
    write_text(output / "commands.txt", "\n".join(lines) + "\n")
    text = _ARRAY.format(
        name=output.name,
        count=len(lines),
        logs=output.absolute(),
        folder=shlex.quote(os.getcwd()),
        commands="\n".join(lines),
    )
    write_text(output / "array.sh", text)
    return output / "array.sh"
