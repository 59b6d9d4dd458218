"""The tiny model as a GGUF: exported, loaded by llama.cpp, and the same model there."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from posttrain.artifacts.stage import StageContext
from posttrain.core.errors import ModelError, PosttrainError
from posttrain.engines.gguf import export_gguf
from posttrain.engines.llama_cpp import LlamaCppEngine
from posttrain.engines.model_folder import load_model, load_tokenizer, save_model
from posttrain.engines.records import Completion, Sampling
from posttrain.engines.transformers_engine import TransformersEngine
from posttrain.training.stages.export_gguf import ExportGgufConfig, run_export_gguf
from posttrain.training.tiny_tokenizer import CONTROL_TOKENS, TAG_TOKENS
from tests.engines.conftest import ADD_TOOL, conversations, learn_by_heart

pytestmark = pytest.mark.xdist_group("engines")
GREEDY = Sampling(max_new_tokens=48, temperature=0)
Questions = list[list[dict[str, str]]]


class LlamaServer:
    """llama.cpp as others see it: its own tokenizer, template and text, over HTTP."""

    def __init__(self, gguf: Path) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(gguf)
        params.n_ctx = 512
        params.warmup = False
        params.verbosity = -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self.server = xllamacpp.Server(params)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self.server.listening_address + path,
            data=json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        return found

    def tokenize(self, text: str) -> list[int]:
        tokens: list[int] = self.post("/tokenize", {"content": text, "parse_special": True})["tokens"]
        return tokens


@pytest.fixture(scope="module")
def llama(gguf_file: Path) -> LlamaServer:
    return LlamaServer(gguf_file)


@pytest.fixture(scope="module")
def engine(gguf_file: Path, tokenizer: Any) -> Iterator[LlamaCppEngine]:
    with LlamaCppEngine(gguf_file, tokenizer, parallel=4) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(model: Any, tokenizer: Any, questions: Questions) -> list[list[Completion]]:
    """Greedy completions of transformers."""
    return TransformersEngine(model, tokenizer).generate(questions, GREEDY)


# --- the file


def test_the_same_folder_gives_the_same_bytes(folder: Path, gguf_file: Path, tmp_path: Path) -> None:
    again = export_gguf(_copy(folder, tmp_path / "elsewhere"), tmp_path / "deep" / "er" / "other.gguf")
    assert again.read_bytes() == gguf_file.read_bytes()
    assert [path.name for path in again.parent.iterdir()] == ["other.gguf"]
    assert str(folder).encode() not in again.read_bytes()


def test_an_export_replaces_the_file_of_that_name(folder: Path, gguf_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.write_bytes(b"old")
    assert export_gguf(folder, target) == target
    assert target.read_bytes() == gguf_file.read_bytes()


def test_what_the_file_says(gguf_file: Path, tokenizer: Any, model: Any) -> None:
    import gguf

    reader = gguf.GGUFReader(gguf_file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "smollm")
    assert fields["tokenizer.chat_template"] == tokenizer.chat_template
    ids = {name: fields[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "eot", "padding")}
    end = tokenizer.eos_token_id
    assert ids == {
        "bos": tokenizer.bos_token_id,
        "eos": end,
        "eot": end,
        "padding": tokenizer.pad_token_id,
    }
    types = dict(zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True))
    assert {types[token] for token in CONTROL_TOKENS} == {gguf.TokenType.CONTROL}
    assert {types[token] for token in TAG_TOKENS} == {gguf.TokenType.USER_DEFINED}
    assert len(types) == len(tokenizer)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert (tensors["output.weight"].data == model.lm_head.weight.detach().numpy()).all()
    assert sum(tensor.n_elements for tensor in reader.tensors) == model.num_parameters()


def _architecture(folder: Path) -> None:
    _edit(folder / "config.json", architectures=["Qwen2ForCausalLM"])


def _bias(folder: Path) -> None:
    _edit(folder / "config.json", mlp_bias=True)


def _rope(folder: Path) -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    _edit(folder / "config.json", rope_parameters=rope)


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _splitter(folder: Path) -> None:
    _edit(folder / "tokenizer.json", pre_tokenizer={"type": "Whitespace"})


def _normalizer(folder: Path) -> None:
    _edit(folder / "tokenizer.json", normalizer={"type": "NFC"})


def _greedy_token(folder: Path) -> None:
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    tokens[-1]["lstrip"] = True
    _edit(folder / "tokenizer.json", added_tokens=tokens)


def _more_layers(folder: Path) -> None:
    _edit(folder / "config.json", num_hidden_layers=3)


def _fewer_layers(folder: Path) -> None:
    _edit(folder / "config.json", num_hidden_layers=1)


def _fewer_rows(folder: Path) -> None:
    _edit(folder / "config.json", vocab_size=500)


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_architecture, "Qwen2ForCausalLM"),
        (_bias, "mlp_bias is True"),
        (_rope, "rope 'linear'"),
        (_broken_config, "config.json"),
        (_splitter, "splits text"),
        (_normalizer, "splits text"),
        (_greedy_token, "</tool_response>"),
        (_more_layers, "lack model.layers.2."),
        (_fewer_layers, "does not know the tensor model.layers.1."),
        (_fewer_rows, "500 rows"),
        (_no_weights, "no safetensors"),
    ],
)
def test_what_llama_cpp_would_read_otherwise_is_refused(
    folder: Path, tmp_path: Path, change: Callable[[Path], None], says: str
) -> None:
    other = _copy(folder, tmp_path / "other")
    change(other)
    with pytest.raises(ModelError) as caught:
        export_gguf(other, tmp_path / "out" / "model.gguf")
    assert says in str(caught.value)
    assert caught.value.hint
    assert not list((tmp_path / "out").glob("*"))


def test_a_full_disk_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    """A limit on file size is how a process of ours can meet a short write."""
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from posttrain.core.errors import StorageFullError\n"
        "from posttrain.engines.gguf import export_gguf\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try: export_gguf(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except StorageFullError as error: print(error.hint)\n"
    )
    target = tmp_path / "model.gguf"
    done = subprocess.run(
        [sys.executable, "-c", script, folder, target], capture_output=True, text=True, check=False
    )
    assert "free some space" in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())


def test_shared_heads_tied_embeddings_and_plain_bytes(tokenizer: Any, tmp_path: Path) -> None:
    """What SmolLM2 has and the tiny recipe has not."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 3,
        hidden_size=96,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
        initializer_range=0.2,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    save_model(LlamaForCausalLM(config), copy.deepcopy(tokenizer), tmp_path / "model")
    own = load_tokenizer(tmp_path / "model")
    own.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.save_pretrained(tmp_path / "model")
    own, model = load_tokenizer(tmp_path / "model"), load_model(tmp_path / "model")
    file = export_gguf(tmp_path / "model", tmp_path / "model.gguf")
    asked = [[{"role": "user", "content": text}] for text in ("a 12", "贝壳 12?", "<think>")]
    sampling = Sampling(max_new_tokens=24, temperature=0)
    with LlamaCppEngine(file, own, parallel=1) as engine:
        assert engine.generate(asked, sampling) == TransformersEngine(model, own).generate(asked, sampling)


