"""The processes that prepare requests: templates, tokenising, decoding. Killing one loses one request.

The first process (the zygote) loads tokenizer and template once and forks a worker whenever it is asked to, in
milliseconds; it never touches a request itself. A worker has a memory limit, takes one task at a time, and ends itself
when a task has left it fat or in a panic.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

from fovea.core.errors import FoveaError, MediaLimitError, RequestFailedError
from fovea.core.log import logger
from fovea.core.params import SamplingParams
from fovea.core.server_config import ServerConfig
from fovea.families.registry import load_family
from fovea.ipc import prepare_faults
from fovea.ipc.blob import map_blob, write_blob
from fovea.ipc.channel import Channel, ChannelClosedError, Frame
from fovea.ipc.messages import (
    LEAVING,
    TAKEN,
    Counts,
    Done,
    Failed,
    Fork,
    Forked,
    Message,
    PrepareReady,
    Refused,
    Setup,
    Task,
    ToZygote,
    encode,
    error_to_wire,
    ids_to_wire,
    request_to_wire,
)
from fovea.ipc.process import die_with_parent, open_parent, show_worker_logs
from fovea.media.load import Fetched
from fovea.models.folder import find_model
from fovea.pipeline.bridged import make_preparer
from fovea.pipeline.preparer import Preparer
from fovea.prompt.chat import build_chat
from fovea.prompt.forms import PromptForm
from fovea.prompt.pieces import Piece

FAT_BYTES = 256 * 1024**2  # beyond what it started with
PICTURE_THREADS = 4  # of one request

_zygote_decoder = msgspec.msgpack.Decoder(ToZygote)
_task_decoder = msgspec.msgpack.Decoder(Task)


class Worker:
    """Answers tasks, one at a time."""

    def __init__(self, preparer: Preparer, config: ServerConfig) -> None:
        self.preparer = preparer
        self.is_spoilt = False  # by a panic, which may leave locks behind: this process takes no more tasks
        self._config = config

    def answer(self, task: Task, blob: memoryview | None) -> tuple[Message, int | None]:
        """The reply and its blob."""
        try:
            preparer = self.preparer.for_engine(
                task.max_model_len, resize_on_device=task.resize_on_device, pixel_cap=task.pixel_cap
            )
            return self._prepare(preparer, task, blob)
        except FoveaError as error:
            return _refused(error)
        except MemoryError:
            return _refused(
                MediaLimitError(
                    f"Preparing the request takes more than {self._config.prepare_memory_bytes:,} bytes of memory "
                    "(option prepare_memory_bytes). Send fewer or smaller pictures.",
                    code="media_too_large",
                )
            )
        except Exception:  # the boundary of one request
            logger.exception("a request could not be prepared")
            return _refused(RequestFailedError("The request could not be prepared; the log has the cause."))
        except BaseException:  # a panic of the tokenizer's Rust is no Exception
            self.is_spoilt = True
            logger.exception("preparing a request ended in a panic; this worker is replaced")
            return _refused(RequestFailedError("The request could not be prepared; the log has the cause."))

    def _prepare(self, preparer: Preparer, task: Task, blob: memoryview | None) -> tuple[Message, int | None]:
        started = time.perf_counter()
        form = replace(self._form(preparer, task), add_special_tokens=task.add_special_tokens)
        fetched = {
            item.url: Fetched(bytes(blob[item.offset : item.offset + item.num_bytes]) if blob else b"", item.seconds)
            for item in task.fetched
        }
        if task.count:
            counted = preparer.count(form, fetched=fetched)
            spans = [(span.start, span.length) for span in counted.spans]
            return Counts(ids_to_wire(counted.token_ids), spans, [_plain(report) for report in counted.reports]), None
        form_s = time.perf_counter() - started
        params = SamplingParams.from_mapping(task.params)
        prepared = preparer.prepare(form, params, task.request_id, task.arrived, fetched=fetched)
        wire, parts = request_to_wire(prepared.request)
        done = Done(
            request=msgspec.Raw(msgspec.msgpack.encode(wire)),
            text=prepared.text,
            reports=[_plain(report) for report in prepared.reports],
            prompt_s=form_s + prepared.prompt_s,
            media_s=prepared.media_s,
        )
        return done, write_blob(parts) if parts else None

    def _form(self, preparer: Preparer, task: Task) -> PromptForm:
        if task.messages is not None:
            return build_chat(
                task.messages,
                preparer.template,
                preparer.family,
                add_generation_prompt=task.add_generation_prompt,
                continue_final_message=task.continue_final_message,
                template_kwargs=task.template_kwargs,
                processor_kwargs=task.processor_kwargs,
                salt=task.salt,
                allow_embeds=self._config.enable_mm_embeds,
                from_json=True,
            )
        if isinstance(task.prompt, str):
            return PromptForm((Piece(task.prompt, True),), salt=task.salt)
        return PromptForm(None, tuple(task.prompt or ()), salt=task.salt)

    def serve(self, channel: Channel) -> None:
        thin_bytes = resident_bytes()
        while True:
            frame = channel.receive_one()
            channel.send(TAKEN)
            reply, blob = self._answer_frame(frame)
            is_leaving = self.is_spoilt or resident_bytes() > thin_bytes + FAT_BYTES
            if is_leaving:
                channel.send(LEAVING)
            channel.send(encode(reply), blob)
            if blob is not None:
                os.close(blob)
            if is_leaving:
                return

    def _answer_frame(self, frame: Frame) -> tuple[Message, int | None]:
        blob = None if frame.blob is None else map_blob(frame.blob)
        return self.answer(_task_decoder.decode(frame.payload), blob)


def resident_bytes() -> int:
    """Memory this process holds now; 0 where /proc does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def limit_memory(extra_bytes: int) -> None:
    """Let this process map so much more and no further; it is also the first that the system may kill."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * os.sysconf("SC_PAGE_SIZE") + extra_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    except (OSError, ValueError):
        logger.debug("no memory limit for preparing: this system offers none")


def run_worker(sock: socket.socket, worker: Worker, config: ServerConfig, zygote: int) -> None:
    """A forked child's whole life."""
    code = 0
    try:
        die_with_parent(zygote)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        limit_memory(config.prepare_memory_bytes)
        worker.serve(Channel(sock))
    except ChannelClosedError:
        pass
    except BaseException:
        logger.exception("a preparing worker ended")
        code = 1
    finally:
        os._exit(code)


