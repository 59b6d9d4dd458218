"""Generation by llama.cpp in this process, from a GGUF file.

Here: an engine over xllamacpp's server object; prompts are rendered, tokenized and decoded by the model folder's own
tokenizer, so a text means the same as with transformers. Token ids go in and come out, over the server's own local
port: the calls in process give text alone, and drop the ids of a character that spans tokens. Not here: writing GGUF
files (``gguf``), serving to others.
*Covered*: float32 cache and plain attention, so that greedy text is that of the folder; samples follow the softmax.
*Not covered*: with ``parallel`` above 1 sequences share matrix products as they happen to arrive, so two runs may
differ in the last bits of a logit, and a sampled text now and then; the draws are not those of torch; llama.cpp ends
a turn at its own list of end tokens (``<|endoftext|>`` always among them), not at generation_config's.
"""

from __future__ import annotations

import http.client
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any

from posttrain.core.errors import MissingDependencyError, ModelError
from posttrain.engines.records import Completion, Conversation, Sampling

_RANDOM_SEED = 0xFFFFFFFF
"""The seed by which llama.cpp means "draw one"; never sent."""


class LlamaCppEngine:
    """Completes conversations with a GGUF file. Close it, or use it as a context manager."""

    def __init__(
        self, gguf: Path, tokenizer: Any, *, parallel: int = 4, threads: int = 1, context_tokens: int = 512
    ) -> None:
        """Load the file. Raises ModelError where llama.cpp cannot, MissingDependencyError without xllamacpp.

        ``tokenizer`` is that of the folder the file was made from, ``parallel`` the number of sequences decoded at
        once (a few: they share the work on a prompt, and little else that costs time in a tiny model),
        ``context_tokens`` the most that a prompt and its completion may have together: each of the parallel sequences
        keeps a cache of that length. Beyond the model's own context a completion is cut there.
        """
        if parallel < 1 or threads < 1 or context_tokens < 1:
            raise ValueError("parallel, threads and context_tokens are at least 1")
        self._tokenizer = tokenizer
        self._parallel = parallel
        self._context_tokens = context_tokens
        self._secret = secrets.token_hex(16)
        self._server = _open_server(
            gguf, parallel, threads, context_tokens=context_tokens, secret=self._secret
        )

    def __enter__(self) -> LlamaCppEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop llama.cpp's threads and free the model; twice is fine."""
        self._server = None

    def generate(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Completion]]:
        """See :class:`~posttrain.engines.records.Engine`. Raises ModelError where a prompt does not fit."""
        if self._server is None:
            raise RuntimeError("the engine is closed")
        prompts = [self.encode(conversation) for conversation in conversations]
        self._check_lengths(prompts, sampling.max_new_tokens)
        # The samples of one request share the work on its prompt, as many of them as decode at once.
        share = min(sampling.samples, self._parallel)
        requests: list[tuple[int, dict[str, Any]]] = []
        for index, prompt in enumerate(prompts):
            for first in range(0, sampling.samples, share):
                count = min(share, sampling.samples - first)
                # Sample i of a request is drawn with its seed + i, so a seed stands for each of all completions.
                seed = sampling.seed * 1_000_003 + index * sampling.samples + first
                requests.append((index, _request(prompt, sampling, count=count, seed=seed)))
        results: list[list[Completion]] = [[] for _ in prompts]
        done, total = 0, len(prompts) * sampling.samples
        executor = ThreadPoolExecutor(max(1, self._parallel // share), thread_name_prefix="llama-cpp")
        try:
            answers = executor.map(self._answer, [request for _, request in requests])
            for (index, request), completions in zip(requests, answers, strict=True):
                results[index].extend(completions)
                done += request["n_cmpl"]
                if on_progress is not None:
                    on_progress(done, total)
        finally:
            executor.shutdown(cancel_futures=True)
        return results

    def encode(self, conversation: Conversation) -> list[int]:
        """Token ids of a conversation with the header of the next assistant turn."""
        ids: list[int] = self._tokenizer.apply_chat_template(
            list(conversation), add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return ids

    def _check_lengths(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        longest = max(map(len, prompts), default=0)
        if longest + max_new_tokens > self._context_tokens:
            raise ModelError(
                f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit the engine's "
                f"{self._context_tokens}",
                hint="raise `context_tokens`, or lower `max_new_tokens`",
            )

    def _answer(self, request: Mapping[str, Any]) -> list[Completion]:
        address = self._server.listening_address.removeprefix("http://")
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._secret}"}
        with closing(http.client.HTTPConnection(address)) as connection:
            connection.request("POST", "/completion", json.dumps(request), headers)
            answer = json.loads(connection.getresponse().read())
        if isinstance(answer, dict):  # one completion, or what went wrong
            if "error" in answer:
                raise ModelError(f"llama.cpp refused a request: {answer['error'].get('message')}")
            answer = [answer]
        answer.sort(key=lambda one: int(one["index"]))
        return [self._finish(one["tokens"], one["stop_type"]) for one in answer]

    def _finish(self, ids: list[int], stop: str) -> Completion:
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        return Completion(text=text, tokens=len(ids), finish="stop" if stop == "eos" else "length")


def _request(prompt: list[int], sampling: Sampling, *, count: int, seed: int) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "n_cmpl": count,
        "n_predict": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        # The order of transformers, and nothing else: llama.cpp's own defaults would cut unlikely tokens off.
        "samplers": ["temperature", "top_k", "top_p"],
        "seed": seed % _RANDOM_SEED,
        "cache_prompt": False,  # what was asked before may not change an answer
        "return_tokens": True,
        "response_fields": ["index", "tokens", "stop_type"],
    }


def _open_server(gguf: Path, parallel: int, threads: int, *, context_tokens: int, secret: str) -> Any:
    try:
        import xllamacpp
    except ImportError as error:
        raise MissingDependencyError(
            "running a GGUF needs the package xllamacpp", hint="pip install 'posttrain[gguf]'"
        ) from error

    if not gguf.is_file():
        raise ModelError(f"there is no file {gguf}", hint="export the model first: stage `export_gguf`")
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.n_parallel = parallel
    params.n_ctx = context_tokens * parallel
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = threads
        cpu.poll = 0  # threads that spin while they wait slow everything else on a busy machine
    # The precision of the model folder: float32 throughout, on the processor.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.n_gpu_layers = 0
    params.fit_params = False
    params.warmup = False
    params.cache_ram_mib = 0
    params.n_ctx_checkpoints = 0
    params.verbosity = -1
    params.api_keys = [secret]  # the port is local, and answers nobody else
    params.ui = params.endpoint_slots = False
    try:
        return xllamacpp.Server(params)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"llama.cpp cannot load {gguf.name}: {error}", hint="is it a GGUF file, and whole?"
        ) from error
