# `make help` lists the targets and the variables that they take.

CONFIG  ?= configs/gpt2_small.py
NAME    := $(basename $(notdir $(CONFIG)))
DATA    ?= data/$(NAME)
WORKDIR ?= runs/$(NAME)
PYTHON  ?= python3
VENV    ?= .venv
DEV     ?= dev
# transformers would import PyTorch where there is one, for seconds; only tests need it.
RUN     := USE_TORCH=0 $(VENV)/bin/python -m
# Files of tests stay together, and share fixtures; who has ended takes tests of others.
PYTEST  := $(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal

# What TensorFlow and transformers say at every start, from C++ and from Python.
export TF_CPP_MIN_LOG_LEVEL  ?= 2
export TRANSFORMERS_VERBOSITY ?= error
ifeq ($(wildcard /dev/nvidia*),)
export CUDA_VISIBLE_DEVICES ?= -1
endif
# What each open shard of a bucket holds in memory; TensorFlow's default is 64.
export GCS_READ_CACHE_BLOCK_SIZE_MB ?= 8
# Where there is no TPU, libtpu would ask a metadata server about it, for minutes.
ifeq ($(wildcard /dev/accel* /dev/vfio/*)$(TPU_NAME),)
export TPU_SKIP_MDS_QUERY ?= 1
endif

# Each environment has the libtpu that it needs. A notebook that has imported TensorFlow
# or JAX names its own to the programs that it starts.
unexport TPU_LIBRARY_PATH

flag = $(if $(2),--$(1)='$(subst ','\'',$(2))')

# Installs this package with some extras.
#
# On a TPU (VENV/.tpu) the wheel `tensorflow`, which the base and tf-keras ask for, and
# `tensorflow-tpu` hold the same files: whichever comes last wins, and removing one takes
# files of the other. So the first is removed, and the second laid anew (hence no bytecode
# before). transformers looks for TensorFlow by the names of wheels, and this is not among
# them: it is told.
comma := ,
install = echo 'installing $(or $(1),the base) into $(VENV)'; \
  if [ ! -e $(VENV)/.tpu ]; then \
    $(VENV)/bin/pip install --quiet --editable '.$(if $(1),[$(1)])'; \
  else \
    $(VENV)/bin/pip install --quiet --no-compile --editable '.[tpu$(if $(1),$(comma)$(1))]' && \
    $(VENV)/bin/pip uninstall --quiet --yes tensorflow && \
    $(VENV)/bin/pip install --quiet --no-deps --force-reinstall \
      "$$($(VENV)/bin/pip freeze | grep '^tensorflow.tpu==')" && \
    $(VENV)/bin/python -c 'import pathlib, sysconfig; \
      folder = pathlib.Path(sysconfig.get_path("purelib")); \
      told = "import os; os.environ.setdefault(\"FORCE_TF_AVAILABLE\", \"1\")\n"; \
      (folder / "tensorflow_tpu.pth").write_text(told)'; \
  fi

# Lists the devices; fails where they could not train on a TPU.
devices = $(VENV)/bin/python -c 'import tensorflow as tf, tf_keras; \
  from transformers import TFGPT2LMHeadModel; \
  found = tf.config.list_physical_devices(); \
  print(*found, sep="\n"); \
  raise SystemExit("TPU_SYSTEM" not in [device.device_type for device in found])'

.DEFAULT_GOAL := help
.PHONY: help install install-tpu quickstart preprocess inspect plan doctor train \
        train-forever evaluate generate export report test test-slow lint format \
        check benchmark benchmark-tpu clean

help:  ## this list
	@echo "make TARGET [VARIABLE=VALUE ...]"
	@sed -n 's/^\([a-z-]*\):.*## /  \1|/p' $(MAKEFILE_LIST) | \
	  awk -F'|' '{printf "  %-15s %s\n", $$1, $$2}'
	@echo "Variables: CONFIG=configs/NAME.py  INPUT=GLOB,...  VALIDATION_INPUT=GLOB,..."
	@echo "  DATA=FOLDER of the dataset (data/NAME)  WORKDIR=FOLDER of the run (runs/NAME)"
	@echo "  TPU=local|NAME|grpc://HOST:PORT|none; of plan: a type such as v3-8"
	@echo "  DEVICES=virtual CPU devices  VENV=FOLDER of the environment (.venv)"
	@echo "  PROMPT='text'  OUTPUT=of export (exports/NAME), or report (WORKDIR/report.html, of WORKDIRS report.html)"
	@echo "  WORKDIRS=FOLDER,... of a report on several  HUB=USER/NAME to push an export to"
	@echo "  ARGS='any other flag of the program'"
	@echo "  TEXT=FILE,...  TOKENIZER=FOLDER with GPT-2's, of the benchmark"

install: $(VENV)/.base  ## set up .venv

$(VENV)/.base: setup.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "error: Python 3.10 to 3.12 is needed: make PYTHON=python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@$(call install)
	@touch $@

# VENV/.tpu says what the environment is for, not that it is complete: `.base` does. It
# outlives a stopped installation, and a newer setup.py.
install-tpu:  ## set up .venv for the TPU of this machine, or repair it
	@mkdir -p $(VENV) && touch $(VENV)/.tpu && rm -f $(VENV)/.*plan
	@if $(VENV)/bin/pip show --quiet tensorflow 2>/dev/null || \
	  ! $(devices) >/dev/null 2>&1; then rm -f $(VENV)/.base; fi
	@$(MAKE) --silent --no-print-directory $(VENV)/.base
	@$(devices)

$(VENV)/.$(DEV): $(VENV)/.base
	@$(call install,$(DEV))
	@touch $@

quickstart: $(VENV)/.base  ## GPT-2 learns from the text inside Python, here, in minutes
	$(RUN) data_pipeline.preprocess --config=configs/quickstart.py \
	  --output_dir=data/quickstart
	$(RUN) trainer.train --config=configs/quickstart.py --data_dir=data/quickstart \
	  --workdir=runs/quickstart --num_virtual_devices=2
	$(RUN) trainer.generate --workdir=runs/quickstart --prompt='Return the' \
	  --num_return_sequences=2 --temperature=0.7 --top_k=40
	$(RUN) trainer.evaluate --workdir=runs/quickstart --data_dir=data/quickstart
	$(RUN) trainer.report --workdir=runs/quickstart --output=runs/quickstart/report.html

preprocess: $(VENV)/.base  ## text -> dataset: CONFIG= INPUT= DATA=
	$(RUN) data_pipeline.preprocess --config=$(CONFIG) --output_dir=$(DATA) \
	  $(call flag,input,$(INPUT)) $(call flag,validation_input,$(VALIDATION_INPUT)) $(ARGS)

inspect: $(VENV)/.base  ## verify every record of a dataset, print examples: DATA=
	$(RUN) tfrecords.inspect --data_dir=$(DATA) $(ARGS)

$(VENV)/.plan: $(VENV)/.base
	@if [ -e $(VENV)/.tpu ]; then \
	  echo "error: The environment of a TPU and its compiler's must be two: each needs" \
	    "another libtpu. Received: $(VENV), made by \`make install-tpu\`. Use" \
	    "\`make $(MAKECMDGOALS) VENV=.venv-plan TPU=...\`." >&2; exit 2; fi
	@$(call install,plan)
	@touch $@

plan: $(VENV)/.plan  ## whether and how it fits a TPU, by its compiler: CONFIG= TPU=v3-8
	$(RUN) trainer.plan --config=$(CONFIG) --workdir=$(WORKDIR) \
	  $(call flag,tpu_type,$(TPU)) --data_dir=$(DATA) $(ARGS)

doctor: $(VENV)/.base  ## this machine's hardware, and what CONFIG= expects: TPU= DEVICES=
	$(RUN) trainer.doctor --config=$(CONFIG) \
	  $(call flag,tpu,$(TPU)) $(call flag,num_virtual_devices,$(DEVICES)) $(ARGS)

train: $(VENV)/.base  ## dataset -> model: CONFIG= DATA= WORKDIR= TPU= DEVICES=
	$(RUN) trainer.train --config=$(CONFIG) --data_dir=$(DATA) --workdir=$(WORKDIR) \
	  $(call flag,tpu,$(TPU)) $(call flag,num_virtual_devices,$(DEVICES)) $(ARGS)

train-forever: $(VENV)/.base  ## the same, started again whenever it is taken away
	$(RUN) trainer.forever --config=$(CONFIG) --data_dir=$(DATA) --workdir=$(WORKDIR) \
	  $(call flag,tpu,$(TPU)) $(call flag,num_virtual_devices,$(DEVICES)) $(ARGS)

evaluate: $(VENV)/.base  ## perplexity: DATA= WORKDIR= TPU=
	$(RUN) trainer.evaluate --workdir=$(WORKDIR) --data_dir=$(DATA) \
	  $(call flag,tpu,$(TPU)) $(call flag,num_virtual_devices,$(DEVICES)) $(ARGS)

generate: $(VENV)/.base  ## text: WORKDIR= PROMPT=
	$(RUN) trainer.generate --workdir=$(WORKDIR) $(call flag,prompt,$(PROMPT)) $(ARGS)

export: $(VENV)/.base  ## the model as a Hugging Face folder: WORKDIR= OUTPUT= HUB=
	$(RUN) trainer.export --workdir=$(WORKDIR) --output_dir=$(or $(OUTPUT),exports/$(NAME)) \
	  $(call flag,push_to_hub,$(HUB)) $(ARGS)

report: $(VENV)/.base  ## one HTML page on a run, or on several: WORKDIR= WORKDIRS= OUTPUT=
	$(RUN) trainer.report --output=$(or $(OUTPUT),$(if $(WORKDIRS),report.html,$(WORKDIR)/report.html)) \
	  $(if $(WORKDIRS),$(call flag,workdirs,$(WORKDIRS)),--workdir=$(WORKDIR)) $(ARGS)

test: $(VENV)/.$(DEV)  ## the tests, but for the slow ones
	$(PYTEST)

test-slow: $(VENV)/.$(DEV)  ## the slow tests
	$(PYTEST) -m slow

lint: $(VENV)/.$(DEV)  ## format, lint and types, checked
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(VENV)/.$(DEV)  ## rewrite the code in the project's format
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

check: lint test  ## what CI runs first

$(VENV)/.benchmark: $(VENV)/.$(DEV)
	@$(call install,benchmark)
	@touch $@

benchmark: $(VENV)/.benchmark  ## beside the usual way; takes long: TEXT= TOKENIZER=
	$(VENV)/bin/python benchmarks/preprocessing.py --text=$(TEXT) --tokenizer=$(TOKENIZER)
	$(VENV)/bin/python benchmarks/memory.py --text=$(TEXT) --tokenizer=$(TOKENIZER)
	$(VENV)/bin/python benchmarks/reading.py
	$(VENV)/bin/python benchmarks/saving.py
	PYTHONPATH=. $(VENV)/bin/python benchmarks/bucket_reading.py

benchmark-tpu: $(VENV)/.plan  ## the step's memory on TPUs, by their compiler
	$(VENV)/bin/python benchmarks/tpu_step.py $(ARGS)

clean:  ## remove .venv, .venv-plan and caches; data/ and runs/ stay
	rm -rf $(VENV) .venv-plan .pytest_cache .ruff_cache .mypy_cache *.egg-info build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