# --- llama.cpp's own reading


_TEXTS = [
    "Tom has 12 apples, then 345.",
    "小芳的盒子里有4个卡片。数量变成原来的2倍。",
    "<think>2+3=5.</think><answer>5</answer>",
    '<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call><tool_response>5</tool_response>',
    "<|im_start|>user\nhi<|im_end|>\n<|pad|><|endoftext|>",
    "  two  spaces\n\n\tand\u3000wide\u00a0ones \r\n ",
    "don't I'll WE'VE 3² Ⅷ ½ ٣٤",
    "😀é e\u0301 한국어 हिन्दी \u0000 \x1c",
    "<think<think> </ think><ANSWER>",
]


@pytest.mark.parametrize("text", _TEXTS)
def test_texts_are_read_alike(llama: LlamaServer, tokenizer: Any, text: str) -> None:
    assert llama.tokenize(text) == tokenizer(text)["input_ids"]


@given(st.lists(st.one_of(st.text(), st.sampled_from(TAG_TOKENS + CONTROL_TOKENS))).map("".join))
@hypothesis_settings(deadline=None, max_examples=150)
def test_any_text_is_read_alike(llama: LlamaServer, tokenizer: Any, text: str) -> None:
    assert llama.tokenize(text) == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("name", conversations())
def test_the_template_renders_alike(llama: LlamaServer, tokenizer: Any, name: str) -> None:
    messages, tools = conversations()[name]
    body = {"messages": messages, **({"tools": tools} if tools else {})}
    wanted = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
    assert llama.post("/apply-template", body)["prompt"] == wanted


def test_its_own_text_keeps_tags_and_drops_control_tokens(
    llama: LlamaServer, tokenizer: Any, questions: Questions, expected: list[list[Completion]]
) -> None:
    prompt = tokenizer.apply_chat_template(questions[0], add_generation_prompt=True, tokenize=False)
    answer = llama.post("/completion", {"prompt": prompt, "temperature": 0, "n_predict": 48})
    assert answer["content"] == expected[0][0].text
    assert answer["content"].startswith("<think>") and answer["content"].endswith("</answer>")


