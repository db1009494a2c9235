"""Mixtures of experts: both ways of computing them agree with each other and with a loop over tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fovea.families.spec import MoeSpec
from fovea.models.moe import Experts, all_at_once, by_expert

HIDDEN = 24


def made(spec: MoeSpec, seed: int = 0) -> Experts:
    torch.manual_seed(seed)
    experts = Experts(HIDDEN, spec).requires_grad_(False)
    for parameter in experts.parameters():
        parameter.normal_(0.0, 0.4)
    return experts


def one_by_one(experts: Experts, x: Tensor) -> Tensor:
    """Each token through each of its experts."""
    spec, rows = experts.spec, []
    weights, chosen = experts.route(x)
    gate_up = experts.gate_up.view(spec.num_experts, 2 * spec.width, HIDDEN)
    down = experts.down.view(spec.num_experts, HIDDEN, spec.width)
    for token, shares, picks in zip(x, weights, chosen, strict=True):
        total = torch.zeros(HIDDEN)
        for share, expert in zip(shares, picks.tolist(), strict=True):
            gate, up = (gate_up[expert] @ token).chunk(2)
            total += share * (down[expert] @ (torch.nn.functional.silu(gate) * up))
        rows.append(total)
    return torch.stack(rows)


SPECS = {
    "softmax": MoeSpec(6, 2, 10, (0,)),
    "one of many": MoeSpec(9, 1, 5, (0,), normed=False),
    "all": MoeSpec(3, 3, 8, (0,), normed=False),
    "groups": MoeSpec(8, 2, 6, (0,), scoring="sigmoid", num_groups=4, top_groups=2, scale=1.5),
}


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 40])
@pytest.mark.parametrize("name", SPECS)
def test_both_ways_are_the_loop_over_tokens(name: str, num_tokens: int) -> None:
    experts = made(SPECS[name])
    x = torch.randn(num_tokens, HIDDEN)
    weights, chosen = experts.route(x)
    matrices = [m.unflatten(0, (experts.spec.num_experts, -1)) for m in (experts.gate_up, experts.down)]
    want = one_by_one(experts, x)
    for way in (by_expert, all_at_once):
        torch.testing.assert_close(way(x, weights, chosen, *matrices), want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(experts(x), want, atol=1e-5, rtol=1e-5)


def test_neighbours_do_not_change_a_token() -> None:
    experts = made(SPECS["softmax"])
    x = torch.randn(30, HIDDEN)
    together = experts(x)
    for i in range(0, 30, 7):
        torch.testing.assert_close(experts(x[i : i + 1])[0], together[i], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("groups", "top_groups"), [(1, 1), (2, 1), (4, 2)])
def test_experts_in_groups_are_chosen_as_transformers_does(groups: int, top_groups: int) -> None:
    from transformers.models.glm4v_moe.configuration_glm4v_moe import Glm4vMoeTextConfig
    from transformers.models.glm4v_moe.modeling_glm4v_moe import Glm4vMoeTextTopkRouter

    spec = MoeSpec(8, 2, 4, (0,), scoring="sigmoid", num_groups=groups, top_groups=top_groups, scale=2.5)
    experts = made(spec)
    config = Glm4vMoeTextConfig(
        hidden_size=HIDDEN, n_routed_experts=8, num_experts_per_tok=2, n_group=groups, topk_group=top_groups,
        routed_scaling_factor=2.5, norm_topk_prob=True, num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    theirs = Glm4vMoeTextTopkRouter(config)
    theirs.weight.data.copy_(experts.router)
    theirs.e_score_correction_bias.copy_(experts.router_bias)
    x = torch.randn(50, HIDDEN)
    with torch.no_grad():
        _, shares, picks = theirs(x)
    weights, chosen = experts.route(x)
    assert chosen.sort().values.tolist() == picks.sort().values.tolist()
    torch.testing.assert_close(weights.sort().values, shares.sort().values)


def test_what_experts_are_chosen_by_stays_exact_in_a_smaller_type() -> None:
    experts = made(SPECS["groups"]).to(torch.bfloat16)
    experts.keep_exact()
    assert experts.router_bias.dtype == torch.float32
    assert experts(torch.randn(5, HIDDEN, dtype=torch.bfloat16)).dtype == torch.bfloat16
