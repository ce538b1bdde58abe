"""PrefixLM against lm-eval's own HFLM, against one-request-at-a-time loops in float64, and against brute force."""

import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing

from cltk.errors import InputError, RunError
from cltk.measure import settings as scoring_settings
from cltk.measure.journal import Journal, request_key
from cltk.measure.prefix_tree import Requests, batches, common, pack, spans
from cltk.measure.scoring import PrefixLM, fast_dtype
from cltk.measure.tree_forward import ancestors

TEXT = "the quick brown fox jumps over lazy dog question what is it answer blue red green"
WORDS = TEXT.split(" ")
LENGTH = 256
WINDOW = 8
KINDS = ["llama", "gpt2", "neox", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "cohere", "granite"]


def make_tokenizer(bos: bool = False) -> transformers.PreTrainedTokenizerFast:
    core = ByteLevelBPETokenizer()
    core.train_from_iterator([TEXT] * 3, vocab_size=300, min_frequency=1, special_tokens=["<s>", "</s>"])
    if bos:
        core._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    template = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}"
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core._tokenizer, bos_token="<s>", eos_token="</s>", chat_template=template
    )


def make_model(kind: str, **overrides):
    """A random model with 3 layers of width 32; initial weights large enough that wrong masks show."""
    torch.manual_seed(0)
    base = {
        "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": LENGTH, "initializer_range": 0.3,
        "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    gemma = base | {"head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8}
    gpt2 = {"vocab_size": 320, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": LENGTH, "initializer_range": 0.3}
    small = {"vocab_size": 320, "hidden_size": 32, "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 1}
    configs = {
        "llama": (transformers.LlamaConfig, base),
        "gpt2": (transformers.GPT2Config, gpt2 | {"bos_token_id": 0, "eos_token_id": 1}),
        "neox": (transformers.GPTNeoXConfig, {k: v for k, v in base.items() if k != "num_key_value_heads"}),
        "qwen2": (
            transformers.Qwen2Config,
            base | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        ),
        "qwen3": (transformers.Qwen3Config, base | {"head_dim": 8}),
        "mistral": (transformers.MistralConfig, base | {"sliding_window": WINDOW}),
        "gemma2": (transformers.Gemma2Config, gemma | {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0}),
        "gemma3": (transformers.Gemma3TextConfig, gemma | {"sliding_window_pattern": 2}),
        "cohere": (transformers.CohereConfig, base | {"pad_token_id": 0}),
        "granite": (transformers.GraniteConfig, base | {"logits_scaling": 3.0}),
        "bloom": (transformers.BloomConfig, small | {"n_layer": 2, "n_head": 4}),
        "falcon": (transformers.FalconConfig, small | {"num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True}),
        "mamba": (transformers.MambaConfig, small | {"num_hidden_layers": 2, "state_size": 8}),
    }
    make, arguments = configs[kind]
    return transformers.AutoModelForCausalLM.from_config(make(**(arguments | overrides))).eval()


def instances(pairs):
    return [SimpleNamespace(args=pair, task_name="t") for pair in pairs]


def words(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))


def mixed_pairs(seed: int = 0) -> list[tuple[str, str]]:
    """Documents with 1 to 4 choices, two thirds behind one long header; repeats; every odd case of lm-eval's encoding."""
    rng = random.Random(seed)
    header = "question: what is the lazy dog? answer: brown fox jumps over it.\n" * 4
    pairs = []
    for document in range(30):
        context = (header if document % 3 else "") + words(rng, 3, 20)
        pairs += [(context, " " + words(rng, 1, 6)) for _ in range(rng.randint(1, 4))]
    pairs += [("", "the dog"), ("", "the fox"), ("", "<s>the fox"), ("space at the end ", "x"), ("spaces  ", " y")]
    pairs += [
        ("the qui", "ck brown"),
        ("the quick", "ly"),
        ("a", " blue"),
        ("a", " blue red"),
        ("a", " red"),
        pairs[0],
        pairs[3],
    ]
    pairs += [(header * 3, "blue red"), (header * 3, "green"), (header * 3, words(rng, 30, 40))]  # longer than the model
    return pairs


def assert_same(ours, stock) -> None:
    """|difference| <= 1e-5 |logprob| and the same greedy flags."""
    assert len(ours) == len(stock)
    for number, ((mine, greedy), (theirs, flag)) in enumerate(zip(ours, stock, strict=True)):
        assert abs(mine - theirs) <= 1e-5 * abs(theirs) + 1e-9, (number, mine, theirs)
        assert greedy == flag, (number, mine, theirs)


def both(model, tokenizer, **arguments) -> tuple[PrefixLM, HFLM]:
    stock = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=LENGTH)
    ours = PrefixLM(model, tokenizer, batch_size=4, **arguments)
    ours._max_length = LENGTH  # not in every config
    return ours, stock


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def llama():
    return make_model("llama")


def naive(model, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """One request, one forward, float64."""
    tokens = (context + continuation)[-(LENGTH + 1) :]
    with torch.no_grad():
        logp = model(torch.tensor([tokens[:-1]])).logits[0, -len(continuation) :].double().log_softmax(-1)
    targets = torch.tensor(continuation)
    return float(logp.gather(1, targets[:, None]).sum()), bool((logp.argmax(-1) == targets).all())


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_stock(kind, tokenizer):
    ours, stock = both(make_model(kind), tokenizer, max_tokens=512)
    requests = instances(mixed_pairs())
    assert_same(ours.loglikelihood(requests, disable_tqdm=True), stock.loglikelihood(requests, disable_tqdm=True))
    assert ours._trees is not None
    assert set(ours._checked) == {False, True}  # trees, and trees behind a cached prefix, were in use


@pytest.mark.parametrize("kind", KINDS)
def test_rolling_equal_to_stock(kind, tokenizer):
    ours, stock = both(make_model(kind), tokenizer)
    rng = random.Random(1)
    texts = instances([(words(rng, n, n),) for n in (1, 7, 250, 700)] + [("",)])
    mine, theirs = ours.loglikelihood_rolling(texts), stock.loglikelihood_rolling(texts, disable_tqdm=True)
    assert mine == pytest.approx(theirs, rel=1e-6)
    assert mine[-1] == 0


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "gemma3"])
def test_close_to_float64(kind, tokenizer):
    model, requests = make_model(kind), instances(mixed_pairs(2))
    single = PrefixLM(model, tokenizer)
    single._max_length = LENGTH
    scores = single.loglikelihood(requests, disable_tqdm=True)
    reference = HFLM(pretrained=model.double(), tokenizer=tokenizer, batch_size=1, max_length=LENGTH)
    exact = reference.loglikelihood(requests, disable_tqdm=True)
    assert max(abs(a[0] - b[0]) for a, b in zip(scores, exact, strict=True)) < 1e-4
    double = PrefixLM(model, tokenizer)
    double._max_length = LENGTH
    fine = double.loglikelihood(requests, disable_tqdm=True)
    assert max(abs(a[0] - b[0]) for a, b in zip(fine, exact, strict=True)) < 1e-5  # eager softmax is float32


def test_sdpa_and_eager_agree(tokenizer):
    requests = instances(mixed_pairs(3))
    for kind in ("llama", "gemma3"):
        scores = []
        for attention in ("sdpa", "eager"):
            model = make_model(kind)
            model.set_attn_implementation(attention)
            lm = PrefixLM(model, tokenizer, max_tokens=512)
            lm._max_length = LENGTH
            scores.append(lm.loglikelihood(requests, disable_tqdm=True))
            assert lm._trees is not None
        assert_same(*scores)


ragged = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), min_size=1, max_size=12),  # a small alphabet: many shared beginnings
        st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=4),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=25, deadline=None)
