"""Parts of tiny checkpoints that several have: config keys, and mixtures of experts in either published layout."""

from __future__ import annotations

from typing import Any

# Of Qwen3-30B-A3B, what Qwen3's dense models do not have.
QWEN3_MOE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 40,
    "norm_topk_prob": True,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}
_GLM = {
    "attention_bias": True,
    "head_dim": 24,
    "max_position_embeddings": 32768,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
# Of GLM-4-9B-Chat and GLM-4-9B-0414.
GLM: dict[str, dict[str, Any]] = {
    "glm": {**_GLM, "architectures": ["GlmForCausalLM"], "model_type": "glm"},
    "glm4": {**_GLM, "architectures": ["Glm4ForCausalLM"], "model_type": "glm4"},
}
GAIN = 2.0  # of the router: some experts clearly before others


def has_experts(config: dict[str, Any], layer: int) -> bool:
    """Qwen3's rule for a layer, from 0."""
    if "num_experts" not in config or layer in config["mlp_only_layers"]:
        return False
    return bool((layer + 1) % config["decoder_sparse_step"] == 0)


def separate_experts(t: Any, mlp: str, config: dict[str, Any], num_experts: int) -> None:
    """Each expert's three matrices by themselves, and the router."""
    width, inner = config["hidden_size"], config["moe_intermediate_size"]
    t.linear(f"{mlp}.gate", num_experts, width, gain=GAIN)
    for expert in range(num_experts):
        t.linear(f"{mlp}.experts.{expert}.gate_proj", inner, width, gain=1.5)
        t.linear(f"{mlp}.experts.{expert}.up_proj", inner, width, gain=1.5)
        t.linear(f"{mlp}.experts.{expert}.down_proj", width, inner, gain=1.0)


def stacked_experts(t: Any, mlp: str, config: dict[str, Any], num_experts: int) -> None:
    """As Qwen3-VL's: one tensor for all experts, whose matrices have a row for each input."""
    width, inner = config["hidden_size"], config["moe_intermediate_size"]
    t.linear(f"{mlp}.gate", num_experts, width, gain=GAIN)
    t.normal(f"{mlp}.experts.gate_up_proj", num_experts, width, 2 * inner, std=1.5 * width**-0.5)
    t.normal(f"{mlp}.experts.down_proj", num_experts, inner, width, std=inner**-0.5)
