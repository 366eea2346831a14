"""Writes a data set, resized once, as shards that are read in any order.

The result is a data set that tensorflow-datasets reads, too. Each shard is a
function of the source and the plan, which is fixed before the first is written:
whatever is killed, on whichever machine, the same command ends with the same
shards.
"""

from concurrent import futures
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import shlex
import shutil
import uuid

from array_record.python import array_record_module
import numpy as np
import tensorflow_datasets as tfds

from ddpm.data import decode
from ddpm.data import folder
from ddpm.data import records
from ddpm.data import store
from ddpm.data import tfds as tfds_images
from ddpm.runtime import cores
from ddpm.runtime import files
from ddpm.runtime import progress
from ddpm.runtime import words
from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError
from ddpm.runtime.errors import writing

# Of JPEG; higher ones make larger files without a visible difference.
_QUALITY = 95

_SHARD_BYTES = 200e6

# Stretches of images that are encoded to estimate the size of all, and their
# length.
_STRETCHES, _LENGTH = 8, 16

# Images that are encoded at once.
_BLOCK = 256

# Of the files: images-train.array_record-00000-of-00012.
_NAME = 'images'


@dataclasses.dataclass(frozen=True)
class Options:
  """What is prepared, and how.

  Attributes:
    data: 'folder:PATH', 'tfds:NAME' or 'prepared:PATH'.
    split: of the source, in TFDS notation; 'train' for a folder.
    image_size: (height, width).
    channels: of the images.
    resize: one of `resize.RULES`.
    labels: of a folder, one of `folder.LABELS`.
    on_error: 'stop' or 'skip', at a folder's broken images.
    data_dir, image_key, label_key: as in `catalog.load`.
    encoding: 'png', which is exact, or 'jpeg', several times smaller.
  """

  data: str
  split: str
  image_size: tuple
  channels: int
  resize: str
  labels: str
  on_error: str
  data_dir: str
  image_key: str
  label_key: str
  encoding: str

  @property
  def name(self):
    """The result's split: that of 'train[:1000]' is 'train'."""
    return self.split.partition('[')[0]


