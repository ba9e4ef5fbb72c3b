# `make help` lists the targets and the variables that they take.

CONFIG  ?= configs/gpt2_small.py
NAME    := $(basename $(notdir $(CONFIG)))
DATA    ?= data/$(NAME)
WORKDIR ?= runs/$(NAME)
PYTHON  ?= python3
VENV    ?= .venv
DEV     ?= dev
RUN     := $(VENV)/bin/python -m

# What TensorFlow and transformers say at every start, from C++ and from Python.
export TF_CPP_MIN_LOG_LEVEL  ?= 2
export TRANSFORMERS_VERBOSITY ?= error
ifeq ($(wildcard /dev/nvidia*),)
export CUDA_VISIBLE_DEVICES ?= -1
endif

flag = $(if $(2),--$(1)='$(subst ','\'',$(2))')

.DEFAULT_GOAL := help
.PHONY: help install quickstart preprocess inspect train evaluate generate test \
        test-slow lint format check benchmark clean

help:  ## this list
	@echo "make TARGET [VARIABLE=VALUE ...]"
	@sed -n 's/^\([a-z-]*\):.*## /  \1|/p' $(MAKEFILE_LIST) | \
	  awk -F'|' '{printf "  %-12s %s\n", $$1, $$2}'
	@echo "Variables: CONFIG=configs/NAME.py  INPUT=GLOB,...  VALIDATION_INPUT=GLOB,..."
	@echo "  DATA=FOLDER of the dataset (data/NAME)  WORKDIR=FOLDER of the run (runs/NAME)"
	@echo "  TPU=local|NAME|grpc://HOST:PORT|none  DEVICES=virtual CPU devices"
	@echo "  PROMPT='text'  ARGS='any other flag of the program'"
	@echo "  TEXT=FILE,...  TOKENIZER=FOLDER with GPT-2's, of the benchmark"

install: $(VENV)/.base  ## set up .venv

$(VENV)/.base: setup.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "error: Python 3.10 to 3.12 is needed: make PYTHON=python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable .
	@touch $@

$(VENV)/.$(DEV): $(VENV)/.base
	$(VENV)/bin/pip install --quiet --editable '.[$(DEV)]'
	@touch $@

quickstart: $(VENV)/.base  ## GPT-2 learns from the text inside Python, here, in minutes
	$(RUN) data_pipeline.preprocess --config=configs/quickstart.py \
	  --output_dir=data/quickstart
	$(RUN) trainer.train --config=configs/quickstart.py --data_dir=data/quickstart \
	  --workdir=runs/quickstart --num_virtual_devices=2
	$(RUN) trainer.generate --workdir=runs/quickstart --prompt='Return the' \
	  --num_return_sequences=2 --temperature=0.7 --top_k=40

preprocess: $(VENV)/.base  ## text -> dataset: CONFIG= INPUT= DATA=
	$(RUN) data_pipeline.preprocess --config=$(CONFIG) --output_dir=$(DATA) \
	  $(call flag,input,$(INPUT)) $(call flag,validation_input,$(VALIDATION_INPUT)) $(ARGS)

inspect: $(VENV)/.base  ## verify every record of a dataset, print examples: DATA=
	$(RUN) tfrecords.inspect --data_dir=$(DATA) $(ARGS)

train: $(VENV)/.base  ## dataset -> model: CONFIG= DATA= WORKDIR= TPU= DEVICES=
	$(RUN) trainer.train --config=$(CONFIG) --data_dir=$(DATA) --workdir=$(WORKDIR) \
	  $(call flag,tpu,$(TPU)) $(call flag,num_virtual_devices,$(DEVICES)) $(ARGS)

evaluate: $(VENV)/.base  ## perplexity: DATA= WORKDIR= TPU=
	$(RUN) trainer.evaluate --workdir=$(WORKDIR) --data_dir=$(DATA) \
	  $(call flag,tpu,$(TPU)) $(call flag,num_virtual_devices,$(DEVICES)) $(ARGS)

generate: $(VENV)/.base  ## text: WORKDIR= PROMPT=
	$(RUN) trainer.generate --workdir=$(WORKDIR) $(call flag,prompt,$(PROMPT)) $(ARGS)

test: $(VENV)/.$(DEV)  ## the tests, but for the slow ones
	$(RUN) pytest

test-slow: $(VENV)/.$(DEV)  ## the slow tests
	$(RUN) pytest -m slow

lint: $(VENV)/.$(DEV)  ## format, lint and types, checked
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(VENV)/.$(DEV)  ## rewrite the code in the project's format
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

check: lint test  ## what CI runs first

$(VENV)/.benchmark: $(VENV)/.base
	$(VENV)/bin/pip install --quiet --editable '.[benchmark]'
	@touch $@

benchmark: $(VENV)/.benchmark  ## beside the usual way; takes long: TEXT= TOKENIZER=
	$(VENV)/bin/python benchmarks/preprocessing.py --text=$(TEXT) --tokenizer=$(TOKENIZER)
	$(VENV)/bin/python benchmarks/memory.py --text=$(TEXT) --tokenizer=$(TOKENIZER)
	$(VENV)/bin/python benchmarks/reading.py

clean:  ## remove .venv and caches; data/ and runs/ stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache *.egg-info build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
