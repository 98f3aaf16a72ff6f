"""How a job ends that cannot do its work, in one sentence."""

import torch

from fastlatent.jobs.naming import setting


class UsageError(ValueError):
    """A command or function was called wrongly: one sentence, of a command exit code 2."""


class LaunchError(UsageError):
    """This process knows too little of the others: it speaks for itself."""


class RunError(Exception):
    """The command could not do its work: one sentence, exit code 1."""


class Stopped(Exception):
    """A signal ended the command and what it had is saved: one sentence, exit code 128 + signal."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


class Heard(BaseException):
    """A signal has come inside `Signals.at_once`; no handler of errors is to take it for one."""

    def __init__(self, signal_number: int):
        super().__init__(signal_number)
        self.signal_number = signal_number


class Told(Exception):
    """Another process of the command says what is wrong: no sentence, only the exit code."""

    def __init__(self, code: int):
        super().__init__("another process of this command says what is wrong")
        self.code = code


def sentence_of(error: BaseException) -> str:
    """What went wrong, in one sentence."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'input or output'}: {error.strerror}"
    if isinstance(error, MemoryError) and not str(error):
        return "out of memory"
    return computing_failure(error) or " ".join(str(error).split()) or type(error).__name__


def computing_failure(error: BaseException) -> str | None:
    """The sentence for an error of PyTorch that lies in the machine and not in the program."""
    text = str(error).strip()
    first = text.split("\n", 1)[0]
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of GPU memory: {first}"
    if "DefaultCPUAllocator" in text or "not enough memory" in text:
        return f"out of memory: {first.rpartition('DefaultCPUAllocator: ')[2]}"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"{setting('compile', True)} does not work here: {first}"
    return None