def serve_forks(channel: Channel, worker: Worker, config: ServerConfig, fork: Callable[[], int] = os.fork) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    pid = os.getpid()
    while True:
        frame = channel.receive_one()
        message = _zygote_decoder.decode(frame.payload)
        if not isinstance(message, Fork) or frame.blob is None:
            raise ChannelClosedError
        sock = socket.socket(fileno=frame.blob)
        try:
            child = fork()
        except OSError:
            child = -1
        if child == 0:
            channel.close()
            run_worker(sock, worker, config, pid)
        sock.close()
        channel.send(encode(Forked(max(child, 0))))


def load(setup: Setup) -> tuple[Worker, ServerConfig]:
    config = ServerConfig.from_options(setup.options)
    folder = find_model(config.model, config)
    tokenizer_folder = find_model(config.tokenizer, config) if config.tokenizer else folder
    family = load_family(folder, config.model_impl)
    most = config.max_model_len or family.spec.decoder.max_positions
    threads = {"num_threads": PICTURE_THREADS, "num_helpers": PICTURE_THREADS}
    preparer = make_preparer(config, family, folder, tokenizer_folder, most, **threads)
    return Worker(preparer, config), config


def main(argv: list[str]) -> int:
    channel = open_parent(argv)
    try:
        setup = _zygote_decoder.decode(channel.receive_one().payload)
        if not isinstance(setup, Setup):
            return 1
        show_worker_logs(as_json=setup.log_as_json, level=setup.log_level)
        try:
            worker, config = load(setup)
        except FoveaError as error:
            channel.send(encode(Failed(error_to_wire(error))))
            return 1
        prepare_faults.install(worker, setup.faults)
        channel.send(encode(PrepareReady()))
        serve_forks(channel, worker, config, prepare_faults.forks(setup.faults))
    except ChannelClosedError:
        return 0
    return 0


def _refused(error: FoveaError) -> tuple[Message, int | None]:
    return Refused(error_to_wire(error)), None


def _plain(report: object) -> dict[str, object]:
    return dict(msgspec.to_builtins(report))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
