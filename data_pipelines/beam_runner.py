"""Work on Apache Beam: on many machines by Dataflow, Flink or Spark, or on this one.

The workers need this package and the same folders under the same paths: they read scans, and leave
what they make in files.
"""

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data_pipelines.errors import UserError


class BeamRunner:
    """Calls a function once for each task, as one Beam pipeline.

    Attributes:
        forwards_errors: False, since a runner repeats a task that fails, and wraps its exception.
    """

    forwards_errors = False

    def __init__(self, options: Sequence[str]):
        """Check the options of Beam's pipelines, such as "--runner=DataflowRunner".

        Raises:
            UserError: Beam is not installed, or refuses an option.
        """
        with _quiet():
            try:
                import apache_beam
                from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
            except ImportError as error:
                raise UserError(
                    f"--runner=beam needs Apache Beam ({error}); pip install -e .[beam], without "
                    "constraints, in an environment of its own"
                ) from error
            said = io.StringIO()
            try:
                with contextlib.redirect_stderr(said):
                    self._options = PipelineOptions(list(options))
                    known = self._options.get_all_options()
                    given = self._options.get_all_options(retain_unknown_options=True)
                    apache_beam.Pipeline(options=self._options)
            except (ValueError, ImportError, SystemExit) as error:  # argparse prints and exits
                reason = said.getvalue().rpartition("error: ")[2] or str(error)
                raise UserError(
                    f"--beam_options={','.join(options)}: {' '.join(reason.split())}"
                ) from error
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise UserError(f"--beam_options: Beam knows no {', '.join(unknown)}; check its name")
        self._beam = apache_beam
        self._here = self._options.view_as(StandardOptions).runner in (None, "DirectRunner")

    def __call__(self, function: Callable[[Any], Any], tasks: Sequence[Any], label: str) -> None:
        """Return when all are done; workers that die are the affair of Beam's runner."""
        if not tasks:
            return
        beam = self._beam
        quiet = _quiet() if self._here else contextlib.nullcontext()
        with quiet, beam.Pipeline(options=self._options) as pipeline:
            (
                pipeline
                | label >> beam.Create(tasks)
                | beam.Reshuffle()  # else one worker may do all that is created here
                | beam.Map(function)
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Errors alone on the terminal, not what Beam misses or chooses."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
