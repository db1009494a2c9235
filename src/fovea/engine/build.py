"""From options and a model folder to a running engine."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fovea.core.config import EngineConfig
from fovea.core.errors import InvalidOptionError, ModelError
from fovea.core.log import logger
from fovea.core.machine import memory_limit, usable_cores
from fovea.engine.blocks import BlockPool
from fovea.engine.compatible import CompatibleRunner
from fovea.engine.encoder_cache import EncoderCache
from fovea.engine.loop import Engine
from fovea.engine.memory import Machine, MemoryPlan, plan_memory
from fovea.engine.runner import Runner, StepRunner
from fovea.engine.scheduler import Budgets, Scheduler
from fovea.engine.warm_up import warm_up
from fovea.families.base import Family
from fovea.families.bridged import Bridged
from fovea.kernels.batch import SMALLEST_HEAD
from fovea.kernels.cpu.library import Crew, make_crew
from fovea.models.bridged import BridgedModel, load_module
from fovea.models.bridged import count_parameters as count_bridged
from fovea.models.folder import check_format
from fovea.models.generic import GenericModel
from fovea.models.packed import pack_linears, use_kernels
from fovea.models.quantized import Staged, weights_bytes
from fovea.models.vlm import VLM
from fovea.models.weights import build_empty, check_checkpoint, checkpoint_files, fill_dummy, load_weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FP8_CAPABILITY = (8, 9)
MEDIA_THREADS_AT_MOST = 8
ONE_THREAD_PARAMETERS = 30_000_000
CPU_FLOAT32_SHARE = 0.4  # of free memory: larger models run in bfloat16 on a CPU


@dataclass(frozen=True, slots=True)
class Blueprint:
    """What will run where: decided before anything large is read or allocated."""

    device: torch.device
    dtype: torch.dtype
    num_parameters: int
    memory: MemoryPlan


def suited(config: EngineConfig, family: Family) -> Family:
    """The family as it is on the device: on a CPU large pictures cost seconds each, see cpu_max_pixels."""
    cap = config.pixel_cap(choose_device(config).type)
    capped = family.with_pixel_cap(cap, config.mm_processor_kwargs) if cap else family
    if capped is not family:
        logger.info(
            "on a CPU pictures are shown with at most %d pixels, of %d that the model takes; "
            "cpu_max_pixels or mm_processor_kwargs change that",
            capped.most_pixels({}),
            family.most_pixels({}),
        )
    return capped


def plan_engine(config: EngineConfig, family: Family) -> Blueprint:
    """Raises ModelError or ConfigError when the model cannot run here as asked."""
    device = choose_device(config)
    if device.type == "cpu":
        _want_huge_pages()
    _check_quantization(config, family, device)
    _check_kv_cache(config, family, device)
    machine = read_machine(device)
    num_parameters = count_parameters(family)
    if device.type == "cpu":
        set_cpu_threads(config, num_parameters)
    dtype = choose_dtype(config, family, device, num_parameters, machine)
    weights = num_parameters * dtype.itemsize
    if config.quantization is not None:
        weights = weights_bytes(family.spec, dtype, config.quantization)
    memory = plan_memory(
        family.spec,
        config,
        machine,
        weights_bytes=weights,
        element_bytes=dtype.itemsize,
        largest_picture_patches=family.largest_picture(family.check_options(config.mm_processor_kwargs)),
    )
    return Blueprint(device, dtype, num_parameters, memory)


def build_engine(blueprint: Blueprint, config: EngineConfig, family: Family, folder: Path, *, use_tqdm: bool) -> Engine:
    """Load the weights and allocate the pages. Raises WeightsError for a bad checkpoint."""
    dtype, plan = blueprint.dtype, blueprint.memory
    millions = blueprint.num_parameters / 1e6
    logger.info("%s (%.1f M parameters) on %s in %s", family.name, millions, blueprint.device, str(dtype)[6:])
    logger.info("%s", plan)
    if config.max_model_len is None and plan.max_model_len < family.spec.decoder.max_positions:
        logger.warning(
            "max_model_len is %d instead of the model's %d: the KV cache holds no more",
            plan.max_model_len,
            family.spec.decoder.max_positions,
        )
    check_format(folder, config)
    if isinstance(family, Bridged):
        return _build_bridged(blueprint, config, family, folder)
    if config.load_format != "dummy":
        check_checkpoint(folder, family.spec, family.weight_map())
    spec = replace(family.spec, decoder=family.spec.decoder.within(plan.max_model_len))
    asked = config.quantization
    model = build_empty(spec, dtype, blueprint.device, asked)
    staged = None if asked is None else Staged(model, asked, blueprint.device)
    if config.load_format == "dummy":
        fill_dummy(model, config.seed, staged)
    else:
        load_weights(model, folder, family.weight_map(), use_tqdm=use_tqdm, staged=staged)
    crew = _crew(blueprint, config)
    if crew is not None:
        use_kernels(model, crew)
    if blueprint.device.type == "cpu":
        pack_linears(model, dtype)
    encoder_cache: EncoderCache[torch.Tensor] = EncoderCache(plan.encoder_cache_bytes)
    scheduler = _make_scheduler(blueprint, config, family, encoder_cache, enable_caching=config.enable_prefix_caching)
    # Graphs hold kernels, and not every attention has one.
    has_kernels = not spec.decoder.has_rules and spec.decoder.head_dim >= SMALLEST_HEAD
    use_graphs = blueprint.device.type == "cuda" and not config.enforce_eager and has_kernels
    runner = Runner(
        model,
        plan,
        encoder_cache,
        max_num_seqs=config.max_num_seqs,
        use_graphs=use_graphs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        crew=crew,
    )
    overlap = config.overlap_scheduling
    if overlap is None:
        overlap = blueprint.device.type == "cuda"
    engine = Engine(runner, scheduler, encoder_cache, plan, config.seed, overlap=overlap)
    if blueprint.device.type == "cuda":
        warm_up(engine, runner, family, config)
    return engine


def _build_bridged(blueprint: Blueprint, config: EngineConfig, family: Bridged, folder: Path) -> Engine:
    """An engine around transformers' own model."""
    logger.info("%s takes the %s path: transformers runs it, see docs/models.md", family.name, family.path)
    if config.load_format != "dummy":
        checkpoint_files(folder)
    plan, is_generic = blueprint.memory, family.path == "generic"
    dummy_seed = config.seed if config.load_format == "dummy" else None
    module = load_module(family, folder, blueprint.dtype, blueprint.device, dummy_seed=dummy_seed)
    cache: EncoderCache[torch.Tensor] = EncoderCache(plan.encoder_cache_bytes)
    runner: StepRunner
    if is_generic:
        model = GenericModel(module, family.spec, family.image_token_id)
        if blueprint.device.type == "cpu":
            pack_linears(module.get_decoder(), blueprint.dtype)
        crew = _crew(blueprint, config)
        runner = Runner(model, plan, cache, max_num_seqs=config.max_num_seqs, use_graphs=False, crew=crew)
    else:
        runner = CompatibleRunner(BridgedModel(module, family.spec), plan)
    enable_caching = config.enable_prefix_caching and is_generic
    scheduler = _make_scheduler(blueprint, config, family, cache, enable_caching=enable_caching)
    return Engine(runner, scheduler, cache, plan, config.seed)


