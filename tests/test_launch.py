"""The launch scripts hand flags on, and refuse with their usage."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
from support import metrics
from support import ROOT
from support import TINY_WITHOUT_XLA
from support import wait_for


def launch(script, *args, cwd=ROOT, **env):
  return subprocess.run(
      ['bash', ROOT / 'launch' / script, *args],
      cwd=cwd,
      env={**os.environ, 'PYTHON': sys.executable, **env},
      capture_output=True,
      text=True,
      check=False,
  )


_VM = ('--name', 'me', '--zone', 'z')
_TRAIN = ('--', '--config=configs/a b.py', '--workdir=gs://bucket/run')


@pytest.mark.parametrize(
    'tpu, version',
    [
        ('v6e-8', 'v2-alpha-tpuv6e'),
        ('v5p-8', 'v2-alpha-tpuv5'),
        ('v5litepod-4', 'v2-alpha-tpuv5-lite'),
        ('v3-8', 'tpu-ubuntu2204-base'),
    ],
)
def test_tpu_vm_prints_its_commands(tpu, version):
  done = launch(
      'tpu_vm.sh', 'start', '--dry_run', *_VM, '--type', tpu, *_TRAIN
  )
  assert done.returncode == 0, done.stderr
  create, wait, copy, install, flags, train = done.stdout.splitlines()
  assert create.split() == (
      'gcloud compute tpus queued-resources create me --node-id me'
      f' --accelerator-type {tpu} --runtime-version {version} --zone z'
  ).split()
  assert ' queued-resources describe me ' in wait
  assert ' scp ' in copy and 'tensorflow-tpu' in install
  assert ' scp ' in flags and 'systemd-run' in train


def test_a_spot_tpu_vm_is_asked_for_and_deleted():
  done = launch(
      'tpu_vm.sh', 'create', '--dry_run', '--spot', *_VM, '--type', 'v4-8'
  )
  assert ' --spot ' in done.stdout.splitlines()[0]
  done = launch('tpu_vm.sh', 'delete', '--dry_run', *_VM)
  assert done.stdout.strip() == (
      'gcloud compute tpus queued-resources delete me --force --quiet --zone z'
  )


# The VM's home is a folder, its commands are run here, and what needs a network
# or systemd is not.
_CLOUD = {
    'gcloud': '''
echo "$4" >> "$VM/asked"
case $4 in
  create) touch "$VM/waiting" ;;
  describe) rm "$VM/waiting" && echo PROVISIONING || echo ACTIVE ;;
  scp) cp "$5" "$VM" ;;
  ssh) cd "$VM" && HOME=$VM bash -euo pipefail -c "$7" ;;
esac''',
    'sleep': '',
    'python3': 'echo "$@" >> "$VM/installed"',
    'uv': 'echo "$@" >> "$VM/installed"',
    'sudo': '''
echo "$@" >> "$VM/systemd"
[[ $1 == systemctl ]] || (cd "$VM/ddpm" && "${@: -2}")''',
    'journalctl': 'echo "$@"',
}


def test_a_tpu_vm_trains_stops_and_goes_on(tmp_path):
  vm = tmp_path / 'vm'
  for name, script in {**_CLOUD, 'python': f'''
[[ $1 == - ]] && exec {sys.executable} "$@"
printf '%s,' "$@" >> "$VM/trained"'''}.items():
    folder = {'uv': vm / '.local/bin', 'python': vm / 'ddpm/.venv/bin'}
    file = folder.get(name, tmp_path / 'bin') / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'#!/usr/bin/env bash\n{script}\n')
    file.chmod(0o755)
  env = {'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}', 'VM': str(vm)}

  done = launch(
      'tpu_vm.sh', 'start', *_VM, '--type', 'v4-8', *_TRAIN, **env
  )
  assert done.returncode == 0, done.stderr
  assert (vm / 'ddpm/launch/local.sh').exists()
  assert not (vm / 'ddpm/.git').exists()
  trained = (
      '-m,ddpm.main,--config=configs/a b.py,--workdir=gs://bucket/run,'
      '--config.distribute.strategy=tpu,'
  )
  assert (vm / 'trained').read_text() == trained

  assert launch('tpu_vm.sh', 'stop', *_VM, **env).returncode == 0
  assert launch('tpu_vm.sh', 'resume', *_VM, **env).returncode == 0
  assert (vm / 'trained').read_text() == 2 * trained
  start, stop, resume = (vm / 'systemd').read_text().splitlines()
  assert stop == 'systemctl stop ddpm' and start == resume
  assert '--unit=ddpm' in launch('tpu_vm.sh', 'logs', *_VM, **env).stdout
  assert launch('tpu_vm.sh', 'delete', *_VM, **env).returncode == 0
  assert (vm / 'asked').read_text().split() == (
      ['create', 'describe', 'describe', 'scp', 'ssh', 'scp', 'ssh']
      + ['ssh'] * 3 + ['delete']
  )  # fmt: skip


def test_scripts_refuse_with_their_usage():
  for script, args in (
      ('tpu_vm.sh', ['--name', 'me']),
      ('tpu_vm.sh', ['start', '--name', 'me']),
      ('tpu_vm.sh', ['start', *_VM, '--type', 'v4-8']),
      ('tpu_vm.sh', ['start', *_VM, '--type', 'v4-16', *_TRAIN]),
      ('multi_worker.sh', ['--local', 'two']),
      ('multi_worker.sh', ['--index', '0']),
      ('multi_worker.sh', ['--config=x']),
  ):
    done = launch(script, *args)
    assert done.returncode == 1
    assert f'launch/{script}' in done.stderr


def test_local_hands_flags_on():
  done = launch('local.sh', '--config=configs/mnist5k.py')
  assert done.returncode == 1
  assert '--workdir is missing' in done.stderr


# Stands for Python: each start of ddpm.main is noted, and ends with the next
# code of a list, or sleeps until it is told to stop.
_FAKE = """#!/usr/bin/env bash
[[ $1 == - ]] && exec {python} "$@"
trap 'touch {ended}.$worker; exit 75' TERM USR1
worker=$({python} -c 'import json, os; print(
    json.loads(os.environ.get("TF_CONFIG", "{{}}"))
    .get("task", {{"index": 0}})["index"])')