@given(documents=ragged, budget=st.sampled_from([1, 40, 4096]), limit=st.sampled_from([1, 5, 10**6]))
def test_ragged_documents_equal_a_naive_loop(documents, budget, limit):
    header = [7, 8, 9] * 30
    model = CACHE.setdefault("gemma3", make_model("gemma3").double())
    lm = PrefixLM(model, CACHE.setdefault("tokenizer", make_tokenizer()), max_tokens=budget)
    lm._trees.rows = limit
    requests = [(None, header * long + context, cont) for context, conts, long in documents for cont in conts]
    splits = {(tuple(context + cont[:-1]), len(cont)) for _, context, cont in requests}
    assume(len(splits) == len({text for text, _ in splits}))  # lm-eval mixes up one text that is split in two ways
    for (_, context, cont), (logprob, greedy) in zip(requests, lm._loglikelihood_tokens(requests), strict=True):
        expected, flag = naive(model, context, cont)
        assert abs(logprob - expected) < 1e-5  # its norms are float32
        assert greedy == flag


CACHE: dict = {}


@settings(max_examples=100, deadline=None)
@given(
    documents=ragged, join=st.sampled_from([1, 16, 256]), header=st.sampled_from([1, 4]), budget=st.sampled_from([1, 30, 500])
)
def test_plan_is_a_partition_into_tries(documents, join, header, budget):
    pairs = [(context + cont, len(cont)) for context, conts, _ in documents for cont in conts]
    requests = Requests(pairs)
    assert [(requests.tokens[k].tolist(), requests.scored[k]) for k in requests.place] == pairs
    assert len(requests) == len({(tuple(tokens), scored) for tokens, scored in pairs})
    plan = list(batches(spans(requests, join, header), budget))
    members = sorted(k for batch in plan for span in batch for k in range(span.low, span.high))
    assert members == list(range(len(requests)))
    for batch in plan:
        packed = pack(requests, batch)
        assert len(batch) == 1 or packed.tokens.size <= budget
        check_rows(requests, batch, packed)


