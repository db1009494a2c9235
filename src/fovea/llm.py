"""The offline face: `LLM`, with vLLM's names."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal

from fovea.core.config import EngineConfig
from fovea.core.errors import BatchError, FoveaError, InvalidOptionError, RequestError, RequestFailedError
from fovea.core.log import logger, show_logs
from fovea.core.params import SamplingParams
from fovea.core.turns import Turns
from fovea.core.types import RequestOutput, TokenOutput
from fovea.engine.build import build_engine, media_threads, plan_engine, suited
from fovea.families.registry import load_family
from fovea.models.folder import find_model
from fovea.pipeline.bridged import make_preparer
from fovea.pipeline.calls import FormMaker, Params, Progress, as_list, each, form_maker, repeated_media
from fovea.pipeline.collector import Collector
from fovea.pipeline.pictures import SharedDecodes
from fovea.pipeline.preparer import Prepared
from fovea.prompt.chat import build_chat

OnError = Literal["raise", "return"]

OPEN_REQUESTS_PER_SLOT = 2  # requests in the engine, waiting ones included, for each sequence of a step
PREPARED_AHEAD_PER_THREAD = 4
TEXTS_S = 0.001  # for making texts between two steps: a device is busy for longer


class LLM:
    """A model and the engine that runs it, in this process.

    `LLM()` runs the embedded model; `LLM("org/name")` a hub model or a local folder. Options are the fields of
    EngineConfig.

    Raises ConfigError for bad options and ModelError for a model that cannot be loaded or does not fit.
    """

    def __init__(self, model: str | None = None, *, use_tqdm: bool = True, **options: Any) -> None:
        if model is not None:
            options["model"] = model
        self.config = EngineConfig.from_options(options)
        show_logs()
        folder = find_model(self.config.model, self.config)
        tokenizer_folder = find_model(self.config.tokenizer, self.config) if self.config.tokenizer else folder
        self.family = suited(self.config, load_family(folder, self.config.model_impl))
        blueprint = plan_engine(self.config, self.family)
        self._num_threads = media_threads(self.config)
        # Tokenizer and template come before the weights: a mistake there shows in a second, not in a minute.
        self._preparer = make_preparer(
            self.config,
            self.family,
            folder,
            tokenizer_folder,
            blueprint.memory.max_model_len,
            num_helpers=self._num_threads,
            resize_on_device=self.config.resizes_on(blueprint.device.type),
        )
        self.engine = build_engine(blueprint, self.config, self.family, folder, use_tqdm=use_tqdm)
        self._threads = ThreadPoolExecutor(self._num_threads, thread_name_prefix="fovea-media")
        self._turns = Turns()
        self._loop_waits = blueprint.device.type == "cuda"  # for the device, rather than computing itself
        self._request_numbers = itertools.count()
        self._lock = threading.RLock()  # around the engine: calls may overlap, from one thread or several
        self._runs: dict[str, _Run] = {}  # which call a request belongs to
        self._closed = False

    def generate(
        self,
        prompts: object,
        sampling_params: Params = None,
        *,
        use_tqdm: bool = True,
        on_error: OnError = "raise",
    ) -> list[RequestOutput]:
        """Answer prompts; outputs are in the order of the prompts.

        prompts: one prompt or a list of them. A prompt is text, {"prompt_token_ids": [...]}, or a dict with "prompt",
            "multi_modal_data", "multi_modal_uuids", "mm_processor_kwargs" and "cache_salt". A flat list of ints is one
            prompt of token ids.
        sampling_params: for all prompts, or one for each.
        on_error: a bad row never stops the others. "raise": when the others are done, its own error if there is just
            one prompt, else a BatchError that carries all outputs; "return": an output with `error` set.
        """
        items = as_list(prompts)
        jobs = [(form_maker(prompt), params) for prompt, params in zip(items, each(sampling_params, len(items)))]
        return self._run_all(jobs, use_tqdm, on_error, SharedDecodes(repeated_media(items)))

    def generate_iter(
        self, prompts: Iterable[object], sampling_params: SamplingParams | None = None
    ) -> Iterator[RequestOutput]:
        """Answer any number of prompts, in order, with bounded memory: prompts are taken as there is room for them.

        A failed prompt gives an output with `error` set.
        """
        params = sampling_params or SamplingParams()
        ready: dict[int, RequestOutput] = {}
        following = 0
        for number, output in self._run((form_maker(prompt), params) for prompt in prompts):
            if output.finished:
                ready[number] = output
            while following in ready:
                yield ready.pop(following)
                following += 1

    def chat(
        self,
        messages: Sequence[Any],
        sampling_params: Params = None,
        *,
        use_tqdm: bool = True,
        on_error: OnError = "raise",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        cache_salt: str = "",
    ) -> list[RequestOutput]:
        """Answer one conversation (a list of messages) or several (a list of such lists).

        A message's content is text or a list of parts: {"type": "text", "text": ...}, {"type": "image_url",
        "image_url": {"url": ...}} with a data URL, a web address or, below allowed_local_media_path, a file URL, or
        {"type": "image_pil", "image_pil": picture}. An image part may have "uuid", "detail" ("low": at most 512 x 512
        pixels), "max_pixels" and, where the model can, "min_pixels"; these only lower what the options permit. Pictures
        stand where their parts stand; nothing typed in a text is read as a picture or a special token.
        """
        several = isinstance(messages, (list, tuple)) and bool(messages) and isinstance(messages[0], (list, tuple))
        conversations = list(messages) if several else [messages]
        jobs = []
        for conversation, params in zip(conversations, each(sampling_params, len(conversations))):
            maker = self._chat_maker(
                conversation,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                template_kwargs=chat_template_kwargs,
                processor_kwargs=mm_processor_kwargs,
                salt=cache_salt,
            )
            jobs.append((maker, params))
        return self._run_all(jobs, use_tqdm, on_error)

    def stream_chat(
        self, messages: Sequence[Any], sampling_params: SamplingParams | None = None
    ) -> Iterator[RequestOutput]:
        """Answer one conversation, giving the answer so far after every step; the last one is finished."""
        job = (self._chat_maker(messages), sampling_params or SamplingParams())
        for _, output in self._run([job], live=True):
            if output.error is not None:
                raise output.error
            yield output

    def get_tokenizer(self) -> Any:
        """Fovea's own tokenizer of this model."""
        return self._preparer.tokenizer

    def reset_prefix_cache(self) -> None:
        """Forget reusable KV blocks and picture embeddings."""
        self.engine.reset_caches()

    def close(self) -> None:
        """Stop the media threads. The object cannot be used afterwards."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _chat_maker(self, messages: Sequence[Any], **options: Any) -> FormMaker:
        return lambda: build_chat(messages, self._preparer.template, self._preparer.family, **options)

    def _run_all(
        self, jobs: list[_Job], use_tqdm: bool, on_error: OnError, shared: SharedDecodes | None = None
    ) -> list[RequestOutput]:
        if on_error not in ("raise", "return"):
            raise InvalidOptionError(f'on_error is {on_error!r}; permitted: "raise", "return".')
        outputs: list[RequestOutput | None] = [None] * len(jobs)
        with Progress(len(jobs), use_tqdm) as progress:
            for number, output in self._run(jobs, shared=shared):
                outputs[number] = output
                progress.done(output)
        done = [output for output in outputs if output is not None]
        assert len(done) == len(jobs), "a request ended without an output"
        errors = {i: output.error for i, output in enumerate(done) if output.error is not None}
        if errors and on_error == "raise":
            raise errors[0] if len(jobs) == 1 else BatchError([None if o.error else o for o in done], errors)
        return done

    def _run(
        self, jobs: Iterable[_Job], *, live: bool = False, shared: SharedDecodes | None = None
    ) -> Iterator[tuple[int, RequestOutput]]:
        """(number, output) of each job as it ends; with `live` also after every step."""
        if self._closed:
            raise RequestError("This LLM is closed. Make a new one.")
        run = _Run(self, iter(jobs), live=live, shared=shared)
        try:
            while run.has_work():
                yield from run.advance()
        finally:
            run.abandon()

    def _loop_turn(self) -> AbstractContextManager[None]:
        """The loop comes first while prompts wait for it; otherwise whoever prepares more of them does."""
        return self._turns.take(first=self.engine.has_waiting()) if self._loop_waits else nullcontext()

    def _prepare(
        self, maker: FormMaker, params: SamplingParams, request_id: str, arrived: float, shared: SharedDecodes | None
    ) -> Prepared:
        try:
            with self._turns.take():
                started = time.perf_counter()
                form = maker()
                rendered_s = time.perf_counter() - started
                prepared = self._preparer.prepare(form, params, request_id, arrived, shared=shared)
                return replace(prepared, prompt_s=prepared.prompt_s + rendered_s)
        except FoveaError:
            raise
        except Exception as error:  # the boundary between one prompt and the rest
            logger.exception("a request could not be prepared")
            raise RequestFailedError("The request could not be prepared; the log has the cause.") from error


_Job = tuple[FormMaker, SamplingParams]


@dataclass(slots=True)
class _Ahead:
    number: int
    request_id: str
    future: Future[Prepared]


@dataclass(slots=True)
class _Ending:
    """An answer that is complete, but for its text."""

    number: int
    request_id: str
    collector: Collector


class _Run:
    """One call of generate: prepares ahead in threads, keeps the engine fed, puts answers together.

    Texts that nobody reads while they grow are made bit by bit between the steps, while a device is busy. In threads of
    their own they would take the interpreter from the loop: twenty that ended together cost it 18 ms.
    """

    def __init__(self, llm: LLM, jobs: Iterator[_Job], *, live: bool, shared: SharedDecodes | None) -> None:
        self._llm = llm
        self._shared = shared
        self._jobs = enumerate(jobs)
        self._live = live
        self._exhausted = False
        self._ahead: deque[_Ahead] = deque()
        self._open: dict[str, tuple[int, Collector]] = {}
        self._behind: dict[str, Collector] = {}
        self._endings: deque[_Ending] = deque()
        self._inbox: list[TokenOutput] = []
        self._most_ahead = PREPARED_AHEAD_PER_THREAD * llm._num_threads
        self._most_open = OPEN_REQUESTS_PER_SLOT * llm.config.max_num_seqs

    def has_work(self) -> bool:
        self._prepare_ahead()
        return bool(self._ahead or self._open or self._endings)

    def advance(self) -> list[tuple[int, RequestOutput]]:
        """Admit what is ready (waiting only if the engine has nothing to do), run one step, make some texts."""
        ready = self._ready()
        with self._llm._lock, self._llm._loop_turn():
            done = [failed for failed in map(self._admit, ready) if failed is not None]
            if self._open:
                done += self._step()
            until = time.perf_counter() + TEXTS_S
            while self._endings and (not self._open or time.perf_counter() < until):
                done.append(_ended(self._endings.popleft()))
            while self._behind and time.perf_counter() < until:
                self._behind.popitem()[1].write_ahead()
        return done

    def abandon(self) -> None:
        """Leave nothing behind, whatever happened: the caller may have stopped in the middle."""
        for ahead in self._ahead:
            ahead.future.cancel()
        with self._llm._lock:
            for request_id in self._open:
                self._llm.engine.abort(request_id)
                del self._llm._runs[request_id]

    def _prepare_ahead(self) -> None:
        while not self._exhausted and len(self._ahead) < self._most_ahead:
            job = next(self._jobs, None)
            if job is None:
                self._exhausted = True
                return
            number, (maker, params) = job
            request_id = str(next(self._llm._request_numbers))
            arrived = time.perf_counter()
            future = self._llm._threads.submit(self._llm._prepare, maker, params, request_id, arrived, self._shared)
            self._ahead.append(_Ahead(number, request_id, future))

    def _ready(self) -> list[_Ahead]:
        ready: list[_Ahead] = []
        while self._ahead and len(self._open) + len(self._endings) + len(ready) < self._most_open:
            future = self._ahead[0].future
            if (self._open or ready) and not future.done():
                break
            future.exception()  # waits
            ready.append(self._ahead.popleft())
            self._prepare_ahead()
        return ready

    def _admit(self, ahead: _Ahead) -> tuple[int, RequestOutput] | None:
        try:
            prepared = ahead.future.result()
            self._llm.engine.add(prepared.request)
            self._llm._runs[ahead.request_id] = self
        except FoveaError as error:
            return ahead.number, _failed(ahead.request_id, None, error)
        collector = Collector(prepared, self._llm._preparer.tokenizer, self._llm.engine.stop, live=self._live)
        self._open[ahead.request_id] = (ahead.number, collector)
        return None

    def _step(self) -> list[tuple[int, RequestOutput]]:
        """Run the engine, unless another call's step made tokens of this one already. Returns what is to be given."""
        if not self._inbox:
            for token in self._llm.engine.step():
                run = self._llm._runs.get(token.request_id)
                if run is not None:
                    run._inbox.append(token)
        tokens, self._inbox = self._inbox, []
        touched: dict[str, None] = {}
        done = []
        for token in tokens:
            if token.request_id not in self._open:
                continue
            number, collector = self._open[token.request_id]
            try:
                collector.add(token)
            except FoveaError as error:
                self._forget(token.request_id)
                done.append((number, _failed(token.request_id, collector.output(), error)))
                continue
            touched[token.request_id] = None
        for request_id in touched:
            if request_id not in self._open:
                continue
            number, collector = self._open[request_id]
            if collector.is_behind:
                self._behind[request_id] = collector
            if collector.finished:
                self._forget(request_id)
            if self._live:
                done.append((number, collector.output()))
            elif collector.finished:
                self._endings.append(_Ending(number, request_id, collector))
        return done

    def _forget(self, request_id: str) -> None:
        self._behind.pop(request_id, None)
        del self._open[request_id]
        del self._llm._runs[request_id]


def _ended(ending: _Ending) -> tuple[int, RequestOutput]:
    try:
        return ending.number, ending.collector.output()
    except FoveaError as error:
        return ending.number, _failed(ending.request_id, None, error)


def _failed(request_id: str, partial: RequestOutput | None, error: FoveaError) -> RequestOutput:
    prompt = partial.prompt if partial else None
    ids = partial.prompt_token_ids if partial else ()
    return RequestOutput(request_id, prompt, ids, outputs=[], finished=True, error=error)
