"""Work in processes of this machine."""

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from data_pipelines.errors import UserError


@dataclasses.dataclass(frozen=True)
class LocalRunner:
    """Calls a function once for each task, with a progress bar.

    Attributes:
        workers: processes; 1 for this one, None for one a core.
        forwards_errors: see `staging.Run`.
    """

    workers: int | None
    forwards_errors: bool = dataclasses.field(default=True, init=False)

    def __call__(self, function: Callable[[Any], Any], tasks: Sequence[Any], label: str) -> None:
        """Return when all are done.

        Raises:
            UserError: a process was killed.
            Exception: of the first task that raised one; later ones are given up.
        """
        workers = max(1, min(self.workers or os.cpu_count() or 1, len(tasks)))
        bar = tqdm(total=len(tasks), desc=label, disable=None, leave=False)
        with bar, contextlib.ExitStack() as stack:
            if workers == 1:
                for task in tasks:
                    function(task)
                    bar.update()
                return
            others = set(multiprocessing.active_children())
            pool = stack.enter_context(
                concurrent.futures.ProcessPoolExecutor(
                    workers,
                    mp_context=multiprocessing.get_context("spawn"),
                    initializer=_die_with_parent,
                )
            )
            futures = [pool.submit(function, task) for task in tasks]
            try:
                for future in futures:  # in order, so that the first bad case is the one reported
                    future.result()
                    bar.update()
            except concurrent.futures.process.BrokenProcessPool as error:
                raise UserError(
                    "a worker process was killed, most likely for lack of memory; "
                    f"use fewer than --workers={workers}"
                ) from error
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in set(multiprocessing.active_children()) - others:
                    worker.terminate()
                raise


def _die_with_parent() -> None:
    """End this worker when its parent is gone, also after kill -9, and quietly on Ctrl-C."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
