"""The model's shape, its first weights, and a dense forward pass for batches whose pictures share one grid.

The parameters live in transformers' own `Qwen2VLForConditionalGeneration`, so what is trained is what gets loaded.
The forward pass here computes the same numbers (tests/tiny compares them) without its loop over pictures.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from tiny import tokenizer

HEAD = 64
TEXT_HEADS, KV_HEADS, VISION_HEADS = 4, 2, 4
SECTIONS = (8, 12, 12)
# Prompts are short: small frequencies leave room to tell rows and columns apart.
ROPE_THETA = 1000.0
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def flat_config() -> dict[str, Any]:
    """config.json in the flat layout in which Qwen2-VL was published."""
    ids = tokenizer.load().get_vocab()
    size = -(-len(ids) // 64) * 64
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": 256,
        "initializer_range": 0.02,
        "intermediate_size": 768,
        "max_position_embeddings": 4096,
        "max_window_layers": 6,
        "model_type": "qwen2_vl",
        "num_attention_heads": TEXT_HEADS,
        "num_hidden_layers": 6,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-06,
        "rope_theta": ROPE_THETA,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 6,
            "embed_dim": 256,
            "mlp_ratio": 4,
            "num_heads": VISION_HEADS,
            "in_chans": 3,
            "hidden_size": 256,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": list(SECTIONS)},
        "vocab_size": size,
    }


def build(seed: int) -> Qwen2VLForConditionalGeneration:
    """A model with fresh float32 weights."""
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(flat_config())).float()
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        fan_in = parameter[0].numel()
        if "embed_tokens" in name or "lm_head" in name:
            nn.init.normal_(parameter, std=0.05)
        elif name.endswith(("attn.proj.weight", "fc2.weight", "o_proj.weight", "down_proj.weight")):
            # Each block begins as the identity.
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=(0.2 if "merger.mlp.2" in name else 1.0) * fan_in**-0.5)
    return model


def normalised(pictures: Tensor) -> Tensor:
    """uint8 (n, h, w, 3) to what the processor gives before cutting patches, in float32."""
    mean, std = (torch.tensor(v, device=pictures.device) for v in (MEAN, STD))
    return (pictures.float() / 255 - mean) / std


def patches(pictures: Tensor) -> Tensor:
    """(n, h, w, 3) to (n, patches, 3 * 14 * 14), in merge-block order, without the doubled time axis."""
    n, h, w, _ = pictures.shape
    cut = pictures.view(n, h // 28, 2, 14, w // 28, 2, 14, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
    return cut.reshape(n, (h // 14) * (w // 14), 588)


def vision_rope(grid: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (patches, HEAD) for a grid of merged cells (rows, columns)."""
    rows, columns = grid
    row, column = torch.meshgrid(torch.arange(rows * 2), torch.arange(columns * 2), indexing="ij")
    order = [p.reshape(rows, 2, columns, 2).permute(0, 2, 1, 3).reshape(-1) for p in (row, column)]
    frequencies = 1e4 ** -(torch.arange(0, HEAD // 2, 2).float() / (HEAD // 2))
    angles = torch.cat([p[:, None].float() * frequencies for p in order], dim=-1).repeat(1, 2).to(device)
    return _signed(angles)


def text_rope(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (batch, 1, length, HEAD) for M-RoPE positions (3, batch, length)."""
    frequencies = ROPE_THETA ** -(torch.arange(0, HEAD, 2, device=positions.device).float() / HEAD)
    parts = (positions[..., None].float() * frequencies).split(SECTIONS, dim=-1)
    angles = torch.cat([part[i] for i, part in enumerate(parts)], dim=-1).repeat(1, 1, 2)[:, None]
    return _signed(angles)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate half; `sin` carries the sign, so a roll does it."""
    return torch.addcmul(x * cos.to(x.dtype), x.roll(HEAD // 2, dims=-1), sin.to(x.dtype))


def _signed(angles: Tensor) -> tuple[Tensor, Tensor]:
    sign = torch.ones(HEAD, device=angles.device)
    sign[: HEAD // 2] = -1
    return angles.cos(), angles.sin() * sign


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, 1e-6)


def vision_block(x: Tensor, cos: Tensor, sin: Tensor, w: tuple[Tensor, ...]) -> Tensor:
    n1, b1, qkv, qkv_b, proj, proj_b, n2, b2, fc1, fc1_b, fc2, fc2_b = w
    n, length, width = x.shape
    mixed = F.linear(F.layer_norm(x, (width,), n1, b1, 1e-6), qkv, qkv_b).view(n, length, 3, VISION_HEADS, HEAD)
    q, k, v = mixed.permute(2, 0, 3, 1, 4).unbind(0)
    seen = F.scaled_dot_product_attention(_rotate(q, cos, sin), _rotate(k, cos, sin), v)
    x = x + F.linear(seen.transpose(1, 2).reshape(n, length, width), proj, proj_b)
    # y * sigmoid(1.702 y), with the factor moved into the small matrices.
    y = F.silu(F.linear(F.layer_norm(x, (width,), n2, b2, 1e-6), fc1 * 1.702, fc1_b * 1.702))
    return x + F.linear(y, fc2 / 1.702, fc2_b)


def text_block(x: Tensor, cos: Tensor, sin: Tensor, w: tuple[Tensor, ...]) -> Tensor:
    n1, q_w, q_b, k_w, k_b, v_w, v_b, o_w, n2, gate, up, down = w
    n, length, width = x.shape
    y = _rms(x, n1)

    def heads(weight: Tensor, bias: Tensor, count: int) -> Tensor:
        return F.linear(y, weight, bias).view(n, length, count, HEAD).transpose(1, 2)

    q = _rotate(heads(q_w, q_b, TEXT_HEADS), cos, sin)
    k = _rotate(heads(k_w, k_b, KV_HEADS), cos, sin).repeat_interleave(TEXT_HEADS // KV_HEADS, dim=1)
    v = heads(v_w, v_b, KV_HEADS).repeat_interleave(TEXT_HEADS // KV_HEADS, dim=1)
    seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + F.linear(seen.transpose(1, 2).reshape(n, length, width), o_w)
    y = _rms(x, n2)
    return x + F.linear(F.silu(F.linear(y, gate)) * F.linear(y, up), down)


Block = Callable[[Tensor, Tensor, Tensor, tuple[Tensor, ...]], Tensor]


class Dense:
    """The forward pass over a model's parameters; `compiled` swaps the two block functions for compiled ones."""

    def __init__(self, model: Qwen2VLForConditionalGeneration, compiled: bool = False) -> None:
        p = dict(model.named_parameters())
        blocks, layers = "model.visual.blocks.", "model.language_model.layers."
        self.vision_weights = [_vision_weights(p, f"{blocks}{i}.") for i in range(6)]
        self.text_weights = [_text_weights(p, f"{layers}{i}.") for i in range(6)]
        self.patch_embed = p["model.visual.patch_embed.proj.weight"]
        self.merger = [p[f"model.visual.merger.{n}"] for n in _MERGER]
        self.embed = p["model.language_model.embed_tokens.weight"]
        self.norm = p["model.language_model.norm.weight"]
        self.vision_block: Block = torch.compile(vision_block, dynamic=True) if compiled else vision_block
        self.text_block: Block = torch.compile(text_block, dynamic=True) if compiled else text_block

    def see(self, pictures: Tensor) -> Tensor:
        """Normalised pictures (n, h, w, 3) to embeddings (n * cells, width)."""
        cos, sin = vision_rope((pictures.shape[1] // 28, pictures.shape[2] // 28), pictures.device)
        # Both time slots of a still picture hold the same pixels.
        x = F.linear(patches(pictures), self.patch_embed.sum(2).flatten(1))
        for weights in self.vision_weights:
            x = self.vision_block(x, cos, sin, weights)
        n, b, w0, b0, w2, b2 = self.merger
        x = F.layer_norm(x, (x.shape[-1],), n, b, 1e-6).reshape(-1, 4 * x.shape[-1])
        return F.linear(F.gelu(F.linear(x, w0, b0)), w2, b2)

    def read(self, ids: Tensor, positions: Tensor, seen: Tensor | None, places: Tensor) -> Tensor:
        """Token ids (batch, length) to final hidden states; `places` says where in the flat batch `seen` goes."""
        x = F.embedding(ids, self.embed)
        if seen is not None:
            x = x.flatten(0, 1).index_copy(0, places, seen.to(x.dtype)).view(x.shape)
        cos, sin = text_rope(positions)
        for weights in self.text_weights:
            x = self.text_block(x, cos, sin, weights)
        return _rms(x, self.norm)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embed).float()


_MERGER = ("ln_q.weight", "ln_q.bias", "mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias")


def _vision_weights(p: dict[str, nn.Parameter], at: str) -> tuple[Tensor, ...]:
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    return tuple(p[f"{at}{part}.{kind}"] for part in parts for kind in ("weight", "bias"))


def _text_weights(p: dict[str, nn.Parameter], at: str) -> tuple[Tensor, ...]:
    attention = [f"self_attn.{n}_proj.{kind}" for n in "qkv" for kind in ("weight", "bias")]
    rest = ("post_attention_layernorm.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")
    names = ("input_layernorm.weight", *attention, "self_attn.o_proj.weight", *rest)
    return tuple(p[at + name] for name in names)