def check_rows(requests, batch, packed) -> None:
    """Every node is a distinct prefix; its ancestors are exactly its shorter prefixes; scored nodes are right."""
    start = len(packed.prefix)
    allowed = ancestors(torch.from_numpy(packed.ends), start).numpy()
    names: dict[int, tuple[int, ...]] = {}
    for row, span in enumerate(batch):
        inputs = [tuple(requests.tokens[k][:-1].tolist()) for k in range(span.low, span.high)]
        assert all(ids[:start] == tuple(packed.prefix.tolist()) for ids in inputs)
        prefixes = {ids[:n] for ids in inputs for n in range(start + 1, len(ids) + 1)}
        assert span.size == len(prefixes)
        for node in range(packed.tokens.shape[1]):
            seen = np.flatnonzero(allowed[row, node, start:])
            assert allowed[row, node, :start].all()
            if node >= span.size:
                assert seen.tolist() == [node]
                continue
            name = (*packed.prefix.tolist(), *packed.tokens[row, seen].tolist())
            assert name in prefixes
            assert packed.positions[row, node] == len(name) - 1
            names[row * packed.tokens.shape[1] + node] = name
    at = 0
    for k, count in zip(packed.requests, packed.counts, strict=True):
        ids = tuple(requests.tokens[k].tolist())
        for step, slot in enumerate(packed.slots[at : at + count]):
            cut = len(ids) - count + step
            assert names[int(packed.index[slot])] == ids[:cut]
            assert packed.targets[at + step] == ids[cut]
        at += count


def test_common():
    assert common(np.array([1, 2, 3]), np.array([1, 2, 4, 5])) == 2
    assert common(np.array([1, 2]), np.array([1, 2, 4])) == 2


class Counter:
    """Counts the token positions that go through the model."""

    def __init__(self, model):
        self.tokens = 0
        self.handle = model.get_input_embeddings().register_forward_hook(self.add)

    def add(self, module, args, output):
        self.tokens += args[0].numel()


