VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXPORT := .venv-export
EXPORT_READY := $(EXPORT)/.ready
DOCS := .venv-docs
DOCS_READY := $(DOCS)/.ready
CUDA ?= 120
CUDA_LOCKS := $(wildcard requirements-cuda*.lock)
IS_310 := -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 10))'

PROFILE ?= demo
SEEDS ?= 1
VARIANT_SEEDS ?= 1
SET ?=
TABLES := table2 table3 tableA1 tableA2 tableA3
FIGURES := figure3 figure4 figure5 figure6 figure7 figure8 figure9 figure10 figureA1 figureA2
GROUP_tables := $(TABLES)
GROUP_figures := $(FIGURES)
GROUP_paper := $(TABLES) $(FIGURES)
BESIDE := controls architectures
STUDIES := $(TABLES) $(FIGURES) $(BESIDE) tables figures paper

.NOTPARALLEL: # what needs both cores takes both
.PHONY: help setup setup-cuda setup-export check test test-null-gpu test-gpu test-slow test-faults test-export parity lint reference \
    demo neck-study pretrain evaluation-study table1 filter-study report results claims pilot study docs notebook test-docs test-page bench $(STUDIES) data/digits data/digits_400 data/digits_1600 \
    clean

help: ## This list
	@sed -n 's/^\([a-zA-Z0-9-]*\):.*## /make \1|/p' Makefile | while IFS='|' read -r target text; do printf '%-22s %s\n' "$$target" "$$text"; done

setup: $(READY) ## Make .venv with Python 3.10 and the exact versions of requirements.lock

# The two locks hold files of the same names, so one goes before the other comes. Only what the lock names is installed.
setup-cuda: $(READY) ## Add NNabla's CUDA extension and NVIDIA's libraries to .venv (3.3 GB); CUDA=116 for older drivers
	@case "$(CUDA)" in 116 | 120) ;; 110) \
	    echo "error: PyPI has no libraries of CUDA 11.0 with cuDNN 8.0: use CUDA=116, or nnabla-ext-cuda110 with your system's libraries" >&2; exit 2 ;; \
	    *) echo "error: CUDA must be 120 (a driver of 525.60 or newer) or 116 (450.80), got '$(CUDA)'" >&2; exit 2 ;; esac
	@echo "installing requirements-cuda$(CUDA).lock (3 GB, a few minutes)"
	@for lock in $(filter-out requirements-cuda$(CUDA).lock,$(CUDA_LOCKS)); do \
	    $(BIN)/python -m pip uninstall -qq --disable-pip-version-check -y -r "$$lock"; done
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps -r requirements-cuda$(CUDA).lock
	@$(BIN)/python -c 'from nnabla_detofa.tools import doctor; print(*map(doctor.lines, doctor.gpu()), sep="\n")'

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: lint ## Check style and types, and run the tests but those that take seconds
	$(PYTEST) -m "not slow and not thorough"

test: $(READY) ## Run the tests (5 to 10 minutes)
	$(PYTEST) -m "not slow"

test-slow: $(READY) ## Run the tests that take minutes (6 in all)
	$(BIN)/python -m pytest -m slow -s

test-faults: $(READY) ## Kill runs at random moments, compare two processes with one, try malformed input (13 minutes)
	$(BIN)/python tests/faults_by_kill.py
	$(BIN)/python -m pytest -v tests/backend/test_ranks.py
	$(BIN)/python tests/bad_input.py

test-docs: $(READY) ## Run the commands and the code of the documents, made short where they take long (8 minutes)
	$(BIN)/python tests/docs.py

parity: $(READY) ## Compare with numbers of independent implementations, and print each error (15 seconds)
	$(BIN)/python tests/parity.py

test-null-gpu: $(READY) ## Run the CUDA extension without a GPU on counting stand-ins (gcc, binutils; 350 MB, 10 minutes)
	$(BIN)/python tests/null_gpu/check.py

