"""Every error that posttrain raises on purpose.

One class per *boundary*, each also a standard-library error, each picklable. The command line prints them without a
traceback, with ``hint`` (what to change) on a line of its own, and exits with ``exit_code``.

    PosttrainError                    exit 1
    ├── UsageError (ValueError)       exit 2: the caller wrote something that cannot be meant
    │   ├── ConfigError               a recipe or a stage configuration
    │   ├── DataError                 prompts, examples, data files
    │   └── UnknownReferenceError     a name or digest that names nothing
    ├── StoreError (OSError)          the artifact store or the registry
    │   ├── MissingArtifactError      named but not there
    │   ├── CorruptArtifactError      there, but its bytes do not match its digest
    │   ├── NewerStoreError           written by a later version of posttrain
    │   └── StorageFullError          no space left
    ├── ModelError (ValueError)       weights, tokenizer or template that cannot be used
    ├── MissingDependencyError        (ImportError) an extra that is not installed
    ├── StageError (RuntimeError)     a stage could not finish
    │   ├── PreflightError            refused before any training
    │   └── HealthError               stopped by a health limit during training
    ├── ServingError (RuntimeError)   the gateway or a part that it needs; each room adds its own below it
    └── Interrupted                   the user asked to stop; exit 130

How to add one: subclass the boundary it belongs to; only add a class when a caller would catch it by itself.
"""

from __future__ import annotations


class PosttrainError(Exception):
    """Root of all errors raised on purpose. ``str(error)`` is one line that says what happened."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.message = message
        """What happened, in one line."""
        self.hint = hint
        """What to change: a key, a command or a file; shown on its own line."""

    def __str__(self) -> str:
        return self.message


class UsageError(PosttrainError, ValueError):
    """The caller asked for something that cannot be meant; nothing was started."""

    exit_code = 2


class ConfigError(UsageError):
    """A recipe or a stage configuration that does not validate."""


class DataError(UsageError):
    """Prompts, examples or data files that cannot be used."""


class UnknownReferenceError(UsageError):
    """A name, run id or digest prefix that names nothing, or more than one thing."""


class StoreError(PosttrainError, OSError):
    """The artifact store or the registry failed."""

    # OSError.__new__ would map (message, hint) to errno and strerror; keep plain exception arguments.
    def __reduce__(self) -> tuple[type[StoreError], tuple[str, str | None]]:
        return (type(self), (self.message, self.hint))


class MissingArtifactError(StoreError):
    """An artifact (or one of its files) is named but is not in the store."""


class CorruptArtifactError(StoreError):
    """An artifact's bytes do not match its digest."""


class NewerStoreError(StoreError):
    """The store or the registry was written by a later version of posttrain."""


class StorageFullError(StoreError):
    """The disk has no space left; nothing half-written was kept."""


class ModelError(PosttrainError, ValueError):
    """Weights, a tokenizer or a chat template that cannot be used."""


class MissingDependencyError(PosttrainError, ImportError):
    """An optional part of posttrain is needed and not installed."""


class StageError(PosttrainError, RuntimeError):
    """A stage could not finish."""


class PreflightError(StageError):
    """A check before training failed; no training step was taken."""


class HealthError(StageError):
    """A health limit stopped training; the last checkpoint is kept."""


class Interrupted(PosttrainError):
    """The user asked to stop. Finished work is kept; the same command resumes."""

    exit_code = 130


class ServingError(PosttrainError, RuntimeError):
    """The gateway, or a part that it needs, failed."""
