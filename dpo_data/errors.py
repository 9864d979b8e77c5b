"""Every error a user can meet. Each says what happened, where, and what to do about it, in one line.

DpoDataError
├── RecipeError        the recipe does not parse, holds a secret, or names code unallowed      exit 2
├── InputError         a prompts file cannot be read: file, line, what was expected            exit 2
├── TemplateError      a judge's prompt computes, or names a variable that does not exist      exit 2
├── StaleRun           the run directory was made by another recipe                            exit 3
├── NotReady           a stage was asked for before the one it stands on                       exit 3
├── EngineError        no such model, server refused, engine died                              exit 4
│   └── OutOfMemory    the model or its batch is too large for the memory                      exit 4
├── ArgillaError       no Argilla, it refuses, or this machine's own does not start            exit 4
├── StoreError         the object store is away, refuses, or lacks the bucket                  exit 4
├── TrainError         training cannot start or has failed                                     exit 4
├── PublishError       no token, no rights, a repository or tag that is taken, the Hub is away exit 4
├── TooManyFailures    more rows of a stage failed than the recipe allows                      exit 5
├── EmptyStage         a stage would end with no rows                                          exit 5
├── GateClosed         a gate of the recipe does not hold, so nothing is published or trained  exit 5
├── OutOfDisk          the run directory's disk is full                                        exit 6
├── InUse              another process works in the run directory                               exit 75
├── OverBudget         the judges have used up what the recipe gives them; raise it to go on   exit 75
└── Unfinished         a stage waits for somebody; run again to go on                          exit 75
"""


class DpoDataError(Exception):
    """An error with its remedy. `str(error)` is one line: what, then the remedy."""

    exit_code = 1

    def __init__(self, what: str, remedy: str = ""):
        self.what = " ".join(what.split())
        self.remedy = " ".join(remedy.split())
        super().__init__(f"{self.what.rstrip('.')}. {self.remedy}" if remedy else self.what)

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.what, self.remedy)


class RecipeError(DpoDataError):
    exit_code = 2


class InputError(DpoDataError):
    exit_code = 2


class TemplateError(DpoDataError):
    exit_code = 2


class StaleRun(DpoDataError):
    exit_code = 3


class NotReady(DpoDataError):
    exit_code = 3


class EngineError(DpoDataError):
    exit_code = 4


class OutOfMemory(EngineError): ...


class ArgillaError(DpoDataError):
    exit_code = 4


class StoreError(DpoDataError):
    exit_code = 4


class TrainError(DpoDataError):
    exit_code = 4


class PublishError(DpoDataError):
    exit_code = 4


class TooManyFailures(DpoDataError):
    exit_code = 5


class EmptyStage(DpoDataError):
    exit_code = 5


class GateClosed(DpoDataError):
    exit_code = 5


class OutOfDisk(DpoDataError):
    exit_code = 6


class InUse(DpoDataError):
    exit_code = 75


class OverBudget(DpoDataError):
    exit_code = 75


class Unfinished(DpoDataError):
    exit_code = 75