test-gpu: $(READY) ## Compare a GPU with the CPU, and measure steps, memory and paths on it; after setup-cuda (5 minutes)
	$(BIN)/python tests/gpu_check.py

lint: $(READY) ## Check style, formatting, layers and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

reference: $(READY) ## Write configs/schema.json, docs/reference/ and README's tables from code and results
	$(BIN)/python -m nnabla_detofa.config.reference
	$(BIN)/python -m nnabla_detofa.cli.reference

docs: $(DOCS_READY) ## Build the site of the documents in site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict -q -d site
	@echo "written: site/index.html; $(DOCS)/bin/mkdocs serve shows it while you write"

demo: data/digits ## Run Algorithm 1 on the digits data set and show what it finds, in runs/demo (4 to 10 minutes)
	$(BIN)/python -m nnabla_detofa train configs/digits_detofa.json -o runs/demo --processes auto
	$(BIN)/python -m nnabla_detofa report runs/demo

notebook: $(READY) ## Run the notebook docs/start/tour.ipynb on the demo's run, and store its outputs (half a minute)
	$(BIN)/python tests/notebook.py docs/start/tour.ipynb

pretrain: data/digits ## Train the weights that the demo and Figure 7 start from (30 minutes)
	$(BIN)/python -m nnabla_detofa train configs/digits_pretrain.json -o runs/digits_pretrain --processes auto
	$(BIN)/python -m nnabla_detofa export-weights runs/digits_pretrain configs/weights
	$(BIN)/python -m nnabla_detofa train configs/digits_pretrain_fullnet.json -o runs/digits_pretrain_fullnet --processes auto
	$(BIN)/python -m nnabla_detofa export-weights runs/digits_pretrain_fullnet configs/weights

evaluation-study: $(READY) ## Measure how many images the evaluation of a path needs; after the demo (10 minutes); writes docs/concepts/path-evaluation/
	$(BIN)/python -m nnabla_detofa image-count-study runs/demo --weights warm_up/weights.h5 --per-bucket 6 --bn-images 128 \
	    -o docs/concepts/path-evaluation/demo.md
	$(BIN)/python -m nnabla_detofa image-count-study -f configs/digits_pretrain.json \
	    --weights configs/weights/digits_supernet.h5 --per-bucket 6 --bn-images 256 -o docs/concepts/path-evaluation/digits_pretrain.md

table1: $(READY) ## Table 1, the sizes of the search spaces, with exact counts; writes results/table1/
	$(BIN)/python -m nnabla_detofa paper table1

table2: ## Cost of each method
table3: ## The path filter under each setting
tableA1: ## Search spaces of progressive shrinking
tableA2: ## Epochs of progressive shrinking
tableA3: ## The path filter at other pruning ratios
figure3: ## Pruned operations
figure4: ## Random paths of each bucket, kept or pruned
figure5: ## The best path of each method under each budget
figure6: ## Random paths of each FLOPs bucket
figure7: ## Initial weights of the supernet
figure8: ## Operation scores before and after the transfer
figure9: ## Strategies of operation pruning
figure10: ## Ratios of path and operation pruning
figureA1: ## The same as Figure 7, for COCO
figureA2: ## Path pruning: none, uniform, by score
controls: ## Gains from more steps, from training and from the choice of paths (not in the paper)
architectures: ## Depth and width of the found subnets (section 4.2)
tables: table1 ## All tables
figures: ## All figures
paper: table1 ## All tables and figures

# PROFILE=demo, bccd, study, plateau or paper; SEEDS=3 for the seeds 0, 1 and 2 where several seeds count; SET="key=value ..." overrides keys
# of the data sets' configs. They reach the program as they are, quotes and all.
export SET
# A string as one word of the shell, with any characters.
quoted = '$(subst ','\'',$(1))'
DATA_OF_study := data/digits data/digits_1600
DATA_OF_plateau := data/digits data/digits_400
DATA_OF_demo := data/digits
DATA_OF_bccd := data/digits
$(STUDIES): $(or $(DATA_OF_$(PROFILE)),$(READY))
	$(BIN)/python -m nnabla_detofa paper $(or $(GROUP_$@),$@) --profile $(call quoted,$(PROFILE)) --seeds $(call quoted,$(SEEDS)) $(if $(KEPT),--kept) $(if $(SET),--set "$$SET")