@dataclasses.dataclass(frozen=True)
class Plan:
  """What DIR/prepare-train.json says.

  Attributes:
    options: `Options`.
    identity: of the source's files.
    images: number of images to read.
    shards: number of shards to write.
  """

  options: Options
  identity: str
  images: int
  shards: int

  def range(self, shard):
    """Numbers of a shard's images in the source."""
    edges = [self.images * i // self.shards for i in (shard, shard + 1)]
    return range(*edges)


def _plans_in(out):
  """The plans of a folder, by the names of their splits."""
  plans = {}
  for name in os.listdir(out):
    if not (name.startswith('prepare-') and name.endswith('.json')):
      continue
    path = os.path.join(out, name)
    try:
      with open(path) as f:
        facts = json.load(f)
      options = facts.pop('options')
      options['image_size'] = tuple(options['image_size'])
      plan = Plan(Options(**options), **facts)
    except (OSError, ValueError, TypeError, KeyError) as e:
      raise UserError(
          f'{path} cannot be read ({reason(e)}): use another --out'
      ) from e
    plans[plan.options.name] = plan
  return plans


def prepare(out, *, run=None, image_size=None, channels=None, **settings):
  """Prepares a data set, or goes on where an earlier call was stopped.

  Args:
    out: the folder to write to, local or mounted.
    run: `beam.Beam`; None to write one shard after the other here, each on
      all cores.
    image_size: (height, width); None for the source's own, or what
      `folder.suggest` says.
    channels: the same.
    **settings: the other attributes of `Options`.

  Returns:
    Lines for the user.

  Raises:
    UserError: the source cannot be read, `out` cannot be written, or has
      another data set.
  """
  if files.is_in_bucket(out):
    raise UserError(
        f'--out is {out}, but ArrayRecord files are written to local or mounted'
        ' folders only: mount the bucket, by gcsfuse for example'
    )
  out = os.path.abspath(os.path.expanduser(out))
  files.make_writable_folder(out, name='--out')
  scheme, _, path = settings['data'].partition(':')
  if scheme != 'tfds' and not files.is_in_bucket(path):
    # Other machines may be in another folder.
    settings['data'] = f'{scheme}:{os.path.abspath(os.path.expanduser(path))}'
  options = _complete(
      image_size, channels, settings, download=run.download if run else {}
  )
  with store.one_at_a_time(
      os.path.join(out, f'.{_NAME}.lock'),
      f'another process prepares {out}: waiting for it',
  ):
    plan = _make_plan(options, out)
    for name in os.listdir(out):
      if name.startswith(f'.{_NAME}-{options.name}.'):
        os.remove(os.path.join(out, name))  # Of a process that was killed.
    missing = [
        shard for shard in range(plan.shards)
        if not os.path.exists(_shard_path(plan, out, shard))
    ]  # fmt: skip
    if missing:
      write = functools.partial(write_shard, plan, out)
      (run or functools.partial(_run_here, plan))(write, missing)
    lengths = _write_metadata(plan, out)
  broken = plan.images - sum(lengths)
  size = sum(
      os.path.getsize(_shard_path(plan, out, i)) for i in range(plan.shards)
  )
  return [
      f'{sum(lengths):,} images of {words.dimensions(options.image_size)} x'
      f' {options.channels} in {plan.shards:,} files, {size / 1e6:,.1f} MB',
      *([f'{broken:,} broken images are left out'] if broken else []),
      'to train: python -m ddpm.main'
      f' {shlex.quote(f"--config=configs/folder.py:{out}")} --workdir=...',
  ]


def _complete(image_size, channels, settings, download):
  """`Options`, with what the source says for what was not given."""
  scheme, _, path = settings['data'].partition(':')
  if scheme == 'folder':
    if settings['split'] != 'train':
      raise UserError(
          f'--split is {settings["split"]!r}, but a folder has only train'
      )
    if not (image_size and channels):
      found = folder.suggest(folder.list_images(path))
      image_size = image_size or (found.image_size,) * 2
      channels = channels or found.channels
    if channels not in decode.MODES:
      raise UserError(
          f'--image_channels is {channels}, expected 1 (grey), 3 (RGB) or 4'
          ' (RGBA)'
      )
    _check_encoding(settings['encoding'], channels)
    return Options(image_size=image_size, channels=channels, **settings)
  shape = tfds_images.image_shape(
      tfds_images.builder_of(
          settings['data'], settings['data_dir'], **download
      ),
      settings['data'],
      settings['image_key'],
  )
  if channels not in (None, shape[-1]):
    raise UserError(
        f'--image_channels is {channels}, but the images of {settings["data"]}'
        f' have {shape[-1]}'
    )
  if image_size is None and None in shape:
    raise UserError(
        f'--image_size is missing: the images of {settings["data"]} have'
        ' several sizes'
    )
  _check_encoding(settings['encoding'], shape[-1])
  image_size = image_size or shape[:2]
  return Options(image_size=image_size, channels=shape[-1], **settings)


def _check_encoding(encoding, channels):
  if encoding == 'jpeg' and channels == 4:
    raise UserError(
        '--encoding is jpeg, which has no transparency, but the images have 4'
        ' channels: use png'
    )


def _make_plan(options, out):
  source = _source(options)
  plans = _plans_in(out)
  for plan in plans.values():
    _check_same(plan.options, options, out)
  plan = plans.get(options.name)
  if plan is None:
    size = _encoded_size(source, options)
    free = shutil.disk_usage(out).free
    if size > free:
      raise UserError(
          f'{options.data} takes about {size / 1e9:.1f} GB, but {out} has'
          f' {free / 1e9:.1f} GB left: use another --out, or --encoding=jpeg'
      )
    shards = max(1, round(size / _SHARD_BYTES))
    plan = Plan(options, source.identity, len(source), shards)
    text = json.dumps(dataclasses.asdict(plan), indent=2) + '\n'
    files.write_file(_plan_path(out, options), text.encode())
    return plan
  if plan.identity != source.identity:
    raise UserError(
        f'{out} was begun with {plan.images:,} images of {plan.options.data},'
        f' which have changed, or are others in {options.data}: use another'
        ' --out'
    )
  return plan


def _check_same(before, now, out):
  """Checks that options fit to those of what is in the folder already."""
  # The same images may be elsewhere now.
  may_differ = {'data', 'data_dir'}
  if before.name != now.name:
    may_differ.add('split')
  for field in dataclasses.fields(Options):
    old, new = getattr(before, field.name), getattr(now, field.name)
    if old != new and field.name not in may_differ:
      raise UserError(
          f'{out} has images that were prepared with {field.name} {old}, not'
          f' {new}: use another --out'
      )


def _encoded_size(source, options):
  """Bytes of all images, by those of some."""
  # Evenly chosen, in a few stretches, which are read faster.
  edges = np.linspace(0, len(source), _STRETCHES + 1, dtype=int)
  sizes = [
      len(_encode(image, options.encoding))
      for start, stop in itertools.pairwise(edges.tolist())
      for _, image, _ in source.read(range(start, min(start + _LENGTH, stop)))
  ]
  if not sizes:
    raise UserError(f'{options.data}: no image that was tried can be decoded')
  return len(source) * float(np.mean(sizes))


def _run_here(plan, write, missing):
  done = plan.images - sum(len(plan.range(shard)) for shard in missing)
  shown = progress.Progress(
      plan.images, unit='image', done=done, name='preparing',
      line='{done} of {total} images prepared',
  )  # fmt: skip

  def report(images):
    nonlocal done
    done += images
    shown.update(done)

  try:
    for shard in missing:
      write(shard, report)
  finally:
    shown.close()


def write_shard(plan, out, shard, report=lambda images: None):
  """Writes a shard, which appears under its name when it is whole.

  Args:
    plan: `Plan`.
    out: the folder.
    shard: its number.
    report: function that is called with numbers of images that are done.

  Raises:
    UserError: an image is broken, or the folder cannot be written.
  """
  options = plan.options
  source = _source(options)
  features = _features(options, source.classes)
  serializer = tfds.core.example_serializer.ExampleSerializer(
      features.get_serialized_info()
  )
  path = _shard_path(plan, out, shard)
  # Two machines may write the same shard: Beam lets others help a slow one.
  hidden = f'.{os.path.basename(path)}.{uuid.uuid4().hex}'
  part = os.path.join(out, hidden)
  encode = functools.partial(_encode, encoding=options.encoding)
  with _writing(part, path), futures.ThreadPoolExecutor(cores.count()) as pool:
    # Group size 1: records are read singly. They are compressed already.
    writer = array_record_module.ArrayRecordWriter(
        part, 'group_size:1,uncompressed'
    )
    count = 0
    images = source.read(plan.range(shard))
    while block := list(itertools.islice(images, _BLOCK)):
      encoded = pool.map(encode, [image for _, image, _ in block])
      for (name, _, label), data in zip(block, encoded):
        example = {'image': data, 'image/filename': name}
        if source.classes:
          example['label'] = int(label)
        proto = serializer.get_tf_example(features.encode_example(example))
        # Else its features are in an order that each process draws.
        writer.write(proto.SerializeToString(deterministic=True))
      count += len(block)
      report(len(block))
    writer.close()
    if records.count(part) != count:
      raise OSError('the file is not whole')
    report(len(plan.range(shard)) - count)


@contextlib.contextmanager
def _writing(part, path):
  """Gives a file its name when it is whole, and removes it if it is not."""
  try:
    with writing(path):
      yield
      os.replace(part, path)
  except RuntimeError as e:  # array_record's kind; it goes on with its state.
    text = reason(e).partition(';')[0]
    raise UserError(f'{path} cannot be written: {text}') from e
  finally:
    with contextlib.suppress(OSError):
      os.remove(part)


def _encode(image, encoding):
  how = {'quality': _QUALITY} if encoding == 'jpeg' else {}
  return decode.encode(image, encoding, **how)


def _features(options, classes):
  """TFDS' description of the result's records."""
  image = tfds.features.Image(
      shape=(*options.image_size, options.channels),
      encoding_format=options.encoding,
  )
  features = {'image': image, 'image/filename': tfds.features.Text()}
  if classes:
    # TFDS keeps the names as lines of text.
    names = [' '.join(folder.shown(name).split()) for name in classes]
    which = {'names': names}
    if '' in names or len(set(names)) < len(names):
      which = {'num_classes': len(names)}
    features['label'] = tfds.features.ClassLabel(**which)
  return tfds.features.FeaturesDict(features)


def _write_metadata(plan, out):
  """Describes the shards for TFDS; returns the number of images of each."""
  options = plan.options
  paths = [_shard_path(plan, out, shard) for shard in range(plan.shards)]
  lengths = [records.count(path) for path in paths]
  template = tfds.core.ShardedFileTemplate(
      data_dir=out, dataset_name=_NAME, split=options.name,
      filetype_suffix='array_record',
  )  # fmt: skip
  splits = [tfds.core.SplitInfo(
      name=options.name,
      shard_lengths=lengths,
      num_bytes=sum(map(os.path.getsize, paths)),
      filename_template=template,
  )]  # fmt: skip
  if os.path.exists(os.path.join(out, 'dataset_info.json')):
    others = tfds_images.builder_in(out).info.splits.values()
    splits += [other for other in others if other.name != options.name]
  with writing(out):
    tfds.folder_dataset.write_metadata(
        data_dir=out,
        features=_features(options, _source(options).classes),
        split_infos=splits,
        filename_template=template.replace(split=None),
        check_data=False,
        description=f'{options.data}, resized to'
        f' {words.dimensions(options.image_size)} by {options.resize}.',
    )
  return lengths


def _plan_path(out, options):
  return os.path.join(out, f'prepare-{options.name}.json')


def _shard_path(plan, out, shard):
  name = f'{_NAME}-{plan.options.name}.array_record'
  return os.path.join(out, f'{name}-{shard:05d}-of-{plan.shards:05d}')


@functools.cache
def _source(options):
  """What is prepared. Kept: a process of Beam writes many shards."""
  if options.data.startswith('folder:'):
    return _Folder(options)
  return _Tfds(options)


class _Folder:
  """Images of a folder.

  Attributes:
    identity: changes with the files.
    classes: names of the classes, possibly none.
  """

  def __init__(self, options):
    self._options = options
    path = options.data.partition(':')[2]
    self._listing = folder.list_images(path, options.labels)
    self.identity = self._listing.identity
    self.classes = self._listing.classes

  def __len__(self):
    return len(self._listing.names)

  def read(self, numbers):
    """Yields (name, image uint8 [H, W, C], label) of a range of images."""
    options, listing = self._options, self._listing
    part = dataclasses.replace(
        listing,
        names=[listing.names[i] for i in numbers],
        labels=listing.labels[list(numbers)],
    )
    for images, good, _ in folder.blocks(
        part, size=options.image_size, channels=options.channels,
        rule=options.resize, on_error=options.on_error,
    ):  # fmt: skip
      for image, i in zip(images, good):
        yield folder.shown(part.names[i]), image, part.labels[i]


class _Tfds:
  """Images of a data set of tensorflow-datasets, in the order of its files.

  Attributes: as of `_Folder`.
  """

  def __init__(self, options):
    self._split = tfds_images.Split(
        tfds_images.builder_of(options.data, options.data_dir),
        name=options.data,
        split=options.split,
        image_size=options.image_size,
        resize=options.resize,
        image_key=options.image_key,
        label_key=options.label_key,
    )
    self.identity = self._split.digest
    self.classes = self._split.class_names

  def __len__(self):
    return len(self._split)

  def read(self, numbers):
    names = (f'{number}' for number in numbers)
    for images, labels, _ in self._split.part(numbers):
      for image, label in zip(images, labels):
        yield next(names), image, label
