"""The names of all metrics, what they mean, and the buckets of the histograms (vLLM's where the name is vLLM's).

Counters are listed without the "_total" that Prometheus' text format gives them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LATENCY_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920)
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
TOKEN_GAP_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
STAGE_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)
IMAGE_TOKENS = (16, 32, 64, 128, 256, 384, 512, 576, 768, 1024, 1536, 2048, 4096, 8192, 16_384)
LAG_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

HISTOGRAMS: Mapping[str, tuple[str, Sequence[float]]] = {
    "vllm:time_to_first_token_seconds": ("From arrival to the first token.", FIRST_TOKEN_S),
    "vllm:inter_token_latency_seconds": ("Between tokens of a completion; a request's mean for each.", TOKEN_GAP_S),
    "vllm:request_time_per_output_token_seconds": ("Mean time between tokens of a request.", TOKEN_GAP_S),
    "vllm:e2e_request_latency_seconds": ("From arrival to the last token.", LATENCY_S),
    "vllm:request_queue_time_seconds": ("Waiting for the engine.", LATENCY_S),
    "vllm:request_prefill_time_seconds": ("Computing the prompt.", LATENCY_S),
    "vllm:request_decode_time_seconds": ("From the first token to the last.", LATENCY_S),
    "vllm:request_inference_time_seconds": ("Prompt and tokens.", LATENCY_S),
    "vllm:request_prompt_tokens": ("Tokens of a prompt, pictures included.", TOKENS),
    "vllm:request_generation_tokens": ("Tokens of all completions of a request.", TOKENS),
    "vllm:request_params_n": ("Completions asked for.", (1, 2, 5, 10, 20)),
    "fovea:prompt_seconds": ("Rendering the chat template and tokenising.", STAGE_S),
    "fovea:media_fetch_seconds": ("Fetching a picture.", STAGE_S),
    "fovea:image_decode_seconds": ("Decoding a picture.", STAGE_S),
    "fovea:preprocess_seconds": ("Resizing a picture.", STAGE_S),
    "fovea:encoder_seconds": ("Steps of the vision tower for a request's pictures.", STAGE_S),
    "fovea:image_tokens": ("Tokens of a picture.", IMAGE_TOKENS),
    "fovea:event_loop_lag_seconds": ("How late the server's event loop wakes a sleeper.", LAG_S),
}

# name: (what it is, its label)
LABELLED_COUNTERS: Mapping[str, tuple[str, str]] = {
    "vllm:request_success": ("Completions, by why they ended.", "finished_reason"),
    "vllm:admission_rejections": ("Requests turned away because the server could not take them.", "reason"),
    "fovea:refusals": ("Requests that ended with an error, by its code.", "code"),
    "fovea:http_requests": ("HTTP requests, by status; 499: the client left.", "status"),
    "fovea:images": ("Pictures of finished requests, by whether their embedding was cached.", "cache"),
    "fovea:fallbacks": ("What was done the slow way.", "kind"),
}

PLAIN_COUNTERS: Mapping[str, str] = {
    "fovea:media_bytes": "Encoded bytes of pictures.",
    "fovea:requests_cancelled": "Requests whose client left.",
    "fovea:engine_restarts": "Engines started after the first.",
    "fovea:worker_replacements": "Preparing processes started after one died or was stopped.",
}

# What the engine calls it: the names it is shown under.
ENGINE_COUNTERS: Mapping[str, Sequence[tuple[str, str]]] = {
    "num_steps": (("fovea:engine_steps", "Steps of the engine."),),
    "num_prompt_tokens": (
        ("vllm:prompt_tokens", "Prompt tokens."),
        ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
    ),
    "num_cached_tokens": (
        ("vllm:prompt_tokens_cached", "Prompt tokens that were cached."),
        ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache."),
    ),
    "num_generated_tokens": (("vllm:generation_tokens", "Tokens generated."),),
    "num_preemptions": (("vllm:num_preemptions", "Sequences that gave their blocks back to be computed again."),),
    "num_pictures_encoded": (("fovea:pictures_encoded", "Pictures that went through the vision tower."),),
    "num_failed_requests": (("fovea:engine_failed_requests", "Requests that failed in the engine."),),
    "num_retried_steps": (("fovea:engine_retried_steps", "Steps that were done again after a failure."),),
    "num_numerical_errors": (("fovea:numerical_errors", "Requests whose numbers were not finite."),),
    "num_idle_repairs": (("fovea:idle_repairs", "Times an idle engine still owned something: a bug of ours."),),
    "num_graph_steps": (("fovea:graph_steps", "Decoding steps replayed from a CUDA graph."),),
    "num_prompt_graph_steps": (("fovea:prompt_graph_steps", "Steps with prompts replayed from a CUDA graph."),),
    "num_eager_steps": (("fovea:eager_steps", "Steps that ran without a CUDA graph."),),
    "num_overlapped_steps": (
        ("fovea:overlapped_steps", "Steps that were launched before the one before them was settled."),
    ),
    "num_late_kernels": (("fovea:late_kernels", "GPU kernels that were compiled while requests waited."),),
    "num_eager_decodes": (("fovea:eager_decode_steps", "Decoding steps that no CUDA graph fitted."),),
    "encoder_cache_hits": (
        ("fovea:encoder_cache_hits", "Pictures whose embedding was cached."),
        ("vllm:mm_cache_hits", "Pictures found in the encoder's cache."),
    ),
    "encoder_cache_misses": (("fovea:encoder_cache_misses", "Pictures whose embedding was not cached."),),
}

ENGINE_GAUGES: Mapping[str, tuple[str, str]] = {
    "num_running": ("vllm:num_requests_running", "Sequences in the engine's batch."),
    "num_waiting": ("vllm:num_requests_waiting", "Sequences that wait in the engine."),
    "kv_blocks_total": ("fovea:kv_blocks", "KV blocks there are."),
    "kv_blocks_free": ("fovea:kv_blocks_free", "KV blocks that are free."),
    "encoder_cache_bytes": ("fovea:encoder_cache_bytes", "Bytes of cached picture embeddings."),
    "encoder_cache_capacity_bytes": ("fovea:encoder_cache_capacity_bytes", "Most bytes of them."),
}

# name: (what it is, the attribute of Admission)
ADMISSION_GAUGES: Mapping[str, tuple[str, str]] = {
    "fovea:requests_in_house": ("Requests admitted and not yet ended.", "num_seats"),
    "fovea:requests_queued": ("Requests that no token has come for yet.", "num_waiting"),
    "fovea:queue_tokens": ("Prompt tokens of waiting requests.", "num_waiting_tokens"),
    "fovea:queue_media_bytes": ("Bytes of bodies and fetched pictures in work.", "num_bytes"),
}