pilot: data/digits ## Choose the regime of the study on a grid (PROFILE=study); hours; resumes
	$(BIN)/python -m nnabla_detofa paper pilot --profile $(if $(filter demo,$(PROFILE)),study,$(call quoted,$(PROFILE)))

study: data/digits data/digits_1600 ## The study: methods and controls of seeds 0 to 2, variants of VARIANT_SEEDS=1, results (hours)
	$(BIN)/python -m nnabla_detofa paper table2 figure5 architectures --profile study --seeds 3 $(if $(KEPT),--kept)
	$(BIN)/python -m nnabla_detofa paper controls table3 --profile study --seeds 3 $(if $(KEPT),--kept)
	$(BIN)/python -m nnabla_detofa paper results claims --profile study
	$(BIN)/python -m nnabla_detofa paper $(TABLES) $(FIGURES) --profile study --seeds $(call quoted,$(VARIANT_SEEDS)) $(if $(KEPT),--kept)
	$(BIN)/python -m nnabla_detofa paper results --profile study

NECK_SEEDS = 0 1 2
NECK_FLAGS =
neck-study: data/digits ## Pareto fronts with an elastic neck and without, equal steps, NECK_SEEDS="0 1 2"; results/neck/ (2 hours)
	mkdir -p results/neck
	for seed in $(NECK_SEEDS); do \
	  $(BIN)/python -m nnabla_detofa train configs/digits_detofa.json -o runs/neck/backbone_$$seed --processes auto \
	    hparams.filter.weights=null args.seed=$$seed $(NECK_FLAGS) && \
	  $(BIN)/python -m nnabla_detofa train configs/digits_neck.json -o runs/neck/neck_$$seed --processes auto \
	    args.seed=$$seed $(NECK_FLAGS) && \
	  $(BIN)/python -m nnabla_detofa compare runs/neck/backbone_$$seed runs/neck/neck_$$seed \
	    -o results/neck/seed_$$seed.png > results/neck/seed_$$seed.md && \
	  sed -i '/^written: /,$$d' results/neck/seed_$$seed.md || exit 1; \
	done

# KEPT=1 looks for no runs and takes what results/<profile>/runs holds; above it starts only runs that are not held there
RESULTS_FLAGS = --profile $(call quoted,$(PROFILE)) $(if $(filter-out 1,$(SEEDS)),--seeds $(call quoted,$(SEEDS))) $(if $(KEPT),--kept)
results: $(READY) ## All tables, figures, claims and the page of PROFILE, from the archived files of its runs alone (a minute)
	$(if $(filter demo,$(PROFILE)),$(if $(wildcard runs/demo/summary.json),$(BIN)/python -m nnabla_detofa report runs/demo -o results/demo))
	$(BIN)/python -m nnabla_detofa paper results $(RESULTS_FLAGS)

claims: $(READY) ## The paper's claims C1 to C8 with intervals and verdicts, from the archived files of runs
	$(BIN)/python -m nnabla_detofa paper results claims $(RESULTS_FLAGS)

filter-study: data/digits ## Measure how many paths the path filter needs, compared with other rankings, on pilot supernets that it trains (hours)
	$(BIN)/python -m nnabla_detofa paper filter-study --profile $(call quoted,$(PROFILE)) $(if $(KEPT),--kept)

report: $(READY) ## All results of PROFILE as one HTML page, results/<profile>/report.html
	$(BIN)/python -m nnabla_detofa paper page --profile $(call quoted,$(PROFILE))

test-page: $(READY) ## Open that page in Chromium at the widths of a phone and a desk; screenshots are in runs/page/
	mkdir -p runs/page
	$(BIN)/python -m nnabla_detofa paper page --profile $(call quoted,$(PROFILE)) -o runs/page/report.html
	$(BIN)/python tests/page_in_browser.py runs/page/report.html