def test_its_server_takes_thoughts_and_calls_apart(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Chat completions, as a client of a llama.cpp server sees them."""
    user = {"role": "user", "content": "2 加 3?"}
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
    turn = {"role": "assistant", "content": "", "reasoning_content": "2 + 3", "tool_calls": [call]}
    caller = learn_by_heart(copy.deepcopy(model), tokenizer, [user, turn], [ADD_TOOL])
    save_model(caller, copy.deepcopy(tokenizer), tmp_path / "caller")
    server = LlamaServer(export_gguf(tmp_path / "caller", tmp_path / "caller.gguf"))
    body = {"messages": [user], "tools": [ADD_TOOL], "temperature": 0, "max_tokens": 80}
    choice = server.post("/v1/chat/completions", body)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["reasoning_content"] == "2 + 3"
    found = choice["message"]["tool_calls"][0]["function"]
    assert (found["name"], json.loads(found["arguments"])) == ("add", {"a": 2, "b": 3})


# --- the engine


def test_greedy_text_is_that_of_transformers(
    engine: LlamaCppEngine, questions: Questions, expected: list[list[Completion]]
) -> None:
    seen: list[tuple[int, int]] = []
    found = engine.generate(questions, GREEDY, lambda done, total: seen.append((done, total)))
    assert found == expected
    assert seen == [(number, 20) for number in range(1, 21)]
    texts = {row[0].text for row in found}
    assert len(texts) >= 4, "a degenerate model would prove little"
    assert all("<think>" in text and "</answer>" in text for text in texts)


def test_half_precision_is_half_the_size_and_nearly_the_same(
    folder: Path, gguf_file: Path, tokenizer: Any, questions: Questions, tmp_path: Path
) -> None:
    half = export_gguf(folder, tmp_path / "half.gguf", dtype="float16")
    assert half.stat().st_size < 0.6 * gguf_file.stat().st_size
    with LlamaCppEngine(half, tokenizer) as engine, LlamaCppEngine(gguf_file, tokenizer) as whole:
        pairs = zip(engine.generate(questions, GREEDY), whole.generate(questions, GREEDY), strict=True)
        assert sum(a == b for a, b in pairs) >= 15


def test_a_cut_answer_says_so(
    engine: LlamaCppEngine, model: Any, tokenizer: Any, questions: Questions
) -> None:
    short = Sampling(max_new_tokens=3, temperature=0)
    found = engine.generate(questions[:2], short)
    assert found == TransformersEngine(model, tokenizer).generate(questions[:2], short)
    assert {(row[0].finish, row[0].tokens) for row in found} == {("length", 3)}


def test_samples_follow_the_softmax(
    engine: LlamaCppEngine, model: Any, tokenizer: Any, questions: Questions
) -> None:
    """First tokens at temperature 3, where any cut of unlikely tokens would show."""
    import torch

    count = 2000
    found = engine.generate(questions[:1], Sampling(max_new_tokens=1, temperature=3.0, samples=count))
    drawn = Counter(completion.text for completion in found[0])
    logits = model(torch.tensor([engine.encode(questions[0])])).logits[0, -1].detach()
    wanted: Counter[str] = Counter()
    for index, share in enumerate(torch.softmax(logits / 3.0, 0).tolist()):
        wanted[tokenizer.decode([index], skip_special_tokens=True)] += share
    assert sum(drawn.values()) == count
    for text, share in wanted.most_common(12):
        spread = math.sqrt(share * (1 - share) / count)
        assert abs(drawn[text] / count - share) < 4.5 * spread, text
    assert len(drawn) > 60
    narrow = Sampling(max_new_tokens=1, temperature=3.0, top_k=2, samples=64)
    best = [tokenizer.decode([index]) for index in logits.topk(2).indices.tolist()]
    assert {c.text for c in engine.generate(questions[:1], narrow)[0]} == set(best)


def test_samples_are_in_order_and_repeat_with_their_seed(
    gguf_file: Path, tokenizer: Any, questions: Questions
) -> None:
    def draw(seed: int, parallel: int) -> list[list[str]]:
        sampling = Sampling(max_new_tokens=32, temperature=1.0, samples=5, seed=seed)
        with LlamaCppEngine(gguf_file, tokenizer, parallel=parallel) as engine:
            return [[c.text for c in row] for row in engine.generate(questions[:3] + questions[:1], sampling)]

    alone = draw(1, 1)
    assert [len(row) for row in alone] == [5, 5, 5, 5]
    assert all(len(set(row)) > 1 for row in alone)
    assert alone[0] != alone[3], "the same question twice gets other draws"
    assert draw(1, 1) == alone
    assert draw(2, 1) != alone
    shared = draw(1, 2)
    same = [a == b for row, other in zip(alone, shared, strict=True) for a, b in zip(row, other, strict=True)]
    assert sum(same) >= 18, "a seed stands for its sample, however many are drawn at once"


def test_a_prompt_that_does_not_fit_is_refused(engine: LlamaCppEngine, questions: Questions) -> None:
    with pytest.raises(ModelError, match="do not fit") as caught:
        engine.generate(questions, Sampling(max_new_tokens=500))
    assert "context_tokens" in (caught.value.hint or "")


@pytest.mark.parametrize("kept", [None, 0, 4, 100_000])
def test_a_broken_file_is_one_clear_error(
    gguf_file: Path, tokenizer: Any, tmp_path: Path, kept: int | None
) -> None:
    file = tmp_path / "broken.gguf"
    if kept is not None:
        file.write_bytes(gguf_file.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"broken\.gguf"):
        LlamaCppEngine(file, tokenizer)


def test_closing_frees_threads_and_port(gguf_file: Path, tokenizer: Any, questions: Questions) -> None:
    own = Path("/proc/self")
    if not own.is_dir():
        pytest.skip("looks at /proc")

    def held() -> tuple[set[str], set[str]]:
        sockets = {
            str(link.readlink()) for link in (own / "fd").iterdir() if link.is_symlink() and _is_socket(link)
        }
        return {task.name for task in (own / "task").iterdir()}, sockets

    threads, sockets = held()
    for _ in range(3):
        engine = LlamaCppEngine(gguf_file, tokenizer)
        engine.generate(questions[:2], GREEDY)
        assert held()[1] - sockets
        engine.close()
        engine.close()
    now = held()
    # Not how many: another test's threads may have ended meanwhile.
    assert (now[0] - threads, now[1] - sockets) == (set(), set())
    with pytest.raises(RuntimeError, match="closed"):
        engine.generate(questions[:1], GREEDY)


def test_a_process_that_never_closes_still_ends(folder: Path, gguf_file: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from posttrain.core.quiet import quiet_libraries; quiet_libraries()\n"
        "from posttrain.engines.llama_cpp import LlamaCppEngine\n"
        "from posttrain.engines.model_folder import load_tokenizer\n"
        "from posttrain.engines.records import Sampling\n"
        "engine = LlamaCppEngine(Path(sys.argv[2]), load_tokenizer(Path(sys.argv[1])))\n"
        "asked = [[{'role': 'user', 'content': '2 + 3?'}]]\n"
        "print(engine.generate(asked, Sampling(max_new_tokens=8, temperature=0))[0][0].tokens)\n"
        "raise SystemExit(7)\n"
    )
    command = [sys.executable, "-c", script, folder, gguf_file]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (7, "8\n", "")


def test_the_stage_keeps_what_llama_cpp_needs(
    tiny_artifact: Any,
    make_context: Callable[[str, dict[str, str]], StageContext],
    gguf_file: Path,
    questions: Questions,
    expected: list[list[Completion]],
) -> None:
    context = make_context("export_gguf", {"model": tiny_artifact.digest})
    result = run_export_gguf(ExportGgufConfig(), {"model": tiny_artifact}, context)
    artifact = result.outputs["model"]
    assert artifact.kind == "gguf"
    assert artifact.inputs == {"model": tiny_artifact.digest}
    assert context.store.read_bytes(artifact, "model.gguf") == gguf_file.read_bytes()
    folder = context.store.view(artifact)
    with LlamaCppEngine(folder / "model.gguf", load_tokenizer(folder)) as engine:
        assert engine.generate(questions, GREEDY) == expected
    again = run_export_gguf(ExportGgufConfig(), {"model": tiny_artifact}, context)
    assert again.outputs["model"].digest == artifact.digest


def test_the_stage_refuses_what_it_cannot_export(
    folder: Path, tmp_path: Path, make_context: Callable[[str, dict[str, str]], StageContext]
) -> None:
    other = _copy(folder, tmp_path / "other")
    _architecture(other)
    context = make_context("export_gguf", {})
    with context.writer("model", "model") as writer:
        writer.add_tree(other)
        artifact = writer.commit()
    before = set(context.store.digests())
    with pytest.raises(PosttrainError, match="Qwen2ForCausalLM"):
        run_export_gguf(ExportGgufConfig(), {"model": artifact}, context)
    assert set(context.store.digests()) == before


def _copy(folder: Path, target: Path) -> Path:
    """A copy whose files may be written."""
    target.mkdir(parents=True)
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def _edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _is_socket(link: Path) -> bool:
    try:
        return str(link.readlink()).startswith("socket:")
    except FileNotFoundError:  # the descriptor that listed the folder
        return False
