"""sandbox: running untrusted Python code without network, files, rights or time.

What is covered and what is not is in ``pool``. Limits are in ``config``, what comes back in ``records``.
"""

from posttrain.environments.sandbox.config import Backend, SandboxConfig
from posttrain.environments.sandbox.pool import BACKENDS, Sandbox, choose_backend, why_not
from posttrain.environments.sandbox.records import Program, RunResult, SandboxRun, StoppedBy

__all__ = [
    "BACKENDS",
    "Backend",
    "Program",
    "RunResult",
    "Sandbox",
    "SandboxConfig",
    "SandboxRun",
    "StoppedBy",
    "choose_backend",
    "why_not",
]