def _crew(blueprint: Blueprint, config: EngineConfig) -> Crew | None:
    """Who runs the kernels of a CPU."""
    wanted = blueprint.device.type == "cpu" and config.cpu_kernels
    return make_crew(torch.get_num_threads()) if wanted else None


def _make_scheduler(
    blueprint: Blueprint,
    config: EngineConfig,
    family: Family,
    encoder_cache: EncoderCache[torch.Tensor],
    *,
    enable_caching: bool,
) -> Scheduler:
    budgets = Budgets(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_num_batched_patches=config.max_num_batched_patches,
        block_size=config.block_size,
        embedding_bytes=family.spec.row_width * blueprint.dtype.itemsize,
    )
    pool = BlockPool(blueprint.memory.num_blocks, enable_caching=enable_caching)
    return Scheduler(budgets, pool, encoder_cache, family.spec.decoder.rope)


def media_threads(config: EngineConfig) -> int:
    return config.media_threads or min(MEDIA_THREADS_AT_MOST, usable_cores())


def set_cpu_threads(config: EngineConfig, num_parameters: int) -> None:
    """torch's threads, before it starts any: see cpu_threads. Only for an engine on a CPU, and never more by default.

    torch counts the cores it may be put on; it knows no container's limit. A small model that answers one request at a
    time gets one thread: its products take microseconds, and with two each of them waits for both cores, which on a
    busy machine made answers ten to a hundred times as slow.
    """
    now = torch.get_num_threads()
    is_small = config.max_num_seqs == 1 and num_parameters <= ONE_THREAD_PARAMETERS
    wanted = config.cpu_threads or min(now, 1 if is_small else usable_cores())
    if wanted != now:
        logger.info("torch's threads: %d, of %d that it would have taken", wanted, now)
        torch.set_num_threads(wanted)


