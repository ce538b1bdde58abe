"""A tiny random model of every causal-LM class of transformers that such a configuration can build."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers

SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 32, "n_embd": 32, "d_model": 32, "embed_dim": 32, "dim": 32, "embedding_size": 32,
    "word_embed_proj_dim": 32, "attention_hidden_size": 32, "intermediate_size": 64, "ffn_dim": 64, "n_inner": 64,
    "ffn_hidden_size": 64, "dff": 64, "ffn_hidden_dim": 64, "decoder_ffn_dim": 64, "encoder_ffn_dim": 64,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "expert_ffn_hidden_size": 16,
    "moe_shared_expert_intermediate_size": 16, "shared_intermediate_size": 32, "intermediate_size_mlp": 64,
    "num_hidden_layers": 4, "n_layer": 4, "n_layers": 4, "num_layers": 4, "num_decoder_layers": 2, "decoder_layers": 2,
    "encoder_layers": 2, "num_encoder_layers": 2, "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4,
    "decoder_attention_heads": 4, "encoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 256, "n_positions": 256, "n_ctx": 256, "max_seq_len": 256, "max_source_positions": 256,
    "max_target_positions": 256, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_k": 2, "moe_topk": 2, "n_group": 1, "topk_group": 1, "num_experts_per_token": 2,
    "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "qk_head_dim":
    16, "rotary_dim": 8, "sliding_window": 8, "attention_window": 8, "attention_chunk_size": 16, "window_size": 8,
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_d_ssm": 64, "mamba_expand": 2,
    "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1, "state_size": 8, "chunk_size": 16,
    "mamba_chunk_size": 16, "mamba_dt_rank": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4, "lru_width": 32, "conv_L_cache": 3,
    "time_step_rank": 4, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "initializer_range": 0.3, "init_std":
    0.3, "initializer_factor": 1.0, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 320,
    "num_kv_shared_layers": 0, "laurel_rank": 4, "altup_num_inputs": 2, "index_n_heads": 2, "index_head_dim": 16,
    "index_topk": 8, "query_pre_attn_scalar": 8,
}  # fmt: skip

LAYERS = {
    "granitemoehybrid": ["mamba", "attention"] * 2, "lfm2": ["conv", "full_attention"] * 2,
    "lfm2_moe": ["conv", "full_attention"] * 2, "bailing_hybrid": ["linear_attention", "full_attention"] * 2,
}  # fmt: skip

SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "falcon": {"alibi": False},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "lfm2_moe": {"num_dense_layers": 1},
}  # fmt: skip

EVERY = """
    afmoe apertus arcee aria_text axk1 bailing_hybrid bamba beam bert bert-generation big_bird biogpt bitnet bloom
    camembert codegen cohere cohere2 cohere2_moe ctrl cwm data2vec-text deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4
    diffllama doge electra ernie ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon falcon_h1 falcon_mamba flex_olmo flint
    gemma gemma2 gemma3_text gemma3n_text gemma4_text gemma4_unified_text glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa
    gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite granite_swa granitemoe granitemoe_swa
    granitemoehybrid granitemoeshared helium hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3 hy_v4 hyperclovax inkling_text
    internlm3 iquestcoder jais2 jamba jetmoe kolibri1 laguna lfm2 lfm2_moe lfm3 llama llama4_text mamba megatron-bert
    mellum mimo_v2_flash minicpm3 minimax minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral
    modernbert-decoder moshi mpt nanochat nemotron nemotron_h olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt persimmon
    phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next recurrent_gemma rembert
    roberta roberta-prelayernorm roformer rwkv seed_oss smollm3 solar_open stablelm starcoder2 trocr vaultgemma whisper
    xglm xlm xlm-roberta xlm-roberta-xl xlnet youtu
""".split()


def build(kind: str, **changes: Any) -> Any:
    """A random model of this model type: 4 layers of width 32, 320 tokens, 256 positions; wrong masks show."""
    config_class = transformers.CONFIG_MAPPING[kind]
    names: set[str] = set(config_class.attribute_map)
    for base in config_class.__mro__[:-1]:
        names |= set(getattr(base, "__annotations__", {})) | set(inspect.signature(base.__init__).parameters)
    sizes = {name: value for name, value in SIZES.items() if name in names}
    if "kv_lora_rank" in sizes:  # latent attention: heads of its own sizes
        sizes.pop("head_dim", None)
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    layers = {"layer_types": LAYERS[kind]} if kind in LAYERS else {}
    config = config_class(**{**sizes, **layers, **SPECIAL.get(kind, {}), **changes})
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()
