"""Runs the shards of `prepare` on the machines of Apache Beam."""

import apache_beam
from apache_beam import runners
from apache_beam.options import pipeline_options

from ddpm.runtime.errors import BadArgument
from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError


class Beam:
  """Runs a function on shards, see `prepare.prepare`.

  Attributes:
    download: what TFDS' `DownloadConfig` needs to run its own sets likewise.

  Args:
    runner: name of a runner of Beam, such as 'DirectRunner'. Its machines need
      this package, and the data under the same paths.
    options: list of Beam's own options, 'name=value'.

  Raises:
    BadArgument: there is no such runner.
  """

  def __init__(self, runner, options):
    try:
      self._runner = runners.create_runner(runner)
    except ValueError as e:
      raise BadArgument(f'beam_runner is {runner!r}: {reason(e)}') from e
    self._options = pipeline_options.PipelineOptions(
        [f'--{option}' for option in options]
    )
    self.download = {
        'beam_runner': self._runner, 'beam_options': self._options
    }  # fmt: skip

  def __call__(self, write, shards):
    try:
      with apache_beam.Pipeline(self._runner, self._options) as pipeline:
        _ = (
            pipeline
            | apache_beam.Create(shards)
            # Else one machine would get them all.
            | apache_beam.Reshuffle()
            | apache_beam.Map(write)
        )
    except Exception as e:  # Runners raise anything, with other machines' text.
      text = reason(e).rpartition('UserError: ')[2]
      raise UserError(f'Beam: {text}') from e
