"""The manifests of launch/kubernetes agree with each other and the program."""

import re
import shutil
import subprocess

import pytest
from support import ROOT
import yaml

from ddpm.runtime import environment

FOLDER = ROOT / 'launch' / 'kubernetes'
TARGETS = ('jobset', 'tfjob', 'overlays/jobset_4x8', 'overlays/tfjob_4x8',
           'overlays/jobset_bucket')  # fmt: skip


def build(folder):
  """What `kustomize build` makes of a folder: objects by kind.

  Of Kustomize it knows resources, images, JSON patches with a target, and
  patches that delete an object.
  """
  kustomization = yaml.safe_load((folder / 'kustomization.yaml').read_text())
  unknown = set(kustomization) - {
      'apiVersion', 'kind', 'resources', 'images', 'patches'
  }  # fmt: skip
  assert not unknown
  objects = {}
  for name in kustomization['resources']:
    path = folder / name
    if path.is_dir():
      objects |= build(path)
    else:
      documents = yaml.safe_load_all(path.read_text())
      objects |= {document['kind']: document for document in documents}
  for patch in kustomization.get('patches', []):
    operations = yaml.safe_load(patch['patch'])
    if 'target' not in patch:
      assert operations['$patch'] == 'delete'
      removed = objects.pop(operations['kind'])
      assert removed['metadata'] == operations['metadata']
      continue
    patched = objects[patch['target']['kind']]
    assert patched['metadata']['name'] == patch['target']['name']
    for operation in operations:
      apply(patched, **operation)
  for image in kustomization.get('images', []):
    for found in objects.values():
      for container in containers(found):
        assert container['image'] == image['name']
        container['image'] = f'{image["newName"]}:{image["newTag"]}'
  return objects


def apply(patched, op, path, value=None):
  """An operation of a JSON patch; what it replaces or removes must be there."""
  *steps, last = path.strip('/').split('/')
  for step in steps:
    patched = patched[int(step) if isinstance(patched, list) else step]
  last = int(last) if isinstance(patched, list) else last
  if op == 'add':
    assert last not in patched
  else:
    _ = patched[last]
  if op == 'remove':
    del patched[last]
  else:
    patched[last] = value


def pod_of(found):
  """The pod's spec in an object, or {}."""
  spec = found.get('spec', {})
  match found['kind']:
    case 'JobSet':
      (job,) = spec['replicatedJobs']
      return job['template']['spec']['template']['spec']
    case 'TFJob':
      return spec['tfReplicaSpecs']['Worker']['template']['spec']
    case 'Deployment':
      return spec['template']['spec']
  return {}


def containers(found):
  return pod_of(found).get('containers', [])


@pytest.fixture(params=TARGETS)
def objects(request):
  return build(FOLDER / request.param)


def test_volumes_are_claimed_and_mounted(objects):
  claims = {
      volume['persistentVolumeClaim']['claimName']
      for found in objects.values()
      for volume in pod_of(found).get('volumes', [])
      if 'persistentVolumeClaim' in volume
  }
  defined = objects.get('PersistentVolumeClaim')
  assert claims == ({defined['metadata']['name']} if defined else set())
  for found in objects.values():
    volumes = [volume['name'] for volume in pod_of(found).get('volumes', [])]
    for container in containers(found):
      mounts = container.get('volumeMounts', [])
      assert [mount['name'] for mount in mounts] == volumes
      # Workdir and data are in the volume, or in the bucket.
      paths = [
          argument.partition('=')[2]
          for argument in [*container.get('args', []), *container['command']]
          if re.match('--(workdir|logdir|config.data.data_dir)=', argument)
      ]
      start = '/runs' if defined else 'gs://BUCKET/'
      assert paths and all(path.startswith(start) for path in paths)


def test_names_agree(objects):
  service, deployment = objects['Service'], objects['Deployment']
  labels = deployment['spec']['template']['metadata']['labels']
  assert service['spec']['selector'] == labels
  assert deployment['spec']['selector']['matchLabels'] == labels
  (tensorboard,) = containers(deployment)
  (port,) = tensorboard['ports']
  assert f'--port={port["containerPort"]}' in tensorboard['command']
  assert service['spec']['ports'][0]['targetPort'] == port['name']
  account = objects.get('ServiceAccount', {'metadata': {'name': None}})
  for found in objects.values():
    if pod := pod_of(found):
      name = pod.get('serviceAccountName')
      assert name == account['metadata']['name']
      assert pod['securityContext']['runAsNonRoot'] is True


