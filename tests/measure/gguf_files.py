"""GGUF files of tiny Llamas, as llama.cpp's own converter lays them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAMES = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
NAMES |= {"lm_head.weight": "output.weight"}
INNER = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(path: Path, model: Any, tokenizer: Any, kind: str, begins: bool = False) -> None:
    """A Llama and its byte-level BPE; matrices in `kind` (F32, Q8_0, Q4_0), norms in float32; `begins`: texts with a BOS."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    file, form = GGUFWriter(str(path), "llama"), GGMLQuantizationType[kind]
    _describe(file, model.config)
    _vocabulary(file, tokenizer, begins)
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        weight = _laid_out(name, parameter.detach().float().numpy(), model.config)
        if weight.ndim == 2 and kind != "F32":
            file.add_tensor(_named(name), quants.quantize(weight, form), raw_dtype=form)
        else:
            file.add_tensor(_named(name), np.ascontiguousarray(weight))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def dequantised(weight: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
    """A matrix behind the format, by its definition: blocks of 32 in a row, d = max |w| / 127 (a half), q = round(w / d)."""
    assert kind == "Q8_0"
    blocks = weight.astype(np.float32).reshape(-1, 32)
    d = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    q = np.where(d == 0, 0, blocks / np.where(d == 0, 1, d))
    rounded = np.trunc(q + np.copysign(np.float32(0.5), q))
    return (rounded * d.astype(np.float16).astype(np.float32)).reshape(weight.shape)


def _named(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    _, _, layer, inner = name.split(".", 3)
    return f"blk.{layer}.{INNER[inner.removesuffix('.weight')]}.weight"


def _laid_out(name: str, weight: NDArray[np.float32], config: Any) -> NDArray[np.float32]:
    """Queries and keys with the halves of a rotation interleaved."""
    heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads if "k_proj" in name else 0
    if not heads:
        return weight
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def _describe(file: Any, config: Any) -> None:
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_block_count(config.num_hidden_layers)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_vocab_size(config.vocab_size)
    file.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    file.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _vocabulary(file: Any, tokenizer: Any, begins: bool) -> None:
    numbers = tokenizer.get_vocab()
    words = sorted(numbers, key=numbers.__getitem__)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("gpt-2")
    file.add_token_list(words)
    file.add_token_types([3 if word in tokenizer.all_special_tokens else 1 for word in words])
    file.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    file.add_bos_token_id(tokenizer.bos_token_id)
    file.add_eos_token_id(tokenizer.eos_token_id)
    file.add_pad_token_id(tokenizer.pad_token_id)
    file.add_add_bos_token(begins)