echo "$@" >> {log}.$worker
pwd > {folder}
code=$(sed -n "$(wc -l < {log}.$worker)p" {codes}.$worker)
# "75@4": the trainer reaches step 4 before.
[[ $code == *@* ]] && echo "${{code#*@}}" > "$DDPM_STEP_FILE"
code=${{code%@*}}
[[ $code ]] && exit "$code"
while true; do sleep 0.1; done
"""


def fake_python(tmp_path, codes):
  """Workers that end with some codes, start by start."""
  fake = tmp_path / 'python'
  fake.write_text(
      _FAKE.format(
          python=sys.executable,
          log=tmp_path / 'log',
          codes=tmp_path / 'codes',
          folder=tmp_path / 'folder',
          ended=tmp_path / 'ended',
      )
  )
  fake.chmod(0o755)
  for worker, sequence in enumerate(codes):
    (tmp_path / f'codes.{worker}').write_text(
        ''.join(f'{code}\n' for code in sequence)
    )
  return fake


def fake_tools(tmp_path, **scripts):
  """PATH with some programs in front, by their scripts."""
  folder = tmp_path / 'bin'
  folder.mkdir(exist_ok=True)
  for name, script in scripts.items():
    (folder / name).write_text(f'#!/usr/bin/env bash\n{script}\n')
    (folder / name).chmod(0o755)
  return f'{folder}:{os.environ["PATH"]}'


def start_fake(tmp_path, codes, script, *args, pauses=False, **env):
  """Starts a script with such workers; its pauses may be noted, not made."""
  fake = fake_python(tmp_path, codes)
  if pauses:
    (tmp_path / 'pauses').touch()
    note = f'echo "$1" >> "{tmp_path}/pauses"'
    env['PATH'] = fake_tools(tmp_path, sleep=note)
  return subprocess.Popen(
      ['bash', ROOT / 'launch' / script, *args],
      cwd=tmp_path,
      env={**os.environ, 'PYTHON': str(fake), **env},
      stderr=subprocess.PIPE,
      text=True,
  )


def starts(tmp_path, worker=0):
  return (tmp_path / f'log.{worker}').read_text().splitlines()


@pytest.mark.parametrize(
    'codes, code, runs, pauses',
    [
        ([75, '75@4', 3], 3, 3, [1, 2]),
        # A TensorFlow that aborts before the first step, but not after it.
        ([134, '134@4'], 134, 2, [1]),
        (['134@4'], 134, 1, []),
        ([137], 137, 1, []),
        # Nothing but restarts.
        ([75] * 9, 1, 6, [1, 2, 4, 8, 16]),
        (['75@4'] * 9, 1, 7, [1, 2, 4, 8, 16, 32]),
        ([f'75@{step}' for step in range(1, 9)] + [0], 0, 9,
         [1, 2, 4, 8, 16, 32, 60, 60]),
        # Steps that were done before, after the last checkpoint, are not new.
        (['75@4', '75@3', '75@4', '75@5', 3], 3, 5, [1, 2, 4, 8]),
    ],
)  # fmt: skip
def test_local_starts_again_after_75(tmp_path, codes, code, runs, pauses):
  process = start_fake(
      tmp_path, [codes], 'local.sh', '--workdir=a b', pauses=True
  )
  _, said = process.communicate(timeout=60)
  assert process.returncode == code
  assert starts(tmp_path) == ['-m ddpm.main --workdir=a b'] * runs
  assert (tmp_path / 'pauses').read_text().split() == list(map(str, pauses))
  gave_up = 'local.sh: giving up: 5 restarts without a new step'
  assert (gave_up in said) == (code == 1)


def test_no_python_is_one_line(tmp_path):
  done = launch('local.sh', '--workdir=w', PYTHON=str(tmp_path / 'none'))
  assert done.returncode == 1
  (line,) = done.stderr.splitlines()
  assert line.startswith(f'local.sh: there is no {tmp_path}/none: set up')


def test_paths_are_the_callers(tmp_path):
  """From another folder, whose name is not tidy either."""
  folder = tmp_path / 'é [1] b'
  folder.mkdir()
  fake = fake_python(tmp_path, [[0]])
  flags = ['--config=é [1] c.py', '--workdir=w é [1]']
  done = launch('local.sh', *flags, PYTHON=str(fake), cwd=folder)
  assert done.returncode == 0
  assert (tmp_path / 'folder').read_text() == f'{folder}\n'
  assert starts(tmp_path) == [f'-m ddpm.main {" ".join(flags)}']


@pytest.mark.slow
def test_a_run_from_another_folder(tmp_path):
  folder = tmp_path / 'é [1] b'
  folder.mkdir()
  (folder / 'é [1] c.py').write_text('from configs.mnist5k import get_config\n')
  done = launch(
      'local.sh', '--config=é [1] c.py', *TINY_WITHOUT_XLA[1:],
      '--workdir=w é', '--config.train.num_steps=2', cwd=folder,
      PYTHONPATH=str(ROOT),
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert metrics(folder / 'w é')[-1]['step'] == 2


@pytest.mark.parametrize(
    'codes, code, runs',
    [
        ([[75, 0], [75, 0]], 0, 2),
        # One was killed, and the other says that the run would go on.
        ([[75], [137]], 137, 1),
        ([[1], [75]], 1, 1),
        # The other goes on until it is stopped.
        ([[137], []], 137, 1),
        ([[], [1]], 1, 1),
    ],
)
@pytest.mark.parametrize('where', ['--local=2', '--hosts=me@a,b:7'])
def test_multi_worker_starts_all_again_or_none(
    tmp_path, where, codes, code, runs
):
  args = ('multi_worker.sh', where, '--', "--workdir=é [1] b'c")
  env = {'PATH': fake_tools(tmp_path, ssh=_SSH)}
  process = start_fake(tmp_path, codes, *args, **env)
  assert process.wait(60) == code, process.communicate()
  for worker in (0, 1):
    flags = "--workdir=é [1] b'c --config.distribute.strategy=multi_worker"
    # The other may be stopped before it starts.
    if code == 0 or (tmp_path / f'log.{worker}').exists():
      assert starts(tmp_path, worker) == [f'-m ddpm.main {flags}'] * runs
    log = tmp_path / f"é [1] b'c/logs/worker_{worker}.log"
    wait_for(log.exists, 'log', seconds=10)
  if where != '--local=2':
    hosts = (tmp_path / 'hosts').read_text().split()
    assert sorted(hosts) == sorted(['me@a', 'b'] * runs)


def test_workers_end_with_the_script_that_started_them(tmp_path):
  """Even if it is killed, and on other hosts."""
  args = ('multi_worker.sh', '--hosts=a,b', '--', '--workdir=w')
  env = {'PATH': fake_tools(tmp_path, ssh=_SSH)}
  process = start_fake(tmp_path, [[], []], *args, **env)
  ended = [tmp_path / f'ended.{worker}' for worker in (0, 1)]
  for worker in (0, 1):
    wait_for((tmp_path / f'log.{worker}').exists, 'start', process=process)
  process.kill()
  for file in ended:
    wait_for(file.exists, 'end', seconds=20)


# Notes the host, and runs what it is given as a shell there would.
_SSH = 'cd /; echo "$3" >> "${PYTHON%/*}/hosts"; exec sh -c "$4"'


@pytest.mark.parametrize('number', ['SIGTERM', 'SIGHUP', 'SIGUSR1'])
@pytest.mark.parametrize(
    'workers, args',
    [
        (1, ['local.sh']),
        (2, ['multi_worker.sh', '--local', '2', '--']),
        (2, ['multi_worker.sh', '--hosts=a,b', '--']),
    ],
)
def test_a_script_that_is_told_to_stop_starts_nothing_again(
    tmp_path, workers, args, number
):
  # Under nohup the tests ignore it, and what they start would, too.
  before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
  env = {'PATH': fake_tools(tmp_path, ssh=_SSH)}
  process = start_fake(tmp_path, [[]] * workers, *args, '--workdir=w', **env)
  signal.signal(signal.SIGHUP, before)
  # A worker that is in its log has set its trap.
  for worker in range(workers):
    log = tmp_path / f'log.{worker}'
    wait_for(log.exists, f'start of worker {worker}', process=process)
  process.send_signal(signal.Signals[number])
  assert process.wait(60) == 75
  for worker in range(workers):
    assert len(starts(tmp_path, worker)) == 1


def start_under_slurm(tmp_path, codes, script, *args, **env):
  """Starts a copy, as Slurm does; srun starts one task."""
  (tmp_path / 'slurm_script').write_text(
      (ROOT / 'launch' / script).read_text()
  )
  path = fake_tools(
      tmp_path,
      scontrol=f"""
