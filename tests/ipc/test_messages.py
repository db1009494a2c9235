"""What goes over a channel comes out the same, and nothing on the wire can point outside its blob."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from fovea.core import errors
from fovea.core.errors import FoveaError, MediaLimitError, RequestFailedError
from fovea.core.params import SamplingParams
from fovea.core.types import (
    Box,
    EngineRequest,
    EngineTimings,
    ImagePlan,
    Logprob,
    MediaItem,
    MediaSpan,
    TokenOutput,
)
from fovea.ipc.blob import map_blob, write_blob
from fovea.ipc.media_wire import MediaWire, Place
from fovea.ipc.messages import (
    TokenWire,
    error_from_wire,
    error_to_wire,
    request_from_wire,
    request_to_wire,
    token_from_wire,
    token_to_wire,
)

random = np.random.default_rng(0)
CANVAS = random.integers(0, 256, (31, 17, 3), np.uint8)
EMBEDS = random.normal(size=(5, 8)).astype(np.float32)
PLAN = ImagePlan(
    56, 20, "bilinear", 28, 28, (1, 2, 2), 4, 1, transpose=True, crop=Box(-1, 2, 3, 4), pad=Box(0, 1, 0, 2)
)
REQUEST = EngineRequest(
    request_id="r-1",
    token_ids=(1, 2, 3, 151_655, 0),
    params=SamplingParams(n=2, stop=["a", "b"], logit_bias={5: -1.5}, bad_words=["x"], max_tokens=None, seed=-3),
    stop_token_ids=frozenset({7, 9}),
    spans=(MediaSpan(1, 2), MediaSpan(3, 1)),
    media=(
        MediaItem(b"k" * 32, 2, 8, (1, 2, 4), canvas=CANVAS),
        MediaItem(b"e" * 32, 5, 0, (1, 5, 1), embeds=EMBEDS),
        MediaItem(b"p" * 32, 3, 4, (1, 2, 2), pixels=CANVAS[::-1], plan=PLAN, ids=(-1, 151_655, -1)),
    ),
    positions=np.arange(15, dtype=np.int32).reshape(3, 5),
    position_delta=-4,
    bad_words=((1, 2), (3,)),
    salt=b"tenant",
    open_spans=(MediaSpan(0, 2), MediaSpan(3, 2)),
)


def test_a_request_with_pictures_comes_out_the_same() -> None:
    wire, parts = request_to_wire(REQUEST)
    again = request_from_wire(msgspec.msgpack.encode(wire), map_blob(write_blob(parts)))
    for name in (
        "request_id",
        "token_ids",
        "stop_token_ids",
        "spans",
        "position_delta",
        "bad_words",
        "salt",
        "open_spans",
    ):
        assert getattr(again, name) == getattr(REQUEST, name), name
    assert again.params.stop_strings == ("a", "b")
    assert again.params.logit_bias == {5: -1.5}
    assert (again.params.n, again.params.max_tokens, again.params.seed) == (2, None, -3)
    assert np.array_equal(again.media[0].canvas, CANVAS)  # type: ignore[arg-type]
    assert np.array_equal(again.media[1].embeds, EMBEDS)  # type: ignore[arg-type]
    assert np.array_equal(again.positions, REQUEST.positions)  # type: ignore[arg-type]
    assert [item.key for item in again.media] == [b"k" * 32, b"e" * 32, b"p" * 32]
    assert np.array_equal(again.media[2].pixels, CANVAS[::-1])  # type: ignore[arg-type]
    assert [item.plan for item in again.media] == [None, None, PLAN]
    assert [item.ids for item in again.media] == [None, None, (-1, 151_655, -1)]


def test_without_its_blob_a_request_has_no_pixels_but_all_else() -> None:
    wire, _ = request_to_wire(REQUEST)
    again = request_from_wire(msgspec.msgpack.encode(wire), None)
    assert [item.num_tokens for item in again.media] == [2, 5, 3]
    assert [(item.canvas, item.embeds, item.pixels, item.plan) for item in again.media] == [(None,) * 4] * 3


def test_arrays_of_any_kind_come_out_as_they_went_in() -> None:
    """What a processor of transformers made of a prompt."""
    arrays: dict[str, NDArray[Any]] = {
        "input_ids": np.arange(6).reshape(1, 6),
        "pixel_values": np.linspace(0, 1, 12, dtype=np.float32).reshape(1, 3, 2, 2),
        "mask": np.array([[True, False]]),
        "grid": np.array([[1, 2, 2]], np.int32),
    }
    item = MediaItem(b"a" * 32, 0, 0, (1, 1, 1), arrays=arrays)
    request = EngineRequest("r", (1,), SamplingParams(), frozenset(), spans=(MediaSpan(0, 0),), media=(item,))
    wire, parts = request_to_wire(request)
    there = request_from_wire(msgspec.msgpack.encode(wire), map_blob(write_blob(parts))).media[0].arrays
    assert there is not None
    assert list(there) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(there[name], array)
        assert there[name].dtype == array.dtype
    assert request_from_wire(msgspec.msgpack.encode(wire), None).media[0].arrays is None


def test_one_array_that_stands_in_several_places_travels_once() -> None:
    same = [MediaItem(bytes([i]) * 32, 2, 8, (1, 2, 4), canvas=CANVAS) for i in range(16)]
    wire, parts = request_to_wire(replace(REQUEST, media=tuple(same)))
    blob = map_blob(write_blob(parts))
    assert blob.nbytes == CANVAS.nbytes
    again = request_from_wire(msgspec.msgpack.encode(wire), blob)
    assert all(np.array_equal(item.canvas, CANVAS) for item in again.media)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["canvas", "embeds", "pixels"])
@pytest.mark.parametrize(
    "place",
    [
        Place(1, (31, 17, 3)),
        Place(-1, (1, 1, 3)),
        Place(0, (2**32, 2**32, 3)),
        Place(0, (0, 1, 3)),
        Place(0, (-1, -1, 3)),
    ],
)
def test_a_place_outside_the_blob_is_refused(place: Place, field: str) -> None:
    wire, _ = request_to_wire(REQUEST)
    media = msgspec.structs.replace(MediaWire(b"k", 2, 8, (1, 2, 4), None, None), **{field: place})
    forged = msgspec.structs.replace(wire, media=[media])
    with pytest.raises(RequestFailedError, match="outside"):
        request_from_wire(msgspec.msgpack.encode(forged), map_blob(write_blob([CANVAS.data])))


def test_a_token_with_everything_comes_out_the_same() -> None:
    token = TokenOutput(
        "r-1",
        1,
        42,
        logprobs={42: Logprob(-0.5, 1), 7: Logprob(-1.5, 2)},
        prompt_logprobs=[None, {3: Logprob(-0.1, 1)}],
        finish_reason="stop",
        stop_token_id=42,
        num_cached_tokens=16,
        media_hits=(True, False),
        timings=EngineTimings(1.0, 2.0, 3.0, 4.0, 5.0, 6),
        error=MediaLimitError("too large", code="media_too_large", param="messages.0"),
    )
    again = token_from_wire(msgspec.msgpack.decode(msgspec.msgpack.encode(token_to_wire(token)), type=TokenWire))
    assert repr(again) == repr(token)
    assert again.error is not None
    assert (again.error.code, again.error.param, str(again.error)) == ("media_too_large", "messages.0", "too large")


def test_every_error_of_ours_keeps_its_class() -> None:
    kinds = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, FoveaError)]
    for kind in kinds:
        if kind is not errors.BatchError:
            assert type(error_from_wire(error_to_wire(kind("text")))) is kind


def test_a_class_that_is_no_error_of_ours_is_never_made() -> None:
    wire = error_to_wire(MediaLimitError("text"))
    for name in ("Mapping", "difflib", "BatchError", "__builtins__", "annotations", "nearest"):
        assert type(error_from_wire(msgspec.structs.replace(wire, kind=name))) is RequestFailedError
