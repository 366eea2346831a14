"""Makes the .pth files that test_torch_file.py reads, with PyTorch 2.14.

    PYTHONPATH=tests python -m oracles.torch_file
"""

import collections
import pathlib

import torch

FOLDER = pathlib.Path(__file__).parent


def main():
  model = torch.nn.Sequential(
      collections.OrderedDict(
          conv=torch.nn.Conv2d(2, 3, 1, bias=False),
          bn=torch.nn.BatchNorm2d(3),
      )
  )
  state = model.state_dict()
  state['conv.weight'].copy_(torch.arange(6).reshape(3, 2, 1, 1) / 4)
  # A view with an offset, in the order of Fortran; its storage is shared.
  numbers = torch.arange(10, dtype=torch.float64)
  state['view'] = numbers[1:7].reshape(2, 3).T
  state['numbers'] = numbers
  state['half'] = torch.tensor([0.5, -2.0], dtype=torch.float16)
  state['mask'] = torch.tensor([True, False])
  state['empty'] = torch.zeros([0, 2])
  state['parameter'] = torch.nn.Parameter(torch.ones(2))
  torch.save(state, FOLDER / 'zip.pth')
  torch.save(
      state, FOLDER / 'legacy.pth', _use_new_zipfile_serialization=False
  )


if __name__ == '__main__':
  main()