def _want_huge_pages() -> None:
    """Memory of tensors on a CPU in pages of 2 MiB, where Linux gives them to those who ask.

    A tower makes hundreds of megabytes anew with every layer; in small pages a tenth of its time goes into receiving
    them. torch asks the C library for this before its first tensor; who has set it, or made tensors before, keeps what
    there is.
    """
    setenv = getattr(ctypes.CDLL(None), "setenv", None)
    if setenv is not None:
        setenv(b"THP_MEM_ALLOC_ENABLE", b"1", 0)


def choose_device(config: EngineConfig) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InvalidOptionError('device is "cuda" but torch sees no CUDA device; use "cpu" or "auto".')
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _check_quantization(config: EngineConfig, family: Family, device: torch.device) -> None:
    if config.quantization is None:
        return
    why, is_fp8, runs_on = None, config.quantization == "fp8", device.type
    if runs_on != "cpu" and not is_fp8:
        why = f'the model runs on {runs_on}, and integers are multiplied on a CPU only; pass "fp8", or device="cpu"'
    elif is_fp8 and runs_on == "cuda" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        why = "this GPU has no products of float8 (compute capability 8.9); int8 and int4 are for CPUs"
    elif isinstance(family, Bridged):
        why = f"{family.name} takes the {family.path} path, on which transformers keeps weights as they are"
    if why is not None:
        raise InvalidOptionError(f"quantization is {config.quantization!r}, but {why}. Or leave it out.")
    if is_fp8 and runs_on == "cpu":
        logger.warning("fp8 weights are slow on a CPU: they are restored for every product; int8 and int4 are for CPUs")


def _check_kv_cache(config: EngineConfig, family: Family, device: torch.device) -> None:
    if config.kv_cache_dtype == "auto":
        return
    why = None
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        why = "this GPU does not convert float8 (compute capability 8.9)"
    elif isinstance(family, Bridged) and family.path == "compatible":
        why = f"{family.name} takes the compatible path, on which transformers keeps keys and values"
    if why is not None:
        raise InvalidOptionError(f"kv_cache_dtype is {config.kv_cache_dtype!r}, but {why}. Or leave it out.")
    if device.type == "cpu":
        logger.warning("keys and values in fp8 save memory on a CPU, not time: they are restored in every step")


def choose_dtype(
    config: EngineConfig, family: Family, device: torch.device, num_parameters: int, machine: Machine
) -> torch.dtype:
    """auto: the checkpoint's type on a GPU; on a CPU float32 if the weights leave room, else bfloat16."""
    if config.dtype != "auto":
        return DTYPES[config.dtype]
    if device.type == "cpu":
        fits = 4 * num_parameters <= CPU_FLOAT32_SHARE * machine.free_bytes
        return torch.float32 if fits else torch.bfloat16
    if family.spec.dtype not in DTYPES:
        raise ModelError(f"config.json names the type {family.spec.dtype!r}; pass dtype, one of {', '.join(DTYPES)}.")
    return DTYPES[family.spec.dtype]


def count_parameters(family: Family) -> int:
    if isinstance(family, Bridged):
        return count_bridged(family)
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in VLM(family.spec).parameters())


def read_machine(device: torch.device) -> Machine:
    """Memory of the device; on a CPU what the system says is available, within the container's limit."""
    if device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        return Machine("cuda", total_bytes, free_bytes)
    total_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [total_bytes, _available_bytes(total_bytes), memory_limit() or total_bytes]
    return Machine("cpu", total_bytes, min(limits))


def _available_bytes(default: int) -> int:
    """MemAvailable where /proc has it (Linux)."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return default
    return default