def test_shared_tokens_are_computed_once(llama, tokenizer):
    lm = PrefixLM(llama, tokenizer)
    lm._proven, lm._checked = True, dict.fromkeys((False, True), (10**9, 10**9))  # no comparison with the stock path
    counter = Counter(llama)
    context = list(range(100, 200))
    answers = lm._loglikelihood_tokens([(None, context, [k, k + 1]) for k in (3, 5, 7, 3)])
    counter.handle.remove()
    assert counter.tokens == 100 + 3
    assert answers[0] == answers[3]


def test_nothing_is_kept_when_the_weights_change(tokenizer):
    model, requests = make_model("llama"), instances(mixed_pairs())
    ours, stock = both(model, tokenizer, max_tokens=512)
    ours.loglikelihood(requests, disable_tqdm=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    assert_same(ours.loglikelihood(requests, disable_tqdm=True), stock.loglikelihood(requests, disable_tqdm=True))


def test_long_header_is_computed_once(llama, tokenizer):
    rng = random.Random(0)
    lm = PrefixLM(llama, tokenizer, max_tokens=200)
    lm._proven, lm._checked = True, dict.fromkeys((False, True), (10**9, 10**9))  # no comparison with the stock path
    counter = Counter(llama)
    header = list(range(100, 200))
    requests = [(None, header + [rng.randint(3, 300) for _ in range(20)], [4]) for _ in range(50)]
    lm._loglikelihood_tokens(requests)
    counter.handle.remove()
    assert counter.tokens == 100 + 50 * 20


def test_choices_that_are_truncated_differently(llama, tokenizer):
    ours, _ = both(llama, tokenizer)
    context = [k % 300 for k in range(400)]
    requests = [(None, context, [5] * n) for n in (1, 3, 3, 40, 255, 256)]
    for (_, ctx, cont), answer in zip(requests, ours._loglikelihood_tokens(requests), strict=True):
        assert answer[0] == pytest.approx(naive(llama, ctx, cont)[0], rel=1e-6)


def test_tokenizer_that_adds_bos(llama):
    ours, stock = both(llama, make_tokenizer(bos=True))
    requests = instances([*mixed_pairs(4)[:20], ("<s>the dog", " jumps"), ("the dog", " jumps"), ("the dog", " is")])
    assert_same(ours.loglikelihood(requests, disable_tqdm=True), stock.loglikelihood(requests, disable_tqdm=True))


def test_chat_template(llama, tokenizer):
    ours, stock = both(llama, tokenizer)
    chat = [{"role": "user", "content": "what is the dog?"}]
    assert ours.apply_chat_template(chat) == stock.apply_chat_template(chat) == "<s>user: what is the dog?\n"
    requests = instances([(ours.apply_chat_template(chat), text) for text in ("blue", "red fox", "green")])
    assert_same(ours.loglikelihood(requests, disable_tqdm=True), stock.loglikelihood(requests, disable_tqdm=True))


def test_generation_is_the_stock_one(llama, tokenizer):
    ours, stock = both(llama, tokenizer)
    requests = instances([("the dog", {"until": ["."], "max_gen_toks": 5}), ("a", {"until": ["."], "max_gen_toks": 5})])
    assert ours.generate_until(requests, disable_tqdm=True) == stock.generate_until(requests, disable_tqdm=True)


@pytest.mark.parametrize("kind", ["bloom", "falcon", "mamba"])
def test_models_without_trees_fall_back(kind, tokenizer):
    ours, stock = both(make_model(kind), tokenizer)
    requests = instances(mixed_pairs()[:30])
    with pytest.warns(UserWarning, match=r"contexts are not shared, lm-eval's own scoring is used") as caught:
        scores = [ours.loglikelihood(requests, disable_tqdm=True) for _ in range(2)]
    assert len([w for w in caught if "contexts are not shared" in str(w.message)]) == 1
    expected = stock.loglikelihood(requests, disable_tqdm=True)
    for mine in scores:
        assert_same(mine, expected)


def test_a_model_that_rejects_the_mask_falls_back(tokenizer):
    class Strict(transformers.LlamaForCausalLM):
        def forward(self, input_ids, **kwargs):
            if kwargs.get("attention_mask") is not None:
                raise ValueError("no masks here")
            return super().forward(input_ids, **kwargs)

    torch.manual_seed(0)
    ours, stock = both(Strict(make_model("llama").config).eval(), tokenizer)
    requests = instances(mixed_pairs()[:30])
    with pytest.warns(UserWarning, match="Strict: .*: no masks here"):
        scores = ours.loglikelihood(requests, disable_tqdm=True)
    assert_same(scores, stock.loglikelihood(requests, disable_tqdm=True))


def test_masks_are_restored(llama, tokenizer):
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, sdpa_mask

    PrefixLM(llama, tokenizer).loglikelihood(instances(mixed_pairs()[:10]), disable_tqdm=True)
    assert ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] is sdpa_mask
    assert ALL_MASK_ATTENTION_FUNCTIONS["eager"] is eager_mask