data/digits: $(READY) # written once; a set that is there is only checked
	$(BIN)/python -m nnabla_detofa data digits --root data/digits

data/digits_400 data/digits_1600: $(READY)
	$(BIN)/python -m nnabla_detofa data digits --root $@ --train $(@:data/digits_%=%) --val 256 --test 2000 --no-crops

# ONLY="P1 P3" takes these measures alone; UPSTREAM=folder of NNablaNAS' sources adds P2.
bench: data/digits ## Measure the speed of each part relative to its bound; writes results/bench.json (some minutes)
	@$(BIN)/python tests/bench $(if $(ONLY),--only $(ONLY)) $(if $(UPSTREAM),--upstream $(call quoted,$(UPSTREAM)))

setup-export: $(EXPORT_READY) ## Make .venv-export, which writes and runs ONNX (2.3 GB, a few minutes)

test-export: $(EXPORT_READY) ## Run the tests of exported detectors, ONNX included
	$(BIN)/python -m pytest tests/tools/test_export.py

clean: ## Remove the environments and the files of tools; data/ and runs/ stay
	rm -rf $(VENV) $(EXPORT) $(DOCS) site build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A python3.10 on the PATH may be a pyenv shim that fails, so every candidate is tried by running it. The lock goes in
# first and our package after it, without dependencies: the command nnabla_nas must be ours, not nnabla-nas' own.
# nnabla loads MPI as libmpi.so, which Open MPI's wheel has as a text for linkers beside the library itself.
$(READY): requirements.lock setup.py
	@if ! $(BIN)/python $(IS_310) 2>/dev/null; then \
	    found=; \
	    for python in "$$PYTHON" python3.10 "$$HOME"/.pyenv/versions/3.10*/bin/python "$$PYENV_ROOT"/versions/3.10*/bin/python; do \
	        if "$$python" $(IS_310) 2>/dev/null; then found=$$python; break; fi; \
	    done; \
	    if [ -z "$$found" ] && command -v uv >/dev/null && uv python install -q 3.10; then found=$$(uv python find 3.10); fi; \
	    if [ -z "$$found" ]; then \
	        echo "error: Python 3.10 is needed: name one with PYTHON=/path/to/python3.10, install it with pyenv, or install uv, which fetches it" >&2; \
	        exit 2; \
	    fi; \
	    echo "making $(VENV) with $$found"; \
	    "$$found" -m venv --clear $(VENV); \
	fi
	@echo "installing requirements.lock (about a minute)"
	@grep -E '^(pip|setuptools|wheel)==' requirements.lock > $(VENV)/tools.txt
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r $(VENV)/tools.txt
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-build-isolation -r requirements.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-build-isolation --no-deps -e .
	@ln -sf libmpi.so.40 $(VENV)/lib/libmpi.so
	@grep -q nnabla_detofa $(BIN)/nnabla_nas || { echo "error: $(BIN)/nnabla_nas is not the command of this package" >&2; exit 2; }
	@touch $(READY)

# nnabla-converter brings TensorFlow and onnx, whose versions would hold back everything else: so an environment of its own.
$(EXPORT_READY): requirements-export.lock | $(READY)
	@echo "installing requirements-export.lock into $(EXPORT) (2.3 GB, a few minutes)"
	@$(BIN)/python -m venv --clear $(EXPORT)
	@$(EXPORT)/bin/python -m pip install -qq --disable-pip-version-check -r requirements-export.lock
	@touch $(EXPORT_READY)

# mkdocs stays out of .venv, so that make setup stays fast.
$(DOCS_READY): requirements-docs.lock | $(READY)
	@echo "installing requirements-docs.lock into $(DOCS) (a quarter of a minute)"
	@$(BIN)/python -m venv --clear $(DOCS)
	@$(DOCS)/bin/python -m pip install -qq --disable-pip-version-check -r requirements-docs.lock
	@touch $(DOCS_READY)
