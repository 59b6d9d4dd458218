"""A small engine with vLLM's cache rule: the keys and values of a prompt's blocks of 16 tokens are kept, and found
again by the *name* of the adapter and the tokens, not by the adapter's weights.

It is a real server over a real model; weights are loaded from the given folder each time a name is loaded, also with
``load_inplace``. What it shows is what vLLM 0.32 does (vllm#42125, #30931).
"""

from __future__ import annotations

import copy
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BLOCK = 16


class StaleEngine:
    """The engine; its URL is ``url``."""

    def __init__(self, folder: Path) -> None:
        from posttrain.engines.model_folder import load_model, load_tokenizer

        self.folder = folder
        self.tokenizer = load_tokenizer(folder)
        self.models: dict[str, Any] = {"base": load_model(folder)}
        self.blocks: dict[tuple[str, tuple[int, ...]], Any] = {}
        """The cache after these tokens of this name."""
        self.hits = 0
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def load(self, body: dict[str, Any]) -> tuple[int, Any]:
        from peft import PeftModel

        from posttrain.engines.model_folder import load_model

        name = body["lora_name"]
        if name in self.models and not body.get("load_inplace"):
            return 400, {"error": {"message": f"{name} is loaded already"}}
        model = PeftModel.from_pretrained(load_model(self.folder), body["lora_path"])
        self.models[name] = model.merge_and_unload().eval()
        return 200, {}

    def unload(self, body: dict[str, Any]) -> tuple[int, Any]:
        return (200, {}) if self.models.pop(body["lora_name"], None) else (404, {})

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        import torch
        from transformers.cache_utils import DynamicCache

        if (model := self.models.get(body["model"])) is None:
            return 404, {"error": {"message": "no such model"}}
        ids: list[int] = self.tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_dict=False
        )
        cache, filled = DynamicCache(config=model.config), 0
        whole = (len(ids) - 1) // BLOCK * BLOCK  # the last token is always computed
        for size in range(whole, 0, -BLOCK):
            if (kept := self.blocks.get((body["model"], tuple(ids[:size])))) is not None:
                cache, filled = copy.deepcopy(kept), size
                self.hits += 1
                break
        made: list[int] = []
        with torch.inference_mode():
            if filled < whole:
                model(torch.tensor([ids[filled:whole]]), past_key_values=cache, use_cache=True)
                self.blocks[body["model"], tuple(ids[:whole])] = copy.deepcopy(cache)
            step = ids[whole:]
            for _ in range(body["max_tokens"]):
                logits = model(torch.tensor([step]), past_key_values=cache, use_cache=True).logits
                step = [int(logits[0, -1].argmax())]
                made += step
        text = self.tokenizer.decode(made, skip_special_tokens=True)
        return 200, {
            "choices": [{"message": {"content": text}}],
            "usage": {"completion_tokens": len(made)},
        }

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        with self.lock:
            match method, path:
                case "GET", "/v1/models":
                    rows = [{"id": n, "parent": None if n == "base" else "base"} for n in self.models]
                    return 200, {"data": rows}
                case "POST", "/v1/load_lora_adapter":
                    return self.load(body)
                case "POST", "/v1/unload_lora_adapter":
                    return self.unload(body)
                case "POST", "/v1/chat/completions":
                    return self.complete(body)
            return 404, {}


def _handler(engine: StaleEngine) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, found = engine.answer(self.command, self.path, json.loads(raw or b"{}"))
            body = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _any

        def log_message(self, *_: Any) -> None:
            """Nothing to the terminal."""

    return Handler