@pytest.mark.parametrize("kind", ["llama", "gemma2", "granite"])  # as it is; soft-capped; scaled
def test_rows_of_logits_are_bounded(kind, tokenizer):
    model, requests = make_model(kind), instances(mixed_pairs(5))
    free, _ = both(model, tokenizer)
    tight, _ = both(model, tokenizer)
    expected = free.loglikelihood(requests, disable_tqdm=True)
    assert free._trees._plain == (kind == "llama")
    tight._trees.rows = 3
    tight._proven, tight._checked = True, dict(free._checked)
    heights = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: heights.append(output.shape[-2]))
    scores = tight.loglikelihood(requests, disable_tqdm=True)
    handle.remove()
    assert max(heights) == 3
    assert_same(scores, expected)


def test_batches_that_do_not_fit_are_halved(llama, tokenizer):
    requests = instances(mixed_pairs(5))
    free, _ = both(llama, tokenizer)
    lm, _ = both(llama, tokenizer)
    whole = lm._trees.log_probs
    sizes = []

    def small(packed):
        sizes.append(len(packed.tokens))
        if len(packed.tokens) > 2:
            raise torch.OutOfMemoryError
        return whole(packed)

    lm._trees.log_probs = small
    assert_same(lm.loglikelihood(requests, disable_tqdm=True), free.loglikelihood(requests, disable_tqdm=True))
    assert max(sizes) > 4


def test_nan_names_the_request(tokenizer):
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight[17] = math.nan
    lm = PrefixLM(model, tokenizer)
    with pytest.raises(RunError, match=r"scoring request 0, continuation ' blue': the model gives NaN"):
        lm.loglikelihood(instances([("the dog is", " blue"), ("the fox is", " red")]), disable_tqdm=True)


def test_bad_requests(llama, tokenizer):
    lm, _ = both(llama, tokenizer)
    with pytest.raises(InputError, match="scoring request 1, continuation '': 3 context and 0 continuation tokens"):
        lm.loglikelihood(instances([("the dog", " is"), ("the dog", "")]), disable_tqdm=True)
    with pytest.raises(InputError, match="at most 256"):
        lm._loglikelihood_tokens([(None, [1], [2] * 257)])
    with pytest.raises(InputError, match="digest"):
        PrefixLM(llama, tokenizer, journal=Journal("unused"))
    assert lm.loglikelihood([], disable_tqdm=True) == []


class KilledError(Exception):
    """Stands for the end of the process."""


def scored_with(journal, model, tokenizer, pairs, kill_after=10**9, digest="abc"):
    calls = []

    def progress(done, total, tokens):
        calls.append((done, total, tokens))
        if len(calls) == kill_after:
            raise KilledError

    lm = PrefixLM(model, tokenizer, max_tokens=100, journal=journal, digest=digest, progress=progress)
    lm._max_length = LENGTH
    try:
        return lm.loglikelihood(instances(pairs), disable_tqdm=True), calls
    except KilledError:
        return None, calls