[[ $1 == show ]] && echo "   Command={ROOT}/launch/{script} --workdir=w"
[[ $1 == show ]] || echo "$@" >> "{tmp_path}/asked"
""",
      # srun kills its tasks on SIGTERM.
      srun=f"""
trap 'kill -9 $!' TERM
trap 'kill -USR1 $!' USR1
echo "$@" >> "{tmp_path}/srun"
while [[ $1 == --* ]]; do shift; done
"$@" & wait $!; wait $!""",
  )
  return start_fake(
      tmp_path, codes, tmp_path / 'slurm_script', *args, PATH=path,
      SLURM_JOB_ID='7', **env,
  )  # fmt: skip


@pytest.mark.parametrize(
    'codes, number, code, asked',
    [
        ([75, 0], None, 0, False),
        ([3], None, 3, False),
        # The time is up.
        ([], signal.SIGUSR1, 0, True),
        # scancel.
        ([], signal.SIGTERM, 75, False),
    ],
)
def test_slurm_puts_a_run_back_into_the_queue(
    tmp_path, codes, number, code, asked
):
  process = start_under_slurm(
      tmp_path, [codes], 'slurm.sbatch', '--workdir=w', SLURM_CPUS_PER_TASK='4'
  )
  if number:
    wait_for((tmp_path / 'log.0').exists, 'start', process=process)
    process.send_signal(number)
  assert process.wait(60) == code, process.communicate()
  assert (tmp_path / 'asked').exists() == asked
  if asked:
    assert (tmp_path / 'asked').read_text() == 'requeue 7\n'
  assert (tmp_path / 'srun').read_text().splitlines()[0] == (
      '--kill-on-bad-exit=0 --label --cpus-per-task=4'
      f' {tmp_path}/python -m ddpm.main --workdir=w'
  )


@pytest.mark.parametrize('task, host', [(2, 1), (3, 0)])
def test_a_slurm_array_shares_the_images(tmp_path, task, host):
  process = start_under_slurm(
      tmp_path, [[0], [0]], 'slurm_sample.sbatch', '--outdir=é [1]',
      SLURM_ARRAY_TASK_ID=str(task), SLURM_ARRAY_TASK_MAX='3',
      SLURM_ARRAY_TASK_COUNT='2',
  )  # fmt: skip
  assert process.wait(60) == 0, process.communicate()
  assert starts(tmp_path, host) == ['-m ddpm.sample --outdir=é [1]']


def test_the_scripts_pass_shellcheck():
  if not shutil.which('shellcheck'):
    pytest.skip('shellcheck is not installed')
  scripts = [*(ROOT / 'launch').glob('*.s*h'), ROOT / '.ci' / 'run']
  assert len(scripts) == 7
  done = subprocess.run(
      ['shellcheck', *scripts], cwd=ROOT, capture_output=True, text=True,
      check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout
