# `make help` lists the targets and the variables that they take.
#
# The value of a variable reaches the program as it was typed, with its spaces, quotes,
# `$` and line ends. Only ARGS is read by the shell, since it holds any number of flags.

PYTHON ?= python3
VENV   ?= .venv
DEV    ?= dev
CONFIG ?= configs/gpt2_small.py

define newline


endef
empty :=
space := $(empty) $(empty)

# The shell word that stands for the value of variable $(1), or for $(2) where it is empty.
typed = '$(subst $(newline),'"$$NEWLINE"',$(subst ','\'',$(or $(value $(1)),$(2))))'
export NEWLINE := $(newline)
# The flag --$(1) with the value of variable $(2); nothing where it is empty.
flag = $(if $(value $(2)),--$(1)=$(call typed,$(2)))

# The config's file name without folder and ending; `?` stands for its spaces meanwhile.
NAME    = $(subst ?,$(space),$(basename $(notdir $(subst $(space),?,$(value CONFIG)))))
config  = $(call typed,CONFIG)
data    = $(call typed,DATA,data/$(NAME))
workdir = $(call typed,WORKDIR,runs/$(NAME))
devices = $(call flag,tpu,TPU) $(call flag,num_virtual_devices,DEVICES)
args    = $(value ARGS)

RUN     = $(VENV)/bin/python -m
# A file of tests stays in one process: its tests share fixtures, and the plans, which take
# gigabytes, never run beside each other. Files with few tests, which are the long ones of
# the slow tests, do not wait for the end.
PYTEST  = $(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile \
          --no-loadscope-reorder --durations 15
# What the scripts of an installation read.
INSTALLER = PYTHON=$(call typed,PYTHON) CONSTRAINTS=$(call typed,CONSTRAINTS)

# A notebook's kernel exports its own libtpu, and a matplotlib backend that only Jupyter has.
unexport TPU_LIBRARY_PATH MPLBACKEND

.DEFAULT_GOAL := help
.PHONY: help install install-tpu quickstart preprocess inspect advise plan doctor \
        train train-forever study evaluate generate chat demo predict export report \
        test test-slow lint format check benchmark benchmark-tpu clean

help:  ## print this list
	@echo "make TARGET [VARIABLE=VALUE ...]"
	@sed -n 's/^\([a-z-]*\):.*## /  \1|/p' $(firstword $(MAKEFILE_LIST)) | \
	  awk -F'|' '{printf "  %-15s %s\n", $$1, $$2}'
	@echo "Variables:"
	@sed -n 's/^#: /  /p' $(firstword $(MAKEFILE_LIST))

#: CONFIG=FILE of configs/ (configs/gpt2_small.py)   INPUT=GLOB,...   VALIDATION_INPUT=GLOB,...
#: DATA=FOLDER of the dataset (data/NAME)   WORKDIR=FOLDER of the run (runs/NAME)
#: TPU=local|NAME|grpc://HOST:PORT|none; for plan a type such as v3-8
#: DEVICES=NUMBER of virtual CPU devices   PROMPT='text'   PORT=NUMBER of the demo's page
#: OUTPUT=FOLDER of an export (exports/NAME), or FILE of a report (WORKDIR/report.html)
#: WORKDIRS=FOLDER,... of a report on several runs   HUB=USER/NAME to push an export to
#: ARGS='any other flags of the program', quoted as in a shell
#: VENV=FOLDER of the environment (.venv)   PYTHON=python3.11 creates it
#: CONSTRAINTS=constraints.txt installs the versions that were tried together
#: TEXT='text' to predict the label of; for the benchmark, TEXT=FILE,... and
#: TOKENIZER=FOLDER with GPT-2's

install: $(VENV)/.base  ## set up .venv

install-tpu:  ## set up .venv for the TPU of this machine, or repair it
	@$(INSTALLER) sh scripts/install_tpu.sh $(VENV)

quickstart: $(VENV)/.base  ## train on the text inside Python, here, in minutes
	$(RUN) data_pipeline.preprocess --config=configs/quickstart.py \
	  --output_dir=data/quickstart
	$(RUN) trainer.train --config=configs/quickstart.py --data_dir=data/quickstart \
	  --workdir=runs/quickstart --num_virtual_devices=2
	$(RUN) trainer.generate --workdir=runs/quickstart --prompt='Return the' \
	  --num_return_sequences=2 --temperature=0.7 --top_k=40
	$(RUN) trainer.evaluate --workdir=runs/quickstart --data_dir=data/quickstart
	$(RUN) trainer.report --workdir=runs/quickstart --output=runs/quickstart/report.html

preprocess: $(VENV)/.base  ## write a dataset from text: CONFIG= INPUT= DATA=
	$(RUN) data_pipeline.preprocess --config=$(config) --output_dir=$(data) \
	  $(call flag,input,INPUT) $(call flag,validation_input,VALIDATION_INPUT) $(args)

inspect: $(VENV)/.base  ## verify every record of a dataset, print examples: DATA=
	$(RUN) tfrecords.inspect --data_dir=$(data) $(args)

advise: $(VENV)/.plan  ## say how to train on a dataset, and what it costs: DATA= TPU=v5e-8
	$(RUN) trainer.advise --data_dir=$(data) $(call flag,tpu_type,TPU) $(args)

plan: $(VENV)/.plan  ## compile the step for a TPU: does it fit? CONFIG= TPU=v3-8
	$(RUN) trainer.plan --config=$(config) --workdir=$(workdir) \
	  $(call flag,tpu_type,TPU) --data_dir=$(data) $(args)

doctor: $(VENV)/.base  ## check this machine's hardware against CONFIG=: TPU= DEVICES=
	@sh scripts/doctor.sh $(VENV) --config=$(config) $(devices) $(args)

train: $(VENV)/.base  ## train, or continue a run: CONFIG= DATA= WORKDIR= TPU= DEVICES=
	$(RUN) trainer.train --config=$(config) --data_dir=$(data) --workdir=$(workdir) \
	  $(devices) $(args)

train-forever: $(VENV)/.base  ## train, and start again after each preemption
	$(RUN) trainer.forever --config=$(config) --data_dir=$(data) --workdir=$(workdir) \
	  $(devices) $(args)

study: $(VENV)/.base  ## train and compare a grid: ARGS='--grid.model.n_layer=2,4'
	$(RUN) trainer.study --config=$(config) --data_dir=$(data) \
	  --workdir=$(call typed,WORKDIR,studies/$(NAME)) $(devices) $(args)

evaluate: $(VENV)/.base  ## measure the perplexity of a run: DATA= WORKDIR= TPU=
	$(RUN) trainer.evaluate --workdir=$(workdir) --data_dir=$(data) $(devices) $(args)

generate: $(VENV)/.base  ## sample text from a run: WORKDIR= PROMPT=
	$(RUN) trainer.generate --workdir=$(workdir) $(call flag,prompt,PROMPT) $(args)

chat: $(VENV)/.base  ## ask for prompts and continue them: WORKDIR=
	$(RUN) trainer.generate --workdir=$(workdir) --interactive $(args)

demo: $(VENV)/.base  ## show a page that continues prompts, here: WORKDIR= PORT=7860
	$(RUN) trainer.demo --workdir=$(workdir) $(call flag,port,PORT) $(args)

predict: $(VENV)/.base  ## label a text by a classifier: WORKDIR= TEXT=
	$(RUN) trainer.predict --workdir=$(workdir) $(call flag,text,TEXT) $(args)

export: $(VENV)/.base  ## write the model as a Hugging Face folder: WORKDIR= OUTPUT= HUB=
	$(RUN) trainer.export --workdir=$(workdir) \
	  --output_dir=$(call typed,OUTPUT,exports/$(NAME)) $(call flag,push_to_hub,HUB) $(args)

report: $(VENV)/.base  ## write one HTML page on a run, or on several: WORKDIR= WORKDIRS=
	$(RUN) trainer.report $(if $(value WORKDIRS),$(call flag,workdirs,WORKDIRS) \
	  --output=$(call typed,OUTPUT,report.html),--workdir=$(workdir) \
	  --output=$(call typed,OUTPUT,$(or $(value WORKDIR),runs/$(NAME))/report.html)) $(args)

test: $(VENV)/.$(DEV)  ## run the tests, but for the slow ones
	$(PYTEST)

test-slow: $(VENV)/.$(DEV)  ## run the slow tests
	$(PYTEST) -m "slow and not alone"
	$(VENV)/bin/python -m pytest -m alone

lint: $(VENV)/.$(DEV)  ## check format, lint and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(VENV)/.$(DEV)  ## rewrite the code in the project's format
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

check: lint test  ## run lint and test, as CI does first

benchmark: $(VENV)/.benchmark  ## compare with peers, briefly: TEXT= TOKENIZER=
	$(VENV)/bin/python -m benchmarks.all $(call flag,text,TEXT) $(call flag,tokenizer,TOKENIZER) $(args)

benchmark-tpu: $(VENV)/.plan  ## compile the step for TPUs, beside plain TFGPT2
	$(VENV)/bin/python benchmarks/tpu_step.py $(args)

clean:  ## remove .venv, .venv-plan and caches; data/ and runs/ stay
	rm -rf $(VENV) .venv-plan .pytest_cache .ruff_cache .mypy_cache *.egg-info build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp in VENV says that an installation was finished.
$(VENV)/.base: setup.py
	@$(INSTALLER) sh scripts/install.sh $(VENV)
	@touch $@

$(VENV)/.$(DEV): $(VENV)/.base
	@$(INSTALLER) sh scripts/install.sh $(VENV) $(DEV)
	@touch $@

$(VENV)/.benchmark: $(VENV)/.$(DEV)
	@$(INSTALLER) sh scripts/install.sh $(VENV) benchmark
	@touch $@

$(VENV)/.plan: $(VENV)/.base
	@if [ -e $(VENV)/.tpu ]; then \
	  echo "error: The environment of a TPU and its compiler's must be two: each needs" \
	    "another libtpu. Received: $(VENV), made by \`make install-tpu\`. Use" \
	    "\`make $(MAKECMDGOALS) VENV=.venv-plan TPU=...\`." >&2; exit 2; fi
	@$(INSTALLER) sh scripts/install.sh $(VENV) plan
	@touch $@
