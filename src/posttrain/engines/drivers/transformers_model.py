"""A loaded transformers model that answers many requests in turn, each with its own adapter.

Here: one thread that owns the model; it gives every running request one forward pass in turn, and changes adapters
between passes. Not here: HTTP (``transformers_server``). *Covered*: rows are never batched, so an answer depends on its
request alone, whatever is answered beside it. *Not covered*: speed; that is what the other engines are for.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from posttrain.core.errors import ModelError
from posttrain.engines.lora import read_lora
from posttrain.engines.model_folder import DType
from posttrain.engines.records import Sampling

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@dataclass(eq=False)
class Job:
    """One completion under way."""

    model: str
    """Name of the base or of an adapter."""
    prompt: Sequence[int]
    sampling: Sampling
    on_token: Callable[[int], None]
    """Called in the model's thread."""
    on_end: Callable[[BaseException | None], None]
    """Called once, in the model's thread, with what went wrong."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    tokens: Iterator[int] | None = None


class AdapterMissing(Exception):
    """The model of a request is not loaded."""


class TransformersModel:
    """A model, its tokenizer and its adapters."""

    def __init__(self, folder: Path, base: str, *, dtype: DType, device: str, parallel: int) -> None:
        """Load the folder. Raises ModelError."""
        from posttrain.engines.model_folder import load_model, load_tokenizer, pick_device
        from posttrain.engines.transformers_engine import end_tokens

        self.base = base
        self.tokenizer = load_tokenizer(folder)
        self._model = load_model(folder, dtype=dtype, device=pick_device(device))
        self.ends = frozenset(end_tokens(self._model, self.tokenizer))
        self.context_tokens = int(self._model.config.max_position_embeddings)
        self._parallel = parallel
        self.tokens_made = 0
        """Forward passes that gave a token, for whomever."""
        self._adapters: dict[str, _Adapter] = {}
        self._condition = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: deque[Job] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def adapters(self) -> list[str]:
        """Names of the adapters."""
        return list(self._adapters)

    def is_alive(self) -> bool:
        """Whether anybody will answer."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Begin a completion when there is room."""
        with self._condition:
            self._waiting.append(job)
            self._condition.notify()

    def in_flight(self) -> Counter[str]:
        """Completions by model name, those that wait included."""
        with self._condition:
            return Counter(job.model for job in [*self._waiting, *self._running])

    def load(self, name: str, folder: Path) -> Future[None]:
        """Load a PEFT folder between two passes."""
        return self._between(lambda: self._load(name, folder))

    def unload(self, name: str) -> Future[None]:
        """Take the adapter off once its last request has ended; new requests for it fail at once."""
        return self._between(lambda: self._unload(name))

    def _load(self, name: str, folder: Path) -> None:
        if name in self._adapters or name == self.base:
            raise ValueError(f"{name!r} is loaded already; other weights need another name")
        self._adapters[name] = _Adapter(self._model, folder)

    def _unload(self, name: str) -> None:
        adapter = self._adapters.get(name)
        for job in [job for job in self._running if job.model == name]:
            while job in self._running:
                self._turn(job)
        if adapter is not None:
            del self._adapters[name]

    def _between(self, action: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(action())
            except BaseException as error:  # a boundary: what fails is told to whoever asked
                future.set_exception(error)

        with self._condition:
            self._calls.append(run)
            self._condition.notify()
        return future

    def _work(self) -> None:
        while True:
            with self._condition:
                while not (self._calls or self._waiting or self._running):
                    self._condition.wait()
                calls = list(self._calls)
                self._calls.clear()
                while self._waiting and len(self._running) < self._parallel:
                    self._running.append(self._waiting.popleft())
            for call in calls:
                call()
            for job in list(self._running):
                if job in self._running:
                    self._turn(job)

    def _turn(self, job: Job) -> None:
        """One token for one job."""
        error: BaseException | None = None
        ended = True
        try:
            adapter = self._adapters.get(job.model)
            if adapter is None and job.model != self.base:
                raise AdapterMissing(job.model)
            if not job.cancelled.is_set():
                if job.tokens is None:
                    job.tokens = self._tokens(job)
                with adapter if adapter is not None else contextlib.nullcontext():
                    token = next(job.tokens, None)
                if token is not None:
                    self.tokens_made += 1
                    job.on_token(token)
                    ended = False
        except Exception as problem:  # a boundary: one request that fails leaves the others alone
            error = problem
        if ended:
            with self._condition:
                self._running.remove(job)
            job.on_end(error)

    def _tokens(self, job: Job) -> Iterator[int]:
        import torch

        from posttrain.engines.decoding import picker, steps

        generator = torch.Generator(device=self._model.device).manual_seed(job.sampling.seed)
        return steps(
            self._model,
            job.prompt,
            max_new_tokens=job.sampling.max_new_tokens,
            ends=self.ends,
            pick=picker(job.sampling, generator),
        )


class _Adapter:
    """A LoRA adapter that is on the model inside a ``with``, and nowhere else."""

    def __init__(self, model: Any, folder: Path) -> None:
        """Read it, and check that it fits. Raises ModelError; the model is left as it was."""
        import torch

        self._layers = []
        for name, pair in read_lora(folder).pairs.items():
            try:
                module = model.get_submodule(name)
            except AttributeError:
                module = None
            shape = (len(pair.b), pair.a.shape[1])
            if not isinstance(module, torch.nn.Linear) or tuple(module.weight.shape) != shape:
                raise ModelError(f"the adapter does not fit the model: {name} is no linear layer of {shape}")
            a, b = (torch.from_numpy(side).to(module.weight.device) for side in (pair.a, pair.b))
            self._layers.append((module, a, b, pair.scale))
        self._hooks: list[Any] = []

    def __enter__(self) -> None:
        for module, a, b, scale in self._layers:
            self._hooks.append(module.register_forward_hook(_added(a, b, scale)))

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def _added(a: torch.Tensor, b: torch.Tensor, scale: float) -> Callable[..., torch.Tensor]:
    """What an adapter adds to a layer's output, in the adapter's precision, as PEFT computes it."""

    def add(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        change = (inputs[0].to(a.dtype) @ a.T) @ b.T * scale
        return (output + change).to(output.dtype)

    return add
