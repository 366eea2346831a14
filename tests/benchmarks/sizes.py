"""Time and memory of a step by image size and batch, and with remat.

  python tests/benchmarks/sizes.py

A U-Net of 32 channels (1, 2, 2), float32, on one CPU device. Prints a Markdown
table: the time of a step, per pixel, and the process's peak memory above what
it had before the network was built, beside the peak that
`ddpm.main --dry_run --topology` counts. Nothing else should run meanwhile.
"""

import argparse
import resource

import step as step_benchmark
import turns

# Size, batch, and whether to measure remat, too.
_CASES = (
    (32, 1, False),
    (32, 16, False),
    (32, 256, True),
    (64, 1, False),
    (64, 64, True),
    (128, 1, False),
    (128, 16, True),
    (256, 1, False),
    (256, 4, True),
)


def make_config(size, batch_size, remat):
  config = step_benchmark.make_config('mnist').copy_and_resolve_references()
  config.unlock()
  config.data.image_size = size
  config.model.attention_resolutions = ()
  config.train.batch_size = batch_size
  config.train.remat = remat
  config.distribute.strategy = 'one_device'
  return config.lock()


def peak():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(size, batch_size, remat):
  from ddpm.runtime import environment

  environment.import_tensorflow()
  from ddpm.training import cost

  config = make_config(size, batch_size, remat)
  before = peak()
  trainer = step_benchmark.make_trainer(config)
  run_steps = step_benchmark.steps_of(trainer)
  run_steps(2)

  def measure():
    rate = step_benchmark.repeat(run_steps, batch_size)['images_per_second']
    return {
        'seconds': batch_size / rate,
        'memory': peak() - before,
        'counted': cost.of_step(
            config, batch_size, jit_compile=False
        ).peak_bytes,
    }

  turns.serve(trainer.devices, measure)


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--worker')
  args = parser.parse_args()
  if args.worker:
    size, batch_size, remat = map(int, args.worker.split(':'))
    work(size, batch_size, bool(remat))
    return
  print(
      '| size | batch | remat | ms per step | ns per pixel | measured peak |'
      ' counted peak |\n|---|---|---|---|---|---|---|'
  )
  for size, batch_size, with_remat in _CASES:
    for remat in range(1 + with_remat):
      worker = turns.Worker(__file__, f'{size}:{batch_size}:{remat}')
      (result,) = turns.measure([worker], turns=1)
      pixels = size**2 * batch_size
      print(
          f'| {size} | {batch_size} | {"yes" if remat else "no"} |'
          f' {result["seconds"] * 1e3:.0f} |'
          f' {result["seconds"] / pixels * 1e9:.0f} |'
          f' {result["memory"] / 2**30:.2f} GiB |'
          f' {result["counted"] / 2**30:.2f} GiB |',
          flush=True,
      )


if __name__ == '__main__':
  main()