def test_only_code_75_restarts(objects):
  if 'TFJob' in objects:
    worker = objects['TFJob']['spec']['tfReplicaSpecs']['Worker']
    assert worker['restartPolicy'] == 'ExitCode'
    (trainer,) = containers(objects['TFJob'])
    assert trainer['name'] == 'tensorflow'
    return
  (job,) = objects['JobSet']['spec']['replicatedJobs']
  (trainer,) = containers(objects['JobSet'])
  rules = job['template']['spec']['podFailurePolicy']['rules']
  assert rules[-1] == {
      'action': 'FailJob',
      'onExitCodes': {
          'containerName': trainer['name'],
          'operator': 'NotIn',
          'values': [environment.RESTART],
      },
  }
  assert pod_of(objects['JobSet'])['restartPolicy'] == 'Never'


@pytest.mark.parametrize('code, expected', [(75, 138), (1, 1), (0, 0)])
def test_kubeflow_restarts_from_128_on(tmp_path, code, expected):
  (trainer,) = containers(build(FOLDER / 'tfjob')['TFJob'])
  script = tmp_path / 'launch' / 'local.sh'
  script.parent.mkdir()
  script.write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
  script.chmod(0o755)
  done = subprocess.run(
      [*trainer['command'], *trainer['args']], cwd=tmp_path,
      capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == expected
  assert done.stdout.split() == trainer['args']


@pytest.mark.parametrize('overlay, workers', [
    ('jobset', 2), ('overlays/jobset_4x8', 4)
])  # fmt: skip
def test_the_workers_of_a_jobset(tmp_path, overlay, workers):
  jobset = build(FOLDER / overlay)['JobSet']
  (job,) = jobset['spec']['replicatedJobs']
  (trainer,) = containers(jobset)
  assert job['replicas'] == workers
  labels = {
      variable['name']: variable['valueFrom']['fieldRef']['fieldPath']
      for variable in trainer['env']
  }
  prefix = "metadata.labels['jobset.sigs.k8s.io/"
  assert labels == {
      'WORKER': f"{prefix}job-index']",
      'WORKERS': f"{prefix}replicatedjob-replicas']",
  }
  script = tmp_path / 'launch' / 'multi_worker.sh'
  script.parent.mkdir()
  script.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
  script.chmod(0o755)
  done = subprocess.run(
      [*trainer['command'], *trainer['args']], cwd=tmp_path, text=True,
      env={'PATH': '/usr/bin:/bin', 'WORKER': '1', 'WORKERS': str(workers)},
      capture_output=True, check=False,
  )  # fmt: skip
  hosts = [
      f'{jobset["metadata"]["name"]}-{job["name"]}-{i}-0'
      f'.{jobset["spec"]["network"]["subdomain"]}'
      for i in range(workers)
  ]
  assert done.stdout.splitlines() == [
      '--index=1', f'--hosts={",".join(hosts)}', '--', *trainer['args']
  ]  # fmt: skip
  default = re.search(
      r'host\+=:(\d+)', (ROOT / 'launch/multi_worker.sh').read_text()
  )[1]
  assert trainer['ports'][0]['containerPort'] == int(default)


@pytest.mark.parametrize('kind', ['jobset', 'tfjob'])
def test_overlays_have_workers_and_gpus(kind):
  objects = build(FOLDER / f'overlays/{kind}_4x8')
  found = objects['JobSet' if kind == 'jobset' else 'TFJob']
  (trainer,) = containers(found)
  assert trainer['resources']['limits']['nvidia.com/gpu'] == 8
  assert trainer['image'] == 'registry.example/ddpm:gpu'
  assert "'replicas': 4" in str(found)


def test_the_dockerfile_copies_what_is_there():
  text = (FOLDER / 'Dockerfile').read_text()
  for line in re.findall('^COPY (.*)$', text, re.MULTILINE):
    *sources, _ = line.split()
    assert all((ROOT / source).exists() for source in sources)
  extras = set(re.findall(r'EXTRAS=([a-z,]+)', text))
  setup = (ROOT / 'setup.py').read_text()
  for extra in {e for group in extras for e in group.split(',')}:
    assert f"'{extra}': [" in setup


@pytest.mark.parametrize('target', TARGETS)
def test_kustomize_builds_them(target):
  tool = shutil.which('kustomize') or shutil.which('kubectl')
  if not tool:
    pytest.skip('neither kustomize nor kubectl is installed')
  command = 'build' if tool.endswith('kustomize') else 'kustomize'
  done = subprocess.run(
      [tool, command, FOLDER / target], capture_output=True, text=True,
      check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  made = {found['kind']: found for found in yaml.safe_load_all(done.stdout)}
  assert made == build(FOLDER / target)
