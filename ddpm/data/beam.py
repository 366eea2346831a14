"""Runs the shards of `prepare` on the machines of Apache Beam."""

import apache_beam
from apache_beam.options import pipeline_options


class Beam:
  """Runs a function on shards, see `prepare.prepare`.

  Args:
    runner: name of a runner of Beam, such as 'DirectRunner'. Its machines need
      this package and the same paths.
    options: list of Beam's own options, 'name=value'.
  """

  def __init__(self, runner, options):
    self._options = pipeline_options.PipelineOptions(
        [f'--runner={runner}', *(f'--{option}' for option in options)]
    )

  def __call__(self, write, shards):
    with apache_beam.Pipeline(options=self._options) as pipeline:
      _ = (
          pipeline
          | apache_beam.Create(shards)
          # Else one machine would get them all.
          | apache_beam.Reshuffle()
          | apache_beam.Map(write)
      )