def test_resume_is_byte_identical(llama, tokenizer, tmp_path):
    pairs = mixed_pairs(6)
    expected, calls = scored_with(Journal(tmp_path / "whole"), llama, tokenizer, pairs)
    assert calls[-1][:2] == (len(pairs), len(pairs))
    assert len(calls) > 6
    scored_with(Journal(tmp_path / "cut"), llama, tokenizer, pairs, kill_after=4)
    data = (tmp_path / "cut").read_bytes()
    (tmp_path / "cut").write_bytes(data[:-30])  # and the kill came in the middle of a line
    resumed, more = scored_with(Journal(tmp_path / "cut"), llama, tokenizer, pairs)
    assert resumed == expected
    assert more[2][2] == 0 < more[3][2] < calls[-1][2]  # three batches from the file, the fourth again
    assert Journal(tmp_path / "cut")._answers == Journal(tmp_path / "whole")._answers
    again, none = scored_with(Journal(tmp_path / "cut"), llama, tokenizer, pairs)
    assert again == expected
    assert none[-1][2] == 0
    _, some = scored_with(Journal(tmp_path / "cut"), llama, tokenizer, pairs[:5], digest="other weights")
    assert some[-1][2] > 0


def test_an_answer_in_the_journal_is_kept(llama, tokenizer, tmp_path):
    pair = ("the dog is", " blue")
    lm = PrefixLM(llama, tokenizer)
    context, continuation = lm._encode_pair(*pair)
    book = Journal(tmp_path / "j")
    book.put(request_key("abc trees", context + continuation, len(continuation)), {"logprob": -123.0, "greedy": True})
    answers, _ = scored_with(book, llama, tokenizer, [pair, ("the dog is", " red")])
    assert answers[0] == (-123.0, True)
    assert answers[1] == lm.loglikelihood(instances([pair, ("the dog is", " red")]), disable_tqdm=True)[1]
    assert len(book) == 2


def test_journal_refuses_damage(tmp_path):
    path = tmp_path / "j.jsonl"
    book = Journal(path)
    book.put_all({f"key{k}": {"logprob": -k / 7, "greedy": k == 1} for k in range(5)})
    book.put("key9", {"logprob": -math.inf, "greedy": False})
    book.put("key9", {"logprob": 1.0, "greedy": True})  # the first stays
    again = Journal(path)
    assert len(again) == 6
    assert again.get("key3") == {"logprob": -3 / 7, "greedy": False}
    assert again.get("key9") == {"logprob": -math.inf, "greedy": False}
    assert again.get("missing") is None
    lines = path.read_text().splitlines()
    assert set(json.loads(lines[0])) == {"key", "logprob", "greedy", "check"}
    for damage in (lines[2].replace("0.28", "0.29"), lines[2][:20], "", "{}"):
        path.write_text("\n".join([*lines[:2], damage, *lines[3:]]) + "\n")
        with pytest.raises(InputError, match=r"j\.jsonl, line 3: the line is damaged"):
            Journal(path)


def test_two_processes_may_write_one_journal(tmp_path):
    first, second = Journal(tmp_path / "j"), Journal(tmp_path / "j")
    for k in range(3):
        first.put(f"a{k}", {"logprob": -1.0 / (k + 1), "greedy": True})
        second.put(f"b{k}", {"logprob": -k / 3, "greedy": False})
        second.put("a0", {"logprob": -5.0, "greedy": False})
    with (tmp_path / "j").open("ab") as file:
        file.write(b'{"key": "cut')
    second.put("last", {"logprob": 0.0, "greedy": True})
    again = Journal(tmp_path / "j")
    assert len(again) == 7
    assert again.get("a0") == {"logprob": -1.0, "greedy": True}


def test_fast_dtype(monkeypatch):
    speed = {torch.float32: 1.3, torch.bfloat16: 1.0}
    monkeypatch.setattr(scoring_settings, "_seconds", lambda device, dtype: speed[dtype])
    assert fast_dtype("cpu") == torch.bfloat16
    speed[torch.bfloat16] = 1.01
    assert fast_dtype("cpu") == torch.float32
