"""Files that appear whole or not at all, whoever else writes them."""

import pytest

from ddpm.runtime import files
from ddpm.runtime.errors import UserError


def test_of_two_that_write_at_once_the_last_one_stays(tmp_path):
  path = tmp_path / 'folder' / 'a'
  with files.open_atomically(str(path)) as first:
    first.write(b'first')
    with files.open_atomically(str(path)) as second:
      second.write(b'second, and longer')
    assert path.read_bytes() == b'second, and longer'
  assert path.read_bytes() == b'first'
  assert list(path.parent.iterdir()) == [path]


def test_what_fails_leaves_nothing(tmp_path):
  path = tmp_path / 'a'
  path.write_bytes(b'before')
  with pytest.raises(KeyError), files.open_atomically(str(path)) as f:
    f.write(b'half')
    raise KeyError
  assert path.read_bytes() == b'before'
  assert list(tmp_path.iterdir()) == [path]
  with pytest.raises(UserError, match='a/b cannot be written: '):
    files.write_file(str(path / 'b'), b'')
