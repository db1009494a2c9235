"""Limits count what an engine keeps."""

from __future__ import annotations

from benchmarks.limits import Ceilings, Limits
from fovea.families.registry import load_family
from tests.parity.support import Checkpoints


def test_keys_in_fewer_bits_lower_the_limit_of_decoding(checkpoints: Checkpoints) -> None:
    spec = load_family(checkpoints.folder("llava")).spec
    per_token, rate = spec.decoder.kv_bytes_per_token(2), Ceilings(bytes_per_s=1.0, flops_per_s=1e30)
    usual, small = Limits(spec, rate, 2), Limits(spec, rate, 2, per_token // 2)
    assert usual.decode_step_s(3, 10) == Limits(spec, rate, 2, per_token).decode_step_s(3, 10)
    assert usual.decode_step_s(3, 10) - small.decode_step_s(3, 10) == 3 * 10 * per_token / 2
