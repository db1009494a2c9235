"""A server that was told how to run by a flag, a variable and a file at once."""

from __future__ import annotations

from pathlib import Path

import httpx2

from tests.cli.support import needs_embedded
from tests.server_process import serve


@needs_embedded
def test_a_server_started_from_all_sources_is_what_they_say(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("""
max-model-len: 700
served-model-name: [from-file, second]
limit-mm-per-prompt: {image: 3}
api-key: from-file
tensor-parallel-size: 1
""")
    variables = {"FOVEA_MAX_MODEL_LEN": "800", "FOVEA_API_KEY": "from-variable", "FOVEA_KV_CACHE_MEMORY_BYTES": "64M"}
    with serve("--config", str(file), "--limit_mm_per_prompt", "image=2", env=variables) as server:
        url = f"{server.url}/v1/models"
        assert httpx2.get(url, headers={"Authorization": "Bearer from-file"}).status_code == 401
        cards = httpx2.get(url, headers={"Authorization": "Bearer from-variable"}).json()["data"]
        assert [card["id"] for card in cards] == ["from-file", "second"]
        assert {(card["max_model_len"], card["fovea"]["max_images"]) for card in cards} == {(800, 2)}
        assert "taken for compatibility, without effect here: tensor-parallel-size 1." in server.log
        assert "from-variable" not in server.log
