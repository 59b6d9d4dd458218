"""Stage ``pretrain_tiny``: a base model of a few million parameters, from scratch, in minutes on two cores.

Here: tokenizer, model and a plain language-model loop over text made on the way (``data.base_text``); the text never
uses an equation of the held-out prompts. The loop is ours because it is small and because its resume is exact: text,
order and learning rate are functions of the step, so weights and optimizer state are all that a checkpoint holds.
Not here: any reinforcement learning. Loss is on every token, questions too: this is a base model, not a fine-tune.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult
from posttrain.data import open_tasks
from posttrain.data.base_text import BaseTextConfig, Document, documents
from posttrain.data.prompt_sources import WordProblemSource
from posttrain.data.word_problems import problems

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

_TOKENIZER_DOCUMENTS = 4000
_SAMPLE_DOCUMENTS = 500


class PretrainTinyConfig(StageConfig):
    """Config of the ``pretrain_tiny`` stage."""

    problems: WordProblemSource = WordProblemSource()
    """The word problems that the text is about; training side of the split only."""
    text: BaseTextConfig = BaseTextConfig()
    """How uneven the text is."""
    vocab_size: int = Field(1024, ge=320, le=65_536)
    hidden_size: int = Field(128, ge=32)
    intermediate_size: int = Field(384, ge=32)
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    """Attention heads; ``hidden_size / heads`` should be 32, 64 or 128, which every engine has kernels for."""
    max_length: int = Field(512, ge=64)
    """Positions of the model, in tokens."""
    steps: int = Field(700, ge=1)
    batch_tokens: int = Field(2048, ge=128)
    """Tokens of a step, padding included."""
    learning_rate: float = Field(4e-3, gt=0)
    """Peak; 30 steps of warm-up, constant, then linear to zero over the last 40 %."""
    save_every: int = Field(100, ge=1)
    """Steps between checkpoints."""
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> PretrainTinyConfig:
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise ValueError("hidden_size must be an even multiple of heads; change `heads`")
        return self


def run_pretrain_tiny(
    config: PretrainTinyConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> StageResult:
    """Train the base model. Inputs: none.

    Outputs: ``model``, ``metrics`` (a row per 10 steps), ``samples`` (documents of the text), ``figures``.
    """
    import torch

    from posttrain.engines.model_folder import save_model
    from posttrain.training import checkpoints, metrics

    torch.set_num_threads(context.threads)
    tokenizer = build_tokenizer(config)
    model = build_model(config, tokenizer)
    optimizers = _optimizers(model, config)
    rows: list[dict[str, Any]] = []
    done = checkpoints.load_latest(context.workdir, model=model, optimizers=optimizers, rows=rows)
    if done:
        context.emit("stage_resumed", from_step=done)
    started, tokens = time.perf_counter(), 0
    model.train()
    for step, batch in enumerate(_batches(config, tokenizer), start=1):
        if step > config.steps:
            break
        if step <= done:
            continue
        context.stop.check()
        loss, count = _step(model, optimizers, batch, rate=_rate(config, step))
        tokens += count
        if step % 10 == 0 or step == config.steps:
            rows.append(
                {"step": step, "loss": loss, "learning_rate": config.learning_rate * _rate(config, step)}
            )
            speed = tokens / (time.perf_counter() - started)
            context.emit("progress", step=step, total=config.steps, loss=loss, tokens_per_second=speed)
        if step % config.save_every == 0 and step < config.steps:
            checkpoints.save(context.workdir, step, model=model, optimizers=optimizers, rows=rows)
    parameters = sum(p.numel() for p in model.parameters())
    with context.writer("model", "model", meta={"parameters": parameters, "architecture": "llama"}) as writer:
        save_model(model, tokenizer, writer.directory)
        model_artifact = writer.commit()
    table = metrics.write_table(context, rows)
    figures = metrics.write_figures(context, rows, {"loss": "Training loss (nats per token)"})
    samples = metrics.write_samples(context, _sample_documents(config))
    return StageResult(
        {"model": model_artifact, "metrics": table, "samples": samples, "figures": figures},
        {"parameters": parameters, "loss": rows[-1]["loss"], "steps": config.steps},
    )


def build_tokenizer(config: PretrainTinyConfig) -> PreTrainedTokenizerFast:
    """The tokenizer, trained on the same kind of text with the tags taken out."""
    from posttrain.training.tiny_tokenizer import TAG_TOKENS, build_tiny_tokenizer

    def texts() -> Iterator[str]:
        for _, (question, answer) in zip(
            range(_TOKENIZER_DOCUMENTS), _documents(config, "tokenizer"), strict=False
        ):
            text = f"{question} {answer}"
            for tag in TAG_TOKENS:
                text = text.replace(tag, " ")
            yield text

    return build_tiny_tokenizer(texts(), vocab_size=config.vocab_size, max_length=config.max_length)


def build_model(config: PretrainTinyConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with fresh weights drawn from the config's seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=config.max_length,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attention_dropout=0.0,
        )
    )


def _documents(config: PretrainTinyConfig, stream: str) -> Iterator[Document]:
    source = config.problems
    rng = random.Random(f"base-text/{stream}/{config.seed}")
    sums = problems(
        rng.randrange(2**31),
        "train",
        max_steps=source.max_steps,
        max_value=source.max_value,
        heldout_share=source.heldout_share,
    )
    return documents(rng, sums, open_tasks.tasks(rng.randrange(2**31), "train"), config.text)


def _sample_documents(config: PretrainTinyConfig) -> list[dict[str, str]]:
    """The first documents of the text, for a reader who wants to know what the base has seen."""
    documents = zip(range(_SAMPLE_DOCUMENTS), _documents(config, "train"), strict=False)
    return [{"question": question, "answer": answer} for _, (question, answer) in documents]


def _batches(config: PretrainTinyConfig, tokenizer: PreTrainedTokenizerFast) -> Iterator[torch.Tensor]:
    """Endless batches of whole documents of like length: int64 ``[documents, tokens]``, padded on the right."""
    import torch

    documents = _documents(config, "train")
    order = random.Random(f"batch-order/{config.seed}")
    while True:
        texts = []
        for _, (question, answer) in zip(range(4096), documents, strict=False):
            chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            texts.append(tokenizer.apply_chat_template(chat, tokenize=False))
        rows = sorted((encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(texts)), key=len)
        groups: list[list[list[int]]] = [[]]
        for row in rows:
            if groups[-1] and (len(groups[-1]) + 1) * len(row) > config.batch_tokens:
                groups.append([])
            groups[-1].append(row)
        order.shuffle(groups)
        for group in groups:
            batch = torch.full((len(group), max(map(len, group))), tokenizer.pad_token_id)
            for index, row in enumerate(group):
                batch[index, : len(row)] = torch.tensor(row)
            yield batch


def _optimizers(model: LlamaForCausalLM, config: PretrainTinyConfig) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest (Jordan et al. 2024; Liu et al. 2025 scaling)."""
    import torch

    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inner = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        (matrices if inner else others).append(parameter)
    rate = config.learning_rate
    return {
        "muon": torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        "adamw": torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    }


def _rate(config: PretrainTinyConfig, step: int) -> float:
    return min(1.0, step / 30) * min(1.0, (config.steps - step + 1) / (0.4 * config.steps))


def _step(
    model: LlamaForCausalLM,
    optimizers: Mapping[str, torch.optim.Optimizer],
    batch: torch.Tensor,
    *,
    rate: float,
) -> tuple[float, int]:
    """One update. Returns the loss (nats per token) and the number of real tokens."""
    import torch
    from torch.nn import functional

    targets = batch[:, 1:].masked_fill(batch[:, 1:] == model.config.pad_token_id, -100)
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("peak_lr", group["lr"]) * rate
        optimizer.step()
        optimizer.zero_grad()
    return loss.detach().item(), int((targets != -100).sum())
