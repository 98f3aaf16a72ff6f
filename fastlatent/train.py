"""Train a model: `python -m fastlatent.train [PRESET]`, in Python `fastlatent.train(...)`."""

import argparse
import inspect
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, NamedTuple

import tyro

from fastlatent.commands.console import command, parse
from fastlatent.commands.preset_list import preset_lines, registered_lines
from fastlatent.commands.settings import check_changes, starting_point, with_prior
from fastlatent.commands.trained import named_code
from fastlatent.data.config import with_absolute_paths
from fastlatent.files.code import Code
from fastlatent.jobs.environment import check_launch
from fastlatent.jobs.errors import RunError, UsageError
from fastlatent.jobs.progress import say
from fastlatent.jobs.ranks import PATIENCE, gather, is_main_process, joined, together
from fastlatent.presets import DEFAULT_PRESET, TrainConfig
from fastlatent.priors import PriorKind
from fastlatent.runs import Run, State, locked
from fastlatent.training import start, train
from fastlatent.training.learner import Given


@dataclass(frozen=True)
class Command:
    """The command line."""

    training: Annotated[TrainConfig, tyro.conf.arg(name="")]
    style: str | None = None
    """Settings of a GLO preset: paper; or seed, those of the original program, corrected."""
    out: Path | None = None
    """Run folder to make; default: runs/NAME."""
    prior: PriorKind | None = None
    """Prior of a ladder preset, short for --model.prior.kind. Without --out, the run folder is then
    runs/NAME-PRIOR."""
    config: Path | None = None
    """Start from the settings in this config.json or run folder, in place of a preset."""
    resume: Path | None = None
    """Resume the run in this folder, with its settings. A few of them may be changed, such as
    --epochs."""
    resume_or_start: tyro.conf.FlagCreatePairsOff[bool] = False
    """Resume the run in the run folder if it has a checkpoint, else start it. Made for jobs that
    are started again by one and the same command."""
    from_step: int | None = None
    """With --resume: resume from this checkpoint, in place of the newest. What was trained after it
    is dropped."""
    model_from: str | None = None
    """With --resume of a run of a model of your own: Python file or installed module of its
    class."""
    timeout: float = PATIENCE
    """Seconds without a sign of another process, after which it counts as lost."""
    list: tyro.conf.FlagCreatePairsOff[bool] = False
    """List the presets, those with measured results first, and do nothing else."""


DESCRIPTION = f"""Train a model. Its weights, numbers and pictures go into a run folder.

PRESET sets the defaults of all options; without it, {DEFAULT_PRESET} does.
--list shows all presets. --help shows the options that are used most, --help-all every option.

Examples:
  python -m fastlatent.train
  python -m fastlatent.train lbae-mnist --data.root ~/data --epochs 100 --out runs/x
  python -m fastlatent.train ladder-digits --prior gmm
  python -m fastlatent.train --resume runs/x --epochs 200
  torchrun --nproc-per-node 2 -m fastlatent.train lbae-celeba --data.root ~/data
  python -m fastlatent.train lbae-mnist --out runs/x --resume-or-start

Ctrl-C, SIGTERM and SIGUSR1 save a checkpoint and stop, with exit code 128 + signal."""

# The options that plain --help shows, by the last part of their names.
COMMON = frozenset(
    {"style", "out", "prior", "config", "resume", "resume_or_start", "list", "model_from"}
    | {"name", "seed", "epochs", "steps", "batch", "lr", "precision", "device", "compile"}
    | {"eval_every", "pictures_every", "checkpoint_every"}
    | {"dim", "root", "size", "classes", "download"}
)


class Task(NamedTuple):
    """What to train, in which folder, from which checkpoint."""

    config: TrainConfig
    out: Path
    state: State | None = None
    finished: bool = False  # nothing is left to do
    code: Code | None = None  # that the user has named


@command(shared=True, options={})
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and train."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--list" in arguments:
        say("\n".join(preset_lines()))
        return
    check_launch()
    timeout = timeout_in(arguments)
    with joined(patience=timeout), ExitStack() as held:
        with together():
            task = task_of(arguments, held)
        if not gather(task.finished)[0]:
            train(task.config, task.out, task.state, timeout, given=Given(task.code))


def task_of(
    arguments: list[str],
    held: ExitStack,  # takes the lock of the run folder
) -> Task:
    """What the command line asks for."""
    start, arguments = starting_point(arguments)
    description = "\n".join([DESCRIPTION, "", *registered_lines()]).rstrip()
    chosen = parse(Command, arguments, "train [PRESET]", description, Command(start), common=COMMON)
    config = replace(chosen.training, data=with_absolute_paths(chosen.training.data))
    if chosen.prior is not None:
        config = with_prior(config, chosen.prior, rename=chosen.resume is None)
    out = chosen.resume or chosen.out or Path("runs") / config.name
    if chosen.resume is None:
        if chosen.from_step is not None:
            raise UsageError("--from-step needs --resume RUN")
        if not (chosen.resume_or_start and Run(out, config).has_learned()):
            if is_main_process():
                Run.check_free(out)
            held.enter_context(locked(out))
            return Task(config, out, code=named_code(chosen.model_from))
    elif chosen.out is not None:
        raise UsageError("--out does not go with --resume: the run stays in its folder")
    run = Run.open(out)
    if run.path != out:
        raise UsageError(
            f"{out} names trained weights, which have no checkpoint to resume from; "
            "give a run folder"
        )
    changed = check_changes(run.config, config)
    held.enter_context(locked(out))  # already here, as another process may drop what is read
    state = run.load(chosen.from_step)
    if config.data.name != run.config.data.name and "mark" not in state.values:
        raise RunError(
            f"{out} was trained by a version that kept no mark of its images, so --data.name "
            "cannot change"
        )
    for line in changed:
        say(f"changed: {line}")
    finished = chosen.resume_or_start and not changed and run.is_finished(state.step)
    if finished:
        option = "--epochs" if config.steps is None else "--steps"
        say(f"{out} is finished at step {state.step}; {option} takes it further")
    return Task(config, out, state, finished, named_code(chosen.model_from))


def timeout_in(arguments: list[str]) -> float:
    """--timeout, which the processes need before they can read anything else together."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--timeout", type=float, default=PATIENCE)
    try:
        timeout = finder.parse_known_args(arguments)[0].timeout
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from None
    if not 1 <= timeout < float("inf"):
        raise UsageError(f"--timeout must be at least 1 second; got {timeout}")
    return timeout


class _CallableModule(ModuleType):
    """This module as a function: its import sets `fastlatent.train`, which is to be callable."""

    __call__ = staticmethod(start.train)
    __signature__ = inspect.signature(start.train)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    sys.exit(main())
